//! The data directory: who has it, and of which format it is.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::codec::FORMAT;
use crate::contract::StorageError;

/// A data directory that this process has.
pub(super) struct Directory {
    path: PathBuf,
    /// The lock is this open file's: it goes with the process, however that ends.
    _lock: File,
}

impl Directory {
    /// Makes the directory if it is not there, locks it, and checks its format.
    pub(super) fn take(path: &Path) -> Result<Self, StorageError> {
        let fail = |what: &str, e: std::io::Error| StorageError::Failed(format!("{what} {}: {e}", path.display()));
        make(path).map_err(|e| fail("making", e))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join("LOCK"));
        let lock = lock.map_err(|e| fail("opening the lock of", e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StorageError::Locked { path: path.display().to_string() }),
            Err(TryLockError::Error(e)) => return Err(fail("locking", e)),
        }
        let directory = Self { path: path.to_owned(), _lock: lock };
        directory.check_format()?;
        make(&directory.artifacts()).map_err(|e| fail("making the artifacts of", e))?;
        sync(path).map_err(|e| fail("syncing", e))?;
        Ok(directory)
    }

    /// The database's directory.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join("db")
    }

    /// The directory of artifacts.
    pub(super) fn artifacts(&self) -> PathBuf {
        self.path.join("artifacts")
    }

    /// Bytes that this process may still write here.
    pub(super) fn free_bytes(&self) -> Result<u64, StorageError> {
        let stat = rustix::fs::statvfs(&self.path)
            .map_err(|e| StorageError::Failed(format!("asking for the free space of {}: {e}", self.path.display())))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn check_format(&self) -> Result<(), StorageError> {
        let path = self.path.join("FORMAT");
        let fail = |e: std::io::Error| StorageError::Failed(format!("the format of {}: {e}", self.path.display()));
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let found = text.strip_prefix("nexus-log ").and_then(|n| n.trim_end().parse::<u32>().ok());
                match found {
                    Some(found) if found > FORMAT => Err(StorageError::Newer { found, known: FORMAT }),
                    Some(_) => Ok(()),
                    None => Err(StorageError::Damaged(format!("{} does not name a format", path.display()))),
                }
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                // The format is written before the database: a database without one was not made by any release.
                if self.database().exists() {
                    return Err(StorageError::Damaged(format!("{} is missing", path.display())));
                }
                write_new(&path, format!("nexus-log {FORMAT}\n").as_bytes()).map_err(fail)
            }
            Err(e) => Err(fail(e)),
        }
    }
}

/// Makes a directory, and those above it, readable by nobody else.
fn make(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file as a whole, durably: it is there with all its bytes, or not at all.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
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
pub(super) fn remove_temporary(folder: &Path) -> std::io::Result<()> {
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
pub(super) fn sync(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}
