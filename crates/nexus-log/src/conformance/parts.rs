//! The registry and the artifacts.

use bytes::Bytes;
use nexus_core::ids::Digest;

use super::{Harness, Settings, open, opened};
use crate::contract::{Revision, StorageError};

fn conflict<T: std::fmt::Debug>(result: Result<T, StorageError>, key: &str) {
    match result {
        Err(StorageError::Conflict { key: named }) => assert_eq!(named, key),
        other => panic!("{other:?}"),
    }
}

/// A write needs the entry to be as expected; of many at once, one wins.
pub async fn the_registry_compares_and_sets(harness: &dyn Harness) {
    let settings = Settings::default();
    let (_place, opened, storage) = opened(harness, &settings).await;
    let registry = &storage.registry;
    let mut changes = registry.changes();
    changes.borrow_and_update();
    assert_eq!(registry.get("k").await.expect("get"), None);
    conflict(registry.put("k", "0".into(), Some(Revision(1))).await, "k");
    let first = registry.put("k", "1".into(), None).await.expect("put");
    assert!(changes.has_changed().expect("open"), "whoever watches is told");
    conflict(registry.put("k", "2".into(), None).await, "k");
    let second = registry.put("k", "2".into(), Some(first)).await.expect("put");
    assert_eq!((second.0, *changes.borrow_and_update()), (first.0 + 1, second.0), "changes are counted");
    conflict(registry.put("k", "3".into(), Some(first)).await, "k");
    assert_eq!(registry.get("k").await.expect("get"), Some((Bytes::from("2"), second)));

    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..16 {
        let registry = registry.clone();
        tasks.spawn(async move { registry.put("k", format!("racer {n}").into(), Some(second)).await });
    }
    let won = tasks.join_all().await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1);
    opened.close().await.expect("close");
}

/// Lists are by prefix, in the order of keys; a removed entry is gone, and can be made again.
pub async fn the_registry_lists_and_deletes(harness: &dyn Harness) {
    let settings = Settings::default();
    let (_place, opened, storage) = opened(harness, &settings).await;
    let registry = &storage.registry;
    for key in ["b/2", "a/1", "b/1", "b", "c", "b/10", "ü"] {
        registry.put(key, key.to_owned().into(), None).await.expect("put");
    }
    for (prefix, expected) in [
        ("", vec!["a/1", "b", "b/1", "b/10", "b/2", "c", "ü"]),
        ("b/", vec!["b/1", "b/10", "b/2"]),
        ("b/1", vec!["b/1", "b/10"]),
        ("d", vec![]),
    ] {
        let listed = registry.list(prefix).await.expect("list");
        assert!(listed.iter().all(|(key, value, _)| key.as_bytes() == value), "{listed:?}");
        assert_eq!(listed.into_iter().map(|(key, ..)| key).collect::<Vec<_>>(), expected, "{prefix:?}");
    }
    let (_, revision) = registry.get("b/1").await.expect("get").expect("is there");
    conflict(registry.delete("b/1", Revision(revision.0 + 1000)).await, "b/1");
    conflict(registry.delete("absent", revision).await, "absent");
    registry.delete("b/1", revision).await.expect("delete");
    conflict(registry.delete("b/1", revision).await, "b/1");
    assert_eq!(registry.get("b/1").await.expect("get"), None);
    let again = registry.put("b/1", "again".into(), None).await.expect("put");
    assert_ne!(again, revision, "a revision is not used twice");
    opened.close().await.expect("close");
}

/// Values, revisions and removals are there after a restart.
pub async fn the_registry_is_there_after_reopening(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, opened, storage) = opened(harness, &settings).await;
    let kept = storage.registry.put("kept", Bytes::from_static(&[0, 1, 255]), None).await.expect("put");
    let gone = storage.registry.put("gone", Bytes::new(), None).await.expect("put");
    storage.registry.delete("gone", gone).await.expect("delete");
    opened.close().await.expect("close");
    let again = open(&*place, &settings).await;
    let registry = again.storage().registry;
    assert_eq!(registry.list("").await.expect("list"), [("kept".to_owned(), Bytes::from_static(&[0, 1, 255]), kept)]);
    let newer = registry.put("gone", Bytes::new(), None).await.expect("put");
    assert!(newer != kept && newer != gone, "a revision is not used twice");
    again.close().await.expect("close");
}

/// An artifact is found by what it is.
pub async fn artifacts_are_kept_once_and_checked(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, opened, storage) = opened(harness, &settings).await;
    let blobs = [Bytes::new(), Bytes::from_static(b"\0asm"), Bytes::from(vec![7; 3 << 20])];
    for blob in &blobs {
        let digest = storage.artifacts.put(blob.clone()).await.expect("put");
        assert_eq!(digest, Digest::of(blob));
        assert_eq!(storage.artifacts.put(blob.clone()).await.expect("put again"), digest);
    }
    opened.close().await.expect("close");
    let again = open(&*place, &settings).await;
    let artifacts = again.storage().artifacts;
    for blob in blobs {
        assert_eq!(artifacts.get(Digest::of(&blob)).await.expect("get"), Some(blob));
    }
    assert_eq!(artifacts.get(Digest::of(b"absent")).await.expect("get"), None);
    again.close().await.expect("close");
}
