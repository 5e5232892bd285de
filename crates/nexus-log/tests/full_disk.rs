//! A disk that is full: refused in time, and served again when there is room, without a restart.
//!
//! Needs a small file system, and so the right to mount one; without it the tests say that they were left out.

use std::path::Path;
use std::process::{Command, Stdio};

use nexus_core::event::Data;
use nexus_core::ids::Seq;
use nexus_core::outcome::Disposition;
use nexus_log::conformance::{Settings, numbered, outcome};
use nexus_log::embedded::{Embedded, EmbeddedConfig, open};
use nexus_log::{Commit, Log, StorageError};

/// A small file system in memory, while it lives.
struct Small(tempfile::TempDir);

impl Small {
    fn mount(mebibytes: usize) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let mut mount = Command::new("mount");
        let size = format!("size={mebibytes}m");
        mount.args(["-t", "tmpfs", "-o", &size, "nexus-log-test"]).arg(directory.path());
        match mount.stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(status) if status.success() => Some(Self(directory)),
            other => {
                eprintln!("left out: a small file system cannot be mounted here ({other:?}); run as root");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes room that can be given back.
    fn ballast(&self, mebibytes: usize) -> std::path::PathBuf {
        let path = self.path().join("ballast");
        std::fs::write(&path, vec![1; mebibytes << 20]).expect("ballast");
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "unmounting the small file system");
    }
}

async fn opened(small: &Small, reserve_bytes: u64) -> Embedded {
    let config = EmbeddedConfig { reserve_bytes, ..EmbeddedConfig::new(small.path().join("data")) };
    open(config).await.expect("open")
}

/// Appends events of 64 KiB until one is refused; the ids that were acknowledged, and why it was refused.
async fn fill(log: &dyn Log, settings: &Settings) -> (Vec<String>, StorageError) {
    let mut taken = Vec::new();
    for n in 0..2000 {
        let mut record = numbered(settings, n);
        record.event.data = Some(Data::Binary(vec![n as u8; 48 << 10].into()));
        match log.append(vec![record]).await {
            Ok(_) => taken.push(n.to_string()),
            Err(error) => return (taken, error),
        }
    }
    panic!("2,000 events of 64 KiB found room")
}

async fn ids(log: &dyn Log) -> Vec<String> {
    let (mut from, mut ids) = (Seq(1), Vec::new());
    loop {
        let records = log.read(from, 100).await.expect("read");
        let Some(last) = records.last() else { return ids };
        from = last.seq.next();
        ids.extend(records.iter().map(|record| record.entry.event.id.clone()));
    }
}

#[tokio::test]
async fn appends_stop_at_the_reserve_and_go_on_when_there_is_room() {
    let Some(small) = Small::mount(64) else { return };
    let settings = Settings::default();
    let ballast = small.ballast(24);
    let handle = opened(&small, 8 << 20).await;
    let log = handle.storage().log;
    let (mut expected, error) = fill(&*log, &settings).await;
    assert!(matches!(error, StorageError::Full { free_bytes, reserve_bytes } if free_bytes < reserve_bytes), "{error}");
    assert!(error.is_retryable() && !expected.is_empty());

    // What was taken can still be finished, and what it emits is taken too.
    let emitted = vec![numbered(&settings, 9_000)];
    log.commit(Commit { outcome: outcome(Seq(1), 1, Disposition::Done).into(), emitted })
        .await
        .expect("commit in the reserve");
    expected.push("9000".to_owned());
    assert_eq!(ids(&*log).await, expected, "everything that was acknowledged is there");

    std::fs::remove_file(ballast).expect("remove");
    log.append(vec![numbered(&settings, 9_001)]).await.expect("append, when there is room");
    expected.push("9001".to_owned());
    assert_eq!(ids(&*log).await, expected);
    handle.close().await.expect("close");

    let again = opened(&small, 8 << 20).await;
    assert_eq!(ids(&*again.storage().log).await, expected, "and after opening again");
    again.close().await.expect("close");
}

#[tokio::test]
async fn the_store_recovers_when_the_journal_found_no_room() {
    recovers(64, 44).await;
}

/// The memtable fills up and is written out in the background, beside the journal that holds the same.
#[tokio::test]
async fn the_store_recovers_when_a_table_found_no_room() {
    recovers(192, 150).await;
}

/// A write that fails is not acknowledged, loses nothing, and when there is room again the same handle goes on.
async fn recovers(mebibytes: usize, ballast_mebibytes: usize) {
    let Some(small) = Small::mount(mebibytes) else { return };
    let settings = Settings::default();
    let ballast = small.ballast(ballast_mebibytes);
    // Without a reserve the disk itself says no, in the middle of a write.
    let handle = opened(&small, 0).await;
    let log = handle.storage().log;
    let (mut expected, error) = fill(&*log, &settings).await;
    assert!(matches!(error, StorageError::Full { .. } | StorageError::Failed(_)), "{error}");
    assert!(error.is_retryable() && !expected.is_empty());

    std::fs::remove_file(ballast).expect("remove");
    // As a client does that is told to try again; the log pauses between its own attempts to open the store.
    let mut attempts = 0_u64;
    let receipts = loop {
        match log.append(vec![numbered(&settings, 9_001)]).await {
            Ok(receipts) => break receipts,
            Err(error) => assert!(error.is_retryable() && attempts < 50_000_000, "attempt {attempts}: {error}"),
        }
        attempts += 1;
        tokio::task::yield_now().await;
    };
    // The write that failed may have reached the journal whole: then it is there, though nobody was told so.
    let refused = expected.len().to_string();
    let found = ids(&*log).await;
    if found.contains(&refused) {
        expected.push(refused);
    }
    expected.push("9001".to_owned());
    assert_eq!(found, expected);
    assert_eq!(receipts[0].seq, Seq(expected.len() as u64), "no place was lost");
    handle.close().await.expect("close");

    let again = opened(&small, 0).await;
    assert_eq!(ids(&*again.storage().log).await, expected, "and after opening again");
    again.close().await.expect("close");
}
