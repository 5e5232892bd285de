//! The stream is shortened: what retention took from the log is still in it, until a snapshot of a copy stands for its beginning.
//!
//! The runtime that is first among its members writes all that its copy has after one message into an object store, reads it back, and has
//! the messages up to there removed. A copy that lacks messages that are gone begins from the newest snapshot.
//!
//! Each snapshot has a bucket of its own, `NAME_SNAPSHOT_` and the message's number: so whatever is left of one that broke off goes with its
//! bucket. The object in it has the log's own name, so that what another log left under the same name of a stream is not taken for one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_nats::jetstream::object_store::{Config, ObjectStore};
use async_nats::jetstream::stream::StorageType;
use async_nats::jetstream::{Context, stream};
use futures_util::TryStreamExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;

use super::apply::Applied;
use super::broken::Broken;
use super::stream::{Identity, the_same};
use super::{Placement, snapshot};
use crate::contract::StorageError;
use crate::embedded::directory::Directory;
use crate::embedded::shared::Shared;

/// How often it is looked whether the stream is too long.
const PERIOD: Duration = Duration::from_secs(60);
/// After it could not be shortened, the pause is doubled up to this.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// What a snapshot stands for is removed this long after it: runtimes that are a little behind take it in until then, and it is
/// longer than the window within which the server knows a group that is sent twice.
const SETTLED: Duration = Duration::from_secs(180);
/// A stream of less is left as it is.
const BYTES_MIN: u64 = 256 << 20;
/// It is too long when it has so many times the bytes of what is kept.
const TIMES_MAX: u64 = 2;
/// So many snapshots are kept: one may be being read, and one may be damaged.
const KEPT: usize = 2;
/// How long nothing of a snapshot may come.
const SILENCE: Duration = Duration::from_secs(30);
/// Where one is made, and where one that was fetched is kept meanwhile, in the data directory.
const OUT: &str = "snapshot.out";
const IN: &str = "snapshot.in";

/// Who shortens the stream.
#[derive(Clone)]
pub(super) struct Shortener {
    pub(super) shared: Arc<Shared>,
    pub(super) jetstream: Context,
    pub(super) identity: Identity,
    pub(super) replicas: usize,
    pub(super) placement: Option<Placement>,
    pub(super) broken: Broken,
    pub(super) applied: watch::Receiver<Applied>,
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
        // What is left over takes space and nothing else; the next opening removes it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes what a process that was killed has left.
pub(super) fn tidy(directory: &Directory) {
    for name in [OUT, IN] {
        drop(Temporary(directory.path().join(name)));
    }
}

fn failed(what: &str, error: impl std::fmt::Display) -> StorageError {
    StorageError::Failed(format!("{what}: {error}"))
}

/// What the buckets of a stream's snapshots have before the message's number.
fn prefix(stream: &str) -> String {
    format!("{stream}_SNAPSHOT_")
}

fn bucket(stream: &str, message: u64) -> String {
    format!("{}{message:020}", prefix(stream))
}

impl Shortener {
    /// Looks now and then, until this is dropped.
    pub(super) async fn run(self) {
        let mut pause = PERIOD;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.look().await {
                Ok(()) => PERIOD,
                Err(error) => {
                    let pause = (pause * 2).min(PAUSE_MAX);
                    tracing::warn!(%error, next_s = pause.as_secs(), "the stream in NATS was not shortened; it is tried again");
                    pause
                }
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

    /// The stream, while it is the one that the copy is of, and the copy is whole.
    async fn stream(&self) -> Result<stream::Stream, StorageError> {
        if self.broken.is() || self.shared.queue.is_closed() {
            return Err(StorageError::Closed);
        }
        let applied = self.applied.borrow().message;
        the_same(&self.jetstream, &self.identity, applied).await
    }

    async fn is_too_long(&self) -> Result<bool, StorageError> {
        let bytes = self.stream().await?.cached_info().state.bytes;
        Ok(bytes > BYTES_MIN.max(TIMES_MAX * kept(&self.shared)))
    }

    /// Writes a snapshot into an object store, and reads it back; the last message that is in it.
    pub(super) async fn snapshot(&self) -> Result<u64, StorageError> {
        self.stream().await?;
        let file = Temporary::new(&self.shared, OUT)?;
        let (shared, log, path) = (self.shared.clone(), self.identity.log.clone(), file.0.clone());
        let written = tokio::task::spawn_blocking(move || {
            room(&shared)?;
            snapshot::write(&shared, &log, &path)
        });
        let message = written.await.map_err(|e| failed("a snapshot broke off", e))??;
        let bucket = bucket(&self.identity.name, message);
        if let Err(error) = self.put(&bucket, &file.0).await {
            // With all that there is of it.
            if let Err(left) = self.jetstream.delete_object_store(&bucket).await {
                tracing::warn!(%left, bucket, "a snapshot that broke off is left in NATS");
            }
            return Err(error);
        }
        let mut others = snapshots(&self.jetstream, &self.identity).await?;
        others.retain(|(at, _)| *at < message);
        others.truncate(others.len().saturating_sub(KEPT - 1));
        for (at, _) in others {
            let bucket = self::bucket(&self.identity.name, at);
            self.jetstream.delete_object_store(&bucket).await.map_err(|e| failed("an old snapshot in NATS", e))?;
        }
        Ok(message)
    }

    async fn put(&self, bucket: &str, file: &Path) -> Result<(), StorageError> {
        // One that broke off may have left something there.
        let _ = self.jetstream.delete_object_store(bucket).await;
        let placement = |placement: &Placement| stream::Placement {
            cluster: placement.cluster.clone(),
            tags: placement.tags.clone(),
        };
        let config = Config {
            bucket: bucket.to_owned(),
            description: Some("A snapshot of the log of Nexus, up to the message whose number is in its name".into()),
            storage: StorageType::File,
            num_replicas: self.replicas,
            placement: self.placement.as_ref().map(placement),
            ..Config::default()
        };
        let store = self.jetstream.create_object_store(config).await;
        let store = store.map_err(|e| failed(&format!("the object store {bucket} of NATS"), e))?;
        let mut reader = tokio::fs::File::open(file).await.map_err(|e| failed("a snapshot", e))?;
        store.put(self.identity.log.as_str(), &mut reader).await.map_err(|e| failed("a snapshot in NATS", e))?;
        // Soon it is all that there is of what it stands for.
        fetch(&store, &self.identity.log, file).await?;
        check(&self.identity.log, file).await
    }

    /// Removes all messages up to this one, for which a snapshot stands.
    pub(super) async fn purge(&self, message: u64) -> Result<(), StorageError> {
        let stream = self.stream().await?;
        if !snapshots(&self.jetstream, &self.identity).await?.iter().any(|(at, _)| *at >= message) {
            return Err(failed("shortening the stream", "its snapshot is not there any more"));
        }
        let gone = stream.purge().sequence(message + 1).await.map_err(|e| failed("shortening the stream", e))?;
        tracing::info!(messages = gone.purged, up_to = message, "the stream in NATS was shortened");
        Ok(())
    }
}

/// Bytes of what is kept.
fn kept(shared: &Shared) -> u64 {
    let blocks = shared.blocks.read().unwrap_or_else(PoisonError::into_inner);
    blocks.values().map(|block| block.bytes).sum()
}

/// Whether there is room for a snapshot, and more.
fn room(shared: &Shared) -> Result<(), StorageError> {
    let (free_bytes, reserve_bytes) =
        (shared.directory()?.free_bytes()?, shared.config.reserve_bytes + 2 * kept(shared));
    if free_bytes < reserve_bytes { Err(StorageError::Full { free_bytes, reserve_bytes }) } else { Ok(()) }
}

/// Replaces the database of a directory that nobody has open by the newest whole snapshot that the stream, which has the messages from
/// `first` to `last`, goes on from. Where there is none, all stays as it is.
pub(super) async fn restore(
    jetstream: &Context,
    identity: &Identity,
    shared: &Arc<Shared>,
    first: u64,
    last: u64,
) -> Result<(), StorageError> {
    let mut found = snapshots(jetstream, identity).await?;
    found.retain(|(message, _)| message + 1 >= first && *message <= last);
    let mut why = None;
    while let Some((message, store)) = found.pop() {
        tracing::info!(message, "the copy of the log begins from a snapshot");
        let file = Temporary::new(shared, IN)?;
        let fetched = async {
            fetch(&store, &identity.log, &file.0).await?;
            check(&identity.log, &file.0).await
        };
        // What is here goes only for what is whole.
        if let Err(error) = fetched.await {
            tracing::error!(%error, message, "a snapshot of the log cannot be begun from");
            why.get_or_insert(error);
            continue;
        }
        let (log, path, database) = (identity.log.clone(), file.0.clone(), shared.directory()?.database());
        let restored = tokio::task::spawn_blocking(move || snapshot::restore(&path, &log, &database));
        return restored.await.map_err(|e| failed("a snapshot broke off", e))?;
    }
    why.map_or(Ok(()), Err)
}

/// The snapshots of this log that are there, the oldest first.
async fn snapshots(jetstream: &Context, identity: &Identity) -> Result<Vec<(u64, ObjectStore)>, StorageError> {
    let prefix = prefix(&identity.name);
    let names: Vec<String> =
        jetstream.stream_names().try_collect().await.map_err(|e| failed("the streams of NATS", e))?;
    let mut found = Vec::new();
    for name in names {
        let Some(bucket) = name.strip_prefix("OBJ_") else { continue };
        let Some(message) = bucket.strip_prefix(&prefix).and_then(|number| number.parse().ok()) else { continue };
        // One that goes in this moment is none.
        let Ok(store) = jetstream.get_object_store(bucket).await else { continue };
        if store.info(&identity.log).await.is_ok() {
            found.push((message, store));
        }
    }
    found.sort_by_key(|(message, _)| *message);
    Ok(found)
}

/// Writes an object into a file, and checks it by its digest.
async fn fetch(store: &ObjectStore, name: &str, to: &Path) -> Result<(), StorageError> {
    let mut object = store.get(name).await.map_err(|e| failed("a snapshot in NATS", e))?;
    let mut file = tokio::fs::File::create(to).await.map_err(|e| failed("a snapshot", e))?;
    let mut chunk = vec![0; 256 << 10];
    loop {
        // The object checks its digest when it is read to its end.
        let read = tokio::io::AsyncReadExt::read(&mut object, &mut chunk);
        let read = tokio::time::timeout(SILENCE, read).await;
        let read = read.map_err(|_| failed("a snapshot in NATS", format!("nothing for {} s", SILENCE.as_secs())))?;
        match read.map_err(|e| failed("a snapshot in NATS", e))? {
            0 => break,
            n => file.write_all(&chunk[..n]).await.map_err(|e| failed("a snapshot", e))?,
        }
    }
    file.flush().await.map_err(|e| failed("a snapshot", e))
}

/// Whether a file is a whole snapshot of this log.
async fn check(log: &str, file: &Path) -> Result<(), StorageError> {
    let (log, path) = (log.to_owned(), file.to_owned());
    let checked = tokio::task::spawn_blocking(move || snapshot::read(&path, &log, |_, _, _| Ok(())));
    checked.await.map_err(|e| failed("a snapshot broke off", e))?
}
