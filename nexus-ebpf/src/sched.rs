//! Scheduling: when a watched thread leaves its CPU, why, when it is woken, and when it comes back.
//!
//! What it blocks in is known from the system call that it is in; outside of one only a page fault can block it.

use aya_ebpf::Global;
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_probe_read_kernel,
};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use nexus_ebpf_common::{
    BLOCKED, BLOCKED_ON_IO, CallTime, ENTER_NONE, MEMBER_COUNTING, READY, SchedCounts, SchedState, Slot, TASK_TREE,
    TASK_UNTRACKED, TREES_MAX, TreeCounts,
};

use crate::maps::{MEMBERS, SLOTS, TASKS, TREES};
use crate::trees::is_observed;

/// Where in a `task_struct` its thread id is. From the kernel's BTF.
#[unsafe(no_mangle)]
static TASK_PID_OFFSET: Global<u32> = Global::new(0);

/// Where in a `task_struct` the bit `in_iowait` is, in bits; 0 where it is not known. From the kernel's BTF.
#[unsafe(no_mangle)]
static TASK_IOWAIT_BIT: Global<u32> = Global::new(0);

/// A thread that runs.
pub const ON_CPU: SchedState = SchedState { out_ts_ns: 0, wake_ts_ns: 0, blocked: 0, cpu: 0 };

/// The thread id of a `task_struct`.
#[inline(always)]
pub fn tid_of(task: u64) -> Option<u32> {
    // SAFETY: the helper checks the address itself.
    unsafe { bpf_probe_read_kernel((task + u64::from(TASK_PID_OFFSET.load())) as *const u32) }.ok()
}

/// A CPU goes from one thread to another: `(bool preempt, struct task_struct *prev, *next, unsigned int prev_state)`, from
/// Linux 5.18 on. Runs as `prev`, with interrupts off.
#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn nexus_sched_switch(ctx: RawTracePointContext) -> i32 {
    // SAFETY: a helper without a precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let prev = bpf_get_current_pid_tgid() as u32;
    match TASKS.get(prev) {
        None | Some(&TASK_UNTRACKED) => {}
        Some(watched) => {
            let (preempted, state): (u64, u64) = (ctx.arg(0), ctx.arg(3));
            let blocked = match preempted & 1 == 0 && state as u32 != 0 {
                false => READY,
                true if waits_for_io() => BLOCKED_ON_IO,
                true => BLOCKED,
            };
            leave(prev, *watched, now, blocked);
        }
    }
    // A thread whose id cannot be read is not seen coming back, so that all of its absence is missing in its account. It
    // does not happen: the scheduler is using the structure right now.
    if let Some(next) = tid_of(ctx.arg(2)) {
        match TASKS.get(next) {
            None | Some(&TASK_UNTRACKED) => {}
            Some(watched) => come(next, *watched, now),
        }
    }
    0
}

/// A thread becomes able to run: `(struct task_struct *)`. Runs in whoever wakes it, an interrupt perhaps.
#[raw_tracepoint(tracepoint = "sched_wakeup")]
pub fn nexus_sched_wakeup(ctx: RawTracePointContext) -> i32 {
    let Some(tid) = tid_of(ctx.arg(0)) else { return 0 };
    let sched = match TASKS.get(tid) {
        None | Some(&TASK_UNTRACKED) => return 0,
        Some(&TASK_TREE) => match MEMBERS.get_ptr_mut(tid) {
            // SAFETY: the pointer is to a live value; only its field's address is taken.
            Some(member) => unsafe { &raw mut (*member).sched },
            None => return 0,
        },
        Some(slot) => match SLOTS.get_ptr_mut(*slot - 1) {
            // SAFETY: as above.
            Some(slot) => unsafe { &raw mut (*slot).header.sched },
            None => return 0,
        },
    };
    // SAFETY: one aligned word. The thread reads it when it is back on a CPU, which is after this.
    unsafe { (*sched).wake_ts_ns = bpf_ktime_get_ns() };
    0
}

/// Whether the current thread, which is about to block, does so for a disk.
#[inline(always)]
fn waits_for_io() -> bool {
    let bit = u64::from(TASK_IOWAIT_BIT.load());
    if bit == 0 {
        return false;
    }
    // SAFETY: the helper checks the address itself.
    let byte = unsafe {
        let task = bpf_get_current_task();
        bpf_probe_read_kernel((task + bit / 8) as *const u8)
    };
    matches!(byte, Ok(byte) if byte >> (bit % 8) & 1 == 1)
}

#[inline(always)]
fn leave(tid: u32, watched: u32, now: u64, blocked: u32) {
    if watched != TASK_TREE {
        if let Some(slot) = SLOTS.get_ptr_mut(watched - 1) {
            // SAFETY: the slot is this thread's own, and the thread is leaving: nobody else writes to it.
            unsafe {
                (*counts_of(slot)).switches += 1;
                mark_left(&raw mut (*slot).header.sched, now, blocked);
            }
        }
        return;
    }
    let Some(member) = MEMBERS.get_ptr_mut(tid) else { return };
    // SAFETY: a member is written by its own thread only, which is leaving.
    unsafe {
        let since = came((*member).in_ts_ns, (*member).sched.out_ts_ns);
        mark_left(&raw mut (*member).sched, now, blocked);
        if (*member).state == MEMBER_COUNTING
            && let Some(counts) = tree_counts((*member).tree)
        {
            (*counts).sched.switches += 1;
            // 0: it was taken into the tree as it waited, and has not been seen to come.
            if since != 0 {
                (*counts).on_cpu_ns += now.saturating_sub(since);
            }
        }
    }
}

/// Since when a thread that runs has been on its CPU.
///
/// Kernels of some clouds do not tell of switches away from tasks of their own, so that a thread may come back unseen. It was
/// away for an unknown part of the time since it left: all of it counts as time on the CPU, once.
#[inline(always)]
fn came(in_ts_ns: u64, out_ts_ns: u64) -> u64 {
    if out_ts_ns == 0 { in_ts_ns } else { out_ts_ns }
}

/// # Safety
/// Nobody else writes to the state now.
#[inline(always)]
unsafe fn mark_left(sched: *mut SchedState, now: u64, blocked: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        (*sched).out_ts_ns = now;
        (*sched).blocked = blocked;
        (*sched).cpu = bpf_get_smp_processor_id();
    }
}

#[inline(always)]
fn come(tid: u32, watched: u32, now: u64) {
    if watched != TASK_TREE {
        if let Some(slot) = SLOTS.get_ptr_mut(watched - 1) {
            // SAFETY: the slot's thread is not yet running: nobody else writes to it.
            unsafe {
                let in_call = (*slot).header.enter_nr != ENTER_NONE;
                let call = in_call.then_some(&raw mut (*slot).header.enter_time);
                add(&raw mut (*slot).header.sched, counts_of(slot), now, call);
            }
        }
        return;
    }
    let Some(member) = MEMBERS.get_ptr_mut(tid) else { return };
    // SAFETY: the member's thread is not yet running: nobody else writes to it.
    unsafe {
        (*member).in_ts_ns = now;
        let counting = (*member).state == MEMBER_COUNTING;
        let call = ((*member).enter_nr != ENTER_NONE).then_some(&raw mut (*member).enter_time);
        let sched = &raw mut (*member).sched;
        match tree_counts((*member).tree) {
            Some(counts) if counting => add(sched, &raw mut (*counts).sched, now, call),
            _ => (*sched).out_ts_ns = 0,
        }
    }
}

/// Adds the time that a thread was away.
///
/// # Safety
/// All are valid, and nobody else writes to them now.
#[inline(always)]
unsafe fn add(sched: *mut SchedState, counts: *mut SchedCounts, now: u64, call: Option<*mut CallTime>) {
    // SAFETY: the caller's promise.
    unsafe {
        let SchedState { out_ts_ns, wake_ts_ns, blocked, cpu, .. } = *sched;
        // A thread that got its slot while it was away.
        if out_ts_ns == 0 {
            return;
        }
        (*sched).out_ts_ns = 0;
        let away = now.saturating_sub(out_ts_ns);
        // The clocks of two CPUs may differ by a little.
        let run_queue = match blocked {
            READY => away,
            _ if wake_ts_ns >= out_ts_ns && wake_ts_ns <= now => now - wake_ts_ns,
            _ => 0,
        };
        let off_cpu = away - run_queue;
        (*counts).run_queue_ns += run_queue;
        (*counts).off_cpu_ns += off_cpu;
        if blocked == BLOCKED_ON_IO {
            (*counts).io_wait_ns += off_cpu;
            (*counts).io_waits += 1;
        }
        if let Some(call) = call {
            (*call).run_queue_ns += run_queue;
            (*call).off_cpu_ns += off_cpu;
        } else {
            (*counts).fault_off_cpu_ns += off_cpu;
        }
        if cpu != bpf_get_smp_processor_id() {
            (*counts).migrations += 1;
        }
    }
}

/// The counts of the slot's generation, begun anew if they are another's.
///
/// # Safety
/// `slot` points to a value of `SLOTS` whose thread does not run in user space now.
#[inline(always)]
pub unsafe fn counts_of(slot: *mut Slot) -> *mut SchedCounts {
    // SAFETY: the caller's promise.
    unsafe {
        let header = &raw mut (*slot).header;
        let counts = &raw mut (*header).counts;
        if (*header).counts_generation != (*header).generation {
            (*counts).off_cpu_ns = 0;
            (*counts).run_queue_ns = 0;
            (*counts).fault_off_cpu_ns = 0;
            (*counts).switches = 0;
            (*counts).migrations = 0;
            (*counts).faults = 0;
            (*counts).major_faults = 0;
            (*counts).io_wait_ns = 0;
            (*counts).io_waits = 0;
            (*header).counts_generation = (*header).generation;
        }
        counts
    }
}

/// This CPU's counts of a tree, if it is observed: a member may be left of an older one, whose place another has now.
#[inline(always)]
pub fn tree_counts(tree: u32) -> Option<*mut TreeCounts> {
    if !is_observed(tree) {
        return None;
    }
    TREES.get_ptr_mut(tree % TREES_MAX)
}

/// A member dies: its time on the CPU up to now is all that there will be.
#[inline(always)]
pub fn last_time(tid: u32) {
    let Some(member) = MEMBERS.get_ptr(tid) else { return };
    // SAFETY: a member is written by its own thread only, which is this one.
    unsafe {
        if (*member).state == MEMBER_COUNTING
            && let Some(counts) = tree_counts((*member).tree)
        {
            let since = came((*member).in_ts_ns, (*member).sched.out_ts_ns);
            if since != 0 {
                (*counts).on_cpu_ns += bpf_ktime_get_ns().saturating_sub(since);
            }
        }
    }
}
