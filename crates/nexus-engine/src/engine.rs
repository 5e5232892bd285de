//! The engine: two profiles of wasmtime, one pool each, one ticker for both.

use std::hash::{Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nexus_core::threads;
use tokio::sync::Semaphore;
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, WasmBacktraceDetails};

use xxhash_rust::xxh3::Xxh3Default;

use crate::EngineError;
use crate::closer::{Closer, Seen};

/// How memory is guarded. Which is cheaper depends on the function (docs/benchmarks.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Profile {
    /// Bounds are checked by explicit instructions and memory never changes its protection: the cheapest to begin and
    /// end, for functions that are short. At most `SHORT_MEMORY_MAX_MB` of memory.
    Short,
    /// Guard pages check the bounds: loads and stores cost nothing extra, for functions that compute or are large.
    Compute,
}

/// The most memory that a function of profile [`Profile::Short`] may have, in MiB.
pub const SHORT_MEMORY_MAX_MB: u32 = 256;

impl Profile {
    /// The profile for a function's memory limit.
    pub fn for_memory(memory_mb: u32) -> Self {
        if memory_mb <= SHORT_MEMORY_MAX_MB { Self::Short } else { Self::Compute }
    }

    /// The name in file names and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Compute => "compute",
        }
    }
}

/// How the engine is set up.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Where compiled artifacts are kept; only we may write there.
    pub cache_dir: PathBuf,
    /// Instances that may live at once with profile [`Profile::Short`]: 1 to 10,000. The compute profile has a quarter.
    pub instances_max: u32,
    /// Bytes that a function may give back: as a response, on standard output, or as an outcome.
    pub output_bytes_max: usize,
    /// Bytes of log lines that are kept of one invocation.
    pub log_bytes_max: usize,
    /// Outgoing requests that one invocation may have open at once.
    pub host_calls_open_max: usize,
    /// Outgoing requests that one invocation may make in all.
    pub host_calls_max: usize,
    /// What guests are looked at with.
    pub closer: Closer,
}

impl EngineConfig {
    /// Defaults with the cache at `cache_dir`.
    pub fn new(cache_dir: PathBuf) -> Self {
        Self {
            cache_dir,
            instances_max: 1000,
            output_bytes_max: 8 << 20,
            log_bytes_max: 64 << 10,
            host_calls_open_max: 64,
            host_calls_max: 1000,
            closer: Closer::default(),
        }
    }
}

/// How often running guests are asked to yield: long enough to cost nothing, short enough that an endless loop leaves
/// its neighbours on the thread their turn.
const TICK: Duration = Duration::from_millis(5);
/// The same where it is looked where they are.
const SAMPLED_TICK: Duration = Duration::from_micros(100);

/// Functions with mounts that run at once, each on a thread that may block: a part of the 512 that the runtime has for
/// that, so that a file system that hangs leaves the log its own.
const BLOCKING_MAX: usize = 256;

/// Compiles, keeps and runs functions. Cheap to clone through its `Arc`.
pub struct Engine {
    pub(crate) config: EngineConfig,
    pub(crate) short: ProfileEngine,
    pub(crate) compute: ProfileEngine,
    /// One permit for each thread that may block in a file system.
    pub(crate) blocking: Arc<Semaphore>,
    pub(crate) seen: Seen,
    stop: Arc<AtomicBool>,
    ticker: Option<std::thread::JoinHandle<()>>,
}

/// One wasmtime engine, and as many permits as its pool has places.
pub(crate) struct ProfileEngine {
    pub wasmtime: wasmtime::Engine,
    /// What makes it compile the code that it does.
    pub code: u64,
    pub places: Arc<Semaphore>,
    pub places_max: u32,
    pub linkers: crate::worlds::Linkers,
}

impl Engine {
    /// Starts the engine: reserves the pools' address space and starts the ticker's thread.
    pub fn start(config: EngineConfig) -> Result<Arc<Self>, EngineError> {
        let short = ProfileEngine::new(Profile::Short, config.instances_max, config.closer)?;
        let compute = ProfileEngine::new(Profile::Compute, (config.instances_max / 4).max(1), config.closer)?;
        crate::cache::prepare(&config.cache_dir)?;
        let stop = Arc::new(AtomicBool::new(false));
        let ticking = {
            let tick = if config.closer.samples { SAMPLED_TICK } else { TICK };
            let (stop, engines) = (stop.clone(), [short.wasmtime.clone(), compute.wasmtime.clone()]);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::park_timeout(tick);
                    engines.iter().for_each(wasmtime::Engine::increment_epoch);
                    threads::checkpoint();
                }
            }
        };
        let ticker = threads::spawn(threads::EPOCH, ticking)
            .map_err(|e| EngineError::Start(format!("no thread for the ticker: {e}")))?;
        let blocking = Arc::new(Semaphore::new(BLOCKING_MAX));
        Ok(Arc::new(Self { config, short, compute, blocking, seen: Seen::default(), stop, ticker: Some(ticker) }))
    }

    pub(crate) fn profile(&self, profile: Profile) -> &ProfileEngine {
        match profile {
            Profile::Short => &self.short,
            Profile::Compute => &self.compute,
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(ticker) = self.ticker.take() {
            ticker.thread().unpark();
            // It only counts: it cannot have panicked, and if it had, there is nothing left to do about it.
            let _ = ticker.join();
        }
    }
}

impl ProfileEngine {
    fn new(profile: Profile, instances: u32, closer: Closer) -> Result<Self, EngineError> {
        let start = |e: wasmtime::Error| EngineError::Start(format!("profile {}: {e:#}", profile.as_str()));
        let wasmtime = wasmtime::Engine::new(&config(profile, instances, closer)).map_err(start)?;
        let linkers = crate::worlds::Linkers::new(&wasmtime).map_err(start)?;
        let code = code(&wasmtime);
        Ok(Self {
            wasmtime,
            code,
            places: Arc::new(Semaphore::new(instances as usize)),
            places_max: instances,
            linkers,
        })
    }
}

/// What makes two engines compile the same code.
fn code(wasmtime: &wasmtime::Engine) -> u64 {
    let mut hasher = Xxh3Default::new();
    wasmtime.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}

/// The most core instances in a component.
const CORE_INSTANCES_MAX: u32 = 64;
/// What a place in the pool has; a component that needs more takes several.
const MEMORIES_IN_PLACE: u32 = 2;
const TABLES_IN_PLACE: u32 = 4;

/// How many places an instance takes.
pub(crate) fn places_for(needed: &wasmtime::ResourcesRequired) -> u32 {
    let places = |n: u32, in_place: u32| n.div_ceil(in_place);
    places(needed.num_memories, MEMORIES_IN_PLACE).max(places(needed.num_tables, TABLES_IN_PLACE)).max(1)
}

/// Code is the same in production and in replay, so it is deterministic always: one NaN, one relaxed SIMD.
fn config(profile: Profile, instances: u32, closer: Closer) -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        .epoch_interruption(true)
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .async_stack_size(1 << 20)
        .max_wasm_stack(512 << 10)
        .memory_init_cow(true)
        .coredump_on_trap(closer.core_dumps);
    if closer.debugger {
        config.debug_info(true).cranelift_opt_level(OptLevel::None);
    }
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        // Only counted, so that each place may have the most.
        .total_core_instances(instances * CORE_INSTANCES_MAX)
        .total_memories(instances * MEMORIES_IN_PLACE)
        .total_tables(instances * TABLES_IN_PLACE)
        .total_stacks(instances)
        .max_core_instances_per_component(CORE_INSTANCES_MAX)
        .max_memories_per_component(8)
        .max_tables_per_component(64)
        .table_elements(20_000)
        .max_unused_warm_slots(100)
        .table_keep_resident(64 << 10)
        .linear_memory_keep_resident(2 << 20);
    if pagemap_scan_is_safe() {
        pool.pagemap_scan(Enabled::Auto);
    }
    match profile {
        // The settings that no single one of helps without the others: see docs/decisions/0003-engine-profiles.md.
        Profile::Short => {
            let memory = u64::from(SHORT_MEMORY_MAX_MB) << 20;
            config
                .memory_reservation(memory)
                .memory_guard_size(0)
                .guard_before_linear_memory(false)
                .signals_based_traps(false);
            pool.max_memory_size(memory as usize);
        }
        Profile::Compute => {
            pool.max_memory_size(4 << 30);
        }
    }
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// Resetting only the pages that were written leaves a page of another instance behind when it was swapped out
/// (wasmtime pull request 14357), so it is used only where nothing can be.
fn pagemap_scan_is_safe() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() <= 1)
}
