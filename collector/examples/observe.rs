//! Runs a program under the probes: `cargo run -p nexus-collector --example observe -- CMD ARG…`.

use std::ffi::OsString;
use std::process::ExitCode;

use nexus_collector::{Probes, ProbesConfig, observe};

fn main() -> ExitCode {
    let command: Vec<OsString> = std::env::args_os().skip(1).collect();
    let observed = Probes::load(&ProbesConfig::for_observe())
        .map_err(observe::ObserveError::from)
        .and_then(|probes| observe::run(&command, &probes));
    match observed {
        Ok(observed) => {
            eprintln!("{:?}, {} tasks, complete: {:?}", observed.duration, observed.tasks, observed.kernel.complete);
            for (name, stats) in observed.kernel.syscalls.iter().flatten() {
                eprintln!("{:>8} {:>6} {:>12} ns  {name}", stats.count, stats.errors, stats.total_ns);
            }
            ExitCode::from(u8::try_from(observed.exit_code).unwrap_or(1))
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1))
        }
    }
}
