//! Process trees: who is born into one, who starts a program, who dies.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use nexus_ebpf_common::{
    CallTime, Counter, ENTER_NONE, MEMBER_ARMED, MEMBER_COUNTING, Member, SchedState, TASK_TREE, TASK_UNTRACKED,
};

use crate::maps::{MEMBERS, TASKS, WHOAMI};
use crate::report::failed;
use crate::sched;
use crate::trees::{self, join, let_go};

/// A new process or thread: `(struct task_struct *parent, struct task_struct *child)`. It has not run yet.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn nexus_fork(ctx: RawTracePointContext) -> i32 {
    let parent_tid = bpf_get_current_pid_tgid() as u32;
    if !matches!(TASKS.get(parent_tid), Some(&TASK_TREE)) {
        return 0;
    }
    let Some(parent) = MEMBERS.get_ptr(parent_tid) else {
        return 0;
    };
    // SAFETY: a member is written by its own thread only, which is this one.
    let Member { tree, state, .. } = unsafe { *parent };
    if !trees::is_observed(tree) {
        let_go(parent_tid);
        return 0;
    }
    let child: u64 = ctx.arg(1);
    let Some(tid) = sched::tid_of(child) else {
        trees::count_lost(tree);
        failed(&ctx, Counter::TaskUnreadable, u64::from(parent_tid));
        return 0;
    };
    // It is able to run from now on, and waits for its first time on a CPU.
    // SAFETY: a helper without a precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let sched = SchedState { out_ts_ns: now, ..sched::ON_CPU };
    let member = Member {
        tree,
        state,
        enter_nr: ENTER_NONE,
        reserved: 0,
        enter_ts_ns: 0,
        enter_time: CallTime::default(),
        in_ts_ns: 0,
        sched,
    };
    if let Err(why) = join(tid, member) {
        trees::count_lost(tree);
        failed(&ctx, why, u64::from(tid));
        return 0;
    }
    trees::count_task(tree);
    0
}

/// A program starts: `(struct task_struct *, pid_t old_pid, struct linux_binprm *)`. An armed member counts from here on.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn nexus_exec(ctx: RawTracePointContext) -> i32 {
    let tid = bpf_get_current_pid_tgid() as u32;
    let old_tid: u32 = ctx.arg(1);
    // A thread that was not the leader takes the leader's id over. The leader's own entries went with its death.
    if old_tid != tid && !matches!(TASKS.get(old_tid), None | Some(&TASK_UNTRACKED)) {
        if let Some(member) = MEMBERS.get_ptr(old_tid) {
            // SAFETY: the member is this thread's own, under its old id.
            let member = unsafe { *member };
            if let Err(why) = join(tid, member) {
                failed(&ctx, why, u64::from(tid));
            }
        }
        let_go(old_tid);
    }
    match TASKS.get(tid) {
        None | Some(&TASK_UNTRACKED) => return 0,
        Some(&TASK_TREE) => {}
        // It had a slot, of a runtime that this is no more: what it does now may be another user's business.
        Some(_) => {
            let_go(tid);
            return 0;
        }
    }
    if let Some(member) = MEMBERS.get_ptr_mut(tid) {
        // SAFETY: a member is written by its own thread only, which is this one.
        unsafe {
            if (*member).state == MEMBER_ARMED {
                (*member).state = MEMBER_COUNTING;
                (*member).in_ts_ns = bpf_ktime_get_ns();
            }
        }
    }
    0
}

/// A thread dies: its id may be another's soon, and must not bring a slot or a membership with it.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn nexus_exit(_ctx: RawTracePointContext) -> i32 {
    let tid = bpf_get_current_pid_tgid() as u32;
    match TASKS.get(tid) {
        None | Some(&TASK_UNTRACKED) => {}
        Some(&TASK_TREE) => {
            sched::last_time(tid);
            let_go(tid);
        }
        Some(_) => let_go(tid),
    }
    0
}

/// Not attached to anything: run by the collector, in the thread that asks, to learn the id by which the kernel knows it. In a
/// PID namespace that is another than the one that the thread itself sees.
#[raw_tracepoint]
pub fn nexus_whoami(_ctx: RawTracePointContext) -> i32 {
    let ids = bpf_get_current_pid_tgid();
    for (index, id) in [(0, ids as u32), (1, (ids >> 32) as u32)] {
        if let Some(answer) = WHOAMI.get_ptr_mut(index) {
            // SAFETY: one aligned word; the collector asks for one thread at a time.
            unsafe { *answer = id };
        }
    }
    0
}
