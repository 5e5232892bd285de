//! Copies of one log are the same, whoever wrote what and however often a copy was closed, killed or made anew; and what is not the
//! log that a copy is of is noticed.

mod nats;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use nats::NatsServer;
use nexus_core::ids::{FunctionName, Seq};
use nexus_core::outcome::{Disposition, Outcome};
use nexus_core::record::Record;
use nexus_log::conformance::{Settings, numbered, outcome};
use nexus_log::embedded::EmbeddedConfig;
use nexus_log::jetstream::{JetStream, JetStreamConfig, open};
use nexus_log::{Commit, DeadLetter, Parked, Release, Retention, StorageError};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

fn config(server: &NatsServer, folder: &Path) -> JetStreamConfig {
    let retention = Retention { max_age: None, max_bytes: Some(60_000) };
    let copy = EmbeddedConfig {
        retention,
        reserve_bytes: 0,
        // It stands still, so that duplicates are within the window.
        clock: Settings::default().clock,
        ..EmbeddedConfig::new(folder)
    };
    JetStreamConfig::new(vec![server.url()], copy)
}

/// All that a log tells.
#[derive(Debug, PartialEq)]
struct Known {
    events: Vec<Arc<Record>>,
    outcomes: Vec<Vec<Outcome>>,
    parked: Vec<Parked>,
    dead: Vec<DeadLetter>,
    registry: Vec<(String, bytes::Bytes, nexus_log::Revision)>,
    head: Seq,
}

async fn known(opened: &JetStream) -> Known {
    let storage = opened.storage();
    let log = &storage.log;
    let mut events = Vec::new();
    loop {
        let from = events.last().map_or(Seq(1), |last: &Arc<Record>| last.seq.next());
        let read = log.read(from, 1000).await.expect("read");
        if read.is_empty() {
            break;
        }
        events.extend(read);
    }
    let head = *log.head().borrow();
    let mut outcomes = Vec::new();
    for seq in 1..=head.0 {
        outcomes.push(log.outcomes(Seq(seq)).await.expect("outcomes"));
    }
    Known {
        outcomes,
        events,
        parked: log.progress().await.expect("progress").parked,
        dead: log.dead_letters(None, None, 1000).await.expect("dead letters"),
        registry: storage.registry.list("").await.expect("registry"),
        head,
    }
}

/// One thing that a runtime does. What it is refused for is the same for all.
async fn act(rng: &mut StdRng, opened: &JetStream, settings: &Settings) {
    let storage = opened.storage();
    let log = &storage.log;
    let head = log.head().borrow().0;
    let function: FunctionName = ["a", "b"][rng.random_range(0..2)].parse().expect("a name");
    match rng.random_range(0..12) {
        0..=4 => {
            let batch = (0..rng.random_range(1..30)).map(|_| numbered(settings, rng.random_range(0..400))).collect();
            log.append(batch).await.expect("append");
        }
        5..=7 if head > 0 => {
            let seq = Seq(rng.random_range(1..=head));
            let disposition = match rng.random_range(0..5) {
                0 => Disposition::Retry { at: jiff::Timestamp::now() },
                1 => Disposition::Dead,
                2 => Disposition::Replayed,
                3 => Disposition::Expired,
                _ => Disposition::Done,
            };
            let mut outcome = outcome(seq, rng.random_range(1..4), disposition);
            outcome.function = function;
            let emitted = (0..rng.random_range(0..3)).map(|_| numbered(settings, rng.random_range(0..400))).collect();
            log.commit(Commit { outcome: outcome.into(), emitted }).await.expect("commit");
        }
        8 if head > 0 => {
            let letters = (0..5).map(|_| (Seq(rng.random_range(1..=head)), function.clone())).collect();
            let how = if rng.random() { Release::Retry } else { Release::Drop };
            log.release(letters, how).await.expect("release");
        }
        9 => {
            let epoch = log.members().borrow().epoch;
            log.advance(Seq(rng.random_range(0..=head + 1)), epoch).await.expect("advance");
        }
        10 => drop(log.retain().await.expect("retain")),
        _ => {
            let key = format!("k{}", rng.random_range(0..4));
            let found = storage.registry.get(&key).await.expect("get");
            let revision = found.map(|(_, revision)| revision);
            let done = match revision.filter(|_| rng.random_range(0..3) == 0) {
                Some(revision) => storage.registry.delete(&key, revision).await,
                None => storage.registry.put(&key, format!("{head}").into(), revision).await.map(drop),
            };
            // The other runtime may have been first.
            assert!(matches!(done, Ok(()) | Err(StorageError::Conflict { .. })), "{done:?}");
        }
    }
}

/// Waits until both have all that is in the log: a write of each has come back to both.
async fn level(runtimes: &[&JetStream], settings: &Settings, mark: &mut u64) {
    for one in runtimes {
        *mark += 1;
        let receipts = one.storage().log.append(vec![numbered(settings, 1_000_000 + *mark)]).await.expect("append");
        for other in runtimes {
            let reached = other.storage().log.head().wait_for(|head| *head >= receipts[0].seq).await.map(drop);
            reached.expect("the log is open");
        }
    }
}

async fn rounds(seed: u64, rounds: u64) {
    println!("NEXUS_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let settings = Settings::default();
    let server = NatsServer::start();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| config(&server, &folder.path().join(name));
    let mut first = open(at("a")).await.expect("open");
    let mut second = open(at("b")).await.expect("open");
    let mut mark = 0;
    for round in 0..rounds {
        let (mut one, mut other) = (StdRng::seed_from_u64(rng.random()), StdRng::seed_from_u64(rng.random()));
        let acts = rng.random_range(5..40);
        let of_one = async {
            for _ in 0..acts {
                act(&mut one, &first, &settings).await;
            }
        };
        let of_other = async {
            for _ in 0..acts {
                act(&mut other, &second, &settings).await;
            }
        };
        tokio::join!(of_one, of_other);
        level(&[&first, &second], &settings, &mut mark).await;
        let (a, b) = (known(&first).await, known(&second).await);
        assert_eq!(a, b, "seed {seed}, round {round}");
        match rng.random_range(0..6) {
            // In good order, and on with the copy that is there.
            0 => {
                second.close().await.expect("close");
                second = open(at("b")).await.expect("open");
            }
            // A copy that is made anew.
            1 => {
                second.close().await.expect("close");
                std::fs::remove_dir_all(folder.path().join("b")).expect("removed");
                second = open(at("b")).await.expect("open");
            }
            2 => {
                first.close().await.expect("close");
                first = open(at("a")).await.expect("open");
            }
            // The stream is shortened meanwhile, and one begins from the snapshot: a new one, or one that stayed behind.
            3 => {
                second.close().await.expect("close");
                some(&first, 2_000_000 + 10 * round).await;
                first.shorten().await.expect("shortened");
                if rng.random() {
                    std::fs::remove_dir_all(folder.path().join("b")).expect("removed");
                }
                second = open(at("b")).await.expect("open");
            }
            _ => {}
        }
    }
    first.close().await.expect("close");
    second.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_the_same_whoever_wrote_what() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    rounds(number("NEXUS_SEED").unwrap_or_else(rand::random), number("NEXUS_ROUNDS").unwrap_or(20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_shortened_gives_its_room_back_and_loses_nothing() {
    let server = NatsServer::start();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| config(&server, &folder.path().join(name));
    let settings = Settings::default();
    let (one, other) = (open(at("a")).await.expect("open"), open(at("b")).await.expect("open"));
    for n in 0..50 {
        let batch = (n * 100..(n + 1) * 100).map(|n| numbered(&settings, n)).collect();
        one.storage().log.append(batch).await.expect("append");
    }
    one.storage().registry.put("k", "v".into(), None).await.expect("put");
    let epoch = one.storage().log.members().borrow().epoch;
    for opened in [&one, &other] {
        opened.storage().log.advance(Seq(5001), epoch).await.expect("advance");
    }
    let mut mark = 0;
    level(&[&one, &other], &settings, &mut mark).await;
    other.close().await.expect("close");
    tokio::time::timeout(Duration::from_secs(20), async {
        while one.storage().log.retain().await.expect("retain") == 0 {
            some(&one, 6000).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("retention removes something");
    let jetstream = jetstream(&server).await;
    let bytes = async || {
        let stream = jetstream.get_stream("NEXUS").await.expect("the stream");
        (stream.cached_info().state.bytes, stream.cached_info().state.first_sequence)
    };
    let before = bytes().await;
    for _ in 0..3 {
        one.shorten().await.expect("shortened");
    }
    let after = bytes().await;
    assert!(before.0 > 1_000_000 && after.0 < before.0 / 4 && before.1 == 1 && after.1 > 50, "{before:?} {after:?}");
    let names = async || {
        let all: Vec<String> = jetstream.stream_names().try_collect().await.expect("names");
        let mut names: Vec<_> =
            all.iter().filter_map(|name| name.strip_prefix("OBJ_")).filter(|name| name.contains("SNAPSHOT")).collect();
        names.sort_unstable();
        names.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!((1..=2).contains(&names().await.len()), "{:?}", names().await);
    some(&one, 7000).await;

    // One that stayed behind, and a new one, know what the first does, and go on with it.
    let (other, third) = (open(at("b")).await.expect("open"), open(at("c")).await.expect("open"));
    level(&[&one, &other, &third], &settings, &mut mark).await;
    let known_to_one = known(&one).await;
    assert!(known_to_one.registry.len() == 1 && known_to_one.events.len() > 10, "{known_to_one:?}");
    assert_eq!((&known(&other).await, &known(&third).await), (&known_to_one, &known_to_one));
    third.close().await.expect("close");

    // A snapshot that is not whole is not begun from, and its copy is not taken for one; an older one that is whole is.
    let mut kept = names().await;
    let newest = jetstream.get_object_store(kept.pop().expect("a snapshot")).await.expect("a snapshot");
    for older in kept {
        jetstream.delete_object_store(older).await.expect("deleted");
    }
    let mut list = newest.list().await.expect("a list");
    let name = list.try_next().await.expect("an object").expect("an object").name;
    let mut object = newest.get(&name).await.expect("a snapshot");
    let mut whole = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut object, &mut whole).await.expect("read");
    for cut in [whole.len() - 9, whole.len() / 2, 20, 0] {
        newest.put(name.as_str(), &mut &whole[..cut]).await.expect("put");
        std::fs::remove_dir_all(folder.path().join("c")).expect("removed");
        let error = open(at("c")).await.err().expect("it does not start");
        assert!(error.to_string().contains("snapshot"), "{cut}: {error}");
        let again = open(at("c")).await.err().expect("nor with what is there");
        assert!(again.to_string().contains("snapshot"), "{cut}: {again}");
    }
    newest.put(name.as_str(), &mut &whole[..]).await.expect("put");
    one.shorten().await.expect("shortened");
    newest.put(name.as_str(), &mut &whole[..]).await.expect("put");
    let third = open(at("c")).await.expect("open");
    level(&[&one, &other, &third], &settings, &mut mark).await;
    assert_eq!(known(&third).await, known(&one).await);
    // Of another log of the same name nothing is taken, and nothing is taken for one of this.
    for opened in [one, other, third] {
        opened.close().await.expect("close");
    }
    jetstream.delete_stream("NEXUS").await.expect("deleted");
    let foreign = names().await;
    let fresh = open(at("d")).await.expect("a new log");
    some(&fresh, 0).await;
    fresh.shorten().await.expect("shortened");
    fresh.shorten().await.expect("shortened");
    some(&fresh, 10).await;
    let known_to_fresh = known(&fresh).await;
    fresh.close().await.expect("close");
    let second = open(at("e")).await.expect("open");
    assert_eq!(known(&second).await, known_to_fresh);
    let now = names().await;
    assert!(
        !foreign.is_empty() && foreign.iter().all(|name| now.contains(name)),
        "what another log left stays: {now:?}"
    );
    second.close().await.expect("close");
}

/// Waits until a runtime says that it cannot go on.
async fn why_broken(opened: &JetStream) -> String {
    tokio::time::timeout(Duration::from_secs(60), opened.broken()).await.expect("it is noticed")
}

async fn jetstream(server: &NatsServer) -> async_nats::jetstream::Context {
    async_nats::jetstream::new(async_nats::connect(server.url()).await.expect("a connection"))
}

async fn some(opened: &JetStream, from: u64) {
    for n in from..from + 5 {
        opened.storage().log.append(vec![numbered(&Settings::default(), n)]).await.expect("append");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_gone_or_another_is_noticed() {
    let server = NatsServer::start();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| config(&server, &folder.path().join(name));
    let opened = open(at("a")).await.expect("open");
    some(&opened, 0).await;
    jetstream(&server).await.delete_stream("NEXUS").await.expect("deleted");
    let why = why_broken(&opened).await;
    assert!(why.contains("NEXUS") && (why.contains("gone") || why.contains("another")), "{why}");
    let refused = opened.storage().log.append(vec![numbered(&Settings::default(), 9)]).await;
    assert!(matches!(refused, Err(StorageError::Closed)), "{refused:?}");
    // Nobody makes a new one where a copy of the old one is.
    drop(opened);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let error = open(at("a")).await.err().expect("it does not start");
    assert!(error.to_string().contains("holds a copy"), "{error}");
    // Another one of that name.
    let other = open(at("b")).await.expect("a new log");
    other.close().await.expect("close");
    let error = open(at("a")).await.err().expect("it does not start");
    assert!(error.to_string().contains("another log"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_missing_is_noticed() {
    let server = NatsServer::start();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| config(&server, &folder.path().join(name));
    let opened = open(at("a")).await.expect("open");
    some(&opened, 0).await;
    opened.close().await.expect("close");
    let stream = jetstream(&server).await.get_stream("NEXUS").await.expect("the stream");
    stream.delete_message(3).await.expect("deleted");
    let error = open(at("b")).await.err().expect("it does not start");
    assert!(error.to_string().contains("messages 3 to 3") && error.to_string().contains("missing"), "{error}");
    // The one that has it goes on.
    let opened = open(at("a")).await.expect("open");
    some(&opened, 10).await;
    opened.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_otherwise_than_configured_is_refused_and_not_changed() {
    let server = NatsServer::start();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| config(&server, &folder.path().join(name));
    let mut stream = async_nats::jetstream::stream::Config { name: "OTHERS".into(), ..Default::default() };
    stream.subjects = vec!["others".into()];
    jetstream(&server).await.create_stream(stream).await.expect("a stream");
    let error = open(JetStreamConfig { stream: "OTHERS".into(), ..at("a") }).await.err().expect("not ours");
    assert!(error.to_string().contains("not of Nexus"), "{error}");
    open(at("a")).await.expect("open").close().await.expect("close");
    let js = jetstream(&server).await;
    let mut changed = js.get_stream("NEXUS").await.expect("the stream").cached_info().config.clone();
    changed.max_age = Duration::from_secs(3600);
    js.update_stream(changed).await.expect("changed");
    let error = open(at("a")).await.err().expect("it does not start");
    assert!(error.to_string().contains("the largest age is 3600s"), "{error}");
    assert_eq!(
        js.get_stream("NEXUS").await.expect("the stream").cached_info().config.max_age,
        Duration::from_secs(3600)
    );
    // A directory is of one kind.
    let embedded = nexus_log::embedded::open(EmbeddedConfig::new(folder.path().join("a"))).await.err().expect("a copy");
    assert!(embedded.to_string().contains("--nats"), "{embedded}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_or_is_killed_costs_nothing_that_was_acknowledged() {
    let mut server = NatsServer::start();
    let folder = tempfile::tempdir().expect("a folder");
    let opened = Arc::new(open(config(&server, &folder.path().join("a"))).await.expect("open"));
    let settings = Settings::default();
    let load = {
        let (opened, settings) = (opened.clone(), settings.clone());
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            for n in 0..400 {
                match opened.storage().log.append(vec![numbered(&settings, n)]).await {
                    Ok(_) => acknowledged.push(n.to_string()),
                    Err(error) => assert!(error.is_retryable(), "{error}"),
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            acknowledged
        })
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.signal("-STOP");
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.signal("-CONT");
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.kill_and_start();
    let acknowledged = load.await.expect("the load");
    assert!(acknowledged.len() > 300, "{}", acknowledged.len());
    let fresh = open(config(&server, &folder.path().join("b"))).await.expect("a copy made anew");
    for id in &acknowledged {
        assert_eq!(fresh.storage().log.find(id, None).await.expect("find").len(), 1, "{id}");
    }
    fresh.close().await.expect("close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_room_refuses_and_goes_on_when_there_is_some() {
    let mut server = NatsServer::with_room("1MB");
    let folder = tempfile::tempdir().expect("a folder");
    let opened = open(config(&server, &folder.path().join("a"))).await.expect("open");
    let log = opened.storage().log;
    let settings = Settings::default();
    let large = |n: u64| {
        let mut one = numbered(&settings, n);
        one.event.data = Some(nexus_core::event::Data::Binary(vec![n as u8; 30_000].into()));
        one
    };
    let mut acknowledged = 0;
    let refused = loop {
        match log.append(vec![large(acknowledged)]).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 100, "more than there is room for");
    };
    assert!(refused.is_retryable() && refused.to_string().contains("resources"), "{refused}");
    server.kill_and_start_with("max_file: 1MB", "max_file: 8MB");
    loop {
        match log.append(vec![large(acknowledged)]).await {
            Ok(_) => break,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
    opened.close().await.expect("close");
    let fresh = open(config(&server, &folder.path().join("b"))).await.expect("a copy made anew");
    for n in 0..=acknowledged {
        assert_eq!(fresh.storage().log.find(&n.to_string(), None).await.expect("find").len(), 1, "{n}");
    }
    fresh.close().await.expect("close");
}
