//! `nexus child`: becomes another program that ends with the process that started it, also if that is killed.
//!
//! A program of its own for this moment, because what a process does between fork and exec is safe for few things only.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::{Done, Failure};

/// Arguments of `nexus child`.
#[derive(Args)]
pub struct ChildArgs {
    /// The process that starts it
    parent: i32,
    /// The program
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<std::ffi::OsString>,
}

pub fn run(args: ChildArgs) -> Done {
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(std::io::Error::from)?;
    // It may have ended before it was asked for.
    if getppid() != Pid::from_raw(args.parent) {
        return Err(Failure::failed(format!("process {} has ended", args.parent)));
    }
    let error = Command::new(&args.program).args(&args.args).exec();
    Err(Failure::failed(format!("{} cannot be started: {error}", args.program.display())))
}
