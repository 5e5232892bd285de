//! Deploying, configuring and deleting functions.

use std::path::Path;

use bytes::Bytes;
use jiff::Timestamp;
use nexus_core::function::{Function, FunctionConfig, FunctionVersion, InvalidConfig};
use nexus_core::ids::{Digest, FunctionName, Version};
use nexus_engine::{EngineError, Profile, Rejected};
use nexus_log::{Revision, StorageError};

use super::{Catalog, key};

/// How often a change is tried again when somebody else changed the function in between.
const TRIES: usize = 5;
/// The most versions of one function; the oldest are forgotten.
const VERSIONS_MAX: usize = 1000;

/// Why a function was not changed.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// The file cannot be run here.
    #[error(transparent)]
    Rejected(Rejected),
    /// The configuration cannot be.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// There is no such function.
    #[error("there is no function `{0}`; `nexus functions list` shows those that there are")]
    NotFound(FunctionName),
    /// The engine failed.
    #[error(transparent)]
    Engine(EngineError),
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<EngineError> for DeployError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Rejected(rejected) => Self::Rejected(rejected),
            other => Self::Engine(other),
        }
    }
}

/// What a deployment came to.
#[derive(Clone, Debug)]
pub struct Deployed {
    /// The current version.
    pub version: FunctionVersion,
    /// Whether it is new; the same bytes again are the same version.
    pub created: bool,
}

impl Catalog {
    /// Deploys a component or module under a name. Compiles and links it first: what is refused changes nothing.
    pub async fn deploy(&self, name: &FunctionName, bytes: Bytes) -> Result<Deployed, DeployError> {
        let digest = Digest::of(&bytes);
        let profile = self.view().get(name).map_or(Profile::Short, |entry| entry.profile());
        let (engine, copy) = (self.engine.clone(), bytes.clone());
        let loaded = tokio::task::spawn_blocking(move || engine.compile(&copy, digest, profile))
            .await
            .unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))?;
        let kind = loaded.kind();
        self.storage.artifacts.put(bytes).await?;
        let mut created = false;
        let function = self
            .change(name, |old| {
                let mut function = old.unwrap_or_else(|| Function {
                    name: name.clone(),
                    versions: Vec::new(),
                    config: FunctionConfig::default(),
                    configured_at: Some(Timestamp::now()),
                });
                created = function.current().is_none_or(|current| current.digest != digest);
                if created {
                    let last = function.versions.last().map_or(0, |v| v.version.0);
                    let created_at = Timestamp::now();
                    function.versions.push(FunctionVersion { version: Version(last + 1), digest, kind, created_at });
                    if function.versions.len() > VERSIONS_MAX {
                        function.versions.remove(0);
                    }
                }
                Ok(function)
            })
            .await?;
        self.loaded.forget(digest);
        let version = function.current().cloned().ok_or_else(|| DeployError::NotFound(name.clone()))?;
        Ok(Deployed { version, created })
    }

    /// Replaces a function's configuration.
    pub async fn configure(&self, name: &FunctionName, config: FunctionConfig) -> Result<Function, DeployError> {
        config.validate()?;
        for (i, mount) in config.mounts.iter().enumerate() {
            let invalid = |why: String| DeployError::Config(InvalidConfig { field: format!("mounts[{i}].host"), why });
            let real = mount.host.canonicalize().map_err(|e| invalid(format!("{}: {e}", mount.host.display())))?;
            if !self.mounts_allowed.iter().any(|allowed| is_below(&real, allowed)) {
                return Err(invalid(format!(
                    "is {}, which is not below a folder that the server allows (`mounts_allowed` in its config)",
                    mount.host.display()
                )));
            }
        }
        self.change(name, |old| {
            let function = old.ok_or_else(|| DeployError::NotFound(name.clone()))?;
            if function.config == config {
                return Ok(function);
            }
            Ok(Function { config: config.clone(), configured_at: Some(Timestamp::now()), ..function })
        })
        .await
    }

    /// Takes a function away. Its events and outcomes stay in the log.
    pub async fn delete(&self, name: &FunctionName) -> Result<(), DeployError> {
        let _changing = self.changing.lock().await;
        let (_, revision) =
            self.storage.registry.get(&key(name)).await?.ok_or_else(|| DeployError::NotFound(name.clone()))?;
        self.storage.registry.delete(&key(name), revision).await?;
        Ok(self.refresh().await?)
    }

    async fn change(
        &self,
        name: &FunctionName,
        mut edit: impl FnMut(Option<Function>) -> Result<Function, DeployError>,
    ) -> Result<Function, DeployError> {
        let _changing = self.changing.lock().await;
        for _ in 0..TRIES {
            let found = self.storage.registry.get(&key(name)).await?;
            let (old, revision): (Option<Function>, Option<Revision>) = match found {
                None => (None, None),
                Some((bytes, revision)) => {
                    let function = serde_json::from_slice(&bytes)
                        .map_err(|e| StorageError::Damaged(format!("registry entry {}: {e}", key(name))))?;
                    (Some(function), Some(revision))
                }
            };
            let new = edit(old.clone())?;
            if old.as_ref() == Some(&new) {
                return Ok(new);
            }
            if old.as_ref().is_none_or(|old| old.config != new.config) {
                // Also the one that goes: an earlier release, which wrote it otherwise, did not keep it.
                for config in old.iter().map(|old| &old.config).chain([&new.config]) {
                    self.keep_config(super::digest_of(config), config).await?;
                }
            }
            match self.put(new.clone(), revision).await {
                Ok(()) => return Ok(new),
                Err(StorageError::Conflict { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(StorageError::Conflict { key: key(name) }.into())
    }
}

fn is_below(real: &Path, allowed: &Path) -> bool {
    allowed.canonicalize().is_ok_and(|allowed| real.starts_with(allowed))
}
