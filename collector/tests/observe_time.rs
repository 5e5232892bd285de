//! Where an observed program's time went, against what the program itself is told by the system.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::ffi::OsString;
use std::time::Duration;

use nexus_collector::{Probes, ProbesConfig, observe};
use nexus_core::kernel::KernelAccount;

/// The account of a shell's command, its duration, and the processor time that the shell says it took, in nanoseconds.
fn observed(probes: &Probes, line: &str) -> (KernelAccount, Duration, u64) {
    let out = tempfile();
    let script = format!("TIMEFORMAT='%3U %3S'; {{ time {{ {line}; }}; }} 2>{out}");
    let command = ["bash", "-c", &script].map(OsString::from);
    let observation = observe::run(&command, probes).unwrap();
    assert_eq!((observation.exit_code, observation.kernel.complete), (0, Some(true)), "{line}");
    let text = std::fs::read_to_string(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    let seconds = text.split_whitespace().map(|word| word.parse::<f64>().unwrap()).sum::<f64>();
    (observation.kernel, observation.duration, (seconds * 1e9) as u64)
}

fn tempfile() -> String {
    std::env::temp_dir().join(format!("nexus-observe-time-{}", std::process::id())).display().to_string()
}

#[test]
fn times_are_those_that_the_system_says() {
    let Some(probes) = support::probes(&ProbesConfig::for_observe()) else {
        return;
    };
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    // In user space, in the kernel, in many short children, in several at once.
    for (line, alone) in [
        ("i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done", true),
        ("dd if=/dev/zero of=/dev/null bs=64k count=40000 2>/dev/null", false),
        ("i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i + 1)); done", false),
        ("for n in 1 2 3; do (i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done) & done; wait", false),
    ] {
        let (kernel, duration, system) = observed(&probes, line);
        let duration = duration.as_nanos() as u64;
        let ours = kernel.on_cpu_ns.unwrap();
        // A child before its `execve` and after its end is the system's only. On the other hand the system does not count what
        // interrupts took, and a hypervisor for other machines, while the program was on its CPU.
        let children = if line.contains("/bin/true") { 300 } else { 3 };
        let slack = system / 20 + 5_000_000 + children * 100_000;
        assert!(system <= ours + slack, "{line}: {ours} ns here, {system} ns by the shell");
        // Not twice.
        assert!(ours <= cpus * duration, "{line}: {ours} ns on {cpus} CPUs in {duration} ns");
        assert!(kernel.system_ns.unwrap() <= ours, "{line}: {kernel:?}");
        if alone {
            // One process, no child: its time is one piece, from its `execve` to its end.
            let sum = ours + kernel.run_queue_ns.unwrap() + kernel.off_cpu_ns.unwrap();
            assert!(sum <= duration && sum >= duration - duration / 20 - 50_000_000, "{sum} of {duration}: {kernel:?}");
        }
    }
    // Blocked, and in what.
    let (kernel, duration, _) = observed(&probes, "sleep 0.4");
    let blocked = kernel.off_cpu_ns.unwrap();
    let asleep = kernel.syscalls.as_ref().unwrap()["clock_nanosleep"].off_cpu_ns.unwrap();
    assert!((390_000_000..=duration.as_nanos() as u64).contains(&asleep), "{asleep} of {duration:?}");
    // The shell waits for it, or is replaced by it.
    assert!(blocked >= asleep, "{kernel:?}");
    // Page faults: one for each page of a file that is new to the process's memory.
    let (few, ..) = observed(&probes, "true");
    let (many, ..) = observed(&probes, "dd if=/dev/zero of=/dev/null bs=32M count=1 2>/dev/null");
    let faults = |kernel: &KernelAccount| kernel.page_faults.unwrap().minor;
    let pages = (32 << 20) / rustix::param::page_size() as u64;
    assert!(faults(&many) >= faults(&few) + pages / 16, "{} and {} faults", faults(&few), faults(&many));
}
