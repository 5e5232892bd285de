//! Stores to be backed up, and what the contract says of them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nexus_core::event::Data;
use nexus_core::ids::{Digest, RuntimeId, Seq};
use nexus_core::outcome::{Disposition, Outcome};
use nexus_core::record::{Cause, NewRecord, Record};
use nexus_core::trace::TraceId;
use nexus_log::conformance::{Settings, outcome, record, start};
use nexus_log::embedded::admin::{self, AdminError, Existing, Report, Step, Summary};
use nexus_log::embedded::{Embedded, EmbeddedConfig, open};
use nexus_log::{Commit, DeadLetter, EventQuery, Log, Parked, Release, Retention, Revision, Storage};

/// A second event of the same id is none after this.
pub const WINDOW: i64 = 50;
/// What is older goes.
pub const MAX_AGE: i64 = 1000;

pub fn settings() -> Settings {
    let retention = Retention { max_age: Some(Duration::from_secs(MAX_AGE as u64)), max_bytes: None };
    Settings { retention, dedup_window: Duration::from_secs(WINDOW as u64), ..Settings::default() }
}

pub async fn opened(path: &Path, settings: &Settings) -> Embedded {
    let config = EmbeddedConfig {
        retention: settings.retention,
        dedup_window: settings.dedup_window,
        clock: settings.clock.clone(),
        reserve_bytes: 0,
        ..EmbeddedConfig::new(path)
    };
    open(config).await.expect("open")
}

pub fn backup(data_dir: &Path, to_file: &Path) -> Result<Summary, AdminError> {
    admin::backup(data_dir, to_file, Existing::Keep, &mut on)
}

pub fn restore(from_file: &Path, data_dir: &Path) -> Result<Summary, AdminError> {
    admin::restore(from_file, data_dir, &mut on)
}

pub fn check(data_dir: &Path) -> Report {
    admin::check(data_dir, &mut on).expect("check")
}

/// A watch that lets everything go on.
pub fn on(_: Step) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub fn healthy(data_dir: &Path) -> Report {
    let report = check(data_dir);
    assert!(report.is_healthy(), "{:#?}", report.problems);
    report
}

/// An event that is like those before it in some ways and not in others.
pub fn varied(settings: &Settings, n: u64) -> NewRecord {
    let mut new = record(settings, &n.to_string(), &format!("/source/{}", n % 3), &format!("test.type.{}", n % 7));
    // Two thirds share their trace with others.
    if !n.is_multiple_of(3) {
        new.trace.trace_id = trace(n % 20);
    }
    match n % 4 {
        0 => new.event.data = Some(Data::Binary((0..n % 600).map(|byte| byte as u8).collect::<Vec<_>>().into())),
        1 => new.event.data = None,
        _ => {}
    }
    if n.is_multiple_of(11) {
        new.event.set_attribute("partitionkey", &format!("ключ-{n}")).expect("an attribute");
        new.target = Some("worker".parse().expect("a name"));
    }
    if n.is_multiple_of(13) {
        new.claimed_by = Some(RuntimeId(n));
    }
    new
}

pub fn trace(n: u64) -> TraceId {
    format!("{:032x}", n + 1).parse().expect("a trace")
}

pub async fn append(log: &dyn Log, batch: Vec<NewRecord>) -> Vec<Seq> {
    log.append(batch).await.expect("append").iter().map(|receipt| receipt.seq).collect()
}

pub async fn commit(log: &dyn Log, outcome: Outcome, emitted: Vec<NewRecord>) {
    log.commit(Commit { outcome: outcome.into(), emitted }).await.expect("commit");
}

fn of(function: &str, outcome: Outcome) -> Outcome {
    Outcome { function: function.parse().expect("a name"), ..outcome }
}

/// A store with everything in it that there can be. Two old events are parked, so that retention left a gap.
pub async fn grown(path: &Path, settings: &Settings) {
    let handle = opened(path, settings).await;
    let Storage { log, registry, artifacts } = handle.storage();
    let old: Vec<Seq> = append(&*log, (0..2_500).map(|n| varied(settings, n)).collect()).await;
    let at = start() + SignedDuration::from_hours(1);
    for seq in &old {
        let parked = [700, 1_500].contains(&seq.0);
        let disposition = if parked { Disposition::Retry { at } } else { Disposition::Done };
        if parked || seq.0.is_multiple_of(50) {
            commit(&*log, outcome(*seq, 1, disposition), vec![]).await;
        }
    }
    log.advance(Seq(2_501), 0).await.expect("advance");
    settings.pass(2 * MAX_AGE);
    assert_eq!(log.retain().await.expect("retain"), 2_498);

    // Younger ones, some of which come again when the window has passed.
    let young = append(&*log, (10_000..12_000).map(|n| varied(settings, n)).collect()).await;
    settings.pass(WINDOW + 10);
    append(&*log, (10_000..10_100).map(|n| varied(settings, n)).collect()).await;
    settings.pass(WINDOW + 10);
    append(&*log, (10_000..10_010).map(|n| varied(settings, n)).collect()).await;
    for seq in young.iter().filter(|seq| seq.0.is_multiple_of(40)) {
        let first = of("first", outcome(*seq, 1, Disposition::Retry { at }));
        let invocation_id = first.invocation_id;
        let mut emitted = varied(settings, 20_000 + seq.0);
        emitted.cause = Some(Cause { seq: *seq, invocation_id, depth: 1 });
        commit(&*log, first, vec![emitted]).await;
        let end = match seq.0 % 120 {
            0 => Disposition::Done,
            40 => Disposition::Dead,
            _ => Disposition::Retry { at: at + SignedDuration::from_nanos(seq.0 as i64) },
        };
        commit(&*log, of("first", outcome(*seq, 2, end)), vec![]).await;
        commit(&*log, of("second", outcome(*seq, 1, Disposition::Done)), vec![]).await;
        let mut replay = of("first", outcome(*seq, 1, Disposition::Replayed));
        replay.replay_of = Some(invocation_id);
        commit(&*log, replay, vec![]).await;
    }
    // Of what was given up: one is tried again, one forgotten, one has an event in its place, one is too old to be run.
    let given_up = log.dead_letters(None, None, 1000).await.expect("dead letters");
    let key = |at: usize| vec![(given_up[at].seq, given_up[at].function.clone())];
    settings.pass(1);
    assert_eq!(log.release(key(2), Release::Retry).await.expect("release"), 1);
    assert_eq!(log.release(key(4), Release::Drop).await.expect("release"), 1);
    let emitted = Outcome { dead_letter_emitted: true, ..outcome(young[1_001], 1, Disposition::Dead) };
    commit(&*log, emitted, vec![varied(settings, 30_001)]).await;
    commit(&*log, outcome(young[1_002], 1, Disposition::Expired), vec![]).await;
    // One is for later: it is parked without an outcome.
    let function = "later".parse().expect("a name");
    log.park(vec![Parked { seq: young[1_003], function, attempt: 0, at }]).await.expect("park");
    log.advance(young[1_200], 0).await.expect("advance");

    for n in 0..30_u64 {
        let key = format!("functions/{n:03}");
        let revision = registry.put(&key, format!("{{\"n\":{n}}}").into(), None).await.expect("put");
        match n % 3 {
            0 => drop(registry.put(&key, vec![n as u8; 3000].into(), Some(revision)).await.expect("put again")),
            1 => registry.delete(&key, revision).await.expect("delete"),
            _ => {}
        }
    }
    for bytes in [0_usize, 1, 4096, (1 << 20) - 1, 1 << 20, 3_500_000] {
        artifacts.put((0..bytes).map(|at| (at * at) as u8).collect::<Vec<_>>().into()).await.expect("put");
    }
    handle.close().await.expect("close");
}

/// A store that is small enough to be damaged in every place, with something of everything.
pub async fn small(path: &Path, settings: &Settings) {
    let handle = opened(path, settings).await;
    let Storage { log, registry, artifacts } = handle.storage();
    append(&*log, (0..5).map(|n| varied(settings, n)).collect()).await;
    commit(&*log, outcome(Seq(2), 1, Disposition::Retry { at: start() }), vec![varied(settings, 9)]).await;
    commit(&*log, outcome(Seq(3), 1, Disposition::Dead), vec![]).await;
    log.advance(Seq(3), 0).await.expect("advance");
    registry.put("functions/a", "{}".into(), None).await.expect("put");
    artifacts.put("component".into()).await.expect("put");
    handle.close().await.expect("close");
}

/// All that the contract says of a store.
#[derive(Debug, PartialEq)]
pub struct Contents {
    pub head: Seq,
    pub delivered_below: Seq,
    pub parked: Vec<Parked>,
    pub dead_letters: Vec<DeadLetter>,
    pub records: Vec<Record>,
    /// Of every place, also of those that are gone.
    pub outcomes: BTreeMap<Seq, Vec<Outcome>>,
    pub by_invocation: Vec<Outcome>,
    pub found: BTreeMap<(String, Option<String>), Vec<Seq>>,
    pub queried: BTreeMap<String, Vec<Seq>>,
    pub registry: Vec<(String, Vec<u8>, Revision)>,
    pub changes: u64,
    pub artifacts: Vec<Option<Vec<u8>>>,
}

pub async fn read_all(log: &dyn Log) -> Vec<Record> {
    let (mut records, mut from) = (Vec::new(), Seq(0));
    loop {
        let part = log.read(from, 500).await.expect("read");
        let Some(last) = part.last() else { return records };
        from = last.seq.next();
        records.extend(part.iter().map(|record| Record::clone(record)));
    }
}

async fn query_all(log: &dyn Log, query: EventQuery) -> Vec<Seq> {
    let mut query = EventQuery { limit: 300, ..query };
    let mut found = Vec::new();
    loop {
        let page = log.query(&query).await.expect("query");
        found.extend(page.records.iter().map(|record| record.seq));
        match page.next {
            Some(next) => query.before = Some(next),
            None => return found,
        }
    }
}

/// Asks for everything; artifacts by the digests of those that there are.
pub async fn contents(storage: &Storage, digests: &[Digest]) -> Contents {
    let Storage { log, registry, artifacts } = storage;
    let progress = log.progress().await.expect("progress");
    let head = *log.head().borrow();
    let records = read_all(&**log).await;
    let mut outcomes = BTreeMap::new();
    for seq in (1..=head.0).map(Seq) {
        outcomes.insert(seq, log.outcomes(seq).await.expect("outcomes"));
    }
    let mut by_invocation = Vec::new();
    for one in outcomes.values().flatten() {
        by_invocation.extend(log.outcome(one.invocation_id).await.expect("outcome"));
    }
    let mut found = BTreeMap::new();
    for n in (0..2_500).step_by(7).chain(10_000..12_000).chain(20_000..25_000) {
        let (id, source) = (n.to_string(), format!("/source/{}", n % 3));
        for source in [None, Some(source)] {
            let seqs = log.find(&id, source.as_deref()).await.expect("find").iter().map(|record| record.seq).collect();
            found.insert((id.clone(), source), seqs);
        }
    }
    let mut queried = BTreeMap::new();
    let mut ask = async |name: String, query: EventQuery| {
        queried.insert(name, query_all(&**log, query).await);
    };
    for n in 0..20 {
        let (ty, source) = (format!("test.type.{n}"), format!("/source/{n}"));
        ask(format!("type {n}"), EventQuery { ty: Some(ty.clone()), ..EventQuery::default() }).await;
        ask(format!("source {n}"), EventQuery { source: Some(source.clone()), ..EventQuery::default() }).await;
        let both = EventQuery { ty: Some(ty), source: Some(source), ..EventQuery::default() };
        ask(format!("both {n}"), both).await;
        ask(format!("trace {n}"), EventQuery { trace: Some(trace(n)), ..EventQuery::default() }).await;
        let from: Timestamp = start() + SignedDuration::from_secs(2 * MAX_AGE + n as i64 * 10);
        let to = from + SignedDuration::from_secs(35);
        ask(format!("time {n}"), EventQuery { from: Some(from), to: Some(to), ..EventQuery::default() }).await;
    }
    let entries = registry.list("").await.expect("list").into_iter();
    let mut blobs = Vec::new();
    for digest in digests {
        blobs.push(artifacts.get(*digest).await.expect("get").map(|bytes| bytes.to_vec()));
    }
    Contents {
        head,
        delivered_below: log.delivered_below(),
        parked: progress.parked,
        dead_letters: log.dead_letters(None, None, 1000).await.expect("dead letters"),
        records,
        outcomes,
        by_invocation,
        found,
        queried,
        registry: entries.map(|(key, value, revision)| (key, value.to_vec(), revision)).collect(),
        changes: *registry.changes().borrow(),
        artifacts: blobs,
    }
}

/// The digests of what is in a store.
pub fn digests(data_dir: &Path) -> Vec<Digest> {
    let mut names: Vec<String> = std::fs::read_dir(data_dir.join("artifacts"))
        .expect("artifacts")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort_unstable();
    names.iter().map(|name| format!("sha256:{name}").parse().expect("a digest")).collect()
}

/// The names in a directory.
pub fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort_unstable();
    names
}
