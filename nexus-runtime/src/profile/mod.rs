//! Profiles: where a function's time on the CPU goes, in its own code, the host's and the kernel's.
//!
//! The probes leave the stacks of whoever works for an invocation when its CPU's clock strikes. Here the samples of one
//! function are gathered, given names, and written as a pprof profile, as folded stacks, or as a flame graph.

mod pprof;
mod symbols;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nexus_collector::Owner;
use nexus_core::ids::{FunctionName, Version};
use nexus_core::kernel::KernelMode;
use nexus_core::trace::{SpanId, TraceContext, TraceId};
use nexus_engine::Loaded;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use crate::kernel::Kernel;
use symbols::{Frame, Part, Symbols};

/// How often the probes' samples are fetched: well before their ring is full.
const FETCH_PERIOD: Duration = Duration::from_millis(50);

/// The source file of the frame in which an invocation's work begins: the mark of its poll, which is inlined.
const POLL: &str = "collector/src/account.rs";

/// Different stacks that one profile tells apart by their traces; it keeps twice as many.
const STACKS_MAX: usize = 100_000;

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// There are no probes.
    #[error("no profile without the kernel's account: {0}")]
    Off(String),
    /// One at a time.
    #[error("another profile is being taken; try again when it is done")]
    Busy,
    /// The probes failed.
    #[error(transparent)]
    Probes(#[from] nexus_collector::ProbesError),
    /// The flame graph could not be drawn.
    #[error("the flame graph cannot be drawn: {0}")]
    Draw(String),
}

/// What the probes know an invocation by.
pub fn owner(function: &FunctionName, version: Version, trace: &TraceContext) -> Owner {
    Owner { tag: tag(function, version), trace_id: trace.trace_id.to_bytes(), span_id: trace.span_id.to_bytes() }
}

/// A function's version as one number, never 0.
fn tag(function: &FunctionName, version: Version) -> u64 {
    xxh3_64(format!("{function}@{version}").as_bytes()).max(1)
}

/// The samples of one function, with names.
pub struct Profile {
    function: FunctionName,
    began: SystemTime,
    duration: Duration,
    hz: u32,
    symbols: Symbols,
    stacks: HashMap<Stack, u64>,
    dropped: u64,
}

/// What a profile is taken of.
pub struct Wanted {
    /// The function.
    pub function: FunctionName,
    /// Its versions.
    pub versions: Vec<Version>,
    /// Samples a second on each CPU.
    pub hz: u32,
    /// For how long.
    pub duration: Duration,
    /// Whether samples are told apart by their traces.
    pub traces: bool,
}

/// Where samples were, and for whom: the kernel's frames come before the program's, the innermost first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Stack {
    version: Version,
    trace_id: [u8; 16],
    span_id: [u8; 8],
    kernel: Vec<u64>,
    user: Vec<u64>,
}

/// Takes a profile. Blocks: to be called where that is allowed. Its guest code has no names yet: see [`Profile::name`].
pub fn take(kernel: &Kernel, wanted: &Wanted, stop: &CancellationToken) -> Result<Profile, ProfileError> {
    let Wanted { function, versions, hz, duration, traces } = wanted;
    let (mode, reason) = kernel.mode();
    let (Some(probes), false) = (kernel.probes(), mode == KernelMode::Off) else {
        return Err(ProfileError::Off(reason.unwrap_or_default().into_owned()));
    };
    if let [_, _, _, (_, Err(reason))] = probes.families() {
        return Err(ProfileError::Off(reason.into_owned()));
    }
    let tags: HashMap<u64, Version> = versions.iter().map(|v| (tag(function, *v), *v)).collect();
    let (began, started) = (SystemTime::now(), Instant::now());
    let mut stacks: HashMap<Stack, u64> = HashMap::new();
    let mut dropped = 0;
    let mut taken = probes.profile(*hz)?.ok_or(ProfileError::Busy)?;
    while started.elapsed() < *duration && !stop.is_cancelled() {
        std::thread::sleep(FETCH_PERIOD.min(duration.saturating_sub(started.elapsed())));
        taken.drain(|sample| {
            let Some(version) = tags.get(&sample.owner.tag) else { return };
            let mut stack = Stack {
                version: *version,
                trace_id: sample.owner.trace_id,
                span_id: sample.owner.span_id,
                kernel: sample.kernel.to_vec(),
                user: sample.user.to_vec(),
            };
            // Every short invocation is a trace of its own: when there are too many, where it was counts more than whose.
            if !traces || stacks.len() >= STACKS_MAX {
                (stack.trace_id, stack.span_id) = Default::default();
            }
            if stacks.len() >= 2 * STACKS_MAX && !stacks.contains_key(&stack) {
                dropped += 1;
            } else {
                *stacks.entry(stack).or_default() += 1;
            }
        })?;
    }
    drop(taken);
    let (function, symbols) = (function.clone(), Symbols::new(Vec::new()));
    Ok(Profile { function, began, duration: started.elapsed(), hz: *hz, symbols, stacks, dropped })
}

impl Profile {
    /// How many samples it has.
    pub fn samples(&self) -> u64 {
        self.stacks.values().sum()
    }

    /// The versions that samples were seen of.
    pub fn versions(&self) -> Vec<Version> {
        let mut versions: Vec<_> = self.stacks.keys().map(|stack| stack.version).collect();
        versions.sort_unstable();
        versions.dedup();
        versions
    }

    /// Gives the guest's code its names: that of the versions that were seen, as they are loaded.
    pub fn name(&mut self, loaded: &[Arc<Loaded>]) {
        self.symbols = Symbols::new(loaded.iter().flat_map(|loaded| loaded.code()).collect());
    }

    /// As pprof's protobuf, compressed, which `go tool pprof` and Pyroscope read. Samples carry the trace.
    pub fn pprof(mut self) -> std::io::Result<Vec<u8>> {
        pprof::encode(&mut self)
    }

    /// As folded stacks: a line for each, outermost frame first, and how often it was seen.
    pub fn folded(&mut self) -> String {
        let mut lines: HashMap<String, u64> = HashMap::new();
        let stacks: Vec<(Stack, u64)> = self.stacks.iter().map(|(stack, count)| (stack.clone(), *count)).collect();
        for (stack, count) in stacks {
            let frames = self.frames(&stack);
            // Semicolons part the frames.
            let names =
                frames.iter().rev().flat_map(|(_, frames)| frames.iter().rev()).map(|f| f.name.replace(';', ":"));
            let line = std::iter::once(self.function.to_string()).chain(names).collect::<Vec<_>>().join(";");
            *lines.entry(line).or_default() += count;
        }
        let mut lines: Vec<_> = lines.into_iter().map(|(line, count)| format!("{line} {count}\n")).collect();
        lines.sort();
        lines.concat()
    }

    /// As a flame graph in SVG.
    pub fn svg(&mut self) -> Result<Vec<u8>, ProfileError> {
        let folded = self.folded();
        let mut options = inferno::flamegraph::Options::default();
        let dropped = if self.dropped > 0 { format!(", {} more found no room", self.dropped) } else { String::new() };
        let seconds = self.duration.as_secs_f64();
        options.title = format!("{}: {} samples in {seconds:.1} s{dropped}", self.function, self.samples());
        options.count_name = "samples".into();
        let mut svg = Vec::new();
        inferno::flamegraph::from_lines(&mut options, folded.lines(), &mut svg)
            .map_err(|e| ProfileError::Draw(e.to_string()))?;
        Ok(svg)
    }

    /// The frames of a stack with their addresses, innermost first; several of one address where code was inlined.
    fn frames(&mut self, stack: &Stack) -> Vec<(u64, Vec<Frame>)> {
        let mut frames: Vec<_> = stack.kernel.iter().map(|address| (*address, self.symbols.kernel(*address))).collect();
        for (depth, address) in stack.user.iter().enumerate() {
            // All but the innermost are where a call returns to, which may be the next function's already.
            let at = if depth == 0 { *address } else { address.saturating_sub(1) };
            frames.push((at, self.symbols.user(at)));
        }
        let guest = |(_, frames): &(u64, Vec<Frame>)| frames.iter().any(|f| f.part == Part::Guest);
        let poll =
            |(_, frames): &(u64, Vec<Frame>)| frames.iter().any(|f| f.file.as_ref().is_some_and(|f| f.ends_with(POLL)));
        // What lies under every stack says nothing: how a guest is entered, and how its future comes to be polled.
        let outermost = frames.iter().rposition(guest).map(|at| at + 1).or_else(|| frames.iter().position(poll));
        frames.truncate(outermost.unwrap_or(frames.len()));
        frames
    }
}

impl Stack {
    fn trace(&self) -> Option<(TraceId, SpanId)> {
        Some((TraceId::from_bytes(self.trace_id)?, SpanId::from_bytes(self.span_id)?))
    }
}
