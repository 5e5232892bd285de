//! Runs WebAssembly functions: the only user of wasmtime.
//!
//! [`Engine`] compiles and keeps artifacts, [`Engine::load`] makes a function ready, [`Loaded::invoke`] runs it once in a
//! fresh instance. The engine knows neither the log nor the probes: it is handed a [`nexus_core::mark::Marker`].

mod cache;
mod closer;
mod egress;
mod emit;
mod engine;
mod guest;
mod host;
mod invoke;
mod kind;
mod limiter;
mod request;
mod socket;
mod streams;
mod tape;
mod worlds;

pub use closer::Closer;
pub use engine::{Engine, EngineConfig, Profile};
pub use invoke::{Finished, Invocation};
pub use kind::Rejected;
pub use request::{Answer, HttpRequest, Request};
pub use tape::{Journaling, Replayed, Step, Unmatched};
pub use worlds::{Code, Loaded};

/// Why the engine could not do what was asked; the host's fault, never the guest's.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// This machine cannot run the engine as configured.
    #[error("the WebAssembly engine cannot start: {0}")]
    Start(String),
    /// The artifact cache could not be read or written.
    #[error("compiled artifact {path}: {source}")]
    Cache {
        /// The file.
        path: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A file of our own cache is not what was written there.
    #[error("compiled artifact {path} is not usable ({why}); delete it, it will be compiled again")]
    Stale {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The component cannot be run here.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}
