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
mod nats;
mod output;
mod overhead;
mod profile;
mod replay;
mod schedules;
mod server;
mod storage;
mod telemetry;

use std::process::ExitCode;

/// An invocation makes and drops hundreds of small things on whichever thread it is polled; the system's allocator spends
/// a fifth of all time on that, and grows its heap by system calls that show up as the functions' own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // One TLS implementation for every client in the process. It is installed once, at the very start: it cannot be there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    cli::run()
}
