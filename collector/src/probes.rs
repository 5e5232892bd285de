//! Loading and attaching the probes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use nexus_ebpf_common::{Counter, ProcessCalls};
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getppid, getrlimit, setrlimit};

use zerocopy::FromBytes as _;

use crate::account::{Account, KernelSource};
use crate::attach::{Programs, load_whoami};
use crate::btf;
use crate::embedded;
use crate::error::ProbesError;
use crate::messages::TracingLog;
use crate::observe::{CountsBytes, MemberBytes, StatBytes, Trees};
use crate::profile::Profile;
use crate::raw::{self, SlotMap};
use crate::slots::{Level, Slots};
use crate::tasks::Tasks;

/// The kernel's description of its types.
const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Inode of the first PID namespace, the same on every machine.
const INIT_PID_NAMESPACE: &str = "pid:[4026531836]";

/// A [`ProcessCalls`] as the map holds it.
type CallsBytes = [u8; size_of::<ProcessCalls>()];

/// How often the ledger is read for a reading that nothing moved under.
const LEDGER_READINGS: usize = 5;

/// Calls that the self-test makes.
const SELF_TEST_CALLS: u64 = 10;

/// What is loaded, and how large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbesConfig {
    /// Threads that can have a slot at a time, `1..=4096`. Each costs 36 KiB of kernel memory.
    pub threads_max: u32,
    /// A system call of an invocation that takes this long or longer is recorded. Zero: every call is.
    pub slow_threshold: Duration,
    /// Whether scheduling and page faults are watched too, where they can be.
    pub scheduling: bool,
    /// Whether programs can be observed by process tree.
    pub observe: bool,
    /// Threads and processes of observed trees that can live at a time, `1..=1_048_576`. Each costs about 100 bytes.
    pub observed_tasks_max: u32,
}

impl Default for ProbesConfig {
    fn default() -> Self {
        Self {
            threads_max: 256,
            slow_threshold: Duration::from_micros(50),
            scheduling: true,
            observe: true,
            observed_tasks_max: 16_384,
        }
    }
}

impl ProbesConfig {
    /// What `nexus observe` needs: trees, and a slot for the self-test.
    pub fn for_observe() -> Self {
        Self { threads_max: 1, ..Self::default() }
    }

    fn validate(&self) -> Result<(), ProbesError> {
        let within = |name, value: u32, max: u64| {
            if (1..=max).contains(&u64::from(value)) {
                return Ok(());
            }
            Err(ProbesError::Config { name, value: u64::from(value), min: 1, max })
        };
        within("threads_max", self.threads_max, 4096)?;
        within("observed_tasks_max", self.observed_tasks_max, 1 << 20)
    }
}

/// Whose the system calls of a process were. All numbers are since the probes were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// All of them, as counted by the process's id.
    pub process: u64,
    /// Of accounts: invocations.
    pub accounts: u64,
    /// Of the runtime's threads that have a slot.
    pub runtime: u64,
    /// Of threads that have none.
    pub other: u64,
    /// What is left. Not 0: something was counted by nobody, or below 0, twice.
    pub unattributed: i64,
}

/// The attached probes. Dropping them detaches them; accounts are incomplete from then on.
pub struct Probes {
    programs: Mutex<Programs>,
    samples: Mutex<RingBuf<MapData>>,
    slots: Arc<Slots>,
    trees: Option<Trees>,
    counters: PerCpuArray<MapData, u64>,
    calls: PerCpuArray<MapData, CallsBytes>,
    logger: Mutex<EbpfLogger<TracingLog>>,
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes")
            .field("slots", &self.slots)
            .field("observe", &self.trees.is_some())
            .finish_non_exhaustive()
    }
}

impl Probes {
    /// Loads the probes that are part of this program, attaches them to the kernel, and sees that they count right.
    pub fn load(config: &ProbesConfig) -> Result<Self, ProbesError> {
        Self::load_object(embedded::object(), config)
    }

    /// The same with another build of the probes.
    pub fn load_object(object: &[u8], config: &ProbesConfig) -> Result<Self, ProbesError> {
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
        let slots_data = match ebpf.take_map("SLOTS") {
            Some(Map::Array(data)) => data,
            _ => return Err(no_map("SLOTS")),
        };
        let map = SlotMap::new(slots_data.fd().as_fd(), config.threads_max)
            .map_err(|error| ProbesError::from_io("map the slots into this process", error))?;
        let slow_ns = u64::try_from(config.slow_threshold.as_nanos()).unwrap_or(u64::MAX);
        let counters = take_map(&mut ebpf, "COUNTERS")?;
        let calls = take_map(&mut ebpf, "CALLS")?;
        let samples = take_map(&mut ebpf, "SAMPLES")?;
        let mut process: Array<MapData, u32> = take_map(&mut ebpf, "PROCESS")?;
        let tgid = tasks.process().map_err(|source| ProbesError::PidNamespace { source })?;
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
        programs.set_level(Level::Full, &detail)?;
        if let Some(trees) = &mut trees {
            trees.set_detail(detail.clone());
        }
        let slots = Arc::new(Slots::new(map, tasks, slow_ns, detail));
        process.set(0, tgid, 0).map_err(|error| ProbesError::from_map("name this process to the probes", error))?;
        // The programs hold the map of the slots from here on, as does the mapping.
        drop(slots_data);
        let (programs, logger, samples) = (Mutex::new(programs), Mutex::new(logger), Mutex::new(samples));
        let probes = Self { programs, samples, slots, trees, counters, calls, logger };
        probes.self_test()?;
        Ok(probes)
    }

    /// The threads' slots.
    pub fn slots(&self) -> Arc<Slots> {
        Arc::clone(&self.slots)
    }

    /// Where accounts get their numbers from while these probes are attached.
    pub fn source(&self) -> KernelSource {
        KernelSource::Probes(self.slots())
    }

    /// What the probes could not do since they were loaded, by name; only what happened is in it. Also passes the messages
    /// that they left on to `tracing`: to be called every few seconds.
    pub fn failures(&self) -> Result<BTreeMap<&'static str, u64>, ProbesError> {
        self.logger.lock().flush();
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

    /// Whose the system calls of this process were, since the probes were loaded, and what nobody counted.
    pub fn ledger(&self) -> Result<Ledger, ProbesError> {
        let mut best: Option<Ledger> = None;
        for _ in 0..LEDGER_READINGS {
            let reading = self.read_ledger()?;
            if best.is_none_or(|best| reading.unattributed.abs() < best.unattributed.abs()) {
                best = Some(reading);
            }
            if reading.unattributed == 0 {
                break;
            }
        }
        Ok(best.unwrap_or_default())
    }

    /// The owners are asked before and after the kernel, and all numbers only grow: what the kernel says must lie between.
    fn read_ledger(&self) -> Result<Ledger, ProbesError> {
        let owners = || {
            let runtime = self.slots.runtime_totals().values().map(|stats| stats.count).sum::<u64>();
            (self.slots.attributed_calls(), runtime)
        };
        let (accounts_before, runtime_before) = owners();
        let values = self.calls.get(&0, 0);
        let values = values.map_err(|error| ProbesError::from_map("read the count of system calls", error))?;
        let (mut process, mut other) = (0, 0);
        for calls in values.iter().filter_map(|bytes| ProcessCalls::read_from_bytes(bytes).ok()) {
            process += calls.all;
            other += calls.other;
        }
        let (accounts, runtime) = owners();
        let (least, most) = (accounts_before + runtime_before + other, accounts + runtime + other);
        let unattributed = match process {
            p if p < least => p as i64 - least as i64,
            p if p > most => (p - most) as i64,
            _ => 0,
        };
        Ok(Ledger { process, accounts, runtime, other, unattributed })
    }

    /// What the probes tell beside system calls: each family with why it does not, if so.
    pub fn families(&self) -> [(&'static str, Result<(), Cow<'static, str>>); 3] {
        let detail = self.slots.detail();
        [
            ("scheduling", detail.scheduling.clone()),
            ("page faults", detail.page_faults.clone()),
            ("profiles", detail.profiles.clone()),
        ]
    }

    /// Watches less from now on, or more again. `reason` says why it is not [`Level::Full`], in every account from now on; an
    /// account that is open meanwhile is incomplete, and says so.
    ///
    /// Process trees that are observed meanwhile are not: they miss what is not watched.
    pub fn set_level(&self, level: Level, reason: &str) -> Result<(), ProbesError> {
        let mut programs = self.programs.lock();
        let before = self.slots.watched().level;
        // Attaching takes milliseconds, in which invocations begin and end. What an account says it watched was watched from
        // its begin to its end: less is said before it is so, more only after.
        if level == before {
            self.slots.set_reason(reason);
        } else if level > before {
            self.slots.forget_state(before == Level::Off);
            programs.set_level(level, self.slots.detail())?;
            self.slots.set_level(level, reason);
        } else {
            self.slots.set_level(level, reason);
            programs.set_level(level, self.slots.detail())?;
        }
        Ok(())
    }

    /// How much is watched now.
    pub fn level(&self) -> Level {
        self.slots.watched().level
    }

    /// Takes a profile: every CPU's clock strikes `hz` times a second (`1..=1000`) while it is on, and who works for an
    /// account then leaves a sample. One profile at a time: `None` while another is taken.
    pub fn profile(&self, hz: u32) -> Result<Option<Profile<'_>>, ProbesError> {
        if !(1..=1000).contains(&hz) {
            return Err(ProbesError::Config { name: "hz", value: u64::from(hz), min: 1, max: 1000 });
        }
        let Some(samples) = self.samples.try_lock() else { return Ok(None) };
        if let Err(reason) = &self.slots.detail().profiles {
            let what = "take a profile".into();
            return Err(ProbesError::Other { what, message: reason.clone().into_owned() });
        }
        let links = self.programs.lock().attach_sample(hz)?;
        let mut profile = Profile::new(samples, links);
        // What a profile before left behind is not this one's.
        profile.drain(|_| {});
        Ok(Some(profile))
    }

    pub(crate) fn trees(&self) -> Option<&Trees> {
        self.trees.as_ref()
    }

    /// How often the kernel left a probe out.
    pub(crate) fn recursion_misses(&self) -> Result<u64, ProbesError> {
        self.programs.lock().recursion_misses()
    }

    fn self_test(&self) -> Result<(), ProbesError> {
        // On a thread of its own: the caller's may be in a marked section of other probes.
        let counted = std::thread::scope(|scope| {
            let test = scope.spawn(|| {
                let account = Account::new(&self.source(), Instant::now());
                account.enter(|| {
                    for _ in 0..SELF_TEST_CALLS {
                        let _ = getppid();
                    }
                });
                let (kernel, _) = account.snapshot(Instant::now());
                kernel.syscalls.and_then(|calls| calls.get("getppid").map(|stats| stats.count)).unwrap_or(0)
            });
            test.join().unwrap_or(0)
        });
        if counted == SELF_TEST_CALLS {
            return Ok(());
        }
        Err(ProbesError::SelfTest { expected: SELF_TEST_CALLS, counted })
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.slots.set_detached();
        self.logger.lock().flush();
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

fn load_maps(object: &[u8], config: &ProbesConfig) -> Result<Ebpf, ProbesError> {
    let (mut pid, mut pending) = (0, 0);
    if config.observe || config.scheduling {
        let types = read_btf()?;
        pid = btf::field_offset(&types, "task_struct", "pid")?;
        pending =
            btf::field_offset(&types, "task_struct", "pending")? + btf::field_offset(&types, "sigpending", "signal")?;
    }
    EbpfLoader::new()
        .map_max_entries("TASKS", pid_max()?)
        .map_max_entries("SLOTS", config.threads_max)
        .map_max_entries("MEMBERS", if config.observe { config.observed_tasks_max } else { 1 })
        .map_max_entries("TREE_STATS", if config.observe { Trees::STATS_MAX } else { 1 })
        .override_global("TASK_PID_OFFSET", &pid, true)
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
