//! The way in: what comes in the stream's order is planned and written to the copy, and whoever waits for it is answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::Message;
use fjall::PersistMode;
use nexus_core::ids::Seq;
use nexus_core::threads;
use tokio::sync::{mpsc, watch};

use super::outbox::Outbox;
use super::wire::{self, Write};
use crate::contract::StorageError;
use crate::embedded::codec::{self, Envelope};
use crate::embedded::core::{Core, again, step};
use crate::embedded::membership::Beat;
use crate::embedded::plan::Plan;
use crate::embedded::request::{Pending, Removal, Removed, Request};
use crate::embedded::shared::Shared;
use crate::embedded::state::APPLIED_KEY;
use crate::embedded::store::{Store, failed};
use crate::embedded::writer::release;

/// The most messages that are written as one batch.
const BATCH_MAX: usize = 256;
/// How long a batch waits for the library to write out what it keeps in memory.
const SETTLE_PATIENCE: Duration = Duration::from_secs(30);
/// The pause before the copy is opened again after a failed write.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// How long re-opening waits for reads of the old store.
const READS_PATIENCE: Duration = Duration::from_secs(2);

/// What the applying thread gets.
pub(crate) enum Entry {
    /// The next message.
    Message(Message),
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
    /// Why nothing can be taken in any more, if so.
    pub(crate) stuck: watch::Sender<Option<String>>,
}

/// The last message that a store has taken in.
pub(crate) fn applied(store: &Store) -> Result<u64, StorageError> {
    match store.meta.get(APPLIED_KEY).map_err(failed)? {
        Some(value) => Ok(u64::from_be_bytes(codec::bytes(&value, 0)?)),
        None => Ok(0),
    }
}

impl Applier {
    /// Runs on a thread of its own, until it is told to close.
    pub(crate) fn run(mut self) {
        let mut entries = Vec::with_capacity(BATCH_MAX);
        'all: loop {
            threads::checkpoint();
            if self.entries.blocking_recv_many(&mut entries, BATCH_MAX) == 0 {
                break;
            }
            let mut messages = Vec::new();
            for entry in entries.drain(..) {
                match entry {
                    Entry::Message(message) => messages.push(message),
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
        if messages.is_empty() || self.stuck.borrow().is_some() {
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
            StorageError::Newer { .. } | StorageError::Damaged(_) => {
                tracing::error!(%error, "the log in NATS cannot be followed any further");
                self.stuck.send_replace(Some(error.to_string()));
                self.shared.queue.close();
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

    fn write(&mut self, messages: Vec<Message>, pending: &mut Vec<Pending>) -> Result<(), StorageError> {
        let Some(core) = &mut self.core else { return Err(StorageError::Closed) };
        core.store.settle(SETTLE_PATIENCE)?;
        let mut at = self.applied.borrow().message;
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let now = self.shared.config.clock.now();
            let mut plan = Plan::new(&core.store, &mut core.state, &self.shared, now);
            while let Some(message) = messages.peek() {
                let info =
                    message.info().map_err(|e| StorageError::Damaged(format!("a message of the stream: {e}")))?;
                let number = info.stream_sequence;
                let published_ms = u64::try_from(info.published.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
                if number <= at {
                    messages.next();
                    continue;
                }
                if number != at + 1 {
                    // What comes does not follow on what is here: it is asked for anew.
                    messages = Vec::new().into_iter().peekable();
                    self.applied.send_modify(|applied| applied.restarts += 1);
                    break;
                }
                let payload = message.payload.clone();
                let head = wire::decode_head(&payload)?;
                let own = self.outbox.take(head.id);
                let writes = match own {
                    // As they were sent, without decoding them. What removes must look anew.
                    Some(requests) if !requests.iter().any(|r| matches!(r, Request::Remove { .. })) => {
                        requests.into_iter().map(Write::Request).collect()
                    }
                    Some(requests) => answered(wire::decode(&payload)?, requests),
                    None => wire::decode(&payload)?,
                };
                messages.next();
                at = number;
                plan.begin_message(number, head.now);
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
                if !removals.is_empty() {
                    // What is removed is looked up in the store, so all before must be in it.
                    let (batch, published) = plan.finish();
                    batch.durability(Some(PersistMode::Buffer)).commit().map_err(failed)?;
                    core.publish(&self.shared, published);
                    plan = Plan::new(&core.store, &mut core.state, &self.shared, now);
                    plan.begin_message(number, head.now);
                    for (removal, answer) in removals {
                        let found = look_up(&core.store, removal)?;
                        let gone = plan.remove(found)?;
                        if let Some(answer) = answer {
                            pending.push(Pending::Count(answer, gone));
                        }
                    }
                }
            }
            let (batch, published) = plan.finish();
            batch.durability(Some(PersistMode::Buffer)).commit().map_err(failed)?;
            core.publish(&self.shared, published);
            self.applied.send_modify(|applied| applied.message = at);
            pending.drain(..).for_each(|answer| answer.finish(None));
        }
        Ok(())
    }

    /// Opens the copy again after a failed write. Whether it is open.
    fn reopen(&mut self) -> bool {
        let opened = Core::open(&self.shared).and_then(|core| Ok((applied(&core.store)?, core)));
        match opened {
            Ok((message, core)) => {
                self.core = Some(core);
                self.applied.send_modify(|applied| {
                    applied.message = message;
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
