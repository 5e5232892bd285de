//! Samples of a profile: where a thread was when the clock struck, when it had been blocked, or when it touched a new page.

use core::mem::size_of;

/// Frames of a sample's user stack, innermost first. What is beyond is cut off.
pub const USER_FRAMES_MAX: usize = 127;

/// Frames of a sample's kernel stack.
pub const KERNEL_FRAMES_MAX: usize = 63;

/// Bytes of the ring `SAMPLES`: some thousand samples, which are taken out many times a second.
pub const SAMPLES_BYTES: u32 = 1 << 22;

/// Whom an account is of: written by user space into the thread's slot, while the generation is even.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[repr(C)]
pub struct Owner {
    /// What user space knows it by: the function and its version. 0: not said.
    pub tag: u64,
    /// The trace, in the order of its bytes.
    pub trace_id: [u8; 16],
    /// The span in it.
    pub span_id: [u8; 8],
}

/// What the array `PROFILE` asks for, beside the clock, by index: stacks of system calls that were blocked for at least so many
/// nanoseconds; 0: none.
pub const WANTED_OFF_CPU_NS: u32 = 0;

/// The same: stacks of page faults; 0: none.
pub const WANTED_FAULTS: u32 = 1;

/// One sample: an entry of the ring `SAMPLES`.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    feature = "user",
    derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
)]
#[repr(C)]
pub struct Sample {
    /// Whose work it was.
    pub owner: Owner,
    /// When, in nanoseconds of the monotonic clock.
    pub ts_ns: u64,
    /// The thread, as the kernel knows it.
    pub tid: u32,
    /// The CPU.
    pub cpu: u32,
    /// How long the thread was blocked in the system call that it returns from; 0 in samples of other kinds.
    pub off_cpu_ns: u64,
    /// That system call, as the slot counts it; [`crate::ENTER_NONE`] in samples of other kinds.
    pub nr: u32,
    /// Keeps what follows aligned.
    pub reserved: u32,
    /// Bytes of [`Sample::user`] that count; below zero: the kernel's error.
    pub user_bytes: i32,
    /// Bytes of [`Sample::kernel`] that count; below zero where the thread was in user space.
    pub kernel_bytes: i32,
    /// Addresses of the user stack, innermost first.
    pub user: [u64; USER_FRAMES_MAX],
    /// Addresses of the kernel stack, innermost first.
    pub kernel: [u64; KERNEL_FRAMES_MAX],
}

const _: () = {
    assert!(size_of::<Owner>() == 32);
    assert!(size_of::<Sample>() == 72 + 8 * (USER_FRAMES_MAX + KERNEL_FRAMES_MAX));
};
