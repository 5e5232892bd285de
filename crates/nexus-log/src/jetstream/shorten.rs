//! The stream is shortened: what retention took from the log is still in it, until a snapshot of a copy stands for its beginning.
//!
//! The runtime that is first among its members writes all that its copy has after one message into an object store, reads it back, and has
//! the messages up to there removed. A copy that lacks messages that are gone begins from the newest snapshot.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::object_store::{Config, ObjectStore};
use async_nats::jetstream::stream::StorageType;
use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;

use super::snapshot;
use super::stream::Identity;
use crate::contract::StorageError;
use crate::embedded::shared::Shared;

/// How often it is looked whether the stream is too long.
const PERIOD: Duration = Duration::from_secs(60);
/// What a snapshot stands for is removed this long after it: runtimes that are a little behind take it in until then, and it is
/// longer than the window within which the server knows a group that is sent twice.
const SETTLED: Duration = Duration::from_secs(180);
/// A stream of less is left as it is.
const BYTES_MIN: u64 = 256 << 20;
/// It is too long when it has so many times the bytes of what is kept.
const TIMES_MAX: u64 = 2;
/// So many snapshots are kept: one may be being read.
const KEPT: usize = 2;

/// Who shortens the stream.
#[derive(Clone)]
pub(super) struct Shortener {
    pub(super) shared: Arc<Shared>,
    pub(super) jetstream: Context,
    pub(super) identity: Identity,
    pub(super) replicas: usize,
}

/// A file that goes when it is not needed any more.
struct Temporary(PathBuf);

impl Temporary {
    fn new(shared: &Shared, name: &str) -> Result<Self, StorageError> {
        Ok(Self(shared.directory()?.path().join(name)))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What is left over takes space and nothing else; the next one takes its place.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn failed(what: &str, error: impl std::fmt::Display) -> StorageError {
    StorageError::Failed(format!("{what}: {error}"))
}

fn bucket(stream: &str) -> String {
    format!("{stream}_SNAPSHOTS")
}

impl Shortener {
    /// Looks now and then, until this is dropped.
    pub(super) async fn run(self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "the stream in NATS was not shortened; it is tried again");
            }
        }
    }

    async fn look(&self) -> Result<(), StorageError> {
        let leads = {
            let members = self.shared.members.borrow();
            members.all.first() == Some(&members.me)
        };
        if !leads || !self.is_too_long().await? {
            return Ok(());
        }
        let message = self.snapshot().await?;
        tokio::time::sleep(SETTLED).await;
        self.purge(message).await
    }

    async fn is_too_long(&self) -> Result<bool, StorageError> {
        let stream = self.jetstream.get_stream(&self.identity.name).await.map_err(|e| failed("the stream", e))?;
        let kept: u64 = {
            let blocks = self.shared.blocks.read().unwrap_or_else(PoisonError::into_inner);
            blocks.values().map(|block| block.bytes).sum()
        };
        Ok(stream.cached_info().state.bytes > BYTES_MIN.max(TIMES_MAX * kept))
    }

    /// Writes a snapshot into the object store, and reads it back; the last message that is in it.
    pub(super) async fn snapshot(&self) -> Result<u64, StorageError> {
        let file = Temporary::new(&self.shared, "snapshot.out")?;
        let (shared, log, path) = (self.shared.clone(), self.identity.log.clone(), file.0.clone());
        let written = tokio::task::spawn_blocking(move || {
            let directory = shared.directory()?;
            let kept: u64 = {
                let blocks = shared.blocks.read().unwrap_or_else(PoisonError::into_inner);
                blocks.values().map(|block| block.bytes).sum()
            };
            let free_bytes = directory.free_bytes()?;
            let reserve_bytes = shared.config.reserve_bytes + 2 * kept;
            if free_bytes < reserve_bytes {
                return Err(StorageError::Full { free_bytes, reserve_bytes });
            }
            snapshot::write(&shared, &log, &path)
        });
        let message = written.await.map_err(|e| failed("a snapshot broke off", e))??;
        let store = make(&self.jetstream, &self.identity.name, self.replicas).await?;
        let name = format!("{message:020}");
        let mut reader = tokio::fs::File::open(&file.0).await.map_err(|e| failed("a snapshot", e))?;
        store.put(name.as_str(), &mut reader).await.map_err(|e| failed("a snapshot in NATS", e))?;
        // Soon it is all that there is of what it stands for.
        let log = self.identity.log.clone();
        fetch(&store, &name, &file.0).await?;
        let path = file.0.clone();
        let checked = tokio::task::spawn_blocking(move || snapshot::read(&path, &log, |_, _, _| Ok(())));
        checked.await.map_err(|e| failed("a snapshot broke off", e))??;
        let mut names = names(&store).await?;
        names.truncate(names.len().saturating_sub(KEPT));
        for old in names {
            store.delete(&old).await.map_err(|e| failed("an old snapshot in NATS", e))?;
        }
        Ok(message)
    }

    /// Removes all messages up to this one.
    pub(super) async fn purge(&self, message: u64) -> Result<(), StorageError> {
        let stream = self.jetstream.get_stream(&self.identity.name).await.map_err(|e| failed("the stream", e))?;
        let gone = stream.purge().sequence(message + 1).await.map_err(|e| failed("shortening the stream", e))?;
        tracing::info!(messages = gone.purged, up_to = message, "the stream in NATS was shortened");
        Ok(())
    }
}

/// Replaces the database of a directory that nobody has open by the newest snapshot from which the stream goes on at `first`.
/// Whether there was one.
pub(super) async fn restore(
    jetstream: &Context,
    identity: &Identity,
    shared: &Arc<Shared>,
    first: u64,
) -> Result<bool, StorageError> {
    let Ok(store) = jetstream.get_object_store(&bucket(&identity.name)).await else { return Ok(false) };
    let Some(name) = names(&store).await?.pop() else { return Ok(false) };
    if name.parse::<u64>().map_or(true, |message| message + 1 < first) {
        return Ok(false);
    }
    tracing::info!(message = name, "the copy of the log begins from a snapshot");
    let file = Temporary::new(shared, "snapshot.in")?;
    fetch(&store, &name, &file.0).await?;
    let (log, path, database) = (identity.log.clone(), file.0.clone(), shared.directory()?.database());
    let restored = tokio::task::spawn_blocking(move || snapshot::restore(&path, &log, &database));
    restored.await.map_err(|e| failed("a snapshot broke off", e))??;
    Ok(true)
}

/// The names of the snapshots, which are messages' numbers, in their order.
async fn names(store: &ObjectStore) -> Result<Vec<String>, StorageError> {
    let mut list = store.list().await.map_err(|e| failed("the snapshots in NATS", e))?;
    let mut names = Vec::new();
    while let Some(object) = list.next().await {
        names.push(object.map_err(|e| failed("the snapshots in NATS", e))?.name);
    }
    names.sort_unstable();
    Ok(names)
}

/// Writes an object into a file, and checks it by its digest.
async fn fetch(store: &ObjectStore, name: &str, to: &Path) -> Result<(), StorageError> {
    let mut object = store.get(name).await.map_err(|e| failed("a snapshot in NATS", e))?;
    let mut file = tokio::fs::File::create(to).await.map_err(|e| failed("a snapshot", e))?;
    // The object checks its digest when it is read to its end.
    tokio::io::copy(&mut object, &mut file).await.map_err(|e| failed("a snapshot in NATS", e))?;
    file.flush().await.map_err(|e| failed("a snapshot", e))
}

async fn make(jetstream: &Context, stream: &str, replicas: usize) -> Result<ObjectStore, StorageError> {
    let bucket = bucket(stream);
    if let Ok(store) = jetstream.get_object_store(&bucket).await {
        return Ok(store);
    }
    let wanted = Config {
        bucket: bucket.clone(),
        description: Some("Snapshots of the log of Nexus, each by the last message that is in it".into()),
        storage: StorageType::File,
        num_replicas: replicas,
        ..Config::default()
    };
    jetstream.create_object_store(wanted).await.map_err(|e| failed(&format!("the object store {bucket} of NATS"), e))
}
