//! Where the time went: functions that spend it in ways that are known beforehand are told apart by their accounts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nexus_tests::gate::Gate;
use nexus_tests::privilege::can_watch_the_kernel;
use nexus_tests::{Server, until};
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use super::{counts, invoke};

/// How long each function does what it does, in milliseconds: long beside what else an invocation costs.
const LONG_MS: u64 = 400;

/// An invocation's time in nanoseconds, by what it went to.
#[derive(Debug)]
struct Time {
    duration: i64,
    on_cpu: i64,
    ready: i64,
    blocked: i64,
    awaiting: i64,
}

impl Time {
    /// Reads it, and checks that the parts are all there is.
    fn of(invocation: &Value) -> Self {
        counts(invocation);
        let kernel = &invocation["kernel"];
        let part = |name: &str| kernel[name].as_i64().unwrap_or_else(|| panic!("no {name}: {kernel}"));
        let time = Self {
            duration: invocation["duration_ns"].as_i64().expect("a duration"),
            on_cpu: part("on_cpu_ns"),
            ready: part("run_queue_ns"),
            blocked: part("off_cpu_ns"),
            awaiting: part("waiting_ns"),
        };
        let residual = part("residual_ns");
        let sum = time.on_cpu + time.ready + time.blocked + time.awaiting;
        // The duration and the account's end are each rounded to a nanosecond.
        assert!((sum + residual - time.duration).abs() <= 2, "{time:?}, residual {residual}");
        // One thread at a time worked for it: nothing is there twice, and nothing is missing.
        assert!(residual.abs() * 100 <= time.duration, "{time:?}, residual {residual}");
        assert!(part("system_ns") <= time.on_cpu + time.on_cpu / 100, "{kernel}");
        time
    }

    /// Checks that this part, at least, is most of the time.
    fn mostly(&self, what: &str, part: i64) {
        assert!(part * 10 >= self.duration * 7, "{what}: {self:?}");
    }
}

#[tokio::test]
async fn one_that_sleeps_awaits() {
    if !can_watch_the_kernel() {
        return;
    }
    let server = Server::start();
    server.deploy("probe", "probe", json!({})).await;
    let invocation = invoke(&server, &format!("/fn/probe/sleep?ms={LONG_MS}")).await;
    let time = Time::of(&invocation);
    time.mostly("awaiting", time.awaiting);
    assert!(invocation["host_calls"].is_null(), "{invocation}");
}

#[tokio::test]
async fn one_that_asks_a_slow_server_awaits_its_response() {
    if !can_watch_the_kernel() {
        return;
    }
    let gate = Gate::closed().await;
    let server = Server::start();
    server.deploy("probe", "probe", json!({"egress": [gate.egress()]})).await;
    let path = format!("/fn/probe/fetch?url={}", gate.url());
    let opened = async {
        gate.until(|h| h.now == 1).await;
        tokio::time::sleep(Duration::from_millis(LONG_MS)).await;
        gate.open();
    };
    let (invocation, ()) = tokio::join!(invoke(&server, &path), opened);
    let time = Time::of(&invocation);
    time.mostly("awaiting", time.awaiting);
    // What it awaited is the call.
    let call = invocation["host_calls"][0]["duration_ns"].as_i64().expect("a call");
    assert!(call * 10 >= time.awaiting * 9, "{time:?}, the call {call}");
}

#[tokio::test]
async fn one_that_computes_is_on_a_cpu() {
    if !can_watch_the_kernel() {
        return;
    }
    let server = Server::start();
    server.deploy("probe", "probe", json!({"limits": {"timeout_ms": LONG_MS}})).await;
    let invocation = invoke(&server, "/fn/probe/loop").await;
    assert_eq!(invocation["status"], "timeout");
    let time = Time::of(&invocation);
    // Other tests may use the CPUs too.
    time.mostly("on a CPU, or ready", time.on_cpu + time.ready);
    assert!(time.on_cpu > time.blocked, "{time:?}");
    // In its own code, which is stopped at every tick and goes on.
    let guest = invocation["kernel"]["guest_ns"].as_i64().expect("a time");
    assert!((time.on_cpu * 8 / 10..=time.on_cpu).contains(&guest), "{guest} of {time:?}");
}

/// A server whose functions read thousands of pieces of a file. It keeps none of the reads one by one: on a slow machine more
/// of them are slow than an account has room for, which makes it incomplete.
fn server_of_large_files(folder: &std::path::Path) -> Server {
    let folder = folder.to_str().expect("text");
    Server::builder().arg("--allow-mount").arg(folder).setting("slow_syscall_us = 60000000").start()
}

#[tokio::test]
async fn one_that_reads_what_is_on_the_disk_alone_waits_for_it() {
    if !can_watch_the_kernel() {
        return;
    }
    // Beside the build: what is for temporary files may be in memory.
    let folder = tempfile::tempdir_in(nexus_tests::server::program().parent().expect("a folder")).expect("a folder");
    // A file system in memory (tmpfs, ramfs) has no disk to wait for.
    let kind = rustix::fs::statfs(folder.path()).expect("a file system").f_type;
    if matches!(kind, 0x0102_1994 | 0x8584_58f6) {
        return println!("skipped: the build is on a file system in memory");
    }
    let (path, mebibytes) = (folder.path().join("large"), 32);
    let server = server_of_large_files(folder.path());
    let mut config = json!({"mounts": [{"host": folder.path(), "guest": "/data"}]});
    config["limits"] = json!({"memory_mb": 256});
    server.deploy("files", "probe", config).await;
    let waits = async |cached: bool| {
        if !cached {
            let file = std::fs::File::create(&path).expect("a file");
            std::io::Write::write_all(&mut &file, &vec![7; mebibytes << 20]).expect("room");
            file.sync_all().expect("written");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("forgotten");
        }
        let invocation = invoke(&server, "/fn/files/read?path=%2Fdata%2Flarge").await;
        assert_eq!(invocation["output"]["data"], json!({"bytes": mebibytes << 20}));
        let time = Time::of(&invocation);
        let part = |name: &str| invocation["kernel"][name].as_i64().expect(name);
        assert!(part("io_wait_ns") <= time.blocked, "{time:?}");
        (part("io_waits"), part("io_wait_ns"))
    };
    let (waited, ns) = waits(false).await;
    assert!(waited > 0 && ns > 0, "{waited} waits, {ns} ns");
    let (again, _) = waits(true).await;
    assert!(again * 10 <= waited, "{again} waits for what is in memory, {waited} for what was on the disk");
}

#[tokio::test]
async fn one_whose_host_works_is_not_in_its_own_code() {
    if !can_watch_the_kernel() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mebibytes = 64;
    std::fs::write(folder.path().join("large"), vec![7; mebibytes << 20]).expect("a file");
    let server = server_of_large_files(folder.path());
    let mut config = json!({"mounts": [{"host": folder.path(), "guest": "/data"}]});
    config["limits"] = json!({"memory_mb": 256});
    server.deploy("files", "probe", config).await;
    let invocation = invoke(&server, "/fn/files/read?path=%2Fdata%2Flarge").await;
    assert_eq!(invocation["output"]["data"], json!({"bytes": mebibytes << 20}));
    let time = Time::of(&invocation);
    let part = |name: &str| invocation["kernel"][name].as_i64().expect(name);
    // The kernel copies it out of its cache, the host into the guest; the guest copies it once more at most.
    assert!(part("guest_ns") + part("system_ns") <= time.on_cpu, "{invocation}");
    assert!(part("guest_ns") < time.on_cpu * 9 / 10, "{} of {time:?}", part("guest_ns"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_behind_a_noisy_neighbour_is_ready_and_waits_for_the_cpu() {
    if !can_watch_the_kernel() {
        return;
    }
    let server = Server::start();
    server.deploy("probe", "probe", json!({"limits": {"timeout_ms": 2 * LONG_MS}})).await;
    let cpu = one_cpu();
    for thread in std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("threads") {
        let tid = thread.expect("a thread").file_name().to_str().and_then(|s| s.parse().ok()).and_then(Pid::from_raw);
        sched_setaffinity(tid, &cpu).expect("a thread of the server");
    }
    let quiet = AtomicBool::new(false);
    let invocation = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                sched_setaffinity(None, &cpu).expect("this thread");
                while !quiet.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let called = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(invoke(&server, "/fn/probe/loop"))
        });
        quiet.store(true, Ordering::Relaxed);
        called
    });
    let time = Time::of(&invocation);
    // Three want the one CPU: its fair share is a third, and all of the rest is the neighbours'.
    assert!(time.ready * 3 >= time.duration, "ready: {time:?}");
    assert!(time.ready > time.blocked, "{time:?}");
    let preempted = invocation["kernel"]["context_switches"].as_u64().expect("switches");
    assert!(preempted >= 3, "{invocation}");
}

#[tokio::test]
async fn one_that_touches_new_memory_faults_for_each_page() {
    if !can_watch_the_kernel() {
        return;
    }
    let server = Server::start();
    server.deploy("large", "probe", json!({"limits": {"memory_mb": 256}})).await;
    let faults = |invocation: &Value| {
        Time::of(invocation);
        invocation["kernel"]["page_faults"]["minor"].as_u64().expect("faults")
    };
    let small = invoke(&server, "/fn/large/hello").await;
    let large = invoke(&server, "/fn/large/alloc?mb=64").await;
    let (few, many) = (faults(&small), faults(&large));
    let memory = |invocation: &Value| invocation["memory_bytes"].as_u64().expect("its memory");
    // It has what it asked for, and what its allocator takes beside that.
    assert!((64 << 20..80 << 20).contains(&memory(&large)), "{} bytes", memory(&large));
    assert!((1..8 << 20).contains(&memory(&small)), "{} bytes", memory(&small));
    let pages = (64 << 20) / rustix::param::page_size() as u64;
    // Some pages of the guest's memory stay with its place in the pool, so that they need not be made anew.
    assert!(few * 10 < pages, "{few} faults for nothing");
    assert!((pages * 9 / 10..=pages * 11 / 10).contains(&many), "{many} faults for {pages} pages");
}

#[tokio::test]
async fn one_that_reads_what_is_not_there_yet_is_blocked_in_that_call() {
    if !can_watch_the_kernel() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let fifo = folder.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
    let server = Server::builder().arg("--allow-mount").arg(folder.path().to_str().expect("text")).start();
    server.deploy("files", "probe", json!({"mounts": [{"host": folder.path(), "guest": "/data"}]})).await;
    let opened = async {
        until("the function to open it", || async {
            let running = server.get("/v1/functions/files").await["stats"]["running"].as_u64()?;
            (running == 1).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(LONG_MS)).await;
        // Opens once there is a reader, so the reader has come by then.
        drop(std::fs::OpenOptions::new().write(true).open(&fifo).expect("a reader"));
    };
    let (invocation, ()) = tokio::join!(invoke(&server, "/fn/files/read?path=%2Fdata%2Ffifo"), opened);
    let time = Time::of(&invocation);
    time.mostly("blocked", time.blocked);
    let opening = &invocation["kernel"]["syscalls"]["openat2"];
    let blocked = opening["off_cpu_ns"].as_i64().expect("a time");
    assert!(blocked * 10 >= time.blocked * 9, "{time:?}, in openat2: {opening}");
}

/// One CPU that this process may use.
fn one_cpu() -> CpuSet {
    let mine = sched_getaffinity(None).expect("the CPUs of this process");
    let cpu = (0..CpuSet::MAX_CPU).find(|cpu| mine.is_set(*cpu)).expect("a CPU");
    let mut one = CpuSet::new();
    one.set(cpu);
    one
}
