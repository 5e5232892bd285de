//! Functions that are ready to run, loaded once and kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nexus_core::ids::Digest;
use nexus_engine::{Engine, EngineError, Loaded, Profile, Rejected};
use nexus_log::Artifacts;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

/// The most functions that are kept loaded. Each is a mapping of a file: its cost is address space, and the pages that
/// are used.
const LOADED_MAX: usize = 4096;

type Cell = Arc<OnceCell<Arc<Loaded>>>;

/// A function that is ready, and what that took.
pub struct Ready {
    /// The function.
    pub loaded: Arc<Loaded>,
    /// The time that it took to load, if it was not loaded yet: a cold start.
    pub cold: Option<Duration>,
}

pub(super) struct LoadedFunctions {
    engine: Arc<Engine>,
    artifacts: Arc<dyn Artifacts>,
    cells: Mutex<HashMap<(Digest, Profile), Cell>>,
}

impl LoadedFunctions {
    pub fn new(engine: Arc<Engine>, artifacts: Arc<dyn Artifacts>) -> Self {
        Self { engine, artifacts, cells: Mutex::default() }
    }

    /// Many may ask at once; one loads, the others wait for it.
    pub async fn get(&self, digest: Digest, profile: Profile) -> Result<Ready, EngineError> {
        let cell = {
            let mut cells = self.cells.lock();
            if cells.len() >= LOADED_MAX && !cells.contains_key(&(digest, profile)) {
                // Whoever runs keeps its own reference; the next to ask loads again.
                cells.clear();
            }
            cells.entry((digest, profile)).or_default().clone()
        };
        if let Some(loaded) = cell.get() {
            return Ok(Ready { loaded: loaded.clone(), cold: None });
        }
        let began = Instant::now();
        let loaded = cell.get_or_try_init(|| self.load(digest, profile)).await?;
        Ok(Ready { loaded: loaded.clone(), cold: Some(began.elapsed()) })
    }

    async fn load(&self, digest: Digest, profile: Profile) -> Result<Arc<Loaded>, EngineError> {
        // Mapping the file is some hundred microseconds; handing it to another thread would cost as much again.
        if let Some(loaded) = self.engine.load(digest, profile)? {
            return Ok(loaded);
        }
        let bytes = self.artifact(digest).await?;
        let engine = self.engine.clone();
        tokio::task::spawn_blocking(move || engine.compile(&bytes, digest, profile))
            .await
            .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
    }

    /// The bytes that a function is compiled from.
    pub async fn artifact(&self, digest: Digest) -> Result<Bytes, EngineError> {
        let got = self.artifacts.get(digest).await;
        let found = got.map_err(|e| Rejected::Invalid(format!("artifact {digest}: {e}")))?;
        Ok(found.ok_or_else(|| Rejected::Invalid(format!("artifact {digest} is gone")))?)
    }

    /// Forgets that a function is loaded, so that its next start is a cold one.
    pub fn forget(&self, digest: Digest) {
        self.cells.lock().retain(|(other, _), _| *other != digest);
    }
}
