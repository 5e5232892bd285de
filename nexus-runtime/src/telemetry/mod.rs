//! What is told of the work: spans, metrics, log lines. One happening, one call, all of them.

mod export;
mod imports;
pub mod logs;
mod metrics;
pub mod spans;
mod timings;

use std::sync::Arc;
use std::time::Duration;

use nexus_core::ids::{FunctionName, InvocationId, ReplayId};
use nexus_core::outcome::{Disposition, InvocationStatus, LogLine, Outcome};
use nexus_core::record::{NewRecord, Record};
use nexus_log::Receipt;
use opentelemetry_sdk::trace::SpanData;

pub use export::Exporter;
pub use imports::Imports;
pub use logs::LogHub;
pub use metrics::{Metrics, RuntimeView};
pub use nexus_collector::otlp::resource;
pub use timings::Timings;

/// Who is told what happens.
pub struct Telemetry {
    /// The numbers.
    pub metrics: Metrics,
    /// The functions' lines.
    pub logs: Arc<LogHub>,
    /// How long appends and commits took, for as long as it is remembered.
    pub timings: Timings,
    exporter: Option<Exporter>,
}

impl Telemetry {
    /// Spans go to the exporter, if there is one; the local trace view reads the log.
    pub fn new(exporter: Option<Exporter>) -> Arc<Self> {
        Arc::new(Self {
            metrics: Metrics::new(),
            logs: Arc::new(LogHub::default()),
            timings: Timings::default(),
            exporter,
        })
    }

    /// Events were taken into the log, in this time.
    pub fn accepted(&self, records: &[NewRecord], receipts: &[Receipt], took: Duration) {
        for (record, receipt) in records.iter().zip(receipts) {
            if receipt.duplicate {
                self.metrics.duplicate();
                continue;
            }
            self.metrics.accepted(took, record.trace.trace_id);
            self.timings.appended(receipt.seq, took);
            if let Some(exporter) = &self.exporter {
                exporter.send(spans::of_event(receipt.seq, record, Some(took)));
            }
        }
    }

    /// An invocation is over and its outcome durable, the last in this time.
    pub fn delivered(&self, record: &Record, outcome: &Outcome, commit: Duration) {
        self.metrics.delivered(record, outcome);
        self.timings.committed(outcome.invocation_id, commit);
        if let Some(exporter) = &self.exporter {
            exporter.send(spans::of_outcome(record, outcome, Some(commit)));
        }
        let (event_id, trace_id) = (&record.entry.event.id, record.entry.trace.trace_id);
        let error = outcome.error.as_deref().unwrap_or_default();
        match outcome.status {
            InvocationStatus::Ok => tracing::debug!(
                %trace_id, event_id, invocation_id = %outcome.invocation_id, function = %outcome.function,
                duration_us = outcome.duration_ns / 1000, "invoked"
            ),
            // It is the result of the replay, and no news of the function.
            status if outcome.disposition == Disposition::Replayed => tracing::debug!(
                %trace_id, event_id, invocation_id = %outcome.invocation_id, function = %outcome.function,
                status = status.as_str(), error, "replayed; it failed"
            ),
            status => tracing::warn!(
                %trace_id, event_id, invocation_id = %outcome.invocation_id, function = %outcome.function,
                status = status.as_str(), attempt = outcome.attempt, error, next = ?outcome.disposition, "invocation failed"
            ),
        }
    }

    /// A parked delivery is tried again.
    pub fn retrying(&self, record: &Record, function: &FunctionName) {
        self.metrics.retried(function);
        tracing::info!(trace_id = %record.entry.trace.trace_id, event_id = record.entry.event.id, %function, "trying again");
    }

    /// A replay of one event is over.
    pub fn replayed(&self, replay: ReplayId, mode: &'static str, verdict: &'static str) {
        self.metrics.replayed(mode, verdict);
        tracing::debug!(%replay, mode, verdict, "replayed");
    }

    /// Takes the lines that an invocation writes, as it writes them.
    pub fn on_line(
        &self,
        record: &Record,
        function: &FunctionName,
        invocation: InvocationId,
    ) -> Arc<dyn Fn(&LogLine) + Send + Sync> {
        let line = logs::Origin {
            trace_id: record.entry.trace.trace_id,
            event_id: record.entry.event.id.clone(),
            invocation_id: invocation,
            function: function.clone(),
        };
        let hub = self.logs.clone();
        Arc::new(move |written| hub.push(&line, written))
    }

    /// Sends what is left, and ends the exporter.
    pub async fn close(&self) {
        if let Some(exporter) = &self.exporter {
            exporter.close().await;
        }
    }

    /// Spans that could not be exported, if any are exported at all.
    pub fn spans_dropped(&self) -> Option<u64> {
        self.exporter.as_ref().map(Exporter::dropped)
    }
}

/// Some spans of one trace.
pub type Spans = Vec<SpanData>;
