//! Profiles: where a function is on a CPU, where it is blocked, or where it touches new memory, in its own code, the host's and
//! the kernel's.
//!
//! The probes leave the stacks of whoever works for an invocation when its CPU's clock strikes, and so on. Here the samples of
//! one function are gathered, given names, and written as a pprof profile, as folded stacks, or as a flame graph.

mod lines;
mod pprof;
mod symbols;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use nexus_collector::{Owner, Sampled};
use nexus_core::ids::{FunctionName, Version};
use nexus_core::kernel::KernelMode;
use nexus_core::trace::{SpanId, TraceContext, TraceId};
use nexus_engine::Loaded;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use crate::kernel::Kernel;
use symbols::{Frame, GuestCode, Part, Symbols};

/// How often the probes' samples are fetched: well before their ring is full, by clocks that strike a thousand times a second.
const FETCH_PERIOD: Duration = Duration::from_millis(50);

/// The same of kinds that come in bursts. What comes faster is counted as dropped.
const BURST_FETCH_PERIOD: Duration = Duration::from_millis(2);

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
    sampled: Sampled,
    symbols: Symbols,
    stacks: HashMap<Stack, Weight>,
    dropped: u64,
}

/// How much one stack weighs.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    samples: u64,
    /// Time blocked.
    off_cpu_ns: u64,
}

/// What a profile is taken of.
pub struct Wanted {
    /// The function.
    pub function: FunctionName,
    /// Its versions.
    pub versions: Vec<Version>,
    /// What leaves a sample.
    pub sampled: Sampled,
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
    blocked_in: Option<Cow<'static, str>>,
    kernel: Vec<u64>,
    user: Vec<u64>,
}

/// Takes a profile. Blocks: to be called where that is allowed. Its guest code has no names yet: see [`Profile::name`].
pub fn take(kernel: &Kernel, wanted: &Wanted, stop: &CancellationToken) -> Result<Profile, ProfileError> {
    let Wanted { function, versions, sampled, duration, traces } = wanted;
    let (mode, reason) = kernel.mode();
    // Blocking and page faults are what is left out first.
    let enough = match mode {
        KernelMode::Full => true,
        KernelMode::Counts => matches!(sampled, Sampled::Clock { .. }),
        KernelMode::Off => false,
    };
    let (Some(probes), true) = (kernel.probes(), enough) else {
        return Err(ProfileError::Off(reason.unwrap_or_default().into_owned()));
    };
    let needed = match sampled {
        Sampled::Clock { .. } => "profiles",
        Sampled::Blocked { .. } => "scheduling",
        Sampled::PageFaults => "page faults",
    };
    for (family, state) in probes.families() {
        if let (true, Err(reason)) = (family == needed, state) {
            return Err(ProfileError::Off(reason.into_owned()));
        }
    }
    let tags: HashMap<u64, Version> = versions.iter().map(|v| (tag(function, *v), *v)).collect();
    let (began, started) = (SystemTime::now(), Instant::now());
    let mut stacks: HashMap<Stack, Weight> = HashMap::new();
    let mut dropped = 0;
    let mut taken = probes.profile(*sampled)?.ok_or(ProfileError::Busy)?;
    let full = || probes.failures().map(|failures| failures.get("samples_full").copied().unwrap_or(0));
    let full_before = full()?;
    let period = if matches!(sampled, Sampled::Clock { .. }) { FETCH_PERIOD } else { BURST_FETCH_PERIOD };
    while started.elapsed() < *duration && !stop.is_cancelled() {
        std::thread::sleep(period.min(duration.saturating_sub(started.elapsed())));
        taken.drain(|sample| {
            let Some(version) = tags.get(&sample.owner.tag) else { return };
            let mut stack = Stack {
                version: *version,
                trace_id: sample.owner.trace_id,
                span_id: sample.owner.span_id,
                blocked_in: None,
                kernel: sample.kernel.to_vec(),
                user: sample.user.to_vec(),
            };
            let mut off_cpu_ns = 0;
            if let Some((call, ns)) = sample.blocked {
                (stack.blocked_in, off_cpu_ns) = (Some(call), ns);
            }
            // Every short invocation is a trace of its own: when there are too many, where it was counts more than whose.
            if !traces || stacks.len() >= STACKS_MAX {
                (stack.trace_id, stack.span_id) = Default::default();
            }
            if stacks.len() >= 2 * STACKS_MAX && !stacks.contains_key(&stack) {
                dropped += 1;
            } else {
                let weight = stacks.entry(stack).or_default();
                weight.samples += 1;
                weight.off_cpu_ns += off_cpu_ns;
            }
        })?;
    }
    drop(taken);
    // Of all functions: whose they were is not known.
    dropped += full()?.saturating_sub(full_before);
    let (function, symbols) = (function.clone(), Symbols::new());
    Ok(Profile { function, began, duration: started.elapsed(), sampled: *sampled, symbols, stacks, dropped })
}

impl Profile {
    /// How many samples it has.
    pub fn samples(&self) -> u64 {
        self.stacks.values().map(|weight| weight.samples).sum()
    }

    /// The versions that samples were seen of.
    pub fn versions(&self) -> Vec<Version> {
        let mut versions: Vec<_> = self.stacks.keys().map(|stack| stack.version).collect();
        versions.sort_unstable();
        versions.dedup();
        versions
    }

    /// Gives the guest's code its names: that of the versions that were seen, as they are loaded, with the bytes that each was
    /// compiled from, which may have its lines.
    pub fn name(&mut self, loaded: &[(Arc<Loaded>, Bytes)]) {
        for (loaded, bytes) in loaded {
            let code = GuestCode::new(loaded, bytes);
            for address in self.stacks.keys().flat_map(user_addresses) {
                if let Some(frames) = code.frames(address) {
                    self.symbols.set(address, frames);
                }
            }
        }
    }

    /// As pprof's protobuf, compressed, which `go tool pprof` and Pyroscope read. Samples carry the trace.
    pub fn pprof(mut self) -> std::io::Result<Vec<u8>> {
        pprof::encode(&mut self)
    }

    /// What the numbers of folded stacks and of the flame graph count.
    fn unit(&self) -> &'static str {
        match self.sampled {
            Sampled::Clock { .. } => "samples",
            Sampled::Blocked { .. } => "microseconds",
            Sampled::PageFaults => "page faults",
        }
    }

    /// As folded stacks: a line for each, outermost frame first, and how often it was seen; of [`Sampled::Blocked`] the
    /// microseconds.
    pub fn folded(&mut self) -> String {
        let mut lines: HashMap<String, u64> = HashMap::new();
        let stacks: Vec<(Stack, Weight)> = self.stacks.iter().map(|(stack, weight)| (stack.clone(), *weight)).collect();
        for (stack, weight) in stacks {
            let count = if stack.blocked_in.is_some() { weight.off_cpu_ns / 1000 } else { weight.samples };
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
        options.count_name = self.unit().into();
        let mut svg = Vec::new();
        inferno::flamegraph::from_lines(&mut options, folded.lines(), &mut svg)
            .map_err(|e| ProfileError::Draw(e.to_string()))?;
        Ok(svg)
    }

    /// The frames of a stack with their addresses, innermost first; several of one address where code was inlined.
    fn frames(&mut self, stack: &Stack) -> Vec<(u64, Vec<Frame>)> {
        let blocked = stack.blocked_in.iter().map(|call| {
            let name = format!("{call} [blocked]");
            // No code lies there: it stands for the call.
            (0, vec![Frame { name, file: None, line: 0, part: Part::Kernel }])
        });
        let kernel = stack.kernel.iter().map(|address| (*address, self.symbols.kernel(*address)));
        let mut frames: Vec<_> = blocked.chain(kernel).collect();
        frames.extend(user_addresses(stack).map(|at| (at, self.symbols.user(at))));
        let guest = |(_, frames): &(u64, Vec<Frame>)| frames.iter().any(|f| f.part == Part::Guest);
        let poll =
            |(_, frames): &(u64, Vec<Frame>)| frames.iter().any(|f| f.file.as_ref().is_some_and(|f| f.ends_with(POLL)));
        // What lies under every stack says nothing: how a guest is entered, and how its future comes to be polled.
        let outermost = frames.iter().rposition(guest).map(|at| at + 1).or_else(|| frames.iter().position(poll));
        frames.truncate(outermost.unwrap_or(frames.len()));
        frames
    }
}

/// Where the program was, and where what called it was.
fn user_addresses(stack: &Stack) -> impl Iterator<Item = u64> {
    // All but the innermost are where a call returns to, which may be the next function's already.
    stack.user.iter().enumerate().map(|(depth, at)| if depth == 0 { *at } else { at.saturating_sub(1) })
}

impl Stack {
    fn trace(&self) -> Option<(TraceId, SpanId)> {
        Some((TraceId::from_bytes(self.trace_id)?, SpanId::from_bytes(self.span_id)?))
    }
}
