//! The artifacts: in an object store of NATS for all runtimes, and in the data directory of each that used them.

use std::sync::Arc;

use async_nats::jetstream::Context;
use async_nats::jetstream::object_store::{Config, GetErrorKind, InfoErrorKind, ObjectStore};
use async_nats::jetstream::stream::StorageType;
use async_trait::async_trait;
use bytes::Bytes;
use nexus_core::ids::Digest;
use tokio::io::AsyncReadExt as _;

use super::JetStreamConfig;
use crate::contract::{Artifacts, StorageError};
use crate::embedded::artifacts::EmbeddedArtifacts;
use crate::embedded::shared::Shared;

/// The object store with the directory before it.
pub(crate) struct ObjectArtifacts {
    shared: Arc<Shared>,
    here: EmbeddedArtifacts,
    store: ObjectStore,
}

/// The object store; it is made if it is not there.
pub(crate) async fn make(jetstream: &Context, config: &JetStreamConfig) -> Result<ObjectStore, StorageError> {
    let bucket = format!("{}_ARTIFACTS", config.stream);
    let wanted = Config {
        bucket: bucket.clone(),
        description: Some("Components that are deployed to Nexus, by their digests".into()),
        storage: StorageType::File,
        num_replicas: config.replicas,
        ..Config::default()
    };
    if let Ok(store) = jetstream.get_object_store(&bucket).await {
        return Ok(store);
    }
    match jetstream.create_object_store(wanted).await {
        Ok(store) => Ok(store),
        // Another runtime may have been faster.
        Err(error) => jetstream
            .get_object_store(&bucket)
            .await
            .map_err(|_| StorageError::Failed(format!("the object store {bucket} of NATS: {error}"))),
    }
}

impl ObjectArtifacts {
    /// With this object store behind the directory.
    pub(crate) fn new(store: ObjectStore, shared: Arc<Shared>) -> Self {
        Self { here: EmbeddedArtifacts::new(shared.clone()), shared, store }
    }

    fn open_still(&self) -> Result<(), StorageError> {
        if self.shared.queue.is_closed() { Err(StorageError::Closed) } else { Ok(()) }
    }
}

fn failed(digest: Digest, error: impl std::fmt::Display) -> StorageError {
    StorageError::Failed(format!("artifact {} in NATS: {error}", digest.short()))
}

#[async_trait]
impl Artifacts for ObjectArtifacts {
    async fn put(&self, bytes: Bytes) -> Result<Digest, StorageError> {
        self.open_still()?;
        let digest = self.here.put(bytes.clone()).await?;
        let name = digest.hex();
        match self.store.info(&name).await {
            Ok(info) if info.size == bytes.len() => return Ok(digest),
            Ok(_) => {}
            Err(error) if error.kind() == InfoErrorKind::NotFound => {}
            Err(error) => return Err(failed(digest, error)),
        }
        self.store.put(name.as_str(), &mut &bytes[..]).await.map_err(|e| failed(digest, e))?;
        Ok(digest)
    }

    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, StorageError> {
        self.open_still()?;
        match self.here.get(digest).await {
            Ok(None) => {}
            // What is damaged here is whole there.
            Err(StorageError::Damaged(why)) => tracing::warn!(why, "an artifact is fetched again"),
            found => return found,
        }
        let mut object = match self.store.get(digest.hex()).await {
            Ok(object) => object,
            Err(error) if error.kind() == GetErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(digest, error)),
        };
        let mut bytes = Vec::with_capacity(object.info().size);
        object.read_to_end(&mut bytes).await.map_err(|e| failed(digest, e))?;
        if Digest::of(&bytes) != digest {
            return Err(StorageError::Damaged(format!("artifact {digest} in NATS is not what was put")));
        }
        let bytes = Bytes::from(bytes);
        self.here.put(bytes.clone()).await?;
        Ok(Some(bytes))
    }
}
