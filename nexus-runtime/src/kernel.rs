//! The kernel's account in the runtime: loaded where it can be, and said plainly where it cannot.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nexus_collector::{Account, KernelSource, Ledger, Level, Owner, Probes, ProbesConfig, Slots};
use nexus_core::kernel::{KernelAccount, KernelMode, SlowSyscall, SyscallStats};
use nexus_core::mark::{Marker, Unmarked};

use parking_lot::Mutex;

use crate::config::{Config, KernelDetail, KernelWanted};
use crate::overhead::Overhead;

/// The probes, or why there are none.
pub struct Kernel {
    source: KernelSource,
    probes: Option<Probes>,
    /// How much is wanted when nothing is being measured, and why it is not more.
    wanted: Mutex<(Level, Cow<'static, str>)>,
    /// Held while the probes are taken away and put back.
    pub measuring: tokio::sync::Mutex<()>,
    measured: Mutex<Option<Overhead>>,
    /// What the probes may cost, as a part of the processor time without them.
    pub overhead_max: Option<f64>,
}

impl Kernel {
    /// Loads the probes as wanted. With [`KernelWanted::Auto`] their absence is a reason that every span carries.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let wanted = config.kernel;
        let with = |source, probes| Self {
            source,
            probes,
            wanted: Mutex::new((Level::Full, Cow::Borrowed(""))),
            measuring: tokio::sync::Mutex::default(),
            measured: Mutex::default(),
            overhead_max: config.kernel_overhead_max,
        };
        let off = |reason: String| with(KernelSource::Off(reason.into()), None);
        if wanted == KernelWanted::Off {
            return Ok(off("switched off by configuration".into()));
        }
        let probes = ProbesConfig {
            slow_threshold: Duration::from_micros(config.slow_syscall_us),
            scheduling: config.kernel_detail == KernelDetail::Full,
            ..ProbesConfig::default()
        };
        match Probes::load(&probes) {
            Ok(probes) => Ok(with(probes.source(), Some(probes))),
            Err(error) if wanted == KernelWanted::Required => Err(error.into()),
            Err(error) => Ok(off(error.to_string())),
        }
    }

    /// How much is watched, and why it is not more.
    pub fn mode(&self) -> (KernelMode, Option<Cow<'static, str>>) {
        let (account, _) = Account::new(&self.source, Instant::now()).snapshot(Instant::now());
        (account.mode, account.reason)
    }

    /// The probes, if there are any.
    pub fn probes(&self) -> Option<&Probes> {
        self.probes.as_ref()
    }

    /// A new account for one invocation; `owner` says whose, in profiles.
    pub fn account(&self, started: Instant, owner: Owner) -> Watch {
        match &self.source {
            KernelSource::Off(reason) => Watch::Off(reason.clone()),
            source => Watch::On(Account::of(source, started, owner)),
        }
    }

    /// How much is watched when nothing is being measured, and why it is not more.
    pub fn wanted(&self) -> (Level, Cow<'static, str>) {
        self.wanted.lock().clone()
    }

    /// Watches less from now on, or more again.
    pub fn want(&self, level: Level, reason: String) -> Result<(), nexus_collector::ProbesError> {
        let Some(probes) = &self.probes else { return Ok(()) };
        probes.set_level(level, &reason)?;
        *self.wanted.lock() = (level, reason.into());
        Ok(())
    }

    /// Watches as much as is wanted, where that failed before.
    pub fn settle(&self) {
        let (Some(probes), Ok(_alone)) = (&self.probes, self.measuring.try_lock()) else { return };
        let (level, reason) = self.wanted();
        if probes.level() != level {
            match probes.set_level(level, &reason) {
                Ok(()) => tracing::info!(?level, "the probes are as they should be again"),
                Err(error) => tracing::warn!(%error, ?level, "the probes are not as they should be; trying again"),
            }
        }
    }

    /// What the probes cost, when it was last measured.
    pub fn overhead(&self) -> Option<Overhead> {
        self.measured.lock().clone()
    }

    /// Notes what they cost.
    pub fn set_overhead(&self, overhead: Overhead) {
        *self.measured.lock() = Some(overhead);
    }

    /// The slots, for threads to register with.
    pub fn slots(&self) -> Option<Arc<Slots>> {
        self.probes.as_ref().map(Probes::slots)
    }

    /// What the runtime itself made the kernel do, on its registered threads.
    pub fn runtime_totals(&self) -> BTreeMap<Cow<'static, str>, SyscallStats> {
        self.slots().map(|slots| slots.runtime_totals()).unwrap_or_default()
    }

    /// Whose the system calls of this process were. `None` without probes, or where they cannot be asked.
    pub fn ledger(&self) -> Option<Ledger> {
        match self.probes.as_ref()?.ledger() {
            Ok(ledger) => Some(ledger),
            Err(error) => {
                tracing::warn!(%error, "the kernel's own count of system calls cannot be read");
                None
            }
        }
    }

    /// Hands on what the probes have to say, and returns what they could not do, by kind. `None` without probes.
    pub fn failures(&self) -> Option<BTreeMap<&'static str, u64>> {
        match self.probes.as_ref()?.failures() {
            Ok(failures) => Some(failures),
            Err(error) => {
                tracing::warn!(%error, "the probes' own counters cannot be read");
                None
            }
        }
    }
}

/// The slots that threads register with when they start: a thread-start hook takes no state, so it looks here.
static SLOTS: OnceLock<Arc<Slots>> = OnceLock::new();

/// From now on, threads that call [`register_thread`] are known to the probes.
pub fn publish_slots(kernel: &Kernel) {
    if let Some(slots) = kernel.slots() {
        // One process has one set of probes.
        let _ = SLOTS.set(slots);
    }
}

/// Registers the current thread, if there are probes. A thread that finds no slot makes the accounts of what it works
/// for incomplete, and they say so.
pub fn register_thread() {
    if let Some(slots) = SLOTS.get()
        && let Err(full) = slots.register_thread()
    {
        tracing::warn!("{full}");
    }
}

/// One invocation's account while it runs.
pub enum Watch {
    /// The probes add to it.
    On(Arc<Account>),
    /// Nothing is watched, for this reason.
    Off(Cow<'static, str>),
}

impl Watch {
    /// What marks the invocation's polls.
    pub fn marker(&self) -> Arc<dyn Marker> {
        match self {
            Self::On(account) => Arc::new(AccountMarker(account.clone())),
            Self::Off(_) => Arc::new(Unmarked),
        }
    }

    /// Something goes on working for the invocation after its account is read.
    pub fn set_incomplete(&self) {
        if let Self::On(account) = self {
            account.set_incomplete();
        }
    }

    /// What was seen up to `ended`, the invocation's end.
    pub fn read(&self, ended: Instant) -> (KernelAccount, Vec<SlowSyscall>) {
        match self {
            Self::On(account) => account.snapshot(ended),
            Self::Off(reason) => (KernelAccount::off(reason.clone()), Vec::new()),
        }
    }
}

struct AccountMarker(Arc<Account>);

impl Marker for AccountMarker {
    fn marked(&self, work: &mut dyn FnMut()) {
        self.0.enter(work);
    }
}
