//! Lines that functions write: into the log stream of the process with trace and event id, and to whoever follows.

use nexus_core::ids::{FunctionName, InvocationId};
use nexus_core::outcome::LogLine;
use nexus_core::trace::TraceId;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// Lines that a follower may be behind before it misses some; it is told how many.
const BEHIND_MAX: usize = 4096;

/// Where a line comes from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The trace.
    pub trace_id: TraceId,
    /// The event.
    pub event_id: String,
    /// The invocation.
    pub invocation_id: InvocationId,
    /// The function.
    pub function: FunctionName,
}

/// One line, as `nexus logs` gets it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    /// When it was written.
    pub time: jiff::Timestamp,
    /// The trace.
    pub trace_id: TraceId,
    /// The event.
    pub event_id: String,
    /// The invocation.
    pub invocation_id: InvocationId,
    /// The function.
    pub function: FunctionName,
    /// `stdout` or `stderr`.
    pub stream: nexus_core::outcome::LogStream,
    /// The line.
    pub line: String,
}

/// Hands lines to those who follow.
pub struct LogHub {
    followers: broadcast::Sender<Line>,
}

impl Default for LogHub {
    fn default() -> Self {
        Self { followers: broadcast::channel(BEHIND_MAX).0 }
    }
}

impl LogHub {
    /// A line was written.
    pub fn push(&self, origin: &Origin, written: &LogLine) {
        tracing::info!(
            target: "nexus::function",
            trace_id = %origin.trace_id,
            event_id = origin.event_id,
            invocation_id = %origin.invocation_id,
            function = %origin.function,
            stream = written.stream.as_str(),
            "{}",
            written.line
        );
        if self.followers.receiver_count() == 0 {
            return;
        }
        // Fails only when nobody listens any more.
        let _ = self.followers.send(Line {
            time: jiff::Timestamp::now(),
            trace_id: origin.trace_id,
            event_id: origin.event_id.clone(),
            invocation_id: origin.invocation_id,
            function: origin.function.clone(),
            stream: written.stream,
            line: written.line.clone(),
        });
    }

    /// Every line from now on.
    pub fn follow(&self) -> broadcast::Receiver<Line> {
        self.followers.subscribe()
    }
}
