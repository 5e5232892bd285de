//! User side of the probes.
//!
//! [`Probes::load`] attaches them. Threads of the runtime get slots ([`Slots::register_thread`]); what is polled in a
//! [`Tracked`] or run in [`Account::enter`] is counted on that [`Account`], what the threads do otherwise on the runtime
//! ([`Slots::runtime_totals`]). [`observe::run`] counts any program by its process tree. [`probe_status`] says what works.

mod account;
mod attach;
mod attributes;
mod btf;
pub mod context;
mod daemon;
mod embedded;
mod error;
mod imports;
mod loaded;
mod mark;
mod messages;
mod names;
pub mod observe;
pub mod otlp;
mod probes;
mod profile;
mod raw;
mod remote;
mod slots;
mod status;
mod tasks;
mod threads;
mod tracked;
pub mod watch;
mod wire;

pub use account::{Account, KernelSource, SLOW_CALLS_MAX};
pub use attributes::kernel_attributes;
pub use btf::BtfError;
pub use daemon::{Daemon, DaemonConfig, DaemonError, DaemonStats};
pub use embedded::object;
pub use error::{ObjectError, ProbesError, SlotsFull};
pub use imports::ImportId;
pub use mark::crossed;
pub use names::syscall_name;
pub use nexus_ebpf_common::{ABI_SYMBOL, ABI_VERSION, Owner};
pub use probes::{Ledger, Probes, ProbesConfig};
pub use profile::{Profile, Sampled, Stacks};
pub use slots::{Level, Slots};
pub use status::{collector_status, probe_status};
pub use tracked::Tracked;
