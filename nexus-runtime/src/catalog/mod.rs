//! What is deployed: a view of the registry in memory, and the one way to change it.

mod deploy;
mod loaded;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nexus_core::event::Event;
use nexus_core::function::{Function, FunctionConfig, FunctionVersion};
use nexus_core::ids::{Digest, FunctionName, FunctionRef};
use nexus_engine::{Engine, Journaling, Profile};
use nexus_log::{Revision, Storage, StorageError};
use parking_lot::RwLock;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub use deploy::DeployError;
pub use loaded::Ready;

const PREFIX: &str = "functions/";
/// Under it configurations are kept by their digest for as long as the registry is: a journal names the one that its invocation had.
const CONFIGS: &str = "configs/";
/// The pause before the registry is read again after that failed.
const REFRESH_PAUSE: Duration = Duration::from_millis(500);

/// Every deployed function. Reading is a look at memory; changing goes through the registry's compare-and-set.
pub struct Catalog {
    storage: Storage,
    engine: Arc<Engine>,
    mounts_allowed: Vec<std::path::PathBuf>,
    calls_waiting_max: usize,
    loaded: loaded::LoadedFunctions,
    view: RwLock<Arc<View>>,
    /// Up to which change of the registry the view was read.
    read_to: watch::Sender<u64>,
    /// One change at a time in this process; others are kept out by the registry.
    changing: tokio::sync::Mutex<()>,
    refreshing: tokio::sync::Mutex<()>,
}

/// The functions at one moment.
#[derive(Default)]
pub struct View {
    entries: BTreeMap<FunctionName, Arc<Entry>>,
}

/// One function as it is delivered to.
pub struct Entry {
    /// What the registry holds.
    pub function: Function,
    /// Its configuration, shared by its invocations.
    pub config: Arc<FunctionConfig>,
    /// One permit for each invocation that may run at once.
    pub permits: Arc<Semaphore>,
    /// One permit for each HTTP call that runs or waits to, so that those for a slow function do not take all of the
    /// server's places.
    pub calls: Arc<Semaphore>,
    /// How its invocations are recorded, where one is.
    recording: Journaling,
    config_digest: [u8; 16],
    revision: Revision,
}

impl Entry {
    /// The memory profile that its limits ask for.
    pub fn profile(&self) -> Profile {
        Profile::for_memory(self.config.limits.memory_mb)
    }

    /// What becomes of the journal of its next invocation.
    pub fn journaling(&self) -> Journaling {
        let sample = self.config.journal.sample;
        if sample >= 1.0 || rand::random::<f64>() < sample { self.recording.clone() } else { Journaling::Off }
    }

    /// The version that a reference means.
    pub fn version(&self, reference: &FunctionRef) -> Option<&FunctionVersion> {
        match reference.version {
            None => self.function.current(),
            Some(version) => self.function.version(version),
        }
    }
}

impl View {
    /// A function by its name.
    pub fn get(&self, name: &FunctionName) -> Option<&Arc<Entry>> {
        self.entries.get(name)
    }

    /// All functions, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    /// The functions that have a trigger for the event.
    pub fn route<'a>(&'a self, event: &'a Event) -> impl Iterator<Item = &'a Arc<Entry>> {
        self.entries.values().filter(move |entry| entry.config.trigger_for(event).is_some())
    }
}

impl Catalog {
    /// Reads the registry.
    pub async fn open(
        storage: Storage,
        engine: Arc<Engine>,
        mounts_allowed: Vec<std::path::PathBuf>,
        calls_waiting_max: usize,
    ) -> Result<Arc<Self>, StorageError> {
        let catalog = Self {
            loaded: loaded::LoadedFunctions::new(engine.clone(), storage.artifacts.clone()),
            storage,
            engine,
            mounts_allowed,
            calls_waiting_max,
            view: RwLock::default(),
            read_to: watch::Sender::new(0),
            changing: tokio::sync::Mutex::new(()),
            refreshing: tokio::sync::Mutex::new(()),
        };
        catalog.refresh().await?;
        Ok(Arc::new(catalog))
    }

    /// The functions now.
    pub fn view(&self) -> Arc<View> {
        self.view.read().clone()
    }

    /// Reads the registry again, if it changed.
    pub async fn refresh(&self) -> Result<(), StorageError> {
        // One after the other: an older view must not take the place of a newer one.
        let _alone = self.refreshing.lock().await;
        let changes = *self.storage.registry.changes().borrow();
        if *self.read_to.borrow() >= changes && changes > 0 {
            return Ok(());
        }
        let old = self.view();
        let mut entries = BTreeMap::new();
        for (key, value, revision) in self.storage.registry.list(PREFIX).await? {
            // Of ten thousand functions one has changed: the others are not parsed again.
            let named = key.strip_prefix(PREFIX).and_then(|name| name.parse::<FunctionName>().ok());
            if let Some(same) = named.and_then(|name| old.get(&name)).filter(|entry| entry.revision == revision) {
                entries.insert(same.function.name.clone(), same.clone());
                continue;
            }
            let function: Function = serde_json::from_slice(&value)
                .map_err(|e| StorageError::Damaged(format!("registry entry {key}: {e}")))?;
            entries.insert(function.name.clone(), Arc::new(self.entry(&old, function, revision)));
        }
        *self.view.write() = Arc::new(View { entries });
        self.read_to.send_modify(|read| *read = changes.max(*read));
        Ok(())
    }

    /// A function as it is delivered to. One whose limits did not change keeps its permits, so that running invocations still count.
    fn entry(&self, old: &View, function: Function, revision: Revision) -> Entry {
        let config = Arc::new(function.config.clone());
        let concurrency = config.limits.concurrency as usize;
        let (permits, calls) = match old.get(&function.name) {
            Some(entry) if entry.config.limits.concurrency as usize == concurrency => {
                (entry.permits.clone(), entry.calls.clone())
            }
            _ => {
                let calls = Semaphore::new(concurrency + self.calls_waiting_max);
                (Arc::new(Semaphore::new(concurrency)), Arc::new(calls))
            }
        };
        let config_digest = digest_of(&config);
        let recording = Journaling::Record {
            bytes_max: usize::try_from(config.journal.bytes_max).unwrap_or(usize::MAX),
            config: config_digest,
            redacted: Arc::new(config.journal.redacted()),
        };
        Entry { function, config, permits, calls, recording, config_digest, revision }
    }

    /// Writes a function to the registry, and takes it into the view: where nothing else has changed the rest need not be read
    /// again, of which there may be ten thousand.
    async fn put(&self, function: Function, expected: Option<Revision>) -> Result<(), StorageError> {
        let bytes = serde_json::to_vec(&function).map_err(|e| StorageError::Failed(e.to_string()))?;
        {
            // Nobody reads the registry between the two.
            let _alone = self.refreshing.lock().await;
            let revision = self.storage.registry.put(&key(&function.name), bytes.into(), expected).await?;
            // Revisions count the registry's changes.
            if *self.read_to.borrow() + 1 == revision.0 {
                let old = self.view();
                let mut entries = old.entries.clone();
                entries.insert(function.name.clone(), Arc::new(self.entry(&old, function, revision)));
                *self.view.write() = Arc::new(View { entries });
                self.read_to.send_replace(revision.0);
                return Ok(());
            }
        }
        self.refresh().await
    }

    /// Waits until the view has everything that was deployed before now, by whomever.
    pub async fn caught_up(&self) {
        let changes = *self.storage.registry.changes().borrow();
        // The sender is this catalog's own: it cannot be gone.
        let _ = self.read_to.subscribe().wait_for(|read| *read >= changes).await;
    }

    /// Keeps up with what is deployed, by this runtime or by others, until the server stops.
    pub async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.storage.registry.changes();
        loop {
            // Also what changed before this began to look.
            let wanted = *changes.borrow_and_update();
            if *self.read_to.borrow() >= wanted {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
                continue;
            }
            while let Err(error) = self.refresh().await {
                tracing::error!(%error, "what is deployed cannot be read; trying again");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(REFRESH_PAUSE) => {}
                }
            }
        }
    }

    /// Makes a version ready to run: from memory, from the artifact cache, or compiled anew.
    pub async fn ready(&self, version: &FunctionVersion, profile: Profile) -> Result<Ready, nexus_engine::EngineError> {
        self.loaded.get(version.digest, profile).await
    }

    /// The configuration that a journal names: an entry's present one, or one that was there before. `None`: it is not known any more.
    pub async fn config(&self, entry: &Entry, digest: [u8; 16]) -> Result<Option<Arc<FunctionConfig>>, StorageError> {
        if entry.config_digest == digest {
            return Ok(Some(entry.config.clone()));
        }
        let Some((bytes, _)) = self.storage.registry.get(&config_key(digest)).await? else { return Ok(None) };
        let config = serde_json::from_slice(&bytes)
            .map_err(|e| StorageError::Damaged(format!("registry entry {}: {e}", config_key(digest))))?;
        Ok(Some(Arc::new(config)))
    }

    /// Keeps a configuration, so that what is recorded under it can be replayed when it has changed.
    pub async fn keep_config(&self, digest: [u8; 16], config: &FunctionConfig) -> Result<(), StorageError> {
        let key = config_key(digest);
        let bytes = serde_json::to_vec(config).map_err(|e| StorageError::Failed(e.to_string()))?;
        let _alone = self.refreshing.lock().await;
        match self.storage.registry.put(&key, bytes.into(), None).await {
            Ok(revision) => {
                // It is no function: the view knows all that there is to know of this change.
                self.read_to.send_if_modified(|read| {
                    let next = *read + 1 == revision.0;
                    *read += u64::from(next);
                    next
                });
                Ok(())
            }
            // It is there already.
            Err(StorageError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The bytes that a version was deployed as.
    pub async fn artifact(&self, digest: Digest) -> Result<Bytes, nexus_engine::EngineError> {
        self.loaded.artifact(digest).await
    }
}

/// The first half of the digest of a configuration, by which a journal names it.
fn digest_of(config: &FunctionConfig) -> [u8; 16] {
    let json = serde_json::to_vec(config).unwrap_or_default();
    Digest::of(&json).half()
}

fn config_key(digest: [u8; 16]) -> String {
    format!("{CONFIGS}{:032x}", u128::from_be_bytes(digest))
}

fn key(name: &FunctionName) -> String {
    format!("{PREFIX}{name}")
}
