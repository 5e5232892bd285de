//! Watching processes that run already: one by its id, or those of a cgroup.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nexus_core::kernel::KernelAccount;
use nexus_core::trace::TraceContext;

use crate::loaded::in_first_pid_namespace;
use crate::observe::{ObserveError, TreeGuard, Trees};
use crate::probes::Probes;
use crate::raw::monotonic_ns;

/// Where cgroups of the second version are: alone, or beside those of the first.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// How often threads are looked for until none is new: a process makes some while others are taken in.
const ROUNDS_MAX: usize = 100;

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A process, all its threads, and the children that it makes from now on.
    Process(u32),
    /// The processes of a cgroup and of those below it, and the children that they make. Of processes that are moved into it
    /// from outside, those that [`Watch::refresh`] finds.
    Cgroup(PathBuf),
}

/// Processes that are watched until this is dropped. They notice nothing, and need not end.
pub struct Watch<'a> {
    probes: &'a Probes,
    trees: &'a Trees,
    tree: TreeGuard<'a>,
    target: Target,
    /// Of a process: when it began. Another that has its id is not it.
    began: Option<u64>,
    /// Threads that ran already when they were taken in.
    taken: u64,
    /// Threads that could not be.
    missed: HashSet<u32>,
    started: Instant,
    misses_before: u64,
}

/// What watched processes did so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Since the watch began.
    pub duration: Duration,
    /// What they made the kernel do. Of calls that were under way when it began nothing is counted.
    pub kernel: KernelAccount,
    /// Their threads: those that were there, and those that came.
    pub tasks: u64,
}

impl Target {
    /// A cgroup by its path: in the file system, or as `/proc/PID/cgroup` has it (`/system.slice/nginx.service`).
    pub fn cgroup(path: &Path) -> Self {
        let below = CGROUPS.map(|root| Path::new(root).join(path.strip_prefix("/").unwrap_or(path)));
        let is_cgroup = |path: &&Path| path.join("cgroup.procs").is_file();
        let found = below.iter().map(PathBuf::as_path).chain([path]).find(is_cgroup);
        Self::Cgroup(found.unwrap_or(path).to_owned())
    }

    /// The processes that it has now.
    fn processes(&self) -> Result<Vec<u32>, ObserveError> {
        match self {
            Self::Process(id) => Ok(vec![*id]),
            Self::Cgroup(path) => {
                let mut ids = Vec::new();
                of_cgroup(path, &mut ids).map_err(|source| ObserveError::Cgroup { path: path.clone(), source })?;
                Ok(ids)
            }
        }
    }
}

fn of_cgroup(path: &Path, ids: &mut Vec<u32>) -> io::Result<()> {
    // A threaded cgroup says only at its root which processes it has: they are read there.
    match fs::read_to_string(path.join("cgroup.procs")) {
        Ok(text) => ids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match of_cgroup(&entry.path(), ids) {
                // It was removed meanwhile.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
                read => read?,
            }
        }
    }
    Ok(())
}

/// The trace that a process says it belongs to: `TRACEPARENT` and `TRACESTATE` of the environment that it was started with,
/// as OpenTelemetry has it for programs. `None` also where its environment may not be read, which takes its user or a privilege.
pub fn trace_of(process: u32) -> Option<TraceContext> {
    let environment = fs::read(format!("/proc/{process}/environ")).ok()?;
    let variable = |name: &str| {
        let value = environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(name.as_bytes()));
        value.and_then(|value| std::str::from_utf8(value).ok())
    };
    let mut trace = TraceContext::parse(variable("TRACEPARENT=")?).ok()?;
    trace.tracestate = variable("TRACESTATE=").filter(|state| state.len() <= 512).map(str::to_owned);
    Some(trace)
}

impl<'a> Watch<'a> {
    /// Begins to watch.
    pub fn begin(target: Target, probes: &'a Probes) -> Result<Self, ObserveError> {
        if !in_first_pid_namespace() {
            return Err(ObserveError::PidNamespace);
        }
        let trees = probes.trees().ok_or(ObserveError::NotLoaded)?;
        let misses_before = probes.recursion_misses()?;
        let tree = trees.begin()?;
        let began = match &target {
            Target::Process(id) => Some(state(*id, *id).ok_or(ObserveError::NoProcess(*id))?.began),
            Target::Cgroup(_) => None,
        };
        let started = Instant::now();
        let mut watch =
            Self { probes, trees, tree, target, began, taken: 0, missed: HashSet::new(), started, misses_before };
        if watch.refresh()? {
            return Ok(watch);
        }
        match watch.target {
            Target::Process(id) => Err(ObserveError::NoProcess(id)),
            // One that is empty may be filled.
            Target::Cgroup(_) => Ok(watch),
        }
    }

    /// What is watched.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether anything was taken in, or could not be. Not so where all of it is watched already: as a part of another tree.
    pub fn has_any(&self) -> bool {
        self.taken > 0 || !self.missed.is_empty()
    }

    /// Takes in what came from outside; whether any of it lives. To be called about every second for a cgroup.
    pub fn refresh(&mut self) -> Result<bool, ObserveError> {
        let mut seen = HashSet::new();
        let mut lives = false;
        for _ in 0..ROUNDS_MAX {
            let mut new = false;
            for process in self.target.processes()? {
                if self.began.is_some_and(|began| state(process, process).is_none_or(|now| now.began != began)) {
                    return Ok(false);
                }
                for tid in threads(process) {
                    if !seen.insert(tid) {
                        continue;
                    }
                    let taken = self.take(process, tid)?;
                    lives |= taken != Taken::Gone;
                    new |= taken == Taken::New;
                }
            }
            if !new {
                break;
            }
        }
        Ok(lives)
    }

    /// Makes a thread a member, if it is none.
    fn take(&mut self, process: u32, tid: u32) -> Result<Taken, ObserveError> {
        if self.trees.is_watched(tid)? {
            return Ok(Taken::Watched);
        }
        let Some(before) = state(process, tid).filter(State::lives) else { return Ok(Taken::Gone) };
        let now = monotonic_ns();
        // Where it is is known from before it was a member; the probes set it right when it leaves, or comes.
        let since = if before.runs() { Since::OnCpu(now) } else { Since::Blocked(now) };
        match self.trees.take_in(self.tree.id(), tid, since) {
            Ok(true) => {}
            // A member was its parent meanwhile.
            Ok(false) => return Ok(Taken::Watched),
            Err(error) => {
                // Said once: it is tried again each time.
                if self.missed.insert(tid) {
                    tracing::warn!(%error, process, tid, "a thread cannot be watched");
                }
                return Ok(Taken::Watched);
            }
        }
        // One that has told the probes of its end must not be a member: its id may be another's soon. One that has not tells
        // them later.
        match state(process, tid).filter(State::lives) {
            None => {
                self.trees.leave(tid)?;
                Ok(Taken::Gone)
            }
            Some(after) => {
                if before.runs() && !after.runs() {
                    self.trees.correct(tid, now)?;
                }
                self.taken += 1;
                Ok(Taken::New)
            }
        }
    }

    /// What it did up to now.
    pub fn read(&self) -> Result<Watched, ObserveError> {
        let duration = self.started.elapsed();
        let (mut kernel, tasks) = self.tree.read()?;
        let missed = self.probes.recursion_misses()?.saturating_sub(self.misses_before);
        let missed = missed + self.missed.len() as u64;
        if missed > 0 {
            kernel.lost = kernel.lost.map(|lost| lost + missed);
            kernel.complete = Some(false);
        }
        Ok(Watched { duration, kernel, tasks: tasks + self.taken })
    }
}

/// What came of a thread that was to be taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    New,
    Watched,
    Gone,
}

/// Since when, and where, a thread is as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Since {
    OnCpu(u64),
    Blocked(u64),
}

/// Threads of a process; none if it has ended.
fn threads(process: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()).collect()
}

/// What `/proc/PID/task/TID/stat` says.
struct State {
    letter: u8,
    flags: u64,
    /// When the thread began, in the system's ticks since its start.
    began: u64,
}

impl State {
    /// Whether it is able to run.
    fn runs(&self) -> bool {
        self.letter == b'R'
    }

    /// Whether it has not begun to end. One that has may still be seen for a while.
    fn lives(&self) -> bool {
        const EXITING: u64 = 0x4;
        !matches!(self.letter, b'Z' | b'X') && self.flags & EXITING == 0
    }
}

/// The state of a thread; `None` if it has gone.
fn state(process: u32, tid: u32) -> Option<State> {
    let stat = fs::read_to_string(format!("/proc/{process}/task/{tid}/stat")).ok()?;
    // Behind the name, which may have brackets and spaces: the state is field 3, the flags are field 9, the beginning is 22.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse().ok();
    Some(State { letter: *fields.first()?.as_bytes().first()?, flags: number(9)?, began: number(22)? })
}
