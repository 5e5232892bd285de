//! A store's database anew, with all of its index, from records that come in the order of places.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use fjall::{OwnedWriteBatch, PersistMode};
use nexus_core::ids::Seq;

use super::error::AdminError;
use crate::contract::{DeadLetter, Parked, StorageError};
use crate::embedded::codec::{self, Kind, Prepared};
use crate::embedded::plan::KNOWN_MAX;
use crate::embedded::state::{Block, COUNTERS_KEY, Counters};
use crate::embedded::store::{Store, failed};

/// A batch is written when its values have so many bytes.
const BATCH_BYTES: usize = 4 << 20;
/// How long a batch waits for the library to write out what it keeps in memory.
const PATIENCE: Duration = Duration::from_secs(60);

/// Writes into an empty database, in batches; durable after [`Builder::finish`] and not before.
pub(super) struct Builder<'a> {
    store: &'a Store,
    batch: OwnedWriteBatch,
    bytes: usize,
    /// Keys of the index of ids in this batch.
    ids: HashMap<[u8; 17], Vec<Seq>>,
    /// The block that is being written, what it holds so far, and the types and sources in it.
    number: u64,
    block: Block,
    has: HashSet<(Kind, u64)>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self {
            batch: store.db.batch(),
            bytes: 0,
            ids: HashMap::new(),
            number: 0,
            block: Block::empty(),
            has: HashSet::new(),
            store,
        }
    }

    /// A registry entry.
    pub(super) fn registry(&mut self, revision: u64, key: &str, value: &[u8]) -> Result<(), AdminError> {
        let mut bytes = Vec::with_capacity(8 + value.len());
        bytes.extend_from_slice(&revision.to_be_bytes());
        bytes.extend_from_slice(value);
        self.bytes += bytes.len();
        self.batch.insert(&self.store.meta, codec::registry_key(key), bytes);
        self.settle()
    }

    /// A parked delivery.
    pub(super) fn parked(&mut self, parked: &Parked) -> Result<(), AdminError> {
        let (key, value) = codec::encode_parked(parked);
        self.bytes += key.len() + value.len();
        self.batch.insert(&self.store.meta, key, value);
        self.settle()
    }

    /// A dead letter.
    pub(super) fn dead(&mut self, letter: &DeadLetter) -> Result<(), AdminError> {
        let (key, value) = codec::encode_dead(letter);
        self.bytes += key.len() + value.len();
        self.batch.insert(&self.store.meta, key, value);
        self.settle()
    }

    /// An event.
    pub(super) fn event(&mut self, seq: Seq, json: &[u8]) -> Result<(), AdminError> {
        let Prepared { envelope, value, .. } = Prepared::from_json(seq, json)?;
        self.begin_block(codec::block_of(seq));
        self.block.received_min = self.block.received_min.min(envelope.received);
        self.block.received_max = self.block.received_max.max(envelope.received);
        self.block.bytes += value.len() as u64;
        self.block.events += 1;
        for (kind, hash) in [(Kind::Type, envelope.ty), (Kind::Source, envelope.source)] {
            if self.has.insert((kind, hash)) {
                let (by_hash, by_block) = codec::block_keys(kind, hash, self.number);
                self.batch.insert(&self.store.meta, by_hash, []);
                self.batch.insert(&self.store.meta, by_block, []);
            }
        }
        let key = envelope.id_key();
        let mut known = match self.ids.remove(&key) {
            Some(known) => known,
            None => self.store.ids.get(key).map_err(failed)?.map(|value| codec::seqs(&value)).unwrap_or_default(),
        };
        known.push(seq);
        if known.len() > KNOWN_MAX {
            known.remove(0);
        }
        self.batch.insert(&self.store.ids, key, codec::encode_seqs(&known));
        self.ids.insert(key, known);
        self.batch.insert(&self.store.traces, envelope.trace_key(seq), []);
        self.bytes += value.len();
        self.batch.insert(&self.store.events, seq.0.to_be_bytes(), value);
        self.settle()
    }

    /// An outcome.
    pub(super) fn outcome(&mut self, seq: Seq, n: u64, json: &[u8]) -> Result<(), AdminError> {
        let (outcome, value) = codec::outcome_from_json(json)?;
        if outcome.seq != seq {
            return Err(StorageError::Damaged(format!("outcome {n} of event {seq} is of {}", outcome.seq)).into());
        }
        self.begin_block(codec::block_of(seq));
        self.block.bytes += value.len() as u64;
        self.batch.insert(&self.store.ids, codec::invocation_key(outcome.invocation_id), codec::pair(seq, n));
        self.bytes += value.len();
        self.batch.insert(&self.store.outcomes, codec::pair(seq, n), value);
        self.settle()
    }

    /// The counters, and all of it durable.
    pub(super) fn finish(mut self, counters: &Counters) -> Result<(), AdminError> {
        self.end_block();
        self.batch.insert(&self.store.meta, COUNTERS_KEY, counters.encode());
        self.write()?;
        Ok(self.store.db.persist(PersistMode::SyncAll).map_err(failed)?)
    }

    fn begin_block(&mut self, number: u64) {
        if self.number != number {
            self.end_block();
            self.number = number;
            self.block = Block::empty();
            self.has.clear();
        }
    }

    /// A block without events is not known to the server either.
    fn end_block(&mut self) {
        if self.block.events > 0 {
            self.batch.insert(&self.store.meta, codec::tagged(b'b', self.number), self.block.encode());
        }
    }

    fn settle(&mut self) -> Result<(), AdminError> {
        if self.bytes < BATCH_BYTES { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> Result<(), AdminError> {
        self.store.settle(PATIENCE)?;
        let batch = std::mem::replace(&mut self.batch, self.store.db.batch());
        batch.commit().map_err(failed)?;
        self.bytes = 0;
        self.ids.clear();
        Ok(())
    }
}
