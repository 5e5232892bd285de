//! What durable appends cost: the embedded log, and beside it what could be under it, each behind the same group commit.
//!
//! `cargo run --release -p nexus-log --example append_bench [seconds for each row, 3] [directory, the temporary one] [only stores named so]`
//!
//! Rows run in turn in the same process and on the same disk, each in a directory of its own. Clients are tasks that send
//! the next append when the last is durable. `raw file` is the ceiling: the same groups, one `write` and one `fdatasync`.
//! `1 table` stores the event alone, `3 tables` also an index by id (looked up first, for duplicates) and one by trace.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nexus_core::clock::{Clock as _, SystemClock};
use nexus_core::event::{Data, Event};
use nexus_core::ids::Seq;
use nexus_core::record::NewRecord;
use nexus_core::trace::{SpanId, TraceContext, TraceId};
use nexus_log::embedded::{EmbeddedConfig, open};
use redb::ReadableTable as _;
use tokio::sync::oneshot;

/// Clients and events in each of their appends.
const LOADS: [(usize, usize); 4] = [(1, 1), (64, 1), (256, 1), (8, 100)];

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let seconds = Duration::from_secs(arguments.next().map_or(Ok(3), |text| text.parse()).context("seconds")?);
    let base = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let only = arguments.next().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!(
        "| {:<22} | {:>7} | {:>5} | {:>9} | {:>11} | {:>9} | {:>9} | {:>10} |",
        "store", "clients", "batch", "events/s", "events/sync", "p50 µs", "p99 µs", "CPU µs/ev"
    );
    println!("|{:-<24}|{:->9}|{:->7}|{:->11}|{:->13}|{:->11}|{:->11}|{:->12}|", "", "", "", "", "", "", "", "");
    for (clients, batch) in LOADS {
        let load = Load { clients, batch, seconds };
        if "embedded".starts_with(&only) {
            runtime.block_on(embedded(&load, &base))?;
        }
        let backends: [(&str, Make); 5] = [
            ("raw file", |path| Ok(Box::new(RawFile::new(path)?))),
            ("fjall, 1 table", |path| Ok(Box::new(Fjall::new(path, false)?))),
            ("fjall, 3 tables", |path| Ok(Box::new(Fjall::new(path, true)?))),
            ("redb, 1 table", |path| Ok(Box::new(Redb::new(path, false)?))),
            ("redb, 3 tables", |path| Ok(Box::new(Redb::new(path, true)?))),
        ];
        for (name, make) in backends.into_iter().filter(|(name, _)| name.starts_with(&only)) {
            runtime.block_on(grouped(name, &load, &base, make))?;
        }
    }
    runtime.block_on(reads(&base))
}

#[derive(Clone)]
struct Load {
    clients: usize,
    batch: usize,
    seconds: Duration,
}

/// An event of about 500 bytes as it is stored.
fn event(n: u64) -> NewRecord {
    let mut event = Event::new(format!("order-{n:012}"), "/shop/orders", "com.example.order.created");
    event.datacontenttype = Some("application/json".into());
    let payload = serde_json::json!({
        "order": n, "customer": n % 10_007, "currency": "EUR", "note": "please leave it at the door",
        "lines": [{"sku": "A-1", "quantity": 2, "cents": 1999}, {"sku": "B-7", "quantity": 1, "cents": 450}],
    });
    event.data = serde_json::value::to_raw_value(&payload).ok().map(Data::Json);
    NewRecord {
        received_at: SystemClock.now(),
        trace: TraceContext {
            trace_id: TraceId::generate(),
            span_id: SpanId::generate(),
            sampled: true,
            tracestate: None,
        },
        parent_span: None,
        cause: None,
        target: None,
        claimed_by: None,
        event,
    }
}

/// Runs the clients until the time is over; each `append` gives the number of its first event and how many there are.
async fn drive<F, Fut>(load: &Load, append: F) -> anyhow::Result<(u64, f64, Vec<u64>)>
where
    F: Fn(u64, usize) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = anyhow::Result<()>> + Send,
{
    let (next, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut clients = tokio::task::JoinSet::new();
    let start = Instant::now();
    for _ in 0..load.clients {
        let (append, next, over, batch) = (append.clone(), next.clone(), over.clone(), load.batch);
        clients.spawn(async move {
            let mut latencies = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let first = next.fetch_add(batch as u64, Ordering::Relaxed);
                let sent = Instant::now();
                append(first, batch).await?;
                latencies.push(sent.elapsed().as_micros() as u64);
            }
            anyhow::Ok(latencies)
        });
    }
    tokio::time::sleep(load.seconds).await;
    over.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    while let Some(client) = clients.join_next().await {
        latencies.extend(client??);
    }
    let seconds = start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    Ok((next.load(Ordering::Relaxed), seconds, latencies))
}

fn row(name: &str, load: &Load, (events, seconds, latencies): (u64, f64, Vec<u64>), groups: Option<u64>, cpu: f64) {
    let percentile = |p: usize| latencies.get(latencies.len() * p / 100).copied().unwrap_or_default();
    let group = groups.map_or("".to_owned(), |groups| format!("{:.1}", events as f64 / groups.max(1) as f64));
    println!(
        "| {name:<22} | {:>7} | {:>5} | {:>9.0} | {group:>11} | {:>9} | {:>9} | {:>10.1} |",
        load.clients,
        load.batch,
        events as f64 / seconds,
        percentile(50),
        percentile(99),
        cpu * 1e6 / events.max(1) as f64,
    );
}

/// Seconds of CPU time that this process has used.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) / 100.0
}

async fn embedded(load: &Load, base: &Path) -> anyhow::Result<()> {
    let directory = tempfile::tempdir_in(base)?;
    let handle = open(EmbeddedConfig::new(directory.path().join("data"))).await?;
    let log = handle.storage().log;
    let cpu = cpu_seconds();
    let done = drive(load, move |first, batch| {
        let log = log.clone();
        async move {
            log.append((first..first + batch as u64).map(event).collect()).await?;
            Ok(())
        }
    })
    .await?;
    row("embedded", load, done, None, cpu_seconds() - cpu);
    handle.close().await?;
    Ok(())
}

/// How fast delivery can read: what was just appended, and what is only in the store.
async fn reads(base: &Path) -> anyhow::Result<()> {
    let directory = tempfile::tempdir_in(base)?;
    let handle = open(EmbeddedConfig::new(directory.path().join("data"))).await?;
    let log = handle.storage().log;
    for first in 0..200_u64 {
        log.append((first * 1000..(first + 1) * 1000).map(event).collect()).await?;
    }
    println!();
    for (name, from) in [("newest, from memory", 200_000 - 8_000), ("older, from the store", 1)] {
        let start = Instant::now();
        for page in 0..78 {
            let read = log.read(Seq(from + page * 100), 100).await?;
            anyhow::ensure!(read.len() == 100, "read {} of 100", read.len());
        }
        println!("read 100 at a time, {name}: {:.2} µs an event", start.elapsed().as_secs_f64() * 1e6 / 7800.0);
    }
    handle.close().await?;
    Ok(())
}

type Make = fn(&Path) -> anyhow::Result<Box<dyn Backend>>;

/// What can be put under the group commit.
trait Backend: Send {
    /// Writes events durably; the first has the place `first`.
    fn write(&mut self, first: u64, events: &[Stored]) -> anyhow::Result<()>;
}

/// An event made ready to be stored.
struct Stored {
    id: [u8; 16],
    trace: [u8; 16],
    value: Vec<u8>,
}

impl Stored {
    fn new(n: u64) -> anyhow::Result<Self> {
        let event = event(n);
        let mut id = [0; 16];
        // Spread like a hash.
        id[..8].copy_from_slice(&n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
        Ok(Self { id, trace: event.trace.trace_id.to_bytes(), value: serde_json::to_vec(&event)? })
    }
}

#[derive(Default)]
struct Waiting {
    appends: Vec<(Vec<Stored>, oneshot::Sender<()>)>,
    closed: bool,
}

/// The embedded log's group commit, reduced to its shape.
async fn grouped(name: &str, load: &Load, base: &Path, make: Make) -> anyhow::Result<()> {
    let directory = tempfile::tempdir_in(base)?;
    let mut backend = make(directory.path())?;
    let queue = Arc::new((Mutex::new(Waiting::default()), Condvar::new()));
    let taken = queue.clone();
    let writer = std::thread::spawn(move || {
        let (mut next, mut groups) = (1, 0_u64);
        loop {
            let waiting = taken.0.lock().map_err(|_| anyhow::anyhow!("a client broke off"))?;
            let waiting = taken.1.wait_while(waiting, |w| w.appends.is_empty() && !w.closed);
            let group = std::mem::take(&mut waiting.map_err(|_| anyhow::anyhow!("a client broke off"))?.appends);
            if group.is_empty() {
                return anyhow::Ok(groups);
            }
            let (events, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
            let events: Vec<Stored> = events.into_iter().flatten().collect();
            backend.write(next, &events)?;
            next += events.len() as u64;
            groups += 1;
            answers.into_iter().for_each(|answer| answer.send(()).unwrap_or_default());
        }
    });
    let cpu = cpu_seconds();
    let sent = queue.clone();
    let done = drive(load, move |first, batch| {
        let queue = sent.clone();
        async move {
            let events = (first..first + batch as u64).map(Stored::new).collect::<anyhow::Result<Vec<_>>>()?;
            let (answer, answered) = oneshot::channel();
            queue.0.lock().map_err(|_| anyhow::anyhow!("the writer broke off"))?.appends.push((events, answer));
            queue.1.notify_one();
            Ok(answered.await?)
        }
    })
    .await?;
    let cpu = cpu_seconds() - cpu;
    queue.0.lock().map_err(|_| anyhow::anyhow!("the writer broke off"))?.closed = true;
    queue.1.notify_one();
    let groups = writer.join().map_err(|_| anyhow::anyhow!("the writer broke off"))??;
    row(name, load, done, Some(groups), cpu);
    Ok(())
}

struct RawFile(std::fs::File);

impl RawFile {
    fn new(path: &Path) -> anyhow::Result<Self> {
        Ok(Self(std::fs::File::create(path.join("log"))?))
    }
}

impl Backend for RawFile {
    fn write(&mut self, _: u64, events: &[Stored]) -> anyhow::Result<()> {
        let bytes: Vec<u8> = events.iter().flat_map(|event| event.value.iter().copied()).collect();
        std::io::Write::write_all(&mut self.0, &bytes)?;
        Ok(self.0.sync_data()?)
    }
}

struct Fjall {
    db: fjall::Database,
    events: fjall::Keyspace,
    indexes: Option<(fjall::Keyspace, fjall::Keyspace)>,
}

impl Fjall {
    fn new(path: &Path, indexed: bool) -> anyhow::Result<Self> {
        let db = fjall::Database::builder(path).manual_journal_persist(true).open()?;
        let table = |name| db.keyspace(name, fjall::KeyspaceCreateOptions::default);
        let indexes = if indexed { Some((table("ids")?, table("traces")?)) } else { None };
        Ok(Self { events: table("events")?, indexes, db })
    }
}

impl Backend for Fjall {
    fn write(&mut self, first: u64, events: &[Stored]) -> anyhow::Result<()> {
        let mut batch = self.db.batch().durability(Some(fjall::PersistMode::SyncData));
        for (seq, event) in (first..).zip(events) {
            let seq = seq.to_be_bytes();
            batch.insert(&self.events, seq, event.value.as_slice());
            if let Some((ids, traces)) = &self.indexes {
                anyhow::ensure!(ids.get(event.id)?.is_none(), "a duplicate");
                batch.insert(ids, event.id, seq);
                batch.insert(traces, [event.trace.as_slice(), &seq].concat(), []);
            }
        }
        Ok(batch.commit()?)
    }
}

const EVENTS: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("events");
const IDS: redb::TableDefinition<'_, &[u8], u64> = redb::TableDefinition::new("ids");
const TRACES: redb::TableDefinition<'_, &[u8], ()> = redb::TableDefinition::new("traces");

struct Redb {
    db: redb::Database,
    indexed: bool,
}

impl Redb {
    fn new(path: &Path, indexed: bool) -> anyhow::Result<Self> {
        Ok(Self { db: redb::Database::create(path.join("db"))?, indexed })
    }
}

impl Backend for Redb {
    fn write(&mut self, first: u64, events: &[Stored]) -> anyhow::Result<()> {
        let transaction = self.db.begin_write()?;
        {
            let (mut table, mut ids, mut traces) =
                (transaction.open_table(EVENTS)?, transaction.open_table(IDS)?, transaction.open_table(TRACES)?);
            for (seq, event) in (first..).zip(events) {
                table.insert(seq, event.value.as_slice())?;
                if self.indexed {
                    anyhow::ensure!(ids.get(event.id.as_slice())?.is_none(), "a duplicate");
                    ids.insert(event.id.as_slice(), seq)?;
                    traces.insert([event.trace.as_slice(), &seq.to_be_bytes()].concat().as_slice(), ())?;
                }
            }
        }
        Ok(transaction.commit()?)
    }
}
