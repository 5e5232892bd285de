//! Replay, live (exact replay: exact.rs): the same event through the same line again, and what is said of the difference.

use nexus_tests::receiver::Receiver;
use nexus_tests::{Cli, Server, until};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

fn event(id: &str, ty: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/s", "type": ty, "data": data})
}

fn on(ty: &str) -> Value {
    json!({"triggers": [{"filters": [{"exact": {"type": ty}}]}]})
}

fn order() -> Value {
    let path = nexus_tests::server::repository().join("examples/order-check/order.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("the sample")).expect("JSON")
}

fn asked(server: &Server, request: &Value) -> RequestBuilder {
    server.request(Method::POST, "/v1/replays").json(request)
}

/// order-check and webhook-forward, and one order that went through both.
async fn shop() -> (Server, Receiver, Value) {
    let server = Server::start();
    let receiver = Receiver::answering(StatusCode::OK).await;
    server.deploy("order-check", "order-check", on("order.created")).await;
    let mut forward = on("order.accepted");
    forward["env"] = json!({"FORWARD_URL": receiver.url("/")});
    forward["egress"] = json!(["127.0.0.1:*"]);
    server.deploy("webhook-forward", "webhook-forward", forward).await;
    server.send(event("1", "order.created", order())).await;
    let first = server.settled("1", "done").await;
    server.settled(first["invocations"][0]["emitted"][0].as_str().expect("an id"), "done").await;
    (server, receiver, first)
}

#[tokio::test]
async fn an_event_is_run_again_and_found_identical() {
    let (server, receiver, first) = shop().await;
    let replay = server.replay(json!({"event_id": "1", "mode": "live"})).await;
    for (key, expected) in [
        ("status", json!("done")),
        ("mode", json!("live")),
        ("total", json!(1)),
        ("done", json!(1)),
        ("identical", json!(1)),
        ("diverged", json!(0)),
        ("failed", json!(0)),
    ] {
        assert_eq!(replay[key], expected, "{key}");
    }
    let result = &replay["results"][0];
    let of = &first["invocations"][0]["invocation_id"];
    assert_eq!((&result["event_id"], &result["verdict"], &result["replay_of"]), (&json!("1"), &json!("identical"), of));
    assert_eq!((&result["divergence"], &result["diff"]), (&Value::Null, &Value::Null));

    let event = server.get("/v1/events/1").await;
    let again = &event["invocations"][1];
    assert_eq!((&again["replay_of"], &again["invocation_id"]), (of, &result["invocation_id"]));
    assert_eq!((&again["trigger"], &again["output"]), (&json!("other"), &first["invocations"][0]["output"]));
    // What it emits is new, is delivered, and is in the same trace.
    let emitted = again["emitted"][0].as_str().expect("an id");
    assert_ne!(again["emitted"], first["invocations"][0]["emitted"]);
    let emitted = server.settled(emitted, "done").await;
    assert_eq!((&emitted["event"]["type"], &emitted["trace_id"]), (&json!("order.accepted"), &first["trace_id"]));
    assert_eq!(receiver.received().len(), 2);
    assert_eq!(receiver.received()[0].body, receiver.received()[1].body);
}

#[tokio::test]
async fn a_trace_is_replayed_from_its_beginning() {
    let (server, receiver, first) = shop().await;
    let replay = server.replay(json!({"trace_id": first["trace_id"], "mode": "live"})).await;
    // What the first event caused follows from it: it is not run twice.
    assert_eq!((&replay["total"], &replay["results"][0]["event_id"]), (&json!(1), &json!("1")));
    let emitted = server.get("/v1/events/1").await["invocations"][1]["emitted"][0].clone();
    server.settled(emitted.as_str().expect("an id"), "done").await;
    assert_eq!(receiver.received().len(), 2);
}

#[tokio::test]
async fn another_payload_diverges_and_the_first_difference_is_shown() {
    let (server, _receiver, _) = shop().await;
    let mut data = order();
    data["items"][0]["quantity"] = 0.into();
    data["total_cents"] = 2390.into();
    let replay = server.replay(json!({"event_id": "1", "mode": "live", "data": data})).await;
    let result = &replay["results"][0];
    assert_eq!((&replay["diverged"], &result["divergence"]), (&json!(1), &json!("output")));
    let accepted = |side: &str| &result["diff"][side]["data"]["accepted"];
    assert_eq!((accepted("before"), accepted("after")), (&json!(true), &json!(false)));
    let event = server.get("/v1/events/1").await;
    assert_eq!((&event["event"]["data"], &event["status"]), (&order(), &json!("done")));
    let emitted = event["invocations"][1]["emitted"][0].as_str().expect("an id");
    assert_eq!(server.get(&format!("/v1/events/{emitted}")).await["event"]["type"], "order.rejected");
}

#[tokio::test]
async fn a_version_can_be_named() {
    let server = Server::start();
    server.deploy("f", "order-check", on("order.created")).await;
    server.send(event("1", "order.created", order())).await;
    server.settled("1", "done").await;
    assert_eq!(server.deploy("f", "noop", on("order.created")).await, 2);
    let check = async |function: Value, verdict: &str, divergence: Value, version: u64| {
        let mut request = json!({"event_id": "1", "mode": "live"});
        if !function.is_null() {
            request["function"] = function.clone();
        }
        let result = server.replay(request).await["results"][0].clone();
        assert_eq!((&result["verdict"], &result["divergence"]), (&json!(verdict), &divergence), "{function}");
        let id = result["invocation_id"].as_str().expect("an id");
        let invocation = server.get(&format!("/v1/invocations/{id}")).await["invocation"].clone();
        assert_eq!(invocation["version"], version, "{function}");
    };
    check(json!("f@1"), "identical", Value::Null, 1).await;
    check(json!("f@2"), "diverged", json!("output"), 2).await;
    check(json!("f"), "diverged", json!("output"), 2).await;
    check(Value::Null, "diverged", json!("output"), 2).await;
    // A function that the event never went to has nothing to differ from.
    server.deploy("other", "noop", json!({})).await;
    check(json!("other"), "identical", Value::Null, 1).await;
}

#[tokio::test]
async fn a_call_is_replayed_as_the_request_that_it_was() {
    let server = Server::start();
    server.deploy("probe", "probe", json!({})).await;
    for (path, body, verdict) in
        [("/echo", &[0xff, 0x00][..], "identical"), ("/status/404", b"", "identical"), ("/random", b"", "diverged")]
    {
        let request = server.request(Method::POST, &format!("/fn/probe{path}")).body(body);
        let response = request.send().await.expect("an answer");
        let id = response.headers()["nexus-event-id"].to_str().expect("text");
        let replay = server.replay(json!({"event_id": id, "mode": "live"})).await;
        assert_eq!(replay["results"][0]["verdict"], verdict, "{path}: {replay:#}");
    }
}

#[tokio::test]
async fn a_replay_that_fails_leaves_the_event_as_it_was() {
    let server = Server::start();
    server.deploy("probe", "probe", on("t")).await;
    server.send(event("1", "t", json!({"emit": []}))).await;
    server.settled("1", "done").await;
    let replay = server.replay(json!({"event_id": "1", "mode": "live", "data": {"trap": true}})).await;
    let result = &replay["results"][0];
    assert_eq!(
        (&replay["failed"], &result["verdict"], &result["divergence"]),
        (&json!(1), &json!("failed"), &json!("status"))
    );
    assert_eq!(result["diff"], json!({"before": "ok", "after": "trap"}));
    let event = server.get("/v1/events/1").await;
    assert_eq!((&event["status"], event["invocations"].as_array().map(Vec::len)), (&json!("done"), Some(2)));
    assert_eq!(event["invocations"][1]["retry_at"], Value::Null);
}

#[tokio::test]
async fn a_slow_replay_can_be_ended() {
    let server = Server::start();
    server.deploy("noop", "noop", on("t")).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    for id in ["1", "2", "3"] {
        let mut event = event(id, "t", json!({}));
        event["traceparent"] = format!("00-{trace}-00f067aa0ba902b7-01").into();
        server.send(event).await;
        server.settled(id, "done").await;
    }
    // One in a thousand seconds: it waits after the first.
    let mut request = json!({"trace_id": trace, "mode": "live", "rate": 0.001});
    let (status, problem) = server.answer(asked(&server, &request)).await;
    assert_eq!((status, &problem["events"]), (409, &json!(3)), "three at once are meant, or not: {problem}");
    request["confirm"] = true.into();
    let (_, answer) = server.answer(asked(&server, &request)).await;
    let path = format!("/v1/replays/{}", answer["replay_id"].as_str().expect("an id"));
    let running =
        until("the first event's replay", async || Some(server.get(&path).await).filter(|r| r["done"] == 1)).await;
    assert_eq!((&running["status"], &running["total"]), (&json!("running"), &json!(3)));
    assert_eq!(server.answer(server.request(Method::DELETE, &path)).await.0, 200);
    let ended = until("the end", async || Some(server.get(&path).await).filter(|r| r["status"] != "running")).await;
    assert_eq!((&ended["status"], &ended["done"]), (&json!("aborted"), &json!(1)));
    let list = server.get("/v1/replays").await;
    assert_eq!(
        (&list["items"][0]["replay_id"], &list["items"][0]["status"]),
        (&answer["replay_id"], &json!("aborted"))
    );
}

#[tokio::test]
async fn what_cannot_be_replayed_is_refused() {
    let (server, _receiver, first) = shop().await;
    let mut other = event("1", "order.created", order());
    other["source"] = "/other".into();
    server.send(other).await;
    server.send(event("2", "order.created", json!(1))).await;
    let check = async |request: Value, status: u16, named: &str| {
        let (have, problem) = server.answer(asked(&server, &request)).await;
        assert_eq!(have, status, "{request}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|d| d.contains(named)), "{request}: {problem}");
    };
    check(json!({"event_id": "none", "mode": "live"}), 404, "none").await;
    check(json!({"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "mode": "live"}), 404, "trace").await;
    check(json!({"event_id": "2", "mode": "live", "function": "none"}), 404, "function none").await;
    check(json!({"event_id": "2", "mode": "live", "function": "order-check@9"}), 404, "order-check@9").await;
    check(json!({"event_id": "1", "mode": "live"}), 409, "2 sources").await;
    check(json!({"event_id": "2", "same_key": true}), 400, "same_key").await;
    check(json!({"event_id": "2", "mode": "live", "allow_live": true}), 400, "allow_live").await;
    check(json!({"filter": {"type": "t"}, "data": 1}), 400, "data").await;
    check(json!({"filter": {"type": "none"}}), 404, "no event").await;
    check(json!({"filter": {"colour": "red"}}), 400, "colour").await;
    check(json!({"event_id": "2", "concurrency": 0}), 400, "concurrency").await;
    check(json!({"mode": "live"}), 400, "exactly one").await;
    check(json!({"event_id": "2", "trace_id": first["trace_id"], "mode": "live"}), 400, "exactly one").await;
    check(json!({"event_id": "2", "mode": "quick"}), 400, "quick").await;
    check(json!({"event_id": "2", "mode": "live", "rate": 0}), 400, "rate").await;
    check(json!({"event_id": "2", "mode": "live", "colour": 1}), 400, "colour").await;
    check(json!(["2"]), 400, "array").await;
    assert_eq!(server.replay(json!({"event_id": "1", "source": "/s", "mode": "live"})).await["identical"], 1);

    // What a form or a page of another site can send does nothing.
    let body = json!({"event_id": "2", "mode": "live"});
    let form = server.request(Method::POST, "/v1/replays").header("content-type", "text/plain").body(body.to_string());
    assert_eq!(server.answer(form).await.0, 415);
    assert_eq!(server.answer(asked(&server, &body).header("origin", "https://evil.example")).await.0, 403);
    assert_eq!(server.get("/v1/replays").await["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_link_to_a_replay_only_shows_a_page() {
    let (server, _receiver, first) = shop().await;
    let invocations = async || {
        let items = server.get("/v1/events").await["items"].clone();
        items.as_array().expect("items").iter().map(|e| e["invocations"].clone()).collect::<Vec<_>>()
    };
    let before = invocations().await;
    for path in ["/replay/1".to_owned(), format!("/replay/{}", first["trace_id"].as_str().expect("a trace"))] {
        for method in [Method::GET, Method::HEAD] {
            let response = server.request(method, &path).send().await.expect("an answer");
            assert_eq!(
                (response.status().as_u16(), response.headers()["content-type"].as_bytes()),
                (200, &b"text/html; charset=utf-8"[..])
            );
            // No page of another can lay itself over the button.
            let policy = response.headers()["content-security-policy"].to_str().expect("text").to_owned();
            assert!(policy.contains("frame-ancestors 'none'") && policy.contains("default-src 'none'"), "{policy}");
        }
    }
    assert_eq!(server.get("/v1/replays").await["items"], json!([]));
    assert_eq!(invocations().await, before);
}

#[tokio::test]
async fn the_command_line_replays_by_any_id() {
    let (server, _receiver, first) = shop().await;
    let cli = Cli::of(&server);
    let invocation = first["invocations"][0]["invocation_id"].as_str().expect("an id");
    for id in ["1", first["trace_id"].as_str().expect("a trace"), invocation] {
        let replay = cli.json(["replay", id, "--mode", "live"]);
        assert_eq!((&replay["identical"], &replay["results"][0]["replay_of"]), (&json!(1), &json!(invocation)), "{id}");
    }
    let replay = cli.json(["replay", "1", "--source", "/s", "--mode", "live", "--function", "order-check@1"]);
    assert_eq!(replay["identical"], 1);

    let check = |args: &[&str], code: i32, said: &str, error: &str| {
        let output = cli.run([&["replay"], args].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{args:?}: {out}{err}");
        assert!(out.contains(said), "{args:?}: {out}");
        assert!(err.contains(error) && err.lines().count() <= 1, "{args:?}: {err}");
    };
    let mut data = order();
    data["items"] = json!([]);
    check(&["1", "--mode", "live", "--data", &data.to_string()], 0, "differs in output", "");
    // No order at all: it fails where it went well before.
    check(&["1", "--mode", "live", "--data", "1"], 1, "1 failed", "");
    check(&["1"], 0, "1 identical", "");
    check(&["1", "--data", &data.to_string(), "--fail-on", "diverged"], 1, "1 diverged", "");
    check(&[], 2, "", "");
    check(&["none", "--mode", "live"], 3, "", "there is no event none");
    check(&["1", "--mode", "live", "--function", "order-check@7"], 3, "", "order-check@7");
    check(&["1", "--mode", "live", "--data", "{"], 2, "", "--data is not JSON");
}
