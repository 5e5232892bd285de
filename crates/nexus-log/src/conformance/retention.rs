//! What goes, and what stays whatever retention says.

use std::time::Duration;

use nexus_core::ids::Seq;
use nexus_core::outcome::Disposition;

use super::{Harness, Settings, advance, append, commit, numbered, open, opened, outcome, start};
use crate::contract::{EventQuery, Log, Retention};

async fn places(log: &dyn Log) -> Vec<u64> {
    log.read(Seq(1), 4000).await.expect("read").iter().map(|record| record.seq.0).collect()
}

/// What is older than the age goes, to the second; the clock may have jumped.
pub async fn retention_by_age_takes_what_is_old(harness: &dyn Harness) {
    let retention = Retention { max_age: Some(Duration::from_secs(100)), max_bytes: None };
    let settings = Settings { retention, ..Settings::default() };
    let (place, opened, storage) = opened(harness, &settings).await;
    // Received at 0, 10, 20 ... 90, the fifth in the past.
    for n in 0..10 {
        let mut entry = numbered(&settings, n);
        if n == 4 {
            entry.received_at = start() - Duration::from_secs(1000);
        }
        append(&*storage.log, entry).await;
        settings.pass(10);
    }
    advance(&*storage.log, Seq(11)).await.expect("advance");
    append(&*storage.log, numbered(&settings, 10)).await;
    for (seconds, gone, left) in [
        (0, 1, vec![1, 2, 3, 4, 6, 7, 8, 9, 10, 11]),
        (0, 0, vec![1, 2, 3, 4, 6, 7, 8, 9, 10, 11]),
        (1, 1, vec![2, 3, 4, 6, 7, 8, 9, 10, 11]),
        (30, 3, vec![6, 7, 8, 9, 10, 11]),
        (10_000, 5, vec![11]),
    ] {
        settings.pass(seconds);
        assert_eq!(storage.log.retain().await.expect("retain"), gone, "after {seconds} seconds");
        assert_eq!(places(&*storage.log).await, left, "after {seconds} seconds");
    }
    opened.close().await.expect("close");
    let again = open(&*place, &settings).await;
    assert_eq!(places(&*again.storage().log).await, [11]);
    assert_eq!(append(&*again.storage().log, numbered(&settings, 11)).await, Seq(12), "places go on");
    again.close().await.expect("close");
}

/// The oldest go until what is left fits; with a bound of nothing, all that is delivered.
pub async fn retention_by_size_takes_the_oldest(harness: &dyn Harness) {
    let mut settings = Settings::default();
    let (place, opened, storage) = opened(harness, &settings).await;
    for first in [0, 1000, 2000] {
        let batch = (first..first + 1000).map(|n| numbered(&settings, n)).collect();
        storage.log.append(batch).await.expect("append");
    }
    advance(&*storage.log, Seq(3001)).await.expect("advance");
    assert_eq!(storage.log.retain().await.expect("retain"), 0, "no bound, nothing goes");
    opened.close().await.expect("close");

    settings.retention.max_bytes = Some(400_000);
    let again = open(&*place, &settings).await;
    let log = again.storage().log;
    let gone = log.retain().await.expect("retain");
    assert!(gone > 0 && gone < 3000, "{gone} went");
    assert_eq!(places(&*log).await, (gone + 1..=3000).collect::<Vec<_>>(), "the oldest went");
    assert_eq!(log.retain().await.expect("retain"), 0, "what is left fits");
    again.close().await.expect("close");

    settings.retention.max_bytes = Some(0);
    let last = open(&*place, &settings).await;
    assert_eq!(last.storage().log.retain().await.expect("retain"), 3000 - gone);
    assert!(places(&*last.storage().log).await.is_empty());
    assert_eq!(append(&*last.storage().log, numbered(&settings, 3000)).await, Seq(3001), "places go on");
    last.close().await.expect("close");
}

/// Neither age nor size takes what is not delivered yet, or waits to be tried again.
pub async fn retention_leaves_what_is_not_delivered_or_parked(harness: &dyn Harness) {
    let retention = Retention { max_age: Some(Duration::from_secs(1)), max_bytes: Some(0) };
    let settings = Settings { retention, ..Settings::default() };
    let (place, opened, storage) = opened(harness, &settings).await;
    storage.log.append((1..=10).map(|n| numbered(&settings, n)).collect()).await.expect("append");
    commit(&*storage.log, outcome(Seq(3), 1, Disposition::Retry { at: start() })).await;
    settings.pass(1_000_000);
    assert_eq!(storage.log.retain().await.expect("retain"), 0);
    advance(&*storage.log, Seq(6)).await.expect("advance");
    append(&*storage.log, numbered(&settings, 11)).await;
    assert_eq!(storage.log.retain().await.expect("retain"), 4);
    assert_eq!(places(&*storage.log).await, [3, 6, 7, 8, 9, 10, 11]);
    assert_eq!(storage.log.outcomes(Seq(3)).await.expect("outcomes").len(), 1);
    opened.close().await.expect("close");

    let again = open(&*place, &settings).await;
    let log = again.storage().log;
    assert_eq!(places(&*log).await, [3, 6, 7, 8, 9, 10, 11]);
    commit(&*log, outcome(Seq(3), 2, Disposition::Dead)).await;
    assert_eq!(log.retain().await.expect("retain"), 1);
    assert_eq!(places(&*log).await, [6, 7, 8, 9, 10, 11]);
    again.close().await.expect("close");
}

/// A removed event is in no index any more: it can be appended anew, and no answer names it.
pub async fn what_retention_took_is_gone_from_every_answer(harness: &dyn Harness) {
    let retention = Retention { max_age: Some(Duration::from_secs(10)), max_bytes: None };
    let settings = Settings { retention, ..Settings::default() };
    let (_place, opened, storage) = opened(harness, &settings).await;
    let log = &storage.log;
    let old = numbered(&settings, 1);
    let (seq, trace) = (append(&**log, old.clone()).await, old.trace.trace_id);
    let outcome = outcome(seq, 1, Disposition::Done);
    commit(&**log, outcome.clone()).await;
    advance(&**log, Seq(2)).await.expect("advance");
    settings.pass(11);
    append(&**log, numbered(&settings, 2)).await;
    assert_eq!(log.retain().await.expect("retain"), 1);

    assert_eq!(log.get(seq).await.expect("get"), None);
    assert!(log.find("1", None).await.expect("find").is_empty());
    assert!(log.outcomes(seq).await.expect("outcomes").is_empty());
    assert_eq!(log.outcome(outcome.invocation_id).await.expect("outcome"), None);
    let query = EventQuery { trace: Some(trace), limit: 10, ..EventQuery::default() };
    assert!(log.query(&query).await.expect("query").records.is_empty());
    let query = EventQuery { limit: 10, ..EventQuery::default() };
    assert_eq!(log.query(&query).await.expect("query").records.len(), 1);
    // Within the window, but there is no first one any more.
    assert_eq!(append(&**log, numbered(&settings, 1)).await, Seq(3));
    opened.close().await.expect("close");
}
