//! Where a thread's time went: what the probes keep for a thread, whether it has a slot or belongs to an observed tree.

use core::mem::size_of;

/// How a thread is scheduled right now.
///
/// Written by the probes of `sched_switch`, on the thread's own CPU as it leaves and comes; `wake_ts_ns` by whoever wakes it,
/// on any CPU, while the thread does not run.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[repr(C)]
pub struct SchedState {
    /// When it left its CPU, in nanoseconds of the monotonic clock; 0 while it is on one.
    pub out_ts_ns: u64,
    /// When it was last made able to run. Void if before [`SchedState::out_ts_ns`].
    pub wake_ts_ns: u64,
    /// Why it left: [`READY`], [`BLOCKED`] or [`BLOCKED_ON_IO`].
    pub blocked: u32,
    /// The CPU that it left.
    pub cpu: u32,
}

/// It was able to run.
pub const READY: u32 = 0;

/// It blocked.
pub const BLOCKED: u32 = 1;

/// It blocked, and the kernel counts it as waiting for a disk (`iowait`).
pub const BLOCKED_ON_IO: u32 = 2;

/// Where the time of the current system call went.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[repr(C)]
pub struct CallTime {
    /// Time blocked.
    pub off_cpu_ns: u64,
    /// Time able to run, and waiting for a CPU.
    pub run_queue_ns: u64,
}

/// Where the time went, added up.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[repr(C)]
pub struct SchedCounts {
    /// Time blocked, over all causes.
    pub off_cpu_ns: u64,
    /// Time able to run, and waiting for a CPU.
    pub run_queue_ns: u64,
    /// Of the time blocked: outside every system call, which is in page faults.
    pub fault_off_cpu_ns: u64,
    /// Times that it left its CPU.
    pub switches: u64,
    /// Times that it came back on another.
    pub migrations: u64,
    /// Page faults, user's and kernel's.
    pub faults: u64,
    /// Of these: the ones that needed the disk.
    pub major_faults: u64,
    /// Of the time blocked: for a disk.
    pub io_wait_ns: u64,
    /// How often.
    pub io_waits: u64,
}

const _: () = {
    assert!(size_of::<SchedState>() == 24);
    assert!(size_of::<SchedCounts>() == 72);
};
