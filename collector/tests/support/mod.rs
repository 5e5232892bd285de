//! What the tests with real probes share.

use std::env;

use nexus_collector::{Probes, ProbesConfig, ProbesError};

/// The probes, or `None` with a printed reason where this machine does not let us have them. With `NEXUS_REQUIRE_EBPF=1`
/// there is no such excuse, and for a defect there never is.
pub fn probes(config: &ProbesConfig) -> Option<Probes> {
    match Probes::load(config) {
        Ok(probes) => Some(probes),
        Err(
            error @ (ProbesError::NoPrivilege { .. }
            | ProbesError::NoBtf { .. }
            | ProbesError::Unsupported { .. }
            | ProbesError::PidNamespace { .. }),
        ) => skip(&error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

/// Says why a test does not run here.
pub fn skip<T>(reason: &str) -> Option<T> {
    assert!(env::var_os("NEXUS_REQUIRE_EBPF").is_none_or(|value| value != "1"), "NEXUS_REQUIRE_EBPF=1, but {reason}");
    eprintln!("skipped: {reason}");
    None
}
