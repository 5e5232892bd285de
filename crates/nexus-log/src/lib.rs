//! Storage: one contract of three parts (log, registry, artifacts), and who keeps it.

pub mod contract;

pub use contract::*;
