//! From a store into a file and into a store again: everything is as it was.

use nexus_core::ids::Seq;
use nexus_core::outcome::Disposition;
use nexus_log::Commit;
use nexus_log::conformance::outcome;
use nexus_log::embedded::admin;

use crate::damage::Raw;
use crate::stores::{MAX_AGE, backup, check, contents, digests, grown, healthy, on, opened, restore, settings, varied};

#[tokio::test]
async fn everything_is_as_it_was_and_goes_on_from_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = settings();
    let (old, file, new) =
        (directory.path().join("old"), directory.path().join("backup"), directory.path().join("deep/new"));
    grown(&old, &settings).await;
    let before = healthy(&old);
    assert!(
        before.events > 2_000 && before.outcomes > 150 && before.parked > 15 && before.dead_letters > 10,
        "{before:?}"
    );

    let summary = backup(&old, &file).expect("backup");
    assert_eq!(summary, admin::verify(&file, &mut on).expect("verify"));
    let counts = (summary.events, summary.outcomes, summary.registry, summary.artifacts);
    assert_eq!(counts, (before.events, before.outcomes, before.registry, before.artifacts));
    assert_eq!((summary.parked, summary.dead_letters), (before.parked, before.dead_letters));
    assert_eq!(summary.file_bytes, file.metadata().expect("the file").len());
    assert_eq!(restore(&file, &new).expect("restore"), summary);
    let after = healthy(&new);
    assert_eq!(after, before);
    // A backup of the restored store is the same but for its time.
    let again = backup(&new, &directory.path().join("again")).expect("backup again");
    assert_eq!(admin::Summary { made_at: summary.made_at, ..again }, summary);

    let digests = digests(&old);
    assert_eq!(digests, crate::stores::digests(&new));
    let (first, second) = (opened(&old, &settings).await, opened(&new, &settings).await);
    let expected = contents(&first.storage(), &digests).await;
    assert_eq!(expected.head, summary.head);
    assert!(expected.records.first().is_some_and(|record| record.seq == Seq(700)), "retention left a gap");
    assert!(expected.queried.values().filter(|found| !found.is_empty()).count() > 30);
    assert!(expected == contents(&second.storage(), &digests).await, "the contract says something else of it");

    // What is asked of both from now on is answered by both in the same way.
    let mut revisions = Vec::new();
    for handle in [&first, &second] {
        let log = handle.storage().log;
        let duplicate = log.append(vec![varied(&settings, 10_003)]).await.expect("append");
        assert!(duplicate[0].duplicate && duplicate[0].seq > Seq(4_500), "{duplicate:?}");
        let receipts = log.append(vec![varied(&settings, 30_000), varied(&settings, 10_500)]).await.expect("append");
        assert_eq!((receipts[0].seq, receipts[0].duplicate), (summary.head.next(), false));
        assert!(!receipts[1].duplicate, "its window has passed");
        let known = expected.by_invocation[20].clone();
        log.commit(Commit { outcome: known.into(), emitted: vec![] }).await.expect("commit again");
        let fresh = outcome(Seq(700), 2, Disposition::Done);
        log.commit(Commit { outcome: fresh.into(), emitted: vec![] }).await.expect("commit");
        let registry = handle.storage().registry;
        let (_, revision) = registry.get("functions/002").await.expect("get").expect("it is there");
        let next = registry.put("functions/002", "new".into(), Some(revision)).await.expect("put");
        revisions.push(next);
    }
    let last = expected.registry.iter().map(|(_, _, revision)| revision.0).max().expect("entries");
    assert!(revisions[0] == revisions[1] && revisions[0].0 > last, "{revisions:?}");
    settings.pass(MAX_AGE - 100);
    let mut gone = Vec::new();
    for handle in [first, second] {
        let log = handle.storage().log;
        gone.push((log.retain().await.expect("retain"), log.read(Seq(1), 1).await.expect("read")[0].seq));
        handle.close().await.expect("close");
    }
    assert!(gone[0] == gone[1] && gone[0].0 > 1_000, "{gone:?}");
    for path in [&old, &new] {
        assert_eq!(healthy(path).left_over, 0);
    }
}

#[tokio::test]
async fn an_empty_store_comes_back_empty() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = settings();
    let (old, file, new) = (directory.path().join("old"), directory.path().join("file"), directory.path().join("new"));
    opened(&old, &settings).await.close().await.expect("close");
    let summary = backup(&old, &file).expect("backup");
    assert_eq!((summary.head, summary.events), (Seq(0), 0));
    // A directory that is there and empty will do, as a mount is.
    std::fs::create_dir(&new).expect("a directory");
    restore(&file, &new).expect("restore");
    assert_eq!(healthy(&new).events, 0);
    let handle = opened(&new, &settings).await;
    assert_eq!(handle.storage().log.append(vec![varied(&settings, 1)]).await.expect("append")[0].seq, Seq(1));
    handle.close().await.expect("close");
}

/// A replay that ends while retention takes its event can leave its outcome behind; it goes along as it is.
#[tokio::test]
async fn an_outcome_whose_event_is_gone_goes_along() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = settings();
    let (old, file, new) = (directory.path().join("old"), directory.path().join("file"), directory.path().join("new"));
    grown(&old, &settings).await;
    let raw = Raw::open(&old);
    let (key, _) = raw.entries("outcomes", b"").into_iter().next_back().expect("an outcome");
    raw.put("events", &key[..8], None);
    drop(raw);
    let seq = Seq(u64::from_be_bytes(key[..8].try_into().expect("a place")));

    backup(&old, &file).expect("backup");
    restore(&file, &new).expect("restore");
    let problems: Vec<String> = check(&new).problems.iter().map(ToString::to_string).collect();
    let expected = format!("of event {seq}: its event is not there");
    assert!(problems.iter().any(|problem| problem.contains(&expected)), "{problems:?}");
    let handle = opened(&new, &settings).await;
    let log = handle.storage().log;
    let outcomes = log.outcomes(seq).await.expect("outcomes");
    assert!(!outcomes.is_empty());
    for outcome in outcomes {
        assert_eq!(log.outcome(outcome.invocation_id).await.expect("outcome"), Some(outcome));
    }
    handle.close().await.expect("close");
}
