//! Processes that are watched without any runtime: by id, by cgroup, or by the name of their command.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use std::{fs, thread};

use nexus_collector::Probes;
use nexus_collector::observe::ObserveError;
use nexus_collector::otlp::observed_span;
use nexus_collector::watch::{Target, Watch, Watched, trace_of};
use nexus_core::trace::TraceContext;
use opentelemetry::KeyValue;
use opentelemetry_sdk::trace::SpanData;
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// How often it is looked for what comes and goes.
const PERIOD: Duration = Duration::from_secs(1);

/// Names of system calls that are told apart.
const NAMES_MAX: usize = 512;

/// What `--watch` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A process.
    Pid(u32),
    /// The processes of a cgroup.
    Cgroup(PathBuf),
    /// Every process whose command has this name, as `/proc/PID/comm` has it.
    Command(String),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let what = "it must be pid:NUMBER, cgroup:PATH or command:NAME";
        match text.split_once(':').ok_or(what)? {
            ("pid", id) => id.parse().map(Self::Pid).map_err(|_| format!("{id:?} is no process id")),
            ("cgroup", path) if !path.is_empty() => Ok(Self::Cgroup(path.into())),
            // The kernel keeps 15 bytes of it.
            ("command", name) if !name.is_empty() => Ok(Self::Command(name[..name.floor_char_boundary(15)].into())),
            _ => Err(what.into()),
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pid(id) => write!(f, "pid:{id}"),
            Self::Cgroup(path) => write!(f, "cgroup:{}", path.display()),
            Self::Command(name) => write!(f, "command:{name}"),
        }
    }
}

/// What processes did, added up. The numbers only grow.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// By system call: calls, errors, nanoseconds.
    pub syscalls: BTreeMap<String, [u64; 3]>,
    /// Nanoseconds on a CPU, ready, blocked, and of that for disks; absent where they are not known.
    pub times: BTreeMap<&'static str, u64>,
    /// Threads.
    pub tasks: u64,
    /// Whether nothing was missed.
    pub complete: bool,
}

impl Totals {
    fn none() -> Self {
        Self { complete: true, ..Self::default() }
    }

    /// Where one was more before, it is as much: an account of what goes on is of no one moment.
    fn at_least(&mut self, before: &Self) {
        for (name, counts) in &before.syscalls {
            let now = self.syscalls.entry(name.clone()).or_default();
            for (now, before) in now.iter_mut().zip(counts) {
                *now = (*now).max(*before);
            }
        }
        for (state, before) in &before.times {
            let now = self.times.entry(state).or_default();
            *now = (*now).max(*before);
        }
        self.tasks = self.tasks.max(before.tasks);
        self.complete &= before.complete;
    }

    fn add(&mut self, watched: &Watched) {
        let kernel = &watched.kernel;
        for (name, stats) in kernel.syscalls.iter().flatten() {
            // A program can call numbers that are no calls, as many as it likes.
            let known = self.syscalls.len() < NAMES_MAX || self.syscalls.contains_key(name.as_ref());
            let sums = self.syscalls.entry(if known { name.to_string() } else { "other".into() }).or_default();
            for (sum, more) in sums.iter_mut().zip([stats.count, stats.errors, stats.total_ns]) {
                *sum += more;
            }
        }
        let times = [
            ("on_cpu", kernel.on_cpu_ns),
            ("ready", kernel.run_queue_ns),
            ("blocked", kernel.off_cpu_ns),
            ("disk", kernel.io_wait_ns),
        ];
        for (state, ns) in times.into_iter().filter_map(|(state, ns)| Some((state, ns?))) {
            *self.times.entry(state).or_default() += ns;
        }
        self.tasks += watched.tasks;
        self.complete &= kernel.complete == Some(true);
    }
}

/// Totals by what is watched, for the metrics page.
pub type AllTotals = Arc<Mutex<BTreeMap<String, Totals>>>;

/// Something that is watched now.
struct Live<'a> {
    watch: Watch<'a>,
    name: String,
    /// Read when it was found: a process that has ended has no environment.
    trace: Option<TraceContext>,
    started: SystemTime,
}

/// One `--watch` and what came of it.
struct Group<'a> {
    wanted: Wanted,
    live: Vec<Live<'a>>,
    /// Processes that are a part of another tree: of their parent's, which is watched, or of another `--watch`.
    elsewhere: HashSet<u32>,
    finished: Totals,
    /// What was told last: less is never told after it.
    told: Totals,
    /// The one process that was wanted has ended.
    over: bool,
}

/// Watches until it is told to stop; then what still lives has its span too.
pub fn watch(
    probes: &Probes,
    wanted: Vec<Wanted>,
    totals: &AllTotals,
    spans: Option<&mpsc::Sender<SpanData>>,
    stop: &AtomicBool,
) {
    let mut groups: Vec<Group<'_>> = wanted.into_iter().map(Group::new).collect();
    while !stop.load(Ordering::Relaxed) {
        let mut ended = false;
        for group in &mut groups {
            ended |= group.look(probes, spans);
        }
        if ended {
            // What was a part of a tree that is no more is to be watched by itself.
            groups.iter_mut().for_each(|group| group.elsewhere.clear());
        }
        for group in &mut groups {
            let now = group.totals();
            totals.lock().insert(group.wanted.to_string(), now);
        }
        if let Err(error) = probes.failures() {
            tracing::warn!(%error, "the probes' own counters cannot be read");
        }
        thread::sleep(PERIOD);
    }
    for group in &mut groups {
        for live in group.live.drain(..) {
            end(live, &mut group.finished, spans);
        }
    }
}

impl<'a> Group<'a> {
    fn new(wanted: Wanted) -> Self {
        let (live, elsewhere) = (Vec::new(), HashSet::new());
        Self { wanted, live, elsewhere, finished: Totals::none(), told: Totals::none(), over: false }
    }

    /// Takes in what came, and lets go what ended; whether anything did.
    fn look(&mut self, probes: &'a Probes, spans: Option<&mpsc::Sender<SpanData>>) -> bool {
        let mut ended = false;
        let known: HashSet<u32> = self.live.iter().filter_map(|live| process_of(live.watch.target())).collect();
        let targets = match &self.wanted {
            Wanted::Pid(_) if self.over => Vec::new(),
            Wanted::Pid(id) => vec![Target::Process(*id)],
            Wanted::Cgroup(path) => vec![Target::cgroup(path)],
            Wanted::Command(name) => named(name).into_iter().map(Target::Process).collect(),
        };
        let found: HashSet<u32> = targets.iter().filter_map(process_of).collect();
        self.elsewhere.retain(|id| found.contains(id));
        for target in targets {
            if process_of(&target).is_some_and(|id| self.elsewhere.contains(&id)) {
                continue;
            }
            let known = process_of(&target).map_or(!self.live.is_empty(), |id| known.contains(&id));
            if !known {
                self.begin(target, probes);
            }
        }
        for mut live in std::mem::take(&mut self.live) {
            match live.watch.refresh() {
                Ok(false) if process_of(live.watch.target()).is_some() => {
                    self.over |= matches!(self.wanted, Wanted::Pid(_));
                    ended = true;
                    end(live, &mut self.finished, spans);
                }
                Ok(_) => self.live.push(live),
                Err(error) => {
                    tracing::warn!(%error, target = %self.wanted, "watched no more");
                    self.finished.complete &= matches!(error, ObserveError::Cgroup { .. });
                    ended = true;
                    end(live, &mut self.finished, spans);
                }
            }
        }
        ended
    }

    fn begin(&mut self, target: Target, probes: &'a Probes) {
        let name = match &target {
            Target::Process(id) => fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default().trim().to_owned(),
            Target::Cgroup(path) => path.display().to_string(),
        };
        match Watch::begin(target, probes) {
            Ok(watch) if process_of(watch.target()).is_some() && !watch.has_any() => {
                self.elsewhere.extend(process_of(watch.target()));
            }
            Ok(watch) => {
                tracing::info!(target = %self.wanted, process = process_of(watch.target()), name, "watching");
                let trace = process_of(watch.target()).and_then(trace_of);
                self.live.push(Live { watch, name, trace, started: SystemTime::now() });
            }
            // It may come.
            Err(ObserveError::NoProcess(_) | ObserveError::Cgroup { .. }) => {}
            Err(error) => {
                if self.finished.complete {
                    tracing::warn!(%error, target = %self.wanted, "cannot watch all; said once");
                }
                self.finished.complete = false;
            }
        }
    }

    fn totals(&mut self) -> Totals {
        let mut totals = self.finished.clone();
        for live in &self.live {
            match live.watch.read() {
                Ok(watched) => totals.add(&watched),
                Err(error) => {
                    tracing::warn!(%error, target = %self.wanted, "what was counted cannot be read");
                    totals.complete = false;
                }
            }
        }
        totals.at_least(&self.told);
        self.told = totals.clone();
        totals
    }
}

/// Adds up what ended, and tells of it.
fn end(live: Live<'_>, finished: &mut Totals, spans: Option<&mpsc::Sender<SpanData>>) {
    let watched = match live.watch.read() {
        Ok(watched) => watched,
        Err(error) => {
            finished.complete = false;
            return tracing::warn!(%error, name = live.name, "what was counted cannot be read");
        }
    };
    finished.add(&watched);
    let Some(spans) = spans else { return };
    let attribute = match live.watch.target() {
        Target::Process(id) => KeyValue::new("process.pid", i64::from(*id)),
        Target::Cgroup(path) => KeyValue::new("cgroup", path.display().to_string()),
    };
    let time = (live.started, watched.duration);
    let span = observed_span(live.name, live.trace.as_ref(), time, &watched.kernel, vec![attribute]);
    if spans.try_send(span).is_err() {
        tracing::warn!("a span found no room, and was dropped");
    }
}

fn process_of(target: &Target) -> Option<u32> {
    match target {
        Target::Process(id) => Some(*id),
        Target::Cgroup(_) => None,
    }
}

/// Processes of this name, but for this one.
fn named(name: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let has_name = |id: &u32| {
        fs::read_to_string(Path::new("/proc").join(id.to_string()).join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    ids.filter(|id| *id != std::process::id()).filter(has_name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_watched_is_named() {
        let check = |text: &str, wanted: Result<Wanted, ()>| {
            let parsed = text.parse::<Wanted>();
            assert_eq!(parsed.clone().map_err(drop), wanted, "{text}");
            if let Ok(parsed) = parsed {
                assert_eq!(parsed.to_string(), text);
            }
        };
        check("pid:12", Ok(Wanted::Pid(12)));
        check("cgroup:/a:b", Ok(Wanted::Cgroup("/a:b".into())));
        check("command:nginx", Ok(Wanted::Command("nginx".into())));
        for wrong in ["", "pid", "pid:x", "pid:-1", "cgroup:", "command:", "user:me"] {
            check(wrong, Err(()));
        }
        assert_eq!("command:a-name-of-many-letters".parse(), Ok(Wanted::Command("a-name-of-many-".into())));
    }
}
