//! A look at the database's journal before the library opens it.
//!
//! The library reads a journal up to the first entry that it cannot make sense of and cuts the file off there, without a
//! word: right for a tail that was torn when the power went, wrong for a byte that changed in the middle, behind which lie
//! batches that were acknowledged. And where the last batch has all its parts but a wrong checksum (its pages reached the
//! disk out of order, and it was never acknowledged) the library refuses to open at all. So the journal is
//! walked here first, without changing it:
//!
//! * all batches whole up to the end, or to zeros up to the end: nothing to do;
//! * something else, and no whole batch anywhere behind it: a torn tail. It is cut off, and a warning says so;
//! * something else, and a whole batch behind it: [`StorageError::Damaged`], and nothing is touched.
//!
//! What is cut off can be one acknowledged batch if it is the very last and the damage touched it: that cannot be told
//! from one that was never fully written. The layout is that of the library's format 3; the version file is
//! checked, and a journal of another version is left to the library.

use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use crate::contract::StorageError;

/// Ends a batch, and begins the version file.
const MAGIC: &[u8; 4] = b"FJL\x03";
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
/// Tag, count of items, sequence number.
const START_BYTES: usize = 1 + 4 + 8;
/// Tag, kind of value, compression, keyspace, three lengths.
const ITEM_BYTES: usize = 1 + 1 + 1 + 8 + 2 + 4 + 4;
/// Tag, checksum, magic.
const END_BYTES: usize = 1 + 8 + 4;
/// Tag, keyspace.
const CLEAR_BYTES: usize = 1 + 8;

/// Checks all journals of a database; cuts a torn tail off the newest.
pub(crate) fn check(database: &Path) -> Result<(), StorageError> {
    let fail = |e: std::io::Error| StorageError::Failed(format!("checking the journal: {e}"));
    match std::fs::read(database.join("version")) {
        Ok(version) if version.starts_with(MAGIC) => {}
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(fail(e)),
    }
    let journals = journals(database).map_err(fail)?;
    for (at, path) in journals.iter().enumerate() {
        let bytes = std::fs::read(path).map_err(fail)?;
        let newest = at + 1 == journals.len();
        match inspect(&bytes) {
            Found::Whole => {}
            Found::Torn { valid } if newest => {
                tracing::warn!(
                    journal = %path.display(), kept_bytes = valid, torn_bytes = bytes.len() - valid,
                    "the last write was cut short when the process or the machine stopped; it is left out"
                );
                let file = OpenOptions::new().write(true).open(path).map_err(fail)?;
                file.set_len(valid as u64).and_then(|()| file.sync_all()).map_err(fail)?;
            }
            Found::Torn { valid } | Found::Damaged { valid } => {
                return Err(StorageError::Damaged(format!(
                    "{} is not what was written from byte {valid} on; restore the data directory from a copy",
                    path.display()
                )));
            }
        }
    }
    Ok(())
}

/// Writes the newest journal anew in its place, byte for byte, so that what the system's cache shows of it is on the disk.
pub(crate) fn rewrite_newest(database: &Path) -> std::io::Result<()> {
    let Some(path) = journals(database)?.pop() else { return Ok(()) };
    let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    // The zeros that the library sets aside need not be written; where the disk is full they could not be.
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    file.rewind()?;
    file.write_all(&bytes[..used])?;
    file.sync_all()
}

/// The journals, oldest first.
fn journals(database: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(database)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|extension| extension == "jnl")) {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Nothing but whole batches, then zeros or nothing.
    Whole,
    /// Whole batches up to `valid`, and none behind.
    Torn { valid: usize },
    /// Whole batches up to `valid`, then something else, then a whole batch again.
    Damaged { valid: usize },
}

fn inspect(bytes: &[u8]) -> Found {
    let (mut valid, mut newest) = (0, None);
    // The checksum leaves the sequence number out; but it only ever goes up.
    while let Some((end, seqno)) = batch(bytes, valid).filter(|(_, seqno)| newest.is_none_or(|newest| *seqno > newest))
    {
        (valid, newest) = (end, Some(seqno));
    }
    let rest = bytes.get(valid..).unwrap_or_default();
    if rest.iter().all(|byte| *byte == 0) {
        return Found::Whole;
    }
    // An event's JSON has no control characters, so nobody who sends events can imitate a batch.
    let behind = rest.iter().enumerate().skip(1).any(|(at, byte)| *byte == START && batch(bytes, valid + at).is_some());
    if behind { Found::Damaged { valid } } else { Found::Torn { valid } }
}

/// The end and the sequence number of the whole batch that begins at a place, if one does.
fn batch(bytes: &[u8], start: usize) -> Option<(usize, u64)> {
    let head = bytes.get(start..start + START_BYTES)?;
    if head[0] != START {
        return None;
    }
    let items = u32::from_le_bytes(head[1..5].try_into().ok()?);
    let seqno = u64::from_le_bytes(head[5..13].try_into().ok()?);
    let body = start + START_BYTES;
    let mut at = body;
    for _ in 0..items {
        at += match *bytes.get(at)? {
            ITEM => {
                let item = bytes.get(at..at + ITEM_BYTES)?;
                let key_bytes = u16::from_le_bytes(item[11..13].try_into().ok()?);
                let value_bytes = u32::from_le_bytes(item[17..21].try_into().ok()?);
                ITEM_BYTES + usize::from(key_bytes) + usize::try_from(value_bytes).ok()?
            }
            CLEAR => CLEAR_BYTES,
            _ => return None,
        };
    }
    let end = bytes.get(at..at + END_BYTES)?;
    let checksum = u64::from_le_bytes(end[1..9].try_into().ok()?);
    let whole = end[0] == END && &end[9..] == MAGIC && checksum == xxh3_64(&bytes[body..at]);
    whole.then_some((at + END_BYTES, seqno))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(batches: usize) -> (Vec<u8>, Vec<usize>) {
        let directory = tempfile::tempdir().expect("a directory");
        let db = fjall::Database::builder(directory.path().join("db")).open().expect("open");
        let table = db.keyspace("t", fjall::KeyspaceCreateOptions::default).expect("keyspace");
        for n in 0..batches {
            let mut batch = db.batch().durability(Some(fjall::PersistMode::SyncAll));
            for item in 0..=n {
                batch.insert(&table, format!("{n}-{item}"), vec![b'x'; 100 * item]);
            }
            batch.remove(&table, "gone");
            batch.commit().expect("commit");
        }
        let path = journals(&directory.path().join("db")).expect("journals").pop().expect("a journal");
        let mut bytes = std::fs::read(path).expect("read");
        let (mut ends, mut at) = (vec![], 0);
        while let Some((end, _)) = batch(&bytes, at) {
            at = end;
            ends.push(end);
        }
        bytes.truncate(at + 100);
        (bytes, ends)
    }

    /// Guards the layout: if the library changes it, no batch is found.
    #[test]
    fn what_the_library_writes_is_whole() {
        let (bytes, ends) = written(5);
        assert_eq!(ends.len(), 5);
        assert_eq!(inspect(&bytes), Found::Whole);
        assert_eq!(inspect(&[]), Found::Whole);
        assert_eq!(inspect(&[0; 1000]), Found::Whole);
    }

    #[test]
    fn a_torn_tail_is_told_from_damage() {
        let (bytes, ends) = written(5);
        let last = ends[3];
        let check = |what: &str, change: &dyn Fn(&mut Vec<u8>), expected: Found| {
            let mut bytes = bytes.clone();
            change(&mut bytes);
            assert_eq!(inspect(&bytes), expected, "{what}");
        };
        for cut in [last + 1, last + START_BYTES, last + 100, ends[4] - 1] {
            check(&format!("cut at {cut}"), &|bytes| bytes.truncate(cut), Found::Torn { valid: last });
            check(&format!("zeros from {cut}"), &|bytes| bytes[cut..].fill(0), Found::Torn { valid: last });
        }
        check("cut between batches", &|bytes| bytes.truncate(last), Found::Whole);
        check("a hole in the last", &|bytes| bytes[last + 50..last + 90].fill(0), Found::Torn { valid: last });
        check(
            "a hole in the third",
            &|bytes| bytes[ends[1] + 50..ends[1] + 90].fill(0),
            Found::Damaged { valid: ends[1] },
        );
        check("the first byte", &|bytes| bytes[0] ^= 1, Found::Damaged { valid: 0 });
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let (bytes, ends) = written(4);
        for at in 0..ends[2] {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            let valid = ends.iter().copied().take_while(|end| *end <= at).last().unwrap_or(0);
            // A sequence number that is too high is noticed at the next batch.
            let seqno = at >= valid + 5 && at < valid + START_BYTES;
            match inspect(&bytes) {
                Found::Damaged { valid: found } if found == valid || seqno => {}
                // The last of those behind it begins with a sequence number that is too low.
                Found::Torn { .. } if seqno => {}
                other => panic!("byte {at}: {other:?}"),
            }
        }
    }
}
