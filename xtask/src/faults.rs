//! `cargo xtask faults`: the seeded tests of kills and damage, for one seed after the other.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::ci::nats_server;
use crate::process::{cargo, must, root};

/// A program of tests that takes its seed from `NEXUS_SEED`, what of it is seeded, and how many rounds make one seed.
struct Seeded {
    package: &'static str,
    target: &'static str,
    tests: &'static [&'static str],
    rounds: u32,
}

const SEEDED: [Seeded; 6] = [
    Seeded {
        package: "nexus-log",
        target: "crash",
        tests: &["what_was_acknowledged_survives_a_kill", "a_damaged_journal_gives_a_prefix_or_says_so"],
        rounds: 4,
    },
    Seeded { package: "nexus-log", target: "copies", tests: &["copies_are_the_same_whoever_wrote_what"], rounds: 4 },
    Seeded { package: "nexus-log", target: "admin", tests: &["damage::every_damage_is_named"], rounds: 6 },
    Seeded {
        package: "nexus-tests",
        target: "crash",
        tests: &["what_was_acknowledged_survives_every_kill"],
        rounds: 3,
    },
    Seeded {
        package: "nexus-tests",
        target: "stalled_disk",
        tests: &["a_disk_that_stands_still_costs_time_and_nothing_else"],
        rounds: 1,
    },
    Seeded {
        package: "nexus-tests",
        target: "bad_input",
        tests: &["clients::noise_is_never_the_servers_fault"],
        rounds: 1,
    },
];

/// Runs all of them, at once, for the seeds `first`, `first + 1`, …; stops at the first that fails, and says how to run it again.
pub fn run(first: u64, seeds: u64) -> Result<()> {
    must(&mut cargo(&["build", "-p", "nexus-runtime"]))?;
    let programs: Vec<_> = SEEDED.iter().map(|seeded| Ok((seeded, program(seeded)?))).collect::<Result<_>>()?;
    let nats = nats_server()?;
    let began = Instant::now();
    for seed in first..first + seeds {
        let failed = std::thread::scope(|scope| {
            let nats = &nats;
            let run = |(seeded, program): &(&'static Seeded, String)| {
                let (seeded, program) = (*seeded, program.clone());
                scope.spawn(move || one(seeded, &program, seed, nats))
            };
            let running: Vec<_> = programs.iter().map(run).collect();
            let ended = running.into_iter().map(|one| one.join().unwrap_or_else(|_| Err(anyhow!("a panic"))));
            ended.filter_map(Result::err).next()
        });
        if let Some(error) = failed {
            return Err(error.context(format!("seed {seed} failed after {} good ones", seed - first)));
        }
        println!("seed {seed}: good, {:.0} s", began.elapsed().as_secs_f64());
    }
    println!("{seeds} seeds in a row, {} tests each, {:.0} s", tests(), began.elapsed().as_secs_f64());
    Ok(())
}

/// Runs the tests of one program with one seed.
fn one(seeded: &Seeded, program: &str, seed: u64, nats: &Path) -> Result<()> {
    let Seeded { package, target, tests, rounds } = seeded;
    let mut test = Command::new(program);
    // Where cargo runs a package's tests.
    test.current_dir(root().join(if *package == "nexus-log" { "crates/nexus-log" } else { "tests" }));
    test.arg("--exact").args(*tests).env("RUST_BACKTRACE", "0").env("NEXUS_NATS_SERVER", nats);
    test.env("NEXUS_SEED", seed.to_string()).env("NEXUS_ROUNDS", rounds.to_string());
    let done = test.stdin(Stdio::null()).output().with_context(|| program.to_owned())?;
    let text = String::from_utf8_lossy(&done.stdout);
    // A name that fits nothing would pass.
    let all_ran = text.contains(&format!("test result: ok. {} passed", tests.len()));
    if !done.status.success() || !all_ran {
        print!("{text}{}", String::from_utf8_lossy(&done.stderr));
        bail!(
            "again: NEXUS_SEED={seed} NEXUS_ROUNDS={rounds} cargo xtask test -- -p {package} --test {target} -- --exact {}",
            tests.join(" ")
        );
    }
    Ok(())
}

fn tests() -> usize {
    SEEDED.iter().map(|seeded| seeded.tests.len()).sum()
}

/// Builds a program of tests; where it is.
fn program(seeded: &Seeded) -> Result<String> {
    let mut build = cargo(&["test", "--no-run", "--message-format", "json", "-p", seeded.package]);
    let built = build.args(["--test", seeded.target]).stderr(Stdio::inherit()).output().context("cargo")?;
    let text = String::from_utf8_lossy(&built.stdout);
    let program = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
        let ours = message["target"]["name"] == seeded.target && message["profile"]["test"] == true;
        ours.then(|| message["executable"].as_str().map(str::to_owned)).flatten()
    });
    program.with_context(|| format!("cargo built no program of {} {}", seeded.package, seeded.target))
}
