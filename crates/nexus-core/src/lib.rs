//! What every part of Nexus speaks of: ids, events, records, outcomes, trace context, filters, schedules; and how
//! they start threads.
//!
//! No tokio and no I/O: nearly everything here is data, or a pure function of data.

pub mod cesql;
pub mod clock;
pub mod event;
pub mod filter;
pub mod function;
pub mod ids;
pub mod journal;
pub mod kernel;
pub mod mark;
pub mod outcome;
pub mod record;
pub mod schedule;
pub mod threads;
pub mod trace;
