//! All that a copy of the log has after one message, as a file: from it another copy can begin where the stream does not begin at its
//! beginning any more.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `NEXUSCPY` |
//! | 4 | [`VERSION`] |
//! | 4, … | length and name of the log |
//! | … | entries: a table's letter, the lengths of key and value (4 each), key, value |
//! | 1, 8 | `.`, and how many entries there were |
//!
//! Numbers are big-endian; the tables and what is in them are the store's own (`embedded/codec.rs`). That the bytes are those that were
//! written is the object store's to tell, which has a SHA-256 of them.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use fjall::{Keyspace, PersistMode, Readable as _};

use crate::contract::StorageError;
use crate::embedded::codec;
use crate::embedded::shared::Shared;
use crate::embedded::state::{APPLIED_KEY, COUNTERS_KEY, Counters};
use crate::embedded::store::{Store, failed};

const MAGIC: &[u8; 8] = b"NEXUSCPY";
const VERSION: u32 = 1;
const END: u8 = b'.';
/// What is written to a store as one batch: entries, and bytes.
const BATCH_ENTRIES: usize = 4096;
const BATCH_BYTES: usize = 4 << 20;
/// The longest name of a log, and the largest key and value: more is no snapshot.
const NAME_MAX: u32 = 256;
const KEY_MAX: u32 = 1 << 16;
const VALUE_MAX: u32 = 256 << 20;
/// How long a batch waits for the library to write out what it keeps in memory.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
/// Whether the store is still open is asked after so many entries.
const LOOK_AFTER: u64 = 1024;

/// The tables, by their letters in the file.
fn tables(store: &Store) -> [(u8, &Keyspace); 5] {
    [(b'e', &store.events), (b'o', &store.outcomes), (b'i', &store.ids), (b't', &store.traces), (b'm', &store.meta)]
}

/// Writes what the open copy has at this moment; the last message that is in it. Blocks.
pub(super) fn write(shared: &Shared, log: &str, path: &Path) -> Result<u64, StorageError> {
    let store = shared.store()?;
    let at = store.db.snapshot();
    let number = |key: &[u8]| at.get(&store.meta, key).map_err(failed);
    let applied = number(APPLIED_KEY)?.map(|value| codec::bytes(&value, 0).map(u64::from_be_bytes)).transpose()?;
    let counters = number(COUNTERS_KEY)?.map(|value| Counters::decode(&value)).transpose()?.unwrap_or_default();
    let io = |error: std::io::Error| StorageError::Failed(format!("writing {}: {error}", path.display()));
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(io)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(io);
    put(MAGIC)?;
    put(&VERSION.to_be_bytes())?;
    put(&length(log.as_bytes()))?;
    put(log.as_bytes())?;
    let mut count: u64 = 0;
    for (letter, table) in tables(&store) {
        // What retention took may still be in the files of these two, out of sight.
        let from = if matches!(letter, b'e' | b'o') { counters.floor.0.to_be_bytes().to_vec() } else { Vec::new() };
        for entry in at.range(table, from..) {
            let (key, value) = entry.into_inner().map_err(failed)?;
            for part in [&[letter][..], &length(&key), &length(&value), &key, &value] {
                put(part)?;
            }
            count += 1;
            if count.is_multiple_of(LOOK_AFTER) {
                shared.serves(&store)?;
            }
        }
    }
    put(&[END])?;
    put(&count.to_be_bytes())?;
    let file = out.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(io)?;
    Ok(applied.unwrap_or(0))
}

/// A length that fits: keys and values are bounded far below.
fn length(bytes: &[u8]) -> [u8; 4] {
    (bytes.len() as u32).to_be_bytes()
}

/// Reads a whole file of this log, and gives every entry with its table's letter. Blocks.
pub(super) fn read(
    path: &Path,
    log: &str,
    mut each: impl FnMut(u8, Vec<u8>, Vec<u8>) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    let wrong = |why: &str| StorageError::Damaged(format!("a snapshot of the log: {why}"));
    let io = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => wrong("it is cut short"),
        _ => StorageError::Failed(format!("reading {}: {error}", path.display())),
    };
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(io)?);
    let mut take = |bytes: &mut [u8]| file.read_exact(bytes).map_err(io);
    let mut magic = [0; 8];
    take(&mut magic)?;
    let mut number = [0; 4];
    take(&mut number)?;
    match (&magic == MAGIC, u32::from_be_bytes(number)) {
        (true, VERSION) => {}
        (true, found) if found > VERSION => return Err(StorageError::Newer { found, known: VERSION }),
        _ => return Err(wrong("it is none")),
    }
    let bounded = |take: &mut dyn FnMut(&mut [u8]) -> Result<(), StorageError>, max: u32| {
        let mut number = [0; 4];
        take(&mut number)?;
        let length = u32::from_be_bytes(number);
        if length > max { Err(wrong("a length is out of bounds")) } else { Ok(length as usize) }
    };
    let mut name = vec![0; bounded(&mut take, NAME_MAX)?];
    take(&mut name)?;
    if name != log.as_bytes() {
        return Err(wrong("it is of another log"));
    }
    let mut count: u64 = 0;
    loop {
        let mut letter = [0];
        take(&mut letter)?;
        if letter[0] == END {
            break;
        }
        let (key, value) = (bounded(&mut take, KEY_MAX)?, bounded(&mut take, VALUE_MAX)?);
        let (mut key, mut value) = (vec![0; key], vec![0; value]);
        take(&mut key)?;
        take(&mut value)?;
        each(letter[0], key, value)?;
        count += 1;
    }
    let mut said = [0; 8];
    take(&mut said)?;
    if u64::from_be_bytes(said) == count { Ok(()) } else { Err(wrong("entries are missing")) }
}

/// Makes a new database of a snapshot, in the place of the one that is there. That it is whole is written last: one that was cut
/// short has taken in no message, and is made anew. Blocks.
pub(super) fn restore(path: &Path, log: &str, database: &Path) -> Result<(), StorageError> {
    if database.exists() {
        std::fs::remove_dir_all(database)
            .map_err(|e| StorageError::Failed(format!("removing {}: {e}", database.display())))?;
    }
    let store = Store::open(database)?;
    let (mut batch, mut entries, mut bytes, mut applied) = (store.db.batch(), 0, 0, None);
    read(path, log, |letter, key, value| {
        if letter == b'm' && key == APPLIED_KEY {
            applied = Some(value);
            return Ok(());
        }
        let table = tables(&store).into_iter().find(|(known, _)| *known == letter);
        let (_, table) = table.ok_or_else(|| StorageError::Damaged("a snapshot has an unknown table".to_owned()))?;
        entries += 1;
        bytes += key.len() + value.len();
        batch.insert(table, key, value);
        if entries >= BATCH_ENTRIES || bytes >= BATCH_BYTES {
            store.settle(SETTLE_PATIENCE)?;
            std::mem::replace(&mut batch, store.db.batch()).commit().map_err(failed)?;
            (entries, bytes) = (0, 0);
        }
        Ok(())
    })?;
    batch.durability(Some(PersistMode::SyncAll)).commit().map_err(failed)?;
    let applied =
        applied.ok_or_else(|| StorageError::Damaged("a snapshot does not say of which message".to_owned()))?;
    let mut last = store.db.batch();
    last.insert(&store.meta, APPLIED_KEY, applied);
    last.durability(Some(PersistMode::SyncAll)).commit().map_err(failed)
}
