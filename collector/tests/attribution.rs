//! Every system call belongs to exactly one owner.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Barrier, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use nexus_collector::{Account, KernelSource, Probes, ProbesConfig, SlotsFull, Tracked};
use nexus_core::kernel::{KernelMode, SyscallStats};
use rustix::process::{getegid, geteuid, getgid, getppid, getuid};

/// Probes that record no slow call.
fn counting(threads_max: u32) -> ProbesConfig {
    ProbesConfig { threads_max, slow_threshold: Duration::MAX, observe: false, ..ProbesConfig::default() }
}

/// Probes that record every call.
fn recording() -> ProbesConfig {
    ProbesConfig { slow_threshold: Duration::ZERO, ..counting(8) }
}

fn account(probes: &Probes) -> Arc<Account> {
    Account::new(&probes.source(), Instant::now())
}

fn ppid() {
    let _ = getppid();
}

fn uid() {
    let _ = getuid();
}

fn gid() {
    let _ = getgid();
}

fn egid() {
    let _ = getegid();
}

/// Counts and errors by name.
fn calls(account: &Account) -> BTreeMap<String, (u64, u64)> {
    let (kernel, _) = account.snapshot(Instant::now());
    assert_eq!(kernel.mode, KernelMode::Full);
    assert_eq!((kernel.complete, kernel.lost), (Some(true), Some(0)));
    let calls = kernel.syscalls.unwrap();
    calls.into_iter().map(|(name, stats)| (name.into_owned(), (stats.count, stats.errors))).collect()
}

fn expect<const N: usize>(calls: [(&str, u64, u64); N]) -> BTreeMap<String, (u64, u64)> {
    calls.into_iter().map(|(name, count, errors)| (name.to_owned(), (count, errors))).collect()
}

fn runtime(probes: &Probes, name: &str) -> SyscallStats {
    let mut sum = SyscallStats::default();
    for calls in probes.slots().runtime_totals().values() {
        sum.add(&calls.get(name).copied().unwrap_or_default());
    }
    sum
}

/// A future that makes `calls` system calls at each of its polls, and is ready at the last.
struct Work<F> {
    polls: u32,
    call: F,
}

impl<F: FnMut() + Unpin> Future for Work<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        (self.call)();
        self.polls -= 1;
        if self.polls == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[test]
fn sixteen_threads_two_accounts_each_and_one_for_all() {
    const THREADS: u64 = 16;
    const ROUNDS: u32 = 400;
    let Some(probes) = support::probes(&counting(32)) else {
        return;
    };
    let shared = account(&probes);
    let barrier = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for index in 0..THREADS {
            let (probes, shared, barrier) = (&probes, &shared, &barrier);
            scope.spawn(move || {
                let (one, two) = (account(probes), account(probes));
                let many = move |n: u64| (0..n).for_each(|_| ppid());
                let mut first =
                    pin!(Tracked::new(Work { polls: ROUNDS, call: move || many(index + 1) }, Arc::clone(&one)));
                let mut second = pin!(Tracked::new(
                    Work {
                        polls: ROUNDS,
                        call: || {
                            let _ = (getuid(), getuid(), getgid());
                        }
                    },
                    Arc::clone(&two)
                ));
                let mut cx = Context::from_waker(Waker::noop());
                barrier.wait();
                for round in 0..ROUNDS {
                    let ready = first.as_mut().poll(&mut cx).is_ready();
                    let _ = geteuid();
                    assert_eq!(ready, second.as_mut().poll(&mut cx).is_ready());
                    shared.enter(|| {
                        let _ = (std::fs::symlink_metadata("/nonexistent"), getppid());
                    });
                    if round % 7 == 0 {
                        // Another thread's turn, so that slots meet every CPU. Locks yield too, so it is not what is counted.
                        thread::yield_now();
                        egid();
                    }
                }
                let rounds = u64::from(ROUNDS);
                assert_eq!(calls(&one), expect([("getppid", rounds * (index + 1), 0)]));
                assert_eq!(calls(&two), expect([("getuid", rounds * 2, 0), ("getgid", rounds, 0)]));
            });
        }
    });
    let all = THREADS * u64::from(ROUNDS);
    assert_eq!(calls(&shared), expect([("getppid", all, 0), ("statx", all, all)]));
    assert_eq!(runtime(&probes, "geteuid").count, all);
    assert_eq!(runtime(&probes, "getegid").count, THREADS * u64::from(ROUNDS.div_ceil(7)));
    assert_eq!(runtime(&probes, "getuid"), SyscallStats::default());
    assert_eq!(probes.failures().unwrap(), BTreeMap::new());
}

#[test]
fn nothing_leaks_after_a_mark_or_before_it() {
    let Some(probes) = support::probes(&counting(8)) else {
        return;
    };
    let account = account(&probes);
    for _ in 0..3 {
        (0..50).for_each(|_| ppid());
        account.enter(uid);
        (0..50).for_each(|_| ppid());
    }
    account.enter(|| ());
    assert_eq!(calls(&account), expect([("getuid", 3, 0)]));
    // The first round's first fifty were before the thread had its slot.
    assert_eq!(runtime(&probes, "getppid").count, 250);
}

#[test]
fn errors_are_counted() {
    let Some(probes) = support::probes(&counting(8)) else {
        return;
    };
    let account = account(&probes);
    account.enter(|| {
        assert!(std::fs::File::open("/nonexistent").is_err());
        assert!(std::fs::metadata("/nonexistent").is_err());
        assert!(std::fs::metadata("/").is_ok());
    });
    assert_eq!(calls(&account), expect([("openat", 1, 1), ("statx", 2, 1)]));
}

#[test]
fn marks_nest_and_survive_a_panic() {
    let Some(probes) = support::probes(&counting(8)) else {
        return;
    };
    let (outer, inner, failing) = (account(&probes), account(&probes), account(&probes));
    outer.enter(|| {
        let _ = getppid();
        inner.enter(|| {
            let _ = getuid();
            outer.enter(gid);
            let _ = getuid();
        });
        let _ = getppid();
        let panics = Tracked::new(
            Work {
                polls: 2,
                call: || {
                    let _ = getegid();
                    panic!("as planned")
                },
            },
            Arc::clone(&failing),
        );
        let mut panics = pin!(panics);
        let mut cx = Context::from_waker(Waker::noop());
        // The message of the panic is written under the mark.
        assert!(catch_unwind(AssertUnwindSafe(|| panics.as_mut().poll(&mut cx))).is_err());
        let _ = getppid();
    });
    let _ = getppid();
    assert_eq!(calls(&outer), expect([("getppid", 3, 0), ("getgid", 1, 0)]));
    assert_eq!(calls(&inner), expect([("getuid", 2, 0)]));
    assert_eq!(calls(&failing)["getegid"], (1, 0));
    assert_eq!(runtime(&probes, "getppid").count, 1);
}

#[test]
fn a_slow_call_leaves_a_record() {
    let Some(probes) = support::probes(&recording()) else {
        return;
    };
    let account = account(&probes);
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let (ready, wait) = mpsc::channel::<()>();
    let helper = thread::spawn(move || {
        wait.recv().unwrap();
        writer.write_all(b"hello").unwrap();
    });
    let mut buffer = [0; 16];
    let before = Instant::now();
    let read = account.enter(|| {
        ready.send(()).unwrap();
        reader.read(&mut buffer).unwrap()
    });
    let elapsed = u64::try_from(before.elapsed().as_nanos()).unwrap();
    helper.join().unwrap();
    let (kernel, slow) = account.snapshot(Instant::now());
    let call = slow.iter().find(|call| call.name == "read").unwrap();
    assert_eq!((read, call.ret), (5, 5));
    assert!(call.duration_ns <= elapsed, "{call:?} within {elapsed}");
    assert_eq!(kernel.syscalls.unwrap()["read"].max_ns, call.duration_ns);
}

#[test]
fn records_that_find_no_room_are_lost_but_counted() {
    let Some(probes) = support::probes(&recording()) else {
        return;
    };
    let account = account(&probes);
    account.enter(|| (0..100).for_each(|_| ppid()));
    let (kernel, slow) = account.snapshot(Instant::now());
    assert_eq!((slow.len(), kernel.lost, kernel.complete), (64, Some(36), Some(false)));
    assert_eq!(kernel.syscalls.unwrap()["getppid"].count, 100);
    // The next mark has its room again.
    let next = Account::new(&probes.source(), Instant::now());
    next.enter(ppid);
    let (kernel, slow) = next.snapshot(Instant::now());
    assert_eq!((slow.len(), kernel.lost, kernel.complete), (1, Some(0), Some(true)));
}

#[test]
fn what_one_mark_waited_for_is_not_the_next_ones() {
    let Some(probes) = support::probes(&counting(8)) else {
        return;
    };
    let (outer, inner, next) = (account(&probes), account(&probes), account(&probes));
    let pause = Duration::from_millis(5);
    outer.enter(|| {
        thread::sleep(pause);
        inner.enter(ppid);
    });
    next.enter(ppid);
    let off_cpu = |account: &Account| {
        let (kernel, _) = account.snapshot(Instant::now());
        assert_eq!((kernel.complete, kernel.lost), (Some(true), Some(0)));
        Duration::from_nanos(kernel.off_cpu_ns.unwrap())
    };
    // Asking for the parent's id does not block, and little else can in the two.
    assert!(off_cpu(&inner) < pause / 2 && off_cpu(&next) < pause / 2, "{:?} {:?}", off_cpu(&inner), off_cpu(&next));
    assert!(off_cpu(&outer) > pause / 2);
}

#[test]
fn calls_are_told_apart_by_how_long_they_took() {
    let Some(probes) = support::probes(&counting(8)) else {
        return;
    };
    let account = account(&probes);
    let now = |name: &str| {
        let (kernel, _) = account.snapshot(Instant::now());
        kernel.syscalls.unwrap()[name]
    };
    // A pause is at least as long as it says, so none is ever taken for a faster one; it may be longer, on a machine that has much to
    // do, so each is made until one was not.
    for (pause, class) in [(Duration::from_micros(200), 2), (Duration::from_millis(2), 3)] {
        let seen = (0..1000).any(|_| {
            account.enter(|| thread::sleep(pause));
            let faster = now("clock_nanosleep").faster.unwrap();
            assert_eq!(faster[..2], [0, 0]);
            faster[class] > 0
        });
        assert!(seen, "no pause of {pause:?} in its class");
    }
    let before = now("clock_nanosleep");
    account.enter(|| thread::sleep(Duration::from_millis(20)));
    let after = now("clock_nanosleep");
    assert_eq!((after.count, after.faster), (before.count + 1, before.faster));
    account.enter(|| (0..1000).for_each(|_| ppid()));
    let fast = now("getppid");
    assert!(fast.count == 1000 && fast.faster.unwrap()[0] > 500, "{fast:?}");
}

#[test]
fn marks_nest_deeper_than_there_is_room_for() {
    let Some(probes) = support::probes(&counting(8)) else {
        return;
    };
    let accounts: Vec<_> = (0..20).map(|_| account(&probes)).collect();
    fn nest(accounts: &[Arc<Account>]) {
        if let Some((first, within)) = accounts.split_first() {
            first.enter(|| {
                ppid();
                nest(within);
                uid();
            });
        }
    }
    nest(&accounts);
    for account in &accounts {
        assert_eq!(calls(account), expect([("getppid", 1, 0), ("getuid", 1, 0)]));
    }
}

#[test]
fn a_thread_gives_its_slot_back_when_it_ends() {
    let Some(probes) = support::probes(&counting(4)) else {
        return;
    };
    let slots = probes.slots();
    for _ in 0..12 {
        let (slots, account) = (Arc::clone(&slots), account(&probes));
        thread::spawn(move || {
            slots.register_thread("test").unwrap();
            assert_eq!(slots.threads(), 1);
            let _ = getegid();
            account.enter(ppid);
            assert_eq!(calls(&account), expect([("getppid", 1, 0)]));
        })
        .join()
        .unwrap();
        assert_eq!(probes.slots().threads(), 0);
    }
    // What ended threads did for the runtime is kept.
    assert_eq!(runtime(&probes, "getegid").count, 12);
}

#[test]
fn without_a_slot_the_account_is_incomplete() {
    let Some(probes) = support::probes(&counting(2)) else {
        return;
    };
    let slots = probes.slots();
    let barrier = Barrier::new(3);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                slots.register_thread("test").unwrap();
                barrier.wait();
                barrier.wait();
            });
        }
        barrier.wait();
        assert_eq!(slots.register_thread("test"), Err(SlotsFull::Full { threads_max: 2 }));
        let account = account(&probes);
        account.enter(ppid);
        let (kernel, _) = account.snapshot(Instant::now());
        assert_eq!((kernel.complete, kernel.syscalls), (Some(false), Some(BTreeMap::new())));
        barrier.wait();
    });
}

#[test]
fn as_many_threads_as_there_can_be_are_told_apart() {
    const THREADS: u32 = 4096;
    let Some(probes) = support::probes(&counting(THREADS)) else {
        return;
    };
    let slots = probes.slots();
    let (ready, counted) = (Barrier::new(THREADS as usize + 1), Barrier::new(THREADS as usize + 1));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|at| {
                let (probes, slots, ready, counted) = (&probes, &slots, &ready, &counted);
                let work = move || {
                    slots.register_thread("test").unwrap();
                    ready.wait();
                    let account = account(probes);
                    account.enter(|| (0..at % 97).for_each(|_| ppid()));
                    counted.wait();
                    (at, account)
                };
                thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, work).unwrap()
            })
            .collect();
        ready.wait();
        assert_eq!(slots.threads(), THREADS);
        assert_eq!(slots.register_thread("test"), Err(SlotsFull::Full { threads_max: THREADS }));
        counted.wait();
        for thread in threads {
            let (at, account) = thread.join().unwrap();
            let expected = u64::from(at % 97);
            // The allocator may have something to do for a new thread.
            let have = calls(&account).get("getppid").map_or(0, |(count, _)| *count);
            assert_eq!(have, expected, "thread {at}");
        }
    });
    assert_eq!(slots.threads(), 0);
    assert_eq!(probes.ledger().unwrap().unattributed, 0);
}

#[test]
fn the_runtimes_own_work_is_read_of_blocked_threads_too() {
    let Some(probes) = support::probes(&counting(4)) else {
        return;
    };
    let slots = probes.slots();
    let (done, wait) = mpsc::channel();
    let (release, blocked) = mpsc::channel::<()>();
    let worker = thread::spawn(move || {
        slots.register_thread("test").unwrap();
        (0..5).for_each(|_| egid());
        done.send(()).unwrap();
        let _ = blocked.recv();
    });
    wait.recv().unwrap();
    assert_eq!(runtime(&probes, "getegid").count, 5);
    assert_eq!(runtime(&probes, "getegid").count, 5);
    drop(release);
    worker.join().unwrap();
    assert_eq!(runtime(&probes, "getegid").count, 5);
}

#[test]
fn work_is_counted_on_the_thread_that_it_is_handed_to() {
    let Some(probes) = support::probes(&counting(4)) else {
        return;
    };
    let account = account(&probes);
    let handed = Arc::clone(&account);
    thread::spawn(move || handed.enter(ppid)).join().unwrap();
    assert_eq!(calls(&account), expect([("getppid", 1, 0)]));
}

#[test]
fn detached_probes_leave_no_zeros_behind() {
    let Some(probes) = support::probes(&counting(4)) else {
        return;
    };
    let account = account(&probes);
    drop(probes);
    account.enter(ppid);
    assert_eq!(account.snapshot(Instant::now()).0.complete, Some(false));
}

#[test]
fn an_account_that_is_off_has_a_reason_and_no_numbers() {
    let account = Account::new(&KernelSource::Off("not wanted".into()), Instant::now());
    assert_eq!(account.enter(|| 5), 5);
    let (kernel, slow) = account.snapshot(Instant::now());
    assert_eq!((kernel.mode, kernel.reason.as_deref()), (KernelMode::Off, Some("not wanted")));
    assert_eq!((kernel.syscalls, kernel.lost, kernel.complete), (None, None, None));
    assert!(slow.is_empty());
}
