//! Page faults of watched threads.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{perf_event, raw_tracepoint};
use aya_ebpf::programs::{PerfEventContext, RawTracePointContext};
use nexus_ebpf_common::{MEMBER_COUNTING, SchedCounts, TASK_TREE, TASK_UNTRACKED};

use crate::maps::{MEMBERS, SLOTS, TASKS};
use crate::sample;
use crate::sched::{counts_of, tree_counts};
use crate::syscalls::is_the_process;

/// A fault in user mode: `(unsigned long address, struct pt_regs *, unsigned long error_code)`.
#[raw_tracepoint(tracepoint = "page_fault_user")]
pub fn nexus_page_fault_user(ctx: RawTracePointContext) -> i32 {
    if let Some(counts) = current() {
        // SAFETY: the counts are this thread's or this CPU's, and the thread is in a fault: nobody else writes to them.
        unsafe { (*counts).faults += 1 };
    }
    let ids = bpf_get_current_pid_tgid();
    if let Some(&watched) = TASKS.get(ids as u32)
        && watched != TASK_UNTRACKED
        && watched != TASK_TREE
        && is_the_process(ids)
        && let Some(slot) = SLOTS.get_ptr(watched - 1)
    {
        sample::faulted(&ctx, slot);
    }
    0
}

/// A fault in the kernel, which reads or writes the program's memory in a system call.
#[raw_tracepoint(tracepoint = "page_fault_kernel")]
pub fn nexus_page_fault_kernel(_ctx: RawTracePointContext) -> i32 {
    if let Some(counts) = current() {
        // SAFETY: as above.
        unsafe { (*counts).faults += 1 };
    }
    0
}

/// A fault that needed the disk: the software event of that name, with a period of 1.
#[perf_event]
pub fn nexus_major_fault(_ctx: PerfEventContext) -> u32 {
    if let Some(counts) = current() {
        // SAFETY: as above.
        unsafe { (*counts).major_faults += 1 };
    }
    0
}

/// Where the current thread's faults are counted.
#[inline(always)]
fn current() -> Option<*mut SchedCounts> {
    let tid = bpf_get_current_pid_tgid() as u32;
    match TASKS.get(tid) {
        None | Some(&TASK_UNTRACKED) => None,
        Some(&TASK_TREE) => {
            let member = MEMBERS.get_ptr(tid)?;
            // SAFETY: a member is written by its own thread only, which is this one.
            let (state, tree) = unsafe { ((*member).state, (*member).tree) };
            if state != MEMBER_COUNTING {
                return None;
            }
            let counts = tree_counts(tree)?;
            // SAFETY: only the field's address is taken.
            Some(unsafe { &raw mut (*counts).sched })
        }
        Some(slot) => {
            let slot = SLOTS.get_ptr_mut(*slot - 1)?;
            // SAFETY: the slot is this thread's own, which is in a fault: it does not run in user space.
            Some(unsafe { counts_of(slot) })
        }
    }
}
