//! JetStream passes the conformance suite: with the copy that was there before, and with one that is made anew each time.

mod nats;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use nats::NatsServer;
use nexus_log::conformance::{Harness, Opened, Place, Settings};
use nexus_log::embedded::EmbeddedConfig;
use nexus_log::jetstream::{JetStream, JetStreamConfig, open};
use nexus_log::{Storage, StorageError};

/// Streams of one server, each of a name of its own.
struct Streams {
    /// Whether a copy is kept from one opening to the next.
    kept: bool,
}

static STREAMS: AtomicU64 = AtomicU64::new(0);

#[async_trait]
impl Harness for Streams {
    async fn place(&self) -> Box<dyn Place> {
        Box::new(Stream {
            name: format!("TEST_{}", STREAMS.fetch_add(1, Ordering::Relaxed)),
            server: NatsServer::start(),
            folder: tempfile::tempdir().expect("a temporary directory"),
            copies: self.kept.then_some(0).map_or_else(|| Some(AtomicU64::new(0)), |_| None),
        })
    }
}

struct Stream {
    name: String,
    server: NatsServer,
    folder: tempfile::TempDir,
    /// How many copies there were, if each opening has a new one.
    copies: Option<AtomicU64>,
}

impl Stream {
    fn copy(&self) -> PathBuf {
        let number = self.copies.as_ref().map_or(0, |copies| copies.fetch_add(1, Ordering::Relaxed));
        self.folder.path().join(format!("copy-{number}"))
    }
}

#[async_trait]
impl Place for Stream {
    async fn open(&self, settings: &Settings) -> Result<Box<dyn Opened>, StorageError> {
        let copy = EmbeddedConfig {
            retention: settings.retention,
            dedup_window: settings.dedup_window,
            clock: Arc::clone(&settings.clock) as _,
            reserve_bytes: 0,
            ..EmbeddedConfig::new(self.copy())
        };
        let config =
            JetStreamConfig { stream: self.name.clone(), ..JetStreamConfig::new(vec![self.server.url()], copy) };
        Ok(Box::new(Handle(open(config).await?)))
    }
}

struct Handle(JetStream);

#[async_trait]
impl Opened for Handle {
    fn storage(&self) -> Storage {
        self.0.storage()
    }

    async fn close(self: Box<Self>) -> Result<(), StorageError> {
        self.0.close().await
    }
}

mod kept {
    nexus_log::conformance_tests!(super::Streams { kept: true });
}

mod anew {
    nexus_log::conformance_tests!(super::Streams { kept: false });
}
