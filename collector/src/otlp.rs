//! Spans by OTLP, and the span of what was observed.

use std::time::{Duration, SystemTime};

use nexus_core::kernel::KernelAccount;
use nexus_core::trace::{SpanId, TraceContext, TraceId};
use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};

use crate::attributes::kernel_attributes;

/// How long one request may take.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// An exporter to an endpoint of OTLP, `http://host:port`: by gRPC, or by HTTP with protobuf. To be called on a runtime of tokio.
pub fn span_exporter(endpoint: &str, grpc: bool) -> Result<SpanExporter, ExporterBuildError> {
    let mut exporter = if grpc {
        SpanExporter::builder().with_tonic().with_endpoint(endpoint).with_timeout(TIMEOUT).build()
    } else {
        SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(traces_url(endpoint))
            .with_timeout(TIMEOUT)
            .build()
    }?;
    exporter.set_resource(&resource());
    Ok(exporter)
}

/// Who we are, in every trace.
pub fn resource() -> Resource {
    let attributes = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("faas.instance", format!("pid {}", std::process::id())),
    ];
    // The builder reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, as users of OpenTelemetry expect.
    let named = std::env::var_os("OTEL_SERVICE_NAME").is_some();
    let builder = Resource::builder().with_attributes(attributes);
    if named { builder.build() } else { builder.with_service_name("nexus").build() }
}

/// The standard's rule: an endpoint for all signals gets the path of the signal.
fn traces_url(endpoint: &str) -> String {
    let base = endpoint.trim_end_matches('/');
    if base.ends_with("/v1/traces") { base.to_owned() } else { format!("{base}/v1/traces") }
}

/// The span of processes that were observed: in their own trace, where they said of which they are; else in a new one.
pub fn observed_span(
    name: String,
    within: Option<&TraceContext>,
    (started, duration): (SystemTime, Duration),
    kernel: &KernelAccount,
    attributes: Vec<KeyValue>,
) -> SpanData {
    let (trace_id, parent) = match within {
        Some(within) => (within.trace_id, opentelemetry::SpanId::from_bytes(within.span_id.to_bytes())),
        None => (TraceId::generate(), opentelemetry::SpanId::INVALID),
    };
    let state = within.and_then(|within| within.tracestate.as_deref()?.parse::<TraceState>().ok());
    let context = SpanContext::new(
        opentelemetry::TraceId::from_bytes(trace_id.to_bytes()),
        opentelemetry::SpanId::from_bytes(SpanId::generate().to_bytes()),
        if within.is_none_or(|within| within.sampled) { TraceFlags::SAMPLED } else { TraceFlags::default() },
        false,
        state.unwrap_or_default(),
    );
    SpanData {
        span_context: context,
        parent_span_id: parent,
        parent_span_is_remote: within.is_some(),
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: started,
        end_time: started + duration,
        attributes: attributes.into_iter().chain(kernel_attributes(kernel)).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("nexus").with_version(env!("CARGO_PKG_VERSION")).build(),
    }
}

#[cfg(test)]
mod tests {
    use super::traces_url;

    #[test]
    fn the_path_of_the_signal_is_added_once() {
        assert_eq!(traces_url("http://127.0.0.1:4318"), "http://127.0.0.1:4318/v1/traces");
        assert_eq!(traces_url("http://127.0.0.1:4318/"), "http://127.0.0.1:4318/v1/traces");
        assert_eq!(traces_url("http://c/otlp/v1/traces"), "http://c/otlp/v1/traces");
    }
}
