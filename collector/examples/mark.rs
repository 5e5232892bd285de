//! What a mark costs, and what the probes add to a system call: `cargo run --release -p nexus-collector --example mark`.
//!
//! Where there is a `bpftrace`, and the kernel's folder for tracing is mounted (`mount -t tracefs tracefs /sys/kernel/tracing`),
//! also what its histogram of the same calls' latencies adds.

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nexus_collector::{Account, KernelSource, Probes, ProbesConfig};

const MARKS: u32 = 5_000_000;
const CALLS: u32 = 1_000_000;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().nth(1).is_some() {
        // Another process than the one that is watched, asked to measure itself.
        let rounds: Vec<f64> = (0..ROUNDS).map(|_| getppid_ns()).collect();
        print!("{}", best(rounds));
        return Ok(());
    }
    let detached: Vec<f64> = (0..ROUNDS).map(|_| getppid_ns()).collect();
    let bpftrace = under_bpftrace()?;
    let probes = Probes::load(&ProbesConfig::default())?;
    let other = in_another_process()?;
    let untracked: Vec<f64> = (0..ROUNDS).map(|_| getppid_ns()).collect();

    let off = Account::new(&KernelSource::Off("bench".into()), Instant::now());
    let account = Account::new(&probes.source(), Instant::now());
    let runtime: Vec<f64> = {
        probes.slots().register_thread("bench")?;
        (0..ROUNDS).map(|_| getppid_ns()).collect()
    };
    let marked: Vec<f64> = (0..ROUNDS).map(|_| account.enter(getppid_ns)).collect();
    let around = (0..ROUNDS).map(|_| per(MARKS / 10, || account.enter(ppid))).collect();
    let empty_off = (0..ROUNDS).map(|_| per(MARKS, || off.enter(|| black_box(())))).collect();
    let empty = (0..ROUNDS).map(|_| per(MARKS, || account.enter(|| black_box(())))).collect();
    let made = (0..ROUNDS).map(|_| per(MARKS / 10, || drop(black_box(Account::new(&probes.source(), Instant::now())))));

    println!("getppid, nothing attached      {} ns", best(detached));
    println!("getppid, bpftrace's histogram  {} ns", bpftrace.as_deref().unwrap_or("(there is none)"));
    println!("getppid, another process       {other} ns");
    println!("getppid, a thread without slot {} ns", best(untracked));
    println!("getppid, runtime's             {} ns", best(runtime));
    println!("getppid, an account's          {} ns", best(marked));
    println!("mark with one getppid under it {} ns", best(around));
    println!("empty mark, kernel data off    {} ns", best(empty_off));
    println!("empty mark                     {} ns", best(empty));
    println!("making an account              {} ns", best(made.collect()));
    Ok(())
}

fn in_another_process() -> std::io::Result<String> {
    let other = Command::new(std::env::current_exe()?).arg("child").output()?;
    Ok(String::from_utf8_lossy(&other.stdout).into_owned())
}

/// The same while bpftrace makes a histogram of all calls' latencies. `None` where it cannot.
fn under_bpftrace() -> std::io::Result<Option<String>> {
    const HISTOGRAM: &str = "tracepoint:raw_syscalls:sys_enter { @began[tid] = nsecs; } \
                             tracepoint:raw_syscalls:sys_exit /@began[tid]/ { @ns = hist(nsecs - @began[tid]); \
                             delete(@began[tid]); }";
    let began = Command::new("bpftrace").args(["-e", HISTOGRAM]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let Ok(mut bpftrace) = began else { return Ok(None) };
    // Nothing of it says when it is attached: long enough.
    std::thread::sleep(Duration::from_secs(3));
    let measured = if bpftrace.try_wait()?.is_none() { Some(in_another_process()?) } else { None };
    let _ = bpftrace.kill();
    bpftrace.wait()?;
    Ok(measured)
}

fn ppid() {
    black_box(rustix::process::getppid());
}

fn getppid_ns() -> f64 {
    per(CALLS, ppid)
}

fn per(times: u32, mut what: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..times {
        what();
    }
    start.elapsed().as_nanos() as f64 / f64::from(times)
}

fn best(rounds: Vec<f64>) -> String {
    let best = rounds.iter().copied().fold(f64::INFINITY, f64::min);
    let worst = rounds.iter().copied().fold(0.0, f64::max);
    format!("{best:.1} (worst of {}: {worst:.1})", rounds.len())
}
