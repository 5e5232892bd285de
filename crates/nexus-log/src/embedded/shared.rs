//! What the writer and those who read share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use nexus_core::ids::Seq;
use tokio::sync::{Semaphore, watch};

use super::EmbeddedConfig;
use super::directory::Directory;
use super::gets::Gets;
use super::queue::Queue;
use super::state::Blocks;
use super::store::Store;
use super::tail::Tail;
use crate::contract::{Members, StorageError};

/// Reads of the store that may run at once, each on a thread of the blocking pool.
const READS_MAX: usize = 16;

/// Shared between the handles and the writer. The writer alone changes it, but for `queue` and `advance_to`.
pub(crate) struct Shared {
    pub(crate) config: EmbeddedConfig,
    pub(crate) queue: Queue,
    pub(crate) head: watch::Sender<Seq>,
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) blocks: RwLock<Blocks>,
    pub(crate) tail: Mutex<Tail>,
    /// See [`super::state::Counters::floor`].
    floor: AtomicU64,
    delivered_below: AtomicU64,
    /// The highest mark that `advance` was told, with its epoch; the writer takes it along with the next batch.
    advance_to: Mutex<(u64, Seq)>,
    /// How often dead letters were parked.
    pub(crate) released: watch::Sender<u64>,
    /// Who shares the log.
    pub(crate) members: watch::Sender<Arc<Members>>,
    /// One retention at a time.
    pub(crate) retaining: tokio::sync::Mutex<()>,
    /// Before this place the store's files were dropped. Known to whoever retains alone.
    pub(crate) dropped_below: AtomicU64,
    /// While the directory is open; dropping it lets go of the lock.
    pub(crate) directory: Mutex<Option<Arc<Directory>>>,
    /// One backup at a time.
    pub(crate) backing_up: Arc<tokio::sync::Mutex<()>>,
    /// Reads of single events.
    pub(crate) gets: Gets,
    store: RwLock<Option<Arc<Store>>>,
    reads: Arc<Semaphore>,
}

impl Shared {
    pub(crate) fn new(config: EmbeddedConfig, directory: Directory) -> Self {
        Self {
            queue: Queue::new(config.queue_max),
            head: watch::Sender::new(Seq(0)),
            changes: watch::Sender::new(0),
            blocks: RwLock::default(),
            tail: Mutex::default(),
            floor: AtomicU64::new(1),
            delivered_below: AtomicU64::new(0),
            advance_to: Mutex::new((0, Seq(0))),
            released: watch::Sender::new(0),
            members: watch::Sender::new(Arc::new(Members::alone())),
            retaining: tokio::sync::Mutex::new(()),
            dropped_below: AtomicU64::new(1),
            directory: Mutex::new(Some(Arc::new(directory))),
            backing_up: Arc::default(),
            gets: Gets::default(),
            store: RwLock::new(None),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            config,
        }
    }

    /// Notes a mark. One of an earlier epoch says nothing any more.
    pub(crate) fn advance(&self, below: Seq, epoch: u64) {
        let mut told = self.advance_to.lock().unwrap_or_else(PoisonError::into_inner);
        if epoch == told.0 {
            told.1 = told.1.max(below);
        } else if epoch > told.0 {
            *told = (epoch, below);
        }
    }

    /// The highest mark of the latest epoch, and that epoch.
    pub(crate) fn advanced_to(&self) -> (u64, Seq) {
        *self.advance_to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first place whose event may still be there.
    pub(crate) fn floor(&self) -> Seq {
        Seq(self.floor.load(Ordering::Acquire))
    }

    /// Every event before this place is delivered or parked.
    pub(crate) fn delivered_below(&self) -> Seq {
        Seq(self.delivered_below.load(Ordering::Acquire))
    }

    pub(crate) fn set_delivered_below(&self, below: Seq) {
        self.delivered_below.store(below.0, Ordering::Release);
    }

    pub(crate) fn set_floor(&self, floor: Seq) {
        self.floor.store(floor.0, Ordering::Release);
    }

    /// The newest events.
    pub(crate) fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory, until it is closed.
    pub(crate) fn directory(&self) -> Result<Arc<Directory>, StorageError> {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(StorageError::Closed)
    }

    /// Lets readers at the store, or keeps them off it.
    pub(crate) fn set_store(&self, store: Option<Arc<Store>>) {
        let old = std::mem::replace(&mut *self.store.write().unwrap_or_else(PoisonError::into_inner), store);
        if let Some(old) = old {
            old.seen.stop();
        }
    }

    /// The store, for a read of its own length: it is to ask [`Shared::serves`] now and then.
    pub(crate) fn store(&self) -> Result<Arc<Store>, StorageError> {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner).clone();
        match store {
            Some(store) => Ok(store),
            None if self.queue.is_closed() => Err(StorageError::Closed),
            None => Err(StorageError::Failed("the store is being opened again after a failed write".to_owned())),
        }
    }

    /// Whether this is still the store that is open.
    pub(crate) fn serves(&self, store: &Arc<Store>) -> Result<(), StorageError> {
        if self.queue.is_closed() {
            return Err(StorageError::Closed);
        }
        if Arc::ptr_eq(&self.store()?, store) {
            Ok(())
        } else {
            Err(StorageError::Failed("the store was opened again after a failed write".to_owned()))
        }
    }

    /// Reads from the store.
    ///
    /// Any read may have to wait for the disk, so each runs on the blocking pool: on two cores, one that blocks a
    /// worker of the runtime stops half of all that it does. The 10 µs that this costs are not on the hot path, which reads
    /// the newest events from memory. At most [`READS_MAX`] run at once, each bounded in its work.
    pub(crate) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Shared, &Store) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        if self.queue.is_closed() {
            return Err(StorageError::Closed);
        }
        let permit = self.reads.clone().acquire_owned().await.map_err(|_| StorageError::Closed)?;
        let shared = self.clone();
        let run = tokio::task::spawn_blocking(move || {
            // Held until the read is over, even if nobody waits for it any more.
            let _permit = permit;
            let store = shared.store()?;
            read(&shared, &store)
        });
        run.await.map_err(|e| StorageError::Failed(format!("a read broke off: {e}")))?
    }
}
