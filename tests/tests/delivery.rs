//! Delivery: who gets an event, what comes of what it emits, and what happens after a failure.

use nexus_tests::receiver::{Receiver, Vacant};
use nexus_tests::{Server, spans, until};
use reqwest::StatusCode;
use serde_json::{Value, json};

fn event(id: &str, ty: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/s", "type": ty, "data": data})
}

fn on(filter: Value) -> Value {
    json!({"triggers": [{"filters": [filter]}]})
}

fn order() -> Value {
    let path = nexus_tests::server::repository().join("examples/order-check/order.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the sample")).expect("JSON")
}

/// webhook-forward to this address, quick to try again.
fn forward(address: std::net::SocketAddr, backoff_ms: u64) -> Value {
    json!({
        "triggers": [{"filters": [{"exact": {"type": "order.accepted"}}]}],
        "env": {"FORWARD_URL": format!("http://{address}/message")},
        "egress": ["127.0.0.1:*"],
        "retry": {"attempts_max": 100, "backoff_ms": backoff_ms, "backoff_max_ms": backoff_ms},
    })
}

fn of<'a>(event: &'a Value, key: &str) -> Vec<&'a Value> {
    event["invocations"].as_array().expect("invocations").iter().map(|i| &i[key]).collect()
}

#[tokio::test]
async fn filters_decide_who_gets_an_event() {
    let server = Server::start();
    let exact = json!({"exact": {"type": "order.created"}});
    let eu = json!({"suffix": {"source": "/eu"}});
    let triggers = [
        ("exact", json!([{"filters": [exact]}])),
        ("exact-two", json!([{"filters": [{"exact": {"type": "order.created", "subject": "o-1"}}]}])),
        ("prefix", json!([{"filters": [{"prefix": {"type": "order."}}]}])),
        ("suffix", json!([{"filters": [eu]}])),
        ("all", json!([{"filters": [{"all": [exact, eu]}]}])),
        ("any", json!([{"filters": [{"any": [exact, eu]}]}])),
        ("not", json!([{"filters": [{"not": exact}]}])),
        ("nested", json!([{"filters": [{"all": [{"not": {"any": [exact, eu]}}, {"prefix": {"type": "o"}}]}]}])),
        ("extension", json!([{"filters": [{"exact": {"tenant": "7"}}]}])),
        // Filters of one trigger must all match, of several triggers one; two that match deliver once.
        ("both", json!([{"filters": [exact, eu]}])),
        ("either", json!([{"filters": [exact]}, {"filters": [eu]}])),
        ("everything", json!([{"filters": []}])),
        ("nothing", json!([])),
    ];
    for (name, triggers) in &triggers {
        server.deploy(name, "noop", json!({"triggers": triggers})).await;
    }
    let check = async |id: &str, ty: &str, source: &str, more: Value, expected: &[&str]| {
        let mut event = json!({"specversion": "1.0", "id": id, "source": source, "type": ty});
        event.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        server.send(event).await;
        let event = server.settled(id, "done").await;
        let mut functions: Vec<_> = of(&event, "function").into_iter().filter_map(Value::as_str).collect();
        functions.sort_unstable();
        assert_eq!(functions, expected, "{id}");
        assert!(of(&event, "trigger").iter().all(|t| **t == "pubsub"), "{event}");
    };
    check(
        "1",
        "order.created",
        "/eu",
        json!({}),
        &["all", "any", "both", "either", "everything", "exact", "prefix", "suffix"],
    )
    .await;
    check(
        "2",
        "order.created",
        "/us",
        json!({"subject": "o-1"}),
        &["any", "either", "everything", "exact", "exact-two", "prefix"],
    )
    .await;
    check("3", "order.shipped", "/us", json!({}), &["everything", "nested", "not", "prefix"]).await;
    check("4", "x", "/eu", json!({}), &["any", "either", "everything", "not", "suffix"]).await;
    // An attribute that is a number is compared as text; one that is not there matches nothing.
    check("5", "x", "/x", json!({"tenant": 7}), &["everything", "extension", "not"]).await;
    check("6", "ORDER.CREATED", "/x", json!({}), &["everything", "not"]).await;
}

#[tokio::test]
async fn what_every_kind_emits_is_an_event_with_its_cause() {
    let server = Server::start();
    let receiver = Receiver::answering(StatusCode::OK).await;
    server.deploy("order-check", "order-check", on(json!({"exact": {"type": "order.created"}}))).await;
    server.deploy("webhook-forward", "webhook-forward", forward(receiver.address, 10)).await;
    for name in ["probe", "cli", "cli-p1"] {
        server.deploy(name, name, on(json!({"exact": {"type": name}}))).await;
    }
    let two = json!({"emit": [{"type": "x", "data": {"n": 1}}, {"type": "y", "subject": "s", "tenant": "t"}]});
    for (id, ty, data, function, emitted) in [
        ("1", "order.created", order(), "order-check", vec!["order.accepted"]),
        ("2", "probe", two.clone(), "probe", vec!["x", "y"]),
        ("3", "cli", two.clone(), "cli", vec!["x", "y"]),
        ("4", "cli-p1", two, "cli-p1", vec!["x", "y"]),
        ("5", "order.accepted", json!({}), "webhook-forward", vec!["notification.sent"]),
    ] {
        let receipt = server.send(event(id, ty, data)).await;
        let event = server.settled(id, "done").await;
        let invocation = &event["invocations"][0];
        assert_eq!(invocation["function"], function);
        let ids = invocation["emitted"].as_array().expect("ids").clone();
        let mut types = Vec::new();
        for id in &ids {
            let caused = server.get(&format!("/v1/events/{}", id.as_str().expect("id"))).await;
            assert_eq!(caused["cause"]["invocation_id"], invocation["invocation_id"]);
            assert_eq!((&caused["cause"]["seq"], &caused["cause"]["depth"]), (&event["seq"], &json!(1)));
            assert_eq!(caused["trace_id"], receipt["trace_id"]);
            types.push(caused["event"]["type"].as_str().expect("a type").to_owned());
        }
        assert_eq!(types, emitted, "{function}");
        let trace = server.get(&format!("/v1/traces/{}", receipt["trace_id"].as_str().expect("a trace"))).await;
        let spans = spans::of_json(&trace);
        for ty in types {
            assert_eq!(spans::named(&spans, &format!("accept {ty}")).parent, spans::named(&spans, function).id);
        }
    }
}

#[tokio::test]
async fn a_chain_of_functions_reaches_a_receiver_once() {
    let server = Server::start();
    let receiver = Receiver::answering(StatusCode::OK).await;
    server.deploy("order-check", "order-check", on(json!({"exact": {"type": "order.created"}}))).await;
    server.deploy("webhook-forward", "webhook-forward", forward(receiver.address, 10)).await;
    let receipt = server.send(event("1", "order.created", order())).await;
    let first = server.settled("1", "done").await;
    let second = first["invocations"][0]["emitted"][0].as_str().expect("an id");
    let second = server.settled(second, "done").await;
    let third = server.settled(second["invocations"][0]["emitted"][0].as_str().expect("an id"), "done").await;
    assert_eq!((&third["event"]["type"], &third["cause"]["depth"]), (&json!("notification.sent"), &json!(2)));

    let received = receiver.received();
    assert_eq!(received.len(), 1);
    assert_eq!((received[0].method.as_str(), received[0].path.as_str()), ("POST", "/message"));
    let message: Value = serde_json::from_slice(&received[0].body).expect("JSON");
    assert_eq!(message["text"], "Order o-1001 over 52.90 was accepted");
    // The receiver's parent is the span of the request itself.
    let trace = receipt["trace_id"].as_str().expect("a trace");
    let spans = spans::of_json(&server.get(&format!("/v1/traces/{trace}")).await);
    let client = spans::named(&spans, "POST");
    assert_eq!(received[0].headers["traceparent"], format!("00-{trace}-{}-01", client.id));
    assert_eq!((client.kind, &client.parent), ("SPAN_KIND_CLIENT", &spans::named(&spans, "webhook-forward").id));
}

#[tokio::test]
async fn a_failure_is_tried_again_until_it_is_given_up() {
    let server = Server::start();
    let mut config = on(json!({"exact": {"type": "t"}}));
    config["retry"] = json!({"attempts_max": 3, "backoff_ms": 1, "backoff_max_ms": 2});
    config["limits"] = json!({"timeout_ms": 400, "memory_mb": 16});
    server.deploy("probe", "probe", config.clone()).await;
    config["triggers"] = json!([{"filters": [{"exact": {"type": "cli"}}]}]);
    server.deploy("cli", "cli", config).await;
    let check = async |id: &str, ty: &str, data: Value, status: &str, attempts: usize, error: &str| {
        server.send(event(id, ty, data)).await;
        let event = server.settled(id, "dead").await;
        assert_eq!(of(&event, "attempt"), (1..=attempts).collect::<Vec<_>>(), "{id}");
        assert!(of(&event, "status").iter().all(|s| **s == status), "{event:#}");
        assert!(of(&event, "error").iter().all(|e| e.as_str().is_some_and(|e| e.contains(error))), "{event:#}");
        let waits: Vec<_> = of(&event, "retry_at").iter().map(|at| at.is_string()).collect();
        assert_eq!(waits, (1..=attempts).map(|n| n < attempts).collect::<Vec<_>>(), "{id}");
    };
    check("500", "t", json!({"status": 500}), "error", 3, "500").await;
    check("429", "t", json!({"status": 429}), "error", 3, "429").await;
    check("trap", "t", json!({"trap": true}), "trap", 3, "unreachable").await;
    check("loop", "t", json!({"loop": true}), "timeout", 3, "400 ms").await;
    check("alloc", "t", json!({"alloc_mb": 64}), "out_of_memory", 3, "memory").await;
    check("exit", "cli", json!({"exit_code": 1}), "error", 3, "").await;
    check("emit", "t", json!({"emit": [{"type": ""}]}), "error", 1, "emitted event 0").await;
    // What the function calls the sender's mistake stays one.
    check("400", "t", json!({"status": 400}), "error", 1, "400").await;
    check("422", "t", json!({"status": 422}), "error", 1, "422").await;
}

#[tokio::test]
async fn a_function_that_works_at_last_is_done() {
    let server = Server::start();
    let vacant = Vacant::new();
    server.deploy("webhook-forward", "webhook-forward", forward(vacant.address, 50)).await;
    server.send(event("1", "order.accepted", json!({}))).await;
    let failed = server.event_until("1", |e| of(e, "attempt").len() >= 2).await;
    assert!(of(&failed, "status").iter().all(|s| **s == "error"), "{failed:#}");
    let receiver = vacant.answering(StatusCode::ACCEPTED);
    let event = server.settled("1", "done").await;
    let attempts = of(&event, "attempt").len();
    assert_eq!(of(&event, "attempt"), (1..=attempts).collect::<Vec<_>>());
    assert_eq!(of(&event, "status").iter().filter(|s| ***s == "ok").count(), 1);
    assert_eq!(receiver.received().len(), 1);
}

/// Copies its standard input to standard error, which the log keeps, and fails.
const TELLS_AND_FAILS: &str = r#"
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 16))
    (i32.store (i32.const 4) (i32.const 60000))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.store (i32.const 4) (i32.load (i32.const 8)))
    (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $exit (i32.const 1))))
"#;

#[tokio::test]
async fn every_attempt_has_the_same_idempotency_key() {
    let server = Server::start();
    let wasm = wat::parse_str(TELLS_AND_FAILS).expect("WebAssembly text");
    for name in ["a", "b"] {
        let mut config = on(json!({"exact": {"type": "t"}}));
        config["retry"] = json!({"attempts_max": 3, "backoff_ms": 1});
        server.deploy_bytes(name, wasm.clone(), config).await;
    }
    let mut keys: Vec<(String, String)> = Vec::new();
    for id in ["1", "2"] {
        server.send(event(id, "t", json!(1))).await;
        let event = server.settled(id, "dead").await;
        let all = server.event_until(id, |e| of(e, "attempt").len() == 6).await;
        for invocation in all["invocations"].as_array().expect("invocations") {
            let seen: Value =
                serde_json::from_str(invocation["logs"][0]["line"].as_str().expect("a line")).expect("JSON");
            assert_eq!((&seen["id"], &seen["data"]), (&event["event"]["id"], &json!(1)));
            let key = seen["idempotencykey"].as_str().expect("a key").to_owned();
            keys.push((format!("{id} {}", invocation["function"]), key));
        }
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 4, "one key for each event and function: {keys:?}");
    let mut different: Vec<_> = keys.into_iter().map(|(_, key)| key).collect();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), 4);
}

#[tokio::test]
async fn a_function_that_answers_itself_is_stopped() {
    let server = Server::start();
    let receiver = Receiver::answering(StatusCode::OK).await;
    let mut config = forward(receiver.address, 1);
    let types = ["order.accepted", "notification.sent"].map(|t| json!({"exact": {"type": t}}));
    config["triggers"] = json!([{"filters": [{"any": types}]}]);
    config["retry"]["attempts_max"] = 1.into();
    server.deploy("webhook-forward", "webhook-forward", config).await;
    let receipt = server.send(event("1", "order.accepted", json!({}))).await;
    // Its ids say how often it went round.
    let last = format!("1{}", "-sent".repeat(32));
    until("the end of the loop", async || {
        let (status, event) = server.answer(server.request(reqwest::Method::GET, &format!("/v1/events/{last}"))).await;
        (status == 200 && event["status"] == "dead").then_some(event)
    })
    .await;
    let event = server.get(&format!("/v1/events/{last}")).await;
    let error = event["invocations"][0]["error"].as_str().expect("an error");
    assert!(error.contains("32 causes") && error.contains("its own events"), "{error}");
    let all =
        server.get(&format!("/v1/events?limit=100&trace_id={}", receipt["trace_id"].as_str().expect("a trace"))).await;
    assert_eq!(all["items"].as_array().map(Vec::len), Some(33));
    assert_eq!(receiver.received().len(), 33);
}

/// W3C Trace Context, 3.3: who takes part in a trace passes on what other vendors said about it.
#[tokio::test]
async fn other_vendors_part_of_a_trace_goes_on() {
    let server = Server::start();
    let receiver = Receiver::answering(StatusCode::OK).await;
    server.deploy("order-check", "order-check", on(json!({"exact": {"type": "order.created"}}))).await;
    server.deploy("webhook-forward", "webhook-forward", forward(receiver.address, 10)).await;
    let post =
        server.request(reqwest::Method::POST, "/v1/events").header("content-type", "application/cloudevents+json");
    let post = post.header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let post = post.header("tracestate", "vendor=opaque,other=1");
    server.answer(post.body(event("1", "order.created", order()).to_string())).await;
    let first = server.settled("1", "done").await;
    server.settled(first["invocations"][0]["emitted"][0].as_str().expect("an id"), "done").await;
    let sent = receiver.received()[0].headers.get("tracestate").cloned();
    assert_eq!(sent.expect("a tracestate"), "vendor=opaque,other=1");
}

#[tokio::test]
async fn events_of_one_key_come_in_order_and_a_stuck_one_holds_up_no_other() {
    let server = Server::start();
    let retry = json!({"attempts_max": 50, "backoff_ms": 200, "backoff_max_ms": 200});
    let trigger = json!({"filters": [{"exact": {"type": "keyed"}}], "order": "partitionkey"});
    server.deploy("worker", "probe", json!({"triggers": [trigger], "retry": retry})).await;
    let keyed = |id: &str, key: &str, data: Value| {
        let mut event = event(id, "keyed", data);
        event["partitionkey"] = json!(key);
        event
    };
    // The first of `a` takes its time, the first of `stuck` fails until it is given up by its owner.
    server.send(keyed("a1", "a", json!({"sleep_ms": 300}))).await;
    server.send(keyed("s1", "stuck", json!({"status": 500}))).await;
    server.send(keyed("s2", "stuck", json!({}))).await;
    for n in 2..=6 {
        server.send(keyed(&format!("a{n}"), "a", json!({"sleep_ms": 5}))).await;
        server.send(keyed(&format!("b{n}"), "b", json!({}))).await;
    }
    let time = |event: &Value, key: &str| -> jiff::Timestamp {
        event["invocations"][0][key].as_str().expect(key).parse().expect("a time")
    };
    let mut before: Option<Value> = None;
    for n in 1..=6 {
        let now = server.settled(&format!("a{n}"), "done").await;
        if let Some(before) = before {
            let took = jiff::SignedDuration::from_nanos(before["invocations"][0]["duration_ns"].as_i64().expect("ns"));
            assert!(time(&now, "started_at") >= time(&before, "started_at") + took, "{before:#}\n{now:#}");
        }
        before = Some(now);
    }
    for n in 2..=6 {
        server.settled(&format!("b{n}"), "done").await;
    }
    let tried = server.event_until("s1", |e| e["invocations"].as_array().is_some_and(|i| i.len() >= 2)).await;
    assert!(matches!(tried["status"].as_str(), Some("failed" | "running")), "{tried:#}");
    assert_eq!(server.get("/v1/events/s2").await["invocations"], json!([]), "it waits for the one before it");
    // One without a key is in no order.
    server.send(event("free", "keyed", json!({}))).await;
    server.settled("free", "done").await;
    // What is stuck comes to its end when the function can do it.
    server.deploy("worker", "noop", json!({"triggers": [trigger], "retry": retry})).await;
    for id in ["s1", "s2"] {
        server.settled(id, "done").await;
    }
    let (first, second) = (server.get("/v1/events/s1").await, server.get("/v1/events/s2").await);
    let last = first["invocations"].as_array().and_then(|i| i.last()).expect("an invocation").clone();
    let last: jiff::Timestamp = last["started_at"].as_str().expect("a time").parse().expect("a time");
    assert!(time(&second, "started_at") > last, "{first:#}\n{second:#}");
}

#[tokio::test]
async fn order_holds_over_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(folder.path()).start();
    let retry = json!({"attempts_max": 50, "backoff_ms": 1000, "backoff_max_ms": 1000});
    let trigger = json!({"filters": [{"exact": {"type": "keyed"}}], "order": "partitionkey"});
    server.deploy("worker", "probe", json!({"triggers": [trigger], "retry": retry})).await;
    for (id, data) in [("s1", json!({"status": 500})), ("s2", json!({})), ("s3", json!({}))] {
        let mut event = event(id, "keyed", data);
        event["partitionkey"] = json!("k");
        server.send(event).await;
    }
    server.event_until("s1", |e| e["invocations"].as_array().is_some_and(|i| !i.is_empty())).await;
    server.kill();
    let server = Server::builder().data_dir(folder.path()).start();
    server.event_until("s1", |e| e["invocations"].as_array().is_some_and(|i| i.len() >= 2)).await;
    for id in ["s2", "s3"] {
        assert_eq!(server.get(&format!("/v1/events/{id}")).await["invocations"], json!([]), "{id}");
    }
    server.deploy("worker", "noop", json!({"triggers": [trigger], "retry": retry})).await;
    for id in ["s1", "s2", "s3"] {
        server.settled(id, "done").await;
    }
}
