//! `nexus send` and `nexus invoke`.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use bytes::Bytes;
use clap::Args;
use http::StatusCode;
use nexus_core::event::{Data, Event, NOT_BEFORE, percent_encode};
use nexus_core::ids::FunctionName;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Client, json as body_json, print_json};
use super::style::say;
use super::{Done, Failure, Output};

/// Arguments of `nexus send`.
#[derive(Args)]
pub struct SendArgs {
    /// The event's type
    #[arg(long = "type", default_value = "nexus.test")]
    ty: String,
    /// The event's source
    #[arg(long, default_value = "/nexus/cli")]
    source: String,
    /// The event's id; a new one without it
    #[arg(long)]
    id: Option<String>,
    /// The event's subject
    #[arg(long)]
    subject: Option<String>,
    /// The payload: JSON
    #[arg(long, conflicts_with = "file")]
    data: Option<String>,
    /// The payload: a file, or - for standard input
    #[arg(long)]
    file: Option<PathBuf>,
    /// The payload's media type; by the file's name without it
    #[arg(long)]
    content_type: Option<String>,
    /// Take it now, and deliver it no sooner than at this time, such as 2027-01-31T09:00:00+01:00
    #[arg(long, value_name = "TIME")]
    at: Option<jiff::Timestamp>,
    /// Take it now, and deliver it this much later, such as 90s, 15m or 2d
    #[arg(long = "in", value_name = "TIME SPAN", conflicts_with = "at", value_parser = later)]
    later: Option<jiff::SignedDuration>,
}

/// A time span that is not negative. A day has 24 hours.
fn later(text: &str) -> Result<jiff::SignedDuration, String> {
    let span: jiff::Span = text.parse().map_err(|_| "it must be a time span such as 90s, 15m or 2d".to_owned())?;
    let days = jiff::SpanRelativeTo::days_are_24_hours();
    let span = span.to_duration(days).map_err(|e| e.to_string())?;
    if span.is_negative() { Err("it must not be negative".to_owned()) } else { Ok(span) }
}

/// Arguments of `nexus invoke`.
#[derive(Args)]
pub struct InvokeArgs {
    /// The function
    name: FunctionName,
    /// The body: JSON
    #[arg(long, conflicts_with = "file")]
    data: Option<String>,
    /// The body: a file, or - for standard input
    #[arg(long)]
    file: Option<PathBuf>,
    /// The body's media type; by the file's name without it
    #[arg(long)]
    content_type: Option<String>,
    /// The method; POST with a body, else GET
    #[arg(long)]
    method: Option<Method>,
    /// Path and query that the function sees
    #[arg(long, default_value = "/")]
    path: String,
}

/// The payload and its media type.
fn payload(
    data: Option<String>,
    file: Option<PathBuf>,
    content_type: Option<String>,
) -> Result<Option<(Bytes, String)>, Failure> {
    if let Some(data) = data {
        serde_json::from_str::<serde::de::IgnoredAny>(&data)
            .map_err(|e| Failure::usage(format!("--data is not JSON: {e}; a file of any kind goes with --file")))?;
        return Ok(Some((data.into(), content_type.unwrap_or_else(|| "application/json".into()))));
    }
    let Some(path) = file else { return Ok(None) };
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes)?;
    } else {
        bytes = std::fs::read(&path).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
    }
    let by_name = match path.extension().and_then(|e| e.to_str()) {
        Some("json") => "application/json",
        Some("txt") => "text/plain",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        _ if serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok() => "application/json",
        _ => "application/octet-stream",
    };
    Ok(Some((bytes.into(), content_type.unwrap_or_else(|| by_name.into()))))
}

pub async fn send(args: SendArgs, client: &Client) -> Done {
    let id = args.id.unwrap_or_else(|| uuid::Uuid::now_v7().as_simple().to_string());
    let mut event = Event::new(id, args.source, args.ty);
    event.subject = args.subject;
    event.time = Some(jiff::Timestamp::now().to_string());
    let at = match args.later {
        Some(later) => Some(jiff::Timestamp::now().checked_add(later).map_err(|e| Failure::usage(e.to_string()))?),
        None => args.at,
    };
    if let Some(at) = at {
        event.set_attribute(NOT_BEFORE, &at.to_string()).map_err(|e| Failure::usage(e.to_string()))?;
    }
    let mut request = client.request(Method::POST, "/v1/events");
    if let Some((bytes, content_type)) = payload(args.data, args.file, args.content_type)? {
        event.data =
            Some(Data::from_body(bytes.clone(), Some(&content_type)).map_err(|e| Failure::usage(e.to_string()))?);
        request = request.header("content-type", &content_type).body(bytes);
        event.datacontenttype = Some(content_type);
    }
    event.validate().map_err(|e| Failure::usage(e.to_string()))?;
    for name in ["specversion", "id", "source", "type", "subject", "time", NOT_BEFORE] {
        if let Some(value) = event.attribute(name) {
            request = request.header(format!("ce-{name}"), percent_encode(&value));
        }
    }
    let answer = body_json(client.send(request).await?).await?;
    match client.output {
        Output::Json => print_json(&answer),
        Output::Text => {
            let receipt = &answer["events"][0];
            let duplicate = if receipt["duplicate"] == true { "  (duplicate of one that is in the log)" } else { "" };
            let later = at.map(|at| format!("  (for {at})")).unwrap_or_default();
            say!("event {}  trace {}{later}{duplicate}", event.id, receipt["trace_id"].as_str().unwrap_or("unknown"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub async fn invoke(args: InvokeArgs, client: &Client) -> Done {
    let payload = payload(args.data, args.file, args.content_type)?;
    let method = args.method.unwrap_or(if payload.is_some() { Method::POST } else { Method::GET });
    if !args.path.starts_with('/') {
        return Err(Failure::usage(format!("--path {:?} must begin with /", args.path)));
    }
    let mut request = client.request(method, &format!("/fn/{}{}", args.name, args.path));
    if let Some((bytes, content_type)) = payload {
        request = request.header("content-type", content_type).body(bytes);
    }
    let response = client.send_any(request).await?;
    let status = response.status();
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (event, trace, media) = (header("nexus-event-id"), header("traceresponse"), header("content-type"));
    let problem = media.as_deref() == Some("application/problem+json");
    let trace = trace.and_then(|t| t.split('-').nth(1).map(str::to_owned));
    let body = response.bytes().await.map_err(|e| Failure::failed(format!("the response broke off: {e}")))?;
    if problem {
        let detail = serde_json::from_slice::<Value>(&body).ok().and_then(|p| Some(p["detail"].as_str()?.to_owned()));
        let code = if status == StatusCode::NOT_FOUND && event.is_none() { 3 } else { 1 };
        let id = event.map(|id| format!(" (event {id})")).unwrap_or_default();
        return Err(Failure { code, message: format!("{}{id}", detail.unwrap_or_else(|| status.to_string())) });
    }
    match client.output {
        Output::Json => {
            let text = serde_json::from_slice(&body).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&body)));
            print_json(&json!({"status": status.as_u16(), "event_id": event, "trace_id": trace, "body": text}));
        }
        Output::Text => {
            std::io::stdout().write_all(&body)?;
            if body.last().is_some_and(|b| *b != b'\n') && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
                say!();
            }
            eprintln!("status {status}  event {}  trace {}", event.unwrap_or_default(), trace.unwrap_or_default());
        }
    }
    Ok(if status.is_success() || status.is_redirection() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
