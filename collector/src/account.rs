//! The kernel's account of one invocation.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nexus_core::kernel::{KernelAccount, KernelMode, PageFaults, SlowSyscall, SyscallStats};
use nexus_ebpf_common::Owner;
use parking_lot::Mutex;

use crate::imports::{ImportId, NO_IMPORT, name_of};
use crate::mark::{self, Calls, Sched};
use crate::names::slot_syscall_name;
use crate::raw::ticks;
use crate::slots::{Detail, Level, Slots, Watched};

/// Slow calls that an account keeps. More are counted as lost.
pub const SLOW_CALLS_MAX: usize = 256;

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
    owner: [u64; 4],
    started_ns: u64,
    /// What was watched when it began.
    watched: Watched,
    missed: AtomicBool,
    time: Time,
    tally: Mutex<Tally>,
}

/// How long threads worked for the account, and how long none did.
#[derive(Debug, Default)]
struct Time {
    /// In the lower [`WORKING_BITS`], threads that are in a marked section now; above, how long those that left had been, in
    /// ticks of the clock of marks. One word, because a poll must not cost two more writes that other CPUs see.
    work: AtomicU64,
    /// When the last one left, in ticks; when the account was made, before the first came.
    left: AtomicU64,
    waited: AtomicU64,
    /// From the account's start until it was made.
    before_ns: u64,
    /// The guest's own code: how long it ran, and how long its threads were away meanwhile.
    guest: AtomicU64,
    guest_away_ns: AtomicU64,
    /// It was made to let others run while its own code ran.
    in_guest: AtomicBool,
}

#[derive(Debug, Default)]
struct Tally {
    sched: Sched,
    /// An invocation makes few different calls: a search in a short list is faster than a hash.
    stats: Vec<Calls>,
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

/// Enough for [`Time::work`] to count all threads that can have a slot, each marked a few times over; what is left is four days at
/// 3 GHz.
const WORKING_BITS: u32 = 14;

impl Time {
    /// How many threads work now, and for how many ticks those worked that left.
    fn work(&self) -> (u64, u64) {
        let work = self.work.load(Ordering::Acquire);
        (work & ((1 << WORKING_BITS) - 1), work >> WORKING_BITS)
    }
}

impl Account {
    /// An account of nobody in particular, that starts at `started`.
    pub fn new(source: &KernelSource, started: Instant) -> Arc<Self> {
        Self::of(source, started, Owner::default())
    }

    /// An account for an invocation that started at `started`; `owner` says in profiles whose it is.
    pub fn of(source: &KernelSource, started: Instant, owner: Owner) -> Arc<Self> {
        let (started_ns, watched, time) = match source {
            KernelSource::Probes(slots) => {
                let watched = slots.watched();
                let before_ns = nanos(started.elapsed());
                let time = Time { left: AtomicU64::new(ticks()), before_ns, ..Time::default() };
                (slots.monotonic_ns(started), watched, time)
            }
            KernelSource::Off(reason) => {
                (0, Watched { level: Level::Off, reason: reason.clone(), change: 0 }, Time::default())
            }
        };
        Arc::new(Self {
            source: source.clone(),
            owner: zerocopy::transmute!(owner),
            started_ns,
            watched,
            missed: AtomicBool::new(false),
            time,
            tally: Mutex::new(Tally::default()),
        })
    }

    /// Runs `section` on this thread, and counts what it makes the kernel do.
    ///
    /// Sections nest: when the inner one ends, or panics, the outer account goes on. A thread that has no slot yet takes one;
    /// when it cannot, the account is incomplete and says so.
    pub fn enter<T>(&self, section: impl FnOnce() -> T) -> T {
        let _mark = mark::begin(self, NO_IMPORT);
        section()
    }

    /// The same for what is done beside the guest for one of its imports, by its name.
    pub fn enter_import<T>(&self, import: &'static str, section: impl FnOnce() -> T) -> T {
        let import = match self.source {
            KernelSource::Probes(_) => ImportId::of(import).0,
            KernelSource::Off(_) => NO_IMPORT,
        };
        let _mark = mark::begin(self, import);
        section()
    }

    /// Whether [`mark::crossed`] should be told when the guest's code runs.
    pub fn wants_crossings(&self) -> bool {
        matches!(&self.source, KernelSource::Probes(slots) if slots.is_scheduling_watched())
    }

    /// What was counted up to `ended`, the account's end. A section that is still marked, on this thread or another, is in
    /// it once it ends.
    pub fn snapshot(&self, ended: Instant) -> (KernelAccount, Vec<SlowSyscall>) {
        let slots = match &self.source {
            KernelSource::Off(reason) => return (KernelAccount::off(reason.clone()), Vec::new()),
            KernelSource::Probes(_) if self.watched.level == Level::Off => {
                return (KernelAccount::off(self.watched.reason.clone()), Vec::new());
            }
            KernelSource::Probes(slots) => slots,
        };
        let mut detail = slots.detail().clone();
        if self.watched.level == Level::Counts {
            let reason = || Err(self.watched.reason.clone());
            (detail.scheduling, detail.disk_waits, detail.page_faults) = (reason(), reason(), reason());
        }
        let tally = self.tally.lock();
        let changed = slots.changes() != self.watched.change;
        let missed = self.missed.load(Ordering::Relaxed) || changed || !slots.saw_all();
        let (mut syscalls, mut imports) = (BTreeMap::new(), BTreeMap::new());
        for Calls { import, nr, stats } in &tally.stats {
            let name = slot_syscall_name(*nr);
            if let Some(import) = name_of(*import) {
                let of_import: &mut BTreeMap<_, SyscallStats> = imports.entry(Cow::Borrowed(import)).or_default();
                of_import.entry(name.clone()).or_default().add(stats);
            }
            syscalls.entry(name).or_insert_with(SyscallStats::default).add(stats);
        }
        let (working, worked) = self.time.work();
        let ticks_per_ns = slots.ticks_per_ns();
        let ns_of = |ticks: u64| (ticks as f64 / ticks_per_ns) as u64;
        let mut account = KernelAccount {
            complete: Some(!missed && tally.lost == 0),
            lost: Some(tally.lost),
            system_ns: detail
                .scheduling
                .is_ok()
                .then(|| tally.stats.iter().filter_map(|calls| calls.stats.on_cpu_ns()).sum()),
            syscalls: Some(syscalls),
            imports: Some(imports),
            ..scheduled(&detail, &tally.sched, ns_of(worked))
        };
        if let (Some(on_cpu), Some(run_queue), Some(off_cpu)) =
            (account.on_cpu_ns, account.run_queue_ns, account.off_cpu_ns)
        {
            let since_ended = nanos(ended.elapsed());
            // Where a thread was left behind, the account is incomplete, and nothing is waited for.
            let left = match working {
                0 => ticks().saturating_sub(self.time.left.load(Ordering::Relaxed)),
                _ => 0,
            };
            let last = ns_of(left);
            let waited = ns_of(self.time.waited.load(Ordering::Relaxed));
            let waiting = (self.time.before_ns + waited + last).saturating_sub(since_ended);
            let duration = slots.monotonic_ns(ended).saturating_sub(self.started_ns);
            let guest = ns_of(self.time.guest.load(Ordering::Relaxed));
            account.guest_ns = Some(guest.saturating_sub(self.time.guest_away_ns.load(Ordering::Relaxed)));
            account.waiting_ns = Some(waiting);
            account.residual_ns = Some(duration as i64 - (on_cpu + run_queue + off_cpu + waiting) as i64);
        }
        let slow = tally.slow.iter().map(|call| SlowSyscall {
            name: slot_syscall_name(call.nr),
            ret: call.ret,
            offset_ns: call.start_ns.saturating_sub(self.started_ns),
            duration_ns: call.duration_ns,
        });
        (account, slow.collect())
    }

    pub(crate) fn owner(&self) -> &[u64; 4] {
        &self.owner
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

    /// A thread begins to work for the account.
    #[inline]
    pub(crate) fn comes(&self, now: u64) {
        let before = self.time.work.fetch_add(1, Ordering::AcqRel);
        if before & ((1 << WORKING_BITS) - 1) == 0 {
            let waited = now.saturating_sub(self.time.left.load(Ordering::Relaxed));
            // Nobody else is here before this thread has gone: no other can be the first.
            self.time.waited.store(self.time.waited.load(Ordering::Relaxed) + waited, Ordering::Relaxed);
        }
    }

    /// It ends to, and had worked for it for so long.
    #[inline]
    pub(crate) fn goes(&self, now: u64, worked: u64) {
        // Another may have left later, and be here earlier.
        if self.time.left.load(Ordering::Relaxed) < now {
            self.time.left.store(now, Ordering::Relaxed);
        }
        self.time.work.fetch_add((worked << WORKING_BITS).wrapping_sub(1), Ordering::AcqRel);
    }

    /// The guest's own code ran, in ticks of the clock of marks; for so many nanoseconds of it the thread was away.
    #[inline]
    pub(crate) fn add_guest(&self, ticks: u64, away_ns: u64) {
        if ticks > 0 {
            self.time.guest.fetch_add(ticks, Ordering::Relaxed);
        }
        if away_ns > 0 {
            self.time.guest_away_ns.fetch_add(away_ns, Ordering::Relaxed);
        }
    }

    /// The guest was made to let others run in the midst of its own code.
    pub(crate) fn guest_stops(&self) {
        self.time.in_guest.store(true, Ordering::Release);
    }

    /// Whether that was so; now it goes on.
    #[inline]
    pub(crate) fn guest_goes_on(&self) -> bool {
        self.time.in_guest.load(Ordering::Relaxed) && self.time.in_guest.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn add(
        &self,
        stats: impl Iterator<Item = Calls>,
        slow: impl Iterator<Item = SlowCall>,
        lost: u64,
        sched: &Sched,
    ) {
        let mut tally = self.tally.lock();
        tally.lost += lost;
        tally.sched.add(sched);
        for more in stats {
            match tally.stats.iter_mut().find(|known| (known.import, known.nr) == (more.import, more.nr)) {
                Some(sum) => sum.stats.add(&more.stats),
                None => tally.stats.push(more),
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

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// An account's scheduling, of threads that worked `worked_ns` for it on their CPUs and off them, as far as it is watched.
pub(crate) fn scheduled(detail: &Detail, sched: &Sched, worked_ns: u64) -> KernelAccount {
    let mut account = KernelAccount { mode: KernelMode::Counts, ..KernelAccount::default() };
    match &detail.scheduling {
        Ok(()) => {
            account.mode = KernelMode::Full;
            account.on_cpu_ns = Some(worked_ns.saturating_sub(sched.run_queue_ns + sched.off_cpu_ns));
            account.run_queue_ns = Some(sched.run_queue_ns);
            account.off_cpu_ns = Some(sched.off_cpu_ns);
            account.page_fault_off_cpu_ns = Some(sched.fault_off_cpu_ns);
            if detail.disk_waits.is_ok() {
                account.io_wait_ns = Some(sched.io_wait_ns);
                account.io_waits = Some(sched.io_waits);
            }
            account.context_switches = Some(sched.switches);
            account.migrations = Some(sched.migrations);
        }
        Err(reason) => account.reason = Some(reason.clone()),
    }
    match &detail.page_faults {
        Ok(()) => {
            let minor = sched.faults.saturating_sub(sched.major_faults);
            account.page_faults = Some(PageFaults { minor, major: sched.major_faults });
        }
        Err(reason) => {
            account.reason.get_or_insert_with(|| reason.clone());
        }
    }
    account
}
