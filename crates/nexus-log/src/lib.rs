//! Storage: one contract of three parts (log, registry, artifacts), and who keeps it.
//!
//! * [`contract`]: what storage promises; no implementation is named there.
//! * [`embedded`]: the default, a directory of this machine; needs no server.
//! * [`jetstream`]: a stream of NATS, for several runtimes and machines.
//! * [`conformance`]: the suite that every implementation passes.

pub mod conformance;
pub mod contract;
pub mod embedded;
pub mod jetstream;

pub use contract::*;
