//! Events in, and what came of them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use nexus_core::event::NOT_BEFORE;
use nexus_core::ids::{FunctionName, InvocationId, Seq};
use nexus_core::outcome::Outcome;
use nexus_core::record::Record;
use nexus_core::trace::TraceId;
use nexus_log::EventQuery;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::extract::{Path, Query};
use super::problem::Problem;
use super::views::{EventStatus, EventView, InvocationView};
use super::{Shared, body, decode, routing};
use crate::line::Incoming;
use crate::replay::ReplayRequest;
use crate::replay::case::Case;

/// Events that are looked at for one page of a listing with a filter that has no index.
const LOOKED_AT_MAX: usize = 10_000;

/// The longest time that an event can wait for: it is kept until then, and what is around it with it.
const NOT_BEFORE_MAX: SignedDuration = SignedDuration::from_hours(366 * 24);

pub async fn append(State(gateway): State<Shared>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    let body = body::read(body, gateway.limits.body_bytes_max, gateway.patience()).await?;
    let decoded = decode::decode(&headers, body, gateway.limits.batch_events_max)?;
    let parent = decode::trace_context(&headers);
    let latest = gateway.line.clock.now().saturating_add(NOT_BEFORE_MAX).unwrap_or(Timestamp::MAX);
    if let Some(index) = decoded.events.iter().position(|e| e.not_before().is_some_and(|at| at > latest)) {
        let days = NOT_BEFORE_MAX.as_hours() / 24;
        let detail =
            format!("event {index}: its `{NOT_BEFORE}` is more than {days} days away, the most that an event can wait");
        return Err(Problem::bad_request("invalid-event", detail));
    }
    let incoming = decoded
        .events
        .into_iter()
        .map(|event| Incoming { event, parent: parent.clone(), target: None, claimed_by: None })
        .collect::<Vec<_>>();
    if incoming.is_empty() {
        return Ok((StatusCode::ACCEPTED, Json(json!({"events": []}))).into_response());
    }
    let (records, receipts) = gateway.line.accept(incoming).await?;
    let mut answer = String::from("{\"events\":[");
    for (index, (record, receipt)) in records.iter().zip(&receipts).enumerate() {
        if index > 0 {
            answer.push(',');
        }
        // Written by hand but for the two texts: this is the hot path, and a batch has ten thousand of them.
        let text = |s: &str| serde_json::to_string(s).unwrap_or_default();
        let (id, source) = (text(&record.event.id), text(&record.event.source));
        answer.push_str(&format!(
            "{{\"id\":{id},\"source\":{source},\"seq\":{},\"trace_id\":\"{}\",\"duplicate\":{}}}",
            receipt.seq, receipt.trace_id, receipt.duplicate
        ));
    }
    answer.push_str("]}");
    Ok((StatusCode::ACCEPTED, [(http::header::CONTENT_TYPE, "application/json")], answer).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    from: Option<String>,
    to: Option<String>,
    #[serde(rename = "type")]
    ty: Option<String>,
    source: Option<String>,
    function: Option<String>,
    status: Option<String>,
    trace_id: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// A page's size: 50 unless said, 1 to 1,000.
pub fn page_limit(limit: Option<&str>) -> Result<usize, Problem> {
    match limit.map(str::parse::<usize>) {
        None => Ok(50),
        Some(Ok(n)) if (1..=1000).contains(&n) => Ok(n),
        Some(_) => Err(Problem::bad_request("invalid-limit", "`limit` must be a number from 1 to 1000")),
    }
}

fn time(name: &str, value: Option<&str>) -> Result<Option<Timestamp>, Problem> {
    let parse = |text: &str| {
        text.parse().map_err(|_| {
            let detail = format!("`{name}` is {text:?}; it must be an RFC 3339 time such as 2026-01-31T12:00:00Z");
            Problem::bad_request("invalid-time", detail)
        })
    };
    value.map(parse).transpose()
}

pub async fn list(State(gateway): State<Shared>, Query(query): Query<ListQuery>) -> Result<Response, Problem> {
    let limit = page_limit(query.limit.as_deref())?;
    let function: Option<FunctionName> = query.function.map(|f| f.parse()).transpose()?;
    let status = query
        .status
        .map(|s| {
            EventStatus::parse(&s).ok_or_else(|| {
                let detail = format!("`status` is {s:?}; it must be pending, running, done, failed or dead");
                Problem::bad_request("invalid-status", detail)
            })
        })
        .transpose()?;
    let cursor = |c: String| {
        c.parse().map(Seq).map_err(|_| Problem::bad_request("invalid-cursor", "`cursor` is not one that a page gave"))
    };
    let mut find = EventQuery {
        from: time("from", query.from.as_deref())?,
        to: time("to", query.to.as_deref())?,
        ty: query.ty,
        source: query.source,
        trace: query.trace_id.map(|t| t.parse::<TraceId>()).transpose()?,
        before: query.cursor.map(cursor).transpose()?,
        limit,
    };
    let (mut items, mut looked_at) = (Vec::new(), 0);
    let next = loop {
        let page = gateway.line.storage.log.query(&find).await?;
        looked_at += page.records.len();
        let mut full_at = None;
        for record in page.records {
            let seq = record.seq;
            // The stage first: what is settled then has all its outcomes when they are read.
            let stage = gateway.dispatcher.stage(&record).await?;
            let outcomes = gateway.line.storage.log.outcomes(seq).await?;
            let wanted = function.as_ref().is_none_or(|f| outcomes.iter().any(|o| o.function == *f))
                && status.is_none_or(|s| EventStatus::of(&outcomes, stage) == s);
            if wanted {
                items.push(EventView::new(record, outcomes, stage));
            }
            if items.len() == limit {
                full_at = Some(seq);
                break;
            }
        }
        match (full_at, page.next) {
            (Some(seq), _) if page.next.is_some() || seq.0 > 1 => break Some(seq),
            (Some(_), _) | (None, None) => break None,
            (None, Some(next)) if looked_at >= LOOKED_AT_MAX => break Some(next),
            (None, Some(next)) => find.before = Some(next),
        }
    };
    Ok(Json(Page { items, next: next.map(|s| s.to_string()) }).into_response())
}

/// Written as it is, and not by way of a `serde_json::Value`, which would change payloads: their numbers, their order.
#[derive(Serialize)]
struct Page {
    items: Vec<EventView>,
    next: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceQuery {
    source: Option<String>,
}

/// The one event with this id; several sources share an id: 409 with the sources.
pub async fn find_one(gateway: &Shared, id: &str, source: Option<&str>) -> Result<Record, Problem> {
    let mut records = gateway.line.storage.log.find(id, source).await?;
    match records.len() {
        0 => Err(Problem::not_found("event", id)),
        1 => Ok(records.remove(0)),
        _ => {
            let sources: Vec<_> = records.into_iter().map(|r| r.entry.event.source).collect();
            let detail = format!("event id {id} is used by {} sources; add ?source=", sources.len());
            Err(Problem::new(StatusCode::CONFLICT, "several-sources", detail).with("sources", sources))
        }
    }
}

pub async fn get(
    State(gateway): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<SourceQuery>,
) -> Result<Response, Problem> {
    let record = find_one(&gateway, &id, query.source.as_deref()).await?;
    // The stage first: what is settled then has all its outcomes when they are read.
    let stage = gateway.dispatcher.stage(&record).await?;
    let outcomes = gateway.line.storage.log.outcomes(record.seq).await?;
    let (routing, refused) = routing::routing(&gateway.line.catalog.view(), &record);
    let view = EventView::new(record, outcomes, stage);
    Ok(Json(EventStory { event: view, routing, not_matched: refused }).into_response())
}

/// An event, with why it went where it went.
#[derive(Serialize)]
struct EventStory {
    #[serde(flatten)]
    event: EventView,
    routing: Vec<routing::Routing>,
    /// Functions that no trigger of matches; the first of them are in `routing`.
    not_matched: usize,
}

pub async fn invocation(State(gateway): State<Shared>, Path(id): Path<String>) -> Result<Response, Problem> {
    let (outcome, record) = find_invocation(&gateway, id.parse()?).await?;
    let (event_id, source) = (&record.entry.event.id, &record.entry.event.source);
    let invocation = InvocationView::from(outcome);
    let answer = json!({
        "event_id": event_id, "source": source, "trace_id": record.entry.trace.trace_id, "invocation": invocation
    });
    Ok(Json(answer).into_response())
}

async fn find_invocation(gateway: &Shared, id: InvocationId) -> Result<(Outcome, Arc<Record>), Problem> {
    let log = &gateway.line.storage.log;
    let outcome = log.outcome(id).await?.ok_or_else(|| Problem::not_found("invocation", id))?;
    let record = log.get(outcome.seq).await?.ok_or_else(|| Problem::not_found("event of invocation", id))?;
    Ok((outcome, record))
}

/// An invocation with its event and its journal, as [`export`] has the last ones of an event.
pub async fn export_invocation(State(gateway): State<Shared>, Path(id): Path<String>) -> Result<Response, Problem> {
    let id: InvocationId = id.parse()?;
    let (_, record) = find_invocation(&gateway, id).await?;
    let request = ReplayRequest { invocation_id: Some(id), ..ReplayRequest::default() };
    Ok(Json(Case::of(&gateway.line, &request, (*record).clone()).await?).into_response())
}

/// The calls of the host that were recorded of an invocation.
pub async fn journal(State(gateway): State<Shared>, Path(id): Path<String>) -> Result<Response, Problem> {
    let id: InvocationId = id.parse()?;
    let outcome = gateway.line.storage.log.outcome(id).await?.ok_or_else(|| Problem::not_found("invocation", id))?;
    let Some(kept) = &outcome.journal else { return Err(Problem::not_found("journal of invocation", id)) };
    let journal = nexus_core::journal::read(kept)
        .map_err(|damaged| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "damaged-journal", damaged.to_string()))?;
    let answer = json!({
        "invocation_id": id,
        "bytes": kept.0.len(),
        "complete": outcome.journal_partial.is_none(),
        "reason": outcome.journal_partial.map(|why| why.to_string()),
        "cut": journal.header.cut,
        "items": nexus_core::journal::calls(&journal),
    });
    Ok(Json(answer).into_response())
}

/// An event with its journals, in one file that can be replayed elsewhere.
pub async fn export(
    State(gateway): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<SourceQuery>,
) -> Result<Response, Problem> {
    let record = find_one(&gateway, &id, query.source.as_deref()).await?;
    let case = Case::of(&gateway.line, &ReplayRequest::default(), record).await?;
    Ok(Json(case).into_response())
}
