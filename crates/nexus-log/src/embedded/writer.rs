//! The one thread that writes: group commit, and what happens when a write fails.

use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fjall::PersistMode;
use nexus_core::threads;

use super::core::{Core, again, full, step};
use super::directory::{self, Content, Directory};
use super::plan::Plan;
use super::queue::Taken;
use super::request::{Pending, Request};
use super::shared::Shared;
use super::store::{Store, failed};
use super::{EmbeddedConfig, journal};
use crate::contract::StorageError;

/// How long a mark of `advance` may wait for a batch to go along with.
const IDLE: Duration = Duration::from_secs(1);
/// The first pause before the store is opened again after a failed write; doubled each time.
const REOPEN_PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest.
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a group waits for the library to write out what it keeps in memory, before the store counts as failed.
const SETTLE_PATIENCE: Duration = Duration::from_secs(30);
/// How long re-opening waits for reads of the old store.
const READS_PATIENCE: Duration = Duration::from_secs(2);

/// Opens everything and starts the thread. Blocks.
pub(crate) fn start(config: EmbeddedConfig) -> Result<(Arc<Shared>, JoinHandle<()>), StorageError> {
    let directory = Directory::take(&config.data_dir, &Content::Log)?;
    directory::remove_temporary(&directory.artifacts())
        .map_err(|e| StorageError::Failed(format!("tidying {}: {e}", config.data_dir.display())))?;
    let shared = Arc::new(Shared::new(config, directory));
    let core = Core::open(&shared)?;
    let writer =
        Writer { shared: shared.clone(), core: Some(core), old: None, pause: REOPEN_PAUSE_MIN, next_try: None };
    let thread = threads::spawn(threads::LOG, move || writer.run())
        .map_err(|e| StorageError::Failed(format!("starting the log's thread: {e}")))?;
    Ok((shared, thread))
}

struct Writer {
    shared: Arc<Shared>,
    core: Option<Core>,
    /// The store after a failed write, until nobody reads from it any more.
    old: Option<Arc<Store>>,
    pause: Duration,
    next_try: Option<Instant>,
}

/// Answers whoever waits when the thread ends, also if it ends by a panic.
struct CloseOnExit(Arc<Shared>);

impl Drop for CloseOnExit {
    fn drop(&mut self) {
        self.0.queue.close();
        while let Taken::Group(requests) = self.0.queue.take(Duration::ZERO) {
            requests.into_iter().for_each(|request| request.refuse(StorageError::Closed));
        }
    }
}

impl Writer {
    fn run(mut self) {
        let _nobody_waits_for_ever = CloseOnExit(self.shared.clone());
        loop {
            threads::checkpoint();
            match self.shared.queue.take(IDLE) {
                Taken::Group(requests) => self.group(requests),
                Taken::Idle => self.idle(),
                Taken::Closed => break,
            }
        }
        self.close();
    }

    fn group(&mut self, requests: Vec<Request>) {
        if self.core.is_none() {
            self.reopen();
        }
        if self.core.is_none() {
            let failure = self.failure("the store waits to be opened again after a failed write".to_owned());
            return requests.into_iter().for_each(|request| request.refuse(again(&failure)));
        }
        let mut pending = Vec::with_capacity(requests.len());
        if let Err(error) = self.write(requests, &mut pending) {
            tracing::error!(error = %error, "a group of writes failed; the store will be opened again");
            self.give_up();
            let failure = self.failure(error.to_string());
            pending.into_iter().for_each(|answer| answer.finish(Some(again(&failure))));
        }
    }

    /// Plans, writes, syncs, publishes and answers. After an error what is in `pending` is still to be answered.
    fn write(&mut self, requests: Vec<Request>, pending: &mut Vec<Pending>) -> Result<(), StorageError> {
        let Some(core) = &mut self.core else { return Err(StorageError::Closed) };
        let shared = &self.shared;
        let ready = core.store.settle(SETTLE_PATIENCE).and_then(|()| shared.directory()?.free_bytes());
        let free = match ready {
            Ok(free) => free,
            Err(error) => {
                requests.into_iter().for_each(|request| request.refuse(again(&error)));
                return Err(error);
            }
        };
        let mut plan = Plan::new(&core.store, &mut core.state, shared, shared.config.clock.now());
        plan.advance(shared.advanced_to().1);
        let mut requests = requests.into_iter();
        let mut spoiled = None;
        for request in requests.by_ref() {
            if let Some(full) = full(&request, free, shared.config.reserve_bytes) {
                request.refuse(full);
                continue;
            }
            match step(&mut plan, request) {
                Ok(answer) => pending.extend(answer),
                Err(error) => {
                    spoiled = Some(error);
                    break;
                }
            }
        }
        if let Some(error) = spoiled {
            requests.for_each(|request| request.refuse(StorageError::Failed(error.to_string())));
            return Err(error);
        }
        if plan.writes() {
            let (batch, published) = plan.finish();
            batch.durability(Some(PersistMode::SyncData)).commit().map_err(failed)?;
            core.publish(shared, published);
        }
        pending.drain(..).for_each(|answer| answer.finish(None));
        Ok(())
    }

    /// Nothing came for a while: writes a mark of `advance` that no batch took along. Not synced, as the contract allows.
    fn idle(&mut self) {
        let below = self.shared.advanced_to().1;
        let Some(core) = &mut self.core else { return self.reopen() };
        if below <= core.state.durable_below {
            return;
        }
        let mut plan = Plan::new(&core.store, &mut core.state, &self.shared, self.shared.config.clock.now());
        plan.advance(below);
        let (batch, published) = plan.finish();
        match batch.durability(Some(PersistMode::Buffer)).commit() {
            Ok(()) => core.publish(&self.shared, published),
            Err(error) => {
                tracing::error!(error = %failed(error), "writing the mark of delivery failed; the store will be opened again");
                self.give_up();
            }
        }
    }

    /// Lets go of a store that failed: what it holds in memory may be more than what is on disk.
    fn give_up(&mut self) {
        self.shared.set_store(None);
        self.old = self.core.take().map(|core| core.store);
        self.next_try = None;
    }

    /// Opens the store again, unless that was tried a moment ago.
    fn reopen(&mut self) {
        if self.next_try.is_some_and(|at| Instant::now() < at) {
            return;
        }
        match self.try_reopen() {
            Ok(core) => {
                tracing::info!(head = core.state.counters.next_seq.0 - 1, "the store is open again");
                self.core = Some(core);
                self.pause = REOPEN_PAUSE_MIN;
                self.next_try = None;
            }
            Err(error) => {
                tracing::warn!(error = %error, pause_ms = self.pause.as_millis() as u64, "opening the store again failed");
                self.next_try = Some(Instant::now() + self.pause);
                self.pause = (self.pause * 2).min(REOPEN_PAUSE_MAX);
            }
        }
    }

    fn try_reopen(&mut self) -> Result<Core, StorageError> {
        let directory = self.shared.directory()?;
        let (free_bytes, reserve_bytes) = (directory.free_bytes()?, self.shared.config.reserve_bytes / 4);
        if free_bytes < reserve_bytes {
            return Err(StorageError::Full { free_bytes, reserve_bytes });
        }
        if let Some(old) = self.old.take() {
            // The library's lock on its directory goes with its last handle.
            self.old = release(old, READS_PATIENCE);
            if self.old.is_some() {
                return Err(StorageError::Failed("reads of the old store still run".to_owned()));
            }
        }
        // After a failed sync the kernel may call pages clean that never reached the disk. They are written anew, so that
        // what is read back now is what is there after a power loss.
        journal::rewrite_newest(&directory.database())
            .map_err(|e| StorageError::Failed(format!("rewriting the journal: {e}")))?;
        Core::open(&self.shared)
    }

    /// Why a request cannot be served, in the words that help most.
    fn failure(&self, why: String) -> StorageError {
        let reserve_bytes = self.shared.config.reserve_bytes;
        match self.shared.directory().and_then(|directory| directory.free_bytes()) {
            Ok(free_bytes) if free_bytes < reserve_bytes => StorageError::Full { free_bytes, reserve_bytes },
            _ => StorageError::Failed(why),
        }
    }

    fn close(mut self) {
        self.shared.set_store(None);
        if let Some(core) = self.core.take() {
            let below = self.shared.advanced_to().1;
            let Core { store, mut state } = core;
            if below > state.durable_below {
                let mut plan = Plan::new(&store, &mut state, &self.shared, self.shared.config.clock.now());
                plan.advance(below);
                let (batch, _) = plan.finish();
                if let Err(error) = batch.durability(Some(PersistMode::SyncData)).commit() {
                    // An older mark only makes more be looked at again.
                    tracing::warn!(error = %failed(error), "the mark of delivery was not written at closing");
                }
            }
            self.old = Some(store);
        }
        while let Some(old) = self.old.take() {
            // Every read is bounded, so this ends.
            self.old = release(old, READS_PATIENCE);
        }
        *self.shared.directory.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Drops the store when nobody else has it; gives it back if somebody still does after `patience`.
pub(crate) fn release(mut store: Arc<Store>, patience: Duration) -> Option<Arc<Store>> {
    let until = Instant::now() + patience;
    loop {
        match Arc::try_unwrap(store) {
            Ok(_) => return None,
            Err(shared) => store = shared,
        }
        if Instant::now() >= until {
            return Some(store);
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
}
