//! Appending: durable, ordered, whole, and once.

use nexus_core::event::{Data, Event};
use nexus_core::ids::{Digest, InvocationId, Seq};
use nexus_core::outcome::Disposition;
use nexus_core::record::Record;
use std::sync::Arc;

use super::{Harness, Settings, advance, append, numbered, open, opened, outcome, record};
use crate::contract::{Commit, EventQuery, Revision, StorageError};

/// What was appended is read back the same, before and after closing.
pub async fn appended_events_are_there_after_reopening(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, opened, storage) = opened(harness, &settings).await;
    let mut expected = Vec::new();
    for n in 0..20 {
        let entry = numbered(&settings, n);
        let seq = append(&*storage.log, entry.clone()).await;
        expected.push(Arc::new(Record { seq, entry }));
    }
    assert_eq!(storage.log.read(Seq(1), 100).await.expect("read"), expected);
    opened.close().await.expect("close");

    let again = open(&*place, &settings).await;
    let log = again.storage().log;
    assert_eq!(log.read(Seq(1), 100).await.expect("read"), expected);
    assert_eq!(*log.head().borrow(), Seq(20));
    for record in expected {
        assert_eq!(log.get(record.seq).await.expect("get"), Some(record));
    }
    assert_eq!(append(&*log, numbered(&settings, 20)).await, Seq(21));
    again.close().await.expect("close");
}

/// The first place is 1, and each next is one more.
pub async fn places_have_no_gaps(harness: &dyn Harness) {
    let settings = Settings::default();
    let (_place, opened, storage) = opened(harness, &settings).await;
    let mut next = 1;
    for size in [1_u64, 3, 100, 1] {
        let batch = (next..next + size).map(|n| numbered(&settings, n)).collect();
        let receipts = storage.log.append(batch).await.expect("append");
        let places: Vec<u64> = receipts.iter().map(|receipt| receipt.seq.0).collect();
        assert_eq!(places, (next..next + size).collect::<Vec<_>>());
        next += size;
    }
    assert!(storage.log.append(Vec::new()).await.expect("nothing to append").is_empty());
    assert_eq!(storage.log.get(Seq(0)).await.expect("get"), None);
    assert_eq!(storage.log.get(Seq(next)).await.expect("get"), None);
    opened.close().await.expect("close");
}

/// Many who append at once share the places among them; each batch keeps together.
pub async fn concurrent_appends_have_no_gaps(harness: &dyn Harness) {
    let settings = Settings::default();
    let (_place, opened, storage) = opened(harness, &settings).await;
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..16_u64 {
        let (log, settings) = (storage.log.clone(), settings.clone());
        tasks.spawn(async move {
            let mut places = Vec::new();
            for n in 0..20_u64 {
                let batch = (0..3).map(|part| numbered(&settings, client * 1000 + n * 10 + part)).collect();
                let receipts = log.append(batch).await.expect("append");
                assert!(receipts.windows(2).all(|pair| pair[0].seq.next() == pair[1].seq), "{receipts:?}");
                places.extend(receipts.into_iter().map(|receipt| receipt.seq.0));
            }
            places
        });
    }
    let mut places: Vec<u64> = tasks.join_all().await.into_iter().flatten().collect();
    places.sort_unstable();
    assert_eq!(places, (1..=16 * 20 * 3).collect::<Vec<_>>());
    opened.close().await.expect("close");
}

/// JSON with its spaces and long numbers, text, bytes and attributes come back as they were.
pub async fn payloads_are_kept_to_the_byte(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, opened, storage) = opened(harness, &settings).await;
    let mut entries = Vec::new();
    for json in [
        r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"b":1.0, "a":12345678901234567890123}}"#,
        r#"{"specversion":"1.0","id":"2","source":"/s","type":"t","datacontenttype":"text/plain","data":"Grüße\n\u0001"}"#,
        r#"{"specversion":"1.0","id":"3","source":"/s","type":"t","datacontenttype":"image/png","data_base64":"AAEC/w=="}"#,
        r#"{"specversion":"1.0","id":"4","source":"/s","type":"t","subject":"x","time":"2025-06-15T15:06:40.123Z","ext":7,"flag":true}"#,
        r#"{"specversion":"1.0","id":"5","source":"/s","type":"t","data":null}"#,
    ] {
        let mut entry = numbered(&settings, 0);
        entry.event = Event::from_json(json.as_bytes()).expect(json);
        entries.push(entry);
    }
    let mut large = record(&settings, "large", "/s", "t");
    let body: String = format!("[{}]", vec!["\"0123456789abcdef\""; 20_000].join(" ,"));
    large.event.data = Some(Data::from_body(body.into(), None).expect("JSON"));
    large.event.set_attribute("tenant", "acme").expect("an attribute");
    entries.push(large);
    storage.log.append(entries.clone()).await.expect("append");
    opened.close().await.expect("close");

    let again = open(&*place, &settings).await;
    let read = again.storage().log.read(Seq(1), 100).await.expect("read");
    assert_eq!(read.iter().map(|record| record.entry.clone()).collect::<Vec<_>>(), entries);
    again.close().await.expect("close");
}

/// The same `source` and `id` again: the first one's place and trace, and nothing is appended.
pub async fn duplicates_are_answered_with_the_first_receipt(harness: &dyn Harness) {
    let settings = Settings::default();
    let (_place, opened, storage) = opened(harness, &settings).await;
    let first = storage.log.append(vec![record(&settings, "a", "/s", "t")]).await.expect("append");
    let again = storage.log.append(vec![record(&settings, "a", "/s", "other type")]).await.expect("append");
    assert_eq!((again[0].seq, again[0].trace_id, again[0].duplicate), (first[0].seq, first[0].trace_id, true));
    // The same id of another source is another event.
    let other = storage.log.append(vec![record(&settings, "a", "/other", "t")]).await.expect("append");
    assert_eq!((other[0].seq, other[0].duplicate), (Seq(2), false));
    assert_eq!(storage.log.read(Seq(1), 10).await.expect("read").len(), 2);
    opened.close().await.expect("close");
}

/// Duplicates are found within one batch too.
pub async fn duplicates_within_a_batch_are_appended_once(harness: &dyn Harness) {
    let settings = Settings::default();
    let (_place, opened, storage) = opened(harness, &settings).await;
    let batch = ["a", "b", "a", "c", "b"].map(|id| record(&settings, id, "/s", "t")).to_vec();
    let receipts = storage.log.append(batch).await.expect("append");
    let found: Vec<(u64, bool)> = receipts.iter().map(|receipt| (receipt.seq.0, receipt.duplicate)).collect();
    assert_eq!(found, [(1, false), (2, false), (1, true), (3, false), (2, true)]);
    assert_eq!(receipts[2].trace_id, receipts[0].trace_id);
    opened.close().await.expect("close");
}

/// After the window the same `source` and `id` is a new event; and that one has a window of its own.
pub async fn the_window_ends(harness: &dyn Harness) {
    let settings = Settings { dedup_window: std::time::Duration::from_secs(60), ..Settings::default() };
    let (_place, opened, storage) = opened(harness, &settings).await;
    let mut answers = Vec::new();
    for seconds in [0, 59, 1, 30, 29, 1] {
        settings.pass(seconds);
        let receipts = storage.log.append(vec![record(&settings, "a", "/s", "t")]).await.expect("append");
        answers.push((receipts[0].seq.0, receipts[0].duplicate));
    }
    assert_eq!(answers, [(1, false), (1, true), (2, false), (2, true), (2, true), (3, false)]);
    opened.close().await.expect("close");
}

/// A restart forgets no duplicate.
pub async fn duplicates_are_known_after_reopening(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, opened, storage) = opened(harness, &settings).await;
    let first = storage.log.append(vec![record(&settings, "a", "/s", "t")]).await.expect("append");
    opened.close().await.expect("close");
    let again = open(&*place, &settings).await;
    let receipts = again.storage().log.append(vec![record(&settings, "a", "/s", "t")]).await.expect("append");
    assert_eq!((receipts[0].seq, receipts[0].trace_id, receipts[0].duplicate), (Seq(1), first[0].trace_id, true));
    again.close().await.expect("close");
}

/// A large batch is there as a whole, in its order, next to others.
pub async fn a_batch_is_appended_whole(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, opened, storage) = opened(harness, &settings).await;
    append(&*storage.log, numbered(&settings, 0)).await;
    let batch: Vec<_> = (1..=3000).map(|n| numbered(&settings, n)).collect();
    let receipts = storage.log.append(batch).await.expect("append");
    assert_eq!((receipts[0].seq, receipts[2999].seq), (Seq(2), Seq(3001)));
    opened.close().await.expect("close");
    let again = open(&*place, &settings).await;
    let log = again.storage().log;
    let (mut from, mut seen) = (Seq(1), Vec::new());
    loop {
        let records = log.read(from, 1000).await.expect("read");
        let Some(last) = records.last() else { break };
        from = last.seq.next();
        seen.extend(records.iter().map(|record| record.entry.event.id.clone()));
    }
    assert_eq!(seen, (0..=3000).map(|n| n.to_string()).collect::<Vec<_>>());
    again.close().await.expect("close");
}

/// Whoever waits for the head is woken by an append, and may then read it.
pub async fn the_head_wakes_who_waits(harness: &dyn Harness) {
    let settings = Settings::default();
    let (_place, opened, storage) = opened(harness, &settings).await;
    let mut head = storage.log.head();
    assert_eq!(*head.borrow_and_update(), Seq(0));
    let waiting = async {
        head.changed().await.expect("the log is open");
        let seq = *head.borrow_and_update();
        assert_eq!(storage.log.read(seq, 1).await.expect("read").len(), 1, "what the head names can be read");
        seq
    };
    let (seen, seq) = tokio::join!(waiting, append(&*storage.log, numbered(&settings, 1)));
    assert_eq!(seen, seq);
    opened.close().await.expect("close");
}

/// Handles that outlive the storage answer that it is closed.
pub async fn after_closing_everything_says_so(harness: &dyn Harness) {
    let settings = Settings::default();
    let (_place, opened, storage) = opened(harness, &settings).await;
    append(&*storage.log, numbered(&settings, 1)).await;
    opened.close().await.expect("close");
    let (log, registry, artifacts) = (&storage.log, &storage.registry, &storage.artifacts);
    let closed = |what: &str, error: Option<StorageError>| {
        assert!(matches!(error, Some(StorageError::Closed)), "{what}: {error:?}");
    };
    closed("append", log.append(vec![numbered(&settings, 2)]).await.err());
    let outcome = outcome(Seq(1), 1, Disposition::Done);
    closed("commit", log.commit(Commit { outcome: outcome.into(), emitted: Vec::new() }).await.err());
    closed("advance", advance(&**log, Seq(1)).await.err());
    closed("progress", log.progress().await.err());
    closed("read", log.read(Seq(1), 1).await.err());
    closed("get", log.get(Seq(1)).await.err());
    closed("find", log.find("1", None).await.err());
    closed("query", log.query(&EventQuery { limit: 1, ..EventQuery::default() }).await.err());
    closed("outcomes", log.outcomes(Seq(1)).await.err());
    closed("outcome", log.outcome(InvocationId::generate()).await.err());
    closed("retain", log.retain().await.err());
    closed("registry get", registry.get("k").await.err());
    closed("registry put", registry.put("k", "v".into(), None).await.err());
    closed("registry delete", registry.delete("k", Revision(1)).await.err());
    closed("registry list", registry.list("").await.err());
    closed("artifact put", artifacts.put("x".into()).await.err());
    closed("artifact get", artifacts.get(Digest::of(b"x")).await.err());
}
