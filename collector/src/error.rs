//! What can go wrong with the probes, and what to do about it.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

use crate::btf::BtfError;

/// Why the probes are not there. Everything else of Nexus works without them.
#[derive(Debug, thiserror::Error)]
pub enum ProbesError {
    /// The kernel does not let this process use eBPF.
    #[error(
        "no permission to {what}: the probes need CAP_BPF and CAP_PERFMON (or root), \
         for instance `setcap cap_bpf,cap_perfmon+ep` on the program: {source}"
    )]
    NoPrivilege {
        /// What was refused.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not describe its types, which attribution by process tree needs.
    #[error("the kernel has no BTF at {path}: it must be built with CONFIG_DEBUG_INFO_BTF: {source}")]
    NoBtf {
        /// Where it was looked for.
        path: &'static str,
        /// The answer.
        source: io::Error,
    },
    /// The kernel's types are not what the probes know.
    #[error("the kernel's types are not as the probes need them: {0}")]
    Btf(#[from] BtfError),
    /// The kernel is too old, or built without something.
    #[error("this kernel cannot {what}: Linux 5.17 or newer with CONFIG_BPF_SYSCALL is needed: {source}")]
    Unsupported {
        /// What it cannot do.
        what: String,
        /// Its answer.
        source: io::Error,
    },
    /// The kernel's verifier refused a program: a defect of Nexus with this kernel, worth reporting.
    #[error("the kernel's verifier refused the probe {program}; please report this with the end of its log:\n{log}")]
    Verifier {
        /// The program.
        program: &'static str,
        /// The end of the verifier's log.
        log: String,
    },
    /// The object is not one of this version's probes.
    #[error("the probes' object is not usable: {0}")]
    Object(#[from] ObjectError),
    /// A configured number is out of its bounds.
    #[error("{name} is {value}, but must be within {min}..={max}")]
    Config {
        /// Which.
        name: &'static str,
        /// What it is.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// This process is in a PID namespace of its own, and the kernel is too old to tell it the ids that it uses itself.
    #[error(
        "this process is in a PID namespace of its own (a container?), where its threads have other ids than in the kernel, \
         which only Linux 5.10 and newer translate: run it in the host's (`docker run --pid=host`, `hostPID: true`): {source}"
    )]
    PidNamespace {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The collector that was asked to load them cannot be reached, has ended, or says no.
    #[error("the collector at {}: {why}", .socket.display())]
    Collector {
        /// Where it listens.
        socket: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The probes run, but do not count right.
    #[error("the probes counted {counted} of {expected} calls of the self-test")]
    SelfTest {
        /// Calls that were made.
        expected: u64,
        /// Calls that were counted.
        counted: u64,
    },
    /// Anything else.
    #[error("could not {what}: {message}")]
    Other {
        /// What was tried.
        what: String,
        /// What came of it.
        message: String,
    },
}

/// Why an object does not hold the probes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ObjectError {
    /// It is not an ELF file for the kernel's virtual machine, or it is cut off.
    #[error("it is no eBPF object: {0}")]
    Malformed(String),
    /// It does not say which version it is of.
    #[error("it has no {0}")]
    NoVersion(&'static str),
    /// It is of another version than this program.
    #[error(
        "it speaks version {found} of the probes' ABI, and this program version {expected}: build both from the same source"
    )]
    Version {
        /// Its version.
        found: u32,
        /// Ours.
        expected: u32,
    },
}

/// All slots are taken: the thread's calls cannot be attributed.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SlotsFull {
    /// As many threads as were configured have one.
    #[error("all {threads_max} slots for threads are taken")]
    Full {
        /// How many there are.
        threads_max: u32,
    },
    /// The thread cannot be given one now: it is in a marked section of other probes, or it is ending.
    #[error("this thread cannot take a slot now")]
    Busy,
    /// The kernel refused to note the thread.
    #[error("the thread's id {tid} is beyond what the probes were loaded for (kernel.pid_max was raised since)")]
    TidOutOfRange {
        /// The thread.
        tid: u32,
    },
    /// The collector does not take the thread: it has ended, most likely.
    #[error("the collector does not answer, or does not know this thread")]
    Collector,
    /// The kernel did not tell by which id it knows the thread.
    #[error("the kernel does not tell this thread's id (errno {errno})")]
    IdUnknown {
        /// Its answer.
        errno: i32,
    },
}

impl SlotsFull {
    pub(crate) fn refused(error: io::Error) -> Self {
        Self::IdUnknown { errno: error.raw_os_error().unwrap_or(0) }
    }
}

/// Lines of a verifier's log that are worth showing: the verdict is at the end.
const VERIFIER_LINES: usize = 20;

impl ProbesError {
    pub(crate) fn from_io(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NoPrivilege { what, source },
            Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOENT) => Self::Unsupported { what, source },
            _ => Self::Other { what, message: source.to_string() },
        }
    }

    pub(crate) fn from_map(what: impl Into<String>, error: MapError) -> Self {
        match error {
            MapError::CreateError { name, io_error } => Self::from_io(format!("create the map {name}"), io_error),
            MapError::SyscallError(error) => Self::from_io(what, error.io_error),
            MapError::IoError(error) => Self::from_io(what, error),
            other => Self::Other { what: what.into(), message: other.to_string() },
        }
    }

    pub(crate) fn from_program(program: &'static str, error: ProgramError) -> Self {
        match error {
            // The verifier answers EINVAL or EACCES and says why; a missing privilege is EPERM and says nothing.
            ProgramError::LoadError { io_error, verifier_log } => {
                let log = verifier_log.to_string();
                if io_error.raw_os_error() == Some(libc::EPERM) || log.trim().is_empty() {
                    return Self::from_io(format!("load the probe {program}"), io_error);
                }
                let lines: Vec<&str> = log.lines().collect();
                let end = &lines[lines.len().saturating_sub(VERIFIER_LINES)..];
                Self::Verifier { program, log: end.join("\n") }
            }
            ProgramError::SyscallError(error) => Self::from_io(format!("attach the probe {program}"), error.io_error),
            ProgramError::MapError(error) => Self::from_map(format!("load the probe {program}"), error),
            ProgramError::IOError(error) => Self::from_io(format!("load the probe {program}"), error),
            other => Self::Other { what: format!("load the probe {program}"), message: other.to_string() },
        }
    }

    pub(crate) fn from_ebpf(error: EbpfError) -> Self {
        match error {
            EbpfError::MapError(error) => Self::from_map("create a map", error),
            EbpfError::ProgramError(error) => Self::from_program("object", error),
            EbpfError::ParseError(error) => Self::Object(ObjectError::Malformed(error.to_string())),
            other => Self::Other { what: "load the probes".into(), message: other.to_string() },
        }
    }
}
