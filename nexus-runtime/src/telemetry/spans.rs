//! The spans of an event, made from what the log holds of it. Export and the local trace view are one function, so that
//! both show the same, at any time later.
//!
//! ```text
//! accept TYPE                      the event's own span; its parent came with it, or emitted it
//! ├─ append                        until it was durable
//! └─ deliver FUNCTION              one for each attempt and each replay
//!    ├─ FUNCTION                   the invocation (faas.*, nexus.*), slow system calls as its events
//!    │  └─ METHOD                  each outgoing request
//!    └─ commit                     until the outcome was durable
//! ```

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use nexus_collector::kernel_attributes;
use nexus_core::ids::{InvocationId, Seq};
use nexus_core::outcome::{InvocationStatus, Network, Outcome, TriggerKind};
use nexus_core::record::{NewRecord, Record};
use nexus_core::trace::{SpanId, TraceContext};
use opentelemetry::trace::{Event, SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::Spans;

/// The invocation's own span.
pub fn invoke_span(id: InvocationId) -> SpanId {
    SpanId::derive(id.0.as_bytes(), "invoke")
}

/// Times before 1970 do not happen here; they would be shown as 1970.
fn system_time(at: jiff::Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(at.as_nanosecond()).unwrap_or(0))
}

fn deliver_span(id: InvocationId) -> SpanId {
    SpanId::derive(id.0.as_bytes(), "deliver")
}

/// The spans of the event itself. Where nobody remembers how long the append took, there is no span for it.
pub fn of_event(seq: Seq, record: &NewRecord, append: Option<Duration>) -> Spans {
    let event = &record.event;
    let start = system_time(record.received_at);
    let mut attributes = vec![
        KeyValue::new("cloudevents.event_id", event.id.clone()),
        KeyValue::new("cloudevents.event_source", event.source.clone()),
        KeyValue::new("cloudevents.event_type", event.ty.clone()),
        KeyValue::new("cloudevents.event_spec_version", "1.0"),
        KeyValue::new("nexus.event.seq", seq.0 as i64),
    ];
    if let Some(subject) = &event.subject {
        attributes.push(KeyValue::new("cloudevents.event_subject", subject.clone()));
    }
    let accept = span(
        &record.trace,
        record.trace.span_id,
        record.parent_span,
        format!("accept {}", event.ty),
        if record.cause.is_some() { SpanKind::Producer } else { SpanKind::Server },
        (start, append.unwrap_or_default()),
        attributes,
    );
    let mut spans = vec![accept];
    if let Some(append) = append {
        let id = SpanId::derive(&record.trace.span_id.to_bytes(), "append");
        let parent = Some(record.trace.span_id);
        spans.push(span(&record.trace, id, parent, "append", SpanKind::Internal, (start, append), Vec::new()));
    }
    spans
}

/// The spans of one invocation.
pub fn of_outcome(record: &Record, outcome: &Outcome, commit: Option<Duration>) -> Spans {
    let trace = &record.entry.trace;
    let id = outcome.invocation_id;
    let delivered = system_time(outcome.delivered_at);
    let started = system_time(outcome.started_at);
    let duration = Duration::from_nanos(outcome.duration_ns);
    let ended = started + duration;
    let until = ended + commit.unwrap_or_default();
    let mut deliver = span(
        trace,
        deliver_span(id),
        Some(trace.span_id),
        format!("deliver {}", outcome.function),
        SpanKind::Consumer,
        (delivered, until.duration_since(delivered).unwrap_or_default()),
        vec![
            KeyValue::new("nexus.event.seq", outcome.seq.0 as i64),
            KeyValue::new("nexus.attempt", i64::from(outcome.attempt)),
        ],
    );
    let kind = if outcome.trigger == TriggerKind::Http { SpanKind::Server } else { SpanKind::Consumer };
    let mut invoke = span(
        trace,
        invoke_span(id),
        Some(deliver.span_context.span_id().to_bytes()).and_then(SpanId::from_bytes),
        outcome.function.to_string(),
        kind,
        (started, duration),
        invoke_attributes(record, outcome),
    );
    if outcome.status != InvocationStatus::Ok {
        let error = outcome.error.clone().unwrap_or_else(|| outcome.status.as_str().to_owned());
        invoke.status = Status::error(error);
        deliver.status = invoke.status.clone();
    }
    invoke.events = slow_syscalls(started, outcome);
    let mut spans = vec![deliver, invoke];
    for (index, call) in outcome.host_calls.iter().enumerate() {
        let at = started + Duration::from_nanos(call.offset_ns);
        let mut attributes = vec![
            KeyValue::new("http.request.method", call.method.clone()),
            KeyValue::new("url.full", call.url.clone()),
        ];
        if let Ok(url) = url::Url::parse(&call.url) {
            attributes.push(KeyValue::new("server.address", url.host_str().unwrap_or_default().to_owned()));
            attributes.push(KeyValue::new("server.port", i64::from(url.port_or_known_default().unwrap_or(0))));
        }
        if let Some(status) = call.status {
            attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
        }
        network_attributes(&call.network, &mut attributes);
        let span_id = SpanId::derive(id.0.as_bytes(), &format!("call {index}"));
        let time = (at, Duration::from_nanos(call.duration_ns));
        let parent = Some(invoke_span(id));
        let mut client = span(trace, span_id, parent, call.method.clone(), SpanKind::Client, time, attributes);
        if let Some(error) = &call.error {
            client.attributes.push(KeyValue::new("error.type", error.clone()));
            client.status = Status::error(error.clone());
        } else if call.status.is_some_and(|s| s >= 400) {
            client.status = Status::error("");
        }
        spans.push(client);
    }
    if let Some(commit) = commit {
        let span_id = SpanId::derive(id.0.as_bytes(), "commit");
        let parent = Some(deliver_span(id));
        spans.push(span(trace, span_id, parent, "commit", SpanKind::Internal, (ended, commit), Vec::new()));
    }
    spans
}

fn invoke_attributes(record: &Record, outcome: &Outcome) -> Vec<KeyValue> {
    let event = &record.entry.event;
    let mut attributes = vec![
        KeyValue::new("faas.name", outcome.function.to_string()),
        KeyValue::new("faas.version", outcome.version.to_string()),
        KeyValue::new("faas.trigger", outcome.trigger.as_str()),
        KeyValue::new("faas.invocation_id", outcome.invocation_id.to_string()),
        KeyValue::new("faas.coldstart", outcome.cold_start),
        KeyValue::new("cloudevents.event_id", event.id.clone()),
        KeyValue::new("cloudevents.event_source", event.source.clone()),
        KeyValue::new("cloudevents.event_type", event.ty.clone()),
        KeyValue::new("nexus.event.seq", outcome.seq.0 as i64),
        KeyValue::new("nexus.function.version", i64::from(outcome.version.0)),
        KeyValue::new("nexus.attempt", i64::from(outcome.attempt)),
        KeyValue::new("nexus.status", outcome.status.as_str()),
        KeyValue::new("nexus.init_ns", outcome.init_ns as i64),
    ];
    if let Some(bytes) = outcome.memory_bytes {
        attributes.push(KeyValue::new("nexus.memory_bytes", bytes as i64));
    }
    if let Some(of) = outcome.replay_of {
        attributes.push(KeyValue::new("nexus.replay.of", of.to_string()));
    }
    if outcome.status != InvocationStatus::Ok {
        attributes.push(KeyValue::new("error.type", outcome.status.as_str()));
    }
    attributes.extend(kernel_attributes(&outcome.kernel));
    attributes
}

fn network_attributes(network: &Network, attributes: &mut Vec<KeyValue>) {
    if let Some(peer) = network.peer.as_ref().and_then(|peer| peer.parse::<SocketAddr>().ok()) {
        attributes.push(KeyValue::new("network.peer.address", peer.ip().to_string()));
        attributes.push(KeyValue::new("network.peer.port", i64::from(peer.port())));
    }
    let numbers = [
        ("nexus.net.dns_ns", network.dns_ns),
        ("nexus.net.connect_ns", network.connect_ns),
        ("nexus.net.tls_ns", network.tls_ns),
        ("nexus.net.rtt_ns", network.rtt_ns),
        ("nexus.net.bytes_sent", network.bytes_sent),
        ("nexus.net.bytes_received", network.bytes_received),
        ("nexus.net.retransmits", network.retransmits),
    ];
    attributes.extend(numbers.into_iter().filter_map(|(name, value)| Some(KeyValue::new(name, value? as i64))));
}

fn slow_syscalls(started: SystemTime, outcome: &Outcome) -> SpanEvents {
    let mut events = SpanEvents::default();
    events.events = outcome
        .slow_syscalls
        .iter()
        .map(|slow| {
            let attributes = vec![
                KeyValue::new("syscall.name", slow.name.clone().into_owned()),
                KeyValue::new("syscall.ret", slow.ret),
                KeyValue::new("duration_ns", slow.duration_ns as i64),
            ];
            Event::new("syscall", started + Duration::from_nanos(slow.offset_ns), attributes, 0)
        })
        .collect();
    events
}

fn span(
    trace: &TraceContext,
    id: SpanId,
    parent: Option<SpanId>,
    name: impl Into<Cow<'static, str>>,
    kind: SpanKind,
    (start, duration): (SystemTime, Duration),
    attributes: Vec<KeyValue>,
) -> SpanData {
    let context = SpanContext::new(
        opentelemetry::TraceId::from_bytes(trace.trace_id.to_bytes()),
        opentelemetry::SpanId::from_bytes(id.to_bytes()),
        // Nexus records every event's trace; the flag says only what the trace's starter asked for.
        if trace.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() },
        false,
        TraceState::default(),
    );
    SpanData {
        span_context: context,
        parent_span_id: parent
            .map_or(opentelemetry::SpanId::INVALID, |p| opentelemetry::SpanId::from_bytes(p.to_bytes())),
        parent_span_is_remote: false,
        span_kind: kind,
        name: name.into(),
        start_time: start,
        end_time: start + duration,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("nexus").with_version(env!("CARGO_PKG_VERSION")).build(),
    }
}
