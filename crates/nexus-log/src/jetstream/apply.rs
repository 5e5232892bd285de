//! The way in: what comes in the stream's order is planned and written to the copy, and whoever waits for it is answered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::Message;
use bytes::Bytes;
use fjall::PersistMode;
use nexus_core::ids::Seq;
use nexus_core::threads;
use tokio::sync::{mpsc, watch};
use xxhash_rust::xxh3::xxh3_64;

use super::broken::Broken;
use super::outbox::Outbox;
use super::wire::{self, Head, Write};
use crate::contract::StorageError;
use crate::embedded::codec::{self, Envelope};
use crate::embedded::core::{Core, again, step};
use crate::embedded::membership::Beat;
use crate::embedded::plan::Plan;
use crate::embedded::request::{Pending, Removal, Removed, Request};
use crate::embedded::shared::Shared;
use crate::embedded::state::{APPLIED_KEY, State};
use crate::embedded::store::{Store, failed};
use crate::embedded::writer::release;

/// The most messages that are written as one batch.
const BATCH_MAX: usize = 64;
/// How long a batch waits for the library to write out what it keeps in memory.
const SETTLE_PATIENCE: Duration = Duration::from_secs(30);
/// The pause before the copy is opened again after a failed write.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// How long re-opening waits for reads of the old store.
const READS_PATIENCE: Duration = Duration::from_secs(2);
/// Of so many messages it is remembered what was known after them, to compare with what others knew.
const DIGESTS_MAX: usize = 4096;

/// What the applying thread gets.
pub(crate) enum Entry {
    /// The next message.
    Message(Box<Message>),
    /// What asks only.
    Local(Request),
    /// Nothing more.
    Close,
}

/// How far the copy has come, and where it wants the stream to go on from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// The last message that is in it.
    pub(crate) message: u64,
    /// A hash of what is known after it; 0 where that is not known, after opening.
    pub(crate) digest: u64,
    /// Raised when the stream must go on from there, because what comes does not follow.
    pub(crate) restarts: u64,
}

/// The one thread that writes to the copy.
pub(crate) struct Applier {
    pub(crate) shared: Arc<Shared>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) entries: mpsc::Receiver<Entry>,
    pub(crate) applied: watch::Sender<Applied>,
    pub(crate) core: Option<Core>,
    /// Of which log this is a copy.
    pub(crate) log: u64,
    pub(crate) digests: VecDeque<(u64, u64)>,
    pub(crate) broken: Broken,
}

/// The next message, read.
struct Incoming {
    number: u64,
    published_ms: u64,
    head: Head,
    payload: Bytes,
}

/// The last message that a store has taken in.
pub(crate) fn applied(store: &Store) -> Result<u64, StorageError> {
    match store.meta.get(APPLIED_KEY).map_err(failed)? {
        Some(value) => Ok(u64::from_be_bytes(codec::bytes(&value, 0)?)),
        None => Ok(0),
    }
}

/// Of what all copies must agree on after a message.
fn digest(state: &State) -> u64 {
    let mut known = state.counters.encode();
    known.extend_from_slice(&state.membership.epoch.to_be_bytes());
    known.extend_from_slice(&(state.parked.len() as u64).to_be_bytes());
    xxh3_64(&known).max(1)
}

impl Applier {
    /// Runs on a thread of its own, until it is told to close.
    pub(crate) fn run(mut self) {
        let _nobody_waits_for_ever = self.broken.guard("takes messages in");
        let mut entries = Vec::with_capacity(BATCH_MAX);
        'all: loop {
            threads::checkpoint();
            if self.entries.blocking_recv_many(&mut entries, BATCH_MAX) == 0 {
                break;
            }
            let mut messages = Vec::new();
            for entry in entries.drain(..) {
                match entry {
                    Entry::Message(message) => messages.push(*message),
                    Entry::Local(request) => {
                        self.take_in(std::mem::take(&mut messages));
                        self.answer(request);
                    }
                    Entry::Close => {
                        self.take_in(std::mem::take(&mut messages));
                        break 'all;
                    }
                }
            }
            self.take_in(messages);
        }
        self.close();
    }

    /// Answers what asks only.
    fn answer(&mut self, request: Request) {
        let Some(core) = &mut self.core else {
            return request.refuse(StorageError::Failed("the copy is being opened again".to_owned()));
        };
        let mut plan = Plan::new(&core.store, &mut core.state, &self.shared, self.shared.config.clock.now());
        if let Ok(Some(answer)) = step(&mut plan, request) {
            answer.finish(None);
        }
    }

    /// Takes messages in. Where that fails, the copy is opened again, and the stream goes on from what is in it.
    fn take_in(&mut self, messages: Vec<Message>) {
        if messages.is_empty() || self.broken.is() {
            return;
        }
        if self.core.is_none() && !self.reopen() {
            return;
        }
        let mut pending = Vec::new();
        let Err(error) = self.write(messages, &mut pending) else { return };
        pending.into_iter().for_each(|answer: Pending| answer.finish(Some(again(&error))));
        match error {
            // To go on without it would be to have another state than the others.
            StorageError::Newer { .. } | StorageError::Other(_) => {
                tracing::error!(%error, "the log in NATS cannot be followed any further");
                self.broken.off(error.to_string());
            }
            error => {
                tracing::error!(%error, "writing to the copy of the log failed; it will be opened again");
                self.shared.set_store(None);
                if let Some(core) = self.core.take() {
                    // Its lock goes with its last handle.
                    drop(release(core.store, READS_PATIENCE));
                }
                self.reopen();
            }
        }
    }

    /// Reads a message that follows on what is here. `None`: it is here already.
    fn read(&mut self, message: &Message, at: u64) -> Result<Option<Incoming>, StorageError> {
        // Whatever is wrong with a message is wrong for all, and no reason to open the copy again.
        let strange = |error: &dyn std::fmt::Display| StorageError::Other(format!("a message of the stream: {error}"));
        let info = message.info().map_err(|error| strange(&error))?;
        let number = info.stream_sequence;
        if number <= at {
            return Ok(None);
        }
        let published_ms = u64::try_from(info.published.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        let payload = message.payload.clone();
        let head = wire::decode_head(&payload).map_err(|error| match error {
            newer @ StorageError::Newer { .. } => newer,
            other => strange(&format!("{other} (message {number})")),
        })?;
        if head.log != self.log {
            return Err(strange(&format!("message {number} is of another log: the stream was deleted and made anew")));
        }
        let (known_at, known) = head.applied;
        let ours = self.digests.iter().rev().find(|(message, _)| *message == known_at);
        if let Some((_, ours)) = ours.filter(|(_, ours)| known != 0 && *ours != known) {
            return Err(StorageError::Other(format!(
                "runtime {} knew something else after message {known_at} than this one ({known:016x}, and here {ours:016x}): one \
                 of the copies is wrong. Remove the data directory of the one that is, all that is in it is a copy; and please \
                 report it",
                head.id.runtime
            )));
        }
        Ok(Some(Incoming { number, published_ms, head, payload }))
    }

    fn write(&mut self, messages: Vec<Message>, pending: &mut Vec<Pending>) -> Result<(), StorageError> {
        let settled = self.core.as_ref().ok_or(StorageError::Closed)?.store.settle(SETTLE_PATIENCE);
        settled?;
        let mut at = self.applied.borrow().message;
        let mut messages = messages.into_iter();
        let mut next = messages.next();
        while let Some(first) = next.take() {
            let now = self.shared.config.clock.now();
            // What is planned must not hang on which messages are planned together: one that removes is planned alone, for what
            // it removes is looked up in the store.
            let mut digests = Vec::new();
            let mut message = Some(first);
            let (mut batch_of, mut planned) = (Vec::new(), 0);
            while let Some(one) = message {
                let Some(incoming) = self.read(&one, at)? else {
                    message = messages.next();
                    continue;
                };
                if incoming.number != at + 1 {
                    // What comes does not follow on what is here: it is asked for anew.
                    self.applied.send_modify(|applied| applied.restarts += 1);
                    messages = Vec::new().into_iter();
                    break;
                }
                let own = self.outbox.take(incoming.head.id);
                let writes = writes(&incoming.payload, own)?;
                let removes = writes.iter().any(Write::removes);
                if removes && planned > 0 {
                    // It begins the next batch: what is before it comes first.
                    batch_of.push((incoming, writes, true));
                    break;
                }
                at = incoming.number;
                planned += 1;
                batch_of.push((incoming, writes, false));
                if removes || planned >= BATCH_MAX {
                    next = messages.next();
                    break;
                }
                message = messages.next();
            }
            let after = match batch_of.last() {
                Some((.., true)) => batch_of.pop(),
                _ => None,
            };
            self.write_batch(batch_of, now, &mut digests, pending)?;
            if let Some((incoming, writes, _)) = after {
                at = incoming.number;
                self.write_batch(vec![(incoming, writes, false)], now, &mut digests, pending)?;
                next = messages.next();
            }
        }
        Ok(())
    }

    /// Plans these messages, writes what comes of them, and answers who waits.
    fn write_batch(
        &mut self,
        batch: Vec<(Incoming, Vec<Write>, bool)>,
        now: jiff::Timestamp,
        digests: &mut Vec<(u64, u64)>,
        pending: &mut Vec<Pending>,
    ) -> Result<(), StorageError> {
        let Some(core) = &mut self.core else { return Err(StorageError::Closed) };
        if batch.is_empty() {
            return Ok(());
        }
        let store = core.store.clone();
        let mut last = 0;
        let mut plan = Plan::new(&core.store, &mut core.state, &self.shared, now);
        for (Incoming { number, published_ms, head, .. }, writes, _) in batch {
            plan.begin_message(number, head.now, head.window);
            plan.beat(&Beat {
                runtime: head.id.runtime,
                epoch: head.epoch,
                below: head.below,
                leaves: head.leaves,
                published_ms,
            });
            let mut removals = Vec::new();
            for write in writes {
                match write {
                    Write::Request(Request::Remove { removal, answer }) => removals.push((removal, Some(answer))),
                    Write::Request(request) => pending.extend(step(&mut plan, request)?),
                    Write::Remove { seqs, floor } => {
                        let events = seqs.into_iter().map(unknown).collect();
                        removals.push((Removal { events, floor }, None));
                    }
                }
            }
            for (removal, answer) in removals {
                let gone = plan.remove(look_up(&store, removal)?)?;
                pending.extend(answer.map(|answer| Pending::Count(answer, gone)));
            }
            digests.push((number, digest(plan.state())));
            last = number;
        }
        let (batch, published) = plan.finish();
        batch.durability(Some(PersistMode::Buffer)).commit().map_err(failed)?;
        core.publish(&self.shared, published);
        self.digests.extend(digests.drain(..));
        while self.digests.len() > DIGESTS_MAX {
            self.digests.pop_front();
        }
        let digest = self.digests.back().map_or(0, |(_, digest)| *digest);
        self.applied.send_modify(|applied| (applied.message, applied.digest) = (last, digest));
        pending.drain(..).for_each(|answer| answer.finish(None));
        Ok(())
    }

    /// Opens the copy again after a failed write. Whether it is open.
    fn reopen(&mut self) -> bool {
        let opened = Core::open(&self.shared).and_then(|core| Ok((applied(&core.store)?, core)));
        match opened {
            Ok((message, core)) => {
                self.core = Some(core);
                self.digests.clear();
                self.applied.send_modify(|applied| {
                    (applied.message, applied.digest) = (message, 0);
                    applied.restarts += 1;
                });
                tracing::info!(message, "the copy of the log is open again");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "opening the copy of the log again failed");
                std::thread::sleep(REOPEN_PAUSE);
                false
            }
        }
    }

    fn close(mut self) {
        self.shared.set_store(None);
        self.entries.close();
        while let Ok(entry) = self.entries.try_recv() {
            if let Entry::Local(request) = entry {
                request.refuse(StorageError::Closed);
            }
        }
        if let Some(core) = self.core.take() {
            let until = Instant::now() + Duration::from_secs(10);
            let mut store = Some(core.store);
            while let Some(open) = store.take().filter(|_| Instant::now() < until) {
                store = release(open, READS_PATIENCE);
            }
        }
        *self.shared.directory.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
    }
}

/// The writes of a message: as they were sent where they are this runtime's own, with those who wait for them.
fn writes(payload: &[u8], own: Option<Vec<Request>>) -> Result<Vec<Write>, StorageError> {
    let strange = |error: StorageError| StorageError::Other(format!("a message of the stream: {error}"));
    match own {
        // Without decoding them. What removes must look anew.
        Some(requests) if !requests.iter().any(|r| matches!(r, Request::Remove { .. })) => {
            Ok(requests.into_iter().map(Write::Request).collect())
        }
        Some(requests) => Ok(answered(wire::decode(payload).map_err(strange)?, requests)),
        None => wire::decode(payload).map_err(strange),
    }
}

impl Write {
    fn removes(&self) -> bool {
        matches!(self, Self::Remove { .. } | Self::Request(Request::Remove { .. }))
    }
}

/// The writes of a group of this runtime, as they were sent, with those who wait for them.
fn answered(writes: Vec<Write>, requests: Vec<Request>) -> Vec<Write> {
    let both = writes.into_iter().zip(requests);
    both.map(|(write, request)| match (write, request) {
        (Write::Remove { seqs, floor }, Request::Remove { answer, .. }) => {
            let events = seqs.into_iter().map(unknown).collect();
            Write::Request(Request::Remove { removal: Removal { events, floor }, answer })
        }
        (_, request) => Write::Request(request),
    })
    .collect()
}

/// An event that goes, of which only the place is known yet.
fn unknown(seq: Seq) -> Removed {
    let envelope = Envelope { received: (0, 0), ty: 0, id: 0, source: 0, trace: [0; 16] };
    Removed { seq, envelope, bytes: 0, outcomes: Vec::new() }
}

/// Finds out what else goes with the events. Those that are gone already are left out.
fn look_up(store: &Store, removal: Removal) -> Result<Removal, StorageError> {
    let mut events = Vec::with_capacity(removal.events.len());
    for Removed { seq, .. } in removal.events {
        let Some(value) = store.events.get(seq.0.to_be_bytes()).map_err(failed)? else { continue };
        events.push(Removed::of(store, seq, &value)?);
    }
    Ok(Removal { events, floor: removal.floor })
}
