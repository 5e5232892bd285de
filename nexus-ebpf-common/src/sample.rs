//! Samples of a profile: where a thread was when the clock struck.

use core::mem::size_of;

/// Frames of a sample's user stack, innermost first. What is beyond is cut off.
pub const USER_FRAMES_MAX: usize = 127;

/// Frames of a sample's kernel stack.
pub const KERNEL_FRAMES_MAX: usize = 63;

/// Bytes of the ring `SAMPLES`: some hundred samples, which are taken out several times a second.
pub const SAMPLES_BYTES: u32 = 1 << 20;

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
    assert!(size_of::<Sample>() == 56 + 8 * (USER_FRAMES_MAX + KERNEL_FRAMES_MAX));
};
