//! The kernel's account of an invocation or of a program: what it made the kernel do.

pub(crate) mod unnamed;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How much the probes saw. Ordered by what it tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelMode {
    /// System calls, and where the time went.
    Full,
    /// System calls with their counts, errors and latencies; no scheduling.
    Counts,
    /// Nothing was watched: every number is absent, which is not zero.
    #[default]
    Off,
}

impl KernelMode {
    /// The name in JSON, in spans and on the metrics page.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Counts => "counts",
            Self::Off => "off",
        }
    }
}

/// What one system call cost, added up. The log keeps its fields by their order: a new one comes last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SyscallStats {
    /// Calls that returned.
    pub count: u64,
    /// Calls that returned an error (`-4095..=-1`).
    pub errors: u64,
    /// Time from entry to return, over all calls.
    pub total_ns: u64,
    /// The longest of them.
    pub max_ns: u64,
    /// Of the total: time blocked. Absent where scheduling was not watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off_cpu_ns: Option<u64>,
    /// Of the total: time ready to run, and waiting for a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_queue_ns: Option<u64>,
    /// Of the calls: how many took less than each of [`FASTER_THAN_NS`], and not less than the one before; the rest took longer.
    /// For metrics, which are made when the numbers are new: it is not kept. Absent where it is not known.
    #[serde(skip)]
    pub faster: Option<[u64; FASTER_THAN_NS.len()]>,
}

/// By which durations calls are told apart, in nanoseconds.
pub const FASTER_THAN_NS: [u64; 4] = [10_000, 100_000, 1_000_000, 10_000_000];

impl SyscallStats {
    /// Adds what `other` counted.
    pub fn add(&mut self, other: &SyscallStats) {
        self.faster = match (self.faster, other.faster) {
            (None, theirs) if self.count == 0 => theirs,
            (ours, None) if other.count == 0 => ours,
            (Some(ours), Some(theirs)) => Some(std::array::from_fn(|at| ours[at] + theirs[at])),
            _ => None,
        };
        self.count += other.count;
        self.errors += other.errors;
        self.total_ns += other.total_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
        for (sum, more) in [(&mut self.off_cpu_ns, other.off_cpu_ns), (&mut self.run_queue_ns, other.run_queue_ns)] {
            if let Some(more) = more {
                *sum.get_or_insert(0) += more;
            }
        }
    }

    /// Time that the calls kept a CPU busy, where that is known.
    pub fn on_cpu_ns(&self) -> Option<u64> {
        Some(self.total_ns.saturating_sub(self.off_cpu_ns? + self.run_queue_ns?))
    }
}

/// System calls by their names.
pub type Syscalls = BTreeMap<Cow<'static, str>, SyscallStats>;

/// Page faults by whether the disk was needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageFaults {
    /// Served from memory.
    pub minor: u64,
    /// Had to wait for the disk.
    pub major: u64,
}

/// The kernel's account. When `mode` is `off` every number is absent.
///
/// The log keeps its fields by their order: a new one comes last.
///
/// Of an invocation, its duration = `on_cpu_ns` + `run_queue_ns` + `off_cpu_ns` + `waiting_ns` + `residual_ns`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelAccount {
    /// How much was watched.
    pub mode: KernelMode,
    /// Why it is not more, where it is not `full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// Whether nothing that belongs here was missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete: Option<bool>,
    /// Records that found no room. Counts are exact even so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// By the system call's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syscalls: Option<Syscalls>,
    /// Of the system calls, those that an import of the guest made, by the import's name: `wasi:io/streams.[method]…`. The
    /// others made its instance, or took it down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imports: Option<BTreeMap<Cow<'static, str>, Syscalls>>,
    /// Time on a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_cpu_ns: Option<u64>,
    /// Of the time on a CPU: in the guest's own code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_ns: Option<u64>,
    /// Of the time on a CPU: in system calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_ns: Option<u64>,
    /// Time ready to run, and waiting for a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_queue_ns: Option<u64>,
    /// Time blocked. By cause: in the system calls' own `off_cpu_ns`, and in `page_fault_off_cpu_ns`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off_cpu_ns: Option<u64>,
    /// Of the time blocked: in page faults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_fault_off_cpu_ns: Option<u64>,
    /// Of the time blocked: for a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_wait_ns: Option<u64>,
    /// How often it was blocked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_waits: Option<u64>,
    /// Time in which no thread worked for the invocation: it awaited a timer, a response, a lock of the runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_ns: Option<u64>,
    /// The rest of its duration. Below zero where threads worked for it at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual_ns: Option<i64>,
    /// Page faults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_faults: Option<PageFaults>,
    /// Times the thread was taken off its CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_switches: Option<u64>,
    /// Times that it went on on another CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrations: Option<u64>,
}

impl KernelAccount {
    /// The account where nothing was watched, with the reason.
    pub fn off(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reason: Some(reason.into()), ..Self::default() }
    }

    /// The sum over all system calls, if any were watched.
    pub fn syscall_totals(&self) -> Option<SyscallStats> {
        let syscalls = self.syscalls.as_ref()?;
        let mut sum = SyscallStats::default();
        for stats in syscalls.values() {
            sum.add(stats);
        }
        Some(sum)
    }
}

/// One system call that took longer than the threshold: a span event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowSyscall {
    /// The system call's name.
    pub name: Cow<'static, str>,
    /// What it returned; an error as its negative number.
    pub ret: i64,
    /// Nanoseconds after the invocation's start.
    pub offset_ns: u64,
    /// From entry to return.
    pub duration_ns: u64,
}
