//! The kernel's account of one invocation.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nexus_core::kernel::{KernelAccount, KernelMode, SlowSyscall, SyscallStats};
use parking_lot::Mutex;

use crate::mark;
use crate::names::slot_syscall_name;
use crate::slots::Slots;

/// Slow calls that an account keeps. More are counted as lost.
pub const SLOW_CALLS_MAX: usize = 256;

/// Why an account has no scheduling data.
const COUNTS_REASON: &str = "the probes count system calls; they do not watch scheduling yet";

/// Where accounts get their numbers from: decided once, at start.
#[derive(Clone, Debug)]
pub enum KernelSource {
    /// From the probes.
    Probes(Arc<Slots>),
    /// From nowhere, and why.
    Off(Cow<'static, str>),
}

/// What the kernel did for one invocation, added up over all its marked sections, on whichever threads they ran.
///
/// Sections are marked by [`crate::Tracked`] and [`Account::enter`]. Making an account costs one small allocation.
#[derive(Debug)]
pub struct Account {
    source: KernelSource,
    started_ns: u64,
    missed: AtomicBool,
    tally: Mutex<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    /// An invocation makes few different calls: a search in a short list is faster than a hash.
    stats: Vec<(u16, SyscallStats)>,
    slow: Vec<SlowCall>,
    lost: u64,
}

/// A slow call, before it has a name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlowCall {
    pub(crate) nr: u16,
    pub(crate) ret: i64,
    pub(crate) start_ns: u64,
    pub(crate) duration_ns: u64,
}

impl Account {
    /// An account for an invocation that started at `started`.
    pub fn new(source: &KernelSource, started: Instant) -> Arc<Self> {
        let started_ns = match source {
            KernelSource::Probes(slots) => slots.monotonic_ns(started),
            KernelSource::Off(_) => 0,
        };
        Arc::new(Self {
            source: source.clone(),
            started_ns,
            missed: AtomicBool::new(false),
            tally: Mutex::new(Tally::default()),
        })
    }

    /// Runs `section` on this thread, and counts what it makes the kernel do.
    ///
    /// Sections nest: when the inner one ends, or panics, the outer account goes on. A thread that has no slot yet takes one;
    /// when it cannot, the account is incomplete and says so.
    pub fn enter<T>(&self, section: impl FnOnce() -> T) -> T {
        let _mark = mark::begin(self);
        section()
    }

    /// What was counted so far. A section that is still marked, on this thread or another, is in it once it ends.
    pub fn snapshot(&self) -> (KernelAccount, Vec<SlowSyscall>) {
        let slots = match &self.source {
            KernelSource::Off(reason) => return (KernelAccount::off(reason.clone()), Vec::new()),
            KernelSource::Probes(slots) => slots,
        };
        let tally = self.tally.lock();
        let missed = self.missed.load(Ordering::Relaxed) || !slots.is_attached();
        let account = KernelAccount {
            mode: KernelMode::Counts,
            reason: Some(Cow::Borrowed(COUNTS_REASON)),
            complete: Some(!missed && tally.lost == 0),
            lost: Some(tally.lost),
            syscalls: Some(tally.stats.iter().map(|(nr, stats)| (slot_syscall_name(*nr), *stats)).collect()),
            ..KernelAccount::default()
        };
        let slow = tally.slow.iter().map(|call| SlowSyscall {
            name: slot_syscall_name(call.nr),
            ret: call.ret,
            offset_ns: call.start_ns.saturating_sub(self.started_ns),
            duration_ns: call.duration_ns,
        });
        (account, slow.collect())
    }

    pub(crate) fn slots(&self) -> Option<&Arc<Slots>> {
        match &self.source {
            KernelSource::Probes(slots) => Some(slots),
            KernelSource::Off(_) => None,
        }
    }

    /// Notes that something was, or will be, done for it that is not in it.
    pub fn set_incomplete(&self) {
        self.missed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn add(
        &self,
        stats: impl Iterator<Item = (u16, SyscallStats)>,
        slow: impl Iterator<Item = SlowCall>,
        lost: u64,
    ) {
        let mut tally = self.tally.lock();
        tally.lost += lost;
        for (nr, more) in stats {
            match tally.stats.iter_mut().find(|(known, _)| *known == nr) {
                Some((_, sum)) => sum.add(&more),
                None => tally.stats.push((nr, more)),
            }
        }
        for call in slow {
            if tally.slow.len() < SLOW_CALLS_MAX {
                tally.slow.push(call);
            } else {
                tally.lost += 1;
            }
        }
    }
}
