//! `nexus logs`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::Value;

use super::client::{Client, encoded};
use super::{Done, Failure, Output, style};

/// A line of the answer is never longer than this; more is a broken answer.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Arguments of `nexus logs`.
#[derive(Args)]
pub struct LogsArgs {
    /// Go on with what is written from now on
    #[arg(long, short)]
    follow: bool,
    /// Only what was written for this event
    #[arg(long = "event", required_unless_present = "follow")]
    event_id: Option<String>,
}

pub async fn run(args: LogsArgs, client: &Client) -> Done {
    let mut path = format!("/v1/logs?follow={}", args.follow);
    if let Some(id) = &args.event_id {
        path.push_str(&format!("&event_id={}", encoded(id)));
    }
    let response = client.send(client.request(Method::GET, &path)).await?;
    let mut chunks = response.bytes_stream();
    let mut waiting = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| Failure::failed(format!("the answer broke off: {e}")))?;
        waiting.extend_from_slice(&chunk);
        while let Some(end) = waiting.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = waiting.drain(..=end).collect();
            print(&line, client.output)?;
        }
        if waiting.len() > LINE_BYTES_MAX {
            return Err(Failure::failed("the server's answer has a line without end"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(line: &[u8], output: Output) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let value: Value =
        serde_json::from_slice(line).map_err(|e| Failure::failed(format!("the server's answer: {e}")))?;
    if output == Output::Json {
        writeln!(out, "{value}")?;
    } else if !value["dropped"].is_null() {
        writeln!(out, "… {} lines are missing here", value["dropped"])?;
    } else {
        let text = |key: &str| style::safe(value[key].as_str().unwrap_or_default());
        writeln!(
            out,
            "{}  {}  {}  {}",
            text("time"),
            style::paint(&text("function"), 1),
            text("stream"),
            text("line")
        )?;
    }
    Ok(out.flush()?)
}
