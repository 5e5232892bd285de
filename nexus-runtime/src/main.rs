//! `nexus`: runs WebAssembly functions on CloudEvents, and tells what happened to each event.

mod build;
mod catalog;
mod cli;
mod config;
mod dispatch;
mod gateway;
mod kernel;
mod line;
mod manifest;
mod output;
mod replay;
mod server;
mod telemetry;

use std::process::ExitCode;

fn main() -> ExitCode {
    // One TLS implementation for every client in the process. It is installed once, at the very start: it cannot be there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    cli::run()
}
