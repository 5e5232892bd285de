//! The contradictions in a store.
//!
//! Read in this order: the events with what came of them (`scan`, `deliveries`), each against the counters, its block,
//! its index entries, what is parked and what was given up; then the index (`index`), each entry against the events;
//! then the artifacts (`artifacts`). The index is in another order than the events, and looking each event up would
//! read the store in leaps; so entries are counted first, and looked up only if there are more than events ask for.

mod artifacts;
mod deliveries;
mod index;
mod report;
mod scan;

use std::path::Path;

use super::error::AdminError;
use super::watch::Watch;
use crate::contract::StorageError;
use crate::embedded::store::Store;

pub use report::{Problem, Report};

/// Reads all of a store that no process has open, and reports everything in it that contradicts something else.
/// Changes nothing that is stored; but opening it cuts a torn tail off the journal and may merge files, as the
/// server's opening does.
///
/// What is not a problem: entries for places that retention took (they are never read again, and counted in
/// [`Report::left_over`]); an emptied block; a block that is known to hold more types than are in it.
///
/// # Errors
///
/// [`StorageError::Locked`] if a process has the store open, [`StorageError::Newer`] if a later release wrote it,
/// [`AdminError::NoStore`] if there is none, [`AdminError::Copy`] if it is a copy of what NATS keeps,
/// [`AdminError::Stopped`] if `watch` says so, [`StorageError::Failed`] and [`AdminError::Io`] if the system says no.
/// That it is damaged is no error, but what it reports.
pub fn check(data_dir: &Path, watch: Watch<'_>) -> Result<Report, AdminError> {
    let directory = super::take(data_dir)?;
    let mut report = Report::default();
    match super::open(&directory) {
        Ok(store) => database(&store, &mut report, watch)?,
        Err(error) => report.unreadable("the database", error)?,
    }
    artifacts::check(&directory.artifacts(), &mut report, watch)?;
    Ok(report)
}

fn database(store: &Store, report: &mut Report, watch: Watch<'_>) -> Result<(), AdminError> {
    let known = scan::Known::load(store, report)?;
    let seen = scan::Scan::new(store, &known, report).run(watch)?;
    index::check(store, &known, &seen, report, watch)
}

/// The value of a read; `None` where what was read is damaged, which is reported.
fn readable<T>(report: &mut Report, place: &str, read: Result<T, StorageError>) -> Result<Option<T>, AdminError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) => report.unreadable(place, error).map(|()| None),
    }
}
