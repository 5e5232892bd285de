//! What the writer knows without looking: kept in memory, written with every batch, read back at opening.

use std::collections::{BTreeMap, HashSet};

use nexus_core::ids::{FunctionName, Seq};

use super::codec::{self, Kind, bytes};
use super::membership::{MEMBERS_KEY, Membership};
use super::store::{Store, failed};
use crate::contract::{Parked, StorageError};

/// The key of the counters.
pub(crate) const COUNTERS_KEY: &[u8] = b"s";

/// The key of the last message that a copy has taken in.
pub(crate) const APPLIED_KEY: &[u8] = b"a";

/// Counters that only ever go up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counters {
    /// The place of the next event.
    pub(crate) next_seq: Seq,
    /// The number of the next outcome, counted over all events.
    pub(crate) next_outcome: u64,
    /// No event before this place is there any more.
    pub(crate) floor: Seq,
    /// Every event before this place is delivered or parked.
    pub(crate) delivered_below: Seq,
    /// The revision of the registry's last change.
    pub(crate) revision: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self { next_seq: Seq(1), next_outcome: 1, floor: Seq(1), delivered_below: Seq(0), revision: 0 }
    }
}

impl Counters {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let numbers = [self.next_seq.0, self.next_outcome, self.floor.0, self.delivered_below.0, self.revision];
        std::iter::once(1).chain(numbers.into_iter().flat_map(u64::to_be_bytes)).collect()
    }

    pub(crate) fn decode(value: &[u8]) -> Result<Self, StorageError> {
        let number = |n: usize| Ok::<_, StorageError>(u64::from_be_bytes(bytes(value, 1 + 8 * n)?));
        Ok(Self {
            next_seq: Seq(number(0)?),
            next_outcome: number(1)?,
            floor: Seq(number(2)?),
            delivered_below: Seq(number(3)?),
            revision: number(4)?,
        })
    }
}

/// What a block of 1,024 places holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// The earliest and the latest reception. Clocks jump, so order says nothing about time; these do.
    pub(crate) received_min: (i64, i32),
    /// The latest reception.
    pub(crate) received_max: (i64, i32),
    /// Bytes of its events and of what came of them.
    pub(crate) bytes: u64,
    /// Events that are there.
    pub(crate) events: u32,
}

impl Block {
    pub(crate) fn empty() -> Self {
        Self { received_min: (i64::MAX, 0), received_max: (i64::MIN, 0), bytes: 0, events: 0 }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![1];
        for (second, nanosecond) in [self.received_min, self.received_max] {
            out.extend_from_slice(&second.to_be_bytes());
            out.extend_from_slice(&nanosecond.to_be_bytes());
        }
        out.extend_from_slice(&self.bytes.to_be_bytes());
        out.extend_from_slice(&self.events.to_be_bytes());
        out
    }

    pub(crate) fn decode(value: &[u8]) -> Result<Self, StorageError> {
        let instant = |at| {
            Ok::<_, StorageError>((i64::from_be_bytes(bytes(value, at)?), i32::from_be_bytes(bytes(value, at + 8)?)))
        };
        Ok(Self {
            received_min: instant(1)?,
            received_max: instant(13)?,
            bytes: u64::from_be_bytes(bytes(value, 25)?),
            events: u32::from_be_bytes(bytes(value, 33)?),
        })
    }
}

/// Blocks by number: 48 bytes for each 1,024 events that are kept.
pub(crate) type Blocks = BTreeMap<u64, Block>;

/// The writer's own part of it.
pub(crate) struct State {
    pub(crate) counters: Counters,
    /// What of `counters.delivered_below` is in the store.
    pub(crate) durable_below: Seq,
    pub(crate) parked: BTreeMap<Seq, BTreeMap<FunctionName, Parked>>,
    /// The newest block, and the types and sources that the index has of it already.
    pub(crate) block: u64,
    pub(crate) block_has: HashSet<(Kind, u64)>,
    /// Of a copy: who shares the log.
    pub(crate) membership: Membership,
}

/// Reads everything back.
pub(crate) fn load(store: &Store) -> Result<(State, Blocks), StorageError> {
    let counters = match store.meta.get(COUNTERS_KEY).map_err(failed)? {
        Some(value) => Counters::decode(&value)?,
        None => Counters::default(),
    };
    if let Some(last) = store.events.last_key_value() {
        let last = codec::seq_at(&last.key().map_err(failed)?, 0)?;
        if last >= counters.next_seq {
            return Err(StorageError::Damaged(format!(
                "event {last} is there, but only those before {} were counted",
                counters.next_seq
            )));
        }
    }
    let mut parked: BTreeMap<Seq, BTreeMap<FunctionName, Parked>> = BTreeMap::new();
    for entry in store.meta.prefix(b"p") {
        let (key, value) = entry.into_inner().map_err(failed)?;
        let one = codec::decode_parked(&key, &value)?;
        parked.entry(one.seq).or_default().insert(one.function.clone(), one);
    }
    let membership = match store.meta.get(MEMBERS_KEY).map_err(failed)? {
        Some(value) => Membership::decode(&value)?,
        None => Membership::default(),
    };
    let mut blocks = Blocks::new();
    for entry in store.meta.prefix(b"b") {
        let (key, value) = entry.into_inner().map_err(failed)?;
        blocks.insert(codec::seq_at(&key, 1)?.0, Block::decode(&value)?);
    }
    let state = State {
        durable_below: counters.delivered_below,
        block: codec::block_of(counters.next_seq),
        block_has: HashSet::new(),
        membership,
        counters,
        parked,
    };
    Ok((state, blocks))
}
