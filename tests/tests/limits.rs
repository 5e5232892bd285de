//! A guest that misbehaves costs its own budget and nothing else.

use nexus_tests::gate::Gate;
use nexus_tests::{Server, until};
use reqwest::Method;
use serde_json::{Value, json};

#[path = "limits/neighbours.rs"]
mod neighbours;

/// A configuration with one attempt and small limits.
pub fn config(more: Value) -> Value {
    let mut config = json!({
        "limits": {"timeout_ms": 300, "memory_mb": 32},
        "retry": {"attempts_max": 1},
    });
    for (name, value) in more.as_object().expect("members") {
        config[name] = value.clone();
    }
    config
}

/// A trigger for one type of event.
pub fn on(ty: &str) -> Value {
    json!([{"filters": [{"exact": {"type": ty}}]}])
}

/// Calls a function; status, body, and the one invocation of the event that stood for the call.
pub async fn call(server: &Server, path: &str) -> (u16, Value, Value) {
    let response = server.request(Method::GET, path).send().await.expect(path);
    let status = response.status().as_u16();
    let id = response.headers().get("nexus-event-id").unwrap_or_else(|| panic!("{path}: {status} names no event"));
    let id = id.to_str().expect("text").to_owned();
    let text = response.text().await.expect("a body");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    let event = server.get(&format!("/v1/events/{id}")).await;
    assert_eq!(event["invocations"].as_array().map(Vec::len), Some(1), "{path}: {event}");
    (status, body, event["invocations"][0].clone())
}

/// Sends an event of this type.
pub async fn send(server: &Server, id: &str, ty: &str, data: Value) {
    server.send(json!({"specversion": "1.0", "id": id, "source": "/limits", "type": ty, "data": data})).await;
}

#[tokio::test]
async fn each_fault_has_its_status_and_its_reason() {
    let server = Server::start();
    server.deploy("probe", "probe", config(json!({"triggers": on("do")}))).await;
    let calls = [
        ("hello", 200, "ok", ""),
        ("trap", 500, "trap", "unreachable"),
        ("loop", 504, "timeout", "300 ms"),
        ("recurse", 500, "trap", "trap"),
        ("alloc?mb=64", 500, "out_of_memory", "memory"),
        ("big?mb=9", 500, "error", "8388608 bytes"),
        ("tasks?n=20000", 500, "trap", ""),
        ("sleep?ms=600000", 504, "timeout", "300 ms"),
        ("random?n=2000000", 500, "trap", ""),
        ("status/503", 503, "error", "503"),
        ("tasks?n=4000", 200, "ok", ""),
        ("alloc?mb=8", 200, "ok", ""),
    ];
    for (path, status, ended, why) in calls {
        let (have, body, invocation) = call(&server, &format!("/fn/probe/{path}")).await;
        assert_eq!((have, &invocation["status"]), (status, &json!(ended)), "{path}: {body} {invocation}");
        let error = invocation["error"].as_str().unwrap_or_default();
        assert!(error.contains(why), "{path}: {error}");
        assert_eq!(error.lines().count(), usize::from(ended != "ok"), "{path}: one line, or none: {error:?}");
        // What the function itself answered goes back as it is; for what it could not, there is a problem.
        if ended != "ok" && path != "status/503" {
            assert!(body["detail"].as_str().is_some_and(|d| d.contains(why) && d.contains("probe")), "{path}: {body}");
            assert_eq!(body["invocation_id"], invocation["invocation_id"], "{path}");
        }
    }
    let events = [
        (json!({}), "done", "ok"),
        (json!({"trap": true}), "dead", "trap"),
        (json!({"loop": true}), "dead", "timeout"),
        (json!({"alloc_mb": 64}), "dead", "out_of_memory"),
        (json!({"sleep_ms": 600_000}), "dead", "timeout"),
        (json!({"status": 500}), "dead", "error"),
        (json!({"emit": [{"type": "a b"}, {"id": ""}]}), "dead", "error"),
        (json!({"emit": vec![json!({}); 1001]}), "dead", "error"),
    ];
    for (at, (data, status, ended)) in events.into_iter().enumerate() {
        send(&server, &format!("event-{at}"), "do", data.clone()).await;
        let event = server.settled(&format!("event-{at}"), status).await;
        let invocation = &event["invocations"][0];
        assert_eq!(invocation["status"], ended, "{data}: {event}");
        assert_eq!(invocation["emitted"], json!([]), "{data}: {event}");
    }
}

#[tokio::test]
async fn what_a_guest_writes_is_bounded_and_what_is_left_out_is_counted() {
    let server = Server::start();
    let limits = json!({"timeout_ms": 30_000, "memory_mb": 128});
    server.deploy("probe", "probe", config(json!({"triggers": on("do"), "limits": limits}))).await;
    let check = |what: &str, invocation: &Value, written: u64, bytes_max: usize, lines_max: usize| {
        assert_eq!(invocation["status"], "ok", "{what}: {invocation}");
        let logs = invocation["logs"].as_array().cloned().unwrap_or_default();
        let dropped = invocation["logs_dropped"].as_u64().unwrap_or_default();
        assert_eq!(logs.len() as u64 + dropped, written, "{what}: every line is kept or counted");
        let bytes: usize = logs.iter().map(|l| l["line"].as_str().expect("text").len()).sum();
        assert!(
            bytes <= bytes_max && logs.len() <= lines_max,
            "{what}: {bytes} bytes in {} lines are kept",
            logs.len()
        );
        assert!(!logs.is_empty(), "{what}: what came first is kept");
        (logs.len(), dropped)
    };
    let (_, _, few) = call(&server, "/fn/probe/log?n=100").await;
    assert_eq!(check("few lines", &few, 101, 64 << 10, 101), (101, 0));
    let (_, _, many) = call(&server, "/fn/probe/log?n=20000").await;
    assert!(check("many lines", &many, 20_001, 64 << 10, 4096).1 > 0);
    let rows = [
        ("empty", json!(vec![""; 50_000]), 50_000),
        // Pieces of 8 KiB, and what is left.
        ("long", json!(["x".repeat(1 << 20)]), 128),
        ("newlines", json!(["\n".repeat(50_000)]), 50_001),
    ];
    for (id, lines, written) in rows {
        send(&server, id, "do", json!({"log": lines})).await;
        let event = server.settled(id, "done").await;
        let (_, dropped) = check(id, &event["invocations"][0], written, 64 << 10, 4096);
        assert!(dropped > 0, "{id}");
    }
}

#[tokio::test]
async fn outgoing_requests_go_only_where_they_may() {
    let gate = Gate::closed().await;
    gate.open();
    let server = Server::start();
    let (host, port) = (gate.address.ip().to_string(), gate.address.port());
    // Egress, the URL's authority, and whether it may.
    let rows = [
        (json!([]), format!("{host}:{port}"), false),
        (json!([host]), format!("{host}:{port}"), false),
        (json!([format!("{host}:{}", port ^ 1)]), format!("{host}:{port}"), false),
        (json!(["localhost:*", "*.0.0.1:*"]), format!("{host}:{port}"), true),
        (json!(["localhost:*"]), format!("{host}:{port}"), false),
        (json!([format!("{host}:{port}")]), format!("localhost:{port}"), false),
        (json!(["allowed.example:*"]), format!("allowed.example@{host}:{port}"), false),
        (json!(["allowed.example:*"]), format!("allowed.example%3A80@{host}:{port}"), false),
        (json!([format!("{host}:{port}")]), format!("{host}:{port}"), true),
        (json!([format!("{host}:*")]), format!("{host}:{port}"), true),
    ];
    let mut came = 0;
    for (at, (egress, authority, may)) in rows.into_iter().enumerate() {
        let name = format!("f{at}");
        server.deploy(&name, "probe", json!({"egress": egress})).await;
        let (status, body, invocation) =
            call(&server, &format!("/fn/{name}/fetch?url=http%3A%2F%2F{authority}%2Fpath%3Fsecret")).await;
        assert_eq!((status, &invocation["status"]), (200, &json!("ok")), "{egress} {authority}: {body}");
        let calls = invocation["host_calls"].as_array().cloned().unwrap_or_default();
        assert_eq!(calls.len(), 1, "{egress} {authority}: {invocation}");
        assert!(!calls[0]["url"].as_str().expect("url").contains("secret"), "{calls:?}");
        if may {
            assert_eq!((&body, &calls[0]["status"]), (&json!([200]), &json!(200)), "{egress} {authority}: {calls:?}");
            came += 1;
        } else {
            assert_eq!(body, json!(["HttpRequestDenied"]), "{egress} {authority}");
            assert!(calls[0]["error"].as_str().expect("why").contains("egress"), "{egress} {authority}: {calls:?}");
        }
        assert_eq!(gate.held().came, came, "{egress} {authority}");
    }
}

#[tokio::test]
async fn outgoing_requests_are_bounded_at_once_and_in_all() {
    let gate = Gate::closed().await;
    let server = Server::start();
    server.deploy("probe", "probe", json!({"egress": [gate.egress()]})).await;
    let fan = format!("/fn/probe/fan?url={}&n=80", gate.url());
    let ((status, body, invocation), held) = tokio::join!(call(&server, &fan), async {
        let held = gate.until(|h| h.now == 64).await;
        gate.open();
        held
    });
    assert_eq!((status, held.came), (200, 64), "{body}");
    let count =
        |body: &Value, wanted: Value| body.as_array().expect("results").iter().filter(|r| **r == wanted).count();
    let (answered, limited) = (count(&body, json!(200)), count(&body, json!("ConnectionLimitReached")));
    // On a slow machine some are answered before the last are asked: those may go out.
    assert!((64..80).contains(&answered) && answered + limited == 80, "{body}");
    let refused = |c: &&Value| c["error"].as_str().is_some_and(|e| e.contains("too many"));
    let calls = invocation["host_calls"].as_array().expect("calls");
    assert_eq!((calls.len(), calls.iter().filter(refused).count()), (80, limited), "each is a line in the trace");
    assert_eq!(gate.held().most, 64);

    let (_, body, invocation) = call(&server, &format!("/fn/probe/fetch?url={}&n=1003", gate.url())).await;
    // The guest stops asking at the first error.
    assert_eq!(
        body,
        json!(vec![json!(200); 1000].into_iter().chain(vec![json!("ConnectionLimitReached"); 3]).collect::<Vec<_>>())
    );
    assert_eq!(invocation["host_calls"].as_array().map(Vec::len), Some(1000));
    assert_eq!(invocation["host_calls_dropped"], 3);
}

#[tokio::test]
async fn the_record_of_a_request_is_bounded_and_the_request_is_whole() {
    let receiver = nexus_tests::receiver::Receiver::answering(http::StatusCode::OK).await;
    let server = Server::start();
    server.deploy("probe", "probe", json!({"egress": [receiver.address.to_string()]})).await;
    let long = "a".repeat(20_000);
    let path = format!("/fn/probe/fetch?url=http%3A%2F%2F{}%2F{long}", receiver.address);
    let (_, body, invocation) = call(&server, &path).await;
    assert_eq!(body, json!([200]));
    assert_eq!(receiver.received()[0].path, format!("/{long}"));
    let url = invocation["host_calls"][0]["url"].as_str().expect("a URL");
    assert!(
        url.len() < 2100 && url.starts_with(&receiver.url("/aaa")) && url.ends_with('…'),
        "{} bytes: {url}",
        url.len()
    );
}

#[tokio::test]
async fn no_more_run_at_once_than_the_limit_says() {
    let server = Server::start();
    for concurrency in [1, 3] {
        let gate = Gate::closed().await;
        let name = format!("limit-{concurrency}");
        let limits = json!({"concurrency": concurrency});
        let settings = json!({"triggers": on(&name), "egress": [gate.egress()], "limits": limits});
        server.deploy(&name, "probe", settings).await;
        let path = format!("/fn/{name}/fetch?url={}", gate.url());
        let calls: Vec<_> = (0..8).map(|_| tokio::spawn(server.request(Method::GET, &path).send())).collect();
        gate.until(|h| h.now == concurrency).await;
        // All are in the log, so all would run if they could.
        until("every call to be taken", || async {
            let events = server.get(&format!("/v1/events?source=/fn/{name}")).await;
            (events["items"].as_array()?.len() == 8).then_some(())
        })
        .await;
        let held = gate.held();
        assert_eq!((held.most, held.came), (concurrency, concurrency), "{name}");
        gate.open();
        for call in calls {
            let response = call.await.expect("a task").expect("an answer");
            assert_eq!(response.status(), 200, "{name}");
        }
        let held = gate.held();
        assert_eq!(held.came, 8, "{name}");
        assert!(held.most <= concurrency, "{name}: {held:?}");
    }
}
