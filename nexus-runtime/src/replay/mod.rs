//! Replay: events through [`Line::deliver`] again, compared with what came of them before.

pub mod case;
mod compare;
mod deliveries;
mod kept;
mod request;
mod results;
mod run;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nexus_core::ids::{ReplayId, RuntimeId, Seq};
use nexus_core::record::Record;
use nexus_core::trace::TraceId;
use nexus_log::{EventQuery, Members, Revision};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use request::{Filter, Mode, ReplayError, ReplayRequest, ReplayView};

use crate::line::Line;
use deliveries::Item;
use kept::Kept;
use request::{ReplayResult, Status};
use results::Results;

/// Replays that run at once; more are refused.
const RUNNING_MAX: usize = 16;
/// Replays that are remembered, running or over.
const REMEMBERED_MAX: usize = 1000;
/// Events of one trace that are replayed.
const TRACE_EVENTS_MAX: usize = 1000;
/// Events of one filter that are replayed.
const FILTER_EVENTS_MAX: usize = 1_000_000;
/// How long an order waits for a replay of this runtime's that is not yet gone on with, and how often it looks.
const ADOPTED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

struct Running {
    results: Results,
    stop: CancellationToken,
    held: watch::Sender<bool>,
}

/// How a replay is told what to do.
#[derive(Clone)]
struct Orders {
    stop: CancellationToken,
    held: watch::Receiver<bool>,
}

/// What becomes of a replay that is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It begins nothing more, for the time being.
    Pause,
    /// It goes on.
    Resume,
    /// It ends, after the events that it is at.
    Abort,
}

/// What is to be replayed.
enum Work {
    /// These deliveries, one after the other.
    Items(Vec<Item>),
    /// All deliveries of these events, several at once, in no order; it is kept where it stands.
    Events(Vec<Seq>, Revision),
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
    pub async fn start(self: &Arc<Self>, mut request: ReplayRequest) -> Result<ReplayId, ReplayError> {
        let invalid = |why: &str| Err(ReplayError::Invalid(why.to_owned()));
        let given = [
            request.event_id.is_some(),
            request.trace_id.is_some(),
            request.invocation_id.is_some(),
            request.filter.is_some(),
        ];
        if given.iter().filter(|g| **g).count() != 1 {
            return invalid("name exactly one of `event_id`, `trace_id`, `invocation_id` and `filter`");
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
        let found = match &mut request.filter {
            Some(filter) => {
                // What comes from now on is not meant, and would never end.
                let now = self.line.clock.now();
                filter.to = Some(filter.to.map_or(now, |to| to.min(now)));
                let filter = filter.clone();
                Err(self.filtered(&filter).await?)
            }
            None => Ok(self.items(&request).await?),
        };
        let total = found.as_ref().map_or_else(Vec::len, Vec::len) as u64;
        if request.mode == Mode::Live && total > 1 && !request.confirm {
            return Err(ReplayError::Unconfirmed(total));
        }
        let id = ReplayId::generate();
        let results = Results::new(id, request.mode, total);
        let orders = self.remember(id, results)?;
        let work = match found {
            Ok(items) => Work::Items(items),
            Err(events) => {
                let begun = self.begin(id, &request).await;
                if begun.is_err() {
                    self.forget(id);
                }
                Work::Events(events, begun?)
            }
        };
        self.spawn(id, request, work, orders);
        Ok(id)
    }

    /// The same again and again until the time is over, for whoever looks at where that goes; how often it was.
    pub async fn repeat(&self, request: &ReplayRequest, time: Duration) -> Result<usize, ReplayError> {
        let (began, items, id) = (Instant::now(), self.items(request).await?, ReplayId::generate());
        let mut runs = 0;
        while began.elapsed() < time {
            for item in &items {
                item.clone().replay(&self.line, id, request).await;
            }
            runs += 1;
        }
        Ok(runs)
    }

    fn spawn(self: &Arc<Self>, id: ReplayId, request: ReplayRequest, work: Work, orders: Orders) {
        let this = self.clone();
        self.tasks.spawn(async move { this.run(id, Arc::new(request), work, orders).await });
    }

    /// Takes a replay into those that are here, if there is room for one more.
    fn remember(&self, id: ReplayId, results: Results) -> Result<Orders, ReplayError> {
        let stop = self.stop.child_token();
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
        let (held, looks) = watch::channel(results.view(false).status == Status::Paused);
        order.push_back(id);
        all.insert(id, Running { results, stop: stop.clone(), held });
        Ok(Orders { stop, held: looks })
    }

    fn forget(&self, id: ReplayId) {
        let mut replays = self.replays.lock();
        replays.0.remove(&id);
        replays.1.retain(|other| *other != id);
    }

    /// Writes a new replay down.
    async fn begin(&self, id: ReplayId, request: &ReplayRequest) -> Result<Revision, ReplayError> {
        let registry = &self.line.storage.registry;
        kept::make_room(registry).await?;
        let view = self.here(id).ok_or(ReplayError::Busy)?;
        let kept = Kept { request: request.clone(), view, owner: self.me(), next: Seq(0) };
        kept::save(registry, &kept, None).await?.ok_or(ReplayError::Busy)
    }

    fn me(&self) -> RuntimeId {
        self.line.storage.log.members().borrow().me
    }

    /// Goes on with replays whose runtime is gone: its own from before it was started, and those of others, until the server stops.
    pub async fn go_on(self: Arc<Self>) {
        let mut first = true;
        let mut period = tokio::time::interval(kept::PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = period.tick() => {}
            }
            let members = self.line.storage.log.members().borrow().clone();
            // This one is not sure to be there itself, as after a long pause.
            if !members.all.contains(&members.me) {
                continue;
            }
            match self.adopt(&members, first).await {
                Ok(()) => first = false,
                Err(error) => tracing::warn!(%error, "it cannot be looked for replays to go on with; trying again"),
            }
        }
    }

    async fn adopt(self: &Arc<Self>, members: &Members, first: bool) -> Result<(), ReplayError> {
        let registry = &self.line.storage.registry;
        for (mut kept, revision) in kept::all(registry).await? {
            let id = kept.view.replay_id;
            let gone = if kept.owner == members.me { first } else { !members.all.contains(&kept.owner) };
            if kept.view.status.is_over() || !gone || self.here(id).is_some() {
                continue;
            }
            let Some(filter) = kept.request.filter.clone() else { continue };
            let mut events = match self.filtered(&filter).await {
                Ok(events) => events,
                Err(ReplayError::NotFound(_)) => Vec::new(),
                Err(error) => return Err(error),
            };
            events.retain(|seq| *seq >= kept.next);
            let orders = self.remember(id, Results::of(kept.view.clone()))?;
            kept.owner = members.me;
            // Only who can go on with it takes it over, and only one does.
            let taken = kept::save(registry, &kept, Some(revision)).await;
            if !matches!(taken, Ok(Some(_))) {
                self.forget(id);
            }
            let Some(revision) = taken? else { continue };
            tracing::info!(replay = %id, left = events.len(), "going on with a replay");
            self.spawn(id, kept.request, Work::Events(events, revision), orders);
        }
        Ok(())
    }

    /// A replay by its id: one that runs or ran here, or one that is kept.
    pub async fn get(&self, id: ReplayId) -> Result<Option<ReplayView>, ReplayError> {
        match self.here(id) {
            Some(view) => Ok(Some(view)),
            None => Ok(kept::one(&self.line.storage.registry, id).await?.map(|(kept, _)| kept.view)),
        }
    }

    fn here(&self, id: ReplayId) -> Option<ReplayView> {
        self.replays.lock().0.get(&id).map(|r| r.results.view(true))
    }

    /// All that are remembered here, the latest first, without their results.
    pub fn list(&self) -> Vec<ReplayView> {
        let replays = self.replays.lock();
        replays.1.iter().rev().filter_map(|id| Some(replays.0.get(id)?.results.view(false))).collect()
    }

    /// Tells a replay that runs here what to do. `false` if there is none.
    pub async fn tell(&self, id: ReplayId, order: Order) -> Result<bool, ReplayError> {
        let mut patience = ADOPTED_WITHIN;
        loop {
            if self.tell_here(id, order) {
                return Ok(true);
            }
            // After a restart it takes a moment until its own are gone on with.
            let kept = kept::one(&self.line.storage.registry, id).await?;
            let soon = kept.is_some_and(|(kept, _)| kept.owner == self.me() && !kept.view.status.is_over());
            if !soon || patience.is_zero() || self.stop.is_cancelled() {
                return Ok(false);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            patience = patience.saturating_sub(LOOK_AGAIN);
        }
    }

    fn tell_here(&self, id: ReplayId, order: Order) -> bool {
        let replays = self.replays.lock();
        let Some(running) = replays.0.get(&id) else { return false };
        match order {
            Order::Pause => drop(running.held.send_replace(true)),
            Order::Resume => drop(running.held.send_replace(false)),
            Order::Abort => running.stop.cancel(),
        }
        true
    }

    /// The deliveries of the events that are named one by one.
    async fn items(&self, request: &ReplayRequest) -> Result<Vec<Item>, ReplayError> {
        let mut items = Vec::new();
        for record in self.records(request).await? {
            let record = Arc::new(deliveries::with_data(record, request)?);
            items.extend(deliveries::of(&self.line, &record, request, None).await?);
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
        if let Some(id) = request.invocation_id {
            let none = || ReplayError::NotFound(format!("there is no invocation {id}"));
            let outcome = log.outcome(id).await?.ok_or_else(none)?;
            let record = log.get(outcome.seq).await?.ok_or_else(none)?;
            return Ok(vec![(*record).clone()]);
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
