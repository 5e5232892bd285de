//! What is done with a store from outside of it: a backup, a restore, a check.
//!
//! * [`backup`](fn@backup): everything of a store that no process has open, in one file; [`Running`]: the same of one
//!   that is open.
//! * [`verify`]: whether such a file is whole. [`restore`](fn@restore): a store anew from it.
//! * [`check`](fn@check): whether all that is in a store fits together.
//!
//! All of them block, stream, and hold no more in memory than one value and what the server itself would. They tell how
//! far they are, and stop when they are told to. The file's layout is described in `format`.
//!
//! | file              | what it has                                                       |
//! |-------------------|-------------------------------------------------------------------|
//! | `format`          | the file of a backup, byte by byte                                |
//! | `writer`, `reader`| its records, with their checksums                                 |
//! | `order`           | which record may follow which                                     |
//! | `file`            | a file that is there as a whole or not at all                     |
//! | `merged`          | events, each with what came of it, in the order of places         |
//! | `backup`          | from a store into a file                                          |
//! | `running`         | from a store that is open                                         |
//! | `received`        | one that another process made                                     |
//! | `restore`, `build`| from a file into a store                                          |
//! | `check`           | the contradictions in a store                                     |
//! | `watch`, `error`  | how far it is, and why it was not done                            |

mod backup;
mod build;
mod check;
mod error;
mod file;
mod format;
mod merged;
mod order;
mod reader;
mod received;
mod restore;
mod running;
mod watch;
mod writer;

use std::path::Path;

use jiff::Timestamp;
use nexus_core::ids::Seq;

use super::directory::{Content, Directory};
use super::journal;
use super::store::Store;
use crate::contract::StorageError;

pub use backup::backup;
pub use check::{Problem, Report, check};
pub use error::AdminError;
pub use file::Existing;
pub use received::Received;
pub use restore::{restore, verify};
pub use running::Running;
pub use watch::{Phase, Step, Watch};

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// When it was made.
    pub made_at: Timestamp,
    /// The last event's place; 0, if there has never been one.
    pub head: Seq,
    /// Events.
    pub events: u64,
    /// Outcomes.
    pub outcomes: u64,
    /// Registry entries.
    pub registry: u64,
    /// Deliveries that wait to be tried again.
    pub parked: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Artifacts.
    pub artifacts: u64,
    /// The file's size.
    pub file_bytes: u64,
}

/// Takes the directory of a store that is there and that no process has open.
fn take(data_dir: &Path) -> Result<Directory, AdminError> {
    let path = || data_dir.display().to_string();
    match Directory::take_existing(data_dir)? {
        Some((_, Content::Copy(_))) => Err(AdminError::Copy { path: path() }),
        // The library writes this file last: without it nothing can have been acknowledged.
        Some((directory, Content::Log)) if directory.database().join("version").exists() => Ok(directory),
        _ => Err(AdminError::NoStore { path: path() }),
    }
}

/// Opens its database, as the server does: a torn tail of the journal is cut off with a warning.
fn open(directory: &Directory) -> Result<Store, StorageError> {
    journal::check(&directory.database())?;
    Store::open(&directory.database())
}
