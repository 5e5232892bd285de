//! `nexus replay`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nexus_core::ids::FunctionRef;
use reqwest::Method;
use serde_json::Value;
use serde_json::value::RawValue;

use super::client::{Client, encoded, json as body_json, print_json};
use super::style::say;
use super::{Done, Failure, Output, style};
use crate::replay::ReplayRequest;

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    /// Without side effects, against the recorded answers (not in this version)
    Deterministic,
    /// As a new invocation, with its side effects
    Live,
}

/// Arguments of `nexus replay`.
#[derive(Args)]
pub struct ReplayArgs {
    /// Of an event, a trace or an invocation
    id: String,
    /// Which event, where several sources use the id
    #[arg(long)]
    source: Option<String>,
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
}

pub async fn run(args: ReplayArgs, client: &Client) -> Done {
    let mut request = subject(&args, client).await?;
    request.mode = match args.mode {
        Mode::Deterministic => crate::replay::Mode::Deterministic,
        Mode::Live => crate::replay::Mode::Live,
    };
    request.function = args.function;
    request.rate = args.rate;
    if let Some(data) = args.data {
        let data = RawValue::from_string(data).map_err(|e| Failure::usage(format!("--data is not JSON: {e}")))?;
        request.data = Some(data);
    }
    let started = client.send(client.request(Method::POST, "/v1/replays").json(&request)).await?;
    let id = body_json(started).await?["replay_id"].as_str().unwrap_or_default().to_owned();
    let mut pause = Duration::from_millis(5);
    let replay = loop {
        let replay = client.get(&format!("/v1/replays/{id}")).await?;
        if replay["status"] != "running" {
            break replay;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    };
    match client.output {
        Output::Json => print_json(&replay),
        Output::Text => show(&replay),
    }
    let failed = replay["failed"] != 0 || replay["status"] != "done";
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What the id is of.
async fn subject(args: &ReplayArgs, client: &Client) -> Result<ReplayRequest, Failure> {
    let id = &args.id;
    let hex = id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if args.source.is_none() && hex && client.find(&format!("/v1/traces/{id}")).await?.is_some() {
        return Ok(ReplayRequest { trace_id: Some(id.clone()), ..ReplayRequest::default() });
    }
    if args.source.is_none()
        && id.len() == 36
        && let Some(found) = client.find(&format!("/v1/invocations/{}", encoded(id))).await?
    {
        let text = |key: &str| found[key].as_str().map(str::to_owned);
        return Ok(ReplayRequest { event_id: text("event_id"), source: text("source"), ..ReplayRequest::default() });
    }
    Ok(ReplayRequest { event_id: Some(id.clone()), source: args.source.clone(), ..ReplayRequest::default() })
}

fn show(replay: &Value) {
    let text = |v: &Value| style::safe(&v.as_str().map_or_else(|| v.to_string(), str::to_owned));
    say!("replay {}  {}", text(&replay["replay_id"]), style::status(&text(&replay["status"])));
    for result in replay["results"].as_array().into_iter().flatten() {
        say!(
            "  {} of event {}  {}",
            text(&result["function"]),
            text(&result["event_id"]),
            style::status(&text(&result["verdict"]))
        );
        if !result["replay_of"].is_null() {
            say!("    invocation {} replays {}", text(&result["invocation_id"]), text(&result["replay_of"]));
        }
        if !result["divergence"].is_null() {
            say!("    differs in {}", text(&result["divergence"]));
        }
        if !result["diff"].is_null() {
            say!("    before     {}", style::cut(&style::safe(&result["diff"]["before"].to_string()), 400));
            say!("    after      {}", style::cut(&style::safe(&result["diff"]["after"].to_string()), 400));
        }
    }
    say!(
        "{} of {} done: {} identical, {} diverged, {} failed",
        replay["done"],
        replay["total"],
        replay["identical"],
        replay["diverged"],
        replay["failed"]
    );
}
