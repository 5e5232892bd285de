//! What is asked of a replay, and what it answers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZeroU64;

use nexus_core::ids::{FunctionRef, InvocationId, ReplayId};
use nexus_core::journal::Divergence;
use nexus_engine::Unmatched;
use nexus_log::StorageError;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// How a replay runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Without side effects, against the recorded answers.
    #[default]
    Deterministic,
    /// As a new invocation, with its side effects.
    Live,
}

impl Mode {
    /// The name in JSON and on the metrics page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deterministic => "deterministic",
            Self::Live => "live",
        }
    }
}

/// Which events, of all: every part that is given must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Received at or after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<jiff::Timestamp>,
    /// Received before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<jiff::Timestamp>,
    /// The event's type, exactly.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub ty: Option<String>,
    /// The event's source, exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The function that it went to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<nexus_core::ids::FunctionName>,
    /// How its last attempt there ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<nexus_core::outcome::InvocationStatus>,
}

/// What is asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayRequest {
    /// One event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// Which one, where several sources use its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The events that began this trace. What they caused follows from them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// One invocation: an attempt that another came after, say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invocation_id: Option<InvocationId>,
    /// Many events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// Only this function: at the version named, or at its current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionRef>,
    /// How.
    pub mode: Mode,
    /// Another payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
    /// Events a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// How many at once: 1 to 1,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Of another version or payload: what the journal has no answer to goes out into the world.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_live: bool,
    /// Of a live replay: with the idempotency key that the event had, so that who has seen it takes it for the same.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub same_key: bool,
    /// Of an exact replay: tell of each call of the host.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub steps: bool,
    /// Of a live replay of more than one event: it is meant.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub confirm: bool,
}

/// Why a replay does not begin.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The request does not make sense.
    #[error("{0}")]
    Invalid(String),
    /// What is to be replayed is not there.
    #[error("{0}")]
    NotFound(String),
    /// Several sources use this event id.
    #[error("event id {id} is used by {} sources; name the `source`", sources.len())]
    Ambiguous {
        /// The id.
        id: String,
        /// The sources.
        sources: Vec<String>,
    },
    /// It would do more than one event again, for real.
    #[error("this delivers {0} events again, with their side effects; say `confirm` if that is meant")]
    Unconfirmed(u64),
    /// Too many run already.
    #[error("{max} replays run already; wait for one to end, or abort one", max = super::RUNNING_MAX)]
    Busy,
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Where a replay stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Going on.
    Running,
    /// Held by request.
    Paused,
    /// Over.
    Done,
    /// Ended by request; one that is not of many events, by the server's stop too.
    Aborted,
}

impl Status {
    /// Whether nothing more comes of it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Aborted)
    }
}

/// What a replay found for one event and function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The same as before.
    Identical,
    /// Something differs.
    Diverged,
    /// The function did not end well, though it had before, or it did not run.
    Failed,
    /// It was to have no side effect, and the kernel saw one.
    Leaked,
}

impl Verdict {
    /// The name in JSON and on the metrics page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identical => "identical",
            Self::Diverged => "diverged",
            Self::Failed => "failed",
            Self::Leaked => "leaked",
        }
    }
}

/// One call of the host in an exact replay.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepView {
    /// Which one, counted from 0.
    pub call: usize,
    /// Its import.
    pub import: String,
    /// What was asked.
    pub asked: String,
    /// What was answered.
    pub answer: String,
    /// How many of the lines in the result's `printed` the guest had written by then.
    pub printed: usize,
    /// Bytes of the guest's memory by then.
    pub memory_bytes: u64,
}

/// One result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplayResult {
    /// The event.
    pub event_id: String,
    /// Its source.
    pub source: String,
    /// The function.
    pub function: String,
    /// What was found.
    pub verdict: Verdict,
    /// The first thing that differs: `host call`, `status`, `error`, `output`, `emitted`, `logs` or `memory`; or why it failed.
    pub divergence: Option<String>,
    /// Before and after, of what differs.
    pub diff: Option<serde_json::Value>,
    /// Of a deterministic replay: the first call of the host that was another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_call: Option<Divergence>,
    /// Of a deterministic replay: how many calls of the host were answered from the journal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<usize>,
    /// Of another version or payload: requests that the journal had no answer to, the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmatched: Vec<Unmatched>,
    /// How many more there were, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmatched_dropped: Option<NonZeroU64>,
    /// Of a deterministic replay: `none` if the kernel saw none, what it saw, or `not watched` and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side_effects: Option<String>,
    /// With `steps`: the lines that the guest wrote.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub printed: Vec<nexus_core::outcome::LogLine>,
    /// Of an exact replay that was to tell of them: the calls of the host, as far as they were answered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepView>,
    /// Of a deterministic replay that differs: what else may be the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What both runs cost, where there were two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Box<Costs>>,
    /// The invocation that was replayed.
    pub replay_of: Option<InvocationId>,
    /// The new invocation.
    pub invocation_id: Option<InvocationId>,
}

/// Results of one kind, of which there may be many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// The verdict.
    pub verdict: Verdict,
    /// What differs.
    pub divergence: Option<String>,
    /// How many there are.
    pub count: u64,
    /// Some of the events.
    pub examples: Vec<String>,
}

/// A replay as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplayView {
    /// Its id.
    pub replay_id: ReplayId,
    /// Where it stands.
    pub status: Status,
    /// How it runs.
    pub mode: Mode,
    /// Deliveries to be replayed, as far as they are known.
    pub total: u64,
    /// Of them, those that are over.
    pub done: u64,
    /// Of them, those where nothing differed.
    pub identical: u64,
    /// Of them, those where something differed.
    pub diverged: u64,
    /// Of them, those that failed.
    pub failed: u64,
    /// Of them, those that had a side effect.
    pub leaked: u64,
    /// The results by their kind, the most frequent first.
    pub kinds: Vec<Kind>,
    /// One for each; of many, those that are not identical come first.
    pub results: Vec<ReplayResult>,
    /// Results that found no room in `results`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub results_dropped: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What two runs cost.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Costs {
    /// The recorded one.
    pub before: Cost,
    /// The replay.
    pub after: Cost,
}

/// What a run cost. `None`: it is not known.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cost {
    /// From its start to its end.
    pub duration_ns: u64,
    /// Of its linear memories.
    pub memory_bytes: Option<u64>,
    /// On a CPU.
    pub on_cpu_ns: Option<u64>,
    /// Ready, without a CPU.
    pub run_queue_ns: Option<u64>,
    /// Blocked.
    pub off_cpu_ns: Option<u64>,
    /// System calls by name.
    pub syscalls: Option<BTreeMap<Cow<'static, str>, u64>>,
}
