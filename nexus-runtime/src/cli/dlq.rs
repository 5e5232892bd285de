//! `nexus dlq`: deliveries that were given up.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use nexus_core::ids::FunctionName;
use reqwest::Method;
use serde_json::{Map, Value};

use super::client::{Client, encoded, json, print_json};
use super::style::say;
use super::{Done, Failure, Output, style};

/// Arguments of `nexus dlq`.
#[derive(Args)]
pub struct DlqArgs {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Lists dead letters, the newest events first; what `nexus dlq` alone does
    List(ListArgs),
    /// Makes another attempt
    #[command(after_help = "Examples:\n  nexus dlq retry EVENT\n  nexus dlq retry --function order-check --yes")]
    Retry(WhichArgs),
    /// Forgets them; the events and what came of them stay in the log
    #[command(after_help = "Example:\n  nexus dlq drop EVENT")]
    Drop(WhichArgs),
}

#[derive(Args, Default)]
struct ListArgs {
    /// Only of this function
    #[arg(long)]
    function: Option<FunctionName>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

#[derive(Args)]
struct WhichArgs {
    /// Those of this event
    event: Option<String>,
    /// Which event, where several sources use the id
    #[arg(long, requires = "event")]
    source: Option<String>,
    /// Those of this function
    #[arg(long)]
    function: Option<FunctionName>,
    /// All of them
    #[arg(long, conflicts_with_all = ["event", "function"])]
    all: bool,
    /// Does not ask first, where it is more than one
    #[arg(long)]
    yes: bool,
}

pub async fn run(args: DlqArgs, client: &Client) -> Done {
    let (which, path, done) = match args.command {
        None => return list(ListArgs { limit: 50, ..ListArgs::default() }, client).await,
        Some(Command::List(args)) => return list(args, client).await,
        Some(Command::Retry(which)) => (which, "/v1/dlq/retry", "retried"),
        Some(Command::Drop(which)) => (which, "/v1/dlq/drop", "dropped"),
    };
    let mut body = Map::new();
    if let Some(event) = &which.event {
        body.insert("event_id".into(), event.as_str().into());
    }
    if let Some(source) = &which.source {
        body.insert("source".into(), source.as_str().into());
    }
    if let Some(function) = &which.function {
        body.insert("function".into(), function.to_string().into());
    }
    if which.all {
        body.insert("all".into(), true.into());
    }
    if body.is_empty() {
        return Err(Failure::usage("say which: an event's id, --function NAME or --all".to_owned()));
    }
    if which.event.is_none() && !which.yes && !asked(&which, path)? {
        return Err(Failure::failed("nothing was done".to_owned()));
    }
    let answer = json(client.send(client.request(Method::POST, path).json(&body)).await?).await?;
    match client.output {
        Output::Json => print_json(&answer),
        Output::Text => say!("{done} {}", answer[done]),
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks on the terminal. Without one there is nobody to ask.
fn asked(which: &WhichArgs, path: &str) -> Result<bool, Failure> {
    use std::io::IsTerminal as _;
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("this is more than one: say so with --yes".to_owned()));
    }
    let what =
        which.function.as_ref().map_or_else(|| "all dead letters".into(), |f| format!("all dead letters of {f}"));
    let verb = if path.ends_with("retry") { "Retry" } else { "Drop" };
    eprint!("{verb} {what}? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn list(args: ListArgs, client: &Client) -> Done {
    let mut path = format!("/v1/dlq?limit={}", args.limit);
    if let Some(function) = &args.function {
        path += &format!("&function={}", encoded(function.as_str()));
    }
    let page = client.get(&path).await?;
    if client.output == Output::Json {
        print_json(&page);
        return Ok(ExitCode::SUCCESS);
    }
    let items = page["items"].as_array().cloned().unwrap_or_default();
    if items.is_empty() {
        say!("no dead letters");
        return Ok(ExitCode::SUCCESS);
    }
    let text = |value: &Value| style::safe(&value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let row = |item: &Value| {
        vec![
            text(&item["given_up_at"]),
            text(&item["function"]),
            text(&item["attempts"]),
            style::cut(&text(&item["type"]), 32),
            style::cut(&text(&item["event_id"]), 40),
            style::cut(&text(&item["error"]), 60),
        ]
    };
    style::table(
        &["GIVEN UP", "FUNCTION", "ATTEMPTS", "TYPE", "EVENT", "ERROR"],
        &items.iter().map(row).collect::<Vec<_>>(),
    );
    if !page["next"].is_null() {
        say!("there are more; --limit says how many are shown");
    }
    Ok(ExitCode::SUCCESS)
}
