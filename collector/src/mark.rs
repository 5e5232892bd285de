//! Marks: which account the current thread works for.
//!
//! A mark costs a few loads and stores and, where scheduling is watched, two looks at the clock, when nothing happened under
//! it. A generation is never used twice, even ones are the
//! runtime's and odd ones an account's, so that numbers can be told apart however often the owner changes.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use nexus_core::kernel::SyscallStats;
use nexus_core::threads;
use nexus_ebpf_common::{ENTER_NONE, RECORDS_MAX, SYSCALLS_MAX, SchedCounts};
use rustix::process::getppid;

use crate::account::{Account, SlowCall};
use crate::error::SlotsFull;
use crate::imports::{Import, NO_IMPORT};
use crate::raw::{SlotCells, ticks};
use crate::slots::{Slots, clear, touched};

thread_local! {
    static THREAD: RefCell<Thread> = const { RefCell::new(Thread {
        registration: None,
        depth: 0,
        inner: 0,
        import: NO_IMPORT,
        guest: Guest { since: None, ticks: 0, away_ns: 0 },
        around: Vec::new(),
    }) };
}

/// What a thread knows of its slot.
struct Thread {
    registration: Option<Registration>,
    /// How many marks are in force, one in another.
    depth: u32,
    /// The time that marks within the current one took, in [`ticks`].
    inner: u64,
    /// The import that the current mark's work is done for.
    import: Import,
    /// The guest's code within the current mark.
    guest: Guest,
    /// Of each mark around the current one, what it goes on with.
    around: Vec<Outer>,
}

/// When a guest's own code ran.
#[derive(Clone, Copy, Debug, Default)]
struct Guest {
    /// It runs now: since when, in [`ticks`], and how long the thread had been away by then.
    since: Option<(u64, u64)>,
    /// How long it ran.
    ticks: u64,
    /// Of that: how long the thread was away.
    away_ns: u64,
}

impl Guest {
    fn begin(&mut self, slot: &SlotCells) {
        let (sched, now) = moment(slot);
        self.since = Some((now, away_ns(sched)));
    }

    /// Whether it ran.
    fn end(&mut self, slot: &SlotCells) -> bool {
        let Some((since, away_ns)) = self.since.take() else { return false };
        let (sched, now) = moment(slot);
        self.ticks += now.saturating_sub(since);
        self.away_ns += self::away_ns(sched).saturating_sub(away_ns);
        true
    }
}

/// A thread's slot, which is given back when the thread ends.
struct Registration {
    slots: Arc<Slots>,
    index: u32,
    tid: u32,
    stash: Stash,
}

/// What was read out of the slot, and waits to be added to its account: adding may make system calls of its own (a lock, an
/// allocation), so the thread must work for the runtime again by then. Never grows: that would be a system call too.
struct Stash {
    stats: Vec<Calls>,
    /// Where those of the current mark begin.
    from: usize,
    slow: Vec<SlowCall>,
    lost: u64,
    sched: Sched,
}

/// Calls of one kind that were made for one import.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Calls {
    pub(crate) import: Import,
    pub(crate) nr: u16,
    pub(crate) stats: SyscallStats,
}

/// Where the time of marked sections went, as far as the scheduler knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sched {
    pub(crate) off_cpu_ns: u64,
    pub(crate) run_queue_ns: u64,
    pub(crate) fault_off_cpu_ns: u64,
    pub(crate) switches: u64,
    pub(crate) migrations: u64,
    pub(crate) faults: u64,
    pub(crate) major_faults: u64,
    pub(crate) io_wait_ns: u64,
    pub(crate) io_waits: u64,
}

impl Sched {
    /// What a slot says of its current generation; `None` if nothing happened in it.
    #[inline]
    fn of(slot: &SlotCells) -> Option<Self> {
        (!is_quiet(slot)).then(|| Self::read(slot))
    }

    #[inline]
    fn read(slot: &SlotCells) -> Self {
        let counts = &slot.counts;
        Self {
            off_cpu_ns: counts.off_cpu_ns.load(Ordering::Relaxed),
            run_queue_ns: counts.run_queue_ns.load(Ordering::Relaxed),
            fault_off_cpu_ns: counts.fault_off_cpu_ns.load(Ordering::Relaxed),
            switches: counts.switches.load(Ordering::Relaxed),
            migrations: counts.migrations.load(Ordering::Relaxed),
            faults: counts.faults.load(Ordering::Relaxed),
            major_faults: counts.major_faults.load(Ordering::Relaxed),
            io_wait_ns: counts.io_wait_ns.load(Ordering::Relaxed),
            io_waits: counts.io_waits.load(Ordering::Relaxed),
        }
    }

    /// Adds what `more` counted.
    pub(crate) fn add(&mut self, more: &Self) {
        self.off_cpu_ns += more.off_cpu_ns;
        self.run_queue_ns += more.run_queue_ns;
        self.fault_off_cpu_ns += more.fault_off_cpu_ns;
        self.switches += more.switches;
        self.migrations += more.migrations;
        self.faults += more.faults;
        self.major_faults += more.major_faults;
        self.io_wait_ns += more.io_wait_ns;
        self.io_waits += more.io_waits;
    }

    fn is_empty(&self) -> bool {
        // The rest comes with a switch.
        self.switches == 0 && self.faults == 0 && self.major_faults == 0
    }
}

impl From<SchedCounts> for Sched {
    fn from(counts: SchedCounts) -> Self {
        Self {
            off_cpu_ns: counts.off_cpu_ns,
            run_queue_ns: counts.run_queue_ns,
            fault_off_cpu_ns: counts.fault_off_cpu_ns,
            switches: counts.switches,
            migrations: counts.migrations,
            faults: counts.faults,
            major_faults: counts.major_faults,
            io_wait_ns: counts.io_wait_ns,
            io_waits: counts.io_waits,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.slots.release(self.index, self.tid);
    }
}

/// Gives the current thread a slot of `slots`, if it has none.
pub(crate) fn register(slots: &Arc<Slots>, part: &'static str) -> Result<(), SlotsFull> {
    // Fails in the thread's last moments, when its thread-local values are gone.
    THREAD
        .try_with(|thread| {
            thread.try_borrow_mut().map_or(Err(SlotsFull::Busy), |mut thread| thread.register(slots, part))
        })
        .unwrap_or(Err(SlotsFull::Busy))
}

/// Takes the current thread's slot of `slots` back, unless it is marked.
pub(crate) fn unregister(slots: &Arc<Slots>) {
    let registration = THREAD.try_with(|thread| {
        let mut thread = thread.borrow_mut();
        let ours = thread.registration.as_ref().is_some_and(|registration| Arc::ptr_eq(&registration.slots, slots));
        if ours && thread.depth == 0 { thread.registration.take() } else { None }
    });
    drop(registration);
}

/// Whether the probes see the current thread, by a system call. `false` also if it has no slot of `slots`.
pub(crate) fn is_seen(slots: &Arc<Slots>) -> bool {
    let seen = THREAD.try_with(|thread| {
        let thread = thread.try_borrow().ok()?;
        let ours = thread.registration.as_ref().filter(|registration| Arc::ptr_eq(&registration.slots, slots))?;
        let slot = slots.slot(ours.index);
        let before = slot.enter_ts_ns.load(Ordering::Relaxed);
        let _ = getppid();
        compiler_fence(Ordering::SeqCst);
        // Its entry was seen, and its return.
        let entered = slot.enter_ts_ns.load(Ordering::Relaxed) != before;
        Some(entered && slot.enter_nr.load(Ordering::Relaxed) == ENTER_NONE)
    });
    seen.ok().flatten().unwrap_or(false)
}

/// From now on, the current thread's mark works for another import. The one before.
///
/// Nothing happens on a thread that is not marked.
pub(crate) fn switch_import(import: Import) -> Import {
    let before =
        THREAD.try_with(|thread| thread.try_borrow_mut().map_or(NO_IMPORT, |mut thread| thread.switch(import)));
    before.unwrap_or(NO_IMPORT)
}

/// The guest's own code begins to run on the current thread, within its mark, or ends to.
///
/// Nothing happens on a thread that is not marked, or where scheduling is not watched.
#[inline]
pub fn crossed(into_guest: bool) {
    // Fails in the thread's last moments only, when no guest runs.
    let _ = THREAD.try_with(|thread| {
        let Ok(mut thread) = thread.try_borrow_mut() else { return };
        let Thread { registration: Some(Registration { slots, index, .. }), depth: 1.., guest, .. } = &mut *thread
        else {
            return;
        };
        if !slots.is_scheduling_watched() {
            return;
        }
        let slot = slots.slot(*index);
        if into_guest {
            guest.begin(slot);
        } else {
            guest.end(slot);
        }
    });
}

/// Makes the current thread work for `account` until the mark is dropped: for its guest, or beside that for an import.
#[inline]
pub(crate) fn begin(account: &Account, import: Import) -> Mark<'_> {
    let state = match account.slots() {
        None => State::Off,
        Some(slots) if !slots.is_watched() => State::Off,
        Some(slots) => THREAD
            .try_with(|thread| {
                thread.try_borrow_mut().map_or(State::Unwatched, |mut thread| thread.begin(slots, account, import))
            })
            .unwrap_or(State::Unwatched),
    };
    if matches!(state, State::Unwatched) {
        account.set_incomplete();
    }
    Mark { account, state, _not_send: PhantomData }
}

/// A marked section. It ends when this is dropped, on the same thread.
pub(crate) struct Mark<'a> {
    account: &'a Account,
    state: State,
    _not_send: PhantomData<*const ()>,
}

enum State {
    /// The account does not count.
    Off,
    /// The account would, but the thread has no slot.
    Unwatched,
    /// The slot is the account's, since a moment in [`ticks`]; 0 where time is not asked for.
    Counting { began: u64 },
}

/// What a mark goes on with when the one within it has ended.
struct Outer {
    stats_from: usize,
    /// Where the slow calls of the mark within begin.
    slow_from: usize,
    lost: u64,
    sched: Sched,
    inner: u64,
    /// When it stopped working, in [`ticks`]; 0 where time is not asked for.
    stopped: u64,
    owner: [u64; 4],
    import: Import,
    guest: Guest,
}

/// Marks within marks for which there is room from the start. More allocate, which may be a system call, of the runtime's.
const AROUND: usize = 8;

impl Drop for Mark<'_> {
    #[inline]
    fn drop(&mut self) {
        if let State::Counting { began } = self.state {
            // The thread's values outlive its marks, so this does not fail.
            let _ = THREAD.try_with(|thread| thread.borrow_mut().end(self.account, began));
        }
    }
}

impl Thread {
    fn register(&mut self, slots: &Arc<Slots>, part: &'static str) -> Result<(), SlotsFull> {
        if let Some(registration) = &self.registration {
            if Arc::ptr_eq(&registration.slots, slots) {
                return Ok(());
            }
            if self.depth > 0 {
                return Err(SlotsFull::Busy);
            }
        }
        self.registration = None;
        let stash = Stash {
            stats: Vec::with_capacity(SYSCALLS_MAX),
            from: 0,
            slow: Vec::with_capacity(RECORDS_MAX),
            lost: 0,
            sched: Sched::default(),
        };
        self.around.reserve(AROUND);
        let (index, tid) = slots.take(part)?;
        self.registration = Some(Registration { slots: Arc::clone(slots), index, tid, stash });
        Ok(())
    }

    #[inline]
    fn switch(&mut self, import: Import) -> Import {
        if self.depth > 0
            && let Some(Registration { slots, index, stash, .. }) = &mut self.registration
        {
            if slots.slot(*index).touched_len.load(Ordering::Relaxed) != 0 {
                stash.harvest_and_go_on(slots, *index, self.import);
            }
            return std::mem::replace(&mut self.import, import);
        }
        NO_IMPORT
    }

    #[inline]
    fn begin(&mut self, slots: &Arc<Slots>, account: &Account, import: Import) -> State {
        let ours = self.registration.as_ref().is_some_and(|registration| Arc::ptr_eq(&registration.slots, slots));
        if !ours && self.register(slots, threads::TASKS).is_err() {
            return State::Unwatched;
        }
        let Some(Registration { slots, index, stash, .. }) = &mut self.registration else {
            return State::Unwatched;
        };
        let slot = slots.slot(*index);
        let timed = slots.is_scheduling_watched();
        if self.depth > 0 {
            stash.harvest(slots, *index, self.import);
            let (sched, stopped) = if timed { moment(slot) } else { (Sched::of(slot), 0) };
            if let Some(sched) = sched {
                stash.sched.add(&sched);
            }
            let outer = Outer {
                stats_from: std::mem::replace(&mut stash.from, stash.stats.len()),
                slow_from: stash.slow.len(),
                lost: std::mem::take(&mut stash.lost),
                sched: std::mem::take(&mut stash.sched),
                inner: std::mem::take(&mut self.inner),
                stopped,
                owner: std::array::from_fn(|at| slot.owner[at].load(Ordering::Relaxed)),
                import: self.import,
                guest: std::mem::take(&mut self.guest),
            };
            set_side(slot, Side::Runtime);
            self.around.push(outer);
        }
        if slot.touched_len.load(Ordering::Relaxed) != 0 {
            slots.drain_runtime(*index);
        }
        self.depth += 1;
        self.import = import;
        write_owner(slot, account.owner());
        let mut began = 0;
        if timed {
            began = begin_account(slot);
            account.comes(began);
            // It was made to let others run, in the midst of its own code.
            if import == NO_IMPORT && account.guest_goes_on() {
                self.guest.begin(slot);
            }
        } else {
            set_side(slot, Side::Account);
        }
        State::Counting { began }
    }

    #[inline]
    fn end(&mut self, account: &Account, began: u64) {
        let Some(Registration { slots, index, stash, .. }) = &mut self.registration else {
            return;
        };
        let slot = slots.slot(*index);
        self.depth -= 1;
        if self.guest.end(slot) {
            account.guest_stops();
        }
        account.add_guest(self.guest.ticks, self.guest.away_ns);
        stash.harvest(slots, *index, self.import);
        let (sched, ended) = if began == 0 { (Sched::of(slot), 0) } else { moment(slot) };
        set_side(slot, Side::Runtime);
        if let Some(sched) = sched {
            stash.sched.add(&sched);
        }
        if began != 0 {
            // Before what may wait for a lock: others may come and go meanwhile.
            account.goes(ended, ended.saturating_sub(began).saturating_sub(self.inner));
        }
        let outer = self.around.pop();
        if stash.stats.len() > stash.from || stash.lost > 0 || !stash.sched.is_empty() {
            stash.deliver(account, outer.as_ref().map_or(0, |outer| outer.slow_from));
        }
        self.guest = Guest::default();
        self.inner = 0;
        if let Some(outer) = outer {
            self.go_on(outer);
        }
    }

    /// Goes on with the mark around the one that has ended.
    #[cold]
    fn go_on(&mut self, outer: Outer) {
        let Some(Registration { slots, index, stash, .. }) = &mut self.registration else {
            return;
        };
        let slot = slots.slot(*index);
        (stash.from, stash.lost, stash.sched) = (outer.stats_from, outer.lost, outer.sched);
        (self.inner, self.import, self.guest) = (outer.inner, outer.import, outer.guest);
        if slot.touched_len.load(Ordering::Relaxed) != 0 {
            slots.drain_runtime(*index);
        }
        write_owner(slot, &outer.owner);
        if outer.stopped == 0 {
            set_side(slot, Side::Account);
        } else {
            self.inner += begin_account(slot).saturating_sub(outer.stopped);
        }
    }
}

enum Side {
    Runtime = 0,
    Account = 1,
}

/// Opens a generation of an account, and says when. The thread was not away between the two, or a fault would be of neither.
#[inline]
fn begin_account(slot: &SlotCells) -> u64 {
    loop {
        set_side(slot, Side::Account);
        let now = ticks();
        compiler_fence(Ordering::SeqCst);
        if is_quiet(slot) {
            return now;
        }
    }
}

/// Whether the scheduler has nothing to say of the slot's generation.
#[inline]
fn is_quiet(slot: &SlotCells) -> bool {
    slot.counts_generation.load(Ordering::Relaxed) != slot.generation.load(Ordering::Relaxed)
}

/// What the scheduler says of the slot's generation, if anything, and when: both of one moment.
#[inline]
fn moment(slot: &SlotCells) -> (Option<Sched>, u64) {
    let now = ticks();
    compiler_fence(Ordering::SeqCst);
    if is_quiet(slot) {
        return (None, now);
    }
    let (sched, now) = busy_moment(slot);
    (Some(sched), now)
}

/// The same where something happened. The numbers only grow, so what is the same before and after is that of the moment between.
#[cold]
fn busy_moment(slot: &SlotCells) -> (Sched, u64) {
    let mut before = Sched::read(slot);
    loop {
        compiler_fence(Ordering::SeqCst);
        let now = ticks();
        compiler_fence(Ordering::SeqCst);
        let after = Sched::read(slot);
        if after == before {
            return (after, now);
        }
        before = after;
    }
}

/// How long a thread was away from its CPU.
#[inline]
fn away_ns(sched: Option<Sched>) -> u64 {
    sched.map_or(0, |sched| sched.off_cpu_ns + sched.run_queue_ns)
}

/// Says whom the next generation is of, if it is an account's; while the current one is the runtime's.
#[inline]
pub(crate) fn write_owner(slot: &SlotCells, owner: &[u64; 4]) {
    for (cell, word) in slot.owner.iter().zip(owner) {
        cell.store(*word, Ordering::Relaxed);
    }
}

/// Opens the next generation of a side.
#[inline]
fn set_side(slot: &SlotCells, side: Side) {
    // The probes run in this thread, like a signal handler: the compiler's order is the only one that matters.
    compiler_fence(Ordering::SeqCst);
    let last = slot.generation.load(Ordering::Relaxed);
    slot.generation.store(((last + 2) & !1) | side as u64, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
}

impl Stash {
    /// Moves the numbers of the slot's generation here, which is of an account.
    #[inline]
    fn harvest(&mut self, slots: &Slots, index: u32, import: Import) {
        if slots.slot(index).touched_len.load(Ordering::Relaxed) != 0 {
            self.harvest_calls(slots, index, import);
        }
    }

    #[cold]
    fn harvest_calls(&mut self, slots: &Slots, index: u32, import: Import) {
        let slot = slots.slot(index);
        let mut calls = 0;
        for (nr, stats) in touched(slot, slot.generation.load(Ordering::Relaxed), slots.is_scheduling_watched()) {
            let known = |calls: &&mut Calls| (calls.import, calls.nr) == (import, nr);
            if let Some(sum) = self.stats[self.from..].iter_mut().find(known) {
                sum.stats.add(&stats);
            } else if self.stats.len() < self.stats.capacity() {
                self.stats.push(Calls { import, nr, stats });
            } else {
                // Full only when marks nest, or a guest uses very many imports, and each makes many different calls.
                self.lost += stats.count;
                continue;
            }
            calls += stats.count;
        }
        let records = (slot.records_len.load(Ordering::Relaxed) as usize).min(RECORDS_MAX);
        for record in &slot.records[..records] {
            if self.slow.len() == self.slow.capacity() {
                self.lost += 1;
                continue;
            }
            self.slow.push(SlowCall {
                nr: record.nr.load(Ordering::Relaxed) as u16,
                ret: record.ret.load(Ordering::Relaxed),
                start_ns: record.start_ns.load(Ordering::Relaxed),
                duration_ns: record.duration_ns.load(Ordering::Relaxed),
            });
        }
        self.lost += u64::from(slot.lost.load(Ordering::Relaxed));
        clear(slot);
        slots.attribute(index, calls);
    }

    /// The same, in the middle of an account's work, which goes on in another generation: the stats in the slot carry the
    /// number of this one.
    #[cold]
    fn harvest_and_go_on(&mut self, slots: &Slots, index: u32, import: Import) {
        let slot = slots.slot(index);
        let generation = slot.generation.load(Ordering::Relaxed);
        self.harvest_calls(slots, index, import);
        let before = Sched::of(slot).unwrap_or_default();
        set_side(slot, Side::Account);
        // If the thread was away in between, that is in the old generation's numbers, which stand until the new one has some.
        let after = Sched::read(slot);
        compiler_fence(Ordering::SeqCst);
        let stand = slot.counts_generation.load(Ordering::Relaxed) == generation;
        self.sched.add(if stand { &after } else { &before });
    }

    /// Hands the account what was read for it since its mark began.
    #[cold]
    fn deliver(&mut self, account: &Account, slow_from: usize) {
        let (lost, sched) = (std::mem::take(&mut self.lost), std::mem::take(&mut self.sched));
        account.add(self.stats.drain(self.from..), self.slow.drain(slow_from..), lost, &sched);
    }
}
