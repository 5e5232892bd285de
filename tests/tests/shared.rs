//! Several runtimes at one log in NATS: each event is delivered by one of them, a dead one's work goes on elsewhere, and what is
//! deployed on one runs on all.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nexus_tests::nats::{Cluster, cluster};
use nexus_tests::privilege::is_root;
use nexus_tests::{Server, ServerBuilder, until};
use reqwest::Method;
use serde_json::{Value, json};

static STREAMS: AtomicU64 = AtomicU64::new(0);

/// Runtimes that share a log, each with a data directory of its own.
struct Shared {
    stream: String,
    servers: String,
    folder: tempfile::TempDir,
}

impl Shared {
    fn at(cluster: &Cluster) -> Self {
        let stream = format!("SHARED_{}", STREAMS.fetch_add(1, Ordering::Relaxed));
        Self { stream, servers: cluster.urls().join(","), folder: tempfile::tempdir().expect("a folder") }
    }

    fn builder(&self, name: &str) -> ServerBuilder {
        let args = ["--nats", &self.servers, "--nats-replicas", "3", "--nats-stream", &self.stream, "--kernel", "off"];
        let builder = Server::builder().data_dir(&self.folder.path().join(name));
        args.into_iter().fold(builder, ServerBuilder::arg)
    }

    fn start(&self, name: &str) -> Server {
        self.builder(name).start()
    }
}

fn event(id: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/shared", "type": "shared.work", "data": data})
}

fn on_work() -> Value {
    json!({"triggers": [{"filters": [{"exact": {"type": "shared.work"}}]}]})
}

/// Invocations of a function that a server's page counts.
async fn invocations(server: &Server) -> u64 {
    let page = server.request(Method::GET, "/metrics").send().await.expect("a page").text().await.expect("text");
    let counts = page.lines().filter(|line| line.starts_with("faas_invocations_total{"));
    counts.filter_map(|line| line.split_once("} ")?.1.split(' ').next()?.parse::<u64>().ok()).sum()
}

/// Tells a runtime's process to stand still, or to go on.
fn signal(server: &Server, signal: &str) {
    let pid = server.pid().to_string();
    assert!(std::process::Command::new("kill").args([signal, &pid]).status().expect("kill").success());
}

/// Every event is done after one attempt, as any of the runtimes sees it.
async fn done_once(server: &Server, ids: &BTreeSet<String>) {
    for id in ids {
        let event = server.settled(id, "done").await;
        let invocations = event["invocations"].as_array().expect("invocations");
        assert_eq!(invocations.len(), 1, "{event:#}");
    }
}

#[tokio::test]
async fn each_event_is_delivered_by_one_of_them() {
    let shared = Shared::at(cluster());
    let servers: Vec<Server> = ["a", "b", "c"].map(|name| shared.start(name)).into();
    servers[0].deploy("worker", "noop", on_work()).await;
    // What is deployed on one is there on all.
    for server in &servers {
        until("the function to be known", || async {
            let (status, _) = server.answer(server.request(Method::GET, "/v1/functions/worker")).await;
            (status == 200).then_some(())
        })
        .await;
    }
    let mut ids = BTreeSet::new();
    for n in 0..150_usize {
        let id = format!("e{n}");
        servers[n % 3].send(event(&id, json!({}))).await;
        ids.insert(id);
    }
    for server in &servers {
        done_once(server, &ids).await;
    }
    let mut counts = Vec::new();
    for server in &servers {
        counts.push(invocations(server).await);
    }
    assert_eq!(counts.iter().sum::<u64>(), 150, "{counts:?}");
    assert!(counts.iter().all(|count| (20..=80).contains(count)), "all of them work: {counts:?}");
    // A call is answered by whoever was called, wherever the function was deployed.
    for (server, before) in servers.iter().zip(counts) {
        let (status, _) = server.answer(server.request(Method::GET, "/fn/worker")).await;
        assert!((200..300).contains(&status), "{status}");
        assert_eq!(invocations(server).await, before + 1);
    }
}

#[tokio::test]
async fn the_work_of_one_that_is_killed_goes_on_elsewhere() {
    let shared = Shared::at(cluster());
    let (first, second) = (shared.start("a"), shared.start("b"));
    first.deploy("worker", "probe", on_work()).await;
    let mut ids = BTreeSet::new();
    for n in 0..60 {
        let id = format!("e{n}");
        // Some are in flight when it is killed, some wait.
        first.send(event(&id, json!({"sleep_ms": 150}))).await;
        ids.insert(id);
    }
    first.kill();
    let began = std::time::Instant::now();
    for id in &ids {
        second.settled(id, "done").await;
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // It comes back with its directory, and takes its part again.
    let first = shared.start("a");
    let mut ids = BTreeSet::new();
    for n in 60..100 {
        let id = format!("e{n}");
        second.send(event(&id, json!({}))).await;
        ids.insert(id);
    }
    done_once(&second, &ids).await;
    assert!(invocations(&first).await > 0);
}

#[tokio::test]
async fn restarting_one_after_the_other_loses_nothing_and_does_nothing_twice() {
    let shared = Shared::at(cluster());
    let mut servers: Vec<Server> = ["a", "b"].map(|name| shared.start(name)).into();
    servers[0].deploy("worker", "probe", on_work()).await;
    let mut ids = BTreeSet::new();
    for round in 0..4 {
        for n in 0..20 {
            let id = format!("r{round}-{n}");
            servers[n % 2].send(event(&id, json!({"sleep_ms": 20}))).await;
            ids.insert(id);
        }
        let name = ["a", "b"][round % 2];
        let restarted = servers.remove(round % 2);
        assert_eq!(restarted.stop(), Some(0));
        servers.insert(round % 2, shared.start(name));
    }
    for server in &servers {
        done_once(server, &ids).await;
    }
}

#[tokio::test]
async fn what_waits_for_its_turn_is_not_forgotten_when_runtimes_come_and_go() {
    let shared = Shared::at(cluster());
    let first = shared.start("a");
    let mut config = on_work();
    config["triggers"][0]["order"] = json!("partitionkey");
    first.deploy("worker", "probe", config).await;
    let mut ids = BTreeSet::new();
    for (key, n) in (0..4).flat_map(|key| (0..6).map(move |n| (key, n))) {
        let id = format!("k{key}-{n}");
        // The first of each key is at work while the others wait, and runtimes come and go.
        let mut event = event(&id, json!({"sleep_ms": if n == 0 { 4000 } else { 10 }}));
        event["partitionkey"] = json!(format!("k{key}"));
        first.send(event).await;
        ids.insert(id);
    }
    for key in 0..4 {
        first.event_until(&format!("k{key}-0"), |event| event["status"] == "running").await;
    }
    let second = shared.start("b");
    assert_eq!(second.stop(), Some(0));
    let second = shared.start("b");
    for id in &ids {
        let event = first.settled(id, "done").await;
        let invocations = event["invocations"].as_array().expect("invocations");
        assert!((1..=2).contains(&invocations.len()), "{event:#}");
    }
    drop(second);
}

#[tokio::test]
async fn what_is_for_later_is_delivered_by_another_when_its_runtime_is_gone() {
    let shared = Shared::at(cluster());
    let (first, second) = (shared.start("a"), shared.start("b"));
    first.deploy("worker", "probe", on_work()).await;
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(12);
    let mut ids = BTreeSet::new();
    for n in 0..40 {
        let id = format!("e{n}");
        let mut event = event(&id, json!({}));
        event["nexusnotbefore"] = json!(later.to_string());
        first.send(event).await;
        ids.insert(id);
    }
    for id in &ids {
        assert_eq!(second.event_until(id, |_| true).await["status"], "pending");
    }
    first.kill();
    done_once(&second, &ids).await;
    assert!(jiff::Timestamp::now() >= later);
}

#[tokio::test]
async fn schedules_tick_once_for_all_and_go_on_when_one_goes() {
    let shared = Shared::at(cluster());
    let (first, second) = (shared.start("a"), shared.start("b"));
    let schedule = json!({"name": "often", "cron": "* * * * * *", "event": {"type": "tick"}});
    first.deploy("clock", "noop", json!({"schedules": [schedule]})).await;
    let ticks = async |server: &Server| {
        let page = server.get("/v1/events?limit=1000&type=tick").await;
        let times = page["items"].as_array().expect("items").iter().map(|item| item["event"]["time"].to_string());
        let mut times: Vec<_> = times.collect();
        times.reverse();
        times
    };
    until("ticks", || async { (ticks(&second).await.len() >= 2).then_some(()) }).await;
    // Whichever of them it is that ticks.
    first.kill();
    let before = ticks(&second).await.len();
    until("more ticks", || async { (ticks(&second).await.len() >= before + 6).then_some(()) }).await;
    let times = ticks(&second).await;
    let mut unique = times.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique, times, "each once, in order");
    let first: jiff::Timestamp = times[0].trim_matches('"').parse().expect("a time");
    let last: jiff::Timestamp = times[times.len() - 1].trim_matches('"').parse().expect("a time");
    assert_eq!(last.duration_since(first).as_secs() + 1, times.len() as i64, "none is left out: {times:?}");
}

#[tokio::test]
async fn one_that_stood_still_comes_back_and_its_late_outcomes_are_further_attempts() {
    let shared = Shared::at(cluster());
    let (first, second) = (shared.start("a"), shared.start("b"));
    first.deploy("worker", "probe", on_work()).await;
    let mut ids = BTreeSet::new();
    for n in 0..20 {
        let id = format!("e{n}");
        second.send(event(&id, json!({"sleep_ms": 1500}))).await;
        ids.insert(id);
    }
    signal(&first, "-STOP");
    // Longer than its lease: its part is delivered by the other.
    for id in &ids {
        second.settled(id, "done").await;
    }
    signal(&first, "-CONT");
    until("its late outcomes", || async {
        let mut twice = 0;
        for id in &ids {
            let event = second.get(&format!("/v1/events/{id}")).await;
            let attempts: Vec<u64> =
                event["invocations"].as_array()?.iter().filter_map(|i| i["attempt"].as_u64()).collect();
            // No two of the same number, whoever made them.
            assert_eq!(attempts, (1..=attempts.len() as u64).collect::<Vec<_>>(), "{event:#}");
            twice += u64::from(attempts.len() == 2);
        }
        (twice > 0).then_some(())
    })
    .await;
    // Both see the same, and go on together.
    let id = "after";
    first.send(event(id, json!({}))).await;
    for server in [&first, &second] {
        done_once(server, &BTreeSet::from([id.to_owned()])).await;
    }
}

/// Clients that send events to one runtime, whatever becomes of its storage.
struct Load {
    acknowledged: Arc<ids::Set>,
    refused: Arc<AtomicU64>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn on(server: &Arc<Server>) -> Self {
        let (acknowledged, refused, stop) =
            <(Arc<ids::Set>, Arc<AtomicU64>, Arc<std::sync::atomic::AtomicBool>)>::default();
        let client = |client: usize| {
            let (server, acknowledged, refused, stop) =
                (server.clone(), acknowledged.clone(), refused.clone(), stop.clone());
            tokio::spawn(async move {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    let id = format!("c{client}-{n}");
                    n += 1;
                    let body = event(&id, json!({})).to_string();
                    let post = server.request(Method::POST, "/v1/events").body(body);
                    let response =
                        post.header("content-type", "application/cloudevents+json").send().await.expect("an answer");
                    let again = response.headers().contains_key("retry-after");
                    match response.status().as_u16() {
                        202 => acknowledged.insert(id),
                        // What cannot be served is refused, and says when to come back.
                        503 | 429 if again => drop(refused.fetch_add(1, Ordering::Relaxed)),
                        other => panic!("{other} {}", response.text().await.unwrap_or_default()),
                    }
                }
            })
        };
        let clients = (0..4).map(client).collect();
        Self { acknowledged, refused, stop, clients }
    }

    /// Waits until events are taken.
    async fn flows(&self) {
        let before = self.acknowledged.len();
        until("events to be taken again", || async { (self.acknowledged.len() > before + 20).then_some(()) }).await;
    }

    /// The ids of all that were acknowledged.
    async fn end(self) -> BTreeSet<String> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("a client");
        }
        println!("{} acknowledged, {} refused", self.acknowledged.len(), self.refused.load(Ordering::Relaxed));
        self.acknowledged.all()
    }
}

/// A copy that is made anew from the cluster has all of them.
async fn are_in_a_new_copy(shared: &Shared, ids: &BTreeSet<String>) {
    let other = shared.start("new");
    for id in ids {
        assert_eq!(other.get(&format!("/v1/events/{id}")).await["event"]["id"], json!(id));
    }
}

#[tokio::test]
async fn a_server_of_the_cluster_that_dies_costs_nothing_that_was_acknowledged() {
    let cluster = Cluster::start();
    let shared = Shared::at(&cluster);
    let server = Arc::new(shared.start("a"));
    server.deploy("worker", "noop", on_work()).await;
    let load = Load::on(&server);
    for node in cluster.nodes() {
        tokio::time::sleep(Duration::from_millis(500)).await;
        node.kill();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        node.start();
        // Another one must not go before this one has caught up, or two of three are gone.
        load.flows().await;
    }
    let ids = load.end().await;
    assert!(ids.len() > 60, "{} were acknowledged", ids.len());
    done_once(&server, &ids).await;
    are_in_a_new_copy(&shared, &ids).await;
}

/// One that is cut off believes for a while that it still leads; what only it has is thrown away when it is joined again.
#[tokio::test]
async fn a_server_of_the_cluster_that_is_cut_off_costs_nothing_that_was_acknowledged() {
    if !is_root() {
        return println!("skipped: only root can make network namespaces");
    }
    let cluster = Cluster::apart();
    let shared = Shared::at(&cluster);
    let server = Arc::new(shared.start("a"));
    server.deploy("worker", "noop", on_work()).await;
    let load = Load::on(&server);
    for node in 0..3 {
        load.flows().await;
        cluster.cut_off(node, true);
        // Long enough for the others to elect one of them.
        tokio::time::sleep(Duration::from_secs(8)).await;
        cluster.cut_off(node, false);
        load.flows().await;
    }
    // Each by itself: nobody can acknowledge anything.
    [0, 1].iter().for_each(|node| cluster.cut_off(*node, true));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = load.acknowledged.len();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(load.acknowledged.len(), before, "without a majority");
    [0, 1].iter().for_each(|node| cluster.cut_off(*node, false));
    load.flows().await;
    let ids = load.end().await;
    done_once(&server, &ids).await;
    are_in_a_new_copy(&shared, &ids).await;
}

/// A set that several tasks add to.
mod ids {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    #[derive(Default)]
    pub struct Set(Mutex<BTreeSet<String>>);

    impl Set {
        pub fn insert(&self, id: String) {
            self.0.lock().expect("not poisoned").insert(id);
        }

        pub fn len(&self) -> usize {
            self.0.lock().expect("not poisoned").len()
        }

        pub fn all(&self) -> BTreeSet<String> {
            self.0.lock().expect("not poisoned").clone()
        }
    }
}

/// Many events that are delivered, and a replay of them that `first` has begun; its path.
async fn replay_of_many(first: &Server, second: &Server) -> String {
    first.deploy("worker", "noop", on_work()).await;
    let batch: Vec<_> = (0..1500).map(|n| event(&format!("e{n}"), json!({}))).collect();
    let request = first.request(Method::POST, "/v1/events");
    let request = request.header("content-type", "application/cloudevents-batch+json").body(json!(batch).to_string());
    assert_eq!(first.answer(request).await.0, 202);
    until("all deliveries", async || {
        let done = invocations(first).await + invocations(second).await;
        (done >= 1500).then_some(())
    })
    .await;
    let request = json!({"filter": {"type": "shared.work"}, "rate": 300});
    let (status, answer) = first.answer(first.request(Method::POST, "/v1/replays").json(&request)).await;
    assert_eq!(status, 202, "{answer}");
    let path = format!("/v1/replays/{}", answer["replay_id"].as_str().expect("an id"));
    until("a part of it", async || Some(first.get(&path).await).filter(|r| r["done"].as_u64() > Some(700))).await;
    path
}

#[tokio::test]
async fn a_replay_of_many_goes_on_at_another_runtime() {
    let shared = Shared::at(cluster());
    let (first, second) = (shared.start("a"), shared.start("b"));
    let path = replay_of_many(&first, &second).await;
    // The other one knows of it, and does not do it too; nor can it tell it anything.
    let known = second.get(&path).await;
    assert!(known["status"] == "running" && known["done"].as_u64() >= Some(300), "kept by the second: {known:#}");
    let pause = second.request(Method::POST, &format!("{path}/pause"));
    assert_eq!(second.answer(pause).await.0, 409);
    first.kill();
    let ended = until("its end", async || Some(second.get(&path).await).filter(|r| r["status"] == "done")).await;
    assert_eq!((&ended["total"], &ended["identical"]), (&json!(1500), &json!(1500)), "{ended:#}");
}

#[tokio::test]
async fn one_that_was_taken_for_gone_does_not_go_on_with_a_replay_too() {
    let shared = Shared::at(cluster());
    let (first, second) = (shared.start("a"), shared.start("b"));
    let path = replay_of_many(&first, &second).await;
    signal(&first, "-STOP");
    until("the other to go on", async || {
        Some(second.get("/v1/replays").await).filter(|page| page["items"].as_array().is_some_and(|all| !all.is_empty()))
    })
    .await;
    signal(&first, "-CONT");
    // It finds out when it keeps how far it has come, and lets go of it.
    until("the first to let go", async || {
        Some(first.get("/v1/replays").await).filter(|page| page["items"] == json!([]))
    })
    .await;
    for server in [&second, &first] {
        let ended = until("its end", async || Some(server.get(&path).await).filter(|r| r["status"] == "done")).await;
        assert_eq!((&ended["total"], &ended["identical"]), (&json!(1500), &json!(1500)), "{ended:#}");
    }
}
