//! Why it was not done.

use std::fmt::Display;
use std::io;
use std::path::Path;

use crate::contract::StorageError;

/// Why a backup, restore or check was not done. Nothing half-made is left under the name that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The store's own error: in use by another process, of a later release, damaged.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Nothing is there to back up or to check.
    #[error("there is no store in {path}; name the data directory of a server that has run")]
    NoStore {
        /// The data directory.
        path: String,
    },
    /// A copy of a log that NATS keeps.
    #[error(
        "{path} holds a copy of a log that NATS keeps: the NATS cluster is what is to be backed up. All that is in \
         this directory can be removed, and is made anew from there"
    )]
    Copy {
        /// The data directory.
        path: String,
    },
    /// The file is there already.
    #[error("{path} is there already; choose another name, or say that it is to be replaced")]
    Exists {
        /// The file.
        path: String,
    },
    /// The directory to restore into holds something.
    #[error("{path} is not empty ({found} is in it); restore into a new directory, or move away what is there")]
    NotEmpty {
        /// The data directory.
        path: String,
        /// One of the names in it.
        found: String,
    },
    /// The file is not what a backup wrote.
    #[error("{path} is not a whole backup: {why}, at byte {at}; use another copy of it")]
    NotWhole {
        /// The file.
        path: String,
        /// Where.
        at: u64,
        /// What is wrong there.
        why: String,
    },
    /// The file was written by a later release.
    #[error("{path} is a backup of format {found}, this release reads up to {known}; run a later release")]
    NewerFile {
        /// The file.
        path: String,
        /// What the file says.
        found: u32,
        /// What is known here.
        known: u32,
    },
    /// The operating system said no.
    #[error("{what}: {source}")]
    Io {
        /// What was to be done.
        what: String,
        /// Its answer.
        source: io::Error,
    },
    /// Whoever watched it said that it is to stop.
    #[error("it was stopped before it was done")]
    Stopped,
}

/// Says of an error what was to be done with which file.
pub(super) fn doing(what: impl Display, path: &Path) -> impl FnOnce(io::Error) -> AdminError {
    move |source| AdminError::Io { what: format!("{what} {}", path.display()), source }
}
