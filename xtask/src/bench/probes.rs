//! What the probes cost the application.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::load::Wrk;
use super::report::{Table, median};
use super::{Nexus, guest};

/// What the probes cost, in turn: calls and ingest without them, with them, and calls while a profile is taken.
pub fn run(wrk: &Wrk, rounds: u32) -> Result<()> {
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
