//! A process that is killed in the middle of its work, and a journal that is damaged afterwards.
//!
//! `NEXUS_ROUNDS` (20) and `NEXUS_SEED` (random, printed on failure) choose more, or the same again.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nexus_core::event::Data;
use nexus_core::ids::Seq;
use nexus_core::outcome::Disposition;
use nexus_core::record::Record;
use nexus_log::conformance::{Settings, numbered, outcome};
use nexus_log::embedded::{Embedded, EmbeddedConfig, open};
use nexus_log::{Commit, Log, StorageError};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const DIRECTORY: &str = "NEXUS_LOG_CRASH_DIRECTORY";
const ROUND: &str = "NEXUS_LOG_CRASH_ROUND";

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect(name))
}

async fn opened(path: &Path) -> Result<Embedded, StorageError> {
    open(EmbeddedConfig { reserve_bytes: 0, ..EmbeddedConfig::new(path) }).await
}

/// The process that is killed: not a test of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the tests of this file"]
async fn child() {
    let (Ok(directory), Some(round)) = (std::env::var(DIRECTORY), variable(ROUND)) else { return };
    let handle = opened(Path::new(&directory)).await.expect("open");
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..8_u64 {
        let log = handle.storage().log;
        clients.spawn(async move {
            let settings = Settings::default();
            for n in 0.. {
                let first = round * 100_000_000 + client * 10_000_000 + n * 10;
                let mut batch: Vec<_> = (0..=n % 4).map(|part| numbered(&settings, first + part)).collect();
                if round % 4 == 3 {
                    // Large enough for the journal to be rotated and memtables to be written out in the round.
                    batch[0].event.data = Some(Data::Binary(vec![7; 64 << 10].into()));
                }
                let ids: Vec<String> = batch.iter().map(|record| record.event.id.clone()).collect();
                let mut receipts = log.append(batch).await.expect("append");
                if n % 3 == 0 {
                    let emitted = vec![numbered(&settings, first + 9)];
                    let outcome = outcome(receipts[0].seq, 1, Disposition::Done);
                    receipts.extend(log.commit(Commit { outcome: outcome.into(), emitted }).await.expect("commit"));
                }
                let ids = ids.into_iter().chain(Some((first + 9).to_string()));
                let lines: String =
                    ids.zip(receipts).map(|(id, receipt)| format!("ack {} {id}\n", receipt.seq)).collect();
                std::io::stdout().lock().write_all(lines.as_bytes()).expect("the parent listens");
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("a client");
    }
}

/// Runs the child until it has acknowledged `acknowledgements` events, and kills it.
fn killed(path: &Path, round: u64, acknowledgements: usize) -> BTreeMap<Seq, String> {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child", "--ignored", "--nocapture", "--quiet"])
        .env(DIRECTORY, path)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let mut acknowledged = BTreeMap::new();
    let mut line = Vec::new();
    let mut killed = false;
    // After the kill, what was already in the pipe counts too. A line without an end was cut short by the kill.
    while output.read_until(b'\n', &mut line).expect("read") > 0 {
        let text = String::from_utf8_lossy(&line).into_owned();
        line.clear();
        let Some((seq, id)) =
            text.strip_suffix('\n').and_then(|t| t.strip_prefix("ack ")).and_then(|t| t.split_once(' '))
        else {
            continue;
        };
        acknowledged.insert(Seq(seq.parse().expect("a place")), id.to_owned());
        if !killed && acknowledged.len() >= acknowledgements {
            child.kill().expect("kill");
            killed = true;
        }
    }
    child.wait().expect("wait");
    assert!(killed, "the child ended by itself after {} acknowledgements", acknowledged.len());
    acknowledged
}

async fn everything(log: &dyn Log) -> Vec<std::sync::Arc<Record>> {
    let (mut from, mut records) = (Seq(1), Vec::new());
    loop {
        let page = log.read(from, 1000).await.expect("read");
        let Some(last) = page.last() else { return records };
        from = last.seq.next();
        records.extend(page);
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let rounds = variable("NEXUS_ROUNDS").unwrap_or(20);
    let seed = variable("NEXUS_SEED").unwrap_or_else(rand::random);
    // Shown if the test fails.
    println!("NEXUS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let mut acknowledged: BTreeMap<Seq, String> = BTreeMap::new();
    for round in 0..rounds {
        let until = if round % 4 == 3 { random.random_range(1..800) } else { random.random_range(1..4000) };
        for (seq, id) in killed(&path, round, until) {
            assert_eq!(acknowledged.insert(seq, id), None, "round {round}: place {seq} was given twice");
        }
        let handle = opened(&path).await.expect("open after a kill");
        let log = handle.storage().log;
        let records = everything(&*log).await;
        let mut seen = std::collections::HashSet::new();
        for (n, record) in (1..).zip(&records) {
            assert_eq!(record.seq, Seq(n), "round {round}: no gaps");
            assert!(seen.insert(&record.entry.event.id), "round {round}: {} is there twice", record.entry.event.id);
        }
        for (seq, id) in &acknowledged {
            let found = records.get(seq.0 as usize - 1).map(|record| &record.entry.event.id);
            assert_eq!(found, Some(id), "round {round}: {seq} was acknowledged");
        }
        let head = Seq(records.len() as u64);
        assert_eq!(*log.head().borrow(), head);
        // The indexes say the same as the events.
        for record in records.iter().rev().take(50) {
            let found = log.find(&record.entry.event.id, None).await.expect("find");
            assert_eq!(found.as_slice(), std::slice::from_ref(&**record), "round {round}");
        }
        handle.close().await.expect("close");
    }
}

fn newest_journal(database: &Path) -> PathBuf {
    let number = |path: &PathBuf| path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<u64>().ok());
    let journals = std::fs::read_dir(database).expect("list").map(|entry| entry.expect("entry").path());
    journals.filter(|path| path.extension().is_some_and(|e| e == "jnl")).max_by_key(number).expect("a journal")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("make");
    for entry in std::fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}

/// Cut or changed at any place, the journal gives a beginning of what was written, or says that it is damaged.
#[tokio::test]
async fn a_damaged_journal_gives_a_prefix_or_says_so() {
    let seed = variable("NEXUS_SEED").unwrap_or_else(rand::random);
    println!("NEXUS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let acknowledged = killed(&path, 0, 300);

    let whole = directory.path().join("whole");
    copy(&path, &whole);
    let handle = opened(&whole).await.expect("open");
    let expected = everything(&*handle.storage().log).await;
    handle.close().await.expect("close");
    assert!(expected.len() >= acknowledged.len());

    let journal = newest_journal(&path.join("db"));
    let bytes = std::fs::read(&journal).expect("read");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("something was written") + 1;
    for trial in 0..40 {
        let (cut, at) = (trial % 2 == 0, random.random_range(0..used));
        let damaged = directory.path().join(format!("trial-{trial}"));
        copy(&path, &damaged);
        let mut changed = bytes.clone();
        if cut {
            changed.truncate(at);
        } else {
            changed[at] ^= random.random_range(1..=255_u8);
        }
        std::fs::write(newest_journal(&damaged.join("db")), changed).expect("write");
        match opened(&damaged).await {
            Ok(handle) => {
                let found = everything(&*handle.storage().log).await;
                assert!(expected.starts_with(&found), "trial {trial} at {at} of {used}: not a prefix");
                if !cut {
                    // Only the last batch may be gone: a group of at most eight clients, of at most four events each.
                    let lost = expected.len() - found.len();
                    assert!(lost <= 8 * 4, "trial {trial} at {at} of {used}: {lost} events are gone without a word");
                }
                let next = handle.storage().log.append(vec![numbered(&Settings::default(), 1)]).await.expect("append");
                assert_eq!(next[0].seq, Seq(found.len() as u64 + 1), "trial {trial}: writing goes on behind it");
                handle.close().await.expect("close");
            }
            Err(StorageError::Damaged(_)) => {
                assert!(!cut, "trial {trial} at {at} of {used}: a torn tail is no damage");
                // Nothing was changed: whoever has a copy of the byte can put it back.
                let left = std::fs::metadata(newest_journal(&damaged.join("db"))).expect("metadata").len();
                assert_eq!(left, bytes.len() as u64, "trial {trial}");
            }
            Err(other) => panic!("trial {trial} at {at} of {used}: {other}"),
        }
        std::fs::remove_dir_all(damaged).expect("tidy");
    }
}
