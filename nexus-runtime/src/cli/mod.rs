//! The command line. Data goes to standard output, an error is one line on standard error, the exit code tells the kind.

mod admin;
mod case;
mod child;
mod client;
mod closer;
mod deploy;
mod dev;
mod dlq;
mod doctor;
mod events;
mod functions;
mod logs;
mod new;
mod observe;
mod profile;
mod replay;
mod replays;
mod send;
mod serve;
mod step;
mod style;
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};

pub use client::Client;

/// Why a command did not do it.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Exit code 1: it failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(1, message)
    }

    /// Exit code 2: it was asked for in a wrong way.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(2, message)
    }

    /// Exit code 3: it is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(3, message)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        // Libraries put drawings into their errors; here an error is a line.
        let text = format!("{error:#}");
        Self::failed(text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" "))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

type Done = Result<ExitCode, Failure>;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Runs WebAssembly functions on CloudEvents; every event can be replayed, and every invocation shows what it made the
/// kernel do.
#[derive(Parser)]
#[command(name = "nexus", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// How data is printed
    #[arg(long, global = true, value_enum, default_value_t)]
    pub output: Output,
    /// The server
    #[arg(long, global = true, env = "NEXUS_URL", default_value = "http://127.0.0.1:7070")]
    pub url: String,
}

#[derive(Subcommand)]
enum Command {
    /// Everything in one process, for development: deploys the functions in DIR and reloads them when they change
    #[command(after_help = "Example:\n  nexus dev examples")]
    Dev(dev::DevArgs),
    /// The same for production, from a config file
    #[command(after_help = "Example:\n  nexus serve --config /etc/nexus.toml")]
    Serve(serve::ServerArgs),
    /// Writes a new function from a template
    #[command(after_help = "Example:\n  nexus new rust my-function\n  nexus build my-function")]
    New(new::NewArgs),
    /// Builds the function in DIR
    #[command(after_help = "Example:\n  nexus build my-function")]
    Build {
        /// The function's folder
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Deploys a component, or the function in a folder with a nexus.toml
    #[command(after_help = "Examples:\n  nexus deploy examples/order-check\n  \
                            nexus deploy hello.wasm --name hello --on type=order.created --env GREETING=hi")]
    Deploy(deploy::DeployArgs),
    /// Lists functions; gets or deletes one
    #[command(after_help = "Examples:\n  nexus functions\n  nexus functions get order-check")]
    Functions(functions::FunctionsArgs),
    /// Sends an event; prints its id and its trace id
    #[command(after_help = "Example:\n  nexus send --type order.created --data '{\"order_id\":\"o-1\"}'")]
    Send(send::SendArgs),
    /// Calls a function and prints its response
    #[command(after_help = "Example:\n  nexus invoke order-check --data '{\"order_id\":\"o-1\"}'")]
    Invoke(send::InvokeArgs),
    /// Lists events, shows one with everything that happened to it, or follows them
    #[command(after_help = "Examples:\n  nexus events --status dead\n  nexus events get ID\n  nexus events tail")]
    Events(events::EventsArgs),
    /// Draws a trace as a waterfall, with the kernel's rows; ID is of an event, a trace or an invocation
    #[command(after_help = "Example:\n  nexus trace 4bf92f3577b34da6a3ce929d0e0e4736")]
    Trace(trace::TraceArgs),
    /// Runs events again: exactly, from what was recorded, or live; says what differs
    #[command(after_help = "Examples:\n  nexus replay ID\n  nexus replay ID --step\n  \
                            nexus replay --from 2026-11-26T00:00:00Z --function order-check@8 --fail-on diverged\n  \
                            nexus events export ID > case.json && nexus replay case.json --component f.wasm")]
    Replay(replay::ReplayArgs),
    /// Lists replays; shows, holds or ends one
    #[command(after_help = "Examples:\n  nexus replays\n  nexus replays pause REPLAY")]
    Replays(replays::ReplaysArgs),
    /// Takes a profile of a function: where its time on the CPU goes, in its own code, the host's and the kernel's
    #[command(after_help = "Examples:\n  nexus profile order-check --seconds 30\n  \
                            nexus profile order-check -o order-check.pb.gz && go tool pprof -top order-check.pb.gz")]
    Profile(profile::ProfileArgs),
    /// Lists dead letters (deliveries that were given up), tries them again, or drops them
    #[command(after_help = "Examples:\n  nexus dlq\n  nexus dlq retry EVENT\n  nexus dlq drop --function order-check")]
    Dlq(dlq::DlqArgs),
    /// Prints what functions wrote
    #[command(after_help = "Examples:\n  nexus logs --event ID\n  nexus logs --follow")]
    Logs(logs::LogsArgs),
    /// Runs any program, or looks at processes that run, and prints what they made the kernel do; the exit code is the program's
    #[command(
        after_help = "Examples:\n  nexus observe -- tar cf /dev/null /etc\n  nexus observe --pid 4711 --seconds 10\n  \
                            nexus observe --cgroup /system.slice/nginx.service"
    )]
    Observe(observe::ObserveArgs),
    /// Backs up, restores and checks a data directory while no server has it
    #[command(after_help = "Examples:\n  nexus admin backup --data-dir nexus-data nexus.backup\n  \
                            nexus admin check --data-dir nexus-data")]
    Admin(admin::AdminArgs),
    /// Becomes a program that ends with the process that started it
    #[command(hide = true)]
    Child(child::ChildArgs),
    /// Says what works on this machine, and how to get the rest
    #[command(after_help = "Examples:\n  nexus doctor\n  nexus doctor --overhead")]
    Doctor(doctor::DoctorArgs),
}

/// Parses the command line and does what it says.
pub fn run() -> ExitCode {
    let Cli { global, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let done = match command {
        Command::Dev(args) => dev::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Observe(args) => observe::run(args, global.output),
        Command::Replay(args) if args.is_local() => case::run(args, global),
        Command::Build { dir } => crate::build::build(&dir).map(|_| ExitCode::SUCCESS).map_err(Failure::from),
        Command::New(args) => new::run(&args),
        Command::Child(args) => child::run(args),
        Command::Admin(args) => on_client_runtime(admin::run(args, global)),
        other => on_client_runtime(run_client(other, global)),
    };
    match done {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("nexus: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Help and version go out as they are; wrong usage is one line, like every other error.
fn usage(error: &clap::Error) -> ExitCode {
    let whole = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if whole {
        // Where it cannot be printed there is nobody to tell.
        let _ = error.print();
    } else {
        let text = error.render().to_string();
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("For more information"));
        let line = lines.collect::<Vec<_>>().join(" ");
        eprintln!("nexus: {}; --help says more", line.trim_start_matches("error: ").replace(" Usage:", "; usage:"));
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

async fn run_client(command: Command, global: Global) -> Done {
    let client = Client::new(&global)?;
    match command {
        Command::Deploy(args) => deploy::run(args, &client).await,
        Command::Functions(args) => functions::run(args, &client).await,
        Command::Send(args) => send::send(args, &client).await,
        Command::Invoke(args) => send::invoke(args, &client).await,
        Command::Events(args) => events::run(args, &client).await,
        Command::Trace(args) => trace::run(args, &client).await,
        Command::Replay(args) => replay::run(args, &client).await,
        Command::Replays(args) => replays::run(args, &client).await,
        Command::Profile(args) => profile::run(args, &client).await,
        Command::Dlq(args) => dlq::run(args, &client).await,
        Command::Logs(args) => logs::run(args, &client).await,
        Command::Doctor(args) => doctor::run(args, &client).await,
        Command::Dev(_)
        | Command::Serve(_)
        | Command::Observe(_)
        | Command::Build { .. }
        | Command::New(_)
        | Command::Admin(_)
        | Command::Child(_) => Err(Failure::failed("this command does not talk to a server")),
    }
}

/// A client needs no more than one thread.
fn on_client_runtime<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}
