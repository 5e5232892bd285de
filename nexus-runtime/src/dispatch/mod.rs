//! Reads the log and sends each event to the functions that want it, until there is an outcome for each.
//!
//! The log is the queue: nothing is handed over in memory that a crash could lose. What is in flight is bounded, and
//! how far delivery has come is told to the log, so that a restart begins there.
//!
//! Where several runtimes share the log, each delivers the events that are its own ([`nexus_log::Members`]). When one comes or
//! goes, all look anew at everything that is not known to be delivered.

mod claims;
mod lanes;
mod ordered;
mod retries;
mod tracker;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use nexus_core::ids::{FunctionName, RuntimeId, Seq};
use nexus_core::outcome::{Disposition, Outcome, TriggerKind};
use nexus_core::record::Record;
use nexus_log::{Members, Parked, StorageError};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gateway::http_event;
use crate::line::{Delivery, Line, expired};
use lanes::Work;

pub use claims::Claim;

/// Events that are read at once.
const READ_MAX: usize = 512;
/// What a delivery in flight counts at least, in KiB: its tasks and its instance's state.
const DELIVERY_KIB: usize = 16;
/// Deliveries that are put off with one write.
const POSTPONED_AT_ONCE: usize = 10_000;
/// The wait after storage could not be read, or a delivery's outcome not be written.
const STORAGE_PAUSE: Duration = Duration::from_millis(500);

/// Sends events to functions.
pub struct Dispatcher {
    line: Arc<Line>,
    tracker: tracker::Tracker,
    claims: claims::Claims,
    retries: retries::Retries,
    lanes: lanes::Lanes,
    ordered: ordered::Ordered,
    room: Arc<Semaphore>,
    room_kib: u32,
    members: RwLock<Arc<Members>>,
    /// Deliveries that were begun, and have not ended.
    running: Mutex<HashSet<(Seq, FunctionName)>>,
    deliveries: TaskTracker,
    stop: CancellationToken,
}

/// Where an event is on its way, as far as this process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not yet looked at.
    Waiting,
    /// Being delivered now.
    InFlight,
    /// Deliveries of it wait for its time.
    Later,
    /// Every delivery has an outcome, or waits to be tried again.
    Settled,
}

impl Dispatcher {
    /// A dispatcher that holds at most `room_kib` of deliveries in memory. It begins when [`Dispatcher::run`] is polled.
    pub fn new(line: Arc<Line>, room_kib: u32, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            tracker: tracker::Tracker::default(),
            claims: claims::Claims::default(),
            retries: retries::Retries::default(),
            lanes: lanes::Lanes::new(room_kib),
            ordered: ordered::Ordered::default(),
            room: Arc::new(Semaphore::new(room_kib as usize)),
            room_kib,
            running: Mutex::default(),
            members: RwLock::new(line.storage.log.members().borrow().clone()),
            line,
            deliveries: TaskTracker::new(),
            stop,
        })
    }

    /// Runs until told to stop; what is in flight then is waited for by [`Dispatcher::drain`].
    pub async fn run(self: Arc<Self>) -> Result<(), StorageError> {
        let log = self.line.storage.log.clone();
        let (mut head, mut members, mut released) = (log.head(), log.members(), log.released());
        while !self.stop.is_cancelled() {
            let now = members.borrow_and_update().clone();
            let progress = match log.progress().await {
                Ok(progress) => progress,
                Err(error) if error.is_retryable() => {
                    tracing::error!(%error, "how far delivery has come cannot be read");
                    members.mark_changed();
                    self.pause().await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let recovered_to = *head.borrow_and_update();
            // What is let go is in hand no more: it is read anew, here or where it is now to be delivered.
            for work in self.ordered.reset() {
                self.running.lock().remove(&(work.seq, work.name.clone()));
                self.retries.ended(work.seq, &work.name);
            }
            self.retries.add(progress.parked.iter().cloned());
            self.tracker.start_at(progress.delivered_below.max(Seq(1)), now.epoch);
            *self.members.write() = now;
            self.hold_parked(&progress.parked).await;
            self.deliver_own(&log, &mut head, &mut members, &mut released, recovered_to).await;
        }
        Ok(())
    }

    /// What waits to be tried again holds its key: what comes behind it must wait.
    async fn hold_parked(&self, parked: &[Parked]) {
        let view = self.line.catalog.view();
        // What had no attempt yet takes its turn when its time has come.
        for Parked { seq, function, .. } in parked.iter().filter(|parked| parked.attempt > 0) {
            let Some(entry) = view.get(function) else { continue };
            if entry.config.triggers.iter().all(|trigger| trigger.order.is_none()) {
                continue;
            }
            match self.line.storage.log.get(*seq).await {
                Ok(Some(record)) if self.owns(&record) => {
                    if let Some(key) = entry.config.order_key(&record.entry.event) {
                        self.ordered.park(&(function.clone(), key), *seq);
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, seq = seq.0, "a parked event cannot be read; it may be overtaken")
                }
            }
        }
    }

    /// Delivers what is this runtime's own, until other events are, or the server stops.
    async fn deliver_own(
        self: &Arc<Self>,
        log: &Arc<dyn nexus_log::Log>,
        head: &mut watch::Receiver<Seq>,
        members: &mut watch::Receiver<Arc<Members>>,
        released: &mut watch::Receiver<u64>,
        recovered_to: Seq,
    ) {
        let mut next = self.tracker.read_to();
        loop {
            let until = *head.borrow_and_update();
            while next <= until && !self.stop.is_cancelled() {
                let records = match log.read(next, READ_MAX).await {
                    Ok(records) => records,
                    Err(error) => {
                        tracing::error!(%error, "the log cannot be read");
                        self.pause().await;
                        continue;
                    }
                };
                // Retention may have taken what is not there any more; it takes only what is delivered.
                let last = records.last().map_or(until, |r| r.seq);
                self.line.catalog.caught_up().await;
                let mut postponed = Vec::new();
                for record in records {
                    if !self.take(record, recovered_to, &mut postponed).await {
                        return;
                    }
                }
                if !self.postpone(&postponed).await {
                    return;
                }
                next = last.next();
                self.tracker.read_below(next);
                self.tell(log).await;
                if members.has_changed().unwrap_or(true) {
                    return;
                }
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                _ = members.changed() => return,
                // Dead letters are tried again: who owns them is not who was asked, perhaps.
                changed = released.changed() => if changed.is_ok() {
                    match log.progress().await {
                        Ok(progress) => self.retries.add(progress.parked),
                        Err(error) => {
                            tracing::error!(%error, "what was released cannot be read");
                            released.mark_changed();
                            self.pause().await;
                        }
                    }
                },
                // Before the new ones: under a load that never pauses they would never come to their turn.
                parked = self.retries.due() => self.retry(parked).await,
                changed = head.changed() => if changed.is_err() {
                    return self.stop.cancelled().await;
                },
                // An idle dispatcher has news for the log too: deliveries end.
                () = self.tracker.moved() => self.tell(log).await,
            }
        }
    }

    /// Waits until nothing is in flight, but not longer than `patience`. Returns whether all ended.
    pub async fn drain(&self, patience: Duration) -> bool {
        self.deliveries.close();
        let ended = tokio::time::timeout(patience, self.deliveries.wait()).await.is_ok();
        self.tell(&self.line.storage.log).await;
        ended
    }

    /// Announces that the caller itself will deliver the event with this id, before it is appended.
    pub fn claim(self: &Arc<Self>, event_id: &str) -> Claim {
        Claim::new(self.clone(), event_id)
    }

    /// Delivers an event that somebody claimed and could not settle.
    fn take_over(self: &Arc<Self>, record: Arc<Record>, in_flight: tracker::InFlight) {
        let Some(name) = record.entry.target.clone() else { return };
        let dispatcher = self.clone();
        self.deliveries.spawn(async move {
            dispatcher.pause().await;
            let settled = dispatcher.last_outcomes(record.seq).await.is_ok_and(|last| last.contains_key(&name));
            if settled {
                in_flight.settle();
            } else if !dispatcher.stop.is_cancelled() {
                dispatcher.begin(&record, name, 1, in_flight);
            }
        });
    }

    /// Runs a delivery that someone waits for in a task of its own, so that a client that goes away does not end it.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.deliveries.spawn(work)
    }

    /// Where an event is.
    pub async fn stage(&self, record: &Record) -> Result<Stage, StorageError> {
        let stage = match self.tracker.stage(record.seq) {
            // Of another runtime's events only the outcomes are known here, and how far all have come.
            Stage::Settled if !self.owns(record) && !self.all_came_to(record.seq) => Stage::Waiting,
            stage => stage,
        };
        if stage != Stage::Settled || record.entry.event.not_before().is_none() {
            return Ok(stage);
        }
        let parked = self.line.storage.log.parked(record.seq).await?;
        Ok(if parked.iter().any(|parked| parked.attempt == 0) { Stage::Later } else { Stage::Settled })
    }

    /// Whether the event is not to be delivered yet. One that is addressed to a function is a call, which is not put off.
    fn is_later(&self, record: &Record) -> bool {
        let event = &record.entry.event;
        record.entry.target.is_none() && event.not_before().is_some_and(|at| at > self.line.clock.now())
    }

    fn all_came_to(&self, seq: Seq) -> bool {
        seq < self.line.storage.log.delivered_below()
    }

    /// What other runtimes know by that this one delivers an event itself; none where there are no others.
    pub fn claimant(&self) -> Option<RuntimeId> {
        Some(self.members.read().me).filter(|me| *me != RuntimeId::default())
    }

    fn owns(&self, record: &Record) -> bool {
        self.members.read().owns(record)
    }

    /// Events in the log that are not settled.
    pub fn depth(&self) -> u64 {
        let head = *self.line.storage.log.head().borrow();
        self.tracker.unsettled(head)
    }

    /// Deliveries that wait to be tried again.
    pub fn parked(&self) -> usize {
        self.retries.len()
    }

    async fn pause(&self) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(STORAGE_PAUSE) => {}
        }
    }

    async fn tell(&self, log: &Arc<dyn nexus_log::Log>) {
        if let Some((below, epoch)) = self.tracker.news()
            && let Err(error) = log.advance(below, epoch).await
        {
            // It only means that a restart looks at more.
            tracing::warn!(%error, "progress not written");
        }
    }

    /// Parks deliveries until their time, and tries for as long as storage does not take them. Whether all are: else the server
    /// stops, and the next start reads them again.
    async fn postpone(&self, postponed: &[Parked]) -> bool {
        let (mut left, mut at_once) = (postponed, POSTPONED_AT_ONCE);
        while !left.is_empty() {
            let (some, rest) = left.split_at(at_once.min(left.len()));
            match self.line.storage.log.park(some.to_vec()).await {
                Ok(()) => {
                    self.retries.add(some.iter().cloned());
                    left = rest;
                }
                Err(StorageError::TooLarge { .. }) if at_once > 1 => at_once = at_once.min(some.len()).div_ceil(2),
                Err(error) => {
                    tracing::error!(%error, "deliveries for later cannot be written");
                    self.pause().await;
                    if self.stop.is_cancelled() {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// Routes one event and begins its deliveries, or adds them to those that are for later. Whether that is done: else the server
    /// stops, and the event must not count as read.
    async fn take(self: &Arc<Self>, record: Arc<Record>, recovered_to: Seq, postponed: &mut Vec<Parked>) -> bool {
        if !self.owns(&record) {
            return true;
        }
        if record.entry.target.is_some() && self.claims.seen(self, &record) {
            return true;
        }
        let mut targets: Vec<FunctionName> = match &record.entry.target {
            Some(name) => vec![name.clone()],
            None => self.line.catalog.view().route(&record.entry.event).map(|e| e.function.name.clone()).collect(),
        };
        if record.seq <= recovered_to && !targets.is_empty() {
            // A crash may have come after some of the outcomes were written, or another runtime may have written them.
            loop {
                match self.settled(record.seq).await {
                    Ok(settled) => {
                        // What is for later may be parked without an outcome.
                        let waits = |name: &FunctionName| self.retries.has(record.seq, name);
                        break targets.retain(|name| !settled.contains(name) && !waits(name));
                    }
                    Err(error) => tracing::error!(%error, seq = record.seq.0, "outcomes cannot be read"),
                }
                self.pause().await;
                if self.stop.is_cancelled() {
                    return false;
                }
            }
        }
        // What is in flight since before the runtimes changed is carried to its end.
        targets.retain(|name| !self.running.lock().contains(&(record.seq, name.clone())));
        if targets.is_empty() {
            return true;
        }
        if let Some(at) = record.entry.event.not_before().filter(|_| self.is_later(&record)) {
            let parked = |function| Parked { seq: record.seq, function, attempt: 0, at };
            postponed.extend(targets.into_iter().map(parked));
            return true;
        }
        let in_flight = self.tracker.begin(record.seq, targets.len());
        for name in targets {
            tokio::select! {
                // What is not begun stays unsettled.
                () = self.stop.cancelled() => return true,
                () = async { tokio::join!(self.lanes.place_to_wait(), self.ordered.place_to_wait()); } => {}
            }
            self.begin(&record, name, 1, in_flight.clone());
        }
        true
    }

    /// The functions whose part in the event is settled: delivered, given up, or parked.
    async fn settled(&self, seq: Seq) -> Result<HashSet<FunctionName>, StorageError> {
        let last = self.last_outcomes(seq).await?;
        // It may have been parked after what was parked was read.
        self.retries.add(last.values().filter_map(|outcome| match outcome.disposition {
            Disposition::Retry { at } => {
                Some(Parked { seq, function: outcome.function.clone(), attempt: outcome.attempt, at })
            }
            _ => None,
        }));
        Ok(last.into_keys().collect())
    }

    /// The last outcome of each function that the event was delivered to.
    async fn last_outcomes(&self, seq: Seq) -> Result<HashMap<FunctionName, Outcome>, StorageError> {
        let outcomes = self.line.storage.log.outcomes(seq).await?;
        let delivered = outcomes.into_iter().filter(|o| !matches!(o.disposition, Disposition::Replayed));
        Ok(delivered.map(|outcome| (outcome.function.clone(), outcome)).collect())
    }

    /// Begins a delivery, or lets it wait for those of its function that are before it.
    fn begin(self: &Arc<Self>, record: &Arc<Record>, name: FunctionName, attempt: u32, in_flight: tracker::InFlight) {
        let bytes = record.entry.event.data.as_ref().map_or(0, |d| d.as_bytes().len());
        let kib = u32::try_from(DELIVERY_KIB + bytes / 1024).unwrap_or(u32::MAX).min(self.room_kib);
        let entry = self.line.catalog.view().get(&name).cloned();
        let key = entry.and_then(|entry| entry.config.order_key(&record.entry.event)).map(|key| (name.clone(), key));
        let work = Work { seq: record.seq, name, attempt, kib, record: Some(record.clone()), key, in_flight };
        self.running.lock().insert((work.seq, work.name.clone()));
        let turn = match work.key.clone() {
            Some(key) => self.ordered.enter(&key, work),
            None => Some(work),
        };
        turn.into_iter().for_each(|work| self.enter_lane(work));
    }

    /// Lets a delivery begin, or wait for a place of its function.
    fn enter_lane(self: &Arc<Self>, work: Work) {
        if let Some(work) = self.lanes.enter(work) {
            self.spawn_delivery(work);
        }
    }

    fn spawn_delivery(self: &Arc<Self>, mut work: Work) {
        let room = self.room.clone().try_acquire_many_owned(work.kib).ok();
        if room.is_none() {
            // It is not to hold in memory what there is no room for.
            work.record = None;
        }
        let running = Running { dispatcher: self.clone(), work };
        self.deliveries.spawn(async move {
            let Running { dispatcher, work } = &running;
            let _room = match room {
                Some(room) => Some(room),
                // Never closed: an error cannot be.
                None => dispatcher.room.clone().acquire_many_owned(work.kib).await.ok(),
            };
            let ended = dispatcher.deliver(work).await;
            if let Ended::Stopped = ended {
                return;
            }
            dispatcher.running.lock().remove(&(work.seq, work.name.clone()));
            if !matches!(ended, Ended::Parked) {
                let next = work.key.as_ref().and_then(|key| dispatcher.ordered.leave(key, work.seq));
                next.into_iter().for_each(|work| dispatcher.enter_lane(work));
            }
            dispatcher.retries.ended(work.seq, &work.name);
            if let Ended::Elsewhere(record) = ended
                && dispatcher.owns(&record)
            {
                // It has become this runtime's again, while it was passed over here because it was in hand.
                let in_flight = dispatcher.tracker.begin(record.seq, 1);
                dispatcher.begin(&record, work.name.clone(), work.attempt, in_flight);
            }
            work.in_flight.settle();
        });
    }

    /// Delivers until there is an outcome.
    async fn deliver(&self, work: &Work) -> Ended {
        loop {
            let delivered = match &work.record {
                Some(record) => self.deliver_once(record, work).await,
                None => match self.line.storage.log.get(work.seq).await {
                    Ok(Some(record)) => self.deliver_once(&record, work).await,
                    // Retention takes nothing that is not delivered.
                    Ok(None) => {
                        tracing::error!(seq = work.seq.0, "an event to be delivered is not in the log");
                        return Ended::Settled;
                    }
                    Err(error) => Err(error),
                },
            };
            let error = match delivered {
                Ok(ended) => return ended,
                Err(error) => error,
            };
            tracing::error!(%error, seq = work.seq.0, function = %work.name, "no outcome written; delivering again");
            self.pause().await;
            // It may be there all the same: the answer was lost, and not what was asked.
            if let Ok(last) = self.last_outcomes(work.seq).await
                && let Some(outcome) = last.get(&work.name).filter(|outcome| outcome.attempt >= work.attempt)
            {
                let Disposition::Retry { at } = outcome.disposition else { return Ended::Settled };
                let (function, attempt) = (work.name.clone(), outcome.attempt);
                work.key.iter().for_each(|key| self.ordered.park(key, work.seq));
                self.retries.add([Parked { seq: work.seq, function, attempt, at }]);
                return Ended::Parked;
            }
            if self.stop.is_cancelled() {
                return Ended::Stopped;
            }
        }
    }

    async fn deliver_once(&self, record: &Arc<Record>, work: &Work) -> Result<Ended, StorageError> {
        let (name, attempt) = (&work.name, work.attempt);
        if !self.owns(record) {
            // It waited here while it became another runtime's.
            return Ok(Ended::Elsewhere(record.clone()));
        }
        let entry = self.line.catalog.view().get(name).cloned();
        let Some((entry, version)) = entry.and_then(|e| Some((e.clone(), e.function.current()?.clone()))) else {
            return self.line.give_up(record, name.clone(), attempt).await.map(|()| Ended::Settled);
        };
        if let Some(why) = expired(record, entry.config.trigger_for(&record.entry.event), self.line.clock.now()) {
            let ended = self.line.not_run(record, name.clone(), attempt, why, Disposition::Expired).await;
            return ended.map(|()| Ended::Settled);
        }
        // A call whose process died before it was answered: it runs all the same, for it was in the log.
        let http = record.entry.target.as_ref().and_then(|_| http_event::request_of(&record.entry.event));
        let delivery = Delivery {
            record: record.clone(),
            entry,
            version,
            attempt,
            trigger: if http.is_some() { TriggerKind::Http } else { TriggerKind::Pubsub },
            http,
            replay: None,
        };
        let delivered = self.line.deliver(delivery).await?;
        if let Disposition::Retry { at } = delivered.outcome.disposition {
            work.key.iter().for_each(|key| self.ordered.park(key, record.seq));
            self.retries.add([Parked { seq: record.seq, function: name.clone(), attempt, at }]);
            return Ok(Ended::Parked);
        }
        Ok(Ended::Settled)
    }

    /// Tries a parked delivery again.
    async fn retry(self: &Arc<Self>, parked: Parked) {
        let record = match self.line.storage.log.get(parked.seq).await {
            Ok(Some(record)) => record,
            // Parked events are never taken by retention.
            Ok(None) => {
                self.retries.ended(parked.seq, &parked.function);
                return tracing::error!(seq = parked.seq.0, "a parked event is not in the log");
            }
            Err(error) => {
                tracing::error!(%error, seq = parked.seq.0, "a parked event cannot be read");
                self.retries.ended(parked.seq, &parked.function);
                self.retries.add([parked]);
                return self.pause().await;
            }
        };
        if !self.owns(&record) {
            return self.retries.ended(parked.seq, &parked.function);
        }
        match self.last_outcomes(parked.seq).await {
            // Another runtime has tried it meanwhile.
            Ok(last) => {
                let last = last.get(&parked.function);
                let first = parked.attempt == 0 && last.is_none();
                let waits = |o: &Outcome| matches!(o.disposition, Disposition::Retry { .. } | Disposition::Dead);
                if !first && !last.is_some_and(|outcome| outcome.attempt == parked.attempt && waits(outcome)) {
                    self.retries.ended(parked.seq, &parked.function);
                    // It was tried elsewhere since what is parked was read, and waits again.
                    let again = last.and_then(|outcome| match outcome.disposition {
                        Disposition::Retry { at } => Some(Parked { attempt: outcome.attempt, at, ..parked }),
                        _ => None,
                    });
                    return self.retries.add(again);
                }
            }
            Err(error) => {
                tracing::error!(%error, seq = parked.seq.0, "a parked event's outcomes cannot be read");
                self.retries.ended(parked.seq, &parked.function);
                self.retries.add([parked]);
                return self.pause().await;
            }
        }
        if parked.attempt > 0 {
            self.line.telemetry.retrying(&record, &parked.function);
        }
        let in_flight = self.tracker.begin_again(parked.seq);
        self.begin(&record, parked.function, parked.attempt + 1, in_flight);
    }
}

/// How a delivery ended.
enum Ended {
    /// Done, or given up.
    Settled,
    /// Not begun: it is another runtime's.
    Elsewhere(Arc<Record>),
    /// It waits to be tried again.
    Parked,
    /// The server stops: the next start finds it so.
    Stopped,
}

/// A delivery that has its place in its function's lane, until it is dropped: also by a panic.
struct Running {
    dispatcher: Arc<Dispatcher>,
    work: Work,
}

impl Drop for Running {
    fn drop(&mut self) {
        let next = self.dispatcher.lanes.leave(&self.work.name, self.work.kib);
        // Once the server stops nothing more begins: it stays unsettled, for the next start.
        if !self.dispatcher.stop.is_cancelled() {
            next.into_iter().for_each(|work| self.dispatcher.spawn_delivery(work));
        }
    }
}
