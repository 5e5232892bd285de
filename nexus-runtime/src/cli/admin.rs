//! `nexus admin`: backup, restore and check of a data directory that no server has open, and backup of one that runs.

use std::io::{IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use nexus_log::embedded::admin::{self, AdminError, Existing, Received, Report, Step, Summary};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::client::{Client, print_json};
use super::style::say;
use super::{Done, Failure, Global, Output, style};
use crate::config::Config;
use crate::storage::{COPY, EMBEDDED};

/// Arguments of `nexus admin`.
#[derive(Args)]
pub struct AdminArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes everything into one file: of a data directory whose server is stopped, or of a server that runs
    #[command(after_help = "Examples:\n  nexus admin backup --data-dir /var/lib/nexus /backup/nexus.backup\n  \
                            nexus admin backup --running --url http://127.0.0.1:7070 /backup/nexus.backup")]
    Backup {
        #[command(flatten)]
        place: Place,
        /// Of the server at --url, while it goes on: everything as it is at one moment; no data directory is looked at
        #[arg(long)]
        running: bool,
        /// The file
        file: PathBuf,
        /// Replaces a file that is there, once the new one is whole
        #[arg(long)]
        replace: bool,
    },
    /// Makes a data directory anew from a backup; no log may be in it yet
    #[command(after_help = "Example:\n  nexus admin restore --data-dir /var/lib/nexus /backup/nexus.backup")]
    Restore {
        #[command(flatten)]
        place: Place,
        /// The file
        file: PathBuf,
    },
    /// Reads a backup from one end to the other and says whether it is whole
    #[command(after_help = "Example:\n  nexus admin verify /backup/nexus.backup")]
    Verify {
        /// The file
        file: PathBuf,
    },
    /// Says whether all that is in a data directory fits together; the server must be stopped; exit code 1 if it does not
    #[command(after_help = "Example:\n  nexus admin check --data-dir /var/lib/nexus")]
    Check {
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Args)]
struct Place {
    /// The data directory [default: as the config file says, else nexus-data]
    #[arg(long, env = "NEXUS_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// The server's config file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Place {
    fn data_dir(&self) -> Result<PathBuf, Failure> {
        match (&self.data_dir, &self.config) {
            (Some(dir), _) => Ok(dir.clone()),
            (None, Some(file)) => Ok(Config::from_file(file)?.data_dir),
            (None, None) => Ok(Config::default().data_dir),
        }
    }

    /// The store that is there: for a server whose log is in NATS its copy, of which the library says what it is.
    fn store(&self) -> Result<PathBuf, Failure> {
        let data_dir = self.data_dir()?;
        let (log, copy) = (data_dir.join(EMBEDDED), data_dir.join(COPY));
        Ok(if copy.exists() && !log.exists() { copy } else { log })
    }
}

/// What came of it.
enum Outcome {
    Summary(&'static str, Summary),
    Report(Report),
}

/// Does what is asked; an interrupt stops it between two entries, so that nothing half-made is left.
pub async fn run(args: AdminArgs, global: Global) -> Done {
    let output = global.output;
    let running = match &args.command {
        Command::Backup { running: true, .. } => Some((Client::new(&global)?, tokio::runtime::Handle::current())),
        _ => None,
    };
    let stop = CancellationToken::new();
    let mut progress = Progress { stop: stop.clone(), shown: std::io::stderr().is_terminal(), wide: 0 };
    let mut work = tokio::task::spawn_blocking(move || {
        let done = match (&args.command, running) {
            (Command::Backup { file, replace, .. }, Some((client, handle))) => {
                receive(&client, &handle, file, existing(*replace), &mut progress)
            }
            (command, _) => act(command, &mut |step| progress.step(step)),
        };
        progress.clear();
        done
    });
    let done = tokio::select! {
        done = &mut work => done,
        signal = tokio::signal::ctrl_c() => {
            signal?;
            stop.cancel();
            work.await
        }
    };
    match done.map_err(|e| Failure::failed(format!("it broke off: {e}")))?? {
        Outcome::Summary(verb, summary) => print_summary(verb, &summary, output),
        Outcome::Report(report) => print_report(&report, output),
    }
}

fn act(command: &Command, watch: admin::Watch<'_>) -> Result<Outcome, Failure> {
    let done = match command {
        Command::Backup { place, file, replace, .. } => {
            admin::backup(&place.store()?, file, existing(*replace), watch).map(|s| Outcome::Summary("backed up", s))
        }
        Command::Restore { place, file } => {
            admin::restore(file, &place.data_dir()?.join(EMBEDDED), watch).map(|s| Outcome::Summary("restored", s))
        }
        Command::Verify { file } => admin::verify(file, watch).map(|s| Outcome::Summary("whole", s)),
        Command::Check { place } => admin::check(&place.store()?, watch).map(Outcome::Report),
    };
    done.map_err(failure)
}

fn existing(replace: bool) -> Existing {
    if replace { Existing::Replace } else { Existing::Keep }
}

/// Takes a backup from a server. It counts when it was read from one end to the other.
fn receive(
    client: &Client,
    handle: &tokio::runtime::Handle,
    file: &Path,
    existing: Existing,
    progress: &mut Progress,
) -> Result<Outcome, Failure> {
    let mut received = Received::begin(file, existing).map_err(failure)?;
    let stop = progress.stop.clone();
    let stopped = || failure(AdminError::Stopped);
    let mut answer = handle.block_on(async {
        tokio::select! {
            () = stop.cancelled() => Err(stopped()),
            answer = client.send(client.request(Method::GET, "/v1/backup")) => answer,
        }
    })?;
    let mut bytes = 0;
    loop {
        let chunk = handle.block_on(async {
            tokio::select! {
                () = stop.cancelled() => None,
                chunk = answer.chunk() => Some(chunk),
            }
        });
        let broke_off = |e| Failure::failed(format!("the backup broke off after {bytes} bytes: {e}; nothing was kept"));
        let Some(chunk) = chunk.ok_or_else(stopped)?.map_err(broke_off)? else { break };
        received.write_all(&chunk).map_err(|e| Failure::failed(format!("writing {}: {e}", file.display())))?;
        bytes += chunk.len();
        if progress.show(&format!("received: {bytes} bytes")).is_break() {
            return Err(stopped());
        }
    }
    let summary = received.finish(&mut |step| progress.step(step)).map_err(failure)?;
    Ok(Outcome::Summary("backed up", summary))
}

fn failure(error: AdminError) -> Failure {
    Failure::failed(error.to_string())
}

fn print_summary(verb: &str, summary: &Summary, output: Output) -> Done {
    let Summary { made_at, head, events, outcomes, registry, parked, dead_letters, artifacts, file_bytes } = summary;
    if output == Output::Json {
        print_json(&json!({
            "made_at": made_at.to_string(), "head": head, "events": events, "outcomes": outcomes,
            "registry": registry, "parked": parked, "dead_letters": dead_letters, "artifacts": artifacts,
            "file_bytes": file_bytes,
        }));
    } else {
        say!(
            "{verb}: {events} events, {outcomes} outcomes, {registry} registry entries, {parked} deliveries that wait, \
             {dead_letters} dead letters, {artifacts} artifacts; {file_bytes} bytes, made {made_at}"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn print_report(report: &Report, output: Output) -> Done {
    let code = if report.is_healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if output == Output::Json {
        let problem = |p: &admin::Problem| json!({"place": p.place, "what": p.what});
        print_json(&json!({
            "healthy": report.is_healthy(), "events": report.events, "outcomes": report.outcomes,
            "registry": report.registry, "parked": report.parked, "dead_letters": report.dead_letters,
            "artifacts": report.artifacts, "bytes": report.bytes, "artifact_bytes": report.artifact_bytes,
            "left_over": report.left_over, "problems_total": report.problems_total,
            "problems": report.problems.iter().map(problem).collect::<Vec<Value>>(),
        }));
        return Ok(code);
    }
    let Report { events, outcomes, registry, parked, dead_letters, artifacts, .. } = report;
    say!(
        "{events} events, {outcomes} outcomes, {registry} registry entries, {parked} deliveries that wait, \
         {dead_letters} dead letters, {artifacts} artifacts"
    );
    for problem in &report.problems {
        say!("{}", style::safe(&problem.to_string()));
    }
    let (total, told) = (report.problems_total, report.problems.len() as u64);
    match total {
        0 => say!("no problems"),
        1 => say!("1 problem"),
        _ if total > told => say!("{total} problems, of which {told} are shown"),
        _ => say!("{total} problems"),
    }
    Ok(code)
}

/// A line on a terminal that says how far it is.
struct Progress {
    stop: CancellationToken,
    shown: bool,
    wide: usize,
}

impl Progress {
    fn step(&mut self, step: Step) -> ControlFlow<()> {
        self.show(&format!("{}: {} of {}", step.phase.as_str(), step.done, step.total))
    }

    fn show(&mut self, line: &str) -> ControlFlow<()> {
        if self.stop.is_cancelled() {
            return ControlFlow::Break(());
        }
        if self.shown {
            // Where it cannot be shown, the work goes on.
            let _ = write!(std::io::stderr(), "\r{line:<width$}", width = self.wide);
            self.wide = self.wide.max(line.len());
        }
        ControlFlow::Continue(())
    }

    fn clear(&self) {
        if self.wide > 0 {
            let _ = write!(std::io::stderr(), "\r{:width$}\r", "", width = self.wide);
        }
    }
}
