//! Profiles: the clock of each CPU strikes some times a second, and whoever works for an account then leaves its stacks.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_F_USER_STACK, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_smp_processor_id, bpf_get_stack, bpf_ktime_get_ns};
use aya_ebpf::macros::perf_event;
use aya_ebpf::programs::PerfEventContext;
use nexus_ebpf_common::{Counter, KERNEL_FRAMES_MAX, Sample, TASK_TREE, TASK_UNTRACKED, USER_FRAMES_MAX};

use crate::maps::{SAMPLES, SLOTS, TASKS};
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
    // SAFETY: the slot is this thread's own, which is interrupted.
    let (generation, owner) = unsafe { ((*slot).header.generation, (*slot).header.owner) };
    if generation & 1 == 0 {
        return 0;
    }
    let Some(mut entry) = SAMPLES.reserve::<Sample>(0) else {
        count(Counter::SamplesFull);
        return 0;
    };
    let sample = entry.as_mut_ptr();
    // SAFETY: the entry is ours until it is submitted, and as large as a sample; the helpers write within what they are told.
    // Frames beyond the lengths stay as they are in the ring, and are not read.
    unsafe {
        (*sample).owner = owner;
        (*sample).ts_ns = bpf_ktime_get_ns();
        (*sample).tid = tid;
        (*sample).cpu = bpf_get_smp_processor_id();
        let user = (&raw mut (*sample).user).cast();
        let bytes = (8 * USER_FRAMES_MAX) as u32;
        (*sample).user_bytes = bpf_get_stack(ctx.as_ptr(), user, bytes, u64::from(BPF_F_USER_STACK)) as i32;
        let kernel = (&raw mut (*sample).kernel).cast();
        let bytes = (8 * KERNEL_FRAMES_MAX) as u32;
        (*sample).kernel_bytes = bpf_get_stack(ctx.as_ptr(), kernel, bytes, 0) as i32;
    }
    // Whoever reads comes by itself, several times a second: waking it would cost more than all of this.
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    0
}
