//! Damage of one entry at a time, through the database: each is named.
//!
//! `NEXUS_SEED` (random, printed on failure) chooses the same entries again.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use nexus_log::embedded::admin::{AdminError, Report};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::stores::{backup, check, grown, healthy, settings};

/// The database alone, without what keeps its entries in agreement.
pub struct Raw {
    db: Database,
}

impl Raw {
    pub fn open(data: &Path) -> Self {
        Self { db: Database::builder(data.join("db")).open().expect("open") }
    }

    fn keyspace(&self, name: &str) -> Keyspace {
        self.db.keyspace(name, KeyspaceCreateOptions::default).expect("a keyspace")
    }

    pub fn entries(&self, name: &str, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let entries = self.keyspace(name).prefix(prefix).map(|entry| entry.into_inner().expect("an entry"));
        entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    }

    pub fn put(&self, name: &str, key: &[u8], value: Option<&[u8]>) {
        match value {
            Some(value) => self.keyspace(name).insert(key, value).expect("insert"),
            None => self.keyspace(name).remove(key).expect("remove"),
        }
        self.db.persist(PersistMode::SyncAll).expect("persist");
    }
}

type Change = fn(&mut Vec<u8>, &mut StdRng);

/// Keyspace, beginning of the key, what is done to the value (nothing: the entry is removed), and what is said of it.
const DAMAGE: &[(&str, &[u8], Option<Change>, &str)] = &[
    ("events", b"", None, "is not there"),
    ("events", b"", Some(|value, random| value[random.random_range(1..53)] ^= 0x10), "what filters read of it"),
    ("events", b"", Some(|value, _| value.truncate(value.len() - 1)), "EOF"),
    ("events", b"", Some(|value, _| value.truncate(20)), "cut short"),
    ("events", b"", Some(|value, _| value[0] = 9), "unknown format"),
    ("outcomes", b"", None, "is not there"),
    ("outcomes", b"", Some(|value, random| value[random.random_range(1..17)] ^= 0x10), "another invocation"),
    ("outcomes", b"", Some(|value, _| value.truncate(value.len() - 1)), "an outcome: "),
    ("ids", b"e", None, "the index of ids does not have it"),
    ("ids", b"e", Some(|value, _| value.truncate(7)), "does not name places"),
    ("ids", b"e", Some(|value, _| value[6] ^= 0x40), "the index of ids does not have it"),
    ("ids", b"i", None, "the index of invocations does not have it"),
    ("ids", b"i", Some(|value, _| value[15] ^= 1), "has another in its place"),
    ("traces", b"", None, "the index of traces does not have it"),
    ("meta", b"s", None, "were counted"),
    ("meta", b"s", Some(|value, _| value[7] -= 1), "were counted"),
    ("meta", b"s", Some(|value, _| value[17] = 1), "contradict each other"),
    // A mark of what retention took that is too high.
    ("meta", b"s", Some(|value, _| value[24] = 0xff), "none is there"),
    ("meta", b"s", Some(|value, _| value.truncate(9)), "the counters: "),
    ("meta", b"b", None, "it is not known|counts 0"),
    ("meta", b"b", Some(|value, _| value[32] ^= 1), "bytes, "),
    ("meta", b"b", Some(|value, _| value[36] ^= 1), "events, "),
    ("meta", b"b", Some(|value, _| value[1..9].copy_from_slice(&[0x40; 8])), "outside of its times"),
    ("meta", b"b", Some(|value, _| value.truncate(30)), "cut short"),
    ("meta", b"k", None, "by hash does not have its|not by both"),
    ("meta", b"l", None, "by block does not have its|not by both"),
    ("meta", b"p", None, "but it is not parked"),
    ("meta", b"p", Some(|value, _| value[4] ^= 1), "its attempt or time"),
    ("meta", b"p", Some(|value, _| value.truncate(3)), "cut short"),
    ("meta", b"d", Some(|value, _| value[4] ^= 1), "no outcome says that this attempt"),
    ("meta", b"d", Some(|value, _| value.truncate(3)), "cut short"),
    ("meta", b"r", Some(|value, _| value[2] = 1), "is of revision"),
    ("meta", b"r", Some(|value, _| value.truncate(5)), "has no revision"),
];

/// Entries that should not be there.
const ADDED: &[(&str, &[u8], &[u8], &str)] = &[
    ("events", &[0, 0, 0, 0, 0, 0, 0x0f, 0xff, 1], b"", "its key is no place"),
    ("events", &[0, 0, 0, 0, 0, 1, 0, 0], b"", "only those before"),
    ("outcomes", &[0, 0, 0, 0, 0, 0, 0x0f, 0xff, 1], b"", "its key is not a place and a number"),
    ("ids", b"eabcdefgh12345678", &[0, 0, 0, 0, 0, 0, 0x0f, 0xf0], "event 4080 is another"),
    ("ids", b"eabcdefgh12345678", &[0, 0, 0, 0, 0, 1, 0, 0], "event 65536 is not there"),
    (
        "ids",
        b"iabcdefgh12345678",
        &[0, 0, 0, 0, 0, 0, 0x0f, 0xf0, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
        "outcome 65535 of event 4080 is not",
    ),
    ("ids", b"iabcdefgh12345678", b"short", "does not name an outcome"),
    ("ids", b"x", b"", "of no known kind"),
    ("traces", b"0123456789abcdef\0\0\0\0\0\0\x0f\xf0", b"", "event 4080 is another"),
    ("traces", b"0123456789abcdef\0\0\0\0\0\x01\0\0", b"", "event 65536 is not there"),
    ("traces", b"short", b"", "its key is not a trace and a place"),
    ("meta", b"b\0\0\0\0\0\0\0\x63", &[1; 37], "none is there"),
    ("meta", b"kt12345678\0\0\0\0\0\0\0\x63", b"", "but not by both"),
    ("meta", b"l\0\0\0\0\0\0\0\x63s12345678", b"", "block 99 is not there"),
    ("meta", b"kx12345678\0\0\0\0\0\0\0\x63", b"", "a key of the index of blocks"),
    (
        "meta",
        b"p\0\0\0\0\0\0\x0f\xf1nobody",
        b"\x01\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0",
        "does not say that it is to be tried again",
    ),
    ("meta", b"p\0\0\0\0\0\x01\0\0nobody", &[0; 17], "its event is not there"),
    ("meta", b"d\0\0\0\0\0\0\x0f\xf1nobody", &[0; 17], "no outcome says that this attempt"),
    ("meta", b"d\0\0\0\0\0\x01\0\0nobody", &[0; 17], "its event is not there"),
    ("meta", b"d", b"", "of no known kind"),
    ("meta", b"r\xff\xfe", &[0; 9], "its key is no text"),
    ("meta", b"a", &[0; 8], "a copy of another log"),
    ("meta", b"z", b"", "of no known kind"),
];

fn names(report: &Report, said: &str) -> bool {
    report.problems.iter().any(|problem| said.split('|').any(|said| problem.to_string().contains(said)))
}

#[tokio::test]
async fn every_damage_is_named() {
    let seed = std::env::var("NEXUS_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("a seed"));
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    grown(&data, &settings()).await;
    let before = healthy(&data);
    // Which of them: all, or so many that the seed chooses.
    let rounds = std::env::var("NEXUS_ROUNDS").map_or(DAMAGE.len(), |rounds| rounds.parse().expect("a number"));
    for (name, prefix, change, said) in DAMAGE.iter().sample(&mut random, rounds) {
        let raw = Raw::open(&data);
        let mut entries = raw.entries(name, prefix);
        if ["events", "outcomes"].contains(name) {
            // What retention took is still in its files, out of sight.
            entries.retain(|(key, _)| key[..8] >= 700_u64.to_be_bytes()[..]);
        }
        if *prefix == b"p" {
            // Of what is for later no outcome tells.
            entries.retain(|(key, _)| !key.ends_with(b"later"));
        }
        if (*prefix, change.is_none()) == (b"p", true) {
            // A dead letter that is tried again: without its entry it is as one that was dropped, which is no damage.
            let seq = |key: &[u8]| u64::from_be_bytes(key[1..9].try_into().expect("eight bytes"));
            entries.retain(|(key, _)| seq(key) % 120 != 40);
        }
        // The first block is that of the floor, which may count more.
        let (key, value) = &entries[random.random_range(entries.len().min(3) - 1..entries.len())];
        let changed = change.map(|change| {
            let mut value = value.clone();
            change(&mut value, &mut random);
            value
        });
        raw.put(name, key, changed.as_deref());
        drop(raw);
        let report = check(&data);
        let what = format!("{name} {} {said:?}, seed {seed}: {:#?}", key.escape_ascii(), report.problems);
        assert!(names(&report, said), "{what}");
        assert!(report.problems.len() as u64 == report.problems_total.min(100), "{what}");
        Raw::open(&data).put(name, key, Some(value));
    }
    for (name, key, value, said) in ADDED {
        Raw::open(&data).put(name, key, Some(value));
        let report = check(&data);
        assert!(names(&report, said), "{name} {}: {:#?}", key.escape_ascii(), report.problems);
        Raw::open(&data).put(name, key, None);
    }
    assert_eq!(healthy(&data), before, "a check changes nothing");
}

#[tokio::test]
async fn damaged_artifacts_and_journals_are_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    grown(&data, &settings()).await;
    let artifacts = data.join("artifacts");
    std::fs::write(artifacts.join(".new-1-0"), "never finished").expect("write");
    healthy(&data);
    std::fs::write(artifacts.join("readme"), "").expect("write");
    let name = crate::stores::names(&artifacts).into_iter().rfind(|name| name.len() == 64).expect("an artifact");
    let whole = std::fs::read(artifacts.join(&name)).expect("read");
    std::fs::write(artifacts.join(&name), [&*whole, b"x"].concat()).expect("write");
    let report = check(&data);
    assert_eq!(report.problems_total, 2);
    assert!(names(&report, "artifact readme: its name is no digest"), "{report:?}");
    assert!(names(&report, &format!("artifact {name}: its bytes are not those of its digest")), "{report:?}");
    let file = directory.path().join("file");
    let refused = backup(&data, &file).expect_err("a damaged artifact");
    assert!(refused.to_string().contains("artifact"), "{refused}");
    assert!(!file.exists());

    std::fs::remove_file(artifacts.join("readme")).expect("remove");
    std::fs::write(artifacts.join(&name), whole).expect("write");
    let journal = std::fs::read_dir(data.join("db")).expect("a directory").map(|entry| entry.expect("entry").path());
    let journal = journal.into_iter().find(|path| path.extension().is_some_and(|e| e == "jnl")).expect("a journal");
    let mut bytes = std::fs::read(&journal).expect("read");
    bytes[100] ^= 1;
    std::fs::write(&journal, bytes).expect("write");
    let report = check(&data);
    assert!(report.problems_total == 1 && names(&report, "the database: "), "{report:?}");
    assert_eq!(report.artifacts, 6, "they are looked at nevertheless");
    let refused = backup(&data, &file).expect_err("a damaged journal");
    assert!(matches!(refused, AdminError::Storage(nexus_log::StorageError::Damaged(_))), "{refused}");
}

/// A byte of a table's file: the library's checksum does not fit, and reading goes no further there.
#[tokio::test]
async fn damaged_tables_are_named() {
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().expect("a directory");
    let (data, file) = (directory.path().join("data"), directory.path().join("file"));
    grown(&data, &settings()).await;
    let raw = Raw::open(&data);
    let mut tables = Vec::new();
    for name in ["events", "outcomes", "ids", "traces", "meta"] {
        let keyspace = raw.keyspace(name);
        keyspace.rotate_memtable_and_wait().expect("written out");
        let folder = keyspace.path().join("tables");
        tables.extend(crate::stores::names(&folder).iter().map(|table| (name, folder.join(table))));
    }
    drop(raw);
    let before = healthy(&data);
    for (name, path) in &tables {
        for _ in 0..8 {
            let whole = std::fs::read(path).expect("read");
            let mut bytes = whole.clone();
            // Entries come first, and are most of it; the first of them may be of events that retention took.
            let at = random.random_range(bytes.len() * 2 / 5..bytes.len() * 7 / 10);
            bytes[at] ^= 1;
            std::fs::write(path, bytes).expect("write");
            let report = check(&data);
            let what = format!("{name}, byte {at}, seed {seed}: {:#?}", report.problems);
            assert!(report.problems_total > 0, "{what}");
            let backup = backup(&data, &file);
            match *name {
                // The index is no part of it.
                "ids" | "traces" => std::fs::remove_file(&file).expect("a backup"),
                _ => assert!(matches!(backup, Err(AdminError::Storage(_))), "{what}: {backup:?}"),
            }
            std::fs::write(path, whole).expect("write");
        }
    }
    assert_eq!(healthy(&data), before);
}

/// What cannot be backed up whole is not backed up in part.
#[tokio::test]
async fn a_damaged_entry_is_no_part_of_a_backup() {
    let directory = tempfile::tempdir().expect("a directory");
    let (data, file) = (directory.path().join("data"), directory.path().join("file"));
    grown(&data, &settings()).await;
    for name in ["events", "outcomes"] {
        let raw = Raw::open(&data);
        let entries = raw.entries(name, b"");
        let (key, value) = &entries[entries.len() / 2];
        raw.put(name, key, Some(&value[..value.len() - 1]));
        drop(raw);
        let refused = backup(&data, &file).expect_err("a damaged entry");
        assert!(matches!(refused, AdminError::Storage(nexus_log::StorageError::Damaged(_))), "{refused}");
        assert!(!file.exists());
        Raw::open(&data).put(name, key, Some(value));
    }
    backup(&data, &file).expect("backup");
}
