//! The server is killed again and again, at moments that a seed chooses, while events come in and are delivered. What it
//! had acknowledged is there each time, once, and comes to its one outcome.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use nexus_tests::{Server, ServerBuilder};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};

/// Clients that send at once.
const CLIENTS: usize = 4;

fn builder(data_dir: &Path) -> ServerBuilder {
    // What the kernel does is no part of this, and loading the probes takes longer than a round.
    Server::builder().data_dir(data_dir).arg("--kernel").arg("off")
}

fn start(data_dir: &Path) -> Server {
    builder(data_dir).start()
}

/// Starts the server and kills it when it has so many files open (a measure of how far it has come), or is ready.
fn kill_in_the_middle_of_its_start(data_dir: &Path, files: usize) {
    let (mut command, _, _folder) = builder(data_dir).command();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    // Its first line says that it is ready; without one it ended by itself.
    let first_line = std::thread::spawn(move || {
        let mut line = String::new();
        stdout.read_line(&mut line).expect("text");
        line
    });
    let open_files = format!("/proc/{}/fd", child.id());
    while !first_line.is_finished() && std::fs::read_dir(&open_files).map_or(0, Iterator::count) < files {
        std::thread::yield_now();
    }
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
    first_line.join().expect("the reader ends with the program");
}

/// Sends events until the server is gone; the ids of those that it acknowledged.
async fn load(server: Arc<Server>, client: usize, round: usize, seed: u64, acknowledged: Arc<Mutex<BTreeSet<String>>>) {
    let mut rng = StdRng::seed_from_u64(seed);
    for number in 0.. {
        let count = if rng.random_bool(0.5) { 1 } else { rng.random_range(2..20) };
        let event = |at: usize| {
            let ty = ["plain", "emits", "nobody"][rng.random_range(0..3)];
            let id = format!("{round}-{client}-{number}-{at}");
            json!({"specversion": "1.0", "id": id, "source": "/crash", "type": ty, "data": {"emit": [{"type": "emitted"}, {"type": "plain"}]}})
        };
        let events: Vec<Value> = (0..count).map(event).collect();
        let (kind, body) = match events.as_slice() {
            [one] => ("application/cloudevents+json", one.to_string()),
            many => ("application/cloudevents-batch+json", Value::from(many).to_string()),
        };
        let request = server.request(Method::POST, "/v1/events").header("content-type", kind).body(body);
        let Ok(response) = request.send().await else { return };
        let status = response.status();
        // An answer that breaks off is none: the client does not know, and may find the events there or not.
        let Ok(answer) = response.text().await else { return };
        assert_eq!(status, 202, "seed {seed}: {answer}");
        let ids = events.iter().map(|e| e["id"].as_str().expect("id").to_owned());
        acknowledged.lock().expect("not poisoned").extend(ids);
    }
}

/// Every event of the log from this place on, oldest last.
async fn events_from(server: &Server, seq: u64) -> Vec<Value> {
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = server.get(&format!("/v1/events?limit=1000{cursor}")).await;
        all.extend(page["items"].as_array().expect("items").iter().cloned());
        let reached = all.last().is_none_or(|e| e["seq"].as_u64() <= Some(seq));
        match page["next"].as_str() {
            Some(next) if !reached => cursor = format!("&cursor={next}"),
            _ => break,
        }
    }
    all.retain(|e| e["seq"].as_u64() >= Some(seq));
    all
}

/// The same, once all of it is done. While it is read what is done emits: only if a second look finds no more is there no more to come.
async fn all_done(server: &Server, seq: u64) -> Vec<Value> {
    nexus_tests::until("everything to be done", || async {
        let first = events_from(server, seq).await;
        let done = |log: &[Value]| log.iter().all(|event| event["status"] == "done");
        if !done(&first) {
            return None;
        }
        let second = events_from(server, seq).await;
        (second.len() == first.len() && done(&second)).then_some(second)
    })
    .await
}

/// The functions that an event of this type goes to.
fn wanted(ty: &str) -> &'static [&'static str] {
    match ty {
        "plain" => &["noop", "second"],
        "emits" => &["emitter"],
        _ => &[],
    }
}

/// Checks a part of the log that nothing before it has a part in: each acknowledged event once, one good outcome for each of its functions, each emitted event
/// once for its cause.
fn check(what: &str, log: &[Value], acknowledged: &BTreeSet<String>) {
    let text = |v: &Value| v.as_str().expect("text").to_owned();
    let mut by_id: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut emitted: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for event in log {
        *by_id.entry((text(&event["event"]["source"]), text(&event["event"]["id"]))).or_default() += 1;
        if let Some(cause) = event["cause"]["seq"].as_u64() {
            emitted.entry(cause).or_default().insert(text(&event["event"]["id"]));
        }
    }
    let twice: Vec<_> = by_id.iter().filter(|(_, n)| **n > 1).collect();
    assert!(twice.is_empty(), "{what}: more than once in the log: {twice:?}");
    let missing: Vec<_> =
        acknowledged.iter().filter(|id| !by_id.contains_key(&("/crash".into(), id.to_string()))).collect();
    assert!(missing.is_empty(), "{what}: acknowledged and gone: {missing:?}");
    for event in log {
        let ty = text(&event["event"]["type"]);
        assert_eq!(event["status"], "done", "{what}: {event}");
        let outcomes = event["invocations"].as_array().expect("invocations");
        let mut functions: Vec<_> = outcomes.iter().map(|o| text(&o["function"])).collect();
        functions.sort();
        assert_eq!(functions, wanted(&ty), "{what}: one outcome for each function: {event}");
        for outcome in outcomes {
            assert_eq!((&outcome["status"], &outcome["attempt"]), (&json!("ok"), &json!(1)), "{what}: {event}");
        }
        let seq = event["seq"].as_u64().expect("seq");
        let have = emitted.get(&seq).cloned().unwrap_or_default();
        let said: BTreeSet<_> =
            outcomes.iter().flat_map(|o| o["emitted"].as_array().expect("emitted")).map(text).collect();
        assert_eq!(have, said, "{what}: what the outcome says was emitted is what is in the log: {event}");
        assert_eq!(said.len(), if ty == "emits" { 2 } else { 0 }, "{what}: {event}");
    }
    // What nobody acknowledged may be there too; what nobody sent may not.
    let strange = |e: &&Value| e["event"]["source"] != "/crash" && e["cause"].is_null();
    assert_eq!(log.iter().find(strange), None, "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_every_kill() {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let seed = number("NEXUS_SEED").unwrap_or_else(rand::random::<u64>);
    let rounds = number("NEXUS_ROUNDS").map_or(100, |n| usize::try_from(n).expect("few"));
    println!("NEXUS_SEED={seed} NEXUS_ROUNDS={rounds}");
    let mut rng = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    let acknowledged: Arc<Mutex<BTreeSet<String>>> = Arc::default();

    let server = start(&data_dir);
    let on = |ty: &str| json!({"triggers": [{"filters": [{"exact": {"type": ty}}]}]});
    server.deploy("noop", "noop", on("plain")).await;
    server.deploy("second", "hello-http", on("plain")).await;
    server.deploy("emitter", "probe", on("emits")).await;
    server.kill();

    let (mut all, mut unseen) = (BTreeSet::new(), 0);
    for round in 0..rounds {
        if rng.random_bool(0.2) {
            kill_in_the_middle_of_its_start(&data_dir, rng.random_range(3..30));
        }
        let server = Arc::new(start(&data_dir));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| tokio::spawn(load(server.clone(), client, round, rng.random(), acknowledged.clone())))
            .collect();
        // The moment is a number of acknowledged events, or very early: in the middle of what the start does.
        let target = acknowledged.lock().expect("not poisoned").len() + rng.random_range(0..60);
        while acknowledged.lock().expect("not poisoned").len() < target {
            tokio::task::yield_now().await;
        }
        let killed = std::process::Command::new("kill").args(["-9", &server.pid().to_string()]).status();
        assert!(killed.expect("kill runs").success(), "seed {seed}, round {round}");
        for client in clients {
            client.await.unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
        }
        drop(server);
        // Each ten rounds what is new is looked at; in between, the next kill comes upon work that is not done.
        if round % 10 == 9 || round + 1 == rounds {
            let server = start(&data_dir);
            let log = all_done(&server, unseen).await;
            let mut new = std::mem::take(&mut *acknowledged.lock().expect("not poisoned"));
            check(&format!("seed {seed}, round {round}"), &log, &new);
            all.append(&mut new);
            unseen = log.first().and_then(|e| e["seq"].as_u64()).map_or(unseen, |last| last + 1);
            server.kill();
        }
    }
    // What was right once is right still.
    let server = start(&data_dir);
    // An event that went to nobody has no outcome to show: it is done again when the dispatcher has met it again.
    let log = all_done(&server, 0).await;
    check(&format!("seed {seed}, at the end"), &log, &all);
    println!("{} events were acknowledged over {rounds} kills", all.len());
    assert!(all.len() >= rounds, "seed {seed}: hardly anything was sent: {}", all.len());
}
