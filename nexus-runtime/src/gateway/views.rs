//! EVENT, INVOCATION and FUNCTION as the API shows them.

use std::collections::HashMap;

use jiff::Timestamp;
use nexus_core::event::Event;
use nexus_core::function::FunctionConfig;
use nexus_core::ids::{Digest, FunctionName, InvocationId, ReplayId, ScheduleName, Seq, Version};
use nexus_core::kernel::KernelAccount;
use nexus_core::outcome::{Disposition, HostCall, InvocationStatus, LogLine, Outcome, Output, TriggerKind};
use nexus_core::record::{Cause, Record};
use nexus_core::trace::TraceId;
use serde::Serialize;

use crate::catalog::Entry;
use crate::dispatch::Stage;

/// Where an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventStatus {
    /// Not yet delivered.
    Pending,
    /// Being delivered.
    Running,
    /// Delivered to all who wanted it, be it nobody.
    Done,
    /// Its last attempt failed; it waits to be tried again, or was a call that was answered so.
    Failed,
    /// Given up.
    Dead,
}

impl EventStatus {
    /// From what came of it and from where it is on its way.
    pub fn of(outcomes: &[Outcome], stage: Stage) -> Self {
        let mut last: HashMap<&FunctionName, &Outcome> = HashMap::new();
        for outcome in outcomes.iter().filter(|o| o.disposition != Disposition::Replayed) {
            last.insert(&outcome.function, outcome);
        }
        match stage {
            Stage::InFlight => return Self::Running,
            Stage::Waiting | Stage::Later if last.is_empty() => return Self::Pending,
            // Some have had it, others are about to.
            Stage::Later => return Self::Running,
            Stage::Waiting | Stage::Settled => {}
        }
        let any = |test: fn(&Outcome) -> bool| last.values().any(|o| test(o));
        if any(|o| matches!(o.disposition, Disposition::Dead | Disposition::Expired)) {
            Self::Dead
        } else if any(|o| o.status != InvocationStatus::Ok) {
            Self::Failed
        } else {
            Self::Done
        }
    }

    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "pending" => Self::Pending,
            "running" => Self::Running,
            "done" => Self::Done,
            "failed" => Self::Failed,
            "dead" => Self::Dead,
            _ => return None,
        })
    }
}

/// An event with what came of it.
#[derive(Serialize)]
pub struct EventView {
    event: Event,
    seq: Seq,
    received_at: Timestamp,
    trace_id: TraceId,
    status: EventStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<FunctionName>,
    invocations: Vec<InvocationView>,
}

impl EventView {
    pub fn new(record: Record, outcomes: Vec<Outcome>, stage: Stage) -> Self {
        let entry = record.entry;
        Self {
            seq: record.seq,
            received_at: entry.received_at,
            trace_id: entry.trace.trace_id,
            status: EventStatus::of(&outcomes, stage),
            cause: entry.cause,
            target: entry.target,
            event: entry.event,
            invocations: outcomes.into_iter().map(InvocationView::from).collect(),
        }
    }
}

/// An invocation.
#[derive(Serialize)]
pub struct InvocationView {
    invocation_id: InvocationId,
    function: FunctionName,
    version: Version,
    attempt: u32,
    trigger: TriggerKind,
    status: InvocationStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    started_at: Timestamp,
    duration_ns: u64,
    init_ns: u64,
    cold_start: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replay_of: Option<InvocationId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replay_id: Option<ReplayId>,
    emitted: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Output>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    host_calls: Vec<HostCall>,
    #[serde(skip_serializing_if = "is_zero")]
    host_calls_dropped: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<LogLine>,
    #[serde(skip_serializing_if = "is_zero")]
    logs_dropped: u64,
    kernel: KernelAccount,
    #[serde(skip_serializing_if = "Option::is_none")]
    journal: Option<JournalView>,
}

/// What there is of an invocation's journal; absent where none was written.
#[derive(Serialize)]
struct JournalView {
    /// As it is kept.
    bytes: usize,
    /// Whether the invocation can be replayed from it.
    complete: bool,
    /// Why not, if not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl JournalView {
    fn of(outcome: &Outcome) -> Option<Self> {
        let partial = outcome.journal_partial;
        let bytes = outcome.journal.as_ref().map(|journal| journal.0.len());
        (bytes.is_some() || partial.is_some()).then(|| Self {
            bytes: bytes.unwrap_or(0),
            complete: partial.is_none(),
            reason: partial.map(|why| why.to_string()),
        })
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl From<Outcome> for InvocationView {
    fn from(o: Outcome) -> Self {
        let retry_at = match o.disposition {
            Disposition::Retry { at } => Some(at),
            _ => None,
        };
        let journal = JournalView::of(&o);
        Self {
            journal,
            invocation_id: o.invocation_id,
            function: o.function,
            version: o.version,
            attempt: o.attempt,
            trigger: o.trigger,
            status: o.status,
            error: o.error,
            started_at: o.started_at,
            duration_ns: o.duration_ns,
            init_ns: o.init_ns,
            cold_start: o.cold_start,
            load_ns: o.load_ns,
            replay_of: o.replay_of,
            replay_id: o.replay_id,
            emitted: o.emitted,
            output: o.output,
            memory_bytes: o.memory_bytes,
            retry_at,
            host_calls: o.host_calls,
            host_calls_dropped: o.host_calls_dropped,
            logs: o.logs,
            logs_dropped: o.logs_dropped,
            kernel: o.kernel,
        }
    }
}

/// What a function has done since the server started.
#[derive(Serialize)]
pub struct FunctionStats {
    running: u64,
}

/// A function.
#[derive(Serialize)]
pub struct FunctionView<'a> {
    name: &'a FunctionName,
    version: Version,
    digest: Digest,
    kind: &'static str,
    config: &'a FunctionConfig,
    created_at: Timestamp,
    stats: FunctionStats,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ticks: Vec<TickView<'a>>,
}

/// When a schedule runs next; `null` for one that never does again.
#[derive(Serialize)]
struct TickView<'a> {
    schedule: &'a ScheduleName,
    next_at: Option<Timestamp>,
}

impl<'a> FunctionView<'a> {
    /// `None` for a function without a version, which deploying never leaves.
    pub fn of(entry: &'a Entry, now: Timestamp) -> Option<Self> {
        let current = entry.function.current()?;
        let limit = entry.config.limits.concurrency as usize;
        let schedules = entry.config.schedules.iter();
        Some(Self {
            name: &entry.function.name,
            version: current.version,
            digest: current.digest,
            kind: current.kind.as_str(),
            config: &entry.config,
            created_at: current.created_at,
            stats: FunctionStats { running: limit.saturating_sub(entry.permits.available_permits()) as u64 },
            ticks: schedules.map(|s| TickView { schedule: &s.name, next_at: s.next_after(now) }).collect(),
        })
    }
}
