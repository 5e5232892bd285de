//! `/v1/dlq`: deliveries that were given up. Looking at them, trying them again, dropping them.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use nexus_core::ids::{FunctionName, Seq};
use nexus_core::outcome::Disposition;
use nexus_log::{DeadLetter, Release};
use serde::Deserialize;
use serde_json::{Value, json};

use super::extract::Query;
use super::problem::Problem;
use super::{Shared, body, events};

/// The most dead letters on a page.
const LIMIT_MAX: usize = 1000;
/// Dead letters that are released at a time, where all of a function's or all there are were asked for.
const PART: usize = 500;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    function: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// Which are meant: those of one event, of a function, or of both; or all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    event_id: Option<String>,
    source: Option<String>,
    function: Option<FunctionName>,
    #[serde(default)]
    all: bool,
}

/// The dead letters, the newest events first.
pub async fn list(State(gateway): State<Shared>, Query(query): Query<ListQuery>) -> Result<Response, Problem> {
    let limit = query.limit.unwrap_or(50);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Problem::bad_request("invalid-query", format!("`limit` must be 1 to {LIMIT_MAX}, not {limit}")));
    }
    let function = query.function.map(|name| name.parse::<FunctionName>()).transpose()?;
    let after = query.cursor.as_deref().map(cursor).transpose()?;
    let log = &gateway.line.storage.log;
    let letters = log.dead_letters(function.as_ref(), after, limit).await?;
    let next = letters.last().filter(|_| letters.len() == limit);
    let next = next.map(|letter| format!("{}-{}", letter.seq, letter.function));
    let mut items = Vec::with_capacity(letters.len());
    for letter in letters {
        items.extend(shown(&gateway, letter).await?);
    }
    Ok(Json(json!({"items": items, "next": next})).into_response())
}

/// A dead letter with its event and its last attempt. `None` if retention took the event meanwhile.
async fn shown(gateway: &Shared, letter: DeadLetter) -> Result<Option<Value>, Problem> {
    let log = &gateway.line.storage.log;
    let Some(record) = log.get(letter.seq).await? else { return Ok(None) };
    let outcomes = log.outcomes(letter.seq).await?;
    let of_it = |o: &&nexus_core::outcome::Outcome| {
        o.function == letter.function && o.disposition == Disposition::Dead && o.attempt == letter.attempt
    };
    let last = outcomes.iter().rfind(of_it);
    let event = &record.entry.event;
    Ok(Some(json!({
        "event_id": event.id, "source": event.source, "type": event.ty, "seq": letter.seq,
        "trace_id": record.entry.trace.trace_id, "function": letter.function, "attempts": letter.attempt,
        "given_up_at": letter.at, "status": last.map(|o| o.status), "error": last.and_then(|o| o.error.clone()),
        "invocation_id": last.map(|o| o.invocation_id),
    })))
}

fn cursor(text: &str) -> Result<(Seq, FunctionName), Problem> {
    let parts = text.split_once('-');
    let parsed = parts.and_then(|(seq, function)| Some((Seq(seq.parse().ok()?), function.parse().ok()?)));
    parsed.ok_or_else(|| Problem::bad_request("invalid-query", format!("`cursor` is not one of ours: {text:?}")))
}

/// Tries dead letters again.
pub async fn retry(State(gateway): State<Shared>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let which = body::json(&gateway, &headers, body).await?;
    let released = release(&gateway, which, Release::Retry).await?;
    Ok(Json(json!({"retried": released})).into_response())
}

/// Forgets dead letters.
pub async fn drop(State(gateway): State<Shared>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let which = body::json(&gateway, &headers, body).await?;
    let released = release(&gateway, which, Release::Drop).await?;
    Ok(Json(json!({"dropped": released})).into_response())
}

async fn release(gateway: &Shared, which: Which, how: Release) -> Result<u64, Problem> {
    let Which { event_id, source, function, all } = which;
    let log = &gateway.line.storage.log;
    if let Some(id) = event_id {
        let record = events::find_one(gateway, &id, source.as_deref()).await?;
        let after = Some((record.seq.next(), first_name()?));
        let letters = log.dead_letters(function.as_ref(), after, PART).await?;
        let letters: Vec<_> = letters.into_iter().filter(|letter| letter.seq == record.seq).map(key).collect();
        if letters.is_empty() {
            return Err(Problem::not_found("dead letter of event", &id));
        }
        return Ok(log.release(letters, how).await?);
    }
    if function.is_none() && !all {
        let detail = "say which: `event_id`, `function`, or `all`: true";
        return Err(Problem::bad_request("invalid-body", detail));
    }
    // Those that are there now: one that dies again meanwhile is not taken a second time, for it is newer in no order.
    let mut after = None;
    let mut released = 0;
    loop {
        let letters = log.dead_letters(function.as_ref(), after, PART).await?;
        let Some(last) = letters.last().cloned() else { return Ok(released) };
        after = Some((last.seq, last.function));
        released += log.release(letters.into_iter().map(key).collect(), how).await?;
    }
}

fn key(letter: DeadLetter) -> (Seq, FunctionName) {
    (letter.seq, letter.function)
}

/// The name before all others of its event.
fn first_name() -> Result<FunctionName, Problem> {
    Ok("0".parse()?)
}
