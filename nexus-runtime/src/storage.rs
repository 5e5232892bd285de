//! Which storage is used: a directory, or NATS JetStream, perhaps with a server of our own.

use std::path::PathBuf;
use std::time::Duration;

use nexus_log::embedded::admin::Running;
use nexus_log::embedded::{self, Embedded, EmbeddedConfig};
use nexus_log::jetstream::{self, JetStream, JetStreamConfig, Login, Placement};
use nexus_log::{Storage, StorageError};

use crate::config::{Config, Nats};
use crate::nats::Managed;

/// What `--nats` is where a server of our own is wanted.
pub const MANAGED: &str = "managed";

/// Where in the data directory an embedded log is.
pub const EMBEDDED: &str = "log";
/// Where in it a runtime's copy of a log in NATS is.
pub const COPY: &str = "copy";

/// Opened storage.
pub enum Opened {
    /// In a directory.
    Embedded(Embedded),
    /// In NATS, whose server is perhaps a child of this process.
    JetStream(Box<JetStream>, Option<Managed>),
}

/// Opens what the configuration asks for.
pub async fn open(config: &Config) -> anyhow::Result<Opened> {
    let Some(nats) = &config.nats else {
        return Ok(Opened::Embedded(embedded::open(directory(config, EMBEDDED)).await?));
    };
    let copy = directory(config, COPY);
    let managed =
        if nats.servers == MANAGED { Some(Managed::start(&config.data_dir.join("nats"), nats).await?) } else { None };
    let opened = jetstream::open(wanted(nats, managed.as_ref(), copy)).await;
    match (opened, managed) {
        (Ok(opened), managed) => Ok(Opened::JetStream(Box::new(opened), managed)),
        (Err(error), Some(managed)) => {
            managed.stop().await;
            Err(error.into())
        }
        (Err(error), None) => Err(error.into()),
    }
}

fn directory(config: &Config, name: &str) -> EmbeddedConfig {
    let hours = |h: u64| Duration::from_secs(h * 3600);
    let mut directory = EmbeddedConfig::new(config.data_dir.join(name));
    directory.retention.max_age = config.retention.age_hours_max.map(hours);
    directory.retention.max_bytes = config.retention.size_mib_max.map(|m| m << 20);
    directory.dedup_window = hours(config.retention.dedup_hours);
    directory.reserve_bytes = config.limits.disk_reserve_mib << 20;
    directory
}

fn wanted(nats: &Nats, managed: Option<&Managed>, copy: EmbeddedConfig) -> JetStreamConfig {
    let servers = match managed {
        Some(managed) => vec![managed.url()],
        None => nats.servers.split(',').map(|server| server.trim().to_owned()).collect(),
    };
    let login = match (managed, &nats.credentials, &nats.token_file) {
        (Some(managed), ..) => Login::Token(managed.token_file()),
        (None, Some(file), _) => Login::Credentials(file.clone()),
        (None, None, Some(file)) => Login::Token(file.clone()),
        (None, None, None) => Login::None,
    };
    let placement = (nats.placement_cluster.is_some() || !nats.placement_tags.is_empty())
        .then(|| Placement { cluster: nats.placement_cluster.clone(), tags: nats.placement_tags.clone() });
    let both = |(certificate, key): (&PathBuf, &PathBuf)| (certificate.clone(), key.clone());
    JetStreamConfig {
        login,
        ca: nats.ca.clone(),
        certificate: nats.certificate.as_ref().zip(nats.key.as_ref()).map(both),
        stream: nats.stream.clone(),
        replicas: usize::from(nats.replicas),
        placement,
        ..JetStreamConfig::new(servers, copy)
    }
}

impl Opened {
    /// Its three parts.
    pub fn storage(&self) -> Storage {
        match self {
            Self::Embedded(embedded) => embedded.storage(),
            Self::JetStream(jetstream, _) => jetstream.storage(),
        }
    }

    /// The store as far as backups go; none of a log in NATS, which is NATS's to back up.
    pub fn running(&self) -> Option<Running> {
        match self {
            Self::Embedded(embedded) => Some(embedded.running()),
            Self::JetStream(..) => None,
        }
    }

    /// Waits until storage cannot go on for good, and why. A directory always goes on.
    pub fn broken(&self) -> impl Future<Output = String> + Send + 'static {
        let broken = match self {
            Self::Embedded(_) => None,
            Self::JetStream(jetstream, _) => Some(jetstream.broken()),
        };
        async move {
            match broken {
                Some(broken) => broken.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Closes it in good order, and then the server, if it is ours.
    pub async fn close(self) -> Result<(), StorageError> {
        match self {
            Self::Embedded(embedded) => embedded.close().await,
            Self::JetStream(jetstream, managed) => {
                let closed = jetstream.close().await;
                if let Some(managed) = managed {
                    managed.stop().await;
                }
                closed
            }
        }
    }
}
