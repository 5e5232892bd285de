//! The data directory: whose it is, of which format, and what is wrong with it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use nexus_core::ids::Seq;
use nexus_log::StorageError;
use nexus_log::conformance::{Settings, numbered};
use nexus_log::embedded::{EmbeddedConfig, open};

async fn error(config: EmbeddedConfig) -> StorageError {
    match open(config).await {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

/// Appends one event and closes.
async fn used(path: &Path) {
    let handle = open(EmbeddedConfig::new(path)).await.expect("open");
    handle.storage().log.append(vec![numbered(&Settings::default(), 1)]).await.expect("append");
    handle.close().await.expect("close");
}

#[tokio::test]
async fn it_is_made_for_nobody_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("a/b");
    used(&path).await;
    for part in ["a", "a/b", "a/b/artifacts"] {
        let mode = directory.path().join(part).metadata().expect(part).permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{part}");
    }
}

#[tokio::test]
async fn a_second_opening_is_told_who_has_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let handle = open(EmbeddedConfig::new(directory.path())).await.expect("open");
    let second = error(EmbeddedConfig::new(directory.path())).await;
    assert!(matches!(&second, StorageError::Locked { path } if Path::new(path) == directory.path()), "{second}");
    handle.close().await.expect("close");
    open(EmbeddedConfig::new(directory.path())).await.expect("open again").close().await.expect("close");
}

#[tokio::test]
async fn formats_are_told_apart() {
    let directory = tempfile::tempdir().expect("a directory");
    used(directory.path()).await;
    let check = async |text: Option<&str>, expected: fn(&StorageError) -> bool| {
        let path = directory.path().join("FORMAT");
        match text {
            Some(text) => std::fs::write(path, text).expect("write"),
            None => std::fs::remove_file(path).expect("remove"),
        }
        let found = error(EmbeddedConfig::new(directory.path())).await;
        assert!(expected(&found), "{text:?}: {found}");
    };
    check(Some("nexus-log 2\n"), |e| matches!(e, StorageError::Newer { found: 2, known: 1 })).await;
    check(Some("something else"), |e| matches!(e, StorageError::Damaged(_))).await;
    check(Some(""), |e| matches!(e, StorageError::Damaged(_))).await;
    check(None, |e| matches!(e, StorageError::Damaged(_))).await;
}

#[tokio::test]
async fn a_database_that_was_never_fully_made_is_made_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    used(directory.path()).await;
    // As if the process had ended before the library wrote its last file.
    std::fs::remove_file(directory.path().join("db/version")).expect("remove");
    used(directory.path()).await;
}

#[tokio::test]
async fn a_changed_artifact_is_noticed_and_mended_by_putting_it_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let handle = open(EmbeddedConfig::new(directory.path())).await.expect("open");
    let artifacts = handle.storage().artifacts;
    let digest = artifacts.put("component".into()).await.expect("put");
    std::fs::write(directory.path().join("artifacts").join(digest.hex()), "changed").expect("write");
    let found = artifacts.get(digest).await;
    assert!(matches!(found, Err(StorageError::Damaged(_))), "{found:?}");
    artifacts.put("component".into()).await.expect("put again");
    assert_eq!(artifacts.get(digest).await.expect("get"), Some("component".into()));
    handle.close().await.expect("close");
}

#[tokio::test]
async fn a_path_that_is_a_file_says_so() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let found = error(EmbeddedConfig::new(file.path())).await;
    assert!(matches!(&found, StorageError::Failed(why) if why.contains(&*file.path().to_string_lossy())), "{found}");
}

#[tokio::test]
async fn dropping_the_handle_lets_go_in_the_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let handle = open(EmbeddedConfig::new(directory.path())).await.expect("open");
    let log = handle.storage().log;
    log.append(vec![numbered(&Settings::default(), 1)]).await.expect("append");
    drop(handle);
    assert!(matches!(log.read(Seq(1), 1).await, Err(StorageError::Closed)));
}

#[tokio::test]
async fn what_no_storage_can_do_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let handle = open(EmbeddedConfig::new(directory.path())).await.expect("open");
    let storage = handle.storage();
    let settings = Settings::default();
    let invalid = |what: &str, error: Option<StorageError>| {
        assert!(
            error.as_ref().is_some_and(|e| matches!(e, StorageError::Invalid(_)) && !e.is_retryable()),
            "{what}: {error:?}"
        );
    };
    let outcome = nexus_log::conformance::outcome(Seq(1), 1, nexus_core::outcome::Disposition::Done);
    invalid(
        "an outcome of no event",
        storage.log.commit(nexus_log::Commit { outcome: outcome.into(), emitted: vec![] }).await.err(),
    );
    let batch = (0..10_001).map(|n| numbered(&settings, n)).collect();
    invalid("a batch without end", storage.log.append(batch).await.err());
    invalid("a key that is empty", storage.registry.put("", "v".into(), None).await.err());
    invalid("a key that is too long", storage.registry.put(&"k".repeat(2000), "v".into(), None).await.err());
    assert_eq!(*storage.log.head().borrow(), Seq(0));
    handle.close().await.expect("close");
}

#[tokio::test]
async fn more_than_the_queue_holds_is_refused_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = EmbeddedConfig { queue_max: 4, ..EmbeddedConfig::new(directory.path()) };
    let handle = open(config).await.expect("open");
    let mut appends = tokio::task::JoinSet::new();
    for n in 0..500 {
        let log = handle.storage().log;
        appends.spawn(async move { log.append(vec![numbered(&Settings::default(), n)]).await });
    }
    let (mut taken, mut busy) = (0, 0);
    while let Some(answer) = appends.join_next().await {
        match answer.expect("no panic") {
            Ok(_) => taken += 1,
            Err(StorageError::Busy { waiting }) => {
                assert_eq!(waiting, 4);
                busy += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(taken >= 4 && busy > 0, "{taken} taken, {busy} refused");
    assert_eq!(*handle.storage().log.head().borrow(), Seq(taken));
    handle.close().await.expect("close");
}
