//! Profiles: whoever works for an account leaves its stacks when the clock of its CPU strikes, or, in profiles of those kinds,
//! when it returns from a system call that blocked it, or when it touches a new page.

use core::ffi::c_void;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_USER_STACK, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_get_stack, bpf_ktime_get_ns};
use aya_ebpf::macros::perf_event;
use aya_ebpf::programs::{PerfEventContext, RawTracePointContext};
use nexus_ebpf_common::{
    Counter, ENTER_NONE, KERNEL_FRAMES_MAX, Sample, Slot, TASK_TREE, TASK_UNTRACKED, USER_FRAMES_MAX, WANTED_FAULTS,
    WANTED_OFF_CPU_NS,
};

use crate::maps::{PROFILE, SAMPLES, SLOTS, TASKS};
use crate::report::count;
use crate::syscalls::is_the_process;

/// The software event of the CPU's clock. It interrupts the thread, so that what the thread wrote in program order is seen in
/// that order.
#[perf_event]
pub fn nexus_sample(ctx: PerfEventContext) -> u32 {
    let ids = bpf_get_current_pid_tgid();
    let tid = ids as u32;
    let index = match TASKS.get(tid) {
        None | Some(&TASK_UNTRACKED | &TASK_TREE) => return 0,
        Some(slot) => *slot - 1,
    };
    if !is_the_process(ids) {
        return 0;
    }
    let Some(slot) = SLOTS.get_ptr(index) else { return 0 };
    leave(ctx.as_ptr(), slot, Kind::Clock);
    0
}

/// The current thread returns from a system call in which it was blocked.
#[inline(always)]
pub fn blocked(ctx: &RawTracePointContext, slot: *const Slot, nr: u32, off_cpu_ns: u64) {
    // Nearly all calls block for no time at all.
    if off_cpu_ns == 0 {
        return;
    }
    if let Some(&min_ns) = PROFILE.get(WANTED_OFF_CPU_NS)
        && min_ns != 0
        && off_cpu_ns >= min_ns
    {
        leave(ctx.as_ptr(), slot, Kind::Blocked { nr, off_cpu_ns });
    }
}

/// The current thread touches a page that is not there.
#[inline(always)]
pub fn faulted(ctx: &RawTracePointContext, slot: *const Slot) {
    if let Some(&wanted) = PROFILE.get(WANTED_FAULTS)
        && wanted != 0
    {
        leave(ctx.as_ptr(), slot, Kind::Fault);
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Clock,
    Blocked { nr: u32, off_cpu_ns: u64 },
    Fault,
}

/// Leaves a sample of the current thread, whose slot it is, if it works for an account.
#[inline(always)]
fn leave(ctx: *mut c_void, slot: *const Slot, kind: Kind) {
    // SAFETY: the slot is this thread's own, which is interrupted or in the kernel.
    let (generation, owner) = unsafe { ((*slot).header.generation, (*slot).header.owner) };
    if generation & 1 == 0 {
        return;
    }
    let Some(mut entry) = SAMPLES.reserve::<Sample>(0) else {
        return count(Counter::SamplesFull);
    };
    let sample = entry.as_mut_ptr();
    let (nr, off_cpu_ns) = match kind {
        Kind::Blocked { nr, off_cpu_ns } => (nr, off_cpu_ns),
        Kind::Clock | Kind::Fault => (ENTER_NONE, 0),
    };
    // SAFETY: the entry is ours until it is submitted, and as large as a sample; the helpers write within what they are told.
    // Frames beyond the lengths stay as they are in the ring, and are not read.
    unsafe {
        (*sample).owner = owner;
        (*sample).ts_ns = bpf_ktime_get_ns();
        (*sample).tid = bpf_get_current_pid_tgid() as u32;
        (*sample).cpu = bpf_get_smp_processor_id();
        (*sample).off_cpu_ns = off_cpu_ns;
        (*sample).nr = nr;
        (*sample).reserved = 0;
        let user = (&raw mut (*sample).user).cast();
        let bytes = (8 * USER_FRAMES_MAX) as u32;
        (*sample).user_bytes = bpf_get_stack(ctx, user, bytes, u64::from(BPF_F_USER_STACK)) as i32;
        // Of the others it is known why they are in the kernel, and the frames by which a call returns say nothing.
        (*sample).kernel_bytes = 0;
        if matches!(kind, Kind::Clock) {
            let kernel = (&raw mut (*sample).kernel).cast();
            let bytes = (8 * KERNEL_FRAMES_MAX) as u32;
            (*sample).kernel_bytes = bpf_get_stack(ctx, kernel, bytes, 0) as i32;
        }
    }
    // Whoever reads comes by itself, several times a second: waking it would cost more than all of this.
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}
