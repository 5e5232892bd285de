//! Probes that a collector loaded for this process.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{io, thread};

use nexus_ebpf_common::ABI_VERSION;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, shutdown, socket_with};
use rustix::thread::gettid;
use rustix::time::Timespec;

use crate::error::{ProbesError, SlotsFull};
use crate::probes::ProbesConfig;
use crate::profile::Sampled;
use crate::raw::SlotMap;
use crate::slots::{Detail, Level, Slots};
use crate::wire::{self, PROTOCOL, Packet, Reply, Request};

/// How long the collector may take to load the probes, which the kernel verifies.
const LOAD_PATIENCE: Duration = Duration::from_secs(30);

/// How long it may take to answer anything else.
const PATIENCE: Duration = Duration::from_secs(5);

/// What accounts say when the collector has ended.
const GONE: &str = "the collector has ended; nothing is watched until it is back";

/// A connection to a collector.
pub(crate) struct Remote {
    path: PathBuf,
    /// Held from a request to its reply.
    socket: Mutex<()>,
    fd: OwnedFd,
    /// The end of a pipe whose other end the collector closes before it takes any probe away; the kernel does, too, if it kills it.
    life: Option<OwnedFd>,
    gone: Arc<AtomicBool>,
}

impl Remote {
    /// Connects, and has the probes loaded. Also maps the slots.
    pub(crate) fn connect(path: &Path, config: &ProbesConfig) -> Result<(Self, SlotMap, Detail), ProbesError> {
        let because = |why: String| ProbesError::Collector { socket: path.to_owned(), why };
        let connected = || -> io::Result<OwnedFd> {
            let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            wire::set_patience(&fd, LOAD_PATIENCE)?;
            connect(&fd, &SocketAddrUnix::new(path)?)?;
            Ok(fd)
        };
        let fd = connected().map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    "; start it there: `nexus-collector --socket PATH`"
                }
                io::ErrorKind::PermissionDenied => "; this user must be in the socket's group",
                _ => "",
            };
            because(format!("cannot connect: {error}{advice}"))
        })?;
        let gone = Arc::new(AtomicBool::new(false));
        let mut remote = Self { path: path.to_owned(), socket: Mutex::new(()), fd, life: None, gone };
        let load = Request::Load {
            protocol: PROTOCOL,
            abi: ABI_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
            threads_max: config.threads_max,
            scheduling: config.scheduling,
        };
        let loaded = remote.ask(&load)?;
        let (Reply::Loaded { detail }, Ok([slots, life])) = (loaded.message, <[OwnedFd; 2]>::try_from(loaded.fds))
        else {
            return Err(because("it did not answer as a collector does".into()));
        };
        remote.life = Some(life);
        let map = SlotMap::new(slots.as_fd(), config.threads_max)
            .map_err(|error| ProbesError::from_io("map the slots into this process", error))?;
        wire::set_patience(&remote.fd, PATIENCE).map_err(|error| because(error.to_string()))?;
        Ok((remote, map, detail))
    }

    /// From now on, `slots` is told when the collector has ended.
    pub(crate) fn watch(&self, slots: Weak<Slots>) -> Result<(), ProbesError> {
        let failed = |error: io::Error| ProbesError::from_io("watch the connection to the collector", error);
        let fd = self.fd.try_clone().map_err(failed)?;
        let gone = Arc::clone(&self.gone);
        let watcher = thread::Builder::new().name("nexus-collector".into());
        watcher
            .spawn(move || {
                // Ends when either side closes; the collector says nothing unasked.
                while !hung_up(&fd) {}
                gone.store(true, Ordering::Release);
                if let Some(slots) = slots.upgrade() {
                    slots.set_lost(GONE);
                }
            })
            .map_err(failed)?;
        Ok(())
    }

    /// Whether the collector has ended, as far as is known.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether all probes are still there, by one system call.
    pub(crate) fn lives(&self) -> bool {
        let Some(life) = &self.life else { return false };
        let mut fds = [PollFd::new(life, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // The pipe hangs up when its other end is closed.
        !self.is_gone() && matches!(poll(&mut fds, Some(&now)), Ok(0))
    }

    /// Whether it is there now.
    pub(crate) fn answers(&self) -> bool {
        !self.is_gone() && self.calls().is_ok()
    }

    /// Notes that the current thread has a slot.
    pub(crate) fn register(&self, slot: u32) -> Result<(), SlotsFull> {
        let tid = gettid().as_raw_nonzero().get().cast_unsigned();
        self.done(&Request::Register { slot, tid }).map_err(|error| {
            tracing::debug!(%error, tid, "a thread could not be registered");
            SlotsFull::Collector
        })
    }

    /// Notes that no thread has it.
    pub(crate) fn unregister(&self, slot: u32) -> Result<(), ProbesError> {
        self.done(&Request::Unregister { slot })
    }

    /// Another level.
    pub(crate) fn set_level(&self, level: Level) -> Result<(), ProbesError> {
        self.done(&Request::Level(level))
    }

    /// System calls of this process: all of them, and those of threads without a slot.
    pub(crate) fn calls(&self) -> Result<(u64, u64), ProbesError> {
        match self.ask(&Request::Calls)?.message {
            Reply::Calls { all, other } => Ok((all, other)),
            other => Err(self.strange(&other)),
        }
    }

    /// What the probes could not do, by name.
    pub(crate) fn failures(&self) -> Result<BTreeMap<Cow<'static, str>, u64>, ProbesError> {
        match self.ask(&Request::Failures)?.message {
            Reply::Failures(failures) => Ok(failures),
            other => Err(self.strange(&other)),
        }
    }

    /// Begins a profile; `None` while another is taken.
    pub(crate) fn profile(&self, sampled: Sampled) -> Result<Option<RemoteProfile<'_>>, ProbesError> {
        match self.ask(&Request::Profile(sampled))?.message {
            Reply::Done => Ok(Some(RemoteProfile(self))),
            Reply::Busy => Ok(None),
            other => Err(self.strange(&other)),
        }
    }

    /// Ends the connection, and with it the watcher. The collector takes the probes away.
    pub(crate) fn close(&self) {
        // There is nothing to be done where it is closed already.
        let _ = shutdown(&self.fd, Shutdown::Both);
    }

    fn done(&self, request: &Request) -> Result<(), ProbesError> {
        match self.ask(request)?.message {
            Reply::Done => Ok(()),
            other => Err(self.strange(&other)),
        }
    }

    fn ask(&self, request: &Request) -> Result<Packet<Reply>, ProbesError> {
        let because = |why: String| ProbesError::Collector { socket: self.path.clone(), why };
        let _alone = self.socket.lock();
        let asked = wire::send(&self.fd, request, &[], &[]).and_then(|()| wire::receive::<Reply>(&self.fd));
        match asked {
            Ok(Some(Packet { message: Reply::Refused { why }, .. })) => Err(because(why)),
            Ok(Some(packet)) => Ok(packet),
            Ok(None) => Err(because("it has ended".into())),
            Err(error) => {
                // A reply that comes late would be taken for the next one's.
                self.close();
                let late = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                Err(because(if late { "it does not answer".into() } else { error.to_string() }))
            }
        }
    }

    fn strange(&self, reply: &Reply) -> ProbesError {
        ProbesError::Collector { socket: self.path.clone(), why: format!("it answered something else: {reply:?}") }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.close();
    }
}

/// Waits until something happens to the connection that is no message. Whether the other side has closed.
fn hung_up(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::RDHUP)];
    match poll(&mut fds, None) {
        Ok(_) => fds[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR | PollFlags::NVAL),
        Err(rustix::io::Errno::INTR) => false,
        Err(_) => true,
    }
}

/// A profile that a collector takes; dropping it ends that.
pub(crate) struct RemoteProfile<'a>(&'a Remote);

impl RemoteProfile<'_> {
    /// Samples that came since the last time; `None`: no more for now.
    pub(crate) fn fetch(&mut self) -> Result<Option<Vec<u8>>, ProbesError> {
        let packet = self.0.ask(&Request::Samples)?;
        match packet.message {
            Reply::Samples => Ok(Some(packet.bytes).filter(|bytes| !bytes.is_empty())),
            other => Err(self.0.strange(&other)),
        }
    }
}

impl Drop for RemoteProfile<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.done(&Request::EndProfile) {
            tracing::debug!(%error, "a profile ended with its collector");
        }
    }
}
