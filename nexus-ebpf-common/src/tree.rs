//! Process trees under observation: the values of `MEMBERS`, `TREES` and `TREE_STATS`.

use core::mem::size_of;

use crate::sched::{CallTime, SchedCounts, SchedState};

/// State of a [`Member`]: it counts from its next successful `execve` on.
pub const MEMBER_ARMED: u32 = 1;

/// State of a [`Member`]: its calls are counted.
pub const MEMBER_COUNTING: u32 = 2;

/// Trees that can be observed at a time. Tree `id` has the entries `id % TREES_MAX` of `TREE_IDS`
/// (whose value is the id itself, so that members of an older tree are let go at their next call) and of `TREES`.
pub const TREES_MAX: u32 = 64;

/// A thread of an observed tree: a value of the hash `MEMBERS`, by thread id.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[repr(C)]
pub struct Member {
    /// The tree's id, never 0.
    pub tree: u32,
    /// [`MEMBER_ARMED`] or [`MEMBER_COUNTING`].
    pub state: u32,
    /// The number of the call that it is in, or [`crate::ENTER_NONE`].
    pub enter_nr: u32,
    /// Zero.
    pub reserved: u32,
    /// When that call began, in nanoseconds of the monotonic clock.
    pub enter_ts_ns: u64,
    /// Where that call's time went.
    pub enter_time: CallTime,
    /// When it came on its CPU; 0 before the first time.
    pub in_ts_ns: u64,
    /// How it is scheduled.
    pub sched: SchedState,
}

/// What happened to a tree on one CPU beside its calls: a value of the per-CPU array `TREES`.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[repr(C)]
pub struct TreeCounts {
    /// Threads and processes that joined it by a fork.
    pub tasks: u64,
    /// Calls and threads that could not be counted.
    pub lost: u64,
    /// Time on a CPU.
    pub on_cpu_ns: u64,
    /// Where the rest of the time went.
    pub sched: SchedCounts,
}

/// Key of the per-CPU hash `TREE_STATS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[repr(C)]
pub struct TreeKey {
    /// The tree's id.
    pub tree: u32,
    /// The system call's number, whatever the program passed.
    pub nr: u32,
}

/// What one system call cost a tree on one CPU: a value of `TREE_STATS`.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[repr(C)]
pub struct TreeStat {
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
}

const _: () = {
    assert!(size_of::<Member>() == 72);
    assert!(size_of::<TreeCounts>() == 96);
    assert!(size_of::<TreeKey>() == 8);
    assert!(size_of::<TreeStat>() == 48);
};
