//! What came of an invocation.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::{FunctionName, InvocationId, ReplayId, Seq, Version};
use crate::journal::{Kept, Partial};
use crate::kernel::{KernelAccount, SlowSyscall};

/// How an invocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvocationStatus {
    /// The function did its work.
    Ok,
    /// The function said that it failed.
    Error,
    /// It took longer than it may.
    Timeout,
    /// It broke a rule of WebAssembly or aborted.
    Trap,
    /// It asked for more memory than it may have.
    OutOfMemory,
    /// It was not let run.
    Denied,
}

impl InvocationStatus {
    /// The name in JSON, in spans and on the metrics page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Trap => "trap",
            Self::OutOfMemory => "out_of_memory",
            Self::Denied => "denied",
        }
    }
}

/// What made the invocation happen, in OpenTelemetry's words (`faas.trigger`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TriggerKind {
    /// An HTTP call of the function.
    Http,
    /// An event from the log.
    Pubsub,
    /// A person or a program, by replay or by name.
    Other,
}

impl TriggerKind {
    /// The name in JSON and in spans.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Pubsub => "pubsub",
            Self::Other => "other",
        }
    }
}

/// What happens to the event's delivery to this function after the invocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "next", rename_all = "snake_case")]
pub enum Disposition {
    /// Delivered.
    Done,
    /// Failed, and will be tried again.
    Retry {
        /// Not before this time.
        at: Timestamp,
    },
    /// Failed, and will not be tried again.
    Dead,
    /// Not run: the event was too old by then.
    Expired,
    /// A replay: it changes nothing about the event's delivery.
    Replayed,
}

/// What the function gave back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// The HTTP status, where it answered over HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// The media type that it named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// JSON where it is JSON, a string where it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
    /// Any other bytes, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<String>,
    /// Bytes that were given back, which may be more than are kept.
    pub bytes: u64,
    /// Whether what is kept was cut short.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// One call that the function made to the outside: a client span.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostCall {
    /// The request method.
    pub method: String,
    /// The URL without user, password and query.
    pub url: String,
    /// The response's status, if one came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// What went wrong, if anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Nanoseconds after the invocation's start.
    pub offset_ns: u64,
    /// Until the response's head was there, or the error.
    pub duration_ns: u64,
    /// Its connection; absent where it came to none.
    #[serde(default, skip_serializing_if = "Network::is_empty")]
    pub network: Network,
}

/// What is known of the connection of a [`HostCall`]: every number is absent that is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The peer's address and port: of several, the last that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// To resolve the name, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_ns: Option<u64>,
    /// To connect, over all addresses that were tried, or until the last refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_ns: Option<u64>,
    /// To agree on TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ns: Option<u64>,
    /// The time of a round trip, smoothed by the kernel, at the connection's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ns: Option<u64>,
    /// Bytes that were sent, each once, TLS and headers included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// Bytes that were received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    /// Segments that were sent once more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u64>,
}

impl Network {
    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A line that the function wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// `stdout` or `stderr`.
    pub stream: LogStream,
    /// Nanoseconds after the invocation's start.
    pub offset_ns: u64,
    /// The line, without its end; invalid UTF-8 replaced.
    pub line: String,
}

/// Where a function wrote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    /// The name in JSON and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// An invocation as the log keeps it: what came of one attempt, or of one replay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The invocation.
    pub invocation_id: InvocationId,
    /// The event.
    pub seq: Seq,
    /// The function.
    pub function: FunctionName,
    /// Its version.
    pub version: Version,
    /// Counted from 1 for each event and function; replays count on their own.
    pub attempt: u32,
    /// What made it happen.
    pub trigger: TriggerKind,
    /// How it ended.
    pub status: InvocationStatus,
    /// What went wrong, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When the delivery began: before the wait for a permit.
    pub delivered_at: Timestamp,
    /// When the function began.
    pub started_at: Timestamp,
    /// From `started_at` to its end.
    pub duration_ns: u64,
    /// Of it, to make the instance.
    pub init_ns: u64,
    /// Whether the component had to be loaded first.
    pub cold_start: bool,
    /// The time to load it, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_ns: Option<u64>,
    /// The invocation that this one replays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<InvocationId>,
    /// The replay that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_id: Option<ReplayId>,
    /// Of a live replay: whether it had the event's own idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<bool>,
    /// The ids of the events that it emitted.
    pub emitted: Vec<String>,
    /// Bytes of its linear memory at its end, when it is largest. Absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// What it gave back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Output>,
    /// What happens next.
    pub disposition: Disposition,
    /// It is dead, and an event that says so was emitted with it: it is not kept as a dead letter.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dead_letter_emitted: bool,
    /// Calls to the outside, in the order of their start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_calls: Vec<HostCall>,
    /// Calls that were refused because it had made as many as it may; there is no record of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub host_calls_dropped: u64,
    /// Lines that it wrote; the bound is the engine's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logs: Vec<LogLine>,
    /// Lines that found no room.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub logs_dropped: u64,
    /// The kernel's account; without the names of its numbers where it is kept, or they would be most of a record.
    #[serde(with = "crate::kernel::unnamed")]
    pub kernel: KernelAccount,
    /// System calls over the threshold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slow_syscalls: Vec<SlowSyscall>,
    /// What the guest learned, if that was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<Kept>,
    /// Why the journal is not whole, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_partial: Option<Partial>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
