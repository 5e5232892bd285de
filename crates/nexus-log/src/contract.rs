//! The storage contract: the log of events and outcomes, the registry of what is deployed, the artifacts.
//!
//! Every implementation passes [`crate::conformance`]. Nothing here names one of them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use nexus_core::ids::{Digest, FunctionName, InvocationId, RuntimeId, Seq};
use nexus_core::outcome::Outcome;
use nexus_core::record::{NewRecord, Record};
use nexus_core::trace::TraceId;
use tokio::sync::watch;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Why storage did not do it. [`StorageError::is_retryable`] tells whether the same call may succeed later.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The disk has less room than the reserve that is kept for finishing work.
    #[error(
        "the disk is full: {free_bytes} bytes are free, {reserve_bytes} are kept in reserve; free some space or lower retention"
    )]
    Full {
        /// Free now.
        free_bytes: u64,
        /// Needed free for this kind of write.
        reserve_bytes: u64,
    },
    /// More is waiting to be written than the bound allows.
    #[error("storage is behind: {waiting} writes are waiting; try again shortly")]
    Busy {
        /// Writes that wait.
        waiting: usize,
    },
    /// Storage is shutting down.
    #[error("storage is closed")]
    Closed,
    /// Another process has it.
    #[error("data directory {path} is in use by another process; stop it or choose another with --data-dir")]
    Locked {
        /// The data directory.
        path: String,
    },
    /// Written by a later release.
    #[error(
        "the store is of format {found}, this release reads up to {known}; run the release that wrote it, or a later one"
    )]
    Newer {
        /// What the store says.
        found: u32,
        /// What is known here.
        known: u32,
    },
    /// What is there is not what is asked for: a log where a copy should be, or another log.
    #[error("{0}")]
    Other(String),
    /// What was read is not what was written.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// One write has more bytes than can be taken.
    #[error("{bytes} bytes in one write; {max} can be taken{why}")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// The bound.
        max: usize,
        /// Whose bound that is.
        why: &'static str,
    },
    /// Asked for what no storage can do: a larger key, value or batch than the bounds allow, an outcome of no event.
    #[error("not a valid request to storage: {0}")]
    Invalid(String),
    /// Somebody else changed the entry first.
    #[error("{key} was changed by someone else")]
    Conflict {
        /// The registry's key.
        key: String,
    },
    /// The operating system or the storage library said no.
    #[error("storage failed: {0}")]
    Failed(String),
}

impl StorageError {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Busy { .. } | Self::Failed(_))
    }
}

/// What the log says of an event that it has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Its place; of the first one, if this is a duplicate.
    pub seq: Seq,
    /// Its trace; of the first one, if this is a duplicate.
    pub trace_id: TraceId,
    /// Whether the same `source` and `id` were in the log already, within the window.
    pub duplicate: bool,
}

/// What comes of an invocation, written as one.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The outcome. Its disposition parks the delivery (`Retry`), or ends it.
    pub outcome: Arc<Outcome>,
    /// The events that the function emitted.
    pub emitted: Vec<NewRecord>,
}

/// A delivery that waits: it failed and is tried again, or its event is not to be delivered before a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// The event.
    pub seq: Seq,
    /// The function.
    pub function: FunctionName,
    /// The attempt that failed last; 0: there was none.
    pub attempt: u32,
    /// Not before this time.
    pub at: Timestamp,
}

/// A delivery that was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The event.
    pub seq: Seq,
    /// The function.
    pub function: FunctionName,
    /// The last attempt.
    pub attempt: u32,
    /// When it was given up.
    pub at: Timestamp,
}

/// What becomes of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// It is parked, due now: another attempt is made.
    Retry,
    /// It is forgotten. The event and its outcomes stay.
    Drop,
}

/// How far delivery has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Every event before this place is delivered, or parked.
    pub delivered_below: Seq,
    /// Deliveries that wait to be tried again.
    pub parked: Vec<Parked>,
}

/// The runtimes that share a log, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// This one.
    pub me: RuntimeId,
    /// All that are there, in order. This one is not among them while it is given up, as after a long pause.
    pub all: Vec<RuntimeId>,
    /// Raised whenever one comes or goes: then events have other owners.
    pub epoch: u64,
}

impl Members {
    /// One that shares its log with nobody.
    pub fn alone() -> Self {
        Self { me: RuntimeId(0), all: vec![RuntimeId(0)], epoch: 0 }
    }

    /// Who delivers an event; `None` while nobody is there. Events with the same `partitionkey` have the same owner.
    ///
    /// By rendezvous hashing (Thaler and Ravishankar, 1998): when a runtime comes or goes, only its own part moves.
    pub fn owner(&self, record: &Record) -> Option<RuntimeId> {
        if let Some(claimed) = record.entry.claimed_by.filter(|claimed| self.all.contains(claimed)) {
            return Some(claimed);
        }
        let key = match record.entry.event.attribute(PARTITION_KEY) {
            Some(key) => xxh3_64(key.as_bytes()),
            None => xxh3_64(&record.seq.0.to_be_bytes()),
        };
        self.all.iter().copied().max_by_key(|runtime| xxh3_64_with_seed(&key.to_be_bytes(), runtime.0))
    }

    /// Whether this runtime delivers an event.
    pub fn owns(&self, record: &Record) -> bool {
        self.owner(record) == Some(self.me)
    }
}

/// The extension attribute by which events belong together (CloudEvents, "Partitioning").
pub const PARTITION_KEY: &str = "partitionkey";

/// Which events are asked for; every given part must hold.
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    /// Received at or after.
    pub from: Option<Timestamp>,
    /// Received before.
    pub to: Option<Timestamp>,
    /// The `type`, exactly.
    pub ty: Option<String>,
    /// The `source`, exactly.
    pub source: Option<String>,
    /// The trace.
    pub trace: Option<TraceId>,
    /// Only events before this place: where the last page ended.
    pub before: Option<Seq>,
    /// At most so many: 1 to 1,000.
    pub limit: usize,
}

/// One page of an answer, newest first.
#[derive(Clone, Debug)]
pub struct Page {
    /// The events.
    pub records: Vec<Record>,
    /// Pass it as [`EventQuery::before`] for the next page; `None` at the end.
    pub next: Option<Seq>,
}

/// How long and how much is kept. Both bounds hold; what is not yet delivered, or parked, stays whatever they say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Events older than this go; `None`: no bound on age.
    pub max_age: Option<Duration>,
    /// The oldest go while events and outcomes together are more bytes than this; `None`: no bound on size. Counts
    /// what is stored before compression, without indexes.
    pub max_bytes: Option<u64>,
}

/// The log of events and of what came of them.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Appends a batch, whole or not at all; returns when it is durable. A duplicate within the batch or within the
    /// window is answered with the first one's receipt and not appended.
    async fn append(&self, batch: Vec<NewRecord>) -> Result<Vec<Receipt>, StorageError>;

    /// Appends an outcome with the events that it emitted, as one; returns when it is durable. Emitted duplicates are
    /// not appended, as in [`Log::append`]. The receipts are of the emitted events. A second commit of the same
    /// invocation, after an answer that was lost, adds no second outcome.
    async fn commit(&self, commit: Commit) -> Result<Vec<Receipt>, StorageError>;

    /// Parks deliveries that have had no attempt yet (`attempt` is 0), each until its time; returns when it is durable. One that
    /// is parked, or that an outcome tells of, is left as it is.
    async fn park(&self, parked: Vec<Parked>) -> Result<(), StorageError>;

    /// The deliveries of one event that are parked.
    async fn parked(&self, seq: Seq) -> Result<Vec<Parked>, StorageError>;

    /// Remembers that every event before `below` that is this runtime's own is delivered or parked; what is its own is known by
    /// the epoch of [`Members`]. Need not be durable at return: after a crash an older mark only makes more be looked at again.
    async fn advance(&self, below: Seq, epoch: u64) -> Result<(), StorageError>;

    /// The runtimes that share the log; changes wake whoever waits.
    fn members(&self) -> watch::Receiver<Arc<Members>>;

    /// Every event before this place is delivered or parked, by whichever runtime.
    fn delivered_below(&self) -> Seq;

    /// How far delivery has come, as far as it is durable; read at the start of each epoch.
    async fn progress(&self) -> Result<Progress, StorageError>;

    /// The last durable place; changes wake whoever waits.
    fn head(&self) -> watch::Receiver<Seq>;

    /// Events from a place on, in order, at most `max`. Those that retention took are left out.
    async fn read(&self, from: Seq, max: usize) -> Result<Vec<Arc<Record>>, StorageError>;

    /// The event at a place.
    async fn get(&self, seq: Seq) -> Result<Option<Arc<Record>>, StorageError>;

    /// Events with this `id`, of all sources or of one; the newest of each source, at most 100.
    async fn find(&self, id: &str, source: Option<&str>) -> Result<Vec<Record>, StorageError>;

    /// Events by time, type, source and trace, newest first.
    async fn query(&self, query: &EventQuery) -> Result<Page, StorageError>;

    /// What came of an event: all attempts and replays, oldest first.
    async fn outcomes(&self, seq: Seq) -> Result<Vec<Outcome>, StorageError>;

    /// One outcome by its invocation.
    async fn outcome(&self, invocation: InvocationId) -> Result<Option<Outcome>, StorageError>;

    /// Dead letters, the newest events first: at most `limit` (1 to 1,000), of one function or of all, and only those that come
    /// after a place and a function in that order.
    async fn dead_letters(
        &self,
        function: Option<&FunctionName>,
        after: Option<(Seq, FunctionName)>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StorageError>;

    /// Does away with dead letters, as one; how many of them there were. Returns when it is durable.
    async fn release(&self, letters: Vec<(Seq, FunctionName)>, how: Release) -> Result<u64, StorageError>;

    /// Counts up when dead letters were parked by [`Log::release`], by whomever: [`Log::progress`] has them.
    fn released(&self) -> watch::Receiver<u64>;

    /// Takes away what is older or more than the retention allows, oldest first, but never an event that is not yet
    /// delivered or that is parked. Returns how many events went.
    async fn retain(&self) -> Result<u64, StorageError>;
}

/// A registry entry's revision: the number of the change that wrote it, counted over all entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// Small values by key, changed by compare-and-set.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// The value and its revision.
    async fn get(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StorageError>;
    /// Writes the value if the entry is at `expected` (`None`: is not there), durably.
    async fn put(&self, key: &str, value: Bytes, expected: Option<Revision>) -> Result<Revision, StorageError>;
    /// Removes the entry if it is at `expected`, durably.
    async fn delete(&self, key: &str, expected: Revision) -> Result<(), StorageError>;
    /// All entries whose key begins with `prefix`, in the order of their keys.
    async fn list(&self, prefix: &str) -> Result<Vec<(String, Bytes, Revision)>, StorageError>;
    /// The number of the last change, by whomever.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Blobs by digest.
#[async_trait]
pub trait Artifacts: Send + Sync + 'static {
    /// Keeps the bytes, durably; the same bytes again are kept once.
    async fn put(&self, bytes: Bytes) -> Result<Digest, StorageError>;
    /// The bytes, checked against the digest.
    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, StorageError>;
}

/// The three parts together.
#[derive(Clone)]
pub struct Storage {
    /// Events and outcomes.
    pub log: Arc<dyn Log>,
    /// What is deployed.
    pub registry: Arc<dyn Registry>,
    /// Components.
    pub artifacts: Arc<dyn Artifacts>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{Settings, numbered};

    fn members(all: &[u64]) -> Members {
        Members { me: RuntimeId(all[0]), all: all.iter().map(|id| RuntimeId(*id)).collect(), epoch: 1 }
    }

    fn record(seq: u64) -> Record {
        Record { seq: Seq(seq), entry: numbered(&Settings::default(), seq) }
    }

    #[test]
    fn events_are_shared_evenly_and_stay_where_they_are() {
        let (three, two) = (members(&[11, 22, 33]), members(&[11, 22]));
        let mut counts = std::collections::BTreeMap::new();
        for seq in 1..=3000 {
            let owner = three.owner(&record(seq)).expect("an owner");
            *counts.entry(owner.0).or_insert(0) += 1;
            if owner.0 != 33 {
                assert_eq!(two.owner(&record(seq)), Some(owner), "only what was the third's moves");
            }
        }
        assert!(counts.len() == 3 && counts.values().all(|count| (800..1200).contains(count)), "{counts:?}");
    }

    #[test]
    fn keys_keep_together_and_claims_hold_while_who_claims_is_there() {
        let three = members(&[11, 22, 33]);
        let keyed = |seq: u64, key: &str| {
            let mut record = record(seq);
            record.entry.event.set_attribute(PARTITION_KEY, key).expect("an attribute");
            three.owner(&record)
        };
        assert!((1..100).all(|seq| keyed(seq, "customer-7") == keyed(0, "customer-7")));
        assert!((1..100).any(|seq| keyed(0, &seq.to_string()) != keyed(0, "customer-7")));
        let mut claimed = record(1);
        claimed.entry.claimed_by = Some(RuntimeId(22));
        assert_eq!(three.owner(&claimed), Some(RuntimeId(22)));
        claimed.entry.claimed_by = Some(RuntimeId(44));
        assert_eq!(three.owner(&claimed), three.owner(&record(1)), "it is gone");
        assert_eq!(members(&[11]).owner(&claimed), Some(RuntimeId(11)));
    }
}
