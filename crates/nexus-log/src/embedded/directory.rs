//! The data directory: who has it, and of which format it is.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::codec::FORMAT;
use crate::contract::StorageError;

/// What a data directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A log of its own.
    Log,
    /// A copy of a log that is elsewhere, by that log's name for itself. It can be thrown away, and is made anew then.
    Copy(String),
}

impl Content {
    fn line(&self) -> String {
        match self {
            Self::Log => format!("nexus-log {FORMAT}"),
            Self::Copy(of) => format!("nexus-copy {FORMAT} {of}"),
        }
    }

    /// What a directory's line says, and its format.
    fn parse(line: &str) -> Option<(Self, u32)> {
        let mut words = line.split_whitespace();
        let (kind, format) = (words.next()?, words.next()?.parse().ok()?);
        match (kind, words.next()) {
            ("nexus-log", None) => Some((Self::Log, format)),
            ("nexus-copy", Some(of)) => Some((Self::Copy(of.to_owned()), format)),
            _ => None,
        }
    }
}

/// Of which log a directory holds a copy, if it does. Whoever opens it finds out for certain.
pub(crate) fn copied(path: &Path) -> Option<String> {
    match Content::parse(std::fs::read_to_string(path.join("FORMAT")).ok()?.trim_end())? {
        (Content::Copy(of), _) => Some(of),
        (Content::Log, _) => None,
    }
}

/// A data directory that this process has.
pub(crate) struct Directory {
    path: PathBuf,
    /// The lock is this open file's: it goes with the process, however that ends.
    _lock: File,
}

impl Directory {
    /// Makes the directory if it is not there, locks it, and checks its format.
    pub(crate) fn take(path: &Path, content: &Content) -> Result<Self, StorageError> {
        let fail = |what: &str, e: std::io::Error| StorageError::Failed(format!("{what} {}: {e}", path.display()));
        let directory = Self::reserve(path)?;
        directory.check_format(content)?;
        make(&directory.artifacts()).map_err(|e| fail("making the artifacts of", e))?;
        sync(path).map_err(|e| fail("syncing", e))?;
        Ok(directory)
    }

    /// Makes the directory if it is not there and locks it, whatever it holds.
    pub(crate) fn reserve(path: &Path) -> Result<Self, StorageError> {
        make(path).map_err(|e| StorageError::Failed(format!("making {}: {e}", path.display())))?;
        Self::lock(path)
    }

    /// Locks the directory of a store that is there, and says what it holds. Makes nothing but the lock's file; `None`:
    /// there is no store.
    pub(crate) fn take_existing(path: &Path) -> Result<Option<(Self, Content)>, StorageError> {
        let there = |name: &str| path.join(name).try_exists();
        let fail = |e: std::io::Error| StorageError::Failed(format!("looking into {}: {e}", path.display()));
        if !there("FORMAT").map_err(fail)? && !there("db").map_err(fail)? {
            return Ok(None);
        }
        let directory = Self::lock(path)?;
        Ok(directory.content()?.map(|content| (directory, content)))
    }

    fn lock(path: &Path) -> Result<Self, StorageError> {
        let fail = |what: &str, e: std::io::Error| StorageError::Failed(format!("{what} {}: {e}", path.display()));
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join("LOCK"));
        let lock = lock.map_err(|e| fail("opening the lock of", e))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StorageError::Locked { path: path.display().to_string() }),
            Err(TryLockError::Error(e)) => Err(fail("locking", e)),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The database's directory.
    pub(crate) fn database(&self) -> PathBuf {
        self.path.join("db")
    }

    /// The directory of artifacts.
    pub(crate) fn artifacts(&self) -> PathBuf {
        self.path.join("artifacts")
    }

    /// Bytes that this process may still write here.
    pub(crate) fn free_bytes(&self) -> Result<u64, StorageError> {
        let stat = rustix::fs::statvfs(&self.path)
            .map_err(|e| StorageError::Failed(format!("asking for the free space of {}: {e}", self.path.display())))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn check_format(&self, content: &Content) -> Result<(), StorageError> {
        match self.content()? {
            Some(found) if found == *content => Ok(()),
            Some(found) => Err(self.other(&found, content)),
            None => write_new(&self.path.join("FORMAT"), format!("{}\n", content.line()).as_bytes())
                .map_err(|e| StorageError::Failed(format!("the format of {}: {e}", self.path.display()))),
        }
    }

    /// What it holds; `None`: nothing yet.
    fn content(&self) -> Result<Option<Content>, StorageError> {
        let path = self.path.join("FORMAT");
        match std::fs::read_to_string(&path) {
            Ok(text) => match Content::parse(text.trim_end()) {
                Some((_, found)) if found > FORMAT => Err(StorageError::Newer { found, known: FORMAT }),
                Some((found, _)) => Ok(Some(found)),
                None => Err(StorageError::Damaged(format!("{} does not name a format", path.display()))),
            },
            // The format is written before the database: a database without one was not made by any release.
            Err(e) if e.kind() == ErrorKind::NotFound && self.database().exists() => {
                Err(StorageError::Damaged(format!("{} is missing", path.display())))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StorageError::Failed(format!("the format of {}: {e}", self.path.display()))),
        }
    }
}

impl Directory {
    /// It holds something else than is wanted.
    fn other(&self, found: &Content, wanted: &Content) -> StorageError {
        let path = self.path.display();
        StorageError::Other(match (found, wanted) {
            (Content::Copy(_), Content::Log) => format!(
                "{path} holds a copy of a log that NATS keeps: start with --nats, or choose another with --data-dir"
            ),
            (Content::Log, Content::Copy(_)) => format!(
                "{path} holds a log of its own, without NATS: start without --nats, or choose another with --data-dir"
            ),
            _ => format!(
                "{path} holds a copy of another log than the one that NATS has now: the server was emptied, or is another \
                 one. If that is meant, remove the directory: all that is in it is a copy"
            ),
        })
    }
}

/// Makes a directory, and those above it, readable by nobody else.
fn make(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file as a whole, durably: it is there with all its bytes, or not at all.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().ok_or(ErrorKind::InvalidInput)?;
    let unique = std::sync::atomic::AtomicU64::fetch_add(&TEMPORARY, 1, std::sync::atomic::Ordering::Relaxed);
    let temporary = folder.join(format!("{TEMPORARY_PREFIX}{}-{unique}", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        sync(folder)
    };
    write().inspect_err(|_| {
        // What is left over takes space and nothing else; the next opening removes it too.
        let _ = std::fs::remove_file(&temporary);
    })
}

/// Removes what an interrupted [`write_new`] left.
pub(crate) fn remove_temporary(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY_PREFIX.as_bytes()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

const TEMPORARY_PREFIX: &str = ".new-";
static TEMPORARY: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Makes the names in a directory durable.
pub(crate) fn sync(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}
