//! Replay: events through [`Line::deliver`] again, compared with what came of them before.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use nexus_core::event::{Data, is_json};
use nexus_core::function::FunctionKind;
use nexus_core::ids::{FunctionRef, InvocationId, ReplayId};
use nexus_core::outcome::{Disposition, InvocationStatus, Outcome, TriggerKind};
use nexus_core::record::Record;
use nexus_core::trace::TraceId;
use nexus_log::{EventQuery, StorageError};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::Entry;
use crate::gateway::http_event;
use crate::line::{Delivery, Line, Replay};

/// Replays that run at once; more are refused.
const RUNNING_MAX: usize = 16;
/// Replays that are remembered, running or over.
const REMEMBERED_MAX: usize = 1000;
/// Events of one trace that are replayed.
const TRACE_EVENTS_MAX: usize = 1000;

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
    /// Many events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<serde_json::Value>,
    /// Only this function, at its current version or at the one named.
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
    /// Not in this version.
    #[error("{0}")]
    NotAvailable(&'static str),
    /// Too many run already.
    #[error("{RUNNING_MAX} replays run already; wait for one to end, or abort one")]
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
    /// Over.
    Done,
    /// Ended by request, or by the server's stop.
    Aborted,
}

/// What a replay found for one event and function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The same status, output and emitted events as before.
    Identical,
    /// Something differs.
    Diverged,
    /// The function did not end well, though it had before, or it did not run.
    Failed,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Identical => "identical",
            Self::Diverged => "diverged",
            Self::Failed => "failed",
        }
    }
}

/// One result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplayResult {
    /// The event.
    pub event_id: String,
    /// The function.
    pub function: String,
    /// What was found.
    pub verdict: Verdict,
    /// The first thing that differs: `status`, `output` or `emitted`.
    pub divergence: Option<String>,
    /// Before and after, of what differs.
    pub diff: Option<serde_json::Value>,
    /// The invocation that was replayed.
    pub replay_of: Option<InvocationId>,
    /// The new invocation.
    pub invocation_id: Option<InvocationId>,
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
    /// Events and functions to be replayed.
    pub total: u64,
    /// Of them, those that are over.
    pub done: u64,
    /// Of them, those where nothing differed.
    pub identical: u64,
    /// Of them, those where something differed.
    pub diverged: u64,
    /// Of them, those that failed.
    pub failed: u64,
    /// One for each.
    pub results: Vec<ReplayResult>,
}

struct Running {
    view: ReplayView,
    stop: CancellationToken,
}

/// One delivery to be made again.
struct Item {
    record: Arc<Record>,
    entry: Arc<Entry>,
    before: Option<Outcome>,
}

/// Every replay of this process.
pub struct Replays {
    line: Arc<Line>,
    tasks: TaskTracker,
    stop: CancellationToken,
    replays: Mutex<(HashMap<ReplayId, Running>, VecDeque<ReplayId>)>,
}

impl Replays {
    /// Ends with `stop`.
    pub fn new(line: Arc<Line>, tasks: TaskTracker, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { line, tasks, stop, replays: Mutex::default() })
    }

    /// Finds what is to be replayed, and begins.
    pub async fn start(self: &Arc<Self>, request: ReplayRequest) -> Result<ReplayId, ReplayError> {
        let given = [request.event_id.is_some(), request.trace_id.is_some(), request.filter.is_some()];
        if given.iter().filter(|g| **g).count() != 1 {
            return Err(ReplayError::Invalid("name exactly one of `event_id`, `trace_id` and `filter`".into()));
        }
        if request.filter.is_some() {
            return Err(ReplayError::NotAvailable(
                "replay by `filter` is not in this version; name an event or a trace",
            ));
        }
        if request.mode == Mode::Deterministic {
            return Err(ReplayError::NotAvailable(
                "deterministic replay is not in this version; mode `live` runs the event again, side effects included",
            ));
        }
        if request.rate.is_some_and(|r| !(0.001..=1e6).contains(&r)) {
            return Err(ReplayError::Invalid("`rate` must be 0.001 to 1,000,000 events a second".into()));
        }
        let items = self.items(&request).await?;
        let id = ReplayId::generate();
        let view = ReplayView {
            replay_id: id,
            status: Status::Running,
            mode: request.mode,
            total: items.len() as u64,
            done: 0,
            identical: 0,
            diverged: 0,
            failed: 0,
            results: Vec::new(),
        };
        let stop = self.stop.child_token();
        {
            let mut replays = self.replays.lock();
            let (all, order) = &mut *replays;
            if all.values().filter(|r| r.view.status == Status::Running).count() >= RUNNING_MAX {
                return Err(ReplayError::Busy);
            }
            if order.len() >= REMEMBERED_MAX
                && let Some(at) = order.iter().position(|id| all[id].view.status != Status::Running)
                && let Some(oldest) = order.remove(at)
            {
                all.remove(&oldest);
            }
            order.push_back(id);
            all.insert(id, Running { view, stop: stop.clone() });
        }
        let this = self.clone();
        self.tasks.spawn(async move { this.run(id, request, items, stop).await });
        Ok(id)
    }

    /// A replay by its id.
    pub fn get(&self, id: ReplayId) -> Option<ReplayView> {
        self.replays.lock().0.get(&id).map(|r| r.view.clone())
    }

    /// All that are remembered, the latest first, without their results.
    pub fn list(&self) -> Vec<ReplayView> {
        let replays = self.replays.lock();
        replays
            .1
            .iter()
            .rev()
            .filter_map(|id| Some(ReplayView { results: Vec::new(), ..replays.0.get(id)?.view.clone() }))
            .collect()
    }

    /// Ends a replay after the event that it is at. `false` if there is none.
    pub fn abort(&self, id: ReplayId) -> bool {
        let replays = self.replays.lock();
        let Some(running) = replays.0.get(&id) else { return false };
        running.stop.cancel();
        true
    }

    async fn items(&self, request: &ReplayRequest) -> Result<Vec<Item>, ReplayError> {
        let mut items = Vec::new();
        for record in self.records(request).await? {
            let record = Arc::new(with_data(record, request)?);
            items.extend(self.deliveries(&record, request).await?);
        }
        if items.is_empty() {
            let what = request.function.as_ref().map_or("any function".to_owned(), |f| format!("function {f}"));
            return Err(ReplayError::NotFound(format!("there is nothing to replay: no such event went to {what}")));
        }
        Ok(items)
    }

    async fn records(&self, request: &ReplayRequest) -> Result<Vec<Record>, ReplayError> {
        let log = &self.line.storage.log;
        if let Some(id) = &request.event_id {
            let mut found = log.find(id, request.source.as_deref()).await?;
            return match found.len() {
                0 => Err(ReplayError::NotFound(format!("there is no event {id}"))),
                1 => Ok(vec![found.remove(0)]),
                _ => {
                    let sources = found.into_iter().map(|r| r.entry.event.source).collect();
                    Err(ReplayError::Ambiguous { id: id.clone(), sources })
                }
            };
        }
        let text = request.trace_id.as_deref().unwrap_or_default();
        let trace: TraceId = text.parse().map_err(|e| ReplayError::Invalid(format!("{e}")))?;
        let query = EventQuery { trace: Some(trace), limit: TRACE_EVENTS_MAX, ..EventQuery::default() };
        let mut records = log.query(&query).await?.records;
        // What an event of the trace caused is caused again by its replay.
        records.retain(|r| r.entry.cause.is_none());
        records.reverse();
        if records.is_empty() {
            return Err(ReplayError::NotFound(format!("there is no trace {trace}")));
        }
        Ok(records)
    }

    /// The functions that the event went to, or would go to now if it went to none; those that are gone are left out.
    async fn deliveries(&self, record: &Arc<Record>, request: &ReplayRequest) -> Result<Vec<Item>, ReplayError> {
        let view = self.line.catalog.view();
        let mut before: BTreeMap<_, Outcome> = BTreeMap::new();
        for outcome in self.line.storage.log.outcomes(record.seq).await? {
            if outcome.disposition != Disposition::Replayed && outcome.status != InvocationStatus::Denied {
                before.insert(outcome.function.clone(), outcome);
            }
        }
        let mut names: Vec<_> = before.keys().cloned().collect();
        if let Some(wanted) = &request.function {
            names = vec![wanted.name.clone()];
            let entry = view
                .get(&wanted.name)
                .ok_or_else(|| ReplayError::NotFound(format!("there is no function {}", wanted.name)))?;
            if entry.version(wanted).is_none() {
                return Err(ReplayError::NotFound(format!("there is no function {wanted}")));
            }
        } else if names.is_empty() {
            names = view.route(&record.entry.event).map(|e| e.function.name.clone()).collect();
        }
        Ok(names
            .into_iter()
            .filter_map(|name| {
                let entry = view.get(&name)?.clone();
                Some(Item { record: record.clone(), entry, before: before.remove(&name) })
            })
            .collect())
    }

    async fn run(&self, id: ReplayId, request: ReplayRequest, items: Vec<Item>, stop: CancellationToken) {
        let pause = request.rate.map(|rate| std::time::Duration::from_secs_f64(1.0 / rate));
        let mut status = Status::Done;
        for item in items {
            if stop.is_cancelled() {
                status = Status::Aborted;
                break;
            }
            let result = self.replay(id, &request, item).await;
            self.line.telemetry.replayed(id, "live", result.verdict.as_str());
            self.note(id, result);
            if let Some(pause) = pause {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
        if let Some(running) = self.replays.lock().0.get_mut(&id) {
            running.view.status = status;
        }
    }

    fn note(&self, id: ReplayId, result: ReplayResult) {
        if let Some(running) = self.replays.lock().0.get_mut(&id) {
            let view = &mut running.view;
            view.done += 1;
            match result.verdict {
                Verdict::Identical => view.identical += 1,
                Verdict::Diverged => view.diverged += 1,
                Verdict::Failed => view.failed += 1,
            }
            view.results.push(result);
        }
    }

    async fn replay(&self, id: ReplayId, request: &ReplayRequest, item: Item) -> ReplayResult {
        let Item { record, entry, before } = item;
        let event_id = record.entry.event.id.clone();
        let function = entry.function.name.to_string();
        let of = before.as_ref().map(|o| o.invocation_id);
        let failed = |why: String| ReplayResult {
            event_id: event_id.clone(),
            function: function.clone(),
            verdict: Verdict::Failed,
            divergence: Some(why),
            diff: None,
            replay_of: of,
            invocation_id: None,
        };
        let reference =
            request.function.clone().unwrap_or(FunctionRef { name: entry.function.name.clone(), version: None });
        let Some(version) = entry.version(&reference).cloned() else {
            return failed(format!("function {reference} is gone"));
        };
        let http = http_event::request_of(&record.entry.event).filter(|_| version.kind == FunctionKind::WasiHttp);
        let delivery = Delivery {
            record,
            entry,
            version,
            attempt: 1,
            trigger: TriggerKind::Other,
            http,
            replay: Some(Replay { of, id }),
        };
        match self.line.deliver(delivery).await {
            Ok(delivered) => compare(before.as_ref(), &delivered.outcome, event_id),
            Err(error) => failed(format!("the outcome could not be written: {error}")),
        }
    }
}

/// The same event with another payload, if one is given.
fn with_data(mut record: Record, request: &ReplayRequest) -> Result<Record, ReplayError> {
    let Some(data) = &request.data else { return Ok(record) };
    let event = &mut record.entry.event;
    event.data = Some(if is_json(event.datacontenttype.as_deref()) {
        Data::Json(data.clone())
    } else {
        let text = serde_json::from_str(data.get()).map_err(|_| {
            let kind = event.datacontenttype.clone().unwrap_or_default();
            ReplayError::Invalid(format!("the event's payload is {kind}; `data` must be a string"))
        })?;
        Data::Text(text)
    });
    Ok(record)
}

/// What differs between two runs, the first thing first.
fn compare(before: Option<&Outcome>, after: &Outcome, event_id: String) -> ReplayResult {
    let mut result = ReplayResult {
        event_id,
        function: after.function.to_string(),
        verdict: Verdict::Identical,
        divergence: None,
        diff: None,
        replay_of: after.replay_of,
        invocation_id: Some(after.invocation_id),
    };
    let mut differs = |what: &str, before: serde_json::Value, after: serde_json::Value| {
        if before != after && result.divergence.is_none() {
            result.divergence = Some(what.to_owned());
            result.diff = Some(serde_json::json!({"before": before, "after": after}));
            result.verdict = Verdict::Diverged;
        }
    };
    match before {
        None if after.status != InvocationStatus::Ok => result.verdict = Verdict::Failed,
        None => {}
        Some(before) => {
            differs("status", before.status.as_str().into(), after.status.as_str().into());
            let output = |o: &Outcome| serde_json::to_value(&o.output).unwrap_or_default();
            differs("output", output(before), output(after));
            differs("emitted", before.emitted.len().into(), after.emitted.len().into());
            if after.status != InvocationStatus::Ok && before.status == InvocationStatus::Ok {
                result.verdict = Verdict::Failed;
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use nexus_core::ids::{Seq, Version};
    use nexus_core::kernel::KernelAccount;
    use nexus_core::outcome::Output;

    fn outcome(status: InvocationStatus, output: Option<&str>, emitted: usize) -> Outcome {
        Outcome {
            invocation_id: InvocationId::generate(),
            seq: Seq(1),
            function: "f".parse().expect("name"),
            version: Version(1),
            attempt: 1,
            trigger: TriggerKind::Pubsub,
            status,
            error: None,
            delivered_at: jiff::Timestamp::UNIX_EPOCH,
            started_at: jiff::Timestamp::UNIX_EPOCH,
            duration_ns: 0,
            init_ns: 0,
            cold_start: false,
            load_ns: None,
            replay_of: None,
            replay_id: None,
            emitted: (0..emitted).map(|i| i.to_string()).collect(),
            memory_bytes: None,
            dead_letter_emitted: false,
            output: output.map(|text| Output {
                http_status: None,
                content_type: None,
                data: Some(text.into()),
                data_base64: None,
                bytes: text.len() as u64,
                truncated: false,
            }),
            disposition: Disposition::Done,
            host_calls: Vec::new(),
            host_calls_dropped: 0,
            logs: Vec::new(),
            logs_dropped: 0,
            kernel: KernelAccount::off("test"),
            slow_syscalls: Vec::new(),
        }
    }

    #[test]
    fn the_first_difference_is_named() {
        use InvocationStatus::{Error, Ok};
        let check = |before: Option<Outcome>, after: Outcome, verdict: Verdict, divergence: Option<&str>| {
            let result = compare(before.as_ref(), &after, "1".into());
            assert_eq!((result.verdict, result.divergence.as_deref()), (verdict, divergence));
        };
        check(Some(outcome(Ok, Some("a"), 1)), outcome(Ok, Some("a"), 1), Verdict::Identical, None);
        check(Some(outcome(Ok, Some("a"), 1)), outcome(Ok, Some("b"), 0), Verdict::Diverged, Some("output"));
        check(Some(outcome(Ok, None, 1)), outcome(Ok, None, 2), Verdict::Diverged, Some("emitted"));
        check(Some(outcome(Ok, None, 0)), outcome(Error, None, 0), Verdict::Failed, Some("status"));
        check(Some(outcome(Error, None, 0)), outcome(Ok, None, 0), Verdict::Diverged, Some("status"));
        check(None, outcome(Ok, None, 0), Verdict::Identical, None);
        check(None, outcome(Error, None, 0), Verdict::Failed, None);
    }
}
