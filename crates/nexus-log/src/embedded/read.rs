//! What is asked of the store: bounded in work, exact in its answers. Runs on the blocking pool.

use std::collections::BTreeMap;
use std::sync::Arc;

use nexus_core::ids::{FunctionName, InvocationId, Seq};
use nexus_core::outcome::Outcome;
use nexus_core::record::Record;

use super::codec::{self, Envelope, Kind};
use super::core::again;
use super::shared::Shared;
use super::store::{Store, failed};
use crate::contract::{DeadLetter, EventQuery, Page, Parked, StorageError};

/// Dead letters that one call looks at: of a function that has few among very many, a page may be short.
const DEAD_LOOKED_AT_MAX: usize = 100_000;

/// The most events that one read gives.
pub(crate) const READ_MAX: usize = 4096;
/// The most bytes of events that one read or page gives, but for the first event.
const READ_BYTES_MAX: usize = 16 << 20;
/// The most events that one page looks at; what is further away is for the next page.
const EXAMINED_MAX: usize = 32 << 10;
/// The most blocks that one page looks at.
const BLOCKS_MAX: usize = 64 << 10;
/// The most events that a page holds.
const PAGE_MAX: usize = 1000;
/// The most events that `find` gives.
const FOUND_MAX: usize = 100;
/// The most candidates that `find` looks at.
const CANDIDATES_MAX: usize = 10_000;
/// The most outcomes of one event.
const OUTCOMES_MAX: usize = 10_000;

/// Events from a place on.
pub(crate) fn read(shared: &Shared, store: &Store, from: Seq, max: usize) -> Result<Vec<Arc<Record>>, StorageError> {
    let (from, head) = (from.max(shared.floor()), *shared.head.borrow());
    let mut records = Vec::new();
    if from > head {
        return Ok(records);
    }
    let mut bytes = 0;
    for entry in store.events.range(from.0.to_be_bytes()..=head.0.to_be_bytes()).take(max.min(READ_MAX)) {
        let (key, value) = entry.into_inner().map_err(failed)?;
        bytes += value.len();
        if !records.is_empty() && bytes > READ_BYTES_MAX {
            break;
        }
        records.push(Arc::new(codec::decode_event(codec::seq_at(&key, 0)?, &value)?));
    }
    Ok(records)
}

/// One event.
pub(crate) fn get(shared: &Shared, store: &Store, seq: Seq) -> Result<Option<Record>, StorageError> {
    if seq < shared.floor() || seq > *shared.head.borrow() {
        return Ok(None);
    }
    store.event(seq)
}

/// The newest event of each source with an id, newest first.
pub(crate) fn find(
    shared: &Shared,
    store: &Store,
    id: &str,
    source: Option<&str>,
) -> Result<Vec<Record>, StorageError> {
    let mut prefix = codec::id_prefix(id).to_vec();
    if let Some(source) = source {
        prefix.extend_from_slice(&codec::hash(source).to_be_bytes());
    }
    let mut found: Vec<Record> = Vec::new();
    for entry in store.ids.prefix(prefix).take(CANDIDATES_MAX) {
        for seq in codec::seqs(&entry.value().map_err(failed)?).into_iter().rev() {
            let Some(record) = get(shared, store, seq)? else { continue };
            let event = &record.entry.event;
            let older = found.iter().rev().take(16).any(|newer| newer.entry.event.source == event.source);
            if event.id == id && source.is_none_or(|source| event.source == source) && !older {
                found.push(record);
            }
        }
    }
    found.sort_unstable_by_key(|record| std::cmp::Reverse(record.seq));
    found.truncate(FOUND_MAX);
    Ok(found)
}

/// What came of an event.
pub(crate) fn outcomes(shared: &Shared, store: &Store, seq: Seq) -> Result<Vec<Outcome>, StorageError> {
    if seq < shared.floor() {
        return Ok(Vec::new());
    }
    outcomes_of(store, seq)
}

/// The same of several events, in the order of their places, which must be that of the log; some events may be named twice.
pub(crate) fn outcomes_of_several(
    shared: &Shared,
    store: &Store,
    seqs: &[Seq],
) -> Vec<Result<Vec<Outcome>, StorageError>> {
    let floor = shared.floor();
    let mut found: BTreeMap<Seq, Result<Vec<Outcome>, StorageError>> =
        seqs.iter().filter(|seq| **seq >= floor).map(|seq| (*seq, Ok(Vec::new()))).collect();
    let (Some(first), Some(last)) = (found.keys().next().copied(), found.keys().last().copied()) else {
        return seqs.iter().map(|_| Ok(Vec::new())).collect();
    };
    for (looked_at, entry) in store.outcomes.range(codec::pair(first, 0)..=codec::pair(last, u64::MAX)).enumerate() {
        // One of them, or one between, has very many: each by itself has its bound.
        if looked_at >= OUTCOMES_MAX {
            return seqs.iter().map(|seq| outcomes(shared, store, *seq)).collect();
        }
        let read = entry.into_inner().map_err(failed).and_then(|(key, value)| Ok((codec::unpair(&key)?.0, value)));
        let (seq, value) = match read {
            Ok(read) => read,
            // Nobody knows whose it was.
            Err(error) => return seqs.iter().map(|_| Err(again(&error))).collect(),
        };
        let Some(outcomes) = found.get_mut(&seq) else { continue };
        let outcome = codec::decode_outcome(&value);
        match (outcomes.as_mut(), outcome) {
            (Ok(all), Ok(outcome)) => all.push(outcome),
            (Ok(_), Err(error)) => *outcomes = Err(error),
            (Err(_), _) => {}
        }
    }
    let mut of = |(at, seq): (usize, &Seq)| {
        // Whoever asks last for one takes it.
        let again_soon = seqs.get(at + 1) == Some(seq);
        match found.get(seq) {
            Some(Ok(outcomes)) if again_soon => Ok(outcomes.clone()),
            Some(Err(error)) => Err(again(error)),
            Some(Ok(_)) => found.remove(seq).unwrap_or_else(|| Ok(Vec::new())),
            None => Ok(Vec::new()),
        }
    };
    seqs.iter().enumerate().map(&mut of).collect()
}

/// The same of an event that is known to be there.
pub(crate) fn outcomes_of(store: &Store, seq: Seq) -> Result<Vec<Outcome>, StorageError> {
    let range = codec::pair(seq, 0)..=codec::pair(seq, u64::MAX);
    let values = store.outcomes.range(range).take(OUTCOMES_MAX);
    values.map(|entry| codec::decode_outcome(&entry.value().map_err(failed)?)).collect()
}

/// The deliveries of an event that are parked.
pub(crate) fn parked(store: &Store, seq: Seq) -> Result<Vec<Parked>, StorageError> {
    let decode = |entry: fjall::Guard| {
        let (key, value) = entry.into_inner().map_err(failed)?;
        codec::decode_parked(&key, &value)
    };
    store.meta.prefix(codec::tagged(b'p', seq.0)).map(decode).collect()
}

/// Dead letters, the newest first.
pub(crate) fn dead_letters(
    shared: &Shared,
    store: &Store,
    function: Option<FunctionName>,
    after: Option<(Seq, FunctionName)>,
    limit: usize,
) -> Result<Vec<DeadLetter>, StorageError> {
    let first = codec::tagged(b'd', shared.floor().0).to_vec();
    let end = match after {
        Some((seq, function)) => codec::dead_key(seq, &function),
        None => vec![b'd' + 1],
    };
    let mut letters = Vec::new();
    if first >= end {
        return Ok(letters);
    }
    for (looked_at, entry) in store.meta.range(first..end).rev().enumerate() {
        if letters.len() >= limit.min(1000) || looked_at >= DEAD_LOOKED_AT_MAX {
            break;
        }
        let (key, value) = entry.into_inner().map_err(failed)?;
        let letter = codec::decode_dead(&key, &value)?;
        if function.as_ref().is_none_or(|function| letter.function == *function) {
            letters.push(letter);
        }
    }
    Ok(letters)
}

/// One outcome.
pub(crate) fn outcome(shared: &Shared, store: &Store, id: InvocationId) -> Result<Option<Outcome>, StorageError> {
    let Some(place) = store.ids.get(codec::invocation_key(id)).map_err(failed)? else { return Ok(None) };
    let (seq, n) = codec::unpair(&place)?;
    if seq < shared.floor() {
        return Ok(None);
    }
    let value = store.outcomes.get(codec::pair(seq, n)).map_err(failed)?;
    value.map(|value| codec::decode_outcome(&value)).transpose()
}

/// One page of a query.
pub(crate) fn query(shared: &Shared, store: &Store, query: &EventQuery) -> Result<Page, StorageError> {
    let mut search = Search::new(shared, query);
    if search.floor < search.before {
        match query.trace {
            Some(trace) => search.trace(store, trace.to_bytes())?,
            None => search.blocks(shared, store)?,
        }
    }
    Ok(search.page())
}

struct Search<'a> {
    query: &'a EventQuery,
    limit: usize,
    floor: Seq,
    before: Seq,
    ty: Option<u64>,
    source: Option<u64>,
    /// One more than the limit, to know whether there is a next page.
    found: Vec<Record>,
    found_bytes: usize,
    examined: usize,
    /// Where the search broke off: everything from here on has been looked at.
    broke_off: Option<Seq>,
}

impl<'a> Search<'a> {
    fn new(shared: &Shared, query: &'a EventQuery) -> Self {
        let end = shared.head.borrow().next();
        Self {
            query,
            limit: query.limit.clamp(1, PAGE_MAX),
            floor: shared.floor(),
            before: query.before.map_or(end, |before| before.min(end)),
            ty: query.ty.as_deref().map(codec::hash),
            source: query.source.as_deref().map(codec::hash),
            found: Vec::new(),
            found_bytes: 0,
            examined: 0,
            broke_off: None,
        }
    }

    fn trace(&mut self, store: &Store, trace: [u8; 16]) -> Result<(), StorageError> {
        let key = |seq: Seq| {
            let mut key = [0; 24];
            key[..16].copy_from_slice(&trace);
            key[16..].copy_from_slice(&seq.0.to_be_bytes());
            key
        };
        for entry in store.traces.range(key(self.floor)..key(self.before)).rev() {
            let seq = codec::seq_at(&entry.key().map_err(failed)?, 16)?;
            if let Some(value) = store.event_value(seq)?
                && !self.examine(seq, &value)?
            {
                break;
            }
        }
        Ok(())
    }

    /// Goes through the blocks that may hold something, newest first.
    fn blocks(&mut self, shared: &Shared, store: &Store) -> Result<(), StorageError> {
        let (first, last) = (codec::block_of(self.floor), codec::block_of(Seq(self.before.0 - 1)));
        let blocks: Vec<u64> = {
            let blocks = shared.blocks.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            let from = self.query.from.map(codec::instant);
            let to = self.query.to.map(codec::instant);
            let in_time = |block: &super::state::Block| {
                from.is_none_or(|from| block.received_max >= from) && to.is_none_or(|to| block.received_min < to)
            };
            blocks.range(first..=last).rev().filter(|(_, block)| in_time(block)).map(|(number, _)| *number).collect()
        };
        let kinds: Vec<(Kind, u64)> =
            [self.ty.map(|h| (Kind::Type, h)), self.source.map(|h| (Kind::Source, h))].into_iter().flatten().collect();
        for (at, number) in blocks.into_iter().enumerate() {
            let start = codec::block_start(number);
            if at >= BLOCKS_MAX {
                self.broke_off = Some(codec::block_start(number + 1).min(self.before));
                break;
            }
            let mut may_hold = true;
            for (kind, hash) in &kinds {
                let (by_hash, _) = codec::block_keys(*kind, *hash, number);
                may_hold = may_hold && store.meta.contains_key(by_hash).map_err(failed)?;
            }
            if may_hold && !self.block(store, start.max(self.floor), codec::block_start(number + 1).min(self.before))? {
                break;
            }
        }
        Ok(())
    }

    fn block(&mut self, store: &Store, from: Seq, before: Seq) -> Result<bool, StorageError> {
        for entry in store.events.range(from.0.to_be_bytes()..before.0.to_be_bytes()).rev() {
            let (key, value) = entry.into_inner().map_err(failed)?;
            if !self.examine(codec::seq_at(&key, 0)?, &value)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks at one event; whether to go on.
    fn examine(&mut self, seq: Seq, value: &[u8]) -> Result<bool, StorageError> {
        if self.examined >= EXAMINED_MAX {
            self.broke_off = Some(seq.next());
            return Ok(false);
        }
        self.examined += 1;
        let envelope = Envelope::decode(value)?;
        if self.ty.is_some_and(|ty| ty != envelope.ty)
            || self.source.is_some_and(|source| source != envelope.source)
            || self.query.from.is_some_and(|from| envelope.received < codec::instant(from))
            || self.query.to.is_some_and(|to| envelope.received >= codec::instant(to))
        {
            return Ok(true);
        }
        let record = codec::decode_event(seq, value)?;
        // Of the same hash is not yet the same.
        let event = &record.entry.event;
        if self.query.ty.as_ref().is_some_and(|ty| *ty != event.ty)
            || self.query.source.as_ref().is_some_and(|source| *source != event.source)
        {
            return Ok(true);
        }
        self.found_bytes += value.len();
        self.found.push(record);
        Ok(self.found.len() <= self.limit && (self.found.len() == 1 || self.found_bytes <= READ_BYTES_MAX))
    }

    fn page(mut self) -> Page {
        let over = self.found.len() > self.limit || (self.found.len() > 1 && self.found_bytes > READ_BYTES_MAX);
        if over {
            self.found.pop();
            self.broke_off = self.found.last().map(|record| record.seq);
        }
        Page { records: self.found, next: self.broke_off }
    }
}
