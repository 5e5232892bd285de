//! System calls: the entry saves what the exit adds up.
//!
//! A thread has either a slot, or membership in an observed tree, or (nearly always) neither.

use aya_ebpf::Global;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_ns, bpf_probe_read_kernel};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use nexus_ebpf_common::{
    BOUNDS_NS, CallTime, Counter, ENTER_NONE, ENTER_UNKNOWN, ERRNO_MAX, MEMBER_COUNTING, Member, RECORDS_MAX,
    SYSCALL_OTHER, SYSCALLS_MAX, Slot, SlowRecord, SyscallStat, TASK_TREE, TASK_UNTRACKED, TreeKey, TreeStat,
};

use crate::maps::{CALLS, MEMBERS, PROCESS, SLOTS, TASKS, TREE_STATS};
use crate::report::failed;
use crate::sample;
use crate::trees::{self, let_go};

/// Where in a `task_struct` the first word of the thread's own pending signals is. From the kernel's BTF.
#[unsafe(no_mangle)]
static TASK_PENDING_OFFSET: Global<u32> = Global::new(0);

/// `SIGKILL` in a set of signals.
const SIGKILL_BIT: u64 = 1 << 8;

/// Entry of a system call: `(struct pt_regs *, long id)`.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn nexus_sys_enter(ctx: RawTracePointContext) -> i32 {
    let ids = bpf_get_current_pid_tgid();
    let tid = ids as u32;
    let Some(task) = TASKS.get(tid) else { return 0 };
    match *task {
        TASK_UNTRACKED => {}
        TASK_TREE => tree_enter(&ctx, tid),
        slot => {
            // Whatever went wrong with its registration: a slot shows nothing of other processes.
            if is_the_process(ids) {
                slot_enter(&ctx, slot - 1);
            }
        }
    }
    0
}

/// Whether a thread, by its two ids, is of the process that has the slots.
#[inline(always)]
pub fn is_the_process(ids: u64) -> bool {
    matches!(PROCESS.get(0), Some(id) if *id == (ids >> 32) as u32)
}

/// Return from a system call: `(struct pt_regs *, long ret)`.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn nexus_sys_exit(ctx: RawTracePointContext) -> i32 {
    let ids = bpf_get_current_pid_tgid();
    // Counted apart from whoever watches the thread, so that what nobody counts shows.
    let ours = is_the_process(ids);
    if ours && let Some(calls) = CALLS.get_ptr_mut(0) {
        // SAFETY: the pointer is to this CPU's value, and system calls do not interrupt each other.
        unsafe { (*calls).all += 1 };
    }
    let tid = ids as u32;
    let Some(task) = TASKS.get(tid) else { return 0 };
    let other = match *task {
        TASK_UNTRACKED => true,
        TASK_TREE => {
            tree_exit(&ctx, tid);
            true
        }
        slot if ours => slot_exit(&ctx, slot - 1),
        _ => false,
    };
    if ours
        && other
        && let Some(calls) = CALLS.get_ptr_mut(0)
    {
        // SAFETY: as above.
        unsafe { (*calls).other += 1 };
    }
    0
}

/// The number as it is counted: those that no kernel has yet share one, so that nobody fills a map with them.
#[inline(always)]
fn known(nr: u64) -> u32 {
    if nr < SYSCALLS_MAX as u64 { nr as u32 } else { SYSCALL_OTHER }
}

#[inline(always)]
fn slot_enter(ctx: &RawTracePointContext, index: u32) {
    let Some(slot) = SLOTS.get_ptr_mut(index) else {
        return failed(ctx, Counter::SlotOutOfRange, u64::from(index));
    };
    let nr: u64 = ctx.arg(1);
    // SAFETY: the slot is this thread's own, which is in the kernel now: nobody else writes to it.
    unsafe {
        let header = &mut (*slot).header;
        header.enter_nr = known(nr);
        header.enter_generation = header.generation;
        header.enter_time.off_cpu_ns = 0;
        header.enter_time.run_queue_ns = 0;
        header.enter_ts_ns = bpf_ktime_get_ns();
    }
}

/// Whether the call is nobody's: it began before the thread had its slot.
#[inline(always)]
fn slot_exit(ctx: &RawTracePointContext, index: u32) -> bool {
    let Some(slot) = SLOTS.get_ptr_mut(index) else {
        failed(ctx, Counter::SlotOutOfRange, u64::from(index));
        return false;
    };
    // SAFETY: the slot is this thread's own, which is in the kernel now: nobody else writes to it.
    unsafe {
        let header = &raw mut (*slot).header;
        let nr = (*header).enter_nr;
        // A thread that got its slot in the middle of a call.
        if nr == ENTER_NONE {
            return true;
        }
        (*header).enter_nr = ENTER_NONE;
        let generation = (*header).generation;
        if (*header).enter_generation != generation {
            failed(ctx, Counter::GenerationMismatch, u64::from(index));
            return false;
        }
        let start_ns = (*header).enter_ts_ns;
        // The kernel's clock for tracing may step back by a little when it is adjusted.
        let duration_ns = bpf_ktime_get_ns().saturating_sub(start_ns);
        let ret: i64 = ctx.arg(1);
        add(slot, nr, generation, ret, duration_ns);
        // The runtime's own waiting is no news: only an account's slow calls are recorded.
        if generation & 1 == 1 {
            if duration_ns >= (*header).slow_ns {
                record(slot, SlowRecord { nr, reserved: 0, ret, start_ns, duration_ns });
            }
            sample::blocked(ctx, slot, nr, (*header).enter_time.off_cpu_ns);
        }
    }
    false
}

/// Adds one call to the slot's numbers.
///
/// # Safety
/// `slot` points to a value of `SLOTS` that nobody else writes to now.
#[inline(always)]
unsafe fn add(slot: *mut Slot, nr: u32, generation: u64, ret: i64, duration_ns: u64) {
    // The mask is for the verifier: it cannot know that what is in the slot is below the bound.
    let nr = nr as usize & (SYSCALLS_MAX - 1);
    // SAFETY: the index is within the array, see above; the rest is the caller's promise.
    unsafe {
        let stat = (&raw mut (*slot).stats).cast::<SyscallStat>().add(nr);
        let CallTime { off_cpu_ns, run_queue_ns } = (*slot).header.enter_time;
        let error = u64::from(is_error(ret));
        let class = BOUNDS_NS.iter().map(|bound| u32::from(duration_ns >= *bound)).sum::<u32>();
        if (*stat).generation == generation {
            (*stat).count += 1;
            (*stat).errors += error;
            (*stat).total_ns += duration_ns;
            if duration_ns > (*stat).max_ns {
                (*stat).max_ns = duration_ns;
            }
            (*stat).off_cpu_ns += off_cpu_ns;
            (*stat).run_queue_ns += run_queue_ns;
            if class > 0 {
                let place = 16 * (class - 1);
                if (*stat).slower >> place & 0xffff != 0xffff {
                    (*stat).slower += 1 << place;
                }
            }
            return;
        }
        (*stat).count = 1;
        (*stat).errors = error;
        (*stat).total_ns = duration_ns;
        (*stat).max_ns = duration_ns;
        (*stat).off_cpu_ns = off_cpu_ns;
        (*stat).run_queue_ns = run_queue_ns;
        (*stat).slower = if class > 0 { 1 << (16 * (class - 1)) } else { 0 };
        (*stat).generation = generation;
        let header = &raw mut (*slot).header;
        let len = (*header).touched_len;
        // It cannot be full: every number is in it once at most.
        let place = (&raw mut (*slot).touched).cast::<u16>().add(len as usize & (SYSCALLS_MAX - 1));
        *place = nr as u16;
        (*header).touched_len = len + 1;
    }
}

/// Keeps a slow call, or counts it as lost.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
unsafe fn record(slot: *mut Slot, record: SlowRecord) {
    // SAFETY: the index is below the bound, by the test and, for the verifier, by the mask.
    unsafe {
        let header = &raw mut (*slot).header;
        let len = (*header).records_len;
        if len >= RECORDS_MAX as u32 {
            (*header).lost += 1;
            return;
        }
        let place = (&raw mut (*slot).records).cast::<SlowRecord>().add(len as usize & (RECORDS_MAX - 1));
        *place = record;
        (*header).records_len = len + 1;
    }
}

#[inline(always)]
fn tree_enter(ctx: &RawTracePointContext, tid: u32) {
    let Some(member) = MEMBERS.get_ptr_mut(tid) else {
        return;
    };
    let nr: u64 = ctx.arg(1);
    // SAFETY: a member is written by its own thread only, which is in the kernel now.
    unsafe {
        (*member).enter_nr = known(nr);
        (*member).enter_time.off_cpu_ns = 0;
        (*member).enter_time.run_queue_ns = 0;
        (*member).enter_ts_ns = bpf_ktime_get_ns();
    }
}

#[inline(always)]
fn tree_exit(ctx: &RawTracePointContext, tid: u32) {
    let Some(member) = MEMBERS.get_ptr_mut(tid) else {
        return;
    };
    // SAFETY: as in `tree_enter`.
    let Member { tree, state, enter_nr, enter_ts_ns, enter_time, .. } = unsafe { *member };
    // A new thread's first return is of a call that its parent made.
    if enter_nr == ENTER_NONE {
        return;
    }
    // SAFETY: as in `tree_enter`.
    unsafe { (*member).enter_nr = ENTER_NONE };
    // One that was under way when the thread was taken in.
    if enter_nr == ENTER_UNKNOWN {
        return;
    }
    if state != MEMBER_COUNTING {
        return;
    }
    if !trees::is_observed(tree) {
        return let_go(tid);
    }
    if killed(ctx, tid) {
        return;
    }
    // SAFETY: a helper without a precondition.
    let duration_ns = unsafe { bpf_ktime_get_ns() }.saturating_sub(enter_ts_ns);
    let key = TreeKey { tree, nr: enter_nr };
    let stat = match TREE_STATS.get_ptr_mut(key) {
        Some(stat) => stat,
        None => {
            let zero = TreeStat { count: 0, errors: 0, total_ns: 0, max_ns: 0, off_cpu_ns: 0, run_queue_ns: 0 };
            // Another CPU may have been first: then this fails, and the look-up succeeds.
            let _ = TREE_STATS.insert(key, zero, u64::from(aya_ebpf::bindings::BPF_NOEXIST));
            match TREE_STATS.get_ptr_mut(key) {
                Some(stat) => stat,
                None => {
                    trees::count_lost(tree);
                    return failed(ctx, Counter::TreeStatsFull, u64::from(enter_nr));
                }
            }
        }
    };
    // SAFETY: the pointer is to this CPU's value, which nothing interrupts us to write.
    unsafe {
        (*stat).count += 1;
        if is_error(ctx.arg(1)) {
            (*stat).errors += 1;
        }
        (*stat).total_ns += duration_ns;
        if duration_ns > (*stat).max_ns {
            (*stat).max_ns = duration_ns;
        }
        (*stat).off_cpu_ns += enter_time.off_cpu_ns;
        (*stat).run_queue_ns += enter_time.run_queue_ns;
    }
}

/// Whether the thread is about to die of `SIGKILL`: of another thread's `exit_group` or `execve`, or of a real one. Then its
/// call never returns to the program, and is no call that returned.
#[inline(always)]
fn killed(ctx: &RawTracePointContext, tid: u32) -> bool {
    // SAFETY: the helper checks the address itself.
    let pending = unsafe {
        let task = bpf_get_current_task();
        bpf_probe_read_kernel((task + u64::from(TASK_PENDING_OFFSET.load())) as *const u64)
    };
    match pending {
        Ok(signals) => signals & SIGKILL_BIT != 0,
        Err(_) => {
            failed(ctx, Counter::TaskUnreadable, u64::from(tid));
            false
        }
    }
}

#[inline(always)]
const fn is_error(ret: i64) -> bool {
    ret < 0 && ret >= -ERRNO_MAX
}
