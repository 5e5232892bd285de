//! What the log holds of an event.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::ids::{FunctionName, InvocationId, RuntimeId, Seq};
use crate::trace::{SpanId, TraceContext};

/// An event on its way into the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewRecord {
    /// When Nexus took it.
    pub received_at: Timestamp,
    /// Its trace; the span is the event's own, under which all of its work hangs.
    pub trace: TraceContext,
    /// The span that the event came from, if it came with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_span: Option<SpanId>,
    /// The invocation that emitted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The one function that it is addressed to; else triggers decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<FunctionName>,
    /// The runtime that delivers it itself, because a client there waits for the answer. When that runtime is gone, any other does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<RuntimeId>,
    /// The event.
    pub event: Event,
}

/// An event in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its place.
    pub seq: Seq,
    /// What was appended.
    pub entry: NewRecord,
}

/// What made a function emit an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The event that was being worked on.
    pub seq: Seq,
    /// The invocation.
    pub invocation_id: InvocationId,
    /// How many causes lead to this event: 1 where its cause came from outside.
    #[serde(default)]
    pub depth: u32,
}

/// The longest chain of causes. A function that answers its own event would go on for ever.
pub const DEPTH_MAX: u32 = 32;
