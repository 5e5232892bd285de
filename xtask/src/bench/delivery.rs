//! Events: taken in, and delivered.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::load::{Connection, Measured, Wrk};
use super::report::{self, Table, median};
use super::{Nexus, guest};
use crate::process::root;

/// Events of which the latency is taken, one after the other.
const IDLE_EVENTS: usize = 400;
/// Between two of them.
const IDLE_PAUSE: Duration = Duration::from_millis(10);
/// How long a backlog may take to be delivered.
const PATIENCE: Duration = Duration::from_secs(120);

/// Durable ingest, with nothing and with a no-op behind it.
pub fn ingest(wrk: &Wrk, rounds: u32) -> Result<()> {
    let cases = [("single events", 1), ("batches of 100", 100)];
    let mut accepted: Vec<Vec<Measured>> = vec![Vec::new(); cases.len()];
    let mut delivered: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
    for _ in 0..rounds {
        for (at, (_, batch)) in cases.iter().enumerate() {
            let nexus = Nexus::start("ingest", &[])?;
            accepted[at].push(wrk.post_events(&nexus.url, *batch)?);
            nexus.stop()?;
            let nexus = Nexus::start("ingest", &[])?;
            nexus.deploy("noop", &guest("noop"), &["type=bench"])?;
            delivered[at].push(until_delivered(wrk, &nexus, *batch)?);
            nexus.stop()?;
        }
    }
    let mut table =
        Table::new("Durable ingest: an answer means on disk, 64 clients", &["what", "events/s", "p50", "p99"]);
    for ((name, batch), measured) in cases.iter().zip(&accepted) {
        let rate = median(measured.iter().map(|m| m.per_second)) * f64::from(*batch);
        let (p50, p99) = (median(measured.iter().map(|m| m.p50_us)), median(measured.iter().map(|m| m.p99_us)));
        table.row(&[(*name).into(), format!("{rate:.0}"), report::us(p50), report::us(p99)]);
    }
    for ((name, _), rates) in cases.iter().zip(&delivered) {
        let name = format!("{name}, delivered to a no-op, its outcomes on disk");
        table.row(&[name, format!("{:.0}", median(rates.iter().copied())), String::new(), String::new()]);
    }
    table.print();
    println!("the disk alone: {}\n", report::disk_floor(&root().join("target/bench"))?);
    Ok(())
}

/// Events a second, from the first that is sent to the last outcome that is on disk.
pub fn until_delivered(wrk: &Wrk, nexus: &Nexus, batch: u32) -> Result<f64> {
    let mut connection = Connection::to(&nexus.url)?;
    let began = Instant::now();
    wrk.post_events(&nexus.url, batch)?;
    let sent = connection.newest_seq()?;
    loop {
        let page = connection.get("/metrics")?;
        let counted = page.lines().find_map(|line| {
            // Behind a number there may be an example of what it counts.
            let (name, number) = line.split(" # ").next()?.rsplit_once(' ')?;
            name.starts_with("faas_invocations_total{").then(|| number.parse::<f64>().ok())?
        });
        if counted.is_some_and(|counted| counted >= sent) {
            return Ok(sent / began.elapsed().as_secs_f64());
        }
        ensure!(began.elapsed() < PATIENCE, "{counted:?} of {sent} events are delivered");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// From an event's arrival to the start of its function, where nothing else is to do.
pub fn latency() -> Result<()> {
    let nexus = Nexus::start("latency", &[])?;
    nexus.deploy("noop", &guest("noop"), &["type=bench"])?;
    let mut connection = Connection::to(&nexus.url)?;
    for n in 0..IDLE_EVENTS {
        let event = format!(r#"{{"specversion":"1.0","id":"{n}","source":"/bench","type":"bench","data":{n}}}"#);
        connection.post("/v1/events", "application/cloudevents+json", &event)?;
        std::thread::sleep(IDLE_PAUSE);
    }
    let mut to_start = Vec::new();
    for n in 0..IDLE_EVENTS {
        let event: Value = serde_json::from_str(&connection.get(&format!("/v1/events/{n}"))?)?;
        let time = |value: &Value| value.as_str().context("a time")?.parse::<Timestamp>().context("a time");
        let arrived = time(&event["received_at"])?;
        let started = time(&event["invocations"][0]["started_at"])?;
        to_start.push(started.duration_since(arrived).as_secs_f64() * 1e6);
    }
    nexus.stop()?;
    let mut table = Table::new("From an event's arrival to its function's start, idle", &["p50", "p99"]);
    table.row(&[report::us(median(to_start.iter().copied())), report::us(report::percentile(to_start, 99))]);
    table.print();
    println!("the disk alone: {}\n", report::disk_floor(&root().join("target/bench"))?);
    Ok(())
}
