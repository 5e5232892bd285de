//! `cargo xtask bench`: Nexus and its peers in turn, in one run. What counts are ratios within it.

mod load;
mod report;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use self::load::Wrk;
use self::report::{Table, median};
use crate::process::{Running, cargo, find, must, nexus_ready, output, root};

const CONNECTIONS: u32 = 64;
/// Cold starts that are measured; each is a new process.
const COLD_STARTS: usize = 15;

/// Runs the benchmarks that are named, or all.
pub fn run(seconds: u32, rounds: u32, only: &[String]) -> Result<()> {
    for name in only {
        ensure!(["call", "cold", "ingest", "probes"].contains(&name.as_str()), "there is no benchmark {name:?}");
    }
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
    must(&mut cargo(&["build", "--release", "--bins"]))?;
    let wrk = Wrk::find(seconds)?;
    report::machine()?;
    if wanted("call") {
        calls(&wrk, rounds)?;
    }
    if wanted("cold") {
        cold_starts()?;
    }
    if wanted("ingest") {
        ingest(&wrk, rounds)?;
    }
    if wanted("probes") {
        probes(&wrk, rounds)?;
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

/// `wasmtime serve`, the peer.
fn wasmtime_serve(component: &Path) -> Result<(Running, String)> {
    let installed = root().join("target/peers/bin/wasmtime");
    let Some(program) = Some(installed).filter(|p| p.is_file()).or_else(|| find("wasmtime")) else {
        bail!("the peer is missing: cargo install wasmtime-cli --version 48.0.8 --locked --root target/peers");
    };
    let version = output(Command::new(&program).arg("--version"))?;
    ensure!(version.contains(" 48."), "the peer must be wasmtime 48, not {}", version.trim());
    // It does not say which free port it took.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let address = format!("127.0.0.1:{port}");
    let mut command = Command::new(program);
    command.args(["serve", "-Scli", "--addr", &address]).arg(component).env_remove("RUST_BACKTRACE");
    command.stderr(std::process::Stdio::null());
    let child = command.spawn().context("wasmtime serve")?;
    let running = Running::of(child);
    let until = Instant::now() + Duration::from_secs(30);
    while std::net::TcpStream::connect(&address).is_err() {
        ensure!(Instant::now() < until, "wasmtime serve did not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((running, format!("http://{address}")))
}

/// Warm calls of the same component, against `wasmtime serve`.
fn calls(wrk: &Wrk, rounds: u32) -> Result<()> {
    let hello = guest("hello-http");
    let mut table = Table::new(
        "Warm calls: the same `wasi:http` component, 64 connections",
        &["server", "calls/s", "p50", "p99", "against wasmtime serve"],
    );
    let names = [
        "wasmtime serve",
        "Nexus /fn, durable, probes on",
        "Nexus /fn, durable, probes off",
        "Nexus /fn, nexus:function no-op",
        "Nexus /healthz: its HTTP alone",
    ];
    let mut all: Vec<Vec<load::Measured>> = vec![Vec::new(); names.len()];
    for _ in 0..rounds {
        let (peer, peer_url) = wasmtime_serve(&hello)?;
        all[0].push(wrk.get(&format!("{peer_url}/"))?);
        drop(peer);
        for (at, kernel) in [(1, "auto"), (2, "off")] {
            let nexus = Nexus::start("call", &["--kernel", kernel])?;
            nexus.deploy("hello", &hello, &[])?;
            nexus.deploy("noop", &guest("noop"), &[])?;
            all[at].push(wrk.get(&format!("{}/fn/hello/", nexus.url))?);
            if kernel == "auto" {
                all[3].push(wrk.get(&format!("{}/fn/noop/", nexus.url))?);
                all[4].push(wrk.get(&format!("{}/healthz", nexus.url))?);
            }
            nexus.stop()?;
        }
    }
    let peer = median(all[0].iter().map(|m| m.per_second));
    for (name, measured) in names.iter().zip(&all) {
        let rate = median(measured.iter().map(|m| m.per_second));
        let (p50, p99) = (median(measured.iter().map(|m| m.p50_us)), median(measured.iter().map(|m| m.p99_us)));
        table.row(&[
            (*name).into(),
            format!("{rate:.0}"),
            report::us(p50),
            report::us(p99),
            format!("{:.2}", rate / peer),
        ]);
    }
    table.print();
    Ok(())
}

/// First responses of functions that were never run since the process started.
fn cold_starts() -> Result<()> {
    let data = root().join("target/bench/cold");
    if data.exists() {
        std::fs::remove_dir_all(&data)?;
    }
    let mut table = Table::new(
        "Cold start: the first call since the process started (medians)",
        &[
            "function",
            "first response",
            "load (map, link)",
            "instance",
            "run",
            "append and commit, HTTP",
            "second response",
        ],
    );
    for (name, wasm) in [
        ("hello-http", guest("hello-http")),
        ("probe", guest("probe")),
        ("thumbnail", root().join("examples/thumbnail/thumbnail.wasm")),
        ("noop", guest("noop")),
    ] {
        let first_start = Nexus::start_in(data.clone(), &[])?;
        first_start.deploy(name, &wasm, &[])?;
        first_start.server.map(Running::stop).transpose()?;
        let mut rows: Vec<[f64; 6]> = Vec::new();
        for _ in 0..COLD_STARTS {
            let nexus = Nexus::start_in(data.clone(), &[])?;
            let url = format!("{}/fn/{name}/hello", nexus.url);
            let first = load::once(&url)?;
            let second = load::once(&url)?;
            let event = nexus.json(&["events", "get", &first.event_id])?;
            let invocation = &event["invocations"][0];
            ensure!(invocation["cold_start"] == true, "not a cold start: {invocation}");
            let us = |key: &str| invocation[key].as_f64().unwrap_or(f64::NAN) / 1e3;
            let (load, init, run) = (us("load_ns"), us("init_ns"), us("duration_ns") - us("init_ns"));
            rows.push([first.us, load, init, run, first.us - load - init - run, second.us]);
            nexus.server.map(Running::stop).transpose()?;
        }
        let column = |i: usize| report::us(median(rows.iter().map(|r| r[i])));
        table.row(&[name.into(), column(0), column(1), column(2), column(3), column(4), column(5)]);
    }
    table.print();
    std::fs::remove_dir_all(&data)?;
    Ok(())
}

/// Durable ingest, with nothing and with a no-op behind it.
fn ingest(wrk: &Wrk, rounds: u32) -> Result<()> {
    let mut table =
        Table::new("Durable ingest: an answer means on disk, 64 clients", &["what", "events/s", "p50", "p99"]);
    let cases =
        [("single events", 1, false), ("batches of 100", 100, false), ("single events, delivered to a no-op", 1, true)];
    let mut all: Vec<Vec<load::Measured>> = vec![Vec::new(); cases.len()];
    for _ in 0..rounds {
        for (at, (_, batch, delivered)) in cases.iter().enumerate() {
            let nexus = Nexus::start("ingest", &[])?;
            if *delivered {
                nexus.deploy("noop", &guest("noop"), &["type=bench"])?;
            }
            all[at].push(wrk.post_events(&nexus.url, *batch)?);
            nexus.stop()?;
        }
    }
    for ((name, batch, _), measured) in cases.iter().zip(&all) {
        let rate = median(measured.iter().map(|m| m.per_second)) * f64::from(*batch);
        let (p50, p99) = (median(measured.iter().map(|m| m.p50_us)), median(measured.iter().map(|m| m.p99_us)));
        table.row(&[(*name).into(), format!("{rate:.0}"), report::us(p50), report::us(p99)]);
    }
    table.print();
    println!("the disk alone: {}\n", report::disk_floor(&root().join("target/bench"))?);
    Ok(())
}

/// What the probes cost, in turn: calls and ingest without them, with them, and calls while a profile is taken.
fn probes(wrk: &Wrk, rounds: u32) -> Result<()> {
    // One more second than wrk takes to warm up and to measure.
    let profile_seconds = (wrk.seconds() + 3).to_string();
    let mut rates: [Vec<f64>; 3] = Default::default();
    let mut cpu: [Vec<f64>; 3] = Default::default();
    let mut events: [Vec<f64>; 2] = Default::default();
    for _ in 0..rounds.max(5) {
        for (at, (kernel, profiled)) in [("off", false), ("auto", false), ("auto", true)].into_iter().enumerate() {
            let nexus = Nexus::start("probes", &["--kernel", kernel])?;
            nexus.deploy("hello", &guest("hello-http"), &[])?;
            let profile = profiled.then(|| {
                let mut command = nexus.command(&["profile", "hello", "--seconds", &profile_seconds, "-o", "-"]);
                command.args(["--format", "folded"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
            });
            let server = nexus.server.as_ref().context("a server")?;
            let (measured, cpu_us) = wrk.get_and_watch(&format!("{}/fn/hello/", nexus.url), server)?;
            rates[at].push(measured.per_second);
            cpu[at].push(cpu_us);
            if let Some(events) = events.get_mut(at) {
                events.push(wrk.post_events(&nexus.url, 1)?.per_second);
            }
            if let Some(profile) = profile {
                let taken = profile?.wait_with_output()?;
                ensure!(taken.status.success() && !taken.stdout.is_empty(), "no profile was taken");
            }
            nexus.stop()?;
        }
    }
    let head = ["what", "per s", "against off", "processor time of the server", "against off"];
    let mut table = Table::new("Probes on against off, taking turns", &head);
    // Runs of one turn are compared: the machine's speed drifts.
    let against = |some: &[f64], off: &[f64]| median(some.iter().zip(off).map(|(some, off)| some / off));
    let names = ["calls of hello-http, off", "the same, on", "the same, on, and a profile at 99 Hz"];
    for (name, (rates_of, cpu_of)) in names.into_iter().zip(rates.iter().zip(&cpu)) {
        table.row(&[
            name.into(),
            format!("{:.0}", median(rates_of.iter().copied())),
            format!("{:.3}", against(rates_of, &rates[0])),
            format!("{:.1} µs a call", median(cpu_of.iter().copied())),
            format!("{:.3}", against(cpu_of, &cpu[0])),
        ]);
    }
    for (name, events_of) in ["single events, off", "the same, on"].into_iter().zip(&events) {
        let rate = median(events_of.iter().copied());
        table.row(&[
            name.into(),
            format!("{rate:.0}"),
            format!("{:.3}", against(events_of, &events[0])),
            String::new(),
            String::new(),
        ]);
    }
    table.print();
    Ok(())
}
