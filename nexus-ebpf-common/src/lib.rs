//! The ABI between the probes and user space.
//!
//! Everything here is `repr(C)`, of fixed width and without padding that is left unsaid; the sizes are asserted at compile
//! time. A change of any layout or meaning raises [`ABI_VERSION`], which the probes carry in their object and the collector
//! checks before it loads them.

#![no_std]

mod sample;
mod sched;
mod slot;
mod tree;

pub use sample::{KERNEL_FRAMES_MAX, Owner, SAMPLES_BYTES, Sample, USER_FRAMES_MAX, WANTED_FAULTS, WANTED_OFF_CPU_NS};
pub use sched::{BLOCKED, BLOCKED_ON_IO, CallTime, READY, SchedCounts, SchedState};
pub use slot::{
    BOUNDS_NS, ENTER_NONE, ENTER_UNKNOWN, RECORDS_MAX, SYSCALL_OTHER, SYSCALLS_MAX, Slot, SlotHeader, SlowRecord,
    SyscallStat,
};
pub use tree::{MEMBER_ARMED, MEMBER_COUNTING, Member, TREES_MAX, TreeCounts, TreeKey, TreeStat};

/// The version of this ABI. The object exports it under the symbol [`ABI_SYMBOL`].
pub const ABI_VERSION: u32 = 7;

/// The name of the 32-bit constant in the object that holds [`ABI_VERSION`].
pub const ABI_SYMBOL: &str = "NEXUS_ABI_VERSION";

/// Value of `TASKS`, which is indexed by thread id: nobody watches this thread. The probes leave at once.
pub const TASK_UNTRACKED: u32 = 0;

/// Value of `TASKS`: the thread belongs to an observed process tree, and `MEMBERS` says to which. Any other value that is
/// not [`TASK_UNTRACKED`] is the index of the thread's slot, plus one.
pub const TASK_TREE: u32 = 1 << 31;

/// System calls that returned to threads of the process in `PROCESS`, on one CPU: the value of the per-CPU array `CALLS`.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[repr(C)]
pub struct ProcessCalls {
    /// All of them, whoever watches the thread.
    pub all: u64,
    /// Those that belong to nobody: of threads without a slot, or begun before there was one.
    pub other: u64,
}

/// Returned numbers in `-4095..=-1` are errors, as everywhere in Linux.
pub const ERRNO_MAX: i64 = 4095;

/// What the probes could not do, by its index in the per-CPU array `COUNTERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// `TASKS` names a slot that `SLOTS` does not have.
    SlotOutOfRange = 0,
    /// A call of a slot returned under another generation than it began in.
    GenerationMismatch = 1,
    /// A thread's id is beyond the end of `TASKS` (`kernel.pid_max` was raised after loading).
    TidOutOfRange = 2,
    /// `MEMBERS` had no room for a new thread of an observed tree.
    MembersFull = 3,
    /// `TREE_STATS` had no room for another system call.
    TreeStatsFull = 4,
    /// A field of a `task_struct` could not be read.
    TaskUnreadable = 5,
    /// `SAMPLES` had no room for another sample.
    SamplesFull = 6,
}

/// How many [`Counter`]s there are.
pub const COUNTERS_MAX: u32 = 7;

impl Counter {
    /// All of them, in the order of their index.
    pub const ALL: [Self; COUNTERS_MAX as usize] = [
        Self::SlotOutOfRange,
        Self::GenerationMismatch,
        Self::TidOutOfRange,
        Self::MembersFull,
        Self::TreeStatsFull,
        Self::TaskUnreadable,
        Self::SamplesFull,
    ];

    /// The name on the metrics page and in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SlotOutOfRange => "slot_out_of_range",
            Self::GenerationMismatch => "generation_mismatch",
            Self::TidOutOfRange => "tid_out_of_range",
            Self::MembersFull => "members_full",
            Self::TreeStatsFull => "tree_stats_full",
            Self::TaskUnreadable => "task_unreadable",
            Self::SamplesFull => "samples_full",
        }
    }
}
