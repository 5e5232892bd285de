//! Functions that misbehave beside one that does not.

use nexus_tests::gate::Gate;
use nexus_tests::{Server, until};
use reqwest::Method;
use serde_json::json;

use crate::{call, config, on, send};

#[tokio::test]
async fn a_healthy_function_does_not_feel_the_others() {
    let server = Server::start();
    let rows = [
        ("trapping", "trap", json!({"trap": true}), "trap", 500),
        ("looping", "loop", json!({"loop": true}), "timeout", 504),
        ("swelling", "alloc?mb=64", json!({"alloc_mb": 64}), "out_of_memory", 500),
    ];
    for (name, _, _, ended, _) in &rows {
        let timeout_ms = if *ended == "timeout" { 100 } else { 60_000 };
        let limits = json!({"timeout_ms": timeout_ms, "memory_mb": 32, "concurrency": 4});
        server.deploy(name, "probe", config(json!({"limits": limits, "triggers": on(name)}))).await;
    }
    server.deploy("healthy", "probe", config(json!({"triggers": on("healthy"), "limits": {}}))).await;
    let mut noise = Vec::new();
    for at in 0..20 {
        for (name, path, data, _, status) in &rows {
            send(&server, &format!("{name}-{at}"), name, data.clone()).await;
            let call = server.request(Method::GET, &format!("/fn/{name}/{path}"));
            noise.push((*status, tokio::spawn(call.send())));
        }
        send(&server, &format!("healthy-{at}"), "healthy", json!({"emit": [{}]})).await;
    }
    for at in 0..200 {
        let (status, body) = server.answer(server.request(Method::GET, "/fn/healthy/hello")).await;
        assert_eq!((status, &body), (200, &json!("hello")), "call {at}");
    }
    for at in 0..20 {
        server.settled(&format!("healthy-{at}"), "done").await;
    }
    for (status, call) in noise {
        assert_eq!(call.await.expect("a task").expect("an answer").status(), status);
    }
    for (name, _, _, ended, _) in &rows {
        for at in 0..20 {
            let event = server.settled(&format!("{name}-{at}"), "dead").await;
            assert_eq!(event["invocations"][0]["status"], *ended, "{event}");
        }
    }
}

#[tokio::test]
async fn a_function_with_a_backlog_does_not_hold_up_the_events_of_others() {
    let gate = Gate::closed().await;
    // Room for 64 deliveries; the slow function alone has more than that waiting.
    let server = Server::builder().config("in_flight_kib_max = 1024").start();
    let limits = json!({"timeout_ms": 900_000, "concurrency": 1});
    server.deploy("slow", "probe", json!({"triggers": on("slow"), "limits": limits, "egress": [gate.egress()]})).await;
    server.deploy("healthy", "noop", json!({"triggers": on("healthy")})).await;
    for at in 0..200 {
        send(&server, &format!("slow-{at}"), "slow", json!({"sleep_ms": 800_000})).await;
    }
    for at in 0..20 {
        send(&server, &format!("healthy-{at}"), "healthy", json!(at)).await;
    }
    for at in 0..20 {
        server.settled(&format!("healthy-{at}"), "done").await;
    }
    let waiting = server.get("/v1/events?type=slow&status=done").await;
    assert_eq!(waiting["items"], json!([]), "the slow one is still at its first");
}

#[tokio::test]
async fn calls_that_wait_for_one_function_do_not_take_the_places_of_all() {
    let gate = Gate::closed().await;
    let server = Server::builder().config("requests_max = 10\ncalls_waiting_max = 2").start();
    let limits = json!({"timeout_ms": 600_000, "concurrency": 1});
    server.deploy("slow", "probe", config(json!({"limits": limits, "egress": [gate.egress()]}))).await;
    server.deploy("healthy", "probe", config(json!({}))).await;
    let path = format!("/fn/slow/fetch?url={}", gate.url());
    let calls: Vec<_> = (0..3).map(|_| tokio::spawn(server.request(Method::GET, &path).send())).collect();
    until("one call to run and two to wait", || async {
        let events = server.get("/v1/events?source=/fn/slow").await;
        (events["items"].as_array()?.len() == 3).then_some(())
    })
    .await;
    for _ in 0..20 {
        let refused = server.request(Method::GET, &path).send().await.expect("an answer");
        assert_eq!(refused.status(), 429);
        assert_eq!(refused.headers()["retry-after"], "1");
        let (status, body) = server.answer(server.request(Method::GET, "/fn/healthy/hello")).await;
        assert_eq!((status, &body), (200, &json!("hello")));
    }
    gate.open();
    for call in calls {
        assert_eq!(call.await.expect("a task").expect("an answer").status(), 200);
    }
    // Who sends a body slowly keeps nobody out.
    let address = server.url().trim_start_matches("http://").to_owned();
    let slow: Vec<_> = (0..4)
        .map(|_| {
            use std::io::Write as _;
            let mut stream = std::net::TcpStream::connect(&address).expect("connect");
            stream.write_all(b"POST /fn/slow/ HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx").expect("half a call");
            stream
        })
        .collect();
    // Their places are free again.
    for _ in 0..20 {
        assert_eq!(server.request(Method::GET, &path).send().await.expect("an answer").status(), 200);
    }
    drop(slow);
}

#[tokio::test]
async fn no_fault_keeps_a_place_in_the_pool() {
    let gate = Gate::closed().await;
    let server = Server::builder().config("instances_max = 4").start();
    let egress = json!([gate.egress()]);
    server
        .deploy("bad", "probe", config(json!({"limits": {"timeout_ms": 20, "memory_mb": 32}, "egress": egress})))
        .await;
    server.deploy("large", "probe", config(json!({"limits": {"timeout_ms": 20, "memory_mb": 512}}))).await;
    server.deploy("good", "probe", config(json!({"limits": {}}))).await;
    let fetch = format!("fetch?url={}", gate.url());
    let faults = ["trap", "loop", "recurse", "alloc?mb=64", "big?mb=9", "tasks?n=20000", "sleep?ms=600000", &fetch];
    let mut bad = Vec::new();
    for round in 0..320 {
        // The two profiles have a pool each.
        let name = if round % 4 == 0 { "large" } else { "bad" };
        let path = format!("/fn/{name}/{}", faults[round % faults.len()]);
        let request = tokio::spawn(server.request(Method::GET, &path).send());
        if round % 5 == 0 {
            // Its client goes away before it is answered.
            request.abort();
        } else {
            bad.push(request);
        }
        if bad.len() == 16 {
            for request in bad.drain(..) {
                let response = request.await.expect("a task").expect("an answer");
                assert_ne!(response.status(), 503, "round {round}");
            }
        }
    }
    gate.until(|h| h.now == 0).await;
    // Every place can be used, and who finds none waits for one.
    let held = Gate::closed().await;
    server.deploy("held", "probe", json!({"egress": [held.egress()]})).await;
    let path = format!("/fn/held/fetch?url={}", held.url());
    let calls: Vec<_> = (0..10).map(|_| tokio::spawn(server.request(Method::GET, &path).send())).collect();
    held.until(|h| h.now == 4).await;
    held.open();
    for call in calls {
        assert_eq!(call.await.expect("a task").expect("an answer").status(), 200);
    }
    assert_eq!(held.held().most, 4);
    let good: Vec<_> = (0..50).map(|_| tokio::spawn(server.request(Method::GET, "/fn/good/hello").send())).collect();
    for request in good {
        assert_eq!(request.await.expect("a task").expect("an answer").status(), 200);
    }
    let (status, body, _) = call(&server, "/fn/good/hello").await;
    assert_eq!((status, body), (200, json!("hello")));
    until("nothing to run any more", || async {
        let functions = server.get("/v1/functions").await;
        let running =
            functions["items"].as_array()?.iter().map(|f| f["stats"]["running"].as_u64()).sum::<Option<u64>>()?;
        (running == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_file_that_blocks_costs_its_timeout_and_its_own_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let fifo = folder.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
    let server = Server::builder()
        .arg("--allow-mount")
        .arg(folder.path().to_str().expect("text"))
        .config("instances_max = 2")
        .start();
    let mounts = json!([{"host": folder.path(), "guest": "/data"}]);
    server.deploy("files", "probe", config(json!({"mounts": mounts}))).await;
    server.deploy("good", "probe", json!({})).await;
    // Nobody writes to it: opening it waits for ever.
    let (status, body, invocation) = call(&server, "/fn/files/read?path=%2Fdata%2Ffifo").await;
    assert_eq!((status, &invocation["status"]), (504, &json!("timeout")), "{body}");
    // What the thread that was left behind makes the kernel do from now on is in no account.
    assert_ne!(invocation["kernel"]["complete"], true, "{invocation}");
    for _ in 0..20 {
        let (status, body, _) = call(&server, "/fn/good/hello").await;
        assert_eq!(status, 200, "one place is left: {body}");
    }
    let (status, ..) = call(&server, "/fn/files/read?path=%2Fdata%2Ffifo").await;
    assert_eq!(status, 504);
    // Now no place is left, until somebody opens the other end and both come to their end.
    let waiting = tokio::spawn(server.request(Method::GET, "/fn/good/hello").send());
    let writer = std::fs::OpenOptions::new().write(true).open(&fifo).expect("somebody reads");
    drop(writer);
    assert_eq!(waiting.await.expect("a task").expect("an answer").status(), 200);
    assert_eq!(server.stop(), Some(0));
}
