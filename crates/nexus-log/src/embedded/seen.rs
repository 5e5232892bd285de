//! Which keys the index of ids may have. Nearly every key that the writer asks for is new, and finding that out in the store is
//! the dearest part of an append.

use std::hash::RandomState;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use fastbloom::AtomicBloomFilter;
use fjall::{Keyspace, Slice};
use nexus_core::threads;

use super::store::{Store, failed};
use crate::contract::StorageError;

/// 16 MiB. Of twenty million keys that are not there (ten million events, each with an outcome) 4 in 100 are looked for all the
/// same; beyond that it wears off, and nothing else.
const BITS: usize = 1 << 27;
const HASHES: u32 = 4;
/// Keys that are read at a time when the store is opened.
const PAGE: usize = 4096;

/// A Bloom filter over the keys of the index of ids. It never says no to a key that is there.
pub(crate) struct Seen {
    keys: AtomicBloomFilter<RandomState>,
    /// The keys that were there at opening are in it too.
    complete: AtomicBool,
    /// The store is to be closed.
    stopped: AtomicBool,
}

impl Seen {
    /// For a store that was just opened; it says yes to everything until [`fill`] is done.
    pub(crate) fn new() -> Self {
        let keys = AtomicBloomFilter::with_num_bits(BITS).hasher(RandomState::new()).hashes(HASHES);
        Self { keys, complete: AtomicBool::new(false), stopped: AtomicBool::new(false) }
    }

    /// Notes a key, before it is written.
    pub(crate) fn add(&self, key: &[u8]) {
        self.keys.insert(key);
    }

    /// Takes in no more: whoever closes the store waits until nobody reads from it.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether the key may be in the index.
    pub(crate) fn may_have(&self, key: &[u8]) -> bool {
        !self.complete.load(Ordering::Acquire) || self.keys.contains(key)
    }
}

/// Takes in the keys that are there, on a thread of its own, which ends with the store. Ten million take some seconds, in which
/// appends cost what they cost without the filter.
pub(crate) fn fill(store: &Arc<Store>) -> Result<(), StorageError> {
    let weak = Arc::downgrade(store);
    let work = move || {
        if let Err(error) = take_in(&weak) {
            tracing::warn!(%error, "the index of ids could not be read as a whole; appends look into it each time");
        }
    };
    threads::spawn(threads::LOG, work).map_err(|e| StorageError::Failed(format!("starting a thread: {e}")))?;
    Ok(())
}

fn take_in(store: &Weak<Store>) -> Result<(), StorageError> {
    let mut after: Option<Slice> = None;
    loop {
        // Between two pages the store can be closed.
        let Some(store) = store.upgrade() else { return Ok(()) };
        after = page(&store.ids, &store.seen, after)?;
        if store.seen.stopped.load(Ordering::Relaxed) {
            return Ok(());
        }
        if after.is_none() {
            store.seen.complete.store(true, Ordering::Release);
            return Ok(());
        }
    }
}

/// Takes in the next keys; the last of them, if there may be more.
fn page(ids: &Keyspace, seen: &Seen, after: Option<Slice>) -> Result<Option<Slice>, StorageError> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let (mut count, mut last) = (0, None);
    for entry in ids.range::<Slice, _>((from, Bound::Unbounded)).take(PAGE) {
        let key = entry.key().map_err(failed)?;
        if seen.stopped.load(Ordering::Relaxed) {
            break;
        }
        seen.add(&key);
        count += 1;
        last = Some(key);
    }
    Ok(last.filter(|_| count == PAGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_there_are_never_said_to_be_absent() {
        let folder = tempfile::tempdir().expect("folder");
        let key = |n: u64| super::super::codec::pair(nexus_core::ids::Seq(n), n);
        let known = 3 * PAGE as u64 + 17;
        {
            let store = Store::open(folder.path()).expect("open");
            for n in 0..known {
                store.ids.insert(key(n), [0; 8]).expect("insert");
            }
            store.db.persist(fjall::PersistMode::SyncData).expect("persist");
        }
        let store = Arc::new(Store::open(folder.path()).expect("open"));
        assert!(store.seen.may_have(&key(known)), "what was there before is not known yet");
        take_in(&Arc::downgrade(&store)).expect("take in");
        assert!((0..known).all(|n| store.seen.may_have(&key(n))));
        let wrong = (known..known + 10_000).filter(|n| store.seen.may_have(&key(*n))).count();
        assert!(wrong < 100, "{wrong} of 10,000 would be looked for in vain");
        store.seen.add(&key(known));
        assert!(store.seen.may_have(&key(known)));
    }

    #[test]
    fn a_store_that_closes_is_not_held_by_it() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Arc::new(Store::open(folder.path()).expect("open"));
        store.ids.insert("e", "").expect("insert");
        store.seen.stop();
        take_in(&Arc::downgrade(&store)).expect("nothing to do");
        assert!(store.seen.may_have(b"i"), "not all was taken in");
        let weak = Arc::downgrade(&store);
        drop(store);
        take_in(&weak).expect("nothing to do");
        drop(Store::open(folder.path()).expect("the library's lock is free"));
    }
}
