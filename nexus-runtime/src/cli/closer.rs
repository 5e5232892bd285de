//! A closer look at one replay, in this process: where it is on a CPU, what it was like when it trapped, a debugger.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nexus_core::ids::{FunctionName, FunctionRef};
use nexus_engine::{Closer, Engine};
use reqwest::Method;

use super::Failure;
use super::client::Client;
use crate::replay::case::Case;

/// How often it is looked whether a debugger has come.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// Flags of `nexus replay` by which it is run here.
#[derive(Args)]
pub struct CloserArgs {
    /// Of one event or invocation: runs it here, again and again, and writes where the function's own code is on a CPU, sampled ten thousand times a second; a flame graph if the file is .svg, else folded stacks
    #[arg(long, value_name = "FILE", requires = "id")]
    profile: Option<PathBuf>,
    /// For how long, with --profile
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=300), requires = "profile")]
    profile_seconds: u64,
    /// Of one event or invocation: runs it here, and where it traps writes what it was like: a core dump in WebAssembly's own format
    #[arg(long, value_name = "FILE", requires = "id")]
    core_dump: Option<PathBuf>,
    /// Of one event or invocation: runs it here, once a debugger (gdb, lldb) has been attached to this process
    #[arg(long, requires = "id", conflicts_with_all = ["profile", "core_dump"])]
    debug: bool,
}

impl CloserArgs {
    /// Whether anything is asked for.
    pub fn any(&self) -> bool {
        self.debug || self.profile.is_some() || self.core_dump.is_some()
    }

    /// For how long it is run again and again.
    pub fn repeat(&self) -> Option<Duration> {
        self.profile.as_ref().map(|_| Duration::from_secs(self.profile_seconds))
    }

    /// What the engine is to look at.
    pub fn closer(&self) -> Closer {
        Closer { samples: self.profile.is_some(), core_dumps: self.core_dump.is_some(), debugger: self.debug }
    }

    /// Lets a debugger come, if one was asked for.
    pub async fn before(&self) -> anyhow::Result<()> {
        if self.debug && !is_traced()? {
            // By default a process may only look at its children (Yama's `ptrace_scope`).
            rustix::process::set_ptracer(rustix::process::PTracer::Any).ok();
            let pid = std::process::id();
            eprintln!("nexus: the function's code is loaded; it runs once a debugger is there:");
            eprintln!("    gdb -p {pid} -ex 'set breakpoint pending on' -ex 'break FUNCTION' -ex continue");
            while !is_traced()? {
                tokio::time::sleep(LOOK_PERIOD).await;
            }
        }
        Ok(())
    }

    /// Writes what was seen.
    pub fn after(&self, engine: &Engine, runs: usize) -> Result<(), Failure> {
        if let Some(path) = &self.core_dump {
            match engine.take_core_dump() {
                Some(dump) => write(path, &dump, "a core dump of WebAssembly")?,
                None => eprintln!("nexus: it did not trap: there is no core dump"),
            }
        }
        if let Some(path) = &self.profile {
            let stacks = engine.take_stacks();
            let samples: u64 = stacks.values().sum();
            if samples == 0 {
                eprintln!(
                    "nexus: no sample in {runs} runs, and no profile: the function's own code runs for too short a time in each; \
                     give it longer (--profile-seconds)"
                );
                return Ok(());
            }
            let folded = folded(stacks);
            let what = format!("{samples} samples in {runs} runs");
            let bytes = match path.extension().is_some_and(|e| e == "svg") {
                true => drawn(&folded, &what)?,
                false => folded.into_bytes(),
            };
            write(path, &bytes, &what)?;
        }
        Ok(())
    }
}

fn is_traced() -> anyhow::Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot see whether a debugger is there")?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    Ok(tracer.is_some_and(|pid| pid.trim() != "0"))
}

/// For its owner alone: a function's memory may have secrets in it.
fn write(path: &Path, bytes: &[u8], what: &str) -> Result<(), Failure> {
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(bytes));
    written.map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
    eprintln!("nexus: {} ({what}, {} bytes)", path.display(), bytes.len());
    Ok(())
}

fn folded(stacks: HashMap<Vec<String>, u64>) -> String {
    let line = |(frames, count): (Vec<String>, u64)| {
        // Semicolons part the frames.
        let frames: Vec<_> = frames.iter().map(|frame| frame.replace(';', ":")).collect();
        format!("{} {count}\n", frames.join(";"))
    };
    let mut lines: Vec<_> = stacks.into_iter().map(line).collect();
    lines.sort();
    lines.concat()
}

fn drawn(folded: &str, title: &str) -> anyhow::Result<Vec<u8>> {
    let mut options = inferno::flamegraph::Options::default();
    options.title = title.to_owned();
    let mut svg = Vec::new();
    inferno::flamegraph::from_lines(&mut options, folded.lines(), &mut svg)
        .map_err(|e| anyhow::anyhow!("the flame graph cannot be drawn: {e}"))?;
    Ok(svg)
}

/// An event or an invocation with its journal and the component that it is to be replayed with, from the server.
pub async fn fetch(
    client: &Client,
    id: &str,
    source: Option<&str>,
    function: Option<&FunctionRef>,
) -> Result<(Case, Vec<u8>), Failure> {
    let json = client.export(id, source).await?;
    let case = Case::read(json.as_bytes()).map_err(|e| Failure::failed(e.to_string()))?;
    let ran = case.ran();
    let (name, version) = match (function, &ran[..]) {
        (Some(FunctionRef { name, version: Some(version) }), _) => (name.clone(), version.to_string()),
        // As on the server: its current version.
        (Some(FunctionRef { name, version: None }), _) => (name.clone(), current(client, name).await?),
        (None, [(name, version)]) => (name.clone(), version.to_string()),
        (None, _) => {
            let names = ran.iter().map(|(name, version)| format!("{name}@{version}")).collect::<Vec<_>>().join(", ");
            return Err(Failure::usage(format!("say which --function; these ran: {names}")));
        }
    };
    let component = component(client, &name, &version).await?;
    Ok((case, component))
}

/// The current version of a function.
pub async fn current(client: &Client, name: &FunctionName) -> Result<String, Failure> {
    Ok(client.get(&format!("/v1/functions/{name}")).await?["version"].to_string())
}

/// The bytes of a version, from the server.
pub async fn component(client: &Client, name: &FunctionName, version: &str) -> Result<Vec<u8>, Failure> {
    let path = format!("/v1/functions/{name}/versions/{version}");
    let response = client.send(client.request(Method::GET, &path)).await?;
    let body = response.bytes().await.map_err(|e| Failure::failed(format!("the answer broke off: {e}")))?;
    Ok(body.into())
}
