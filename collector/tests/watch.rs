//! Processes that run already, watched from outside: what they do from then on is counted, no more and no less.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nexus_collector::observe::ObserveError;
use nexus_collector::watch::{Target, Watch, Watched, trace_of};
use nexus_collector::{Probes, ProbesConfig};
use nexus_core::kernel::SyscallStats;
use rustix::process::{getegid, getgid, getppid, getuid};

/// A process that works a round for each line that it reads.
struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    fn start(environment: &[(&str, &str)]) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new(program)
            .args(["--exact", "program_that_works_when_told", "--ignored", "--test-threads=1", "--nocapture"])
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut worker = Self { child, stdin, stdout };
        worker.until("ready");
        worker
    }

    fn until(&mut self, word: &str) {
        let mut line = String::new();
        while !line.ends_with(&format!("{word}\n")) {
            line.clear();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "it ended before it was {word}");
        }
    }

    fn work(&mut self) {
        self.stdin.write_all(b"work\n").unwrap();
        self.until("worked");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "a program for another test to watch"]
fn program_that_works_when_told() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (done, ended) = std::sync::mpsc::channel();
    // A thread that is there before, and waits.
    thread::spawn(move || {
        while receiver.recv().is_ok() {
            (0..300).for_each(|_| {
                let _ = getuid();
            });
            done.send(()).unwrap();
        }
    });
    println!("ready");
    for _ in std::io::stdin().lines() {
        (0..1000).for_each(|_| {
            let _ = getppid();
        });
        sender.send(()).unwrap();
        ended.recv().unwrap();
        // One that comes, and one in a process that comes.
        thread::spawn(|| {
            (0..200).for_each(|_| {
                let _ = getgid();
            })
        })
        .join()
        .unwrap();
        let program = std::env::current_exe().unwrap();
        let child =
            Command::new(program).args(["--exact", "program_that_works_at_once", "--ignored", "--quiet"]).output();
        assert!(child.unwrap().status.success());
        println!("worked");
    }
}

#[test]
#[ignore = "a program for another test to watch"]
fn program_that_works_at_once() {
    (0..100).for_each(|_| {
        let _ = getegid();
    });
}

fn probes() -> Option<Probes> {
    support::probes(&ProbesConfig::for_observe())
}

/// Checks that so many rounds were counted.
fn check(watched: &Watched, rounds: u64) {
    assert_eq!((watched.kernel.complete, watched.kernel.lost), (Some(true), Some(0)));
    let calls = watched.kernel.syscalls.as_ref().unwrap();
    let count = |name: &str| calls.get(name).map_or(0, |stats: &SyscallStats| stats.count);
    let have = [count("getppid"), count("getuid"), count("getgid"), count("getegid")];
    assert_eq!(have, [1000, 300, 200, 100].map(|n| n * rounds), "{calls:?}");
}

#[test]
fn a_process_is_counted_from_when_it_is_watched() {
    let Some(probes) = probes() else { return };
    let mut worker = Worker::start(&[]);
    worker.work();
    let mut watch = Watch::begin(Target::Process(worker.child.id()), &probes).unwrap();
    check(&watch.read().unwrap(), 0);
    for round in 1..=3 {
        worker.work();
        check(&watch.read().unwrap(), round);
    }
    assert!(watch.refresh().unwrap());
    let tasks = watch.read().unwrap().tasks;
    // The program's own threads, and for each round one of it and its child's two at least.
    assert!(tasks >= 3 + 3 * 3, "{tasks} tasks");
    // It may be watched again; what it did meanwhile is nobody's.
    drop(watch);
    worker.work();
    let watch = Watch::begin(Target::Process(worker.child.id()), &probes).unwrap();
    worker.work();
    check(&watch.read().unwrap(), 1);
    drop(worker);
}

#[test]
fn a_process_that_ends_is_seen_to() {
    let Some(probes) = probes() else { return };
    let mut worker = Worker::start(&[]);
    let id = worker.child.id();
    let mut watch = Watch::begin(Target::Process(id), &probes).unwrap();
    worker.work();
    drop(worker);
    assert!(!watch.refresh().unwrap());
    check(&watch.read().unwrap(), 1);
    drop(watch);
    assert!(matches!(Watch::begin(Target::Process(id), &probes), Err(ObserveError::NoProcess(no)) if no == id));
}

#[test]
fn time_goes_where_the_process_spends_it() {
    let Some(probes) = probes() else { return };
    let mut busy = Command::new("sh");
    let busy = Killed(busy.args(["-c", "while :; do :; done"]).spawn().unwrap());
    let idle = Killed(Command::new("sleep").arg("60").spawn().unwrap());
    // Both have begun what they do.
    thread::sleep(Duration::from_millis(200));
    let watches = [busy.0.id(), idle.0.id()].map(|id| Watch::begin(Target::Process(id), &probes).unwrap());
    let began = Instant::now();
    thread::sleep(Duration::from_millis(500));
    let [of_busy, of_idle] = watches.each_ref().map(|watch| watch.read().unwrap());
    let elapsed = began.elapsed().as_nanos() as u64;
    // It never leaves its CPU by itself, and is read in the midst of it. Others may use the CPUs too.
    let sum = of_busy.kernel.on_cpu_ns.unwrap() + of_busy.kernel.run_queue_ns.unwrap();
    assert!((elapsed * 9 / 10..=elapsed * 11 / 10).contains(&sum), "{sum} of {elapsed} ns: {of_busy:?}");
    assert_eq!(of_idle.kernel.on_cpu_ns, Some(0), "{of_idle:?}");
    let blocked = of_idle.kernel.off_cpu_ns.unwrap();
    assert!((elapsed * 9 / 10..=elapsed * 11 / 10).contains(&blocked), "{blocked} of {elapsed} ns: {of_idle:?}");
    assert_eq!(of_idle.kernel.page_fault_off_cpu_ns, Some(0), "it waits in a call: {of_idle:?}");
}

/// A process that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn threads_that_end_as_they_are_taken_in_leave_nothing_behind() {
    let Some(probes) = probes() else { return };
    let Some(group) = Group::new() else { return };
    // A process that makes many short ones, all in the group.
    let script = "while :; do /bin/true; done";
    let busy = Killed(Command::new("sh").args(["-c", script]).spawn().unwrap());
    fs::write(group.0.join("cgroup.procs"), busy.0.id().to_string()).unwrap();
    let mut watch = Watch::begin(Target::cgroup(&group.0), &probes).unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        assert!(watch.refresh().unwrap());
    }
    drop(busy);
    let ended = Instant::now();
    while watch.refresh().unwrap() {
        assert!(ended.elapsed() < Duration::from_secs(10), "something lives");
    }
    // Nobody is left whose time goes on.
    let times = || {
        let kernel = watch.read().unwrap().kernel;
        (kernel.on_cpu_ns, kernel.run_queue_ns, kernel.off_cpu_ns)
    };
    let before = times();
    thread::sleep(Duration::from_millis(200));
    assert_eq!(times(), before);
}

#[test]
fn the_processes_of_a_cgroup_are_counted_also_those_that_are_moved_there() {
    let Some(probes) = probes() else { return };
    let Some(group) = Group::new() else { return };
    let mut workers = [Worker::start(&[]), Worker::start(&[]), Worker::start(&[])];
    group.take(&workers[0]);
    let mut watch = Watch::begin(Target::cgroup(&group.0), &probes).unwrap();
    workers.iter_mut().for_each(Worker::work);
    check(&watch.read().unwrap(), 1);
    let below = group.0.join("below");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("cgroup.procs"), workers[1].child.id().to_string()).unwrap();
    assert!(watch.refresh().unwrap());
    workers.iter_mut().for_each(Worker::work);
    check(&watch.read().unwrap(), 3);
    drop(workers);
    assert!(!watch.refresh().unwrap());
    drop(watch);
    let missing = Target::cgroup(&group.0.join("missing"));
    assert!(matches!(Watch::begin(missing, &probes), Err(ObserveError::Cgroup { .. })));
}

/// A cgroup of our own.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let name = format!("nexus-test-{}", std::process::id());
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/cgroup/freezer"].map(PathBuf::from);
        let Some(root) = roots.into_iter().find(|root| root.join("cgroup.procs").is_file()) else {
            eprintln!("skipped: this machine has no cgroups");
            return None;
        };
        let path = root.join(name);
        if let Err(error) = fs::create_dir(&path) {
            eprintln!("skipped: {}: {error}", path.display());
            return None;
        }
        Some(Self(path))
    }

    fn take(&self, worker: &Worker) {
        fs::write(self.0.join("cgroup.procs"), worker.child.id().to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for path in [self.0.join("below"), self.0.clone()] {
            // The processes have ended, but may still be leaving.
            for _ in 0..100 {
                if !path.exists() || fs::remove_dir(&path).is_ok() {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

#[test]
fn a_process_says_which_trace_it_belongs_to() {
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let worker = Worker::start(&[("TRACEPARENT", traceparent), ("TRACESTATE", "a=b")]);
    let trace = trace_of(worker.child.id()).unwrap();
    assert_eq!((trace.traceparent(), trace.tracestate.as_deref()), (traceparent.to_owned(), Some("a=b")));
    for nonsense in ["", "nonsense", "00-0-0-0"] {
        let worker = Worker::start(&[("TRACEPARENT", nonsense)]);
        assert_eq!(trace_of(worker.child.id()), None);
    }
    assert_eq!(trace_of(u32::MAX), None);
}
