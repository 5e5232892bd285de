//! The course of a replay: one delivery after the other, or many at once; held, gone on with, kept where it stands.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nexus_core::ids::{ReplayId, Seq};
use nexus_log::Revision;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Interval;

use super::deliveries::{self, Item};
use super::kept::{self, Kept};
use super::request::{ReplayRequest, ReplayResult, Status};
use super::{Orders, Replays, Work};

/// Events of a filter that are replayed at once, where nobody says how many: as many as most functions let run. Each waits for the disk
/// at its end.
const CONCURRENCY: usize = 100;
/// Events of a filter that are done before it is looked whether it is time to keep how far it has come, and how often that is.
const PART: usize = 4096;
const SAVE_PERIOD: Duration = Duration::from_secs(1);
/// A part ends when it has taken so long, so that a slow function's replay is kept now and then too.
const PART_TIME: Duration = Duration::from_secs(5);

/// What one task does.
enum Job {
    Item(Box<Item>),
    /// All deliveries of an event.
    Event(Seq),
}

/// Where a replay was kept last.
struct Saved {
    revision: Revision,
    at: Instant,
}

impl Replays {
    pub(super) async fn run(
        self: Arc<Self>,
        id: ReplayId,
        request: Arc<ReplayRequest>,
        work: Work,
        mut orders: Orders,
    ) {
        let mut pace = request.rate.map(|rate| {
            let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
            pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            pace
        });
        match work {
            Work::Items(items) => {
                let at_once = request.concurrency.unwrap_or(1);
                let items = items.into_iter().map(|item| Job::Item(Box::new(item))).collect();
                self.items_of(id, &request, items, at_once, &mut pace, &mut orders).await;
                let aborted = orders.stop.is_cancelled();
                self.with(id, |results| results.set(if aborted { Status::Aborted } else { Status::Done }));
            }
            Work::Events(events, revision) => self.events(id, &request, events, revision, &mut pace, &mut orders).await,
        }
    }

    /// Events in parts: after each all of it is done, and it is kept how far it has come.
    async fn events(
        self: &Arc<Self>,
        id: ReplayId,
        request: &Arc<ReplayRequest>,
        events: Vec<Seq>,
        revision: Revision,
        pace: &mut Option<Interval>,
        orders: &mut Orders,
    ) {
        let at_once = request.concurrency.unwrap_or(CONCURRENCY);
        let mut saved = Saved { revision, at: Instant::now() };
        // Where the pace is given, about a second's: what is not kept is done again after a kill.
        let size = request.rate.map_or(PART, |rate| (rate as usize).clamp(1, PART));
        let mut left = &events[..];
        while let Some(first) = left.first() {
            // Held too it goes on where it was, and stays held.
            if *orders.held.borrow() && !orders.stop.is_cancelled() {
                self.with(id, |results| results.set(Status::Paused));
                if !self.save(id, request, *first, &mut saved).await {
                    return self.forget(id);
                }
                self.wait_while_held(id, orders).await;
                self.with(id, |results| results.set(Status::Running));
            }
            if orders.stop.is_cancelled() {
                break;
            }
            let part = &left[..size.min(left.len())];
            let mut jobs = part.iter().copied().map(Job::Event).collect();
            let begun = self.all_of(id, request, &mut jobs, at_once, pace, orders).await;
            let next = left[..begun].last().map_or(*first, |last| last.next());
            left = &left[begun..];
            if saved.at.elapsed() >= SAVE_PERIOD && !self.save(id, request, next, &mut saved).await {
                // Nobody does an event twice: what is said of it from now on is what is kept.
                return self.forget(id);
            }
        }
        // A server that stops leaves it to be gone on with, from here.
        if self.stop.is_cancelled() {
            if let Some(first) = left.first() {
                self.save(id, request, *first, &mut saved).await;
            }
            return;
        }
        let aborted = orders.stop.is_cancelled();
        self.with(id, |results| results.set(if aborted { Status::Aborted } else { Status::Done }));
        if !self.save(id, request, Seq(u64::MAX), &mut saved).await {
            self.forget(id);
        }
    }

    /// Keeps a replay where it stands; `false`: another runtime has gone on with it, which took this one for gone. Where it cannot be
    /// kept, more is done again after a restart.
    async fn save(&self, id: ReplayId, request: &ReplayRequest, next: Seq, saved: &mut Saved) -> bool {
        let Some(view) = self.here(id) else { return false };
        let kept = Kept { request: request.clone(), view, owner: self.me(), next };
        saved.at = Instant::now();
        let registry = &self.line.storage.registry;
        match kept::save(registry, &kept, Some(saved.revision)).await {
            Ok(Some(revision)) => saved.revision = revision,
            Ok(None) => match kept::one(registry, id).await {
                // Written before, though the answer was lost.
                Ok(Some((kept, revision))) if kept.owner == self.me() => saved.revision = revision,
                Ok(_) => {
                    tracing::warn!(replay = %id, "another runtime has gone on with this replay; it ends here");
                    return false;
                }
                Err(error) => tracing::warn!(replay = %id, %error, "it is not kept how far this replay has come"),
            },
            Err(error) => tracing::warn!(replay = %id, %error, "it is not kept how far this replay has come"),
        }
        true
    }

    /// All of them, to their end, or until it is told to stop.
    async fn items_of(
        self: &Arc<Self>,
        id: ReplayId,
        request: &Arc<ReplayRequest>,
        mut items: VecDeque<Job>,
        at_once: usize,
        pace: &mut Option<Interval>,
        orders: &mut Orders,
    ) {
        while !items.is_empty() && !orders.stop.is_cancelled() {
            self.wait_while_held(id, orders).await;
            self.all_of(id, request, &mut items, at_once, pace, orders).await;
        }
    }

    /// The first of them, to their end: all, or as many as were begun until it was told to stop or to hold. They are taken out.
    async fn all_of(
        self: &Arc<Self>,
        id: ReplayId,
        request: &Arc<ReplayRequest>,
        jobs: &mut VecDeque<Job>,
        at_once: usize,
        pace: &mut Option<Interval>,
        orders: &mut Orders,
    ) -> usize {
        let permits = Arc::new(Semaphore::new(at_once));
        let mut running = JoinSet::new();
        let mut begun = 0;
        let until = Instant::now() + PART_TIME;
        while !jobs.is_empty() && (begun == 0 || Instant::now() < until) {
            if let Some(pace) = pace {
                tokio::select! {
                    () = orders.stop.cancelled() => {}
                    // Its sender is with the replay, which is there while it runs.
                    Ok(()) = orders.held.changed() => {}
                    _ = pace.tick() => {}
                }
            }
            let Ok(permit) = permits.clone().acquire_owned().await else { break };
            if orders.stop.is_cancelled() || *orders.held.borrow() {
                break;
            }
            let Some(job) = jobs.pop_front() else { break };
            begun += 1;
            while let Some(ended) = running.try_join_next() {
                self.lost(id, request, ended);
            }
            let (this, request) = (self.clone(), request.clone());
            running.spawn(async move {
                let items = match job {
                    Job::Item(item) => vec![*item],
                    Job::Event(seq) => this.found(id, seq, &request).await,
                };
                for item in items {
                    let result = item.replay(&this.line, id, &request).await;
                    this.note(id, &request, result);
                }
                drop(permit);
            });
        }
        while let Some(ended) = running.join_next().await {
            self.lost(id, request, ended);
        }
        begun
    }

    /// One that broke off inside Nexus is a result too; a replay never ends without its end.
    fn lost(&self, id: ReplayId, request: &ReplayRequest, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            tracing::error!(replay = %id, %error, "a delivery of a replay broke off");
            let why = "it broke off inside Nexus; the log of the server says where".to_owned();
            self.note(id, request, ReplayResult::failed("unknown".into(), String::new(), String::new(), why));
        }
    }

    async fn wait_while_held(&self, id: ReplayId, orders: &mut Orders) {
        while *orders.held.borrow_and_update() && !orders.stop.is_cancelled() {
            self.with(id, |results| results.set(Status::Paused));
            tokio::select! {
                () = orders.stop.cancelled() => {}
                // Its sender is with the replay, which is there while it runs.
                changed = orders.held.changed() => if changed.is_err() { break },
            }
            self.with(id, |results| results.set(Status::Running));
        }
    }

    /// The deliveries of an event that a filter found; where they cannot be read, that is a result.
    async fn found(&self, id: ReplayId, seq: Seq, request: &ReplayRequest) -> Vec<Item> {
        let found = match self.line.storage.log.get(seq).await {
            Ok(Some(record)) => {
                deliveries::of(&self.line, &record, request, Some(id)).await.map_err(|error| error.to_string())
            }
            // Retention took it meanwhile.
            Ok(None) => Ok(Vec::new()),
            Err(error) => Err(error.to_string()),
        };
        match found {
            Ok(items) => {
                self.with(id, |results| results.found(items.len()));
                items
            }
            Err(why) => {
                let event = format!("place {seq}");
                self.note(id, request, ReplayResult::failed(event, String::new(), String::new(), why));
                Vec::new()
            }
        }
    }
}
