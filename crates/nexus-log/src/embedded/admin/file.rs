//! A file that is there as a whole or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{AdminError, doing};
use crate::embedded::directory;

/// Bytes that are written at once.
pub(super) const BUFFER_BYTES: usize = 1 << 20;
/// Between the file's name and what tells two of them apart.
const SUFFIX: &str = ".partial-";

/// What is done with a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and nothing is written.
    Keep,
    /// It is replaced, once the new one is whole.
    Replace,
}

/// A file on its way: readable by nobody else, beside its place, and removed if it is not finished.
pub(super) struct NewFile {
    out: BufWriter<File>,
    temporary: PathBuf,
    to: PathBuf,
    existing: Existing,
}

impl NewFile {
    /// Begins a file, and removes what an earlier attempt for the same place left.
    pub(super) fn create(to: &Path, existing: Existing) -> Result<Self, AdminError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        free(to, existing)?;
        let name = to.file_name().ok_or(ErrorKind::InvalidInput.into()).map_err(doing("making the file", to))?;
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(SUFFIX);
        remove_left_over(folder(to), &prefix).map_err(doing("tidying beside", to))?;
        let mut unique = prefix;
        unique.push(format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let temporary = to.with_file_name(unique);
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
        let file = made.map_err(doing("making", &temporary))?;
        let new = Self { out: BufWriter::with_capacity(BUFFER_BYTES, file), temporary, to: to.to_owned(), existing };
        // Who finds the lock taken leaves the file alone; it goes with the process, however that ends.
        new.out.get_ref().lock().map_err(doing("locking", &new.temporary))?;
        Ok(new)
    }

    /// All that was written up to now, to be read.
    pub(super) fn written(&mut self) -> Result<&Path, AdminError> {
        self.out.flush().map_err(doing("writing", &self.to))?;
        Ok(&self.temporary)
    }

    /// Makes it durable under its name.
    pub(super) fn finish(mut self) -> Result<(), AdminError> {
        self.out.flush().and_then(|()| self.out.get_ref().sync_all()).map_err(doing("writing", &self.to))?;
        free(&self.to, self.existing)?;
        std::fs::rename(&self.temporary, &self.to).map_err(doing("naming", &self.to))?;
        directory::sync(folder(&self.to)).map_err(doing("syncing", folder(&self.to)))
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After it was finished the name is gone. What cannot be removed now, the next attempt removes.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Whether the name may be written to.
fn free(to: &Path, existing: Existing) -> Result<(), AdminError> {
    match std::fs::symlink_metadata(to) {
        Ok(_) if existing == Existing::Keep => Err(AdminError::Exists { path: to.display().to_string() }),
        Ok(found) if found.is_dir() => Err(doing("writing", to)(ErrorKind::IsADirectory.into())),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(doing("looking at", to)(e)),
    }
}

/// Removes files of this beginning that nobody writes any more, as far as this user may: they take space, no more.
fn remove_left_over(folder: &Path, prefix: &OsStr) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let left_over = entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes())
            && entry.file_type()?.is_file()
            && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if left_over {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
