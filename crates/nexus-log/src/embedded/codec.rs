//! Keys and values, byte by byte. Numbers in keys are big-endian, so that the order of keys is the order of numbers.
//!
//! | keyspace   | key                             | value                                           |
//! |------------|---------------------------------|-------------------------------------------------|
//! | `events`   | seq                             | format, [`Envelope`], JSON of the record        |
//! | `outcomes` | seq, n                          | format, invocation id, JSON of the outcome      |
//! | `ids`      | `e`, hash(id), hash(source)     | seqs of events with these hashes, oldest first  |
//! | `ids`      | `i`, invocation id              | seq, n                                          |
//! | `traces`   | trace id, seq                   |                                                 |
//! | `meta`     | `s`                             | the writer's state                              |
//! | `meta`     | `b`, block                      | what a block of 1,024 places holds              |
//! | `meta`     | `k`, kind, hash, block          | the type or source is in the block              |
//! | `meta`     | `l`, block, kind, hash          | the same, to find what goes with the block      |
//! | `meta`     | `p`, seq, function              | attempt, time of the next                       |
//! | `meta`     | `d`, seq, function              | of a dead letter: last attempt, time of its end |
//! | `meta`     | `r`, registry key               | revision, value                                 |
//! | `meta`     | `a`                             | of a copy: the last message taken in            |
//! | `meta`     | `m`                             | of a copy: who shares the log                   |
//! | `meta`     | `o`, block                      | of a copy: its first message, state before it   |
//!
//! Hashes find candidates; each is checked against the record, so that a collision costs time and nothing else.

use fjall::Slice;
use jiff::Timestamp;
use nexus_core::ids::{FunctionName, InvocationId, Seq};
use nexus_core::outcome::Outcome;
use nexus_core::record::{NewRecord, Record};
use sha2::{Digest as _, Sha256};

use super::membership::Membership;
use super::state::Counters;
use crate::contract::{DeadLetter, Parked, StorageError};

/// The layout described here; a store with a higher one is of a later release.
pub(crate) const FORMAT: u32 = 1;
/// Places in a block, as a power of two.
const BLOCK_BITS: u32 = 10;

const VALUE_FORMAT: u8 = 1;
const ENVELOPE_BYTES: usize = 52;
const OUTCOME_HEAD_BYTES: usize = 17;

/// What is indexed by block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Kind {
    Type = b't',
    Source = b's',
}

/// What filters, dedup and retention need of an event, readable without parsing its JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// Seconds and nanoseconds of the reception, of one sign: ordered as the time is.
    pub(crate) received: (i64, i32),
    pub(crate) ty: u64,
    pub(crate) id: u64,
    pub(crate) source: u64,
    pub(crate) trace: [u8; 16],
}

impl Envelope {
    /// Of an event.
    pub(crate) fn of(entry: &NewRecord) -> Self {
        Self {
            received: instant(entry.received_at),
            ty: hash(&entry.event.ty),
            id: hash(&entry.event.id),
            source: hash(&entry.event.source),
            trace: entry.trace.trace_id.to_bytes(),
        }
    }

    /// The key that dedup looks up.
    pub(crate) fn id_key(&self) -> [u8; 17] {
        let mut key = [b'e'; 17];
        key[1..9].copy_from_slice(&self.id.to_be_bytes());
        key[9..].copy_from_slice(&self.source.to_be_bytes());
        key
    }

    /// The event's key in the index of traces.
    pub(crate) fn trace_key(&self, seq: Seq) -> [u8; 24] {
        let mut key = [0; 24];
        key[..16].copy_from_slice(&self.trace);
        key[16..].copy_from_slice(&seq.0.to_be_bytes());
        key
    }

    /// Reads the envelope alone.
    pub(crate) fn decode(value: &[u8]) -> Result<Self, StorageError> {
        let head = event_head(value)?;
        Ok(Self {
            received: (i64::from_be_bytes(bytes(head, 0)?), i32::from_be_bytes(bytes(head, 8)?)),
            ty: u64::from_be_bytes(bytes(head, 12)?),
            id: u64::from_be_bytes(bytes(head, 20)?),
            source: u64::from_be_bytes(bytes(head, 28)?),
            trace: bytes(head, 36)?,
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.received.0.to_be_bytes());
        out.extend_from_slice(&self.received.1.to_be_bytes());
        out.extend_from_slice(&self.ty.to_be_bytes());
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(&self.source.to_be_bytes());
        out.extend_from_slice(&self.trace);
    }
}

/// A time as the envelope has it.
pub(crate) fn instant(at: Timestamp) -> (i64, i32) {
    (at.as_second(), at.subsec_nanosecond())
}

/// An event made ready by whoever appends it, so that the one writer has less to do.
pub(crate) struct Prepared {
    pub(crate) entry: NewRecord,
    pub(crate) envelope: Envelope,
    pub(crate) value: Slice,
}

impl Prepared {
    pub(crate) fn new(entry: NewRecord) -> Result<Self, StorageError> {
        let envelope = Envelope::of(&entry);
        let mut value = Vec::with_capacity(512);
        value.push(VALUE_FORMAT);
        envelope.encode(&mut value);
        serde_json::to_writer(&mut value, &entry).map_err(|e| StorageError::Failed(format!("writing JSON: {e}")))?;
        Ok(Self { entry, envelope, value: value.into() })
    }
}

impl Prepared {
    /// From its value, as another process made it.
    pub(crate) fn from_value(value: &[u8]) -> Result<Self, StorageError> {
        let envelope = Envelope::decode(value)?;
        let entry = decode_event(Seq(0), value)?.entry;
        Ok(Self { entry, envelope, value: value.into() })
    }

    /// From the JSON of its record, which is kept byte for byte.
    pub(crate) fn from_json(seq: Seq, json: &[u8]) -> Result<Self, StorageError> {
        let entry = event_of(seq, json)?;
        let envelope = Envelope::of(&entry);
        let mut value = Vec::with_capacity(1 + ENVELOPE_BYTES + json.len());
        value.push(VALUE_FORMAT);
        envelope.encode(&mut value);
        value.extend_from_slice(json);
        Ok(Self { entry, envelope, value: value.into() })
    }
}

/// An event's value, read back.
pub(crate) fn decode_event(seq: Seq, value: &[u8]) -> Result<Record, StorageError> {
    Ok(Record { seq, entry: event_of(seq, event_json(value)?)? })
}

/// The JSON in an event's value.
pub(crate) fn event_json(value: &[u8]) -> Result<&[u8], StorageError> {
    event_head(value)?;
    Ok(&value[1 + ENVELOPE_BYTES..])
}

fn event_of(seq: Seq, json: &[u8]) -> Result<NewRecord, StorageError> {
    serde_json::from_slice(json).map_err(|e| StorageError::Damaged(format!("event {seq}: {e}")))
}

fn event_head(value: &[u8]) -> Result<&[u8], StorageError> {
    match value.split_first() {
        Some((&VALUE_FORMAT, rest)) if rest.len() >= ENVELOPE_BYTES => Ok(rest),
        _ => Err(StorageError::Damaged("an event's value is cut short or of an unknown format".to_owned())),
    }
}

/// An outcome's value.
pub(crate) fn encode_outcome(outcome: &Outcome) -> Result<Slice, StorageError> {
    let mut value = Vec::with_capacity(1024);
    value.push(VALUE_FORMAT);
    value.extend_from_slice(outcome.invocation_id.0.as_bytes());
    serde_json::to_writer(&mut value, outcome).map_err(|e| StorageError::Failed(format!("writing JSON: {e}")))?;
    Ok(value.into())
}

/// An outcome's value, read back.
pub(crate) fn decode_outcome(value: &[u8]) -> Result<Outcome, StorageError> {
    outcome_of(outcome_json(value)?)
}

/// The JSON in an outcome's value.
pub(crate) fn outcome_json(value: &[u8]) -> Result<&[u8], StorageError> {
    outcome_invocation(value)?;
    Ok(&value[OUTCOME_HEAD_BYTES..])
}

/// An outcome and its value, from its JSON, which is kept byte for byte.
pub(crate) fn outcome_from_json(json: &[u8]) -> Result<(Outcome, Slice), StorageError> {
    let outcome = outcome_of(json)?;
    let mut value = Vec::with_capacity(OUTCOME_HEAD_BYTES + json.len());
    value.push(VALUE_FORMAT);
    value.extend_from_slice(outcome.invocation_id.0.as_bytes());
    value.extend_from_slice(json);
    Ok((outcome, value.into()))
}

fn outcome_of(json: &[u8]) -> Result<Outcome, StorageError> {
    serde_json::from_slice(json).map_err(|e| StorageError::Damaged(format!("an outcome: {e}")))
}

/// The key under which the invocation of an outcome's value is found.
pub(crate) fn outcome_invocation(value: &[u8]) -> Result<[u8; 17], StorageError> {
    match value.first() {
        Some(&VALUE_FORMAT) => {
            let mut key: [u8; 17] = bytes(value, 0)?;
            key[0] = b'i';
            Ok(key)
        }
        _ => Err(StorageError::Damaged("an outcome's value is of an unknown format".to_owned())),
    }
}

/// The key under which an invocation is found.
pub(crate) fn invocation_key(id: InvocationId) -> [u8; 17] {
    let mut key = [b'i'; 17];
    key[1..].copy_from_slice(id.0.as_bytes());
    key
}

/// The first 17 bytes of a key of the index of ids, to find events of all sources.
pub(crate) fn id_prefix(id: &str) -> [u8; 9] {
    tagged(b'e', hash(id))
}

/// `n` after `seq`: the key of an outcome, and the value of an invocation.
pub(crate) fn pair(seq: Seq, n: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&seq.0.to_be_bytes());
    key[8..].copy_from_slice(&n.to_be_bytes());
    key
}

/// Both numbers of [`pair`].
pub(crate) fn unpair(key: &[u8]) -> Result<(Seq, u64), StorageError> {
    Ok((Seq(u64::from_be_bytes(bytes(key, 0)?)), u64::from_be_bytes(bytes(key, 8)?)))
}

/// A place as it ends a key or is one.
pub(crate) fn seq_at(key: &[u8], at: usize) -> Result<Seq, StorageError> {
    Ok(Seq(u64::from_be_bytes(bytes(key, at)?)))
}

/// The places in a value of the index of ids.
pub(crate) fn seqs(value: &[u8]) -> Vec<Seq> {
    value.chunks_exact(8).map(|c| Seq(c.iter().fold(0, |n, b| n << 8 | u64::from(*b)))).collect()
}

/// A value of the index of ids.
pub(crate) fn encode_seqs(seqs: &[Seq]) -> Vec<u8> {
    seqs.iter().flat_map(|s| s.0.to_be_bytes()).collect()
}

/// The block of a place.
pub(crate) fn block_of(seq: Seq) -> u64 {
    seq.0 >> BLOCK_BITS
}

/// The first place of a block.
pub(crate) fn block_start(block: u64) -> Seq {
    Seq(block << BLOCK_BITS)
}

/// A tag and a number: keys of blocks and prefixes.
pub(crate) fn tagged(tag: u8, n: u64) -> [u8; 9] {
    let mut key = [tag; 9];
    key[1..].copy_from_slice(&n.to_be_bytes());
    key
}

/// Where a block of a copy begins in the log that it is a copy of: the message, and what was known before it, from which a copy
/// can begin when what is before it is gone.
pub(crate) fn encode_origin(message: u64, before: &Counters, membership: &Membership) -> Vec<u8> {
    let mut value = message.to_be_bytes().to_vec();
    value.extend_from_slice(&before.encode());
    value.extend_from_slice(&membership.encode());
    value
}

/// Both keys that say that a type or source is in a block: by hash, and by block.
pub(crate) fn block_keys(kind: Kind, hash: u64, block: u64) -> ([u8; 18], [u8; 18]) {
    let mut by_hash = [b'k'; 18];
    by_hash[1] = kind as u8;
    by_hash[2..10].copy_from_slice(&hash.to_be_bytes());
    by_hash[10..].copy_from_slice(&block.to_be_bytes());
    let mut by_block = [b'l'; 18];
    by_block[1..9].copy_from_slice(&block.to_be_bytes());
    by_block[9] = kind as u8;
    by_block[10..].copy_from_slice(&hash.to_be_bytes());
    (by_hash, by_block)
}

/// From a key by block, the one by hash.
pub(crate) fn by_hash(by_block: &[u8]) -> Result<[u8; 18], StorageError> {
    let kind = match by_block.get(9) {
        Some(b't') => Kind::Type,
        Some(b's') => Kind::Source,
        _ => return Err(StorageError::Damaged("a key of the index of blocks".to_owned())),
    };
    let (block, hash) = (u64::from_be_bytes(bytes(by_block, 1)?), u64::from_be_bytes(bytes(by_block, 10)?));
    Ok(block_keys(kind, hash, block).0)
}

/// A parked delivery's key and value.
pub(crate) fn encode_parked(parked: &Parked) -> (Vec<u8>, Vec<u8>) {
    let (second, nanosecond) = instant(parked.at);
    let mut value = vec![VALUE_FORMAT];
    value.extend_from_slice(&parked.attempt.to_be_bytes());
    value.extend_from_slice(&second.to_be_bytes());
    value.extend_from_slice(&nanosecond.to_be_bytes());
    (parked_key(parked.seq, &parked.function), value)
}

/// A parked delivery's key.
pub(crate) fn parked_key(seq: Seq, function: &FunctionName) -> Vec<u8> {
    let mut key = tagged(b'p', seq.0).to_vec();
    key.extend_from_slice(function.as_str().as_bytes());
    key
}

/// A parked delivery, read back.
pub(crate) fn decode_parked(key: &[u8], value: &[u8]) -> Result<Parked, StorageError> {
    let damaged = |why: &str| StorageError::Damaged(format!("a parked delivery {why}"));
    let function = key.get(9..).and_then(|name| std::str::from_utf8(name).ok()).and_then(|name| name.parse().ok());
    let at = Timestamp::new(i64::from_be_bytes(bytes(value, 5)?), i32::from_be_bytes(bytes(value, 13)?));
    Ok(Parked {
        seq: seq_at(key, 1)?,
        function: function.ok_or_else(|| damaged("has no function"))?,
        attempt: u32::from_be_bytes(bytes(value, 1)?),
        at: at.map_err(|_| damaged("has no time"))?,
    })
}

/// A dead letter's key and value.
pub(crate) fn encode_dead(letter: &DeadLetter) -> (Vec<u8>, Vec<u8>) {
    let DeadLetter { seq, function, attempt, at } = letter.clone();
    let (_, value) = encode_parked(&Parked { seq, function, attempt, at });
    (dead_key(letter.seq, &letter.function), value)
}

/// A dead letter's key.
pub(crate) fn dead_key(seq: Seq, function: &FunctionName) -> Vec<u8> {
    let mut key = tagged(b'd', seq.0).to_vec();
    key.extend_from_slice(function.as_str().as_bytes());
    key
}

/// A dead letter, read back: its value is laid out as a parked delivery's.
pub(crate) fn decode_dead(key: &[u8], value: &[u8]) -> Result<DeadLetter, StorageError> {
    let Parked { seq, function, attempt, at } = decode_parked(key, value)?;
    Ok(DeadLetter { seq, function, attempt, at })
}

/// A registry entry's key.
pub(crate) fn registry_key(key: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(b'r');
    out.extend_from_slice(key.as_bytes());
    out
}

/// The first eight bytes of the SHA-256: nobody makes collisions cheaply, and it is the same in every release.
pub(crate) fn hash(text: &str) -> u64 {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
}

/// `N` bytes at a place of a slice.
pub(crate) fn bytes<const N: usize>(slice: &[u8], at: usize) -> Result<[u8; N], StorageError> {
    slice
        .get(at..at + N)
        .and_then(|part| part.try_into().ok())
        .ok_or_else(|| StorageError::Damaged("a key or value is cut short".to_owned()))
}
