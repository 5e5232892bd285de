//! Guests that are run, recorded and played back to.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nexus_core::event::Event;
use nexus_core::function::{FunctionConfig, Mount};
use nexus_core::ids::{Digest, InvocationId};
use nexus_core::journal::{self, Journal};
use nexus_core::mark::Unmarked;
use nexus_core::trace::{SpanId, TraceContext, TraceId};
use nexus_engine::{Engine, EngineConfig, Finished, HttpRequest, Invocation, Journaling, Loaded, Profile, Request};

/// One engine for all tests: its pools are large.
fn engine() -> Arc<Engine> {
    static ENGINE: OnceLock<(Arc<Engine>, tempfile::TempDir)> = OnceLock::new();
    let start = || {
        let cache = tempfile::tempdir().expect("a folder");
        let config = EngineConfig {
            instances_max: 50,
            log_bytes_max: 1 << 20,
            output_bytes_max: 8 << 20,
            host_calls_open_max: 50,
            host_calls_max: 1000,
            ..EngineConfig::new(cache.path().to_owned())
        };
        (Engine::start(config).expect("an engine"), cache)
    };
    ENGINE.get_or_init(start).0.clone()
}

pub fn guest(name: &str) -> Arc<Loaded> {
    guest_in(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/guests/{name}/{name}.wasm")))
}

pub fn guest_in(path: &Path) -> Arc<Loaded> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    engine().compile(&bytes, Digest::of(&bytes), Profile::Short).expect("it compiles")
}

pub fn config() -> FunctionConfig {
    FunctionConfig { egress: vec!["127.0.0.1:*".into()], ..FunctionConfig::default() }
}

/// The same, with a folder that may be written to.
pub fn mounting(folder: &Path) -> FunctionConfig {
    let mut config = config();
    config.mounts.push(Mount { host: folder.to_owned(), guest: "/m".into(), writable: true });
    config
}

fn redacted() -> Arc<journal::Redact> {
    Arc::new(journal::Redact { headers: vec!["authorization".into()], fields: Vec::new() })
}

pub fn recording() -> Journaling {
    Journaling::Record { bytes_max: 16 << 20, config: [0; 16], redacted: redacted() }
}

pub fn playing(journal: Arc<Journal>) -> Journaling {
    Journaling::Replay { journal, redacted: redacted(), steps: false }
}

pub fn get(path: &str) -> Request {
    Request::Http(HttpRequest {
        method: http::Method::GET,
        path_and_query: path.into(),
        headers: http::HeaderMap::new(),
        body: Bytes::new(),
    })
}

pub fn post(body: &[u8]) -> Request {
    Request::Http(HttpRequest {
        method: http::Method::POST,
        path_and_query: "/".into(),
        headers: http::HeaderMap::new(),
        body: Bytes::copy_from_slice(body),
    })
}

pub fn event(data: &str) -> Request {
    let json = format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{data}}}"#);
    Request::Event(Arc::new(Event::from_json(json.as_bytes()).expect("an event")))
}

pub async fn run(guest: &Arc<Loaded>, request: Request, config: FunctionConfig, journaling: Journaling) -> Finished {
    let trace =
        TraceContext { trace_id: TraceId::generate(), span_id: SpanId::generate(), sampled: true, tracestate: None };
    guest
        .invoke(Invocation {
            id: InvocationId::generate(),
            request,
            config: Arc::new(config),
            trace,
            marker: Arc::new(Unmarked),
            started: Instant::now(),
            on_line: None,
            journaling,
        })
        .await
}

/// What was recorded, read back.
pub fn journal_of(finished: &Finished) -> Arc<Journal> {
    let (kept, partial) = finished.journal.as_ref().expect("a journal");
    assert_eq!(*partial, None);
    Arc::new(journal::read(kept).expect("a journal that can be read"))
}

/// Fails where a replay is not what was recorded, in anything that can be seen from without.
pub fn same(recorded: &Finished, replay: &Finished, what: &str) {
    let replayed = replay.replayed.as_ref().expect("a replay");
    assert_eq!(replayed.divergence, None, "{what}");
    assert_eq!((recorded.status, &recorded.error), (replay.status, &replay.error), "{what}");
    assert_eq!(recorded.answer.body, replay.answer.body, "{what}");
    assert_eq!(recorded.answer.headers, replay.answer.headers, "{what}");
    assert_eq!(recorded.answer.http_status, replay.answer.http_status, "{what}");
    let header = &journal_of(recorded).header;
    // Of a guest that was stopped from without it is not always known.
    if !header.cut {
        assert_eq!(recorded.memory_bytes, replay.memory_bytes, "{what}");
    }
    assert_eq!(header.output, replayed.output, "{what}");
    let lines = |finished: &Finished| finished.logs.iter().map(|l| l.line.clone()).collect::<Vec<_>>();
    assert_eq!(lines(recorded), lines(replay), "{what}");
    let words = |finished: &Finished| {
        finished.emitted.iter().map(|draft| draft.words().collect::<Vec<_>>().join("\n")).collect::<Vec<_>>()
    };
    assert_eq!(words(recorded), words(replay), "{what}");
}

#[tokio::test]
async fn every_kind_of_function_is_played_back() {
    for (name, request) in [
        ("noop", event("{}")),
        ("hello-http", post(b"")),
        ("hello-http", event("{}")),
        ("probe", event(r#"{"log":["one","two"],"emit":[{"type":"a","data":1},{"type":"b"}]}"#)),
        ("cli", event(r#"{"emit":[{"type":"a"}]}"#)),
        ("cli", event(r#"{"exit_code":3}"#)),
        ("cli-p1", event(r#"{"emit":[{"type":"a"}]}"#)),
        ("cli-p1", event(r#"{"exit_code":3}"#)),
        ("probe", event(r#"{"trap":true}"#)),
        ("probe", event(r#"{"alloc_mb":200}"#)),
        ("probe", event(r#"{"status":503}"#)),
        // It gives back more than it may, and is let go of in the middle of it.
        ("probe", get("/big?mb=9")),
        ("script", post(br#"[{"do":"wall"},{"do":"oversized-write"}]"#)),
        ("script", post(br#"[{"do":"miscounted-body"}]"#)),
        ("probe", event("{}")),
    ] {
        let guest = guest(name);
        let recorded = run(&guest, request.clone(), config(), recording()).await;
        let journal = journal_of(&recorded);
        let replay = run(&guest, request, config(), playing(journal)).await;
        same(&recorded, &replay, name);
    }
}

#[tokio::test]
async fn a_journal_of_nothing_is_small() {
    for (name, request) in [("noop", event("{}")), ("hello-http", event("{}")), ("cli", event("{}"))] {
        let recorded = run(&guest(name), request, config(), recording()).await;
        let bytes = recorded.journal.expect("a journal").0.0.len();
        assert!(bytes <= 200, "{name}: {bytes} bytes");
    }
}

#[tokio::test]
async fn what_ended_by_its_time_ends_there_again() {
    for body in [
        &br#"[{"do":"print","text":"before"},{"do":"wall"},{"do":"sleep","ns":60000000000}]"#[..],
        br#"[{"do":"print","text":"before"},{"do":"wall"},{"do":"loop"}]"#,
        br#"[{"do":"print","text":"before"},{"do":"wait-for-a-date"}]"#,
    ] {
        let guest = guest("script");
        let mut config = config();
        // What makes no call any more is stopped by the time that it had, and not by the patience with a slow machine.
        let loops = body.windows(4).any(|word| word == b"loop");
        config.limits.timeout_ms = if loops { 3000 } else { 150 };
        let recorded = run(&guest, post(body), config.clone(), recording()).await;
        assert_eq!(recorded.status.as_str(), "timeout");
        let journal = journal_of(&recorded);
        assert!(journal.header.cut);
        let began = Instant::now();
        let replay = run(&guest, post(body), config, playing(journal)).await;
        same(&recorded, &replay, "a timeout");
        assert!(began.elapsed() < Duration::from_secs(25), "it does not wait for what it waited for then");
    }
}

#[tokio::test]
async fn a_journal_has_a_bound_and_the_invocation_does_not_care() {
    let guest = guest("script");
    let body: Vec<_> = (0..500).map(|_| r#"{"do":"wall"}"#).collect();
    let body = format!("[{}]", body.join(","));
    let small = Journaling::Record { bytes_max: 1024, config: [0; 16], redacted: Arc::default() };
    let recorded = run(&guest, post(body.as_bytes()), config(), small).await;
    assert_eq!(recorded.status.as_str(), "ok");
    let (kept, partial) = recorded.journal.expect("a journal");
    assert_eq!(partial, Some(journal::Partial::TooLarge));
    let journal = journal::read(&kept).expect("it can be read");
    assert_eq!((journal.header.partial, journal.entries.len()), (Some(journal::Partial::TooLarge), 0));
}

#[tokio::test]
async fn folders_make_the_journal_of_a_preview_1_module_partial() {
    let folder = tempfile::tempdir().expect("a folder");
    let recorded = run(&guest("cli-p1"), event("{}"), mounting(folder.path()), recording()).await;
    assert_eq!(recorded.journal.expect("a journal").1, Some(journal::Partial::Files));
}

#[tokio::test]
async fn one_component_can_be_compiled_several_times_at_once() {
    let bytes = std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/noop/noop.wasm"));
    let bytes = Arc::new(bytes.expect("the guest"));
    let engine = engine();
    // Its own digest: nobody else has compiled it.
    let digest = Digest::of(b"compiled several times at once");
    let compile = |_| {
        let (engine, bytes) = (engine.clone(), bytes.clone());
        tokio::task::spawn_blocking(move || engine.compile(&bytes, digest, Profile::Short).map(drop))
    };
    for one in (0..8).map(compile).collect::<Vec<_>>() {
        one.await.expect("no panic").expect("it compiles");
    }
}

#[tokio::test]
async fn a_module_of_preview_1_is_played_back() {
    let bytes = wat::parse_str(include_str!("preview1.wat")).expect("text");
    let guest = engine().compile(&bytes, Digest::of(&bytes), Profile::Short).expect("it compiles");
    let (first, second) =
        (run(&guest, event("{}"), config(), recording()).await, run(&guest, event("{}"), config(), recording()).await);
    assert_eq!((first.status.as_str(), &first.error), ("ok", &None));
    assert_ne!(first.answer.body, second.answer.body, "it learns something else each time");
    assert!(first.duration >= Duration::from_millis(4), "it sleeps");
    let journal = journal_of(&first);
    assert_eq!(journal.entries.len(), 6, "what the guest learned, and nothing else: {:?}", journal.entries);
    let replay = run(&guest, event("{}"), config(), playing(journal)).await;
    same(&first, &replay, "preview 1");
}
