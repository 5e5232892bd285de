//! The first program of a virtual machine, for `cargo xtask vm-test`: sees whether the probes work on its kernel, says so on the
//! console, and turns the machine off.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nexus_collector::watch::{Target, Watch};
use nexus_collector::{
    Account, Daemon, DaemonConfig, KernelSource, Owner, Probes, ProbesConfig, Sampled, observe, probe_status,
};
use rustix::mount::{MountFlags, mount};
use rustix::process::{getppid, getuid};
use rustix::system::{RebootCommand, reboot};

/// What it says when all is well.
const WELL: &str = "nexus-vm-test: well";

type Checked = Result<(), String>;

type Check = (&'static str, fn() -> Checked);

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("child") => work(),
        Some("sleeper") => thread::sleep(Duration::from_secs(3600)),
        _ => init(),
    }
}

/// A known number of calls, and some time blocked.
fn work() {
    for _ in 0..100 {
        let _ = getppid();
    }
    thread::sleep(Duration::from_millis(200));
}

fn init() {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/tmp")] {
        if let Err(error) = mount(kind, at, kind, MountFlags::empty(), None) {
            println!("nexus-vm-test: cannot mount {at}: {error}");
        }
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("nexus-vm-test: Linux {}", release.trim());
    let mut well = true;
    for (name, status) in probe_status() {
        println!("nexus-vm-test:   {name}: {}", status.as_ref().err().map_or("works", |why| why));
        well &= status.is_ok();
    }
    let checks: [Check; 5] = [
        ("calls of an account", account),
        ("a program's tree", tree),
        ("a process that runs", process),
        ("a profile", profile),
        ("a collector", collector),
    ];
    for (name, check) in checks {
        let checked = check();
        println!("nexus-vm-test:   {name}: {}", checked.as_ref().err().map_or("works", |why| why));
        well &= checked.is_ok();
    }
    println!("{}", if well { WELL } else { "nexus-vm-test: not well" });
    // The console's last line has to get out.
    thread::sleep(Duration::from_millis(500));
    let _ = reboot(RebootCommand::PowerOff);
}

fn expect<T: PartialEq + std::fmt::Debug>(what: &str, have: T, expected: T) -> Checked {
    if have == expected { Ok(()) } else { Err(format!("{what}: {have:?}, not {expected:?}")) }
}

fn counted(source: &KernelSource) -> Checked {
    let began = Instant::now();
    let account = Account::of(source, began, Owner { tag: 1, ..Owner::default() });
    account.enter(|| {
        work();
        for _ in 0..50 {
            let _ = getuid();
        }
    });
    let (kernel, _) = account.snapshot(Instant::now());
    expect("complete", kernel.complete, Some(true))?;
    let calls = kernel.syscalls.unwrap_or_default();
    let count = |name: &str| calls.get(name).map_or(0, |stats| stats.count);
    expect("calls", [count("getppid"), count("getuid"), count("clock_nanosleep")], [100, 50, 1])?;
    match kernel.off_cpu_ns {
        Some(180_000_000..) => Ok(()),
        other => Err(format!("200 ms of sleep were {other:?} ns off the CPU")),
    }
}

fn probes() -> Result<Probes, String> {
    Probes::load(&ProbesConfig { threads_max: 8, ..ProbesConfig::default() }).map_err(|error| error.to_string())
}

fn account() -> Checked {
    let probes = probes()?;
    counted(&probes.source())?;
    expect("what the probes could not do", probes.failures().map_err(|error| error.to_string())?.len(), 0)?;
    expect("unattributed", probes.ledger().map_err(|error| error.to_string())?.unattributed, 0)
}

fn tree() -> Checked {
    let probes = probes()?;
    let command = ["/init", "child"].map(OsString::from);
    let observed = observe::run(&command, &probes).map_err(|error| error.to_string())?;
    expect("complete", observed.kernel.complete, Some(true))?;
    let calls = observed.kernel.syscalls.unwrap_or_default();
    expect("getppid", calls.get("getppid").map(|stats| stats.count), Some(100))
}

fn process() -> Checked {
    let probes = probes()?;
    let mut child = std::process::Command::new("/init").arg("sleeper").spawn().map_err(|error| error.to_string())?;
    let watched = Watch::begin(Target::Process(child.id()), &probes).and_then(|watch| watch.read());
    // It is waited for whatever came of it.
    let ended = child.kill().and_then(|()| child.wait());
    ended.map_err(|error| error.to_string())?;
    expect("complete", watched.map_err(|error| error.to_string())?.kernel.complete, Some(true))
}

fn profile() -> Checked {
    let probes = probes()?;
    let mut profile =
        probes.profile(Sampled::Clock { hz: 99 }).map_err(|error| error.to_string())?.ok_or("another is taken")?;
    let account = Account::of(&probes.source(), Instant::now(), Owner { tag: 7, ..Owner::default() });
    account.enter(|| {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(2) {
            std::hint::spin_loop();
        }
    });
    let mut samples = 0;
    profile.drain(|stacks| samples += u64::from(stacks.owner.tag == 7)).map_err(|error| error.to_string())?;
    if samples >= 20 { Ok(()) } else { Err(format!("{samples} samples in 2 s")) }
}

fn collector() -> Checked {
    let socket = Path::new("/tmp/collector");
    let config = DaemonConfig { socket: socket.to_owned(), users: Vec::new(), runtimes_max: 1, threads_max: 8 };
    let daemon = Daemon::bind(config).map_err(|error| error.to_string())?;
    let stop = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| daemon.run(&stop));
        let config = ProbesConfig { threads_max: 8, ..ProbesConfig::default() };
        let checked = Probes::connect(socket, &config)
            .map_err(|error| error.to_string())
            .and_then(|probes| counted(&probes.source()));
        stop.store(true, Ordering::Relaxed);
        checked
    })
}
