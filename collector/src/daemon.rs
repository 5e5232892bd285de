//! The collector as a service: it holds the privilege that the probes need, and loads them for runtimes that have none.
//!
//! Each runtime gets probes of its own. It is handed the map of its slots, and nothing else; what else there is to be done
//! with the probes it asks for. When either side ends, its probes are gone.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nexus_ebpf_common::{ABI_VERSION, Sample, TASK_UNTRACKED};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, Resource, Rlimit, geteuid, getrlimit, pidfd_open, setrlimit};
use rustix::time::Timespec;
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::embedded;
use crate::error::ProbesError;
use crate::loaded::{Loaded, in_first_pid_namespace};
use crate::probes::ProbesConfig;
use crate::profile::Ring;
use crate::threads;
use crate::wire::{self, PACKET_MAX, PROTOCOL, Reply, Request};

/// How long a client may take to say what it wants.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// Connections beyond the runtimes that are served: of those who have not yet said what they want.
const CALLERS_MAX: usize = 32;

/// The same for one whose user is not served.
const STRANGER_PATIENCE: Duration = Duration::from_millis(100);

/// Numbers of file descriptors that are kept for the ends of pipes; see [`life_pipe`].
const LIFE_FDS: u64 = 256;

/// How long a client may take to read a reply.
const SEND_PATIENCE: Duration = Duration::from_secs(5);

/// How often everybody looks whether to stop, and at what the probes have to say.
const PERIOD: Duration = Duration::from_millis(250);

/// The least time between two changes of a runtime's level: each makes all CPUs of the host wait for each other.
const LEVEL_PERIOD: Duration = Duration::from_millis(100);

/// Samples in one packet.
const SAMPLES_MAX: usize = (PACKET_MAX - 1024) / size_of::<Sample>();

/// What the collector offers, and to whom.
#[derive(Clone, Debug)]
pub struct DaemonConfig {
    /// Where it listens: a Unix socket, that only its owner and its group may open.
    pub socket: PathBuf,
    /// Users whose processes are served, beside root's and those of the collector's own user.
    pub users: Vec<u32>,
    /// Runtimes that are served at a time.
    pub runtimes_max: usize,
    /// Slots that each may ask for: 36 KiB of kernel memory each, which a client may keep after its end.
    pub threads_max: u32,
}

/// Why there is no collector.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Threads are known by their ids in the first PID namespace.
    #[error("the collector must run in the host's PID namespace (`docker run --pid=host`, `hostPID: true`)")]
    PidNamespace,
    /// The probes cannot be loaded.
    #[error(transparent)]
    Probes(#[from] ProbesError),
    /// There is one already.
    #[error("another collector listens at {}", .0.display())]
    Taken(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen at {}: {source}", .socket.display())]
    Socket {
        /// Where.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What the collector has done.
#[derive(Debug, Default)]
pub struct DaemonStats {
    /// Runtimes that are served now.
    pub runtimes: AtomicUsize,
    /// Their threads that have slots.
    pub threads: AtomicUsize,
    /// Runtimes that were served since the start.
    pub runtimes_total: AtomicU64,
    /// Connections that were refused: of another user, of another version, with something that is no message, or too many.
    pub refused_total: AtomicU64,
}

/// A collector that listens.
pub struct Daemon {
    listener: OwnedFd,
    config: DaemonConfig,
    stats: Arc<DaemonStats>,
}

impl Daemon {
    /// Sees that the probes can be loaded, and listens.
    pub fn bind(config: DaemonConfig) -> Result<Self, DaemonError> {
        if !in_first_pid_namespace() {
            return Err(DaemonError::PidNamespace);
        }
        Loaded::load(embedded::object(), &ProbesConfig { threads_max: 1, observe: false, ..ProbesConfig::default() })?;
        // Each runtime takes some forty, and one for each CPU.
        let files = getrlimit(Resource::Nofile);
        if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }) {
            tracing::warn!(%error, "the limit of open files could not be raised");
        }
        let listener = listen_at(&config.socket)?;
        Ok(Self { listener, config, stats: Arc::default() })
    }

    /// What it has done, kept up to date.
    pub fn stats(&self) -> Arc<DaemonStats> {
        Arc::clone(&self.stats)
    }

    /// Serves until `stop` is true, and ends within some seconds then: all probes are gone, and when this is dropped the socket is.
    pub fn run(&self, stop: &Arc<AtomicBool>) {
        let mut sessions: Vec<thread::JoinHandle<()>> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            sessions.retain(|session| !session.is_finished());
            if !wait_for(&[&self.listener])[0] {
                continue;
            }
            let accepted = accept_with(&self.listener, SocketFlags::CLOEXEC);
            let socket = match accepted {
                Ok(socket) => socket,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    thread::sleep(PERIOD);
                    continue;
                }
            };
            if sessions.len() >= self.config.runtimes_max + CALLERS_MAX {
                self.stats.refused_total.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let (config, stats, stop) = (self.config.clone(), self.stats(), Arc::clone(stop));
            let session = thread::Builder::new().name("session".into()).spawn(move || {
                if let Err(why) = serve(&socket, &config, &stats, &stop) {
                    stats.refused_total.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(why, "refused a connection");
                    // It may be gone, or not one of ours.
                    let _ = wire::send(&socket, &Reply::Refused { why }, &[], &[]);
                }
            });
            match session {
                Ok(session) => sessions.push(session),
                Err(error) => tracing::warn!(%error, "cannot serve a connection"),
            }
        }
        for session in sessions {
            if session.join().is_err() {
                tracing::error!("a session panicked");
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.config.socket) {
            tracing::warn!(%error, socket = %self.config.socket.display(), "could not remove the socket");
        }
    }
}

/// Makes the socket. One that nobody listens at is left over, and replaced.
fn listen_at(path: &Path) -> Result<OwnedFd, DaemonError> {
    let failed = |source: io::Error| DaemonError::Socket { socket: path.to_owned(), source };
    let socket = || socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        match connect(socket().map_err(|error| failed(error.into()))?, &address) {
            Err(rustix::io::Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed)?,
            Ok(()) => return Err(DaemonError::Taken(path.to_owned())),
            Err(error) => return Err(failed(error.into())),
        }
    }
    let listener = socket().map_err(|error| failed(error.into()))?;
    bind(&listener, &address).map_err(|error| failed(error.into()))?;
    // Until here only the umask kept others out; each client is looked at, too.
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    listen(&listener, 16).map_err(|error| failed(error.into()))?;
    Ok(listener)
}

/// Waits a while for something to read. Which of them have something, or have ended.
fn wait_for<const N: usize>(fds: &[&OwnedFd; N]) -> [bool; N] {
    let mut polled = fds.map(|fd| PollFd::new(fd, PollFlags::IN | PollFlags::RDHUP));
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(PERIOD.subsec_nanos()) };
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) => std::array::from_fn(|at| !polled[at].revents().is_empty()),
        // A signal: the next round comes soon.
        Err(_) => [false; N],
    }
}

/// A pipe by which a client knows that its probes are there: its writing end is closed before they go.
///
/// If this process is killed, the kernel closes what it had open from the largest number down. So that end gets a number that is
/// larger than those of the probes.
fn life_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(1 << 16);
    let large = i32::try_from(limit.saturating_sub(LIFE_FDS)).unwrap_or(i32::MAX);
    let held = fcntl_dupfd_cloexec(&write, large)?;
    Ok((read, held))
}

/// One client, from its first message to its end. `Err`: it is not served, and why.
fn serve(socket: &OwnedFd, config: &DaemonConfig, stats: &DaemonStats, stop: &AtomicBool) -> Result<(), String> {
    let peer = socket_peercred(socket).map_err(|error| format!("the kernel does not say who it is: {error}"))?;
    let (process, user) = (peer.pid.as_raw_nonzero().get().cast_unsigned(), peer.uid.as_raw());
    let served = user == 0 || user == geteuid().as_raw() || config.users.contains(&user);
    let patience = if served { HELLO_PATIENCE } else { STRANGER_PATIENCE };
    // Tells when the process ends, also where a child of it has the connection still.
    let life = pidfd_open(peer.pid, PidfdFlags::empty()).map_err(|error| format!("it has ended already: {error}"))?;
    // It is of the process that connected only if that has not ended since.
    if !is_owned_by(process, user) {
        let why = "it has ended already, or runs with another user's rights or with capabilities of its file";
        return Err(format!("process {process} is not user {user}'s: {why}"));
    }
    wire::set_patience(socket, SEND_PATIENCE).map_err(|error| error.to_string())?;
    let asked = Instant::now();
    while !wait_for(&[socket])[0] {
        if asked.elapsed() > patience || stop.load(Ordering::Relaxed) {
            return Err("it says nothing".into());
        }
    }
    // Taken before it is decided who it is: what lies unread would break the connection, and the answer with it.
    let first = wire::receive::<Request>(socket);
    if !served {
        return Err(format!("user {user} is not served here; the collector must be told: `--user {user}`"));
    }
    let Some(first) = first.map_err(|error| error.to_string())? else {
        // Somebody looked whether there is a collector.
        return Ok(());
    };
    let Request::Load { protocol, abi, version, threads_max, scheduling } = first.message else {
        return Err("its first message must be `load`".into());
    };
    let ours = env!("CARGO_PKG_VERSION");
    if (protocol, abi) != (PROTOCOL, ABI_VERSION) {
        return Err(format!(
            "it is of version {version} (protocol {protocol}, ABI {abi}), and the collector of {ours} (protocol \
             {PROTOCOL}, ABI {ABI_VERSION}): install both from the same release"
        ));
    }
    if threads_max > config.threads_max {
        let most = config.threads_max;
        return Err(format!(
            "it asks for {threads_max} slots; the collector must be told: `--threads-max`, which is {most}"
        ));
    }
    let _place = Place::take(stats, config.runtimes_max)
        .ok_or_else(|| format!("{} runtimes are served already, which is as many as can be", config.runtimes_max))?;
    let wanted = ProbesConfig { threads_max, scheduling, observe: false, ..ProbesConfig::default() };
    let (loaded, slots) = Loaded::load(embedded::object(), &wanted).map_err(|error| error.to_string())?;
    loaded.watch_process(process).map_err(|error| error.to_string())?;
    let (life_read, life_held) = life_pipe().map_err(|error| format!("no pipe: {error}"))?;
    let reply = Reply::Loaded { detail: loaded.detail.clone() };
    wire::send(socket, &reply, &[], &[slots.fd().as_fd(), life_read.as_fd()]).map_err(|error| error.to_string())?;
    drop((slots, life_read));
    stats.runtimes_total.fetch_add(1, Ordering::Relaxed);
    tracing::info!(process, user, version, threads_max, "serving a runtime");
    let mut session = Session {
        loaded: &loaded,
        process,
        user,
        threads_max,
        threads: HashMap::new(),
        ring: None,
        level_set: None,
        stats,
    };
    let why = session.run(socket, &life, stop);
    // Before any probe goes.
    drop(life_held);
    stats.threads.fetch_sub(session.threads.len(), Ordering::Relaxed);
    tracing::info!(process, why, "a runtime is served no more");
    Ok(())
}

/// A place among the runtimes that are served, given back when dropped.
struct Place<'a>(&'a DaemonStats);

impl<'a> Place<'a> {
    fn take(stats: &'a DaemonStats, max: usize) -> Option<Self> {
        let more = |runtimes| (runtimes < max).then_some(runtimes + 1);
        stats.runtimes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(stats))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.runtimes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A runtime that is served.
struct Session<'a> {
    loaded: &'a Loaded,
    process: u32,
    user: u32,
    threads_max: u32,
    /// Its threads, as the kernel knows them, by slot.
    threads: HashMap<u32, u32>,
    ring: Option<Ring<'a>>,
    /// When it last asked for another level.
    level_set: Option<Instant>,
    stats: &'a DaemonStats,
}

impl Session<'_> {
    /// Answers until one side ends. Why it did.
    fn run(&mut self, socket: &OwnedFd, life: &OwnedFd, stop: &AtomicBool) -> String {
        loop {
            if stop.load(Ordering::Relaxed) {
                return "the collector is stopping".into();
            }
            let [asks, ended] = wait_for(&[socket, life]);
            if ended {
                return "it has ended".into();
            }
            if !asks {
                self.loaded.flush();
                continue;
            }
            let request = match wire::receive::<Request>(socket) {
                Ok(Some(packet)) => packet.message,
                Ok(None) => return "it has closed the connection".into(),
                Err(error) => return error.to_string(),
            };
            let mut bytes = Vec::new();
            let reply = self.answer(request, &mut bytes).unwrap_or_else(|why| Reply::Refused { why });
            if let Err(error) = wire::send(socket, &reply, &bytes, &[]) {
                return error.to_string();
            }
        }
    }

    fn answer(&mut self, request: Request, bytes: &mut Vec<u8>) -> Result<Reply, String> {
        let failed = |error: ProbesError| error.to_string();
        match request {
            Request::Load { .. } => return Err("the probes are loaded already".into()),
            Request::Register { slot, tid } => self.register(slot, tid)?,
            Request::Unregister { slot } => {
                if let Some(tid) = self.threads.remove(&slot) {
                    self.stats.threads.fetch_sub(1, Ordering::Relaxed);
                    self.loaded.tasks.set(tid, TASK_UNTRACKED).map_err(|error| error.to_string())?;
                }
            }
            Request::Level(level) => {
                let early = self.level_set.map(|at| LEVEL_PERIOD.saturating_sub(at.elapsed()));
                thread::sleep(early.unwrap_or_default());
                self.level_set = Some(Instant::now());
                self.loaded.set_level(level).map_err(failed)?;
            }
            Request::Calls => {
                let (all, other) = self.loaded.calls().map_err(failed)?;
                return Ok(Reply::Calls { all, other });
            }
            Request::Failures => {
                let failures = self.loaded.failures().map_err(failed)?;
                return Ok(Reply::Failures(failures.into_iter().map(|(name, n)| (name.into(), n)).collect()));
            }
            Request::Profile(sampled) => {
                if self.ring.is_some() {
                    return Ok(Reply::Busy);
                }
                self.ring = Ring::begin(self.loaded, sampled).map_err(failed)?;
            }
            Request::Samples => {
                let ring = self.ring.as_mut().ok_or("no profile is being taken")?;
                let mut samples = 0;
                while samples < SAMPLES_MAX && ring.next(|sample| bytes.extend(without_kernel_addresses(sample))) {
                    samples += 1;
                }
                return Ok(Reply::Samples);
            }
            Request::EndProfile => self.ring = None,
        }
        Ok(Reply::Done)
    }

    fn register(&mut self, slot: u32, tid: u32) -> Result<(), String> {
        if slot >= self.threads_max {
            return Err(format!("there is no slot {slot}: there are {}", self.threads_max));
        }
        if self.threads.contains_key(&slot) {
            return Err(format!("slot {slot} is a thread's already"));
        }
        let process = self.process;
        let found = threads::kernel_id(process, tid);
        let found = found.map_err(|error| format!("the threads of process {process} cannot be read: {error}"))?;
        let tid = found.ok_or_else(|| format!("process {process} has no thread {tid}"))?;
        // The thread itself asks: what it had before, or another one with its id, it has no more.
        let before = self.threads.len();
        self.threads.retain(|_, known| *known != tid);
        self.stats.threads.fetch_sub(before - self.threads.len(), Ordering::Relaxed);
        self.loaded.tasks.set(tid, slot + 1).map_err(|error| error.to_string())?;
        // It may have ended while it was looked up, or be another user's program by now.
        if !Path::new(&format!("/proc/{process}/task/{tid}")).exists() || !is_owned_by(process, self.user) {
            self.loaded.tasks.set(tid, TASK_UNTRACKED).map_err(|error| error.to_string())?;
            return Err(format!("thread {tid} has ended, or process {process} runs another user's program now"));
        }
        self.threads.insert(slot, tid);
        self.stats.threads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Whether a process belongs to a user; not so for one that runs a program with another user's rights.
fn is_owned_by(process: u32, user: u32) -> bool {
    fs::metadata(format!("/proc/{process}")).is_ok_and(|found| found.uid() == user)
}

/// A sample as it may leave this process. Where the kernel's code lies is a secret to whoever has no privilege: it keeps one
/// frame of it, 0. What is behind the frames was another sample's.
fn without_kernel_addresses(bytes: &[u8]) -> Vec<u8> {
    let Ok(mut sample) = Sample::read_from_bytes(bytes) else {
        tracing::error!(bytes = bytes.len(), "a sample of another size than expected");
        return Vec::new();
    };
    sample.kernel.fill(0);
    if sample.kernel_bytes > 0 {
        sample.kernel_bytes = 8;
    }
    let frames = usize::try_from(sample.user_bytes / 8).unwrap_or(0).min(sample.user.len());
    sample.user[frames..].fill(0);
    sample.as_bytes().to_vec()
}
