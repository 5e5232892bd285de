//! The local trace view: spans made from the log, as OTLP/JSON.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use nexus_core::trace::TraceId;
use nexus_log::EventQuery;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use serde_json::json;

use super::Shared;
use super::extract::Path;
use super::problem::Problem;
use crate::telemetry::{Spans, resource, spans};

/// Events of one trace that are shown.
const EVENTS_MAX: usize = 1000;

/// The spans of a trace, the oldest event's first; empty if the trace is not known.
pub async fn of_trace(gateway: &Shared, trace: TraceId) -> Result<Spans, Problem> {
    let log = &gateway.line.storage.log;
    let query = EventQuery { trace: Some(trace), limit: EVENTS_MAX, ..EventQuery::default() };
    let timings = &gateway.line.telemetry.timings;
    let mut all = Vec::new();
    for record in log.query(&query).await?.records.into_iter().rev() {
        all.extend(spans::of_event(record.seq, &record.entry, timings.append(record.seq)));
        for outcome in log.outcomes(record.seq).await? {
            all.extend(spans::of_outcome(&record, &outcome, timings.commit(outcome.invocation_id)));
        }
    }
    Ok(all)
}

pub async fn get(State(gateway): State<Shared>, Path(trace): Path<String>) -> Result<Response, Problem> {
    let trace: TraceId = trace.parse()?;
    let spans = of_trace(&gateway, trace).await?;
    if spans.is_empty() {
        return Err(Problem::not_found("trace", trace));
    }
    let resource = ResourceAttributesWithSchema::from(&resource());
    Ok(Json(json!({"resourceSpans": group_spans_by_resource_and_scope(spans, &resource)})).into_response())
}
