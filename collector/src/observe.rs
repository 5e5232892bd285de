//! Running any program under the probes, attributed by process tree.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use nexus_core::kernel::{KernelAccount, SyscallStats};
use nexus_ebpf_common::{
    BLOCKED, CallTime, ENTER_NONE, ENTER_UNKNOWN, MEMBER_ARMED, MEMBER_COUNTING, Member, READY, SchedState, TASK_TREE,
    TASK_UNTRACKED, TREES_MAX, TreeCounts, TreeKey, TreeStat,
};
use parking_lot::Mutex;
use rustix::fs::{Access, access};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::account::scheduled;
use crate::error::ProbesError;
use crate::mark::Sched;
use crate::names::slot_syscall_name;
use crate::probes::Probes;
use crate::raw::{SignalForwarding, monotonic_ns};
use crate::slots::Detail;
use crate::tasks::Tasks;
use crate::watch::Since;

/// What came of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The program's exit code; 128 + the signal's number if one ended it.
    pub exit_code: i32,
    /// From before its start until its end.
    pub duration: Duration,
    /// What it and its descendants made the kernel do.
    pub kernel: KernelAccount,
    /// Processes and threads that it made, itself included.
    pub tasks: u64,
}

/// Why a program could not be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// No program was named.
    #[error("no command given")]
    Empty,
    /// There is no such program.
    #[error("{}: command not found", .program.display())]
    NotFound {
        /// What was asked for.
        program: PathBuf,
    },
    /// It is there, but cannot be run.
    #[error("{}: cannot be run: {source}", .program.display())]
    NotExecutable {
        /// What was asked for.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such process, or it has ended.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// There is no such cgroup.
    #[error("{}: there is no such cgroup: {source}", .path.display())]
    Cgroup {
        /// Where it was looked for.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Other processes cannot be named from here.
    #[error("processes can be watched from the host's PID namespace only (`docker run --pid=host`, `hostPID: true`)")]
    PidNamespace,
    /// The probes were loaded without [`crate::ProbesConfig::observe`].
    #[error("the probes were loaded for threads only")]
    NotLoaded,
    /// As many programs as can be are being observed.
    #[error("{TREES_MAX} programs are being observed already")]
    TooMany,
    /// The probes failed.
    #[error(transparent)]
    Probes(#[from] ProbesError),
    /// The program could not be waited for.
    #[error("waiting for the program: {0}")]
    Wait(io::Error),
}

impl ObserveError {
    /// The exit code that a shell gives for this.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
            _ => 1,
        }
    }
}

/// Runs `command` (program and arguments) with this process's standard input, output and error, and counts what it and all
/// its descendants, processes and threads, make the kernel do: exactly the calls that `strace -c -f` counts.
///
/// Counting begins with the program's own `execve`, and ends when the program ends. Descendants that outlive it (daemons) are
/// counted up to then, and neither waited for nor ended. Calls that do not return (`exit`, `exit_group`, whatever `SIGKILL`
/// cut off) are not counted.
///
/// The terminal's signals reach the program directly, others are passed on; this process survives them and still reports.
/// Numbers are named by this machine's own table: those of 32-bit programs are named wrongly.
pub fn run(command: &[OsString], probes: &Probes) -> Result<Observation, ObserveError> {
    let trees = probes.trees().ok_or(ObserveError::NotLoaded)?;
    let (name, arguments) = command.split_first().ok_or(ObserveError::Empty)?;
    let program = resolve(name)?;
    let misses_before = probes.recursion_misses()?;
    let tree = trees.begin()?;
    let signals = SignalForwarding::install();

    let started = Instant::now();
    let ran = start(trees, &tree, &program, name, arguments).and_then(|mut child| {
        signals.forward_to(Some(child.id().cast_signed()));
        // Until it is waited for the child's id is its own, so that a forwarded signal cannot meet another process.
        let ended = wait_without_reaping(&child);
        signals.forward_to(None);
        ended.and_then(|()| child.wait()).map_err(ObserveError::Wait)
    });
    let duration = started.elapsed();
    drop(signals);
    let status = ran?;
    let (mut kernel, tasks) = tree.read()?;
    let missed = probes.recursion_misses()?.saturating_sub(misses_before);
    if missed > 0 {
        kernel.lost = kernel.lost.map(|lost| lost + missed);
        kernel.complete = Some(false);
    }
    // What the probes have to say belongs to this run.
    probes.failures()?;
    Ok(Observation { exit_code: exit_code(status), duration, kernel, tasks })
}

fn wait_without_reaping(child: &Child) -> io::Result<()> {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let pid = Pid::from_child(child);
    loop {
        match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}

/// Starts the program as a member of the tree.
///
/// The thread that starts it joins the tree, armed: its own calls do not count, nor those of the child before its `execve`,
/// but the child inherits the membership at its birth. So there is no moment at which the child runs unwatched.
fn start(
    trees: &Trees,
    tree: &TreeGuard<'_>,
    program: &Path,
    name: &OsStr,
    arguments: &[OsString],
) -> Result<Child, ObserveError> {
    std::thread::scope(|scope| {
        let starter = scope.spawn(|| {
            let tid = trees.join(tree.id)?;
            let child = Command::new(program).arg0(name).args(arguments).spawn();
            trees.leave(tid)?;
            child.map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => ObserveError::NotFound { program: program.into() },
                _ => ObserveError::NotExecutable { program: program.into(), source },
            })
        });
        starter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Finds the program as a shell does, so that there is exactly one `execve`.
fn resolve(name: &OsStr) -> Result<PathBuf, ObserveError> {
    if name.as_bytes().contains(&b'/') {
        return Ok(name.into());
    }
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let mut found = None;
    for folder in env::split_paths(&path) {
        let candidate = folder.join(name);
        if !candidate.is_file() {
            continue;
        }
        match access(&candidate, Access::EXEC_OK) {
            Ok(()) => return Ok(candidate),
            Err(error) => found = Some((candidate, io::Error::from(error))),
        }
    }
    match found {
        Some((program, source)) => Err(ObserveError::NotExecutable { program, source }),
        None => Err(ObserveError::NotFound { program: name.into() }),
    }
}

/// A [`Member`] as the map holds it.
pub(crate) type MemberBytes = [u8; size_of::<Member>()];
/// [`TreeCounts`] as the map holds them.
pub(crate) type CountsBytes = [u8; size_of::<TreeCounts>()];
/// A [`TreeStat`] as the map holds it.
pub(crate) type StatBytes = [u8; size_of::<TreeStat>()];

/// The maps of observed trees.
pub(crate) struct Trees {
    tasks: Arc<Tasks>,
    detail: Detail,
    maps: Mutex<Maps>,
}

struct Maps {
    members: HashMap<MapData, u32, MemberBytes>,
    ids: Array<MapData, u32>,
    counts: PerCpuArray<MapData, CountsBytes>,
    stats: PerCpuHashMap<MapData, [u8; 8], StatBytes>,
    last_id: u32,
    live: Vec<u32>,
}

/// A tree that is observed until this is dropped.
pub(crate) struct TreeGuard<'a> {
    trees: &'a Trees,
    id: u32,
}

impl Trees {
    /// Different system calls that all trees together can make.
    pub(crate) const STATS_MAX: u32 = 8192;

    pub(crate) fn new(
        tasks: Arc<Tasks>,
        members: HashMap<MapData, u32, MemberBytes>,
        ids: Array<MapData, u32>,
        counts: PerCpuArray<MapData, CountsBytes>,
        stats: PerCpuHashMap<MapData, [u8; 8], StatBytes>,
    ) -> Self {
        let maps = Maps { members, ids, counts, stats, last_id: 0, live: Vec::new() };
        Self { tasks, detail: Detail::unknown(), maps: Mutex::new(maps) }
    }

    /// Says what is watched beside system calls.
    pub(crate) fn set_detail(&mut self, detail: Detail) {
        self.detail = detail;
    }

    pub(crate) fn begin(&self) -> Result<TreeGuard<'_>, ObserveError> {
        let mut maps = self.maps.lock();
        if maps.live.len() >= TREES_MAX as usize {
            return Err(ObserveError::TooMany);
        }
        let mut id = maps.last_id;
        loop {
            id = id.wrapping_add(1);
            if id != 0 && !maps.live.iter().any(|live| live % TREES_MAX == id % TREES_MAX) {
                break;
            }
        }
        maps.last_id = id;
        let index = id % TREES_MAX;
        let cpus = maps.counts.get(&index, 0).map_err(failed("read a tree"))?.len();
        let zeros = PerCpuValues::try_from(vec![[0; size_of::<TreeCounts>()]; cpus])
            .map_err(|error| failed("prepare a tree")(MapError::IoError(error)))?;
        maps.counts.set(index, zeros, 0).map_err(failed("prepare a tree"))?;
        maps.ids.set(index, id, 0).map_err(failed("prepare a tree"))?;
        maps.live.push(id);
        Ok(TreeGuard { trees: self, id })
    }

    /// Makes the current thread an armed member.
    fn join(&self, tree: u32) -> Result<u32, ObserveError> {
        let tid = self.tasks.current().map_err(|error| ProbesError::from_io("learn this thread's id", error))?;
        let armed = bytes_of(&member(tree, MEMBER_ARMED));
        self.maps.lock().members.insert(tid, armed, 0).map_err(failed("join a tree"))?;
        self.tasks.set(tid, TASK_TREE).map_err(failed("join a tree"))?;
        Ok(tid)
    }

    /// Makes a thread that runs already a member that counts. `false`: it is one already.
    pub(crate) fn take_in(&self, tree: u32, tid: u32, since: Since) -> Result<bool, ObserveError> {
        // It may be in a call that nobody saw begin.
        let mut member = Member { enter_nr: ENTER_UNKNOWN, ..member(tree, MEMBER_COUNTING) };
        match since {
            Since::OnCpu(ns) => member.in_ts_ns = ns,
            Since::Blocked(ns) => {
                member.sched = SchedState { out_ts_ns: ns, blocked: BLOCKED, ..SchedState::default() }
            }
        }
        let mut maps = self.maps.lock();
        // What a tree that is no more left behind goes now. One of a tree that is has come meanwhile, by its birth.
        match maps.tree_of(tid)? {
            Some(tree) if maps.live.contains(&tree) => return Ok(false),
            Some(_) => maps.forget(tid)?,
            None => {}
        }
        match maps.members.insert(tid, bytes_of(&member), BPF_NOEXIST) {
            Ok(()) => {}
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {
                return Ok(false);
            }
            Err(error) => return Err(failed("join a tree")(error).into()),
        }
        drop(maps);
        if let Err(error) = self.tasks.set(tid, TASK_TREE) {
            // Out of the table's bounds: it is not to be in one and not in the other.
            self.maps.lock().forget(tid)?;
            return Err(failed("join a tree")(error).into());
        }
        Ok(true)
    }

    /// A thread that was taken in as one on its CPU is on none: it left before it was seen. Nothing happens if it has been seen
    /// since.
    pub(crate) fn correct(&self, tid: u32, in_ts_ns: u64) -> Result<(), ObserveError> {
        let mut maps = self.maps.lock();
        let bytes = match maps.members.get(&tid, 0) {
            Ok(bytes) => bytes,
            Err(MapError::KeyNotFound) => return Ok(()),
            Err(error) => return Err(failed("look a thread up")(error).into()),
        };
        let Ok(mut member) = Member::read_from_bytes(&bytes) else { return Ok(()) };
        if member.in_ts_ns == in_ts_ns && member.sched.out_ts_ns == 0 {
            member.sched = SchedState { out_ts_ns: in_ts_ns, blocked: BLOCKED, ..SchedState::default() };
            maps.members.insert(tid, bytes_of(&member), BPF_EXIST).map_err(failed("correct a member"))?;
        }
        Ok(())
    }

    /// Whether anybody watches a thread.
    pub(crate) fn is_watched(&self, tid: u32) -> Result<bool, ObserveError> {
        let watched = self.tasks.get(tid).map_err(failed("look a thread up"))?;
        if watched != TASK_TREE {
            return Ok(watched != TASK_UNTRACKED);
        }
        // One that a tree which is no more left behind goes at its next call.
        let maps = self.maps.lock();
        Ok(maps.tree_of(tid)?.is_some_and(|tree| maps.live.contains(&tree)))
    }

    pub(crate) fn leave(&self, tid: u32) -> Result<(), ObserveError> {
        self.tasks.set(tid, TASK_UNTRACKED).map_err(failed("leave a tree"))?;
        self.maps.lock().forget(tid)
    }
}

impl Maps {
    /// The tree that a thread is a member of.
    fn tree_of(&self, tid: u32) -> Result<Option<u32>, ObserveError> {
        match self.members.get(&tid, 0) {
            Ok(bytes) => Ok(Member::read_from_bytes(&bytes).ok().map(|member| member.tree)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed("look a thread up")(error).into()),
        }
    }

    /// Removes a member, unless its end has already.
    fn forget(&mut self, tid: u32) -> Result<(), ObserveError> {
        match self.members.remove(&tid) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(failed("remove a member")(error).into()),
        }
    }
}

/// Flags of an insertion: only a new one, only one that is there.
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;

/// A member that is in no call.
fn member(tree: u32, state: u32) -> Member {
    Member {
        tree,
        state,
        enter_nr: ENTER_NONE,
        reserved: 0,
        enter_ts_ns: 0,
        enter_time: CallTime::default(),
        in_ts_ns: 0,
        sched: SchedState::default(),
    }
}

fn bytes_of(member: &Member) -> MemberBytes {
    let mut bytes = [0; size_of::<Member>()];
    bytes.copy_from_slice(member.as_bytes());
    bytes
}

/// Adds the time since a member came on its CPU, or left it.
fn add_current(member: &Member, now: u64, on_cpu_ns: &mut u64, sched: &mut Sched) {
    let SchedState { out_ts_ns, wake_ts_ns, blocked, .. } = member.sched;
    if out_ts_ns == 0 {
        if member.in_ts_ns > 0 {
            *on_cpu_ns += now.saturating_sub(member.in_ts_ns);
        }
        return;
    }
    let away = now.saturating_sub(out_ts_ns);
    let ready = match blocked {
        READY => away,
        _ if wake_ts_ns >= out_ts_ns => now.saturating_sub(wake_ts_ns),
        _ => 0,
    };
    sched.run_queue_ns += ready;
    sched.off_cpu_ns += away.saturating_sub(ready);
}

impl TreeGuard<'_> {
    /// The tree's id.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The tree's account up to now, and how many threads it made.
    pub(crate) fn read(&self) -> Result<(KernelAccount, u64), ObserveError> {
        let maps = self.trees.maps.lock();
        let scheduling = self.trees.detail.scheduling.is_ok();
        let mut syscalls: BTreeMap<Cow<'static, str>, SyscallStats> = BTreeMap::new();
        for entry in maps.stats.iter() {
            let (key, values) = entry.map_err(failed("read a tree"))?;
            let Ok(key) = TreeKey::read_from_bytes(&key) else {
                continue;
            };
            if key.tree != self.id {
                continue;
            }
            let sum = syscalls.entry(slot_syscall_name(key.nr as u16)).or_default();
            for value in values.iter().filter_map(|value| TreeStat::read_from_bytes(value).ok()) {
                sum.add(&SyscallStats {
                    count: value.count,
                    errors: value.errors,
                    total_ns: value.total_ns,
                    max_ns: value.max_ns,
                    off_cpu_ns: scheduling.then_some(value.off_cpu_ns),
                    run_queue_ns: scheduling.then_some(value.run_queue_ns),
                    faster: None,
                });
            }
        }
        let counts = maps.counts.get(&(self.id % TREES_MAX), 0).map_err(failed("read a tree"))?;
        let (mut tasks, mut lost, mut on_cpu_ns, mut sched) = (0, 0, 0, Sched::default());
        for value in counts.iter().filter_map(|value| TreeCounts::read_from_bytes(value).ok()) {
            tasks += value.tasks;
            lost += value.lost;
            on_cpu_ns += value.on_cpu_ns;
            sched.add(&Sched::from(value.sched));
        }
        // What goes on now is added up by the probes when it ends.
        let now = monotonic_ns();
        // By thread: where one that is deleted meanwhile was next, the kernel begins anew.
        let members: BTreeMap<u32, MemberBytes> = maps.members.iter().filter_map(Result::ok).collect();
        for member in members.values().filter_map(|bytes| Member::read_from_bytes(bytes).ok()) {
            if member.tree == self.id && member.state == MEMBER_COUNTING {
                add_current(&member, now, &mut on_cpu_ns, &mut sched);
            }
        }
        let worked_ns = on_cpu_ns + sched.run_queue_ns + sched.off_cpu_ns;
        let account = KernelAccount {
            complete: Some(lost == 0),
            lost: Some(lost),
            system_ns: scheduling.then(|| syscalls.values().filter_map(SyscallStats::on_cpu_ns).sum()),
            syscalls: Some(syscalls),
            ..scheduled(&self.trees.detail, &sched, worked_ns)
        };
        Ok((account, tasks))
    }
}

impl Drop for TreeGuard<'_> {
    fn drop(&mut self) {
        let mut maps = self.trees.maps.lock();
        // Members that are left leave at their next call: their tree is no more.
        if let Err(error) = maps.ids.set(self.id % TREES_MAX, 0, 0) {
            tracing::warn!(%error, "could not end the observation of a process tree");
        }
        let id = self.id;
        maps.live.retain(|live| *live != id);
        let keys: Vec<[u8; 8]> = maps.stats.keys().filter_map(Result::ok).collect();
        for key in keys {
            let ours = TreeKey::read_from_bytes(&key).is_ok_and(|key| key.tree == id);
            if ours && let Err(error) = maps.stats.remove(&key) {
                tracing::warn!(%error, "could not remove the numbers of a process tree");
            }
        }
    }
}

fn failed(what: &'static str) -> impl Fn(MapError) -> ProbesError {
    move |error| ProbesError::from_map(what, error)
}
