//! From a file into a store.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::Summary;
use super::backup;
use super::build::Builder;
use super::error::{AdminError, doing};
use super::file::BUFFER_BYTES;
use super::format::Entry;
use super::reader::{Next, Reader};
use super::watch::{Pace, Phase, Watch};
use crate::contract::StorageError;
use crate::embedded::directory::{self, Content, Directory};
use crate::embedded::store::Store;

/// Where a restore builds, inside the data directory: so that it works where that is a mount, which cannot be renamed
/// over.
const STAGING: &str = ".restoring";
/// What is moved up when it is whole. Without the last of them no release opens the directory.
const PARTS: [&str; 3] = ["db", "artifacts", "FORMAT"];

/// Reads a backup from one end to the other and says what it holds, if it is whole.
///
/// # Errors
///
/// [`AdminError::NotWhole`] if any byte of it is not what was written, [`AdminError::NewerFile`] if a later release
/// wrote it, [`AdminError::Stopped`] if `watch` says so, [`AdminError::Io`] if it cannot be read.
pub fn verify(from_file: &Path, watch: Watch<'_>) -> Result<Summary, AdminError> {
    whole(&File::open(from_file).map_err(doing("opening", from_file))?, from_file, watch)
}

/// Makes a store from a backup, in a directory that is empty or not there. The whole file is checked before anything
/// is made. The store is built aside and durable before it is moved to its place, so that a restore that was cut
/// short leaves nothing that could be taken for a store, and the next one begins anew. Events keep their places, and
/// new ones go on from there.
///
/// # Errors
///
/// As [`verify`]; [`AdminError::NotEmpty`] if something is in the directory, [`StorageError::Locked`] if a process
/// has it, [`StorageError::Failed`] and [`AdminError::Io`] if the system says no, as when the disk is full.
pub fn restore(from_file: &Path, data_dir: &Path, watch: Watch<'_>) -> Result<Summary, AdminError> {
    empty(data_dir)?;
    let mut file = File::open(from_file).map_err(doing("opening", from_file))?;
    let summary = whole(&file, from_file, watch)?;
    file.rewind().map_err(doing("reading", from_file))?;

    let directory = Directory::reserve(data_dir)?;
    // Now that nobody else can begin to use it.
    empty(data_dir)?;
    tidy(data_dir)?;
    let staging = Staging { data_dir: directory.path() };
    fill(&staging, &mut reader(&file, from_file)?, &summary, watch)?;
    staging.finish()?;
    Ok(summary)
}

fn reader<'a>(file: &'a File, path: &Path) -> Result<Reader<BufReader<&'a File>>, AdminError> {
    Reader::new(BufReader::with_capacity(BUFFER_BYTES, file), path.display().to_string())
}

fn whole(file: &File, path: &Path, watch: Watch<'_>) -> Result<Summary, AdminError> {
    let total = file.metadata().map_err(doing("looking at", path))?.len();
    let mut reader = reader(file, path)?;
    let mut pace = Pace::new(watch, Phase::File, total)?;
    while let Next::Entry(_) = reader.next()? {
        pace.tick(reader.at())?;
    }
    pace.tell(reader.at())?;
    let Some((made_at, counters)) = reader.head() else { return Err(reader.not_whole("it has no head")) };
    Ok(backup::summary(made_at, &counters, reader.counts(), reader.at()))
}

/// Builds everything aside.
fn fill<R: Read>(
    staging: &Staging<'_>,
    reader: &mut Reader<R>,
    summary: &Summary,
    watch: Watch<'_>,
) -> Result<(), AdminError> {
    let Summary { events, outcomes, registry, parked, dead_letters, artifacts, .. } = *summary;
    let total = events + outcomes + registry + parked + dead_letters + artifacts;
    let mut pace = Pace::new(watch, Phase::Events, total)?;
    let directory = Directory::take(&staging.path(), &Content::Log)?;
    let store = Store::open(&directory.database())?;
    let mut builder = Builder::new(&store);
    let mut artifact: Option<Artifact> = None;
    loop {
        match reader.next()? {
            Next::Entry(Entry::Head { .. } | Entry::End { .. }) => continue,
            Next::Entry(Entry::Registry { revision, key, value }) => builder.registry(revision, key, value)?,
            Next::Entry(Entry::Parked(parked)) => builder.parked(&parked)?,
            Next::Entry(Entry::Dead(letter)) => builder.dead(&letter)?,
            Next::Entry(Entry::Event { seq, json }) => builder.event(seq, json)?,
            Next::Entry(Entry::Outcome { seq, n, json }) => builder.outcome(seq, n, json)?,
            Next::Entry(Entry::Artifact { digest, .. }) => {
                artifact.take().map(Artifact::finish).transpose()?;
                artifact = Some(Artifact::create(&directory.artifacts(), digest)?);
            }
            Next::Entry(Entry::Bytes(bytes)) => {
                if let Some(artifact) = &mut artifact {
                    artifact.write(bytes)?;
                }
            }
            Next::End => break,
        }
        pace.one()?;
    }
    artifact.map(Artifact::finish).transpose()?;
    let Some((_, counters)) = reader.head() else { return Err(reader.not_whole("it has no head")) };
    builder.finish(&counters)?;
    directory::sync(&directory.artifacts()).map_err(doing("syncing", &directory.artifacts()))?;
    directory::sync(directory.path()).map_err(doing("syncing", directory.path()))
}

/// An artifact that is being written.
struct Artifact {
    path: PathBuf,
    file: File,
    digest: [u8; 32],
    found: Sha256,
}

impl Artifact {
    fn create(folder: &Path, digest: [u8; 32]) -> Result<Self, AdminError> {
        let path = folder.join(backup::name(digest));
        let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(doing("making", &path))?;
        Ok(Self { path, file, digest, found: Sha256::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), AdminError> {
        self.found.update(bytes);
        self.file.write_all(bytes).map_err(doing("writing", &self.path))
    }

    fn finish(self) -> Result<(), AdminError> {
        if self.found.finalize() != self.digest.into() {
            let name = backup::name(self.digest);
            return Err(StorageError::Damaged(format!("artifact {name} has other bytes than its digest")).into());
        }
        self.file.sync_all().map_err(doing("syncing", &self.path))
    }
}

/// The place aside; what is in it goes when it is not finished.
struct Staging<'a> {
    data_dir: &'a Path,
}

impl Staging<'_> {
    fn path(&self) -> PathBuf {
        self.data_dir.join(STAGING)
    }

    /// Moves all to its place.
    fn finish(self) -> Result<(), AdminError> {
        for part in PARTS {
            let (from, to) = (self.path().join(part), self.data_dir.join(part));
            std::fs::rename(&from, &to).map_err(doing("moving", &from))?;
            // In this order also after a power loss.
            directory::sync(self.data_dir).map_err(doing("syncing", self.data_dir))?;
        }
        match self.data_dir.canonicalize().map_err(doing("looking at", self.data_dir))?.parent() {
            Some(parent) => directory::sync(parent).map_err(doing("syncing", parent)),
            None => Ok(()),
        }
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // What cannot be removed now, the next attempt removes, or says why not.
        let _ = tidy(self.data_dir);
    }
}

/// Whether nothing is in a directory but what is not a store's: its lock, and what a restore left that was cut short.
fn empty(data_dir: &Path) -> Result<(), AdminError> {
    let entries = match std::fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(doing("looking into", data_dir)(e)),
    };
    let half_moved = half_moved(data_dir);
    for entry in entries {
        let name = entry.map_err(doing("looking into", data_dir))?.file_name().to_string_lossy().into_owned();
        // The last is made by file systems.
        let ours = ["LOCK", STAGING, "lost+found"].contains(&&*name) || half_moved && PARTS.contains(&&*name);
        if !ours {
            return Err(AdminError::NotEmpty { path: data_dir.display().to_string(), found: name });
        }
    }
    Ok(())
}

/// Whether a restore was cut short while it moved parts up: the format was still aside. No store is ever without it.
fn half_moved(data_dir: &Path) -> bool {
    data_dir.join(STAGING).join("FORMAT").exists() && !data_dir.join("FORMAT").exists()
}

/// Removes what a restore left that was cut short.
fn tidy(data_dir: &Path) -> Result<(), AdminError> {
    let mut left = vec![data_dir.join(STAGING)];
    if half_moved(data_dir) {
        // First, as they are known by what is aside.
        left.splice(0..0, ["db", "artifacts"].map(|part| data_dir.join(part)));
    }
    for path in left {
        match std::fs::remove_dir_all(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(doing("removing", &path)(e)),
        }
    }
    Ok(())
}
