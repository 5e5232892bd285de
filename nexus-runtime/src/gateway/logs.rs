//! The functions' lines: those of one event from the log, or all from now on.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::extract::Query;
use super::problem::Problem;
use super::{Shared, events};
use crate::telemetry::logs::Line;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsQuery {
    event_id: Option<String>,
    source: Option<String>,
    #[serde(default)]
    follow: bool,
}

/// One JSON object a line. With `follow` the answer goes on until the client or the server ends it.
pub async fn follow(State(gateway): State<Shared>, Query(query): Query<LogsQuery>) -> Result<Response, Problem> {
    let mut head = String::new();
    // Followed before it is read, so that no line falls between the two.
    let receiver = gateway.line.telemetry.logs.follow();
    if let Some(id) = &query.event_id {
        let record = events::find_one(&gateway, id, query.source.as_deref()).await?;
        for outcome in gateway.line.storage.log.outcomes(record.seq).await? {
            for line in &outcome.logs {
                let time = outcome.started_at + std::time::Duration::from_nanos(line.offset_ns);
                let line = json!({
                    "time": time, "trace_id": record.entry.trace.trace_id, "event_id": id,
                    "invocation_id": outcome.invocation_id, "function": outcome.function,
                    "stream": line.stream, "line": line.line,
                });
                head.push_str(&format!("{line}\n"));
            }
            if outcome.logs_dropped > 0 {
                let note = json!({"invocation_id": outcome.invocation_id, "dropped": outcome.logs_dropped});
                head.push_str(&format!("{note}\n"));
            }
        }
    } else if !query.follow {
        return Err(Problem::bad_request("invalid-query", "name an `event_id`, or set `follow=true`, or both"));
    }
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    if !query.follow {
        return Ok((kind, head).into_response());
    }
    let lines = lines(head, receiver, query.event_id, gateway.stop.clone());
    Ok((kind, Body::from_stream(lines)).into_response())
}

type Item = Result<Bytes, std::convert::Infallible>;

/// What was there, then what comes.
fn lines(
    head: String,
    receiver: broadcast::Receiver<Line>,
    event_id: Option<String>,
    stop: CancellationToken,
) -> impl futures_util::Stream<Item = Item> {
    let state = (Some(head), receiver, event_id, stop);
    futures_util::stream::unfold(state, |(head, mut receiver, event_id, stop)| async move {
        if let Some(head) = head.filter(|h| !h.is_empty()) {
            return Some((Ok(Bytes::from(head)), (None, receiver, event_id, stop)));
        }
        loop {
            let line = tokio::select! {
                () = stop.cancelled() => return None,
                line = receiver.recv() => line,
            };
            let text = match line {
                Ok(line) if event_id.as_ref().is_none_or(|id| line.event_id == *id) => {
                    serde_json::to_string(&line).unwrap_or_default()
                }
                Ok(_) => continue,
                Err(RecvError::Lagged(missed)) => json!({"dropped": missed}).to_string(),
                Err(RecvError::Closed) => return None,
            };
            return Some((Ok(Bytes::from(text + "\n")), (None, receiver, event_id, stop)));
        }
    })
}
