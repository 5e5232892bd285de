//! Marks: which account the current thread works for.
//!
//! A mark costs two loads and two stores when nothing happened under it. A generation is never used twice, even ones are the
//! runtime's and odd ones an account's, so that numbers can be told apart however often the owner changes.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use nexus_core::kernel::SyscallStats;
use nexus_ebpf_common::{RECORDS_MAX, SYSCALLS_MAX};

use crate::account::{Account, SlowCall};
use crate::error::SlotsFull;
use crate::raw::SlotCells;
use crate::slots::{Slots, clear, touched};

thread_local! {
    static THREAD: RefCell<Thread> = const { RefCell::new(Thread { registration: None, depth: 0 }) };
}

/// What a thread knows of its slot.
struct Thread {
    registration: Option<Registration>,
    /// How many marks are in force, one in another.
    depth: u32,
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
    stats: Vec<(u16, SyscallStats)>,
    slow: Vec<SlowCall>,
    lost: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.slots.release(self.index, self.tid);
    }
}

/// Gives the current thread a slot of `slots`, if it has none.
pub(crate) fn register(slots: &Arc<Slots>) -> Result<(), SlotsFull> {
    // Fails in the thread's last moments, when its thread-local values are gone.
    THREAD
        .try_with(|thread| thread.try_borrow_mut().map_or(Err(SlotsFull::Busy), |mut thread| thread.register(slots)))
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

/// Makes the current thread work for `account` until the mark is dropped.
#[inline]
pub(crate) fn begin(account: &Account) -> Mark<'_> {
    let state = match account.slots() {
        None => State::Off,
        Some(slots) => THREAD
            .try_with(|thread| thread.try_borrow_mut().map_or(State::Unwatched, |mut thread| thread.begin(slots)))
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
    /// The slot is the account's. What the stash held when it became so is the outer marks'.
    Counting { stats_from: u16, slow_from: u16, outer_lost: u64 },
}

impl Drop for Mark<'_> {
    #[inline]
    fn drop(&mut self) {
        if let State::Counting { stats_from, slow_from, outer_lost } = self.state {
            // The thread's values outlive its marks, so this does not fail.
            let _ = THREAD.try_with(|thread| {
                thread.borrow_mut().end(self.account, usize::from(stats_from), usize::from(slow_from), outer_lost);
            });
        }
    }
}

impl Thread {
    fn register(&mut self, slots: &Arc<Slots>) -> Result<(), SlotsFull> {
        if let Some(registration) = &self.registration {
            if Arc::ptr_eq(&registration.slots, slots) {
                return Ok(());
            }
            if self.depth > 0 {
                return Err(SlotsFull::Busy);
            }
        }
        self.registration = None;
        let stash = Stash { stats: Vec::with_capacity(SYSCALLS_MAX), slow: Vec::with_capacity(RECORDS_MAX), lost: 0 };
        let (index, tid) = slots.take()?;
        self.registration = Some(Registration { slots: Arc::clone(slots), index, tid, stash });
        Ok(())
    }

    #[inline]
    fn begin(&mut self, slots: &Arc<Slots>) -> State {
        let ours = self.registration.as_ref().is_some_and(|registration| Arc::ptr_eq(&registration.slots, slots));
        if !ours && self.register(slots).is_err() {
            return State::Unwatched;
        }
        let Some(Registration { slots, index, stash, .. }) = &mut self.registration else {
            return State::Unwatched;
        };
        let slot = slots.slot(*index);
        if slot.touched_len.load(Ordering::Relaxed) != 0 {
            if self.depth == 0 {
                slots.drain_runtime(*index);
            } else {
                stash.harvest(slot);
            }
        }
        let state = State::Counting {
            stats_from: stash.stats.len() as u16,
            slow_from: stash.slow.len() as u16,
            outer_lost: std::mem::take(&mut stash.lost),
        };
        self.depth += 1;
        set_owner(slot, Owner::Account);
        state
    }

    #[inline]
    fn end(&mut self, account: &Account, stats_from: usize, slow_from: usize, outer_lost: u64) {
        let Some(Registration { slots, index, stash, .. }) = &mut self.registration else {
            return;
        };
        let slot = slots.slot(*index);
        self.depth -= 1;
        if slot.touched_len.load(Ordering::Relaxed) != 0 {
            stash.harvest(slot);
        }
        set_owner(slot, Owner::Runtime);
        if stash.stats.len() > stats_from || stash.lost > 0 {
            stash.deliver(account, stats_from, slow_from);
        }
        stash.lost = outer_lost;
        if self.depth > 0 {
            if slot.touched_len.load(Ordering::Relaxed) != 0 {
                slots.drain_runtime(*index);
            }
            set_owner(slot, Owner::Account);
        }
    }
}

enum Owner {
    Runtime = 0,
    Account = 1,
}

/// Opens the next generation of `owner`.
#[inline]
fn set_owner(slot: &SlotCells, owner: Owner) {
    // The probes run in this thread, like a signal handler: the compiler's order is the only one that matters.
    compiler_fence(Ordering::SeqCst);
    let last = slot.generation.load(Ordering::Relaxed);
    slot.generation.store(((last + 2) & !1) | owner as u64, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
}

impl Stash {
    /// Moves the numbers of the slot's generation here.
    #[cold]
    fn harvest(&mut self, slot: &SlotCells) {
        for entry in touched(slot, slot.generation.load(Ordering::Relaxed)) {
            // Full only when marks nest and every one makes a hundred different calls.
            if self.stats.len() == self.stats.capacity() {
                self.lost += entry.1.count;
            } else {
                self.stats.push(entry);
            }
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
    }

    #[cold]
    fn deliver(&mut self, account: &Account, stats_from: usize, slow_from: usize) {
        account.add(self.stats.drain(stats_from..), self.slow.drain(slow_from..), self.lost);
    }
}
