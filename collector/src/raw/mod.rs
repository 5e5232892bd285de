//! The one module with unsafe code: the mapping of the slots, calls of `bpf()` that aya lacks, signal handlers, and the
//! time-stamp counter.
//!
//! What it offers is safe to use.

#![allow(unsafe_code, reason = "this is the module of the crate that may")]

mod bpf;
mod clock;
mod context;
mod mapping;
mod signals;

pub(crate) use bpf::{recursion_misses, run_here};
pub(crate) use clock::{Rate, clock_is_read_without_a_call, monotonic_ns, ticks};
pub(crate) use context::{Ids, publish, publish_process};
pub(crate) use mapping::{SlotCells, SlotMap, StatCells};
pub(crate) use signals::SignalForwarding;
