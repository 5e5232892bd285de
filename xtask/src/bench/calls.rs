//! Calls over HTTP: warm ones against `wasmtime serve`, and cold starts.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::load::{self, Wrk};
use super::report::{self, Table, median};
use super::{Nexus, guest};
use crate::process::{Running, find, output, root};

/// Cold starts that are measured; each is a new process.
const COLD_STARTS: usize = 15;

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
pub fn warm(wrk: &Wrk, rounds: u32) -> Result<()> {
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
pub fn cold() -> Result<()> {
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
