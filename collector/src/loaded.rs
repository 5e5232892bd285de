//! The side of the probes that needs privilege: their maps and programs, in the process that loaded them.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::programs::perf_event::PerfEventLink;
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use nexus_ebpf_common::{Counter, ProcessCalls, WANTED_FAULTS, WANTED_OFF_CPU_NS};
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use zerocopy::FromBytes as _;

use crate::attach::{Programs, load_whoami};
use crate::btf::{self, BtfError};
use crate::embedded;
use crate::error::ProbesError;
use crate::messages::TracingLog;
use crate::observe::{CountsBytes, MemberBytes, StatBytes, Trees};
use crate::probes::ProbesConfig;
use crate::profile::Sampled;
use crate::raw;
use crate::slots::{Detail, Level};
use crate::tasks::Tasks;

/// The kernel's description of its types.
const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Inode of the first PID namespace, the same on every machine.
const INIT_PID_NAMESPACE: &str = "pid:[4026531836]";

/// A [`ProcessCalls`] as the map holds it.
type CallsBytes = [u8; size_of::<ProcessCalls>()];

/// The loaded probes. Dropping them detaches them.
pub(crate) struct Loaded {
    programs: Mutex<Programs>,
    pub(crate) samples: Mutex<RingBuf<MapData>>,
    pub(crate) tasks: Arc<Tasks>,
    pub(crate) trees: Option<Trees>,
    pub(crate) detail: Detail,
    process: Mutex<Array<MapData, u32>>,
    profile: Mutex<Array<MapData, u64>>,
    counters: PerCpuArray<MapData, u64>,
    calls: PerCpuArray<MapData, CallsBytes>,
    logger: Mutex<EbpfLogger<TracingLog>>,
}

impl Loaded {
    /// Loads an object, and attaches all of it that can be had. Also the map of the slots, which is held by the programs too.
    pub(crate) fn load(object: &[u8], config: &ProbesConfig) -> Result<(Self, MapData), ProbesError> {
        config.validate()?;
        embedded::check_abi(object)?;
        let mut ebpf = match load_maps(object, config) {
            // Before Linux 5.11 the memory of maps counts against RLIMIT_MEMLOCK, and EPERM is also the answer of its end.
            Err(ProbesError::NoPrivilege { .. }) if raise_memlock() => load_maps(object, config),
            loaded => loaded,
        }?;
        let whoami = if in_first_pid_namespace() { None } else { Some(load_whoami(&mut ebpf)?) };
        let tasks = Arc::new(Tasks::new(take_map(&mut ebpf, "TASKS")?, take_map(&mut ebpf, "WHOAMI")?, whoami));
        tasks.current().map_err(|source| ProbesError::PidNamespace { source })?;
        let slots = match ebpf.take_map("SLOTS") {
            Some(Map::Array(data)) => data,
            _ => return Err(no_map("SLOTS")),
        };
        let counters = take_map(&mut ebpf, "COUNTERS")?;
        let calls = take_map(&mut ebpf, "CALLS")?;
        let samples = take_map(&mut ebpf, "SAMPLES")?;
        let process = take_map(&mut ebpf, "PROCESS")?;
        let profile = take_map(&mut ebpf, "PROFILE")?;
        let logger = EbpfLogger::init_with_logger(&mut ebpf, TracingLog).map_err(|error| ProbesError::Other {
            what: "read the probes' messages".into(),
            message: error.to_string(),
        })?;
        let mut trees = if config.observe { Some(take_trees(&mut ebpf, Arc::clone(&tasks))?) } else { None };
        let (mut programs, mut detail) = Programs::load(ebpf, config.scheduling)?;
        if detail.scheduling.is_ok() && !raw::clock_is_read_without_a_call() {
            // Every mark would add to what it counts.
            detail.scheduling =
                Err("scheduling cannot be watched: this machine's clock is read by a system call".into());
        }
        detail.disk_waits = detail.scheduling.clone().and_then(|()| {
            let found = read_btf().and_then(|types| Ok(iowait_bit(&types)?));
            found.map(drop).map_err(|error| format!("waiting for disks cannot be watched: {error}").into())
        });
        programs.set_level(Level::Full, &detail)?;
        if let Some(trees) = &mut trees {
            trees.set_detail(detail.clone());
        }
        let (programs, logger, samples) = (Mutex::new(programs), Mutex::new(logger), Mutex::new(samples));
        let (process, profile) = (Mutex::new(process), Mutex::new(profile));
        Ok((Self { programs, samples, tasks, trees, detail, process, profile, counters, calls, logger }, slots))
    }

    /// Counts the system calls of this process, by its id as the kernel has it, for the ledger.
    pub(crate) fn watch_process(&self, id: u32) -> Result<(), ProbesError> {
        let set = self.process.lock().set(0, id, 0);
        set.map_err(|error| ProbesError::from_map("name the process to the probes", error))
    }

    /// System calls of that process: all of them, and those of threads without a slot.
    pub(crate) fn calls(&self) -> Result<(u64, u64), ProbesError> {
        let values = self.calls.get(&0, 0);
        let values = values.map_err(|error| ProbesError::from_map("read the count of system calls", error))?;
        let calls = values.iter().filter_map(|bytes| ProcessCalls::read_from_bytes(bytes).ok());
        Ok(calls.fold((0, 0), |(all, other), calls| (all + calls.all, other + calls.other)))
    }

    /// What the probes could not do, by name; only what happened is in it. Passes their messages on.
    pub(crate) fn failures(&self) -> Result<BTreeMap<&'static str, u64>, ProbesError> {
        self.flush();
        let mut failures = BTreeMap::new();
        for counter in Counter::ALL {
            let values = self.counters.get(&(counter as u32), 0);
            let values = values.map_err(|error| ProbesError::from_map("read the probes' counters", error))?;
            failures.insert(counter.as_str(), values.iter().sum());
        }
        failures.insert("recursion_misses", self.recursion_misses()?);
        failures.retain(|_, count| *count > 0);
        Ok(failures)
    }

    /// Passes the probes' messages on.
    pub(crate) fn flush(&self) {
        self.logger.lock().flush();
    }

    /// Attaches what a level asks for, and nothing else.
    pub(crate) fn set_level(&self, level: Level) -> Result<(), ProbesError> {
        self.programs.lock().set_level(level, &self.detail)
    }

    /// Has samples left: on the clocks' strikes until what is returned is dropped, else until [`Self::end_samples`].
    pub(crate) fn begin_samples(&self, sampled: Sampled) -> Result<Vec<PerfEventLink>, ProbesError> {
        let family = match sampled {
            Sampled::Clock { .. } => &self.detail.profiles,
            Sampled::Blocked { .. } => &self.detail.scheduling,
            Sampled::PageFaults => &self.detail.page_faults,
        };
        if let Err(reason) = family {
            let what = "take a profile".into();
            return Err(ProbesError::Other { what, message: reason.clone().into_owned() });
        }
        match sampled {
            Sampled::Clock { hz } if !(1..=1000).contains(&hz) => {
                Err(ProbesError::Config { name: "hz", value: u64::from(hz), min: 1, max: 1000 })
            }
            Sampled::Clock { hz } => self.programs.lock().attach_sample(hz),
            Sampled::Blocked { min_ns: 0 } => {
                Err(ProbesError::Config { name: "min_ns", value: 0, min: 1, max: u64::MAX })
            }
            Sampled::Blocked { min_ns } => self.want(WANTED_OFF_CPU_NS, min_ns).map(|()| Vec::new()),
            Sampled::PageFaults => self.want(WANTED_FAULTS, 1).map(|()| Vec::new()),
        }
    }

    /// Has no more samples left beside the clocks' strikes.
    pub(crate) fn end_samples(&self) -> Result<(), ProbesError> {
        self.want(WANTED_OFF_CPU_NS, 0).and(self.want(WANTED_FAULTS, 0))
    }

    fn want(&self, what: u32, value: u64) -> Result<(), ProbesError> {
        let set = self.profile.lock().set(what, value, 0);
        set.map_err(|error| ProbesError::from_map("tell the probes what to sample", error))
    }

    /// How often the kernel left a probe out.
    pub(crate) fn recursion_misses(&self) -> Result<u64, ProbesError> {
        self.programs.lock().recursion_misses()
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.flush();
        self.programs.get_mut().detach();
    }
}

/// Whether this process has the thread ids that the kernel itself uses.
pub(crate) fn in_first_pid_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == INIT_PID_NAMESPACE)
}

/// The kernel's types, raw.
pub(crate) fn read_btf() -> Result<Vec<u8>, ProbesError> {
    fs::read(BTF_PATH).map_err(|source| ProbesError::NoBtf { path: BTF_PATH, source })
}

fn iowait_bit(types: &[u8]) -> Result<u32, BtfError> {
    btf::bit_offset(types, "task_struct", "in_iowait")
}

fn load_maps(object: &[u8], config: &ProbesConfig) -> Result<Ebpf, ProbesError> {
    let (mut pid, mut pending, mut iowait) = (0, 0, 0);
    if config.observe || config.scheduling {
        let types = read_btf()?;
        pid = btf::field_offset(&types, "task_struct", "pid")?;
        pending =
            btf::field_offset(&types, "task_struct", "pending")? + btf::field_offset(&types, "sigpending", "signal")?;
        // Without it, waiting for a disk is not told from other waiting.
        iowait = iowait_bit(&types).unwrap_or(0);
    }
    EbpfLoader::new()
        .map_max_entries("TASKS", pid_max()?)
        .map_max_entries("SLOTS", config.threads_max)
        .map_max_entries("MEMBERS", if config.observe { config.observed_tasks_max } else { 1 })
        .map_max_entries("TREE_STATS", if config.observe { Trees::STATS_MAX } else { 1 })
        .override_global("TASK_PID_OFFSET", &pid, true)
        .override_global("TASK_IOWAIT_BIT", &iowait, true)
        .override_global("TASK_PENDING_OFFSET", &pending, true)
        .load(object)
        .map_err(ProbesError::from_ebpf)
}

fn take_trees(ebpf: &mut Ebpf, tasks: Arc<Tasks>) -> Result<Trees, ProbesError> {
    let members: HashMap<MapData, u32, MemberBytes> = take_map(ebpf, "MEMBERS")?;
    let ids: Array<MapData, u32> = take_map(ebpf, "TREE_IDS")?;
    let counts: PerCpuArray<MapData, CountsBytes> = take_map(ebpf, "TREES")?;
    let stats: PerCpuHashMap<MapData, [u8; 8], StatBytes> = take_map(ebpf, "TREE_STATS")?;
    Ok(Trees::new(tasks, members, ids, counts, stats))
}

fn take_map<T: TryFrom<Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, ProbesError> {
    let map = ebpf.take_map(name).ok_or_else(|| no_map(name))?;
    T::try_from(map).map_err(|error| ProbesError::from_map(format!("use the map {name}"), error))
}

fn no_map(name: &str) -> ProbesError {
    ProbesError::Other { what: format!("find the map {name}"), message: "the object lacks it".into() }
}

/// One more than the largest thread id that the kernel gives out now.
fn pid_max() -> Result<u32, ProbesError> {
    const PATH: &str = "/proc/sys/kernel/pid_max";
    let failed = |message: String| ProbesError::Other { what: format!("read {PATH}"), message };
    let text = fs::read_to_string(PATH).map_err(|error| failed(error.to_string()))?;
    text.trim().parse().map_err(|_| failed(format!("{text:?} is no number")))
}

/// Lifts the limit on locked memory where it can matter. Whether it did anything.
fn raise_memlock() -> bool {
    if crate::status::kernel_version() >= (5, 11) || getrlimit(Resource::Memlock).current.is_none() {
        return false;
    }
    setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }).is_ok()
}
