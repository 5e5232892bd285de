//! Loading and attaching the probes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::getppid;

use crate::account::{Account, KernelSource};
use crate::embedded;
use crate::error::ProbesError;
use crate::loaded::Loaded;
use crate::observe::Trees;
use crate::profile::{Profile, Sampled};
use crate::raw::SlotMap;
use crate::remote::Remote;
use crate::slots::{Level, Registrar, Slots};

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

    /// The threshold of slow calls as the slots hold it.
    pub(crate) fn slow_ns(&self) -> u64 {
        u64::try_from(self.slow_threshold.as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn validate(&self) -> Result<(), ProbesError> {
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
    slots: Arc<Slots>,
    side: Side,
}

/// Where the side of the probes is that needs privilege.
enum Side {
    /// In this process.
    Here(Box<Loaded>),
    /// In a collector, which loaded them for this process.
    Collector(Arc<Remote>),
}

impl std::fmt::Debug for Probes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes").field("slots", &self.slots).finish_non_exhaustive()
    }
}

impl Probes {
    /// Loads the probes that are part of this program, attaches them to the kernel, and sees that they count right.
    pub fn load(config: &ProbesConfig) -> Result<Self, ProbesError> {
        Self::load_object(embedded::object(), config)
    }

    /// The same with another build of the probes.
    pub fn load_object(object: &[u8], config: &ProbesConfig) -> Result<Self, ProbesError> {
        let (loaded, slots_data) = Loaded::load(object, config)?;
        let map = SlotMap::new(slots_data.fd().as_fd(), config.threads_max)
            .map_err(|error| ProbesError::from_io("map the slots into this process", error))?;
        let process = loaded.tasks.process().map_err(|source| ProbesError::PidNamespace { source })?;
        loaded.watch_process(process)?;
        let registrar = Registrar::Here(Arc::clone(&loaded.tasks));
        let slots = Arc::new(Slots::new(map, registrar, config.slow_ns(), loaded.detail.clone()));
        let probes = Self { slots, side: Side::Here(Box::new(loaded)) };
        probes.self_test()?;
        Ok(probes)
    }

    /// Has them loaded by the collector that listens at `socket` (see [`crate::Daemon`]): this process needs no privilege.
    /// They stay as long as the collector does; see [`Probes::is_attached`].
    ///
    /// Process trees cannot be observed through it: `config.observe` does not count.
    pub fn connect(socket: &Path, config: &ProbesConfig) -> Result<Self, ProbesError> {
        config.validate()?;
        let (remote, map, detail) = Remote::connect(socket, config)?;
        let remote = Arc::new(remote);
        let slots = Arc::new(Slots::new(map, Registrar::Collector(Arc::clone(&remote)), config.slow_ns(), detail));
        remote.watch(Arc::downgrade(&slots))?;
        let probes = Self { slots, side: Side::Collector(remote) };
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

    /// Whether they are attached. Always, but where a collector loaded them, and has ended since: then they are gone for good,
    /// and [`Probes::connect`] gets new ones.
    pub fn is_attached(&self) -> bool {
        self.slots.is_attached()
    }

    /// What the probes could not do since they were loaded, by name; only what happened is in it. Also passes the messages
    /// that they left on to `tracing`: to be called every few seconds.
    pub fn failures(&self) -> Result<BTreeMap<Cow<'static, str>, u64>, ProbesError> {
        match &self.side {
            Side::Here(loaded) => Ok(loaded.failures()?.into_iter().map(|(name, n)| (name.into(), n)).collect()),
            Side::Collector(remote) => remote.failures(),
        }
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
            let runtime = self
                .slots
                .runtime_totals()
                .values()
                .flat_map(|calls| calls.values())
                .map(|stats| stats.count)
                .sum::<u64>();
            (self.slots.attributed_calls(), runtime)
        };
        let (accounts_before, runtime_before) = owners();
        let (process, other) = match &self.side {
            Side::Here(loaded) => loaded.calls()?,
            Side::Collector(remote) => remote.calls()?,
        };
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
    pub fn families(&self) -> [(&'static str, Result<(), Cow<'static, str>>); 4] {
        let detail = self.slots.detail();
        [
            ("scheduling", detail.scheduling.clone()),
            ("disk waits", detail.disk_waits.clone()),
            ("page faults", detail.page_faults.clone()),
            ("profiles", detail.profiles.clone()),
        ]
    }

    /// Watches less from now on, or more again. `reason` says why it is not [`Level::Full`], in every account from now on; an
    /// account that is open meanwhile is incomplete, and says so.
    ///
    /// Process trees that are observed meanwhile are not: they miss what is not watched.
    pub fn set_level(&self, level: Level, reason: &str) -> Result<(), ProbesError> {
        let _alone = self.slots.changing();
        let before = self.slots.watched().level;
        // Attaching takes milliseconds, in which invocations begin and end. What an account says it watched was watched from
        // its begin to its end: less is said before it is so, more only after.
        if level == before {
            self.slots.set_reason(reason);
        } else if level > before {
            self.slots.forget_state(before == Level::Off);
            self.attach(level)?;
            self.slots.set_level(level, reason);
        } else {
            self.slots.set_level(level, reason);
            self.attach(level)?;
        }
        Ok(())
    }

    fn attach(&self, level: Level) -> Result<(), ProbesError> {
        match &self.side {
            Side::Here(loaded) => loaded.set_level(level),
            Side::Collector(remote) => remote.set_level(level),
        }
    }

    /// How much is watched now.
    pub fn level(&self) -> Level {
        self.slots.watched().level
    }

    /// Takes a profile: who works for an account leaves samples while it is on. One profile at a time: `None` while another
    /// is taken.
    pub fn profile(&self, sampled: Sampled) -> Result<Option<Profile<'_>>, ProbesError> {
        match &self.side {
            Side::Here(loaded) => Profile::here(loaded, sampled),
            Side::Collector(remote) => Profile::remote(remote, sampled),
        }
    }

    pub(crate) fn trees(&self) -> Option<&Trees> {
        match &self.side {
            Side::Here(loaded) => loaded.trees.as_ref(),
            Side::Collector(_) => None,
        }
    }

    /// How often the kernel left a probe out.
    pub(crate) fn recursion_misses(&self) -> Result<u64, ProbesError> {
        match &self.side {
            Side::Here(loaded) => loaded.recursion_misses(),
            Side::Collector(remote) => Ok(remote.failures()?.get("recursion_misses").copied().unwrap_or(0)),
        }
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
        if let Side::Collector(remote) = &self.side {
            remote.close();
        }
    }
}
