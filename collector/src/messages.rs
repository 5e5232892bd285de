//! The probes' own messages.

use log::{Level, Log, Metadata, Record};

/// Passes what aya-log reads out of the probes' ring buffer on to `tracing`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TracingLog;

impl Log for TracingLog {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let message = record.args();
        match record.level() {
            Level::Error => tracing::error!(target: "nexus_probes", "{message}"),
            Level::Warn => tracing::warn!(target: "nexus_probes", "{message}"),
            Level::Info => tracing::info!(target: "nexus_probes", "{message}"),
            Level::Debug | Level::Trace => tracing::debug!(target: "nexus_probes", "{message}"),
        }
    }

    fn flush(&self) {}
}
