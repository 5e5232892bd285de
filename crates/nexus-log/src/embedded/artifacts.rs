//! The artifacts of the contract: one file each, named by its digest.

use std::io::ErrorKind;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use nexus_core::ids::Digest;

use super::directory;
use super::shared::Shared;
use crate::contract::{Artifacts, StorageError};

/// The largest artifact, in bytes.
const ARTIFACT_BYTES_MAX: usize = 512 << 20;

/// The artifacts in a directory.
pub(crate) struct EmbeddedArtifacts {
    shared: Arc<Shared>,
}

impl EmbeddedArtifacts {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[async_trait]
impl Artifacts for EmbeddedArtifacts {
    async fn put(&self, bytes: Bytes) -> Result<Digest, StorageError> {
        if bytes.len() > ARTIFACT_BYTES_MAX {
            return Err(StorageError::Invalid(format!("an artifact of more than {ARTIFACT_BYTES_MAX} bytes")));
        }
        let write = move |shared: &Shared, _: &super::store::Store| {
            let directory = shared.directory()?;
            let digest = Digest::of(&bytes);
            let path = directory.artifacts().join(digest.hex());
            // The name comes last, so what has it is whole; unless the disk changed it, and then this mends it.
            if std::fs::read(&path).is_ok_and(|kept| kept == bytes) {
                return Ok(digest);
            }
            let (free_bytes, reserve_bytes) = (directory.free_bytes()?, shared.config.reserve_bytes);
            if free_bytes.saturating_sub(bytes.len() as u64) < reserve_bytes {
                return Err(StorageError::Full { free_bytes, reserve_bytes });
            }
            directory::write_new(&path, &bytes)
                .map_err(|e| StorageError::Failed(format!("writing artifact {}: {e}", digest.short())))?;
            Ok(digest)
        };
        self.shared.read(write).await
    }

    async fn get(&self, digest: Digest) -> Result<Option<Bytes>, StorageError> {
        let read = move |shared: &Shared, _: &super::store::Store| match std::fs::read(
            shared.directory()?.artifacts().join(digest.hex()),
        ) {
            Ok(bytes) if Digest::of(&bytes) == digest => Ok(Some(bytes.into())),
            Ok(_) => Err(StorageError::Damaged(format!("artifact {digest} is not what was put"))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StorageError::Failed(format!("reading artifact {}: {e}", digest.short()))),
        };
        self.shared.read(read).await
    }
}
