//! Replay: events through [`Line::deliver`] again, compared with what came of them before.

pub mod case;
mod compare;
mod deliveries;
mod request;
mod results;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use nexus_core::ids::{ReplayId, Seq};
use nexus_core::record::Record;
use nexus_core::trace::TraceId;
use nexus_log::EventQuery;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use request::{Filter, Mode, ReplayError, ReplayRequest, ReplayView};

use crate::line::Line;
use deliveries::Item;
use request::ReplayResult;
use results::Results;

/// Replays that run at once; more are refused.
const RUNNING_MAX: usize = 16;
/// Replays that are remembered, running or over.
const REMEMBERED_MAX: usize = 1000;
/// Events of one trace that are replayed.
const TRACE_EVENTS_MAX: usize = 1000;
/// Events of one filter that are replayed.
const FILTER_EVENTS_MAX: usize = 1_000_000;
/// Events of a filter that are replayed at once, where nobody says how many.
const CONCURRENCY: usize = 16;

struct Running {
    results: Results,
    stop: CancellationToken,
}

/// What is to be replayed.
enum Work {
    /// These deliveries, one after the other.
    Items(Vec<Item>),
    /// All deliveries of these events, several at once, in no order.
    Events(Vec<Seq>),
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
        let invalid = |why: &str| Err(ReplayError::Invalid(why.to_owned()));
        let given = [request.event_id.is_some(), request.trace_id.is_some(), request.filter.is_some()];
        if given.iter().filter(|g| **g).count() != 1 {
            return invalid("name exactly one of `event_id`, `trace_id` and `filter`");
        }
        if request.rate.is_some_and(|r| !(0.001..=1e6).contains(&r)) {
            return invalid("`rate` must be 0.001 to 1,000,000 events a second");
        }
        if request.concurrency.is_some_and(|c| !(1..=1000).contains(&c)) {
            return invalid("`concurrency` must be 1 to 1,000");
        }
        match request.mode {
            Mode::Live if request.allow_live => {
                return invalid("`allow_live` is for mode `deterministic`; `live` is live");
            }
            Mode::Deterministic if request.same_key => {
                return invalid("`same_key` is for mode `live`; a deterministic replay has the key that was recorded");
            }
            Mode::Live | Mode::Deterministic => {}
        }
        if request.steps && (request.filter.is_some() || request.mode == Mode::Live) {
            return invalid("`steps` is for the exact replay of one event or trace");
        }
        if request.data.is_some() && request.filter.is_some() {
            return invalid("`data` is another payload of one event; it cannot be that of all that a `filter` finds");
        }
        let (work, total) = match &request.filter {
            Some(filter) => {
                let events = self.filtered(filter).await?;
                let total = events.len() as u64;
                (Work::Events(events), total)
            }
            None => {
                let items = self.items(&request).await?;
                let total = items.len() as u64;
                (Work::Items(items), total)
            }
        };
        if request.mode == Mode::Live && total > 1 && !request.confirm {
            return Err(ReplayError::Unconfirmed(total));
        }
        let id = ReplayId::generate();
        let stop = self.stop.child_token();
        {
            let mut replays = self.replays.lock();
            let (all, order) = &mut *replays;
            if all.values().filter(|r| r.results.is_running()).count() >= RUNNING_MAX {
                return Err(ReplayError::Busy);
            }
            if order.len() >= REMEMBERED_MAX
                && let Some(at) = order.iter().position(|id| !all[id].results.is_running())
                && let Some(oldest) = order.remove(at)
            {
                all.remove(&oldest);
            }
            order.push_back(id);
            all.insert(id, Running { results: Results::new(id, request.mode, total), stop: stop.clone() });
        }
        let this = self.clone();
        self.tasks.spawn(async move { this.run(id, Arc::new(request), work, stop).await });
        Ok(id)
    }

    /// A replay by its id.
    pub fn get(&self, id: ReplayId) -> Option<ReplayView> {
        self.replays.lock().0.get(&id).map(|r| r.results.view(true))
    }

    /// All that are remembered, the latest first, without their results.
    pub fn list(&self) -> Vec<ReplayView> {
        let replays = self.replays.lock();
        replays.1.iter().rev().filter_map(|id| Some(replays.0.get(id)?.results.view(false))).collect()
    }

    /// Ends a replay after the events that it is at. `false` if there is none.
    pub fn abort(&self, id: ReplayId) -> bool {
        let replays = self.replays.lock();
        let Some(running) = replays.0.get(&id) else { return false };
        running.stop.cancel();
        true
    }

    /// The deliveries of the events that are named one by one.
    async fn items(&self, request: &ReplayRequest) -> Result<Vec<Item>, ReplayError> {
        let mut items = Vec::new();
        for record in self.records(request).await? {
            let record = Arc::new(deliveries::with_data(record, request)?);
            items.extend(deliveries::of(&self.line, &record, request).await?);
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
        // What an event of the trace caused is caused again by its live replay.
        records.retain(|r| r.entry.cause.is_none() || request.mode == Mode::Deterministic);
        records.reverse();
        if records.is_empty() {
            return Err(ReplayError::NotFound(format!("there is no trace {trace}")));
        }
        Ok(records)
    }

    /// The events that a filter finds, the oldest first; whether they went to its function, and how, is looked at one by one later.
    async fn filtered(&self, filter: &Filter) -> Result<Vec<Seq>, ReplayError> {
        let mut query = EventQuery {
            from: filter.from,
            to: filter.to,
            ty: filter.ty.clone(),
            source: filter.source.clone(),
            limit: 1000,
            ..EventQuery::default()
        };
        let mut found = Vec::new();
        loop {
            let page = self.line.storage.log.query(&query).await?;
            found.extend(page.records.iter().map(|record| record.seq));
            if found.len() > FILTER_EVENTS_MAX {
                let why =
                    format!("the filter finds more than {FILTER_EVENTS_MAX} events; narrow it, by `from` and `to` say");
                return Err(ReplayError::Invalid(why));
            }
            match page.next {
                Some(next) => query.before = Some(next),
                None => break,
            }
        }
        if found.is_empty() {
            return Err(ReplayError::NotFound("the filter finds no event".into()));
        }
        found.reverse();
        Ok(found)
    }

    async fn run(self: Arc<Self>, id: ReplayId, request: Arc<ReplayRequest>, work: Work, stop: CancellationToken) {
        let mut pace = request.rate.map(|rate| {
            let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
            pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            pace
        });
        let several = matches!(work, Work::Events(_));
        let permits = Arc::new(Semaphore::new(request.concurrency.unwrap_or(if several { CONCURRENCY } else { 1 })));
        let mut running = JoinSet::new();
        let mut items = VecDeque::new();
        let mut events = VecDeque::new();
        match work {
            Work::Items(all) => items = all.into(),
            Work::Events(all) => events = all.into(),
        }
        while !stop.is_cancelled() {
            let Some(item) = items.pop_front() else {
                let Some(seq) = events.pop_front() else { break };
                let found = self.found(seq, &request).await;
                self.with(id, |results| results.found(&found));
                match found {
                    Ok(found) => items.extend(found),
                    Err(result) => self.note(id, &request, *result),
                }
                continue;
            };
            if let Some(pace) = &mut pace {
                tokio::select! {
                    () = stop.cancelled() => break,
                    _ = pace.tick() => {}
                }
            }
            let Ok(permit) = permits.clone().acquire_owned().await else { break };
            while running.try_join_next().is_some() {}
            let (this, request) = (self.clone(), request.clone());
            running.spawn(async move {
                let result = item.replay(&this.line, id, &request).await;
                this.note(id, &request, result);
                drop(permit);
            });
        }
        let aborted = stop.is_cancelled();
        running.join_all().await;
        self.with(id, |results| results.end(aborted));
    }

    /// The deliveries of an event that a filter found; an error is a result by itself.
    async fn found(&self, seq: Seq, request: &ReplayRequest) -> Result<Vec<Item>, Box<ReplayResult>> {
        let failed =
            |why: String| Box::new(ReplayResult::failed(format!("place {seq}"), String::new(), String::new(), why));
        match self.line.storage.log.get(seq).await {
            Ok(Some(record)) => {
                deliveries::of(&self.line, &record, request).await.map_err(|error| failed(error.to_string()))
            }
            // Retention took it meanwhile.
            Ok(None) => Ok(Vec::new()),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    fn note(&self, id: ReplayId, request: &ReplayRequest, result: ReplayResult) {
        self.line.telemetry.replayed(id, request.mode.as_str(), result.verdict.as_str());
        self.with(id, |results| results.push(result));
    }

    fn with(&self, id: ReplayId, look: impl FnOnce(&mut Results)) {
        if let Some(running) = self.replays.lock().0.get_mut(&id) {
            look(&mut running.results);
        }
    }
}
