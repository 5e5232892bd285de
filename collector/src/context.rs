//! What is published for other programs on this host: which trace a thread works for, and who this process is.

use std::io;

use crate::raw::{self, Ids};

/// Runs `work` on this thread, published as work for this trace and span: OpenTelemetry's thread context (OTEP 4947), which an eBPF
/// profiler reads. It nests; a panic passes through.
///
/// The variable is found by its name, `otel_thread_ctx_v1`, which the program must export (see nexus-runtime/build.rs). On x86-64
/// only; elsewhere nothing is published.
#[inline]
pub fn within<T>(trace_id: [u8; 16], span_id: [u8; 8], work: impl FnOnce() -> T) -> T {
    let _before = Restore(raw::publish((trace_id, span_id)));
    work()
}

struct Restore(Ids);

impl Drop for Restore {
    #[inline]
    fn drop(&mut self) {
        raw::publish(self.0);
    }
}

/// Publishes OpenTelemetry's process context (OTEP 4719, version 2): `payload` is a `ProcessContext` in protobuf. To be called once.
pub fn publish_process(payload: &[u8]) -> io::Result<()> {
    raw::publish_process(payload)
}
