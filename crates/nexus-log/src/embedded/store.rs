//! The database's keyspaces, and how they are tuned (measured: docs/decisions/0001-storage-crate.md).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fjall::compaction::Leveled;
use fjall::config::{BlockSizePolicy, FilterPolicy, FilterPolicyEntry};
use fjall::{
    AbstractTree as _, CompressionType, Database, Keyspace, KeyspaceCreateOptions, LsmError, PersistMode, Slice,
};
use nexus_core::ids::Seq;
use nexus_core::record::Record;

use super::codec;
use super::seen::Seen;
use crate::contract::StorageError;

/// Memory for blocks that were read, over all keyspaces.
const CACHE_BYTES: u64 = 64 << 20;
/// The journal may grow to this before the slowest keyspace is made to write its share out: a start reads all of it, some
/// 150 MiB a second.
const JOURNAL_BYTES_MAX: u64 = 192 << 20;
/// Memtables of one keyspace that may wait to be written out; the library stops at 4.
const SEALED_MAX: usize = 3;
/// Runs of one keyspace that may wait to be merged; the library stops at 30.
const RUNS_MAX: usize = 25;

/// The open database.
pub(crate) struct Store {
    pub(crate) db: Database,
    pub(crate) events: Keyspace,
    pub(crate) outcomes: Keyspace,
    pub(crate) ids: Keyspace,
    pub(crate) traces: Keyspace,
    pub(crate) meta: Keyspace,
    /// What `ids` may have.
    pub(crate) seen: Seen,
}

impl Store {
    /// Opens the database in `path`, and makes it if it is not there.
    pub(crate) fn open(path: &Path) -> Result<Self, StorageError> {
        // A database without this file was never fully made, so nothing can have been acknowledged from it, and
        // the library would refuse to make it again over the remains.
        if path.exists() && !path.join("version").exists() {
            std::fs::remove_dir_all(path)
                .map_err(|e| StorageError::Failed(format!("removing {}: {e}", path.display())))?;
        }
        // The library asserts about what it reads; that must not take the process down.
        catch_unwind(AssertUnwindSafe(|| Self::open_unguarded(path)))
            .unwrap_or_else(|_| Err(StorageError::Damaged("the database's files contradict each other".to_owned())))
    }

    fn open_unguarded(path: &Path) -> Result<Self, StorageError> {
        let db = Database::builder(path)
            .cache_size(CACHE_BYTES)
            // Compressed values could imitate the journal's own framing, which the check of a torn tail relies on.
            .journal_compression(CompressionType::None)
            .manual_journal_persist(true)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .worker_threads(2)
            .open()
            .map_err(failed)?;
        let keyspace = |name: &str, options: fn(KeyspaceCreateOptions) -> KeyspaceCreateOptions| {
            db.keyspace(name, || options(KeyspaceCreateOptions::default().manual_journal_persist(true))).map_err(failed)
        };
        // Read in order, a thousand at a time: larger blocks. Places that are asked for are mostly there: no filter at
        // the last level.
        let in_order = |o: KeyspaceCreateOptions| {
            // While one is written out, appends wait for the disk longer: 32 MiB make the slowest of a hundred take half as long again.
            o.max_memtable_size(8 << 20)
                .data_block_size_policy(BlockSizePolicy::all(16 << 10))
                .expect_point_read_hits(true)
        };
        Ok(Self {
            events: keyspace("events", in_order)?,
            outcomes: keyspace("outcomes", in_order)?,
            // Asked for each new event, and mostly not there: filters everywhere.
            ids: keyspace("ids", without_order)?,
            // Only ever read by prefix: no filters.
            traces: keyspace("traces", |o| without_order(o).filter_policy(FilterPolicy::all(FilterPolicyEntry::None)))?,
            meta: keyspace("meta", |o| o.max_memtable_size(8 << 20))?,
            seen: Seen::new(),
            db,
        })
    }

    /// Waits until the library has written out what it keeps in memory beyond a bound, at most for `patience`.
    ///
    /// The library waits for that itself, after a batch and without end: for ever, if the thread that should write out
    /// has failed in the meantime. So its own bound is not reached.
    pub(crate) fn settle(&self, patience: Duration) -> Result<(), StorageError> {
        let tables = [&self.events, &self.outcomes, &self.ids, &self.traces, &self.meta];
        let behind = || {
            tables
                .iter()
                .any(|table| table.sealed_memtable_count() >= SEALED_MAX || table.tree.l0_run_count() >= RUNS_MAX)
        };
        let until = Instant::now() + patience;
        while behind() {
            // Does nothing but say whether a background thread failed.
            self.db.persist(PersistMode::Buffer).map_err(failed)?;
            if Instant::now() >= until {
                return Err(StorageError::Failed(
                    "the disk does not keep up with what is to be written out".to_owned(),
                ));
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Whether an outcome of this invocation is there; `key` as the index of ids has it.
    pub(crate) fn has_invocation(&self, key: &[u8; 17]) -> Result<bool, StorageError> {
        Ok(self.seen.may_have(key) && self.ids.contains_key(key).map_err(failed)?)
    }

    /// An event's value.
    pub(crate) fn event_value(&self, seq: Seq) -> Result<Option<Slice>, StorageError> {
        self.events.get(seq.0.to_be_bytes()).map_err(failed)
    }

    /// An event.
    pub(crate) fn event(&self, seq: Seq) -> Result<Option<Record>, StorageError> {
        self.event_value(seq)?.map(|value| codec::decode_event(seq, &value)).transpose()
    }

    /// Gives the space of everything before `floor` back: whole files at once, without rewriting any.
    ///
    /// Files that reach over `floor` stay until it has passed them. Nothing before `floor` is ever read again, so that
    /// what remains of it there, or what a replayed journal brings back, does not matter.
    pub(crate) fn drop_below(&self, floor: Seq) -> Result<(), StorageError> {
        let end = floor.0.to_be_bytes();
        self.events.tree.drop_range(..end).map_err(|e| failed(e.into()))?;
        self.outcomes.tree.drop_range(..end).map_err(|e| failed(e.into()))
    }
}

/// For keys in no order: a memtable that fits into the processor's caches, for each write searches all of it; and since each merge
/// touches all that is there, few merges of many tables.
fn without_order(options: KeyspaceCreateOptions) -> KeyspaceCreateOptions {
    let merging = Leveled::default().with_l0_threshold(16).with_table_target_size(16 << 20);
    options.max_memtable_size(4 << 20).compaction_strategy(Arc::new(merging))
}

/// The library's error in the contract's words.
pub(crate) fn failed(error: fjall::Error) -> StorageError {
    use fjall::Error;
    let damaged = match &error {
        Error::Storage(inner) => !matches!(inner, LsmError::Io(_)),
        Error::JournalRecovery(_)
        | Error::InvalidVersion(_)
        | Error::Decompress(_)
        | Error::InvalidTrailer
        | Error::InvalidTag(_)
        | Error::Unrecoverable => true,
        _ => false,
    };
    let text = match &error {
        Error::Io(e) => e.to_string(),
        Error::Storage(LsmError::Io(e)) => e.to_string(),
        Error::Poisoned => "an earlier write failed in the background".to_owned(),
        other => other.to_string(),
    };
    if damaged { StorageError::Damaged(text) } else { StorageError::Failed(text) }
}
