//! From a store into a file.

use std::fs::File;
use std::io::{Read as _, Write};
use std::path::Path;

use fjall::{Readable as _, Slice, Snapshot};
use jiff::Timestamp;
use nexus_core::clock::{Clock as _, SystemClock};
use nexus_core::ids::Seq;
use sha2::{Digest as _, Sha256};

use super::Summary;
use super::error::{AdminError, doing};
use super::file::{Existing, NewFile};
use super::format::{CHUNK_BYTES, Counts, Entry};
use super::merged::{Item, Merged};
use super::watch::{Pace, Phase, Watch};
use super::writer::Writer;
use crate::contract::StorageError;
use crate::embedded::codec;
use crate::embedded::state::{COUNTERS_KEY, Counters};
use crate::embedded::store::{Store, failed};

/// Writes everything of a store that no process has open into one file, readable by its owner alone and durable at
/// return. While it is written it has another name beside, so that under its own it is whole or not there. A store
/// that is damaged is refused, rather than left out in part: [`check`](super::check()) says what is wrong with it.
///
/// # Errors
///
/// [`StorageError::Locked`] if a process has the store open, [`StorageError::Newer`] if a later release wrote it,
/// [`StorageError::Damaged`] if something in it cannot be read; [`AdminError::NoStore`] if there is none,
/// [`AdminError::Copy`] if it is a copy of what NATS keeps, [`AdminError::Exists`] if the file is there and is to be
/// kept, [`AdminError::Stopped`] if `watch` says so, [`AdminError::Io`] if the system says no.
pub fn backup(data_dir: &Path, to_file: &Path, existing: Existing, watch: Watch<'_>) -> Result<Summary, AdminError> {
    let directory = super::take(data_dir)?;
    let file = NewFile::create(to_file, existing)?;
    let store = super::open(&directory)?;
    let (file, summary) = write(&store, &directory.artifacts(), file, watch)?;
    file.finish()?;
    Ok(summary)
}

/// Writes everything of a store as it is at this moment, whatever is written to it meanwhile.
pub(super) fn write<W: Write>(
    store: &Store,
    artifacts: &Path,
    out: W,
    watch: Watch<'_>,
) -> Result<(W, Summary), AdminError> {
    let at = store.db.snapshot();
    let counters = match at.get(&store.meta, COUNTERS_KEY).map_err(failed)? {
        Some(value) => Counters::decode(&value)?,
        None => Counters::default(),
    };
    // Begun at once: what retention drops in the meantime stays readable through it.
    let merged = Merged::new(store, &at, counters.floor);
    let made_at = SystemClock.now();
    let mut writer = Writer::new(out)?;
    writer.entry(&Entry::Head { made_at, counters })?;
    small(store, &at, counters.floor, &mut writer)?;
    events(merged, &counters, &mut writer, watch)?;
    // An artifact is there before any registry entry names it, and stays: those that are there now are enough.
    all_artifacts(artifacts, &mut writer, watch)?;
    let (out, counts, file_bytes) = writer.finish()?;
    Ok((out, summary(made_at, &counters, counts, file_bytes)))
}

/// What a file holds.
pub(super) fn summary(made_at: Timestamp, counters: &Counters, counts: Counts, file_bytes: u64) -> Summary {
    let Counts { registry, parked, dead, events, outcomes, artifacts } = counts;
    let head = Seq(counters.next_seq.0.saturating_sub(1));
    Summary { made_at, head, events, outcomes, registry, parked, dead_letters: dead, artifacts, file_bytes }
}

/// The registry, what is parked, and what was given up.
fn small<W: Write>(store: &Store, at: &Snapshot, floor: Seq, writer: &mut Writer<W>) -> Result<(), AdminError> {
    for entry in at.prefix(&store.meta, b"r") {
        let (key, value) = entry.into_inner().map_err(failed)?;
        let revision = u64::from_be_bytes(codec::bytes(&value, 0)?);
        let key = std::str::from_utf8(&key[1..])
            .map_err(|_| StorageError::Damaged("a registry key is no text".to_owned()))?;
        writer.entry(&Entry::Registry { revision, key, value: &value[8..] })?;
    }
    for entry in at.prefix(&store.meta, b"p") {
        let (key, value) = entry.into_inner().map_err(failed)?;
        writer.entry(&Entry::Parked(codec::decode_parked(&key, &value)?))?;
    }
    for entry in at.range(&store.meta, codec::tagged(b'd', floor.0)..codec::tagged(b'd' + 1, 0)) {
        let (key, value) = entry.into_inner().map_err(failed)?;
        writer.entry(&Entry::Dead(codec::decode_dead(&key, &value)?))?;
    }
    Ok(())
}

fn events<W: Write>(
    mut merged: Merged,
    counters: &Counters,
    writer: &mut Writer<W>,
    watch: Watch<'_>,
) -> Result<(), AdminError> {
    let total = counters.next_seq.0.saturating_sub(counters.floor.0);
    let mut pace = Pace::new(watch, Phase::Events, total)?;
    while let Some(item) = merged.next()? {
        let seq = match &item {
            Item::Event((key, value)) => event(key, value, writer)?,
            Item::Outcome((key, value)) => outcome(key, value, writer)?,
        };
        pace.tick(seq.0.saturating_sub(counters.floor.0))?;
    }
    pace.tell(total)
}

fn event<W: Write>(key: &Slice, value: &Slice, writer: &mut Writer<W>) -> Result<Seq, AdminError> {
    let seq = codec::seq_at(key, 0)?;
    // A backup that cannot be restored is none.
    codec::decode_event(seq, value)?;
    writer.entry(&Entry::Event { seq, json: codec::event_json(value)? })?;
    Ok(seq)
}

fn outcome<W: Write>(key: &Slice, value: &Slice, writer: &mut Writer<W>) -> Result<Seq, AdminError> {
    let (seq, n) = codec::unpair(key)?;
    let outcome = codec::decode_outcome(value)?;
    if outcome.seq != seq {
        return Err(StorageError::Damaged(format!("outcome {n} of event {seq} is one of event {}", outcome.seq)).into());
    }
    writer.entry(&Entry::Outcome { seq, n, json: codec::outcome_json(value)? })?;
    Ok(seq)
}

fn all_artifacts<W: Write>(folder: &Path, writer: &mut Writer<W>, watch: Watch<'_>) -> Result<(), AdminError> {
    let names = names(folder)?;
    let mut pace = Pace::new(watch, Phase::Artifacts, names.len() as u64)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    for (at, name) in names.iter().enumerate() {
        let path = folder.join(name);
        let damaged =
            |why: &str| StorageError::Damaged(format!("artifact {name} {why}; deploy it again, or remove it"));
        let digest = digest(name).ok_or_else(|| damaged("has a name that is no digest"))?;
        let mut file = File::open(&path).map_err(doing("opening", &path))?;
        let bytes = file.metadata().map_err(doing("looking at", &path))?.len();
        writer.entry(&Entry::Artifact { digest, bytes })?;
        let (mut left, mut found) = (bytes, Sha256::new());
        while left > 0 {
            let chunk = &mut chunk[..left.min(CHUNK_BYTES as u64) as usize];
            file.read_exact(chunk).map_err(doing("reading", &path))?;
            found.update(&*chunk);
            writer.entry(&Entry::Bytes(chunk))?;
            left -= chunk.len() as u64;
            pace.tell(at as u64)?;
        }
        if found.finalize() != digest.into() {
            return Err(damaged("is not what was put").into());
        }
        pace.tell(at as u64 + 1)?;
    }
    Ok(())
}

/// The names of artifacts, in order; those that were never finished are left out.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, AdminError> {
    let mut names = Vec::new();
    let fail = || doing("listing", folder);
    for entry in std::fs::read_dir(folder).map_err(fail())? {
        let name = entry.map_err(fail())?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The digest that is an artifact's name.
pub(super) fn digest(name: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    let digits = name.as_bytes();
    if digits.len() != 2 * digest.len() || digits.iter().any(|digit| !matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..digits.len()).step_by(2)) {
        *byte = u8::from_str_radix(&name[at..at + 2], 16).ok()?;
    }
    Some(digest)
}

/// The name that an artifact of this digest has.
pub(super) fn name(digest: [u8; 32]) -> String {
    use std::fmt::Write as _;
    digest.iter().fold(String::with_capacity(64), |mut name, byte| {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}
