//! `nexus replay`.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nexus_core::ids::FunctionRef;
use nexus_core::outcome::InvocationStatus;
use reqwest::Method;
use serde_json::Value;
use serde_json::value::RawValue;

use super::client::{Client, json as body_json, print_json};
use super::closer::CloserArgs;
use super::style::say;
use super::{Done, Failure, Output, step, style};
use crate::replay::{Filter, ReplayRequest};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Without side effects, against the recorded answers
    Deterministic,
    /// As a new invocation, with its side effects
    Live,
}

/// What makes the command fail.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// A function that fails now, or could not be replayed
    Failed,
    /// That, and anything that differs
    Diverged,
}

/// Arguments of `nexus replay`.
#[derive(Args)]
pub struct ReplayArgs {
    /// Of an event, a trace or an invocation, or a file that `nexus events export` wrote; or else say which events by --from, --to, --type, --event-source, --status
    #[arg(required_unless_present_any = ["from", "to", "ty", "event_source", "status"])]
    id: Option<String>,
    /// Which event, where several sources use the id
    #[arg(long, requires = "id")]
    source: Option<String>,
    /// Events received at or after: RFC 3339
    #[arg(long, conflicts_with = "id")]
    from: Option<jiff::Timestamp>,
    /// Events received before: RFC 3339
    #[arg(long, conflicts_with = "id")]
    to: Option<jiff::Timestamp>,
    /// Events of this type
    #[arg(long = "type", id = "ty", value_name = "TYPE", conflicts_with = "id")]
    ty: Option<String>,
    /// Events of this source
    #[arg(long, value_name = "SOURCE", conflicts_with = "id")]
    event_source: Option<String>,
    /// Events whose last attempt ended so: ok, error, timeout, trap, out_of_memory
    #[arg(long, conflicts_with = "id", value_parser = status)]
    status: Option<InvocationStatus>,
    /// How
    #[arg(long, value_enum, default_value = "deterministic")]
    mode: Mode,
    /// Only this function, at its current version or at NAME@VERSION
    #[arg(long)]
    function: Option<FunctionRef>,
    /// Another payload: JSON
    #[arg(long)]
    data: Option<String>,
    /// Events a second
    #[arg(long)]
    rate: Option<f64>,
    /// How many at once
    #[arg(long)]
    concurrency: Option<usize>,
    /// Of another version or payload: requests that the journal has no answer to go out; else they are denied
    #[arg(long)]
    allow_live: bool,
    /// Of a live replay: with the idempotency key that the event had
    #[arg(long)]
    same_key: bool,
    /// Of a live replay of more than one event: do not ask
    #[arg(long, short)]
    yes: bool,
    /// Walk through the calls of the host: what was asked, what was answered, what was printed by then
    #[arg(long, requires = "id")]
    step: bool,
    /// Of a file that `nexus events export` wrote: the component to run
    #[arg(long, value_name = "FILE", requires = "id")]
    pub component: Option<PathBuf>,
    #[command(flatten)]
    pub closer: CloserArgs,
    /// What makes the exit code 1
    #[arg(long, value_enum, default_value = "failed")]
    fail_on: FailOn,
}

fn status(name: &str) -> Result<InvocationStatus, String> {
    serde_json::from_value(Value::from(name))
        .map_err(|_| format!("`{name}` is none of ok, error, timeout, trap, out_of_memory, denied"))
}

impl ReplayArgs {
    /// The file of a case, if that is what is to be replayed.
    pub fn case(&self) -> Option<PathBuf> {
        let path = Path::new(self.id.as_deref()?);
        (self.component.is_some() || path.extension().is_some_and(|e| e == "json")).then(|| path.to_owned())
    }

    /// Whether it is run in this process.
    pub fn is_local(&self) -> bool {
        self.closer.any() || self.case().is_some()
    }

    /// What is to be replayed, if it is named.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// Which source the event is of.
    pub fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// Which function, of which version.
    pub fn function(&self) -> Option<&FunctionRef> {
        self.function.as_ref()
    }

    /// Whether it may reach the world.
    pub fn goes_out(&self) -> bool {
        self.mode == Mode::Live || self.allow_live
    }

    /// What the flags say beside which events are meant.
    pub fn fill_in(&self, request: &mut ReplayRequest) -> Result<(), Failure> {
        request.mode = match self.mode {
            Mode::Deterministic => crate::replay::Mode::Deterministic,
            Mode::Live => crate::replay::Mode::Live,
        };
        request.function = self.function.clone();
        request.rate = self.rate;
        request.concurrency = self.concurrency;
        (request.allow_live, request.same_key) = (self.allow_live, self.same_key);
        (request.confirm, request.steps) = (self.yes, self.step);
        if let Some(data) = &self.data {
            let data = RawValue::from_string(data.clone());
            request.data = Some(data.map_err(|e| Failure::usage(format!("--data is not JSON: {e}")))?);
        }
        Ok(())
    }
}

pub async fn run(args: ReplayArgs, client: &Client) -> Done {
    let mut request = subject(&args, client).await?;
    args.fill_in(&mut request)?;
    let Some(id) = start(&mut request, client).await? else {
        say!("nothing was replayed");
        return Ok(ExitCode::FAILURE);
    };
    let progress = std::io::stderr().is_terminal();
    let mut pause = Duration::from_millis(5);
    let replay = loop {
        let replay = client.get(&format!("/v1/replays/{id}")).await?;
        if progress && replay["total"].as_u64().is_some_and(|total| total > 1) {
            // Another program may have closed it.
            let _ = write!(std::io::stderr(), "\r{}", counts(&replay));
        }
        if !matches!(replay["status"].as_str(), Some("running" | "paused")) {
            break replay;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    };
    if progress && replay["total"].as_u64().is_some_and(|total| total > 1) {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    conclude(&args, &replay, client.output)
}

/// Prints what a replay found, and says so by the exit code.
pub fn conclude(args: &ReplayArgs, replay: &Value, output: Output) -> Done {
    match output {
        Output::Json => print_json(replay),
        Output::Text => {
            if args.step {
                replay["results"].as_array().into_iter().flatten().for_each(step::walk);
            }
            show(replay);
        }
    }
    let any = |key: &str| replay[key] != 0;
    let failed = any("failed")
        || any("leaked")
        || (args.fail_on == FailOn::Diverged && any("diverged"))
        || replay["status"] != "done";
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Begins the replay; whoever would deliver many events again for real is asked first. `None`: it was not meant.
async fn start(request: &mut ReplayRequest, client: &Client) -> Result<Option<String>, Failure> {
    let ask = |request: &ReplayRequest| client.request(Method::POST, "/v1/replays").json(request);
    let mut answer = client.send_any(ask(request)).await?;
    if answer.status() == http::StatusCode::CONFLICT && request.mode == crate::replay::Mode::Live && !request.confirm {
        let problem = body_json(answer).await?;
        let detail = problem["detail"].as_str().unwrap_or_default();
        if problem["type"] != "urn:nexus:problem:unconfirmed" {
            return Err(Failure::failed(detail));
        }
        if !std::io::stdin().is_terminal() {
            let events = &problem["events"];
            return Err(Failure::failed(format!(
                "this delivers {events} events again, with their side effects; say --yes if that is meant"
            )));
        }
        let events = &problem["events"];
        let _ =
            write!(std::io::stderr(), "this delivers {events} events again, with their side effects. Go on? [y/N] ");
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line);
        if read.is_err() || !matches!(line.trim(), "y" | "Y" | "yes") {
            return Ok(None);
        }
        request.confirm = true;
        answer = client.send_any(ask(request)).await?;
    }
    let answer = body_json(client.checked(answer).await?).await?;
    Ok(Some(answer["replay_id"].as_str().unwrap_or_default().to_owned()))
}

/// What the id is of.
async fn subject(args: &ReplayArgs, client: &Client) -> Result<ReplayRequest, Failure> {
    let Some(id) = &args.id else {
        let filter = Filter {
            from: args.from,
            to: args.to,
            ty: args.ty.clone(),
            source: args.event_source.clone(),
            function: args.function.as_ref().map(|function| function.name.clone()),
            status: args.status,
        };
        return Ok(ReplayRequest { filter: Some(filter), ..ReplayRequest::default() });
    };
    let hex = id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if args.source.is_none() && hex && client.find(&format!("/v1/traces/{id}")).await?.is_some() {
        return Ok(ReplayRequest { trace_id: Some(id.clone()), ..ReplayRequest::default() });
    }
    if args.source.is_none() && client.is_invocation(id).await? {
        return Ok(ReplayRequest { invocation_id: id.parse().ok(), ..ReplayRequest::default() });
    }
    Ok(ReplayRequest { event_id: Some(id.clone()), source: args.source.clone(), ..ReplayRequest::default() })
}

/// Lines of a guest that are shown.
const PRINTED_MAX: usize = 5;
/// Results that are shown one by one.
const SHOWN_MAX: usize = 20;

/// Prints what a replay found.
pub fn show(replay: &Value) {
    let text = |v: &Value| style::safe(&v.as_str().map_or_else(|| v.to_string(), str::to_owned));
    say!("replay {}  {}", text(&replay["replay_id"]), style::status(&text(&replay["status"])));
    let results = replay["results"].as_array().map_or(&[][..], Vec::as_slice);
    let many = results.len() > SHOWN_MAX;
    // Of many, those that say something.
    let shown = results.iter().filter(|result| !many || result["verdict"] != "identical").take(SHOWN_MAX);
    for result in shown {
        show_result(result);
    }
    if many {
        for kind in replay["kinds"].as_array().into_iter().flatten() {
            let divergence = &kind["divergence"];
            let what = if divergence.is_null() { String::new() } else { format!(": {}", text(divergence)) };
            let examples = kind["examples"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(", ");
            say!("  {} {}{what}  (as {examples})", kind["count"], style::status(&text(&kind["verdict"])));
        }
    }
    say!("{}", counts(replay));
}

fn show_result(result: &Value) {
    let text = |v: &Value| style::safe(&v.as_str().map_or_else(|| v.to_string(), str::to_owned));
    say!(
        "  {} of event {}  {}",
        text(&result["function"]),
        text(&result["event_id"]),
        style::status(&text(&result["verdict"]))
    );
    if !result["invocation_id"].is_null() && !result["replay_of"].is_null() {
        say!("    invocation {} replays {}", text(&result["invocation_id"]), text(&result["replay_of"]));
    }
    if let Some(answered) = result["answered"].as_u64() {
        say!(
            "    {answered} calls of the host answered from the journal; side effects: {}",
            text(&result["side_effects"])
        );
    }
    for unmatched in result["unmatched"].as_array().into_iter().flatten() {
        let what = if unmatched["live"] == true { "went out" } else { "denied" };
        say!("    not in the journal, {what}: {}", text(&unmatched["request"]));
    }
    if let Some(more) = result["unmatched_dropped"].as_u64() {
        say!("    and {more} more that are not in the journal");
    }
    for note in result["notes"].as_array().into_iter().flatten() {
        say!("    note: {}", text(note));
    }
    if !result["divergence"].is_null() {
        let differs = result["diff"].is_object();
        say!("    {}{}", if differs { "differs in " } else { "" }, text(&result["divergence"]));
    }
    let host_call = &result["host_call"];
    if host_call.is_object() {
        let side = |v: &Value| if v.is_null() { "nothing more".to_owned() } else { style::cut(&text(v), 400) };
        say!("    call {}", host_call["call"]);
        say!("      recorded {}", side(&host_call["expected"]));
        say!("      now      {}", side(&host_call["actual"]));
        let printed = host_call["printed"].as_array().map_or(&[][..], Vec::as_slice);
        for line in &printed[printed.len().saturating_sub(PRINTED_MAX)..] {
            say!("      printed  {}", style::cut(&text(&line["line"]), 200));
        }
    } else if !result["diff"].is_null() {
        if let Some(at) = result["diff"]["at"].as_str().filter(|at| !at.is_empty()) {
            say!("    first at   {}", style::safe(at));
        }
        say!("    before     {}", style::cut(&style::safe(&result["diff"]["before"].to_string()), 400));
        say!("    after      {}", style::cut(&style::safe(&result["diff"]["after"].to_string()), 400));
    }
}

/// How far a replay has come, in a line.
pub fn counts(replay: &Value) -> String {
    let leaked = match replay["leaked"].as_u64() {
        None | Some(0) => String::new(),
        Some(leaked) => format!(", {leaked} leaked"),
    };
    format!(
        "{} of {} done: {} identical, {} diverged, {} failed{leaked}",
        replay["done"], replay["total"], replay["identical"], replay["diverged"], replay["failed"]
    )
}
