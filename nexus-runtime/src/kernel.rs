//! The kernel's account in the runtime: loaded where it can be, and said plainly where it cannot.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nexus_collector::{Account, KernelSource, Ledger, Level, Owner, Probes, ProbesConfig, Slots, context};
use nexus_core::kernel::{KernelAccount, KernelMode, SlowSyscall, Syscalls};
use nexus_core::mark::{Marker, Part};
use nexus_core::threads;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;

use parking_lot::{Mutex, RwLock};

use crate::config::{Config, KernelDetail, KernelWanted};
use crate::overhead::Overhead;
use crate::telemetry::resource;

/// The probes, or why there are none.
pub struct Kernel {
    found: RwLock<Found>,
    /// The collector that loads the probes, and what it is asked for; none: this process does by itself.
    collector: Option<(PathBuf, ProbesConfig)>,
    /// How much is wanted when nothing is being measured, and why it is not more.
    wanted: Mutex<(Level, Cow<'static, str>)>,
    /// Held while the probes are taken away and put back.
    pub measuring: tokio::sync::Mutex<()>,
    measured: Mutex<Option<Overhead>>,
    /// What the probes may cost, as a part of the processor time without them.
    pub overhead_max: Option<f64>,
}

/// What there is now. It changes only where a collector comes and goes.
struct Found {
    source: KernelSource,
    probes: Option<Arc<Probes>>,
}

impl Kernel {
    /// Loads the probes as wanted. With [`KernelWanted::Auto`] their absence is a reason that every span carries.
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let wanted = config.kernel;
        let probes = ProbesConfig {
            slow_threshold: Duration::from_micros(config.slow_syscall_us),
            scheduling: config.kernel_detail == KernelDetail::Full,
            ..ProbesConfig::default()
        };
        let loaded = match (&config.collector, wanted) {
            (_, KernelWanted::Off) => Err(None),
            (Some(socket), _) => Probes::connect(socket, &probes).map_err(Some),
            (None, _) => Probes::load(&probes).map_err(Some),
        };
        let found = match loaded {
            Ok(probes) => Found { source: probes.source(), probes: Some(Arc::new(probes)) },
            Err(Some(error)) if wanted == KernelWanted::Required => return Err(error.into()),
            Err(Some(error)) => Found { source: KernelSource::Off(error.to_string().into()), probes: None },
            Err(None) => Found { source: KernelSource::Off("switched off by configuration".into()), probes: None },
        };
        let collector = config.collector.clone().filter(|_| wanted != KernelWanted::Off);
        Ok(Self {
            found: RwLock::new(found),
            collector: collector.map(|socket| (socket, probes)),
            wanted: Mutex::new((Level::Full, Cow::Borrowed(""))),
            measuring: tokio::sync::Mutex::default(),
            measured: Mutex::default(),
            overhead_max: config.kernel_overhead_max,
        })
    }

    /// How much is watched, and why it is not more.
    pub fn mode(&self) -> (KernelMode, Option<Cow<'static, str>>) {
        let source = self.found.read().source.clone();
        let (account, _) = Account::new(&source, Instant::now()).snapshot(Instant::now());
        (account.mode, account.reason)
    }

    /// The probes, if there are any.
    pub fn probes(&self) -> Option<Arc<Probes>> {
        self.found.read().probes.clone()
    }

    /// Whether a collector loads the probes, which comes and goes as it likes.
    pub fn has_collector(&self) -> bool {
        self.collector.is_some()
    }

    /// Gets probes of the collector anew, if it was not there or has ended. Blocks for as long as it takes to load them.
    pub fn reconnect(&self) {
        let Some((socket, config)) = &self.collector else { return };
        if self.probes().is_some_and(|probes| probes.is_attached()) {
            return;
        }
        match Probes::connect(socket, config) {
            Ok(probes) => {
                let (level, reason) = self.wanted();
                if let Err(error) = probes.set_level(level, &reason) {
                    tracing::warn!(%error, ?level, "the probes are not as they should be; trying again");
                }
                tracing::info!(socket = %socket.display(), "the collector is there; the kernel is watched from now on");
                *self.found.write() = Found { source: probes.source(), probes: Some(Arc::new(probes)) };
            }
            // Accounts say so.
            Err(error) => self.found.write().source = KernelSource::Off(error.to_string().into()),
        }
    }

    /// A new account for one invocation; `owner` says whose, in profiles.
    pub fn account(&self, started: Instant, owner: Owner) -> Watch {
        let account = match &self.found.read().source {
            KernelSource::Off(reason) => Err(reason.clone()),
            source => Ok(Account::of(source, started, owner)),
        };
        Watch { owner, account }
    }

    /// How much is watched when nothing is being measured, and why it is not more.
    pub fn wanted(&self) -> (Level, Cow<'static, str>) {
        self.wanted.lock().clone()
    }

    /// Watches less from now on, or more again.
    pub fn want(&self, level: Level, reason: String) -> Result<(), nexus_collector::ProbesError> {
        let Some(probes) = self.probes() else { return Ok(()) };
        probes.set_level(level, &reason)?;
        *self.wanted.lock() = (level, reason.into());
        Ok(())
    }

    /// Watches as much as is wanted, where that failed before.
    pub fn settle(&self) {
        let (Some(probes), Ok(_alone)) = (self.probes(), self.measuring.try_lock()) else { return };
        if !probes.is_attached() {
            return;
        }
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
        self.probes().map(|probes| probes.slots())
    }

    /// What the runtime itself made the kernel do, on its registered threads, by part.
    pub fn runtime_totals(&self) -> BTreeMap<&'static str, Syscalls> {
        self.slots().map(|slots| slots.runtime_totals()).unwrap_or_default()
    }

    /// The probes, unless they have ended with their collector.
    fn attached(&self) -> Option<Arc<Probes>> {
        self.probes().filter(|probes| probes.is_attached())
    }

    /// Whose the system calls of this process were. `None` without probes, or where they cannot be asked.
    pub fn ledger(&self) -> Option<Ledger> {
        match self.attached()?.ledger() {
            Ok(ledger) => Some(ledger),
            Err(error) => {
                tracing::warn!(%error, "the kernel's own count of system calls cannot be read");
                None
            }
        }
    }

    /// Hands on what the probes have to say, and returns what they could not do, by kind. `None` without probes.
    pub fn failures(&self) -> Option<BTreeMap<Cow<'static, str>, u64>> {
        match self.attached()?.failures() {
            Ok(failures) => Some(failures),
            Err(error) => {
                tracing::warn!(%error, "the probes' own counters cannot be read");
                None
            }
        }
    }
}

/// What threads register with when they start: a thread-start hook takes no state, so it looks here.
static KERNEL: OnceLock<Arc<Kernel>> = OnceLock::new();

/// From now on, threads that call [`register_thread`] are known to the probes.
pub fn publish(kernel: &Arc<Kernel>) {
    // One process has one set of probes.
    let _ = KERNEL.set(Arc::clone(kernel));
    threads::on_start(register_thread);
}

/// Registers the current thread as one that runs tasks.
pub fn register_task_thread() {
    register_thread(threads::TASKS);
}

/// Registers the current thread as one of a part of the runtime, if there are probes. A thread that finds no slot makes the accounts of what it works
/// for incomplete, and they say so.
pub fn register_thread(part: &'static str) {
    thread_local! {
        /// The slots that had none for this thread: it is not asked again and again.
        static REFUSED: Cell<*const Slots> = const { Cell::new(std::ptr::null()) };
    }
    let Some(slots) = KERNEL.get().and_then(|kernel| kernel.slots()).filter(|slots| slots.is_attached()) else {
        return;
    };
    if REFUSED.get() == Arc::as_ptr(&slots) {
        return;
    }
    if let Err(full) = slots.register_thread(part) {
        REFUSED.set(Arc::as_ptr(&slots));
        tracing::warn!("{full}");
    }
}

/// One invocation's account while it runs.
pub struct Watch {
    owner: Owner,
    /// What the probes add to, or why there is none.
    account: Result<Arc<Account>, Cow<'static, str>>,
}

impl Watch {
    /// What marks the invocation's polls.
    pub fn marker(&self) -> Arc<dyn Marker> {
        Arc::new(InvocationMarker { owner: self.owner, account: self.account.as_ref().ok().cloned() })
    }

    /// Something goes on working for the invocation after its account is read.
    pub fn set_incomplete(&self) {
        if let Ok(account) = &self.account {
            account.set_incomplete();
        }
    }

    /// What was seen up to `ended`, the invocation's end.
    pub fn read(&self, ended: Instant) -> (KernelAccount, Vec<SlowSyscall>) {
        match &self.account {
            Ok(account) => account.snapshot(ended),
            Err(reason) => (KernelAccount::off(reason.clone()), Vec::new()),
        }
    }
}

/// Says whose work it is: to the probes, where there are any, and to other profilers of the host.
struct InvocationMarker {
    owner: Owner,
    account: Option<Arc<Account>>,
}

impl Marker for InvocationMarker {
    fn marked(&self, part: Part, work: &mut dyn FnMut()) {
        context::within(self.owner.trace_id, self.owner.span_id, || match (&self.account, part) {
            (None, _) => work(),
            (Some(account), Part::Guest) => account.enter(work),
            (Some(account), Part::Import(name)) => account.enter_import(name, work),
        });
    }

    fn wants_crossings(&self) -> bool {
        self.account.as_ref().is_some_and(|account| account.wants_crossings())
    }

    fn crossed(&self, into_guest: bool) {
        nexus_collector::crossed(into_guest);
    }
}

/// Says who this process is to whoever can read its memory: OpenTelemetry's process context (OTEP 4719), with the key by which
/// readers know that its threads say for which trace they work (OTEP 4947).
pub fn publish_process_context() {
    #[derive(Clone, PartialEq, prost::Message)]
    struct ProcessContext {
        #[prost(message, optional, tag = "1")]
        resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        attributes: Vec<KeyValue>,
    }
    let text = |value: &str| AnyValue { value: Some(any_value::Value::StringValue(value.into())) };
    let no_keys = AnyValue { value: Some(any_value::Value::ArrayValue(ArrayValue { values: Vec::new() })) };
    let attribute = |key: &str, value| KeyValue { key: key.into(), value: Some(value), ..KeyValue::default() };
    let attributes = ResourceAttributesWithSchema::from(&resource()).attributes.0;
    let context = ProcessContext {
        resource: Some(Resource { attributes, ..Resource::default() }),
        attributes: vec![
            attribute("threadlocal.schema_version", text("tlsdesc_v1_dev")),
            attribute("threadlocal.attribute_key_map", no_keys),
        ],
    };
    if let Err(error) = context::publish_process(&prost::Message::encode_to_vec(&context)) {
        tracing::debug!(%error, "the process's context is not published");
    }
}
