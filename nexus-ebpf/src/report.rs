//! The probes' own failures: every one is counted, and some are told in words.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::warn;
use nexus_ebpf_common::Counter;

use crate::maps::{COUNTERS, LAST_LOG};

/// A CPU writes one message in this many nanoseconds at most: a failure that happens at every call must not cost a message
/// at every call.
const LOG_INTERVAL_NS: u64 = 100_000_000;

/// Counts a failure where it cannot be told in words.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(count) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is to this CPU's value.
        unsafe { *count += 1 };
    }
}

/// Counts a failure, and logs it with a number that says where (a slot's index, a thread's id, a system call).
#[inline(never)]
pub fn failed(ctx: &RawTracePointContext, counter: Counter, what: u64) {
    if let Some(count) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the pointer is to this CPU's value, and no other program of ours interrupts this one on the same CPU.
        unsafe { *count += 1 };
    }
    let Some(last) = LAST_LOG.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a helper without a precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as above.
    unsafe {
        if now.wrapping_sub(*last) < LOG_INTERVAL_NS {
            return;
        }
        *last = now;
    }
    warn!(ctx, "nexus probe failure {} at {}", counter as u32, what);
}
