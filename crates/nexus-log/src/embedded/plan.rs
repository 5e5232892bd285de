//! What a group of requests does to the store: one batch, planned in full before any of it is written.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use fjall::{OwnedWriteBatch, Slice};
use jiff::{SignedDuration, Timestamp};
use nexus_core::ids::{FunctionName, Seq};
use nexus_core::outcome::{Disposition, Outcome};
use nexus_core::record::Record;

use super::codec::{self, Kind, Prepared};
use super::membership::{Beat, MEMBERS_KEY, Membership};
use super::read;
use super::request::{Pending, PreparedCommit, Removal, Removed};
use super::shared::Shared;
use super::state::{APPLIED_KEY, Block, COUNTERS_KEY, Counters, State};
use super::store::{Store, failed};
use crate::contract::{DeadLetter, Parked, Progress, Receipt, Release, Revision, StorageError};

/// The most places that the index names for one id and source. More than one is there only when the same comes again
/// after the window, or hashes collide; of more than these the oldest are not found by id.
pub(crate) const KNOWN_MAX: usize = 16;

/// A group on its way. An error from any of its methods, but for those that [`own`] names, spoils the whole group.
pub(crate) struct Plan<'a> {
    store: &'a Store,
    state: &'a mut State,
    shared: &'a Shared,
    now: Timestamp,
    /// For how long the same `source` and `id` is a duplicate.
    window: Duration,
    batch: OwnedWriteBatch,
    /// Events of this group, and the size of each value; the first has the place `first`.
    appended: Vec<(Arc<Record>, usize)>,
    first: Seq,
    ids: HashMap<[u8; 17], Vec<Seq>>,
    invocations: std::collections::HashSet<[u8; 17]>,
    /// Blocks as they are after this group; `None`: gone.
    blocks: BTreeMap<u64, Option<Block>>,
    registry: HashMap<Vec<u8>, Option<Revision>>,
    /// Dead letters as they are after this group, by key; `None`: gone.
    dead: HashMap<Vec<u8>, Option<DeadLetter>>,
    released: bool,
    tail_spoiled: bool,
    writes: bool,
    /// Deliveries of this group that have an outcome.
    tried: std::collections::HashSet<(Seq, FunctionName)>,
    /// Of a copy: outcomes of this group.
    outcomes: Vec<Arc<Outcome>>,
    /// Of a copy: the message that is being planned, and what was known before it.
    origin: Option<(u64, Counters, Membership)>,
}

/// What is published once the batch is durable.
pub(crate) struct Published {
    pub(crate) appended: Vec<(Arc<Record>, usize)>,
    pub(crate) blocks: BTreeMap<u64, Option<Block>>,
    pub(crate) tail_spoiled: bool,
    /// Dead letters were parked.
    pub(crate) released: bool,
}

impl<'a> Plan<'a> {
    /// `now`: the time, for the window.
    pub(crate) fn new(store: &'a Store, state: &'a mut State, shared: &'a Shared, now: Timestamp) -> Self {
        Self {
            batch: store.db.batch(),
            first: state.counters.next_seq,
            now,
            window: shared.config.dedup_window,
            origin: None,
            outcomes: Vec::new(),
            tried: std::collections::HashSet::new(),
            appended: Vec::new(),
            ids: HashMap::new(),
            invocations: std::collections::HashSet::new(),
            blocks: BTreeMap::new(),
            registry: HashMap::new(),
            dead: HashMap::new(),
            released: false,
            tail_spoiled: false,
            writes: false,
            store,
            state,
            shared,
        }
    }

    /// Of a copy: what follows comes from this message of the log that it is a copy of, which was sent at `now`;
    /// `window` is the sender's: it must be the same for all who take the message in.
    pub(crate) fn begin_message(&mut self, message: u64, now: Timestamp, window: Duration) {
        (self.now, self.window) = (now, window);
        self.origin = Some((message, self.state.counters, self.state.membership.clone()));
        self.batch.insert(&self.store.meta, APPLIED_KEY, message.to_be_bytes());
        self.writes = true;
    }

    /// Of a copy: what the message says of its sender.
    pub(crate) fn beat(&mut self, beat: &Beat) {
        let counters = &mut self.state.counters;
        let below = self.state.membership.take(beat, counters.delivered_below);
        counters.delivered_below = below.min(counters.next_seq);
        self.batch.insert(&self.store.meta, MEMBERS_KEY, self.state.membership.encode());
    }

    /// Plans to append events; a duplicate is answered with the first one's receipt.
    pub(crate) fn append(&mut self, events: Vec<Prepared>) -> Result<Vec<Receipt>, StorageError> {
        events.into_iter().map(|event| self.append_one(event)).collect()
    }

    fn append_one(&mut self, event: Prepared) -> Result<Receipt, StorageError> {
        let key = event.envelope.id_key();
        let mut known = self.known(&key)?;
        for &seq in known.iter().rev() {
            let Some(first) = self.event(seq)?.filter(|first| same(first, &event)) else { continue };
            if self.in_window(first.entry.received_at) {
                return Ok(Receipt { seq, trace_id: first.entry.trace.trace_id, duplicate: true });
            }
            // The newest of them decides.
            break;
        }

        let counters = &mut self.state.counters;
        let seq = counters.next_seq;
        counters.next_seq = seq.next();
        known.push(seq);
        if known.len() > KNOWN_MAX {
            known.remove(0);
        }
        self.store.seen.add(&key);
        self.batch.insert(&self.store.ids, key, codec::encode_seqs(&known));
        self.ids.insert(key, known);
        self.batch.insert(&self.store.events, seq.0.to_be_bytes(), event.value.clone());
        self.batch.insert(&self.store.traces, event.envelope.trace_key(seq), []);
        self.count(seq, &event);
        self.writes = true;

        let trace_id = event.entry.trace.trace_id;
        self.appended.push((Arc::new(Record { seq, entry: event.entry }), event.value.len()));
        Ok(Receipt { seq, trace_id, duplicate: false })
    }

    /// Notes the event in what is known of its block.
    fn count(&mut self, seq: Seq, event: &Prepared) {
        let number = codec::block_of(seq);
        let received = event.envelope.received;
        let slot = self.block(number);
        let first = slot.is_none();
        let block = slot.get_or_insert_with(Block::empty);
        block.received_min = block.received_min.min(received);
        block.received_max = block.received_max.max(received);
        block.bytes += event.value.len() as u64;
        block.events += 1;
        if let (true, Some((message, before, membership))) = (first, &self.origin) {
            let value = codec::encode_origin(*message, before, membership);
            self.batch.insert(&self.store.meta, codec::tagged(b'o', number), value);
        }
        if self.state.block != number {
            self.state.block = number;
            self.state.block_has.clear();
        }
        for (kind, hash) in [(Kind::Type, event.envelope.ty), (Kind::Source, event.envelope.source)] {
            if self.state.block_has.insert((kind, hash)) {
                let (by_hash, by_block) = codec::block_keys(kind, hash, number);
                self.batch.insert(&self.store.meta, by_hash, []);
                self.batch.insert(&self.store.meta, by_block, []);
            }
        }
    }

    /// Plans to write an outcome and what was emitted. A second commit of the same invocation (its first answer was
    /// lost) writes no second outcome, and its events are duplicates.
    pub(crate) fn commit(&mut self, commit: PreparedCommit) -> Result<Vec<Receipt>, StorageError> {
        let PreparedCommit { outcome, value, emitted } = commit;
        let seq = outcome.seq;
        if seq >= self.state.counters.next_seq || seq == Seq(0) {
            return Err(StorageError::Invalid(format!("there is no event {seq} yet that could have an outcome")));
        }
        let invocation = codec::invocation_key(outcome.invocation_id);
        let known = self.invocations.contains(&invocation) || self.store.has_invocation(&invocation)?;
        // Of an event that retention took (a late replay) nothing is kept; what it emitted is.
        if !known && self.is_there(seq)? {
            let (outcome, value, late) = self.after_others(outcome, value)?;
            let n = self.state.counters.next_outcome;
            self.state.counters.next_outcome += 1;
            self.invocations.insert(invocation);
            self.store.seen.add(&invocation);
            self.batch.insert(&self.store.ids, invocation, codec::pair(seq, n));
            if let Some(block) = self.block(codec::block_of(seq)) {
                block.bytes += value.len() as u64;
            }
            self.batch.insert(&self.store.outcomes, codec::pair(seq, n), value);
            if self.origin.is_some() {
                self.outcomes.push(Arc::clone(&outcome));
            }
            let function = outcome.function.clone();
            if outcome.disposition != Disposition::Replayed {
                self.tried.insert((seq, function.clone()));
            }
            match outcome.disposition {
                // Another runtime had the event meanwhile, and settled it: this one was given up, and came late.
                _ if late => {}
                Disposition::Retry { at } => self.park(Parked { seq, function, attempt: outcome.attempt, at }),
                Disposition::Done | Disposition::Expired => self.unpark(seq, &function),
                Disposition::Dead => {
                    self.unpark(seq, &function);
                    if !outcome.dead_letter_emitted {
                        let letter = DeadLetter { seq, function, attempt: outcome.attempt, at: self.now };
                        let (key, value) = codec::encode_dead(&letter);
                        self.batch.insert(&self.store.meta, key.clone(), value);
                        self.dead.insert(key, Some(letter));
                    }
                }
                Disposition::Replayed => {}
            }
            self.writes = true;
        }
        self.append(emitted)
    }

    /// Of a copy: if another runtime delivered the same event to the same function meanwhile, this is a further attempt, and is
    /// numbered so. Also whether the delivery is settled by now.
    fn after_others(
        &self,
        mut outcome: Arc<Outcome>,
        value: Slice,
    ) -> Result<(Arc<Outcome>, Slice, bool), StorageError> {
        if self.origin.is_none() || outcome.disposition == Disposition::Replayed {
            return Ok((outcome, value, false));
        }
        let of_delivery =
            |other: &Arc<Outcome>| other.function == outcome.function && other.disposition != Disposition::Replayed;
        let mut last: Option<Arc<Outcome>> = None;
        let planned = self.outcomes.iter().filter(|other| other.seq == outcome.seq).cloned();
        let stored = read::outcomes_of(self.store, outcome.seq)?;
        for other in stored.into_iter().map(Arc::new).chain(planned).filter(of_delivery) {
            if last.as_ref().is_none_or(|last| other.attempt >= last.attempt) {
                last = Some(other);
            }
        }
        let Some(last) = last.filter(|last| last.attempt >= outcome.attempt) else {
            return Ok((outcome, value, false));
        };
        Arc::make_mut(&mut outcome).attempt = last.attempt + 1;
        let value = codec::encode_outcome(&outcome)?;
        Ok((outcome, value, !matches!(last.disposition, Disposition::Retry { .. })))
    }

    /// Plans to do away with dead letters; how many of them there were.
    pub(crate) fn release(&mut self, letters: &[(Seq, FunctionName)], how: Release) -> Result<u64, StorageError> {
        let mut found = 0;
        for (seq, function) in letters {
            let key = codec::dead_key(*seq, function);
            let letter = match self.dead.get(&key) {
                Some(planned) => planned.clone(),
                None => match self.store.meta.get(&key).map_err(failed)? {
                    Some(value) => Some(codec::decode_dead(&key, &value)?),
                    None => None,
                },
            };
            let Some(DeadLetter { seq, function, attempt, .. }) = letter else { continue };
            self.batch.remove(&self.store.meta, key.clone());
            self.dead.insert(key, None);
            found += 1;
            if how == Release::Retry && seq >= self.state.counters.floor {
                self.park(Parked { seq, function, attempt, at: self.now });
                self.released = true;
            }
            self.writes = true;
        }
        Ok(found)
    }

    /// Plans to park deliveries that have had no attempt. What is settled or parked by now (the same was asked for before a crash,
    /// or by another runtime) stays as it is.
    pub(crate) fn park_new(&mut self, all: Vec<Parked>) -> Result<(), StorageError> {
        for parked in all {
            let Parked { seq, ref function, .. } = parked;
            let waits = self.state.parked.get(&seq).is_some_and(|functions| functions.contains_key(function));
            if waits || !self.is_there(seq)? {
                continue;
            }
            let of_delivery = |o: &Outcome| o.function == *function && o.disposition != Disposition::Replayed;
            if self.tried.contains(&(seq, function.clone()))
                || read::outcomes_of(self.store, seq)?.iter().any(of_delivery)
            {
                continue;
            }
            self.park(parked);
            self.writes = true;
        }
        Ok(())
    }

    fn park(&mut self, parked: Parked) {
        let (key, value) = codec::encode_parked(&parked);
        self.batch.insert(&self.store.meta, key, value);
        self.state.parked.entry(parked.seq).or_default().insert(parked.function.clone(), parked);
    }

    fn unpark(&mut self, seq: Seq, function: &FunctionName) {
        let Some(functions) = self.state.parked.get_mut(&seq) else { return };
        if functions.remove(function).is_some() {
            self.batch.remove(&self.store.meta, codec::parked_key(seq, function));
        }
        if functions.is_empty() {
            self.state.parked.remove(&seq);
        }
    }

    /// Plans to write a registry entry, if it is at `expected`.
    pub(crate) fn put(
        &mut self,
        key: &str,
        value: &[u8],
        expected: Option<Revision>,
    ) -> Result<Revision, StorageError> {
        let stored = self.expect(key, expected)?;
        self.state.counters.revision += 1;
        let revision = Revision(self.state.counters.revision);
        let mut bytes = Vec::with_capacity(8 + value.len());
        bytes.extend_from_slice(&revision.0.to_be_bytes());
        bytes.extend_from_slice(value);
        self.batch.insert(&self.store.meta, stored.clone(), bytes);
        self.registry.insert(stored, Some(revision));
        self.writes = true;
        Ok(revision)
    }

    /// Plans to remove a registry entry, if it is at `expected`.
    pub(crate) fn delete(&mut self, key: &str, expected: Revision) -> Result<(), StorageError> {
        let stored = self.expect(key, Some(expected))?;
        self.state.counters.revision += 1;
        self.batch.remove(&self.store.meta, stored.clone());
        self.registry.insert(stored, None);
        self.writes = true;
        Ok(())
    }

    /// The entry's key in the store, if it is at the revision that is expected.
    fn expect(&self, key: &str, expected: Option<Revision>) -> Result<Vec<u8>, StorageError> {
        let stored = codec::registry_key(key);
        let found = match self.registry.get(&stored) {
            Some(revision) => *revision,
            None => match self.store.meta.get(&stored).map_err(failed)? {
                Some(value) => Some(Revision(u64::from_be_bytes(codec::bytes(&value, 0)?))),
                None => None,
            },
        };
        if found == expected { Ok(stored) } else { Err(StorageError::Conflict { key: key.to_owned() }) }
    }

    /// Plans to remove events. Those that may not go stay. Returns how many go.
    pub(crate) fn remove(&mut self, removal: Removal) -> Result<u64, StorageError> {
        let counters = self.state.counters;
        let mut floor = removal.floor.min(counters.delivered_below).max(counters.floor);
        let stays = |event: &Removed, state: &State| {
            event.seq < counters.floor || event.seq >= counters.delivered_below || state.parked.contains_key(&event.seq)
        };
        let (stay, go): (Vec<_>, Vec<_>) = removal.events.into_iter().partition(|event| stays(event, self.state));
        for event in stay.iter().filter(|event| event.seq >= counters.floor) {
            floor = floor.min(event.seq);
        }
        for event in &go {
            self.remove_one(event, floor)?;
        }
        self.state.counters.floor = floor;
        self.tail_spoiled |= !go.is_empty();
        self.writes |= !go.is_empty() || floor != counters.floor;
        Ok(go.len() as u64)
    }

    fn remove_one(&mut self, event: &Removed, floor: Seq) -> Result<(), StorageError> {
        let seq = event.seq;
        // Before the floor nothing is read, and whole files are dropped: a tombstone there would only make a file of
        // new events reach down to the oldest ones, and keep it from being dropped.
        if seq >= floor {
            self.batch.remove(&self.store.events, seq.0.to_be_bytes());
        }
        for (n, invocation) in &event.outcomes {
            if seq >= floor {
                self.batch.remove(&self.store.outcomes, codec::pair(seq, *n));
            }
            self.batch.remove(&self.store.ids, *invocation);
        }
        for entry in self.store.meta.prefix(codec::tagged(b'd', seq.0)) {
            self.batch.remove(&self.store.meta, entry.key().map_err(failed)?);
        }
        self.batch.remove(&self.store.traces, event.envelope.trace_key(seq));
        let key = event.envelope.id_key();
        let mut known = self.known(&key)?;
        if let Some(at) = known.iter().position(|s| *s == seq) {
            known.remove(at);
            if known.is_empty() {
                self.batch.remove(&self.store.ids, key);
            } else {
                self.batch.insert(&self.store.ids, key, codec::encode_seqs(&known));
            }
            self.ids.insert(key, known);
        }

        let number = codec::block_of(seq);
        let newest = self.state.block;
        let slot = self.block(number);
        let Some(block) = slot else { return Ok(()) };
        block.events = block.events.saturating_sub(1);
        block.bytes = block.bytes.saturating_sub(event.bytes);
        // More is yet to come into the newest one.
        if block.events == 0 && number < newest {
            *slot = None;
            self.batch.remove(&self.store.meta, codec::tagged(b'o', number));
            for entry in self.store.meta.prefix(codec::tagged(b'l', number)) {
                let by_block = entry.key().map_err(failed)?;
                self.batch.remove(&self.store.meta, codec::by_hash(&by_block)?);
                self.batch.remove(&self.store.meta, by_block);
            }
        }
        Ok(())
    }

    /// How far delivery has come, as far as it is in the store.
    pub(crate) fn progress(&self) -> Progress {
        let parked = self.state.parked.values().flat_map(BTreeMap::values).cloned().collect();
        Progress { delivered_below: self.state.durable_below, parked }
    }

    /// Takes the mark of `advance` along.
    pub(crate) fn advance(&mut self, below: Seq) {
        let counters = &mut self.state.counters;
        counters.delivered_below = counters.delivered_below.max(below.min(counters.next_seq));
    }

    /// What is known after what is planned so far.
    pub(crate) fn state(&self) -> &State {
        self.state
    }

    /// Whether anything but the mark is to be written.
    pub(crate) fn writes(&self) -> bool {
        self.writes
    }

    /// The batch as planned, and what is to be published after it.
    pub(crate) fn finish(mut self) -> (OwnedWriteBatch, Published) {
        for (number, block) in &self.blocks {
            let key = codec::tagged(b'b', *number);
            match block {
                Some(block) => self.batch.insert(&self.store.meta, key, block.encode()),
                None => self.batch.remove(&self.store.meta, key),
            }
        }
        self.batch.insert(&self.store.meta, COUNTERS_KEY, self.state.counters.encode());
        let published = Published {
            appended: self.appended,
            blocks: self.blocks,
            tail_spoiled: self.tail_spoiled,
            released: self.released,
        };
        (self.batch, published)
    }

    fn in_window(&self, first: Timestamp) -> bool {
        let window = SignedDuration::try_from(self.window).unwrap_or(SignedDuration::MAX);
        self.now.duration_since(first) < window
    }

    /// Places that the index of ids has under a key, as it is after what is planned so far.
    fn known(&self, key: &[u8; 17]) -> Result<Vec<Seq>, StorageError> {
        if let Some(known) = self.ids.get(key) {
            return Ok(known.clone());
        }
        if !self.store.seen.may_have(key) {
            return Ok(Vec::new());
        }
        let value = self.store.ids.get(key).map_err(failed)?;
        Ok(value.map(|value| codec::seqs(&value)).unwrap_or_default())
    }

    /// An event of this group or of the store.
    fn event(&self, seq: Seq) -> Result<Option<Arc<Record>>, StorageError> {
        if seq >= self.first {
            let at = usize::try_from(seq.0 - self.first.0).unwrap_or(usize::MAX);
            return Ok(self.appended.get(at).map(|(record, _)| record.clone()));
        }
        if seq < self.state.counters.floor {
            return Ok(None);
        }
        if let Some(record) = self.shared.tail().get(seq) {
            return Ok(Some(record));
        }
        Ok(self.store.event(seq)?.map(Arc::new))
    }

    /// Whether an event is there, of this group or of the store.
    fn is_there(&self, seq: Seq) -> Result<bool, StorageError> {
        if seq >= self.first || self.shared.tail().get(seq).is_some() {
            return Ok(seq >= self.state.counters.floor);
        }
        Ok(seq >= self.state.counters.floor && self.store.events.contains_key(seq.0.to_be_bytes()).map_err(failed)?)
    }

    fn block(&mut self, number: u64) -> &mut Option<Block> {
        self.blocks.entry(number).or_insert_with(|| {
            let blocks = self.shared.blocks.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            blocks.get(&number).copied()
        })
    }
}

/// Whether two events are one to dedup.
fn same(first: &Record, event: &Prepared) -> bool {
    first.entry.event.id == event.entry.event.id && first.entry.event.source == event.entry.event.source
}

/// Whether an error concerns its own request only: nothing was planned for it.
pub(crate) fn own(error: &StorageError) -> bool {
    matches!(error, StorageError::Conflict { .. } | StorageError::Invalid(_))
}

/// Turns a planned result into an answer to give later.
pub(crate) fn pending<T>(
    result: Result<T, StorageError>,
    answer: super::request::Answer<T>,
    done: impl FnOnce(super::request::Answer<T>, T) -> Pending,
) -> Result<Option<Pending>, (super::request::Answer<T>, StorageError)> {
    match result {
        Ok(value) => Ok(Some(done(answer, value))),
        Err(error) if own(&error) => {
            // A receiver that is gone is nobody's error.
            drop(answer.send(Err(error)));
            Ok(None)
        }
        Err(error) => Err((answer, error)),
    }
}
