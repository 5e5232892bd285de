//! A backup of a store that is open, while it is written to.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nexus_core::ids::Seq;
use nexus_core::outcome::Disposition;
use nexus_log::conformance::outcome;
use nexus_log::embedded::admin::{AdminError, Existing, Summary};
use nexus_log::embedded::{Embedded, EmbeddedConfig, open};
use nexus_log::{Retention, StorageError};

use crate::stores::{append, backup, commit, healthy, on, opened, read_all, restore, settings, small, varied};

/// Appends, delivers, retries, retains and deploys until it is aborted.
fn traffic(handle: &Embedded) -> tokio::task::JoinSet<()> {
    let mut work = tokio::task::JoinSet::new();
    let delivered = Arc::new(AtomicU64::new(0));
    for client in 0..3_u64 {
        let log = handle.storage().log;
        work.spawn(async move {
            let settings = settings();
            for n in 0_u64.. {
                let first = client * 1_000_000 + n * 20;
                append(&*log, (first..first + 1 + n % 20).map(|n| varied(&settings, n)).collect()).await;
            }
        });
    }
    let (log, told) = (handle.storage().log, delivered.clone());
    work.spawn(async move {
        let settings = settings();
        let mut head = log.head();
        for seq in 1_u64.. {
            head.wait_for(|head| head.0 >= seq).await.expect("a head");
            let retries = seq.is_multiple_of(5);
            if retries {
                let at = nexus_log::conformance::start();
                commit(&*log, outcome(Seq(seq), 1, Disposition::Retry { at }), vec![]).await;
            }
            if !retries || !seq.is_multiple_of(50) {
                let emitted = if seq.is_multiple_of(7) { vec![varied(&settings, 9_000_000 + seq)] } else { vec![] };
                commit(&*log, outcome(Seq(seq), 2, Disposition::Done), emitted).await;
            }
            log.advance(Seq(seq + 1), 0).await.expect("advance");
            told.store(seq, Ordering::Relaxed);
        }
    });
    let log = handle.storage().log;
    work.spawn(async move {
        loop {
            log.retain().await.expect("retain");
            tokio::task::yield_now().await;
        }
    });
    let registry = handle.storage().registry;
    work.spawn(async move {
        for n in 0_u64.. {
            let key = format!("functions/{}", n % 50);
            let entry = registry.get(&key).await.expect("get");
            registry.put(&key, n.to_string().into(), entry.map(|(_, at)| at)).await.expect("put");
        }
    });
    work
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_is_of_one_moment() {
    let directory = tempfile::tempdir().expect("a directory");
    let retention = Retention { max_age: None, max_bytes: Some(2 << 20) };
    let config = EmbeddedConfig { retention, reserve_bytes: 0, ..EmbeddedConfig::new(directory.path().join("data")) };
    let handle = open(config).await.expect("open");
    let mut work = traffic(&handle);
    let mut heads = handle.storage().log.head();
    let mut made: Vec<(Summary, Seq)> = Vec::new();
    for n in 0..6 {
        heads.wait_for(|head| head.0 > 1_500 * (n + 1)).await.expect("a head");
        let before = *heads.borrow();
        let to = directory.path().join(format!("file-{n}"));
        let summary = handle.running().backup_file(to, Existing::Keep, on).await.expect("backup");
        assert!(summary.head >= before, "what was answered before it began is in it");
        made.push((summary, before));
    }
    if let Some(Err(error)) = work.try_join_next() {
        panic!("the traffic broke off: {error}");
    }
    work.shutdown().await;
    handle.close().await.expect("close");

    assert!(made.iter().any(|(summary, _)| summary.events < summary.head.0), "retention took some");
    for (n, (summary, _)) in made.iter().enumerate() {
        let new = directory.path().join(format!("new-{n}"));
        restore(&directory.path().join(format!("file-{n}")), &new).expect("restore");
        let report = healthy(&new);
        assert_eq!((report.events, report.outcomes), (summary.events, summary.outcomes));
        let handle = opened(&new, &settings()).await;
        let log = handle.storage().log;
        assert_eq!(*log.head().borrow(), summary.head);
        // Above the mark nothing is missing; below it, what retention took alone.
        let records = read_all(&*log).await;
        let (below, above): (Vec<u64>, Vec<u64>) =
            records.iter().map(|record| record.seq.0).partition(|seq| Seq(*seq) < log.delivered_below());
        assert_eq!(above, (log.delivered_below().0.max(1)..=summary.head.0).collect::<Vec<_>>());
        assert!(below.is_sorted());
        for seq in (1..=summary.head.0).map(Seq) {
            let outcomes = log.outcomes(seq).await.expect("outcomes");
            assert!(outcomes.is_empty() || records.binary_search_by_key(&seq, |record| record.seq).is_ok());
        }
        handle.close().await.expect("close");
    }
}

#[tokio::test]
async fn a_running_backup_is_the_same_as_one_of_a_store_that_rests() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = settings();
    let data = directory.path().join("data");
    small(&data, &settings).await;
    let resting = backup(&data, &directory.path().join("resting")).expect("backup");
    let handle = opened(&data, &settings).await;
    let (bytes, running) = handle.running().backup(Vec::new(), on).await.expect("backup");
    assert_eq!(Summary { made_at: resting.made_at, ..running }, resting);
    assert_eq!(bytes.len() as u64, resting.file_bytes);
    std::fs::write(directory.path().join("running"), bytes).expect("write");
    restore(&directory.path().join("running"), &directory.path().join("new")).expect("restore");
    healthy(&directory.path().join("new"));
    handle.close().await.expect("close");
}

/// Closing waits for whoever reads; a backup gives way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_backup_gives_way_when_the_store_is_closed_or_nobody_waits() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let settings = settings();
    small(&data, &settings).await;
    let handle = opened(&data, &settings).await;
    let running = handle.running();

    // Dropped in the middle: its file goes, and the next one begins.
    let (began, begun) = std::sync::mpsc::channel();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let watch = move |_| {
        began.send(()).expect("somebody waits");
        let _until_dropped = gone.recv();
        ControlFlow::Continue(())
    };
    let file = directory.path().join("dropped");
    let task = tokio::spawn({
        let (running, file) = (running.clone(), file.clone());
        async move { running.backup_file(file, Existing::Keep, watch).await }
    });
    tokio::task::spawn_blocking(move || begun.recv().expect("it begins")).await.expect("no panic");
    task.abort();
    assert!(task.await.expect_err("it was aborted").is_cancelled());
    drop(go);
    running.backup(Vec::new(), on).await.expect("the next one");
    assert!(!file.exists());

    let (began, begun) = std::sync::mpsc::channel();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let mut first = true;
    let watch = move |_| {
        if std::mem::take(&mut first) {
            began.send(()).expect("somebody waits");
            let _until_dropped = gone.recv();
        }
        ControlFlow::Continue(())
    };
    let task = tokio::spawn({
        let running = running.clone();
        async move { running.backup(Vec::new(), watch).await }
    });
    tokio::task::spawn_blocking(move || begun.recv().expect("it begins")).await.expect("no panic");
    let (log, closing) = (handle.storage().log, tokio::spawn(handle.close()));
    while !matches!(log.read(Seq(1), 1).await, Err(StorageError::Closed)) {
        tokio::task::yield_now().await;
    }
    drop(go);
    let broken = task.await.expect("no panic");
    assert!(matches!(broken, Err(AdminError::Storage(StorageError::Closed))), "{broken:?}");
    closing.await.expect("no panic").expect("close");
    let closed = running.backup(Vec::new(), on).await;
    assert!(matches!(closed, Err(AdminError::Storage(StorageError::Closed))), "{closed:?}");
}
