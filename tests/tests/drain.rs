//! A server that is told to stop lets what runs come to its end; one that is busy says so.

use nexus_tests::gate::Gate;
use nexus_tests::problem::refused;
use nexus_tests::{Server, until};
use reqwest::{Method, StatusCode};
use serde_json::json;

/// Sends SIGTERM, as a service manager does.
fn terminate(server: &Server) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.pid()).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the server runs");
}

/// Waits until nobody new is served: refused connections, or `readyz` saying that it is closing.
async fn closed_to_others(server: &Server) {
    let client = nexus_tests::server::client();
    until("the server to be closed to others", || async {
        match client.get(format!("{}/readyz", server.url())).send().await {
            Ok(response) => (response.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(()),
            Err(_) => Some(()),
        }
    })
    .await;
}

#[tokio::test]
async fn calls_in_flight_are_answered_before_the_end() {
    let gate = Gate::closed().await;
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(folder.path()).start();
    server.deploy("slow", "probe", json!({"egress": [gate.egress()]})).await;
    let path = format!("/fn/slow/fetch?url={}", gate.url());
    let calls: Vec<_> = (0..8).map(|_| tokio::spawn(server.request(Method::GET, &path).send())).collect();
    gate.until(|held| held.now == 8).await;
    let (status, _) = server.answer(server.request(Method::GET, "/readyz")).await;
    assert_eq!(status, 200, "a server with calls in flight is ready");

    terminate(&server);
    closed_to_others(&server).await;
    assert_eq!(gate.held().now, 8, "what runs goes on");
    gate.open();
    let mut ids = Vec::new();
    for call in calls {
        let response = call.await.expect("a task").expect("an answer");
        assert_eq!(response.status(), 200);
        ids.push(response.headers()["nexus-event-id"].to_str().expect("text").to_owned());
        assert_eq!(response.json::<serde_json::Value>().await.expect("a body"), json!([200]));
    }
    assert_eq!(server.ended().await, Some(0));

    // Each has its outcome, and no second one.
    let server = Server::builder().data_dir(folder.path()).start();
    for id in ids {
        let event = server.settled(&id, "done").await;
        assert_eq!(event["invocations"].as_array().map(Vec::len), Some(1), "{event}");
    }
}

#[tokio::test]
async fn deliveries_in_flight_end_before_the_server_does() {
    let gate = Gate::closed().await;
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(folder.path()).start();
    let trigger = json!([{"filters": [{"exact": {"type": "t"}}]}]);
    // A function that holds what it is sent: an event is a POST, which the receiver answers when it is told to.
    let env = json!({"FORWARD_URL": format!("http://{}/", gate.address)});
    server.deploy("hook", "webhook-forward", json!({"triggers": trigger, "env": env, "egress": [gate.egress()]})).await;
    for at in 0..5 {
        server
            .send(json!({"specversion": "1.0", "id": format!("e{at}"), "source": "/drain", "type": "t", "data": {}}))
            .await;
    }
    gate.until(|held| held.now == 5).await;
    terminate(&server);
    closed_to_others(&server).await;
    gate.open();
    assert_eq!(server.ended().await, Some(0));
    let server = Server::builder().data_dir(folder.path()).start();
    for at in 0..5 {
        let event = server.settled(&format!("e{at}"), "done").await;
        assert_eq!(event["invocations"].as_array().map(Vec::len), Some(1), "{event}");
    }
    assert_eq!(gate.held().came, 5, "none was delivered twice");
}

#[tokio::test]
async fn what_does_not_end_is_cut_off_and_delivered_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(folder.path()).config("drain_timeout_s = 0").start();
    let limits = json!({"timeout_ms": 900_000, "concurrency": 1});
    server.deploy("slow", "probe", json!({"triggers": [{"filters": []}], "limits": limits})).await;
    for at in 0..3 {
        let event = json!({"specversion": "1.0", "id": format!("e{at}"), "source": "/drain", "type": "t", "data": {"sleep_ms": 800_000}});
        server.send(event).await;
    }
    server.settled("e0", "running").await;
    terminate(&server);
    assert_eq!(server.ended().await, Some(0));
    let server = Server::builder().data_dir(folder.path()).config("drain_timeout_s = 0").start();
    for at in 0..3 {
        let event = server.settled(&format!("e{at}"), "running").await;
        assert_eq!(event["invocations"], json!([]), "it has no outcome yet: {event}");
    }
    terminate(&server);
    assert_eq!(server.ended().await, Some(0));
}

#[tokio::test]
async fn idle_and_following_clients_do_not_hold_up_the_end() {
    // Longer than any test waits: if somebody is waited for, the test fails.
    let server = Server::builder().config("drain_timeout_s = 3600\nread_timeout_s = 3600").start();
    let idle: Vec<_> = (0..3)
        .map(|_| std::net::TcpStream::connect(server.url().trim_start_matches("http://")).expect("connect"))
        .collect();
    let (status, _) = server.answer(server.request(Method::GET, "/healthz")).await;
    assert_eq!(status, 200, "a connection that is kept alive");
    let follow = server.request(Method::GET, "/v1/logs?follow=true").send().await.expect("an answer");
    assert_eq!(follow.status(), 200);
    terminate(&server);
    let body = follow.bytes().await.expect("it ends in good order");
    assert_eq!(&body[..], b"");
    assert_eq!(server.ended().await, Some(0));
    drop(idle);
}

#[tokio::test]
async fn more_requests_than_are_worked_on_are_told_to_come_back() {
    let gate = Gate::closed().await;
    let server = Server::builder().config("requests_max = 1").start();
    server.deploy("slow", "probe", json!({"egress": [gate.egress()]})).await;
    let path = format!("/fn/slow/fetch?url={}", gate.url());
    let first = tokio::spawn(server.request(Method::GET, &path).send());
    gate.until(|held| held.now == 1).await;
    for (method, path) in
        [(Method::GET, "/fn/slow/hello"), (Method::POST, "/v1/events"), (Method::GET, "/v1/functions")]
    {
        let (headers, problem) = refused(path, server.request(method, path), 503, "1 requests").await;
        assert!(headers["retry-after"].to_str().is_ok_and(|s| s.parse::<u32>().is_ok_and(|s| s > 0)), "{headers:?}");
        assert_eq!(problem["type"], "urn:nexus:problem:busy");
    }
    // Whoever watches the server is answered all the same.
    for path in ["/healthz", "/readyz", "/metrics"] {
        let (status, _) = server.answer(server.request(Method::GET, path)).await;
        assert_eq!(status, 200, "{path}");
    }
    let page = server.request(Method::GET, "/metrics").send().await.expect("metrics").text().await.expect("text");
    assert!(page.contains("nexus_requests_refused_total{reason=\"requests\"} 3"), "{page}");
    gate.open();
    assert_eq!(first.await.expect("a task").expect("an answer").status(), 200);
    until("the place to be free", || async {
        let (status, _) = server.answer(server.request(Method::GET, "/fn/slow/hello")).await;
        (status == 200).then_some(())
    })
    .await;
}
