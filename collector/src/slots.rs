//! The slots of the runtime's threads.
//!
//! A slot is a value of the mmapped array `SLOTS`. The probes find it by the thread's id and add to it while the thread is
//! in the kernel; the thread reads it back with plain loads. What a thread does outside every mark belongs to the runtime,
//! and is kept here, by slot.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use nexus_core::kernel::{FASTER_THAN_NS, SyscallStats, Syscalls};
use nexus_ebpf_common::{BOUNDS_NS, ENTER_NONE, SYSCALLS_MAX, TASK_UNTRACKED};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use crate::error::SlotsFull;
use crate::mark;
use crate::names::slot_syscall_name;
use crate::raw::{Rate, SlotCells, SlotMap, StatCells, monotonic_ns};
use crate::remote::Remote;
use crate::tasks::Tasks;

/// The slots of all threads of this process.
///
/// A forked child that goes on without `execve` must not use them: the mapping is shared with its parent.
pub struct Slots {
    map: SlotMap,
    registrar: Registrar,
    free: Mutex<Vec<u32>>,
    runtime: Box<[Mutex<RuntimeSide>]>,
    slow_ns: u64,
    /// Of each slot: system calls that were handed to accounts. Written by the slot's thread only.
    attributed: Box<[AtomicU64]>,
    detail: Detail,
    watched: Mutex<Watched>,
    /// Held by whoever changes the level.
    changing: Mutex<()>,
    /// [`Watched::level`] and [`Watched::change`], for looking only.
    level: AtomicU8,
    change: AtomicU32,
    attached: AtomicBool,
    /// The same moment on both clocks. The probes' is the monotonic clock, which is also what `Instant` reads.
    epoch: (Instant, u64),
    rate: Rate,
}

/// Who tells the probes which thread has which slot.
pub(crate) enum Registrar {
    /// This process, in the map itself.
    Here(Arc<Tasks>),
    /// A collector, which is asked to.
    Collector(Arc<Remote>),
}

impl Registrar {
    /// Notes that the current thread has a slot; returns its id as the kernel has it, if that is known here.
    fn register(&self, index: u32) -> Result<u32, SlotsFull> {
        match self {
            Self::Here(tasks) => {
                let tid = tasks.current().map_err(SlotsFull::refused)?;
                tasks.set(tid, index + 1).map_err(|_| SlotsFull::TidOutOfRange { tid })?;
                Ok(tid)
            }
            Self::Collector(remote) => remote.register(index).map(|()| 0),
        }
    }

    /// Takes that back.
    fn unregister(&self, index: u32, tid: u32) {
        // It cannot fail: it did not before.
        let failed = match self {
            Self::Here(tasks) => tasks.set(tid, TASK_UNTRACKED).err().map(|error| error.to_string()),
            // A collector that has ended has taken it back.
            Self::Collector(remote) if remote.is_gone() => None,
            Self::Collector(remote) => remote.unregister(index).err().map(|error| error.to_string()),
        };
        if let Some(error) = failed {
            tracing::warn!(error, tid, "could not withdraw a thread from the probes");
        }
    }
}

/// What the probes tell beside system calls, or why they do not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Detail {
    pub(crate) scheduling: Result<(), Cow<'static, str>>,
    pub(crate) disk_waits: Result<(), Cow<'static, str>>,
    pub(crate) page_faults: Result<(), Cow<'static, str>>,
    pub(crate) profiles: Result<(), Cow<'static, str>>,
}

impl Detail {
    /// Before anything was tried.
    pub(crate) fn unknown() -> Self {
        let unknown = || Err(Cow::Borrowed("the probes are not attached yet"));
        Self { scheduling: unknown(), disk_waits: unknown(), page_faults: unknown(), profiles: unknown() }
    }
}

/// How much is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Level {
    /// Nothing.
    Off = 0,
    /// System calls.
    Counts = 1,
    /// And everything beside them that can be had.
    Full = 2,
}

/// The level at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    pub(crate) level: Level,
    /// Why it is not [`Level::Full`].
    pub(crate) reason: Cow<'static, str>,
    /// Raised with each change, so that an account can tell that there was one.
    pub(crate) change: u32,
}

/// What user space keeps for a slot.
#[derive(Default)]
struct RuntimeSide {
    /// What the slot's threads did for the runtime, by part and system call; the last is the part of the thread that has it now.
    /// Made for the first thread of a part, and kept for the next ones.
    totals: Vec<(&'static str, Box<[SyscallStats]>)>,
    /// The last generation that the slot had.
    generation: u64,
}

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots").field("threads_max", &self.runtime.len()).finish_non_exhaustive()
    }
}

impl Slots {
    pub(crate) fn new(map: SlotMap, registrar: Registrar, slow_ns: u64, detail: Detail) -> Self {
        let threads_max = map.slots().len();
        Self {
            map,
            registrar,
            // Taken from the end: the first thread gets slot 0.
            free: Mutex::new((0..threads_max as u32).rev().collect()),
            runtime: (0..threads_max).map(|_| Mutex::default()).collect(),
            slow_ns,
            attributed: (0..threads_max).map(|_| AtomicU64::new(0)).collect(),
            detail,
            watched: Mutex::new(Watched { level: Level::Full, reason: "".into(), change: 0 }),
            changing: Mutex::new(()),
            level: AtomicU8::new(Level::Full as u8),
            change: AtomicU32::new(0),
            attached: AtomicBool::new(true),
            epoch: (Instant::now(), monotonic_ns()),
            rate: Rate::begin(),
        }
    }

    /// Gives the current thread a slot, until it ends or gives it back. Nothing happens if it has one.
    ///
    /// What it does outside of every mark belongs to `part` of the runtime. To be called at a thread's start; a thread that has
    /// none takes one at its first mark, as one that runs tasks.
    pub fn register_thread(self: &Arc<Self>, part: &'static str) -> Result<(), SlotsFull> {
        mark::register(self, part)
    }

    /// Takes the current thread's slot back. Nothing happens if it has none, or is in a marked section.
    pub fn unregister_thread(self: &Arc<Self>) {
        mark::unregister(self);
    }

    /// How many threads can have a slot at a time.
    pub fn threads_max(&self) -> u32 {
        self.map.slots().len() as u32
    }

    /// How many threads have one.
    pub fn threads(&self) -> u32 {
        self.threads_max() - self.free.lock().len() as u32
    }

    /// Whether the probes are attached. They are until [`crate::Probes`] is dropped, or the collector that loaded them ends.
    pub fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }

    /// What threads with a slot did outside every mark, since the probes were loaded: the runtime's own work, by part.
    ///
    /// Without the times blocked or ready: the level may have changed meanwhile, and they would be of a part only.
    ///
    /// Exact at the time of the call, also for threads that are blocked or busy. A call that is just returning on another
    /// thread may be counted here before its time is added.
    pub fn runtime_totals(&self) -> BTreeMap<&'static str, Syscalls> {
        let mut sums: BTreeMap<&'static str, Vec<SyscallStats>> = BTreeMap::new();
        let none = || vec![SyscallStats::default(); SYSCALLS_MAX];
        for (side, slot) in self.runtime.iter().zip(self.map.slots()) {
            // The owner takes this lock before it moves numbers out of the slot, and before it leaves the generation in
            // which there are any: what is read under it is read once.
            let side = side.lock();
            for (part, totals) in &side.totals {
                let sums = sums.entry(part).or_insert_with(none);
                sums.iter_mut().zip(totals.iter()).for_each(|(sum, stats)| sum.add(stats));
            }
            let generation = slot.generation.load(Ordering::Acquire);
            let Some((part, _)) = side.totals.last().filter(|_| generation != 0 && generation % 2 == 0) else {
                continue;
            };
            let sums = sums.entry(part).or_insert_with(none);
            for (nr, stats) in touched(slot, generation, false) {
                sums[usize::from(nr)].add(&stats);
            }
        }
        let named = |sums: Vec<SyscallStats>| -> Syscalls {
            let used = sums.into_iter().enumerate().filter(|(_, stats)| stats.count > 0);
            used.map(|(nr, stats)| (slot_syscall_name(nr as u16), stats)).collect()
        };
        sums.into_iter().map(|(part, sums)| (part, named(sums))).collect()
    }

    /// What is watched now.
    pub(crate) fn watched(&self) -> Watched {
        self.watched.lock().clone()
    }

    /// Whether anything is.
    #[inline]
    pub(crate) fn is_watched(&self) -> bool {
        self.level.load(Ordering::Relaxed) != Level::Off as u8
    }

    /// Whether scheduling is.
    #[inline]
    pub(crate) fn is_scheduling_watched(&self) -> bool {
        self.detail.scheduling.is_ok() && self.level.load(Ordering::Relaxed) == Level::Full as u8
    }

    /// How often the level changed.
    pub(crate) fn changes(&self) -> u32 {
        self.change.load(Ordering::Acquire)
    }

    pub(crate) fn set_level(&self, level: Level, reason: &str) {
        let mut watched = self.watched.lock();
        watched.level = level;
        watched.reason = Cow::Owned(reason.to_owned());
        watched.change += 1;
        self.change.store(watched.change, Ordering::Release);
        self.level.store(level as u8, Ordering::Release);
    }

    /// Says otherwise why the level is what it is.
    pub(crate) fn set_reason(&self, reason: &str) {
        self.watched.lock().reason = Cow::Owned(reason.to_owned());
    }

    /// Forgets where threads were when they were last watched, and in which calls. For the time in which nobody does.
    pub(crate) fn forget_state(&self, calls: bool) {
        for slot in self.map.slots() {
            if calls {
                slot.enter_nr.store(ENTER_NONE, Ordering::Relaxed);
            }
            slot.sched.out_ts_ns.store(0, Ordering::Relaxed);
        }
    }

    /// What is told beside system calls.
    pub(crate) fn detail(&self) -> &Detail {
        &self.detail
    }

    /// Notes that `calls` of a slot were handed to an account. For the slot's own thread.
    #[inline]
    pub(crate) fn attribute(&self, index: u32, calls: u64) {
        let sum = &self.attributed[index as usize];
        sum.store(sum.load(Ordering::Relaxed) + calls, Ordering::Release);
    }

    /// System calls that accounts were given, or will be when a mark that is in force ends.
    pub(crate) fn attributed_calls(&self) -> u64 {
        let in_force = |slot: &SlotCells| -> u64 {
            let generation = slot.generation.load(Ordering::Acquire);
            let odd = generation % 2 == 1;
            if odd { touched(slot, generation, false).map(|(_, stats)| stats.count).sum() } else { 0 }
        };
        let slots = self.attributed.iter().zip(self.map.slots());
        slots.map(|(sum, slot)| sum.load(Ordering::Acquire) + in_force(slot)).sum()
    }

    pub(crate) fn set_detached(&self) {
        self.attached.store(false, Ordering::Relaxed);
    }

    /// Whoever wants to change the level waits for who does.
    pub(crate) fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    /// The collector that loaded the probes has ended. Nothing is watched from now on.
    pub(crate) fn set_lost(&self, reason: &str) {
        let _alone = self.changing();
        self.set_detached();
        self.set_level(Level::Off, reason);
    }

    /// Whether everything up to now was seen. Probes of this process stay as long as it wants them. Those of a collector are
    /// gone the moment that it is, which may not be known here yet: so a system call is made, to see whether it is seen.
    pub(crate) fn saw_all(self: &Arc<Self>) -> bool {
        match &self.registrar {
            Registrar::Here(_) => self.is_attached(),
            Registrar::Collector(remote) => {
                self.is_attached() && (mark::is_seen(self) || remote.answers()) && remote.lives()
            }
        }
    }

    /// A moment on the probes' clock.
    pub(crate) fn monotonic_ns(&self, at: Instant) -> u64 {
        let (instant, ns) = self.epoch;
        match at.checked_duration_since(instant) {
            Some(after) => ns.saturating_add(after.as_nanos() as u64),
            None => ns.saturating_sub(instant.duration_since(at).as_nanos() as u64),
        }
    }

    /// Ticks of the clock of marks in a nanosecond.
    pub(crate) fn ticks_per_ns(&self) -> f64 {
        self.rate.ticks_per_ns()
    }

    pub(crate) fn slot(&self, index: u32) -> &SlotCells {
        &self.map.slots()[index as usize]
    }

    /// Takes a slot for the current thread.
    pub(crate) fn take(&self, part: &'static str) -> Result<(u32, u32), SlotsFull> {
        let index = self.free.lock().pop().ok_or(SlotsFull::Full { threads_max: self.threads_max() })?;
        let slot = self.slot(index);
        {
            let mut side = self.runtime[index as usize].lock();
            let of_part = match side.totals.iter().position(|(known, _)| *known == part) {
                Some(at) => side.totals.swap_remove(at),
                None => (part, vec![SyscallStats::default(); SYSCALLS_MAX].into_boxed_slice()),
            };
            side.totals.push(of_part);
            clear(slot);
            slot.enter_nr.store(ENTER_NONE, Ordering::Relaxed);
            slot.sched.out_ts_ns.store(0, Ordering::Relaxed);
            slot.slow_ns.store(self.slow_ns, Ordering::Relaxed);
            // Even: the runtime's.
            side.generation = (side.generation + 2) & !1;
            slot.generation.store(side.generation, Ordering::Release);
        }
        match self.registrar.register(index) {
            Ok(tid) => Ok((index, tid)),
            Err(error) => {
                self.give_back(index);
                Err(error)
            }
        }
    }

    /// Gives the current thread's slot back.
    pub(crate) fn release(&self, index: u32, tid: u32) {
        // From here on the probes leave the slot alone, so that the numbers are final.
        self.registrar.unregister(index, tid);
        self.drain_runtime(index);
        self.give_back(index);
    }

    fn give_back(&self, index: u32) {
        let slot = self.slot(index);
        {
            let mut side = self.runtime[index as usize].lock();
            side.generation = slot.generation.load(Ordering::Relaxed);
            slot.generation.store(0, Ordering::Release);
        }
        self.free.lock().push(index);
    }

    /// Moves what the current thread did for the runtime out of its slot, which is in an even generation.
    #[cold]
    pub(crate) fn drain_runtime(&self, index: u32) {
        let slot = self.slot(index);
        // Waiting for the lock, or waking who waits for it, is a system call, and the runtime's too: hence again.
        while slot.touched_len.load(Ordering::Relaxed) != 0 {
            let mut side = self.runtime[index as usize].lock();
            let generation = slot.generation.load(Ordering::Relaxed);
            if let Some((_, totals)) = side.totals.last_mut() {
                for (nr, stats) in touched(slot, generation, false) {
                    totals[usize::from(nr)].add(&stats);
                }
            }
            clear(slot);
            // The same generation must not begin anew: the stats in the slot still carry its number.
            slot.generation.store(generation + 2, Ordering::Release);
        }
    }
}

const _: () = {
    let mut at = 0;
    while at < FASTER_THAN_NS.len() {
        assert!(FASTER_THAN_NS[at] == BOUNDS_NS[at]);
        at += 1;
    }
};

/// Forgets what a slot says of its generation.
pub(crate) fn clear(slot: &SlotCells) {
    slot.touched_len.store(0, Ordering::Relaxed);
    slot.records_len.store(0, Ordering::Relaxed);
    slot.lost.store(0, Ordering::Relaxed);
}

/// How many of `count` calls were how fast, out of a [`nexus_ebpf_common::SyscallStat`]. `None` where one of its numbers is full.
fn faster(count: u64, slower: u64) -> Option<[u64; FASTER_THAN_NS.len()]> {
    let slower: [u64; BOUNDS_NS.len()] = std::array::from_fn(|at| slower >> (16 * at) & 0xffff);
    let [a, b, c, d] = slower;
    (!slower.contains(&0xffff)).then(|| [count.saturating_sub(a + b + c + d), a, b, c])
}

/// The numbers of a slot that belong to `generation`; with those of scheduling, if it is watched.
pub(crate) fn touched(
    slot: &SlotCells,
    generation: u64,
    scheduling: bool,
) -> impl Iterator<Item = (u16, SyscallStats)> + '_ {
    let len = (slot.touched_len.load(Ordering::Acquire) as usize).min(SYSCALLS_MAX);
    slot.touched[..len].iter().filter_map(move |nr| {
        let nr = nr.load(Ordering::Relaxed);
        let cells: &StatCells = slot.stats.get(usize::from(nr))?;
        let count = cells.count.load(Ordering::Relaxed);
        let stats = SyscallStats {
            count,
            errors: cells.errors.load(Ordering::Relaxed),
            total_ns: cells.total_ns.load(Ordering::Relaxed),
            max_ns: cells.max_ns.load(Ordering::Relaxed),
            off_cpu_ns: scheduling.then(|| cells.off_cpu_ns.load(Ordering::Relaxed)),
            run_queue_ns: scheduling.then(|| cells.run_queue_ns.load(Ordering::Relaxed)),
            faster: faster(count, cells.slower.load(Ordering::Relaxed)),
        };
        (cells.generation.load(Ordering::Acquire) == generation).then_some((nr, stats))
    })
}

#[cfg(test)]
mod tests {
    use super::faster;

    #[test]
    fn what_is_not_slower_is_faster() {
        assert_eq!(faster(10, 0), Some([10, 0, 0, 0]));
        assert_eq!(faster(10, 1 | 2 << 16 | 3 << 32 | 4 << 48), Some([0, 1, 2, 3]));
        assert_eq!(faster(70_000, 0xfffe), Some([70_000 - 0xfffe, 0xfffe, 0, 0]));
        // Whether it was one more is not known.
        for place in 0..4 {
            assert_eq!(faster(70_000, 0xffff << (16 * place)), None);
        }
    }
}
