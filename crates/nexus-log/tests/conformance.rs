//! The embedded storage passes the conformance suite.

use std::sync::Arc;

use async_trait::async_trait;
use nexus_log::conformance::{Harness, Opened, Place, Settings};
use nexus_log::embedded::{Embedded, EmbeddedConfig, open};
use nexus_log::{Storage, StorageError};

struct Directories;

#[async_trait]
impl Harness for Directories {
    async fn place(&self) -> Box<dyn Place> {
        Box::new(Directory(tempfile::tempdir().expect("a temporary directory")))
    }
}

struct Directory(tempfile::TempDir);

#[async_trait]
impl Place for Directory {
    async fn open(&self, settings: &Settings) -> Result<Box<dyn Opened>, StorageError> {
        let config = EmbeddedConfig {
            retention: settings.retention,
            dedup_window: settings.dedup_window,
            clock: Arc::clone(&settings.clock) as _,
            ..EmbeddedConfig::new(self.0.path().join("data"))
        };
        Ok(Box::new(Handle(open(config).await?)))
    }
}

struct Handle(Embedded);

#[async_trait]
impl Opened for Handle {
    fn storage(&self) -> Storage {
        self.0.storage()
    }

    async fn close(self: Box<Self>) -> Result<(), StorageError> {
        self.0.close().await
    }
}

nexus_log::conformance_tests!(Directories);
