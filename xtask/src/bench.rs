//! `cargo xtask bench`: Nexus and its peers in turn, in one run. What counts are ratios within it.

mod calls;
mod delivery;
mod jetstream;
mod large;
mod load;
mod probes;
mod replay;
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;

use self::load::Wrk;
use crate::process::{Running, cargo, must, nexus_ready, output, root};

/// Connections of the load generator.
const CONNECTIONS: u32 = 64;
/// What there is; `large` takes minutes and gigabytes, so it is run where it is named.
const ALL: [&str; 8] = ["call", "cold", "ingest", "latency", "jetstream", "probes", "replay", "large"];

/// Runs the benchmarks that are named, or all.
pub fn run(seconds: u32, rounds: u32, only: &[String]) -> Result<()> {
    for name in only {
        ensure!(ALL.contains(&name.as_str()), "there is no benchmark {name:?}; there are {}", ALL.join(", "));
    }
    let wanted = |name: &str| only.iter().any(|o| o == name) || only.is_empty() && name != "large";
    must(&mut cargo(&["build", "--release", "--bins"]))?;
    let wrk = Wrk::find(seconds)?;
    report::machine()?;
    if wanted("call") {
        calls::warm(&wrk, rounds)?;
    }
    if wanted("cold") {
        calls::cold()?;
    }
    if wanted("ingest") {
        delivery::ingest(&wrk, rounds)?;
    }
    if wanted("latency") {
        delivery::latency()?;
    }
    if wanted("jetstream") {
        jetstream::run(&wrk, rounds)?;
    }
    if wanted("probes") {
        probes::run(&wrk, rounds)?;
    }
    if wanted("replay") {
        replay::run(&wrk, rounds)?;
    }
    if wanted("large") {
        large::run(&wrk)?;
    }
    Ok(())
}

fn guest(name: &str) -> PathBuf {
    root().join("tests/guests").join(name).join(format!("{name}.wasm"))
}

fn program() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("release/nexus")
}

/// A server in a data directory of its own, on the disk that the build is on.
struct Nexus {
    url: String,
    server: Option<Running>,
    data: PathBuf,
}

impl Nexus {
    fn start(label: &str, args: &[&str]) -> Result<Self> {
        let data = root().join("target/bench").join(label);
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        Self::start_in(data, args)
    }

    fn start_in(data: PathBuf, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(program());
        command.args(["serve", "--listen", "127.0.0.1:0"]).arg("--data-dir").arg(&data).args(args);
        command.env("RUST_LOG", "error").env_remove("RUST_BACKTRACE");
        let (server, url) = Running::start(&mut command, nexus_ready)?;
        Ok(Self { url, server: Some(server), data })
    }

    fn deploy(&self, name: &str, wasm: &Path, on: &[&str]) -> Result<()> {
        let mut command = self.command(&["deploy", "--name", name]);
        command.arg(wasm);
        for filter in on {
            command.args(["--on", filter]);
        }
        output(&mut command).map(drop)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).env("NEXUS_URL", &self.url).env_remove("RUST_BACKTRACE");
        command
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&output(self.command(args).args(["--output", "json"]))?)?)
    }

    fn stop(mut self) -> Result<()> {
        if let Some(server) = self.server.take() {
            server.stop()?;
        }
        std::fs::remove_dir_all(&self.data)?;
        Ok(())
    }
}
