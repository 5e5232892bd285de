//! Observed process trees: membership and the trees' own counts.

use nexus_ebpf_common::{Counter, Member, TASK_TREE, TASK_UNTRACKED, TREES_MAX};

use crate::maps::{MEMBERS, TASKS, TREE_IDS, TREES};

/// Whether anybody reads what this tree does.
#[inline(always)]
pub fn is_observed(tree: u32) -> bool {
    matches!(TREE_IDS.get(tree % TREES_MAX), Some(id) if *id == tree)
}

/// Counts a thread that a tree made.
#[inline(always)]
pub fn count_task(tree: u32) {
    if let Some(counts) = TREES.get_ptr_mut(tree % TREES_MAX) {
        // SAFETY: the pointer is to this CPU's value, which nothing interrupts us to write.
        unsafe { (*counts).tasks += 1 };
    }
}

/// Counts what a tree missed.
#[inline(always)]
pub fn count_lost(tree: u32) {
    if let Some(counts) = TREES.get_ptr_mut(tree % TREES_MAX) {
        // SAFETY: as above.
        unsafe { (*counts).lost += 1 };
    }
}

/// Makes a thread a member.
#[inline(always)]
pub fn join(tid: u32, member: Member) -> Result<(), Counter> {
    let Some(task) = TASKS.get_ptr_mut(tid) else {
        return Err(Counter::TidOutOfRange);
    };
    MEMBERS.insert(tid, member, 0).map_err(|_| Counter::MembersFull)?;
    // SAFETY: the thread is new, or the caller: nobody else writes its entry now.
    unsafe { *task = TASK_TREE };
    Ok(())
}

/// Forgets a thread.
#[inline(always)]
pub fn let_go(tid: u32) {
    if let Some(task) = TASKS.get_ptr_mut(tid) {
        // SAFETY: one aligned word; the thread is the caller, or dead.
        unsafe { *task = TASK_UNTRACKED };
    }
    // Threads with a slot are no members: then there is nothing to remove, which is no failure.
    let _ = MEMBERS.remove(tid);
}
