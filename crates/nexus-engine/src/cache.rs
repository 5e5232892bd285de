//! Compiled artifacts: kept by the component's digest, mapped back after a restart.

#![allow(unsafe_code)] // Mapping machine code back is the one thing that cannot be checked; see `read`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nexus_core::ids::Digest;
use wasmtime::component::Component;
use wasmtime::{Engine, Module};

use crate::{EngineError, Profile};

/// Makes the folder, for us alone.
pub(crate) fn prepare(dir: &Path) -> Result<(), EngineError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| error(dir, e))
}

/// The file's name holds all that the machine code depends on, so that a stale file is never looked at.
pub(crate) fn path(dir: &Path, engine: &Engine, digest: Digest, profile: Profile) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    dir.join(format!("{}.{}.{:016x}.cwasm", digest.hex(), profile.as_str(), hasher.finish()))
}

/// Writes an artifact so that it is there whole or not at all.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), EngineError> {
    // One component may be compiled twice at once.
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let number = WRITES.fetch_add(1, Ordering::Relaxed);
    let part = path.with_extension(format!("{}-{number}.part", std::process::id()));
    let written = (|| {
        let mut file = std::fs::File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    })();
    written.map_err(|e| {
        // The half-written file is of no use to anybody; if it cannot be removed, the error below says more.
        let _ = std::fs::remove_file(&part);
        error(path, e)
    })
}

/// An artifact that was mapped back.
pub(crate) enum Artifact {
    Component(Component),
    Module(Module),
}

/// Maps an artifact back; `None` if there is none.
pub(crate) fn read(path: &Path, engine: &Engine) -> Result<Option<Artifact>, EngineError> {
    let stale = |e: wasmtime::Error| EngineError::Stale { path: path.display().to_string(), why: format!("{e:#}") };
    if !path.try_exists().map_err(|e| error(path, e))? {
        return Ok(None);
    }
    match Engine::detect_precompiled_file(path).map_err(stale)? {
        // SAFETY: the file was written by `write` above from this engine's own compiler, into a folder that only we may
        // write to, and is never changed in place; its name carries the engine's compatibility hash, and wasmtime checks
        // its version and settings again.
        Some(wasmtime::Precompiled::Component) => {
            unsafe { Component::deserialize_file(engine, path) }.map(|c| Some(Artifact::Component(c))).map_err(stale)
        }
        // SAFETY: as above.
        Some(wasmtime::Precompiled::Module) => {
            unsafe { Module::deserialize_file(engine, path) }.map(|m| Some(Artifact::Module(m))).map_err(stale)
        }
        None => Err(EngineError::Stale { path: path.display().to_string(), why: "not a compiled artifact".into() }),
    }
}

fn error(path: &Path, source: std::io::Error) -> EngineError {
    EngineError::Cache { path: path.display().to_string(), source }
}
