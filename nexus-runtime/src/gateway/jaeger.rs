//! Jaeger's query format (what its UI and Grafana's Jaeger data source read), over the same spans.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use nexus_core::trace::TraceId;
use nexus_log::EventQuery;
use opentelemetry::trace::{SpanKind, Status};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;
use serde::Deserialize;
use serde_json::json;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Shared;
use super::extract::{Path, Query};
use super::problem::Problem;
use super::traces::of_trace;

/// Traces in one answer.
const TRACES_MAX: usize = 200;
const SERVICE: &str = "nexus";

#[derive(Deserialize)]
pub struct Search {
    #[serde(default)]
    limit: Option<usize>,
    /// Microseconds since the epoch, as Jaeger has it.
    #[serde(default)]
    start: Option<i64>,
    #[serde(default)]
    end: Option<i64>,
    #[serde(default)]
    operation: Option<String>,
}

pub async fn search(State(gateway): State<Shared>, Query(search): Query<Search>) -> Result<Response, Problem> {
    let micros = |at: Option<i64>| at.and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    let wanted = search.limit.unwrap_or(20).clamp(1, TRACES_MAX);
    let mut find =
        EventQuery { from: micros(search.start), to: micros(search.end), limit: 200, ..EventQuery::default() };
    let mut ids: Vec<TraceId> = Vec::new();
    let mut data = Vec::new();
    'pages: loop {
        let page = gateway.line.storage.log.query(&find).await?;
        for record in page.records {
            let id = record.entry.trace.trace_id;
            if ids.contains(&id) {
                continue;
            }
            ids.push(id);
            let spans = of_trace(&gateway, id).await?;
            if search.operation.as_ref().is_none_or(|o| spans.iter().any(|s| s.name == *o)) {
                data.push(trace_json(id, &spans));
            }
            if data.len() == wanted || ids.len() >= TRACES_MAX {
                break 'pages;
            }
        }
        match page.next {
            Some(next) => find.before = Some(next),
            None => break,
        }
    }
    Ok(answer(data))
}

pub async fn trace(State(gateway): State<Shared>, Path(trace): Path<String>) -> Result<Response, Problem> {
    let id: TraceId = trace.parse()?;
    let spans = of_trace(&gateway, id).await?;
    if spans.is_empty() {
        return Err(Problem::not_found("trace", id));
    }
    Ok(answer(vec![trace_json(id, &spans)]))
}

pub async fn services() -> Response {
    answer(vec![json!(SERVICE)])
}

/// The operations: one for each function.
fn names(gateway: &Shared) -> Vec<String> {
    gateway.line.catalog.view().iter().map(|entry| entry.function.name.to_string()).collect()
}

pub async fn service_operations(State(gateway): State<Shared>, Path(_service): Path<String>) -> Response {
    answer(names(&gateway).into_iter().map(|n| json!(n)).collect())
}

pub async fn operations(State(gateway): State<Shared>) -> Response {
    answer(names(&gateway).into_iter().map(|n| json!({"name": n, "spanKind": "consumer"})).collect())
}

fn answer(data: Vec<serde_json::Value>) -> Response {
    let total = data.len();
    Json(json!({"data": data, "total": total, "limit": 0, "offset": 0, "errors": null})).into_response()
}

fn micros(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_micros() as u64
}

fn tag(kv: &KeyValue) -> serde_json::Value {
    let (kind, value) = match &kv.value {
        Value::Bool(b) => ("bool", json!(b)),
        Value::I64(i) => ("int64", json!(i)),
        Value::F64(f) => ("float64", json!(f)),
        other => ("string", json!(other.as_str())),
    };
    json!({"key": kv.key.as_str(), "type": kind, "value": value})
}

fn trace_json(id: TraceId, spans: &[SpanData]) -> serde_json::Value {
    let spans: Vec<_> = spans.iter().map(|span| span_json(id, span)).collect();
    json!({
        "traceID": id.to_string(),
        "spans": spans,
        "processes": {"p1": {"serviceName": SERVICE, "tags": []}},
        "warnings": null,
    })
}

fn span_json(id: TraceId, span: &SpanData) -> serde_json::Value {
    let mut tags: Vec<_> = span.attributes.iter().map(tag).collect();
    let kind = match span.span_kind {
        SpanKind::Client => "client",
        SpanKind::Server => "server",
        SpanKind::Producer => "producer",
        SpanKind::Consumer => "consumer",
        SpanKind::Internal => "internal",
    };
    tags.push(json!({"key": "span.kind", "type": "string", "value": kind}));
    if let Status::Error { description } = &span.status {
        tags.push(json!({"key": "error", "type": "bool", "value": true}));
        tags.push(json!({"key": "otel.status_description", "type": "string", "value": description}));
    }
    let references: Vec<_> = if span.parent_span_id == opentelemetry::SpanId::INVALID {
        Vec::new()
    } else {
        vec![json!({"refType": "CHILD_OF", "traceID": id.to_string(), "spanID": span.parent_span_id.to_string()})]
    };
    let logs: Vec<_> = span
        .events
        .iter()
        .map(|event| {
            let mut fields = vec![json!({"key": "event", "type": "string", "value": event.name})];
            fields.extend(event.attributes.iter().map(tag));
            json!({"timestamp": micros(event.timestamp), "fields": fields})
        })
        .collect();
    let duration = span.end_time.duration_since(span.start_time).unwrap_or_default();
    json!({
        "traceID": id.to_string(),
        "spanID": span.span_context.span_id().to_string(),
        "operationName": span.name,
        "references": references,
        "startTime": micros(span.start_time),
        "duration": duration.as_micros() as u64,
        "tags": tags,
        "logs": logs,
        "processID": "p1",
        "warnings": null,
    })
}
