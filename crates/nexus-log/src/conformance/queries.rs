//! Reading, finding and querying.

use std::collections::BTreeSet;

use jiff::SignedDuration;
use nexus_core::ids::Seq;
use nexus_core::trace::TraceId;

use super::{Harness, Settings, append, numbered, open, opened, record, start};
use crate::contract::{EventQuery, Log};

/// `read` starts at any place, gives at most what was asked for, and nothing at the end.
pub async fn reads_go_on_from_any_place(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, opened, storage) = opened(harness, &settings).await;
    storage.log.append((1..=10).map(|n| numbered(&settings, n)).collect()).await.expect("append");
    let check = async |log: &dyn Log, from: u64, max: usize, expected: std::ops::Range<u64>| {
        let read = log.read(Seq(from), max).await.expect("read");
        let places: Vec<u64> = read.iter().map(|record| record.seq.0).collect();
        assert_eq!(places, expected.collect::<Vec<_>>(), "from {from}, at most {max}");
        assert!(read.iter().all(|record| record.entry.event.id == record.seq.to_string()));
    };
    let all = async |log: &dyn Log| {
        check(log, 0, 100, 1..11).await;
        check(log, 1, 3, 1..4).await;
        check(log, 8, 100, 8..11).await;
        check(log, 10, 1, 10..11).await;
        check(log, 11, 100, 0..0).await;
        check(log, 1, 0, 0..0).await;
    };
    all(&*storage.log).await;
    opened.close().await.expect("close");
    let again = open(&*place, &settings).await;
    all(&*again.storage().log).await;
    again.close().await.expect("close");
}

/// By id alone: the newest of each source. With a source: of that one.
pub async fn find_gives_the_newest_of_each_source(harness: &dyn Harness) {
    let settings = Settings { dedup_window: std::time::Duration::from_secs(10), ..Settings::default() };
    let (_place, opened, storage) = opened(harness, &settings).await;
    for (id, source) in [("x", "/a"), ("x", "/b"), ("y", "/a"), ("x", "/a")] {
        append(&*storage.log, record(&settings, id, source, "t")).await;
        settings.pass(20);
    }
    for (id, source, expected) in [
        ("x", None, vec![2, 4]),
        ("x", Some("/a"), vec![4]),
        ("x", Some("/b"), vec![2]),
        ("x", Some("/c"), vec![]),
        ("y", None, vec![3]),
        ("z", None, vec![]),
        ("", None, vec![]),
    ] {
        let found = storage.log.find(id, source).await.expect("find");
        let places: BTreeSet<u64> = found.iter().map(|record| record.seq.0).collect();
        assert_eq!(places, expected.iter().copied().collect(), "{id:?} of {source:?}");
        assert_eq!(found.len(), expected.len());
    }
    opened.close().await.expect("close");
}

async fn all_pages(log: &dyn Log, mut query: EventQuery) -> Vec<u64> {
    let mut places = Vec::new();
    loop {
        let page = log.query(&query).await.expect("query");
        assert!(page.records.len() <= query.limit, "a page is no larger than asked for");
        places.extend(page.records.iter().map(|record| record.seq.0));
        match page.next {
            Some(next) => {
                assert!(query.before.is_none_or(|before| next < before), "pages go on");
                query.before = Some(next);
            }
            None => return places,
        }
    }
}

/// Each field alone and all together, newest first, before and after a restart.
pub async fn queries_filter_by_every_field(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, opened, storage) = opened(harness, &settings).await;
    let shared_trace = TraceId::generate();
    // Two types, three sources, every fifth of one trace, one a second.
    let mut model = Vec::new();
    for n in 1..=60_u64 {
        let mut entry = record(&settings, &n.to_string(), &format!("/source/{}", n % 3), &format!("type.{}", n % 2));
        if n % 5 == 0 {
            entry.trace.trace_id = shared_trace;
        }
        append(&*storage.log, entry.clone()).await;
        model.push((n, entry));
        settings.pass(1);
    }
    opened.close().await.expect("close");
    let again = open(&*place, &settings).await;
    let log = again.storage().log;
    let at = |seconds: i64| Some(start() + SignedDuration::from_secs(seconds));
    let base = EventQuery { limit: 7, ..EventQuery::default() };
    let ty = Some("type.1".to_owned());
    let source = Some("/source/2".to_owned());
    for query in [
        base.clone(),
        EventQuery { ty: ty.clone(), ..base.clone() },
        EventQuery { source: source.clone(), ..base.clone() },
        EventQuery { ty: ty.clone(), source: source.clone(), ..base.clone() },
        EventQuery { trace: Some(shared_trace), ..base.clone() },
        EventQuery { trace: Some(TraceId::generate()), ..base.clone() },
        EventQuery { from: at(10), ..base.clone() },
        EventQuery { to: at(10), ..base.clone() },
        EventQuery { from: at(10), to: at(20), ..base.clone() },
        EventQuery { from: at(20), to: at(10), ..base.clone() },
        EventQuery { before: Some(Seq(30)), ..base.clone() },
        EventQuery { before: Some(Seq(1)), ..base.clone() },
        EventQuery { before: Some(Seq(u64::MAX)), limit: 1000, ..base.clone() },
        EventQuery { ty: Some("absent".to_owned()), ..base.clone() },
        EventQuery { source: Some("/absent".to_owned()), ..base.clone() },
        EventQuery { ty, source, trace: Some(shared_trace), from: at(3), to: at(50), before: Some(Seq(48)), limit: 1 },
    ] {
        let expected: Vec<u64> = model
            .iter()
            .rev()
            .filter(|(n, entry)| {
                query.from.is_none_or(|from| entry.received_at >= from)
                    && query.to.is_none_or(|to| entry.received_at < to)
                    && query.ty.as_ref().is_none_or(|ty| entry.event.ty == *ty)
                    && query.source.as_ref().is_none_or(|source| entry.event.source == *source)
                    && query.trace.is_none_or(|trace| entry.trace.trace_id == trace)
                    && query.before.is_none_or(|before| *n < before.0)
            })
            .map(|(n, _)| *n)
            .collect();
        assert_eq!(all_pages(&*log, query.clone()).await, expected, "{query:?}");
    }
    again.close().await.expect("close");
}

/// Time is the reception's, not the place's: when the clock jumps back, nothing is missed or added.
pub async fn queries_filter_exactly_when_the_clock_jumps(harness: &dyn Harness) {
    let settings = Settings::default();
    let (_place, opened, storage) = opened(harness, &settings).await;
    let mut model = Vec::new();
    // More than one index block, with jumps of hours in both directions.
    for batch in 0..30_i64 {
        settings.pass(if batch % 4 == 3 { -7_200 } else { 3_600 });
        let entries: Vec<_> = (0..100).map(|n| numbered(&settings, batch as u64 * 100 + n)).collect();
        for (entry, receipt) in entries.clone().into_iter().zip(storage.log.append(entries).await.expect("append")) {
            model.push((receipt.seq.0, entry.received_at));
        }
    }
    for (from, to) in [(0, 7_200), (3_600, 3_601), (20_000, 40_000), (-10_000, 1), (0, 1_000_000)] {
        let (from, to) = (start() + SignedDuration::from_secs(from), start() + SignedDuration::from_secs(to));
        let query = EventQuery { from: Some(from), to: Some(to), limit: 1000, ..EventQuery::default() };
        let expected: Vec<u64> =
            model.iter().rev().filter(|(_, at)| (from..to).contains(at)).map(|(seq, _)| *seq).collect();
        assert_eq!(all_pages(&*storage.log, query).await, expected, "{from} to {to}");
    }
    opened.close().await.expect("close");
}

/// Pages of any size, put together, are everything once; the last says that it is the last.
pub async fn pages_cover_everything_once(harness: &dyn Harness) {
    let settings = Settings::default();
    let (_place, opened, storage) = opened(harness, &settings).await;
    storage.log.append((1..=50).map(|n| numbered(&settings, n)).collect()).await.expect("append");
    for limit in [1, 7, 10, 50, 51, 1000] {
        let query = EventQuery { limit, ..EventQuery::default() };
        assert_eq!(all_pages(&*storage.log, query.clone()).await, (1..=50).rev().collect::<Vec<_>>(), "{limit}");
        let first = storage.log.query(&query).await.expect("query");
        assert_eq!(first.next.is_some(), limit < 50, "a next page is named only if it has something");
    }
    opened.close().await.expect("close");
}
