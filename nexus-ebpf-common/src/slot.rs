//! The slot of a runtime thread, in the mmapped array `SLOTS`.
//!
//! Probe and reader are the same thread: the probe runs inside the thread's own system calls, and what the scheduler's probes
//! write they write before the thread runs again. So program order is all the synchronisation there is, and all that is
//! needed.

use core::mem::{offset_of, size_of};

use crate::sample::Owner;
use crate::sched::{CallTime, SchedCounts, SchedState};

/// System calls with a number below this have a place of their own in [`Slot::stats`].
pub const SYSCALLS_MAX: usize = 512;

/// The place of every other number: the last one, which no architecture uses.
pub const SYSCALL_OTHER: u32 = SYSCALLS_MAX as u32 - 1;

/// By which durations calls are told apart, in nanoseconds.
pub const BOUNDS_NS: [u64; 4] = [10_000, 100_000, 1_000_000, 10_000_000];

/// Slow calls that a slot keeps within one generation. More are counted in [`SlotHeader::lost`].
pub const RECORDS_MAX: usize = 64;

/// Value of an `enter_nr` while the thread is in no system call that the probes saw begin.
pub const ENTER_NONE: u32 = u32::MAX;

/// Value of a member's `enter_nr`: it may be in a call that began before it was a member.
pub const ENTER_UNKNOWN: u32 = u32::MAX - 1;

/// The state of a slot. What every system call touches is in the first 64 bytes, which are a cache line: by the next one it
/// has been pushed out, and each line costs a miss.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SlotHeader {
    /// Written by user space. 0: no thread has the slot. Even: the thread works for the runtime. Odd: for the account that
    /// user space keeps in mind. Never the same twice.
    pub generation: u64,
    /// When the current call began, in nanoseconds of the monotonic clock.
    pub enter_ts_ns: u64,
    /// The generation it began in.
    pub enter_generation: u64,
    /// Calls of odd generations that took this long or longer leave a [`SlowRecord`]. `u64::MAX`: none does.
    pub slow_ns: u64,
    /// The current call's number, or [`ENTER_NONE`].
    pub enter_nr: u32,
    /// How many entries of [`Slot::touched`] count in this generation.
    pub touched_len: u32,
    /// How many entries of [`Slot::records`] count in this generation.
    pub records_len: u32,
    /// Slow calls of this generation that found no room.
    pub lost: u32,
    /// Where the current call's time went.
    pub enter_time: CallTime,
    /// Whom an odd generation is of. Void in an even one.
    pub owner: Owner,
    /// How the thread is scheduled.
    pub sched: SchedState,
    /// The generation that [`SlotHeader::counts`] belong to. Another one's are void.
    pub counts_generation: u64,
    /// Where the generation's time went.
    pub counts: SchedCounts,
    /// Zero: what follows begins with a cache line of its own.
    pub reserved: [u64; 7],
}

/// What one system call cost in one generation: a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SyscallStat {
    /// The generation that the numbers belong to. Another one's numbers are void.
    pub generation: u64,
    /// Calls that returned.
    pub count: u64,
    /// Calls that returned an error.
    pub errors: u64,
    /// Nanoseconds from entry to return, over all calls.
    pub total_ns: u64,
    /// The longest of them.
    pub max_ns: u64,
    /// Of the total: time blocked.
    pub off_cpu_ns: u64,
    /// Of the total: time able to run, and waiting for a CPU.
    pub run_queue_ns: u64,
    /// Of the calls: how many took as long as each of [`BOUNDS_NS`], and not as long as the next, in 16 bits each, the first lowest;
    /// all others were faster. One that is full stays so: how many there were is not known then.
    pub slower: u64,
}

/// One call that took longer than the threshold.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SlowRecord {
    /// The system call's number.
    pub nr: u32,
    /// Zero.
    pub reserved: u32,
    /// What it returned; an error as its negative number.
    pub ret: i64,
    /// When it began, in nanoseconds of the monotonic clock.
    pub start_ns: u64,
    /// From entry to return.
    pub duration_ns: u64,
}

/// A thread's slot: a value of `SLOTS`.
#[repr(C)]
pub struct Slot {
    /// The state.
    pub header: SlotHeader,
    /// By system call number.
    pub stats: [SyscallStat; SYSCALLS_MAX],
    /// The numbers of the calls that have a stat of this generation, so that a reader walks only these.
    pub touched: [u16; SYSCALLS_MAX],
    /// The slow calls of this generation, in the order of their return.
    pub records: [SlowRecord; RECORDS_MAX],
}

const _: () = {
    assert!(size_of::<SlotHeader>() == 256);
    assert!(size_of::<SyscallStat>() == 64);
    assert!(size_of::<SlowRecord>() == 32);
    assert!(offset_of!(SlotHeader, owner) == 64);
    assert!(offset_of!(Slot, stats) == 256);
    assert!(offset_of!(Slot, touched) == 256 + 64 * SYSCALLS_MAX);
    assert!(offset_of!(Slot, records) == 256 + 66 * SYSCALLS_MAX);
    assert!(size_of::<Slot>() == 256 + 66 * SYSCALLS_MAX + 32 * RECORDS_MAX);
    // The array begins with a page, so every slot begins with a cache line.
    assert!(size_of::<Slot>().is_multiple_of(64));
};
