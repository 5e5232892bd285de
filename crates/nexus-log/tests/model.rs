//! The log against a model of it: any order of operations, with the store closed and opened in between.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nexus_core::clock::Clock as _;
use nexus_core::ids::Seq;
use nexus_core::outcome::{Disposition, Outcome};
use nexus_core::record::{NewRecord, Record};
use nexus_core::trace::TraceId;
use nexus_log::conformance::{Settings, outcome, record, start};
use nexus_log::embedded::{Embedded, EmbeddedConfig, admin, open};
use nexus_log::{Commit, EventQuery, Log, Receipt, Retention};
use proptest::prelude::*;

const WINDOW: i64 = 50;
const MAX_AGE: i64 = 100;

#[derive(Clone, Debug)]
struct Draft {
    id: u8,
    source: u8,
    ty: u8,
    trace: u8,
}

#[derive(Clone, Debug)]
enum Op {
    Append(Vec<Draft>),
    /// On an event by its index among those that are there.
    Commit {
        event: prop::sample::Index,
        disposition: u8,
        emitted: Vec<Draft>,
    },
    Advance(u8),
    Pass(i64),
    Retain,
    Reopen,
    Query {
        ty: Option<u8>,
        source: Option<u8>,
        trace: Option<u8>,
        from: Option<i64>,
        to: Option<i64>,
        limit: usize,
    },
}

fn draft() -> impl Strategy<Value = Draft> {
    (0..8_u8, 0..2_u8, 0..3_u8, 0..3_u8).prop_map(|(id, source, ty, trace)| Draft { id, source, ty, trace })
}

fn op() -> impl Strategy<Value = Op> {
    let drafts = |max| proptest::collection::vec(draft(), 0..max);
    prop_oneof![
        6 => drafts(6).prop_map(Op::Append),
        4 => (any::<prop::sample::Index>(), 0..4_u8, drafts(3))
            .prop_map(|(event, disposition, emitted)| Op::Commit { event, disposition, emitted }),
        2 => any::<u8>().prop_map(Op::Advance),
        3 => (-20..60_i64).prop_map(Op::Pass),
        2 => Just(Op::Retain),
        1 => Just(Op::Reopen),
        2 => (
            proptest::option::of(0..3_u8),
            proptest::option::of(0..2_u8),
            proptest::option::of(0..3_u8),
            proptest::option::of(0..300_i64),
            proptest::option::of(0..300_i64),
            1..5_usize,
        )
            .prop_map(|(ty, source, trace, from, to, limit)| Op::Query { ty, source, trace, from, to, limit }),
    ]
}

/// What the log should hold.
#[derive(Default)]
struct Model {
    events: BTreeMap<Seq, NewRecord>,
    outcomes: BTreeMap<Seq, Vec<Outcome>>,
    parked: BTreeSet<Seq>,
    next: u64,
    below: Seq,
}

impl Model {
    fn append(&mut self, entry: &NewRecord, now: Timestamp) -> Receipt {
        let same = |known: &NewRecord| known.event.id == entry.event.id && known.event.source == entry.event.source;
        if let Some((seq, first)) = self.events.iter().rev().find(|(_, known)| same(known))
            && now.duration_since(first.received_at) < SignedDuration::from_secs(WINDOW)
        {
            return Receipt { seq: *seq, trace_id: first.trace.trace_id, duplicate: true };
        }
        self.next += 1;
        self.events.insert(Seq(self.next), entry.clone());
        Receipt { seq: Seq(self.next), trace_id: entry.trace.trace_id, duplicate: false }
    }

    fn retain(&mut self, now: Timestamp) -> u64 {
        let cutoff = now - SignedDuration::from_secs(MAX_AGE);
        let goes = |seq: &Seq, entry: &NewRecord| {
            *seq < self.below && !self.parked.contains(seq) && entry.received_at < cutoff
        };
        let gone: Vec<Seq> = self.events.iter().filter(|(seq, entry)| goes(seq, entry)).map(|(seq, _)| *seq).collect();
        for seq in &gone {
            self.events.remove(seq);
            self.outcomes.remove(seq);
        }
        gone.len() as u64
    }
}

struct Run {
    directory: tempfile::TempDir,
    settings: Settings,
    traces: [TraceId; 3],
    handle: Option<Embedded>,
    model: Model,
}

impl Run {
    async fn open(&mut self) {
        let config = EmbeddedConfig {
            retention: Retention { max_age: Some(Duration::from_secs(MAX_AGE as u64)), max_bytes: None },
            dedup_window: Duration::from_secs(WINDOW as u64),
            reserve_bytes: 0,
            clock: Arc::clone(&self.settings.clock) as _,
            ..EmbeddedConfig::new(self.directory.path())
        };
        self.handle = Some(open(config).await.expect("open"));
    }

    fn log(&self) -> Arc<dyn Log> {
        self.handle.as_ref().expect("is open").storage().log
    }

    fn entries(&self, drafts: &[Draft]) -> Vec<NewRecord> {
        let entry = |draft: &Draft| {
            let (id, source, ty) = (draft.id.to_string(), format!("/{}", draft.source), format!("t{}", draft.ty));
            let mut entry = record(&self.settings, &id, &source, &ty);
            entry.trace.trace_id = self.traces[usize::from(draft.trace)];
            entry
        };
        drafts.iter().map(entry).collect()
    }

    async fn apply(&mut self, op: &Op) {
        let now = self.settings.clock.now();
        match op {
            Op::Append(drafts) => {
                let batch = self.entries(drafts);
                let expected: Vec<Receipt> = batch.iter().map(|entry| self.model.append(entry, now)).collect();
                assert_eq!(self.log().append(batch).await.expect("append"), expected);
            }
            Op::Commit { event, disposition, emitted } => {
                let there: Vec<Seq> = self.model.events.keys().copied().collect();
                if there.is_empty() {
                    return;
                }
                let seq = *event.get(&there);
                // An event that is delivered is never parked again; only a replay follows.
                let parked = self.model.parked.contains(&seq);
                let disposition = match disposition {
                    0 if seq >= self.model.below || parked => Disposition::Retry { at: now },
                    1 => Disposition::Done,
                    2 => Disposition::Dead,
                    _ => Disposition::Replayed,
                };
                let outcome = outcome(seq, 1, disposition);
                match disposition {
                    Disposition::Retry { .. } => drop(self.model.parked.insert(seq)),
                    Disposition::Done | Disposition::Dead | Disposition::Expired => {
                        self.model.parked.remove(&seq);
                    }
                    Disposition::Replayed => {}
                }
                self.model.outcomes.entry(seq).or_default().push(outcome.clone());
                let emitted = self.entries(emitted);
                let expected: Vec<Receipt> = emitted.iter().map(|entry| self.model.append(entry, now)).collect();
                assert_eq!(
                    self.log().commit(Commit { outcome: outcome.into(), emitted }).await.expect("commit"),
                    expected
                );
            }
            Op::Advance(part) => {
                let mark = Seq((self.model.next + 1) * u64::from(*part) / 255);
                self.model.below = self.model.below.max(mark);
                self.log().advance(mark, 0).await.expect("advance");
            }
            Op::Pass(seconds) => self.settings.pass(*seconds),
            Op::Retain => assert_eq!(self.log().retain().await.expect("retain"), self.model.retain(now)),
            Op::Reopen => {
                self.handle.take().expect("is open").close().await.expect("close");
                self.open().await;
                let progress = self.log().progress().await.expect("progress");
                assert_eq!(progress.delivered_below, self.model.below);
                let parked: BTreeSet<Seq> = progress.parked.iter().map(|parked| parked.seq).collect();
                assert_eq!(parked, self.model.parked);
            }
            Op::Query { ty, source, trace, from, to, limit } => {
                let at = |seconds: &i64| start() + SignedDuration::from_secs(*seconds);
                let query = EventQuery {
                    from: from.as_ref().map(at),
                    to: to.as_ref().map(at),
                    ty: ty.map(|ty| format!("t{ty}")),
                    source: source.map(|source| format!("/{source}")),
                    trace: trace.map(|trace| self.traces[usize::from(trace)]),
                    before: None,
                    limit: *limit,
                };
                self.compare_query(query).await;
            }
        }
    }

    /// Nothing that the store holds contradicts something else; from here on it is another one, made from a backup.
    async fn restore(&mut self) {
        self.handle.take().expect("is open").close().await.expect("close");
        let (old, new) = (self.directory.path(), tempfile::tempdir().expect("a directory"));
        let on = &mut |_| std::ops::ControlFlow::Continue(());
        let report = admin::check(old, on).expect("check");
        assert!(report.is_healthy(), "{:#?}", report.problems);
        let file = tempfile::tempdir().expect("a directory");
        let file = file.path().join("backup");
        admin::backup(old, &file, admin::Existing::Keep, on).expect("backup");
        admin::restore(&file, new.path(), on).expect("restore");
        assert_eq!(admin::check(new.path(), on).expect("check"), report);
        self.directory = new;
        self.open().await;
    }

    async fn compare_query(&self, mut query: EventQuery) {
        let holds = |entry: &NewRecord| {
            query.from.is_none_or(|from| entry.received_at >= from)
                && query.to.is_none_or(|to| entry.received_at < to)
                && query.ty.as_ref().is_none_or(|ty| entry.event.ty == *ty)
                && query.source.as_ref().is_none_or(|source| entry.event.source == *source)
                && query.trace.is_none_or(|trace| entry.trace.trace_id == trace)
        };
        let expected: Vec<Seq> =
            self.model.events.iter().rev().filter(|(_, entry)| holds(entry)).map(|(seq, _)| *seq).collect();
        let mut found = Vec::new();
        loop {
            let page = self.log().query(&query).await.expect("query");
            found.extend(page.records.iter().map(|record| record.seq));
            query.before = page.next;
            if page.next.is_none() {
                break;
            }
        }
        assert_eq!(found, expected, "{query:?}");
    }

    /// Everything that can be asked, against the model.
    async fn compare(&self) {
        let log = self.log();
        let whole = |(seq, entry): (&Seq, &NewRecord)| Arc::new(Record { seq: *seq, entry: entry.clone() });
        let expected: Vec<_> = self.model.events.iter().map(whole).collect();
        assert_eq!(log.read(Seq(0), 1000).await.expect("read"), expected);
        assert_eq!(*log.head().borrow(), Seq(self.model.next));
        for seq in (0..=self.model.next + 1).map(Seq) {
            let entry = log.get(seq).await.expect("get").map(|record| record.entry.clone());
            assert_eq!(entry.as_ref(), self.model.events.get(&seq), "{seq}");
            let outcomes = log.outcomes(seq).await.expect("outcomes");
            assert_eq!(outcomes, self.model.outcomes.get(&seq).cloned().unwrap_or_default(), "{seq}");
            for outcome in outcomes {
                assert_eq!(log.outcome(outcome.invocation_id).await.expect("outcome"), Some(outcome));
            }
        }
        for id in 0..8 {
            let mut newest: BTreeMap<&str, Seq> = BTreeMap::new();
            for (seq, entry) in self.model.events.iter().filter(|(_, entry)| entry.event.id == id.to_string()) {
                newest.insert(&entry.event.source, *seq);
            }
            let found = log.find(&id.to_string(), None).await.expect("find");
            let found: BTreeMap<&str, Seq> = found.iter().map(|r| (r.entry.event.source.as_str(), r.seq)).collect();
            assert_eq!(found, newest, "id {id}");
        }
        self.compare_query(EventQuery { limit: 3, ..EventQuery::default() }).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_operations_agrees_with_the_model(ops in proptest::collection::vec(op(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut run = Run {
                directory: tempfile::tempdir().expect("a directory"),
                settings: Settings::default(),
                traces: std::array::from_fn(|_| TraceId::generate()),
                handle: None,
                model: Model::default(),
            };
            run.open().await;
            for op in &ops {
                run.apply(op).await;
            }
            run.compare().await;
            run.apply(&Op::Reopen).await;
            run.compare().await;
            run.restore().await;
            run.compare().await;
            run.handle.take().expect("is open").close().await.expect("close");
        });
    }
}
