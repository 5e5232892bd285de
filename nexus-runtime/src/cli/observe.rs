//! `nexus observe`: any program under the probes.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;
use nexus_collector::{Probes, ProbesConfig, observe};
use serde_json::json;

use super::style::say;
use super::{Done, Failure, Output, style, trace};

/// Arguments of `nexus observe`.
#[derive(Args)]
pub struct ObserveArgs {
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

pub fn run(args: ObserveArgs, output: Output) -> Done {
    let probes = Probes::load(&ProbesConfig::for_observe()).map_err(|e| Failure::failed(e.to_string()))?;
    let observed = observe::run(&args.command, &probes).map_err(|e| {
        // A shell's codes for a command that is not there or cannot be run.
        Failure { code: u8::try_from(e.exit_code()).unwrap_or(1), message: e.to_string() }
    })?;
    let duration_ns = u64::try_from(observed.duration.as_nanos()).unwrap_or(u64::MAX);
    let kernel = serde_json::to_value(&observed.kernel).map_err(|e| Failure::failed(e.to_string()))?;
    match output {
        Output::Json => {
            let command: Vec<_> = args.command.iter().map(|a| a.to_string_lossy()).collect();
            say!(
                "{}",
                json!({"command": command, "exit_code": observed.exit_code, "duration_ns": duration_ns, "kernel": kernel})
            );
        }
        // The program's own output went to standard output; the account follows it, apart.
        Output::Text => {
            say!();
            say!("exit code  {}  after {}  {} tasks", observed.exit_code, style::duration(duration_ns), observed.tasks);
            trace::print_kernel(&kernel, "");
        }
    }
    Ok(ExitCode::from(u8::try_from(observed.exit_code).unwrap_or(1)))
}
