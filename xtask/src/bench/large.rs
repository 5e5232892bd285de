//! A log of ten million events against an empty one.

use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Nexus;
use super::load::{Connection, Wrk};
use super::report::{self, Table, median, percentile};
use crate::process::{Running, root};

const EVENTS: f64 = 1e7;
/// Look-ups of which the time is taken.
const LOOKUPS: usize = 1000;

/// Fills a log in batches of 100, and compares its end with its beginning.
pub fn run(wrk: &Wrk) -> Result<()> {
    let nexus = Nexus::start("large", &[])?;
    let mut connection = Connection::to(&nexus.url)?;
    let empty = wrk.post_events(&nexus.url, 100)?.per_second * 100.0;
    let began = Instant::now();
    let mut last = empty;
    let mut rates = Vec::new();
    let mut count = connection.newest_seq()?;
    while count < EVENTS {
        last = wrk.post_events(&nexus.url, 100)?.per_second * 100.0;
        rates.push(last);
        count = connection.newest_seq()?;
        eprintln!("{count:.0} events after {:.0} s, {last:.0}/s", began.elapsed().as_secs_f64());
    }
    // The last three, as a merge in the background may fall into any one.
    let full = median(rates.iter().rev().take(3).copied());
    let ids = ids(&mut connection, count)?;
    let filled_lookups = lookups(&mut connection, &ids)?;
    let filled = memory_mib(nexus.server.as_ref().context("a server")?)?;
    let data = nexus.data.clone();
    nexus.server.map(Running::stop).transpose()?;

    let began = Instant::now();
    let nexus = Nexus::start_in(data, &[])?;
    let start = began.elapsed();
    let mut connection = Connection::to(&nexus.url)?;
    let cold = lookups(&mut connection, &ids)?;
    let after = memory_mib(nexus.server.as_ref().context("a server")?)?;
    let bytes = size(&nexus.data)?;
    nexus.stop()?;

    let mut table = Table::new("A log of ten million events", &["what", "figure"]);
    let mut row = |what: &str, figure: String| table.row(&[what.to_owned(), figure]);
    row("events", format!("{count:.0}"));
    row("taken in when it was empty, batches of 100", format!("{empty:.0}/s"));
    row("taken in at the end (median of three)", format!("{full:.0}/s, {:.2} of that", full / empty));
    row("the last of them", format!("{last:.0}/s"));
    for (what, times) in [("look-up by id", filled_lookups), ("the same after a restart", cold)] {
        let p99 = percentile(times.clone(), 99);
        row(what, format!("p50 {}, p99 {}", report::us(median(times.into_iter())), report::us(p99)));
    }
    row("start", format!("{:.2} s", start.as_secs_f64()));
    row("resident memory, filled and after a restart", format!("{filled:.0} MiB, {after:.0} MiB"));
    row("on disk", format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)));
    table.print();
    println!("the disk alone: {}\n", report::disk_floor(&root().join("target/bench"))?);
    Ok(())
}

/// Ids of events from all over the log.
fn ids(connection: &mut Connection, count: f64) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    // A golden step visits all parts of the log.
    let mut at = 0.0;
    while ids.len() < LOOKUPS {
        at = (at + count * 0.618_033_988_749) % count;
        let page: Value = serde_json::from_str(&connection.get(&format!("/v1/events?limit=1&cursor={at:.0}"))?)?;
        ids.extend(page["items"][0]["event"]["id"].as_str().map(str::to_owned));
    }
    Ok(ids)
}

/// Times of requests for events by their ids.
fn lookups(connection: &mut Connection, ids: &[String]) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for id in ids {
        let began = Instant::now();
        connection.get(&format!("/v1/events/{id}"))?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

fn memory_mib(server: &Running) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0)
}

fn size(folder: &std::path::Path) -> Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}
