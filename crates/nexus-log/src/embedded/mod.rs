//! Storage in a directory of this machine: the default, without a server.
//!
//! One thread writes (`writer`). It takes all requests that wait, writes them as one batch of the store, syncs once
//! and answers them all (group commit). Whoever reads does so beside it: what was just appended from memory
//! (`tail`), everything else from the store, on the blocking pool.
//!
//! * `codec`: keys and values, byte by byte.
//! * `store`: the database's keyspaces and how they are tuned; errors.
//! * `queue`, `request`, `writer`, `core`, `plan`: the way of a write.
//! * `read`, `log`, `registry`, `artifacts`: the contract.
//! * `retain`: what goes, and how its space comes back.
//! * `directory`, `journal`: the lock, the format, the check of the journal before it is opened.
//! * [`admin`]: backup, restore, check.

pub mod admin;
pub(crate) mod artifacts;
pub(crate) mod codec;
pub(crate) mod core;
pub(crate) mod directory;
pub(crate) mod gets;
pub(crate) mod journal;
pub(crate) mod log;
pub(crate) mod membership;
pub(crate) mod plan;
pub(crate) mod queue;
pub(crate) mod read;
pub(crate) mod registry;
pub(crate) mod request;
pub(crate) mod retain;
pub(crate) mod seen;
pub(crate) mod shared;
pub(crate) mod state;
pub(crate) mod store;
pub(crate) mod tail;
pub(crate) mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nexus_core::clock::{Clock, SystemClock};

pub use crate::contract::Retention;
use crate::contract::{Storage, StorageError};
use shared::Shared;

/// Where and how storage is kept.
#[derive(Clone)]
pub struct EmbeddedConfig {
    /// The directory; made with mode 0700 if it is not there.
    pub data_dir: PathBuf,
    /// How long and how much is kept.
    pub retention: Retention,
    /// For how long after its reception a second event of the same `source` and `id` is a duplicate.
    pub dedup_window: Duration,
    /// Appends are refused when less is free than this, commits below its half, in bytes: so that work which was
    /// taken can be finished.
    pub reserve_bytes: u64,
    /// The most writes that may wait; the next is refused with [`StorageError::Busy`]. At least 1.
    pub queue_max: usize,
    /// What time it is, for the window and for retention.
    pub clock: Arc<dyn Clock>,
}

impl EmbeddedConfig {
    /// The defaults: nothing is thrown away, a window of 24 hours, a reserve of 256 MiB, 4,096 waiting writes.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            retention: Retention::default(),
            dedup_window: Duration::from_secs(24 * 60 * 60),
            reserve_bytes: 256 << 20,
            queue_max: 4096,
            clock: Arc::new(SystemClock),
        }
    }
}

impl std::fmt::Debug for EmbeddedConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedConfig")
            .field("data_dir", &self.data_dir)
            .field("retention", &self.retention)
            .field("dedup_window", &self.dedup_window)
            .field("reserve_bytes", &self.reserve_bytes)
            .field("queue_max", &self.queue_max)
            .finish_non_exhaustive()
    }
}

/// Opens the directory, and makes it if it is not there.
///
/// # Errors
///
/// [`StorageError::Locked`] if another process has it, [`StorageError::Newer`] if a later release wrote it,
/// [`StorageError::Damaged`] if it is not what was written, [`StorageError::Failed`] if the system says no.
pub async fn open(config: EmbeddedConfig) -> Result<Embedded, StorageError> {
    let opened = tokio::task::spawn_blocking(move || writer::start(config)).await;
    let (shared, thread) = opened.map_err(|e| StorageError::Failed(format!("opening was cut short: {e}")))??;
    let storage = Storage {
        log: Arc::new(log::EmbeddedLog::new(shared.clone())),
        registry: Arc::new(registry::EmbeddedRegistry::new(shared.clone())),
        artifacts: Arc::new(artifacts::EmbeddedArtifacts::new(shared.clone())),
    };
    Ok(Embedded { storage, shared, thread: Some(thread) })
}

/// An opened directory. Dropped without [`Embedded::close`], it still writes what waits, but nobody waits for that.
pub struct Embedded {
    storage: Storage,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Embedded {
    /// The three parts. Clones stay valid after [`Embedded::close`] and answer [`StorageError::Closed`].
    pub fn storage(&self) -> Storage {
        self.storage.clone()
    }

    /// Takes no more, writes and answers all that waits, waits for reads that run, and lets go of the directory.
    ///
    /// # Errors
    ///
    /// [`StorageError::Failed`] if the writing thread broke off; what it had answered is durable even so.
    pub async fn close(mut self) -> Result<(), StorageError> {
        self.shared.queue.close();
        let Some(thread) = self.thread.take() else { return Ok(()) };
        match tokio::task::spawn_blocking(move || thread.join()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(StorageError::Failed("the log's writing thread broke off".to_owned())),
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}
