//! The maps. Their sizes here are the least; the collector sets the real ones when it loads the object.
//!
//! Per-CPU values are added to without atomics: the kernel runs a tracepoint's programs with preemption disabled, and turns a
//! program away that it would have to start twice on one CPU, which the collector reads as `recursion_misses`.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use nexus_ebpf_common::{
    COUNTERS_MAX, Member, ProcessCalls, SAMPLES_BYTES, Slot, TREES_MAX, TreeCounts, TreeKey, TreeStat,
};

/// By thread id: who watches the thread (`TASK_UNTRACKED`, `TASK_TREE`, or slot index + 1). As long as `kernel.pid_max`.
#[map]
pub static TASKS: Array<u32> = Array::with_max_entries(1, 0);

/// The slots of the runtime's threads, mapped into the runtime.
#[map]
pub static SLOTS: Array<Slot> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// By thread id: the members of observed trees.
#[map]
pub static MEMBERS: HashMap<u32, Member> = HashMap::with_max_entries(1, 0);

/// The ids of the trees that are observed now, by id modulo `TREES_MAX`; 0 for none.
#[map]
pub static TREE_IDS: Array<u32> = Array::with_max_entries(TREES_MAX, 0);

/// What happened to them beside their calls, by the same index.
#[map]
pub static TREES: PerCpuArray<TreeCounts> = PerCpuArray::with_max_entries(TREES_MAX, 0);

/// What the observed trees did.
#[map]
pub static TREE_STATS: PerCpuHashMap<TreeKey, TreeStat> = PerCpuHashMap::with_max_entries(1, 0);

/// The one process whose system calls are counted as such, by its id as the kernel has it; 0 for none.
#[map]
pub static PROCESS: Array<u32> = Array::with_max_entries(1, 0);

/// How many there were.
#[map]
pub static CALLS: PerCpuArray<ProcessCalls> = PerCpuArray::with_max_entries(1, 0);

/// What the profile that is being taken is of, beside the clock, by `WANTED_…`.
#[map]
pub static PROFILE: Array<u64> = Array::with_max_entries(2, 0);

/// Samples of the profile that is being taken.
#[map]
pub static SAMPLES: RingBuf = RingBuf::with_byte_size(SAMPLES_BYTES, 0);

/// What could not be done, by `Counter`.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS_MAX, 0);

/// When each CPU last wrote a log message, in nanoseconds of the monotonic clock.
#[map]
pub static LAST_LOG: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The answer of `nexus_whoami`: the thread's id, and its process's.
#[map]
pub static WHOAMI: Array<u32> = Array::with_max_entries(2, 0);
