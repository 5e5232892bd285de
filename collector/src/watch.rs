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
    /// Threads that ran already when they were taken in.
    taken: u64,
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
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
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
        let mut watch = Self { probes, trees, tree, target, taken: 0, started: Instant::now(), misses_before };
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

    /// Takes in what came from outside; whether any of it lives. To be called about every second for a cgroup.
    pub fn refresh(&mut self) -> Result<bool, ObserveError> {
        let mut seen = HashSet::new();
        let mut lives = false;
        for _ in 0..ROUNDS_MAX {
            let mut new = false;
            for process in self.target.processes()? {
                for (tid, runs) in threads(process) {
                    lives = true;
                    if seen.insert(tid) && self.take(process, tid, runs)? {
                        self.taken += 1;
                        new = true;
                    }
                }
            }
            if !new {
                break;
            }
        }
        Ok(lives)
    }

    /// Makes a thread a member; whether it was none.
    fn take(&self, process: u32, tid: u32, runs: bool) -> Result<bool, ObserveError> {
        if self.trees.is_watched(tid)? {
            return Ok(false);
        }
        // One that does not run has been on its CPU for an unknown time, and is seen when it comes.
        self.trees.take_in(self.tree.id(), tid, if runs { monotonic_ns() } else { 0 })?;
        // If it ended before it was a member, it must not be one: its id may be another's.
        if !Path::new(&format!("/proc/{process}/task/{tid}")).exists() {
            self.trees.leave(tid)?;
            return Ok(false);
        }
        Ok(true)
    }

    /// What it did up to now. The numbers only grow.
    pub fn read(&self) -> Result<Watched, ObserveError> {
        let duration = self.started.elapsed();
        let (mut kernel, tasks) = self.tree.read()?;
        let missed = self.probes.recursion_misses()?.saturating_sub(self.misses_before);
        if missed > 0 {
            kernel.lost = kernel.lost.map(|lost| lost + missed);
            kernel.complete = Some(false);
        }
        Ok(Watched { duration, kernel, tasks: tasks + self.taken })
    }
}

/// Threads of a process, and whether each is able to run; none if it has ended.
fn threads(process: u32) -> Vec<(u32, bool)> {
    let Ok(entries) = fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let state = |tid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{process}/task/{tid}/stat")).ok()?;
        // Behind the name, which may have brackets and spaces.
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    };
    ids.filter_map(|tid| match state(&tid)? {
        // Ended, and not yet waited for.
        'Z' | 'X' => None,
        state => Some((tid, state == 'R')),
    })
    .collect()
}
