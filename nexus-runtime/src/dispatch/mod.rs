//! Reads the log and sends each event to the functions that want it, until there is an outcome for each.
//!
//! The log is the queue: nothing is handed over in memory that a crash could lose. What is in flight is bounded, and
//! how far delivery has come is told to the log, so that a restart begins there.

mod claims;
mod retries;
mod tracker;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use nexus_core::ids::{FunctionName, Seq};
use nexus_core::outcome::{Disposition, TriggerKind};
use nexus_core::record::Record;
use nexus_log::{Parked, StorageError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::Entry;
use crate::gateway::http_event;
use crate::line::{Delivery, Line};

pub use claims::Claim;

/// Events that are read at once.
const READ_MAX: usize = 512;
/// What a delivery in flight counts at least, in KiB: its tasks and its instance's state.
const DELIVERY_KIB: usize = 16;
/// The wait after storage could not be read, or a delivery's outcome not be written.
const STORAGE_PAUSE: Duration = Duration::from_millis(500);

/// Sends events to functions.
pub struct Dispatcher {
    line: Arc<Line>,
    tracker: tracker::Tracker,
    claims: claims::Claims,
    retries: retries::Retries,
    room: Arc<Semaphore>,
    room_kib: u32,
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
    /// Every delivery has an outcome, or waits to be tried again.
    Settled,
}

impl Dispatcher {
    /// A dispatcher that holds at most `room_kib` of deliveries in memory. It begins when [`Dispatcher::run`] is polled.
    pub fn new(line: Arc<Line>, room_kib: u32, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            line,
            tracker: tracker::Tracker::default(),
            claims: claims::Claims::default(),
            retries: retries::Retries::default(),
            room: Arc::new(Semaphore::new(room_kib as usize)),
            room_kib,
            deliveries: TaskTracker::new(),
            stop,
        })
    }

    /// Runs until told to stop; what is in flight then is waited for by [`Dispatcher::drain`].
    pub async fn run(self: Arc<Self>) -> Result<(), StorageError> {
        let log = self.line.storage.log.clone();
        let progress = log.progress().await?;
        let mut head = log.head();
        let recovered_to = *head.borrow_and_update();
        self.tracker.start_at(progress.delivered_below.max(Seq(1)));
        self.retries.add(progress.parked);
        let mut next = self.tracker.below();
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
                for record in records {
                    self.take(Arc::new(record), recovered_to).await;
                }
                next = last.next();
                self.tracker.read_below(next);
                self.tell(&log).await;
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                changed = head.changed() => if changed.is_err() { return Ok(()) },
                parked = self.retries.due() => self.retry(parked).await,
                // An idle dispatcher has news for the log too: deliveries end.
                () = self.tracker.moved() => self.tell(&log).await,
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

    /// Runs a delivery that someone waits for in a task of its own, so that a client that goes away does not end it.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.deliveries.spawn(work)
    }

    /// Where an event is.
    pub fn stage(&self, seq: Seq) -> Stage {
        self.tracker.stage(seq)
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
        if let Some(below) = self.tracker.news()
            && let Err(error) = log.advance(below).await
        {
            // It only means that a restart looks at more.
            tracing::warn!(%error, "progress not written");
        }
    }

    /// Routes one event and begins its deliveries.
    async fn take(self: &Arc<Self>, record: Arc<Record>, recovered_to: Seq) {
        if record.entry.target.is_some() && self.claims.seen(self, &record) {
            return;
        }
        let view = self.line.catalog.view();
        let mut targets: Vec<(FunctionName, Option<Arc<Entry>>)> = match &record.entry.target {
            Some(name) => vec![(name.clone(), view.get(name).cloned())],
            None => view.route(&record.entry.event).map(|e| (e.function.name.clone(), Some(e.clone()))).collect(),
        };
        if record.seq <= recovered_to && !targets.is_empty() {
            // A crash may have come after some of the outcomes were written.
            match self.settled(record.seq).await {
                Ok(settled) => targets.retain(|(name, _)| !settled.contains(name)),
                Err(error) => tracing::error!(%error, seq = record.seq.0, "outcomes cannot be read"),
            }
        }
        if targets.is_empty() {
            return;
        }
        let in_flight = self.tracker.begin(record.seq, targets.len());
        for (name, entry) in targets {
            let room = self.room_for(&record).await;
            self.spawn_delivery(record.clone(), name, entry, 1, in_flight.clone(), room);
        }
    }

    /// The functions whose part in the event is settled: delivered, given up, or parked.
    async fn settled(&self, seq: Seq) -> Result<HashSet<FunctionName>, StorageError> {
        let outcomes = self.line.storage.log.outcomes(seq).await?;
        Ok(outcomes
            .into_iter()
            .filter(|o| !matches!(o.disposition, Disposition::Replayed))
            .map(|o| o.function)
            .collect())
    }

    async fn room_for(&self, record: &Record) -> Option<OwnedSemaphorePermit> {
        let bytes = record.entry.event.data.as_ref().map_or(0, |d| d.as_bytes().len());
        let kib = u32::try_from(DELIVERY_KIB + bytes / 1024).unwrap_or(u32::MAX).min(self.room_kib);
        // Never closed: an error cannot be.
        self.room.clone().acquire_many_owned(kib).await.ok()
    }

    fn spawn_delivery(
        self: &Arc<Self>,
        record: Arc<Record>,
        name: FunctionName,
        entry: Option<Arc<Entry>>,
        attempt: u32,
        in_flight: tracker::InFlight,
        room: Option<OwnedSemaphorePermit>,
    ) {
        let this = self.clone();
        self.deliveries.spawn(async move {
            let _room = room;
            loop {
                match this.deliver_once(&record, &name, entry.as_ref(), attempt).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::error!(%error, event_id = record.entry.event.id, "outcome not written; delivering again");
                        this.pause().await;
                        if this.stop.is_cancelled() {
                            // Not settled: the next start finds it so.
                            in_flight.abandon();
                            return;
                        }
                    }
                }
            }
            drop(in_flight);
        });
    }

    async fn deliver_once(
        &self,
        record: &Arc<Record>,
        name: &FunctionName,
        entry: Option<&Arc<Entry>>,
        attempt: u32,
    ) -> Result<(), StorageError> {
        let Some((entry, version)) = entry.and_then(|e| Some((e, e.function.current()?.clone()))) else {
            return self.line.give_up(record, name.clone(), attempt).await;
        };
        // A call whose process died before it was answered: it runs all the same, for it was in the log.
        let http = record.entry.target.as_ref().and_then(|_| http_event::request_of(&record.entry.event));
        let delivery = Delivery {
            record: record.clone(),
            entry: entry.clone(),
            version,
            attempt,
            trigger: if http.is_some() { TriggerKind::Http } else { TriggerKind::Pubsub },
            http,
            replay: None,
        };
        let delivered = self.line.deliver(delivery).await?;
        if let Disposition::Retry { at } = delivered.outcome.disposition {
            self.retries.add([Parked { seq: record.seq, function: name.clone(), attempt, at }]);
        }
        Ok(())
    }

    /// Tries a parked delivery again.
    async fn retry(self: &Arc<Self>, parked: Parked) {
        let record = match self.line.storage.log.get(parked.seq).await {
            Ok(Some(record)) => Arc::new(record),
            // Parked events are never taken by retention.
            Ok(None) => return tracing::error!(seq = parked.seq.0, "a parked event is not in the log"),
            Err(error) => {
                tracing::error!(%error, seq = parked.seq.0, "a parked event cannot be read");
                self.retries.add([parked]);
                return self.pause().await;
            }
        };
        self.line.telemetry.retrying(&record, &parked.function);
        let entry = self.line.catalog.view().get(&parked.function).cloned();
        let in_flight = self.tracker.begin_again(parked.seq);
        let room = self.room_for(&record).await;
        self.spawn_delivery(record, parked.function, entry, parked.attempt + 1, in_flight, room);
    }
}
