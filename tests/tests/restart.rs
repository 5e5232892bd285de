//! A process that is killed, and the one after it on the same data: nothing acknowledged is forgotten.

use nexus_tests::Server;
use nexus_tests::receiver::Vacant;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

fn event(id: &str, ty: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/s", "type": ty, "data": data})
}

fn on(ty: &str) -> Value {
    json!({"triggers": [{"filters": [{"exact": {"type": ty}}]}]})
}

#[tokio::test]
async fn a_parked_delivery_is_tried_again() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(dir.path()).start();
    let vacant = Vacant::new();
    let mut config = on("order.accepted");
    config["env"] = json!({"FORWARD_URL": format!("http://{}/", vacant.address)});
    config["egress"] = json!(["127.0.0.1:*"]);
    // Long enough to be killed in the middle of it, and far from the last attempt.
    config["retry"] = json!({"attempts_max": 50, "backoff_ms": 500, "backoff_max_ms": 500});
    server.deploy("webhook-forward", "webhook-forward", config).await;
    server.send(event("1", "order.accepted", json!({}))).await;
    let parked = server.settled("1", "failed").await;
    assert!(parked["invocations"][0]["retry_at"].is_string(), "{parked:#}");
    server.kill();

    let receiver = vacant.answering(StatusCode::OK);
    let server = Server::builder().data_dir(dir.path()).start();
    let done = server.settled("1", "done").await;
    let attempts: Vec<_> = done["invocations"].as_array().expect("invocations").iter().map(|i| &i["attempt"]).collect();
    assert_eq!(attempts, (1..=attempts.len()).collect::<Vec<_>>());
    assert_eq!(done["invocations"][0], parked["invocations"][0]);
    assert_eq!(receiver.received().len(), 1);
}

#[tokio::test]
async fn what_was_not_delivered_is_delivered_then() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(dir.path()).start();
    let mut config = on("t");
    // One at a time: the others wait behind the first.
    config["limits"] = json!({"concurrency": 1});
    server.deploy("probe", "probe", config).await;
    for id in ["1", "2", "3"] {
        server.send(event(id, "t", json!({"sleep_ms": 500}))).await;
    }
    server.event_until("1", |e| e["status"] != "pending").await;
    server.kill();

    let server = Server::builder().data_dir(dir.path()).start();
    for id in ["1", "2", "3"] {
        let event = server.settled(id, "done").await;
        let invocations = event["invocations"].as_array().expect("invocations");
        assert_eq!(invocations.len(), 1, "{event:#}");
        assert_eq!((&invocations[0]["attempt"], &invocations[0]["status"]), (&json!(1), &json!("ok")));
    }
}

#[tokio::test]
async fn functions_and_events_are_as_they_were() {
    let dir = tempfile::tempdir().expect("a folder");
    let start = || Server::builder().data_dir(dir.path()).start();
    let server = start();
    server.deploy("noop", "noop", on("t")).await;
    server.deploy("noop", "hello-http", on("t")).await;
    let mut probe = on("none");
    probe["env"] = json!({"A": "1"});
    server.deploy("probe", "probe", probe).await;
    server.deploy("gone", "noop", json!({})).await;
    assert_eq!(server.answer(server.request(Method::DELETE, "/v1/functions/gone")).await.0, 204);
    server.send(event("1", "t", json!({}))).await;
    server.settled("1", "done").await;
    let paths = ["/v1/functions", "/v1/functions/noop/versions", "/v1/events", "/v1/events/1"];
    let mut before = Vec::new();
    for path in paths {
        before.push(server.get(path).await);
    }
    assert_eq!(server.stop(), Some(0));

    for end in [Server::kill, |server: Server| assert_eq!(server.stop(), Some(0))] {
        let server = start();
        for (path, before) in paths.iter().zip(&before) {
            assert_eq!(&server.get(path).await, before, "{path}");
        }
        end(server);
    }
    let server = start();
    // The artifact is there too: the first call loads it, the second finds it loaded.
    for cold in [true, false] {
        let response = server.request(Method::GET, "/fn/probe/env").send().await.expect("an answer");
        let id = response.headers()["nexus-event-id"].to_str().expect("text").to_owned();
        let env: Value = serde_json::from_str(&response.text().await.expect("text")).expect("JSON");
        assert_eq!(env["A"], "1");
        let event = server.get(&format!("/v1/events/{id}")).await;
        assert_eq!(event["invocations"][0]["cold_start"], cold);
        assert_eq!(event["invocations"][0]["load_ns"].is_u64(), cold);
    }
    // And an event of before is known as a duplicate.
    assert_eq!(server.send(event("1", "t", json!({}))).await["duplicate"], true);
}

#[tokio::test]
async fn a_delivery_to_a_function_that_is_gone_is_given_up() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(dir.path()).start();
    let mut config = on("t");
    config["retry"] = json!({"attempts_max": 50, "backoff_ms": 500, "backoff_max_ms": 500});
    server.deploy("probe", "probe", config).await;
    server.send(event("1", "t", json!({"status": 500}))).await;
    server.settled("1", "failed").await;
    assert_eq!(server.answer(server.request(Method::DELETE, "/v1/functions/probe")).await.0, 204);
    let dead = server.settled("1", "dead").await;
    let last = dead["invocations"].as_array().and_then(|i| i.last()).expect("an invocation").clone();
    assert_eq!(last["status"], "denied");
    assert!(last["error"].as_str().is_some_and(|e| e.contains("no function `probe`")), "{last}");
}
