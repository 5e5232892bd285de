//! `/fn/{name}/…`: the request goes to the function as it is, the response comes back, and both are an event.

use nexus_tests::Server;
use reqwest::{Method, Response};
use serde_json::{Value, json};

async fn probe() -> Server {
    let server = Server::start();
    server.deploy("probe", "probe", json!({})).await;
    server
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).unwrap_or_else(|| panic!("no {name}: {response:?}")).to_str().expect("text")
}

#[tokio::test]
async fn the_function_sees_the_request_as_it_is() {
    let server = probe().await;
    let check = async |method: Method, target: &str, path: &str, query: &str| {
        let request = server.request(method.clone(), &format!("/fn/probe{target}"));
        let (status, seen) = server.answer(request.header("x-twice", "a").header("x-twice", "b").body("four")).await;
        assert_eq!(status, 200, "{method} {target}: {seen}");
        let expected = json!([method.as_str(), path, query, "a, b", 4]);
        let have = json!([seen["method"], seen["path"], seen["query"], seen["headers"]["x-twice"], seen["length"]]);
        assert_eq!(have, expected, "{method} {target}");
    };
    for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS] {
        check(method, "/request?a=1&b=%20c&d", "/request", "a=1&b=%20c&d").await;
    }
    check(Method::from_bytes(b"PURGE").expect("a method"), "/request", "/request", "").await;
}

#[tokio::test]
async fn a_path_is_the_functions_own() {
    let server = probe().await;
    // The probe knows none of these, and says which.
    for (target, named) in [("", "/"), ("/", "/"), ("?q=1", "/"), ("/a%2Fb//c/", "/a%2Fb//c/"), ("/%ff", "/%ff")] {
        let (status, answer) = server.answer(server.request(Method::GET, &format!("/fn/probe{target}"))).await;
        assert_eq!((status, answer["error"].as_str()), (404, Some(&*format!("probe knows no {named}"))), "{target}");
    }
}

#[tokio::test]
async fn the_response_comes_back_as_it_is() {
    let server = probe().await;
    let check = async |method: Method, path: &str, body: &'static [u8], status: u16, kind: &str, expected: &[u8]| {
        // Only a status from 500 on says that the function failed.
        let outcome = if status < 500 { "ok" } else { "error" };
        let request = server.request(method, &format!("/fn/probe{path}")).header("content-type", "x/y; z=1");
        let response = request.body(body).send().await.expect("an answer");
        assert_eq!((response.status().as_u16(), header(&response, "content-type")), (status, kind), "{path}");
        // The invocation's span, in the trace of the event; the event can be asked for at once.
        let (trace, id) =
            (header(&response, "traceresponse").to_owned(), header(&response, "nexus-event-id").to_owned());
        assert_eq!(response.bytes().await.expect("a body"), expected, "{path}");
        let event = server.get(&format!("/v1/events/{id}")).await;
        let parts: Vec<_> = trace.split('-').collect();
        assert_eq!((parts[0], parts[1], parts[3]), ("00", event["trace_id"].as_str().expect("a trace"), "01"));
        let trace = server.get(&format!("/v1/traces/{}", parts[1])).await;
        assert_eq!(nexus_tests::spans::named(&nexus_tests::spans::of_json(&trace), "probe").id, parts[2]);
        let invocation = &event["invocations"][0];
        assert_eq!((&invocation["trigger"], &invocation["status"]), (&json!("http"), &json!(outcome)), "{path}");
        assert_eq!(invocation["output"]["http_status"], status);
    };
    check(Method::POST, "/echo", &[0, 0xff, b'\n'], 200, "x/y; z=1", &[0, 0xff, b'\n']).await;
    check(Method::GET, "/hello", b"", 200, "text/plain", b"hello").await;
    check(Method::GET, "/status/201", b"", 201, "text/plain", b"status 201").await;
    check(Method::GET, "/status/404", b"", 404, "text/plain", b"status 404").await;
    check(Method::GET, "/status/503", b"", 503, "text/plain", b"status 503").await;
    check(Method::HEAD, "/hello", b"", 200, "text/plain", b"").await;
}

#[tokio::test]
async fn a_call_is_an_event_in_its_callers_trace() {
    let server = probe().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = server.request(Method::POST, "/fn/probe/request?x=1").header("content-type", "text/plain");
    let request = request.header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01")).body("grüße");
    let response = request.send().await.expect("an answer");
    let id = header(&response, "nexus-event-id").to_owned();
    let seen: Value = serde_json::from_str(&response.text().await.expect("text")).expect("JSON");
    let event = server.get(&format!("/v1/events/{id}")).await;
    assert_eq!((&event["trace_id"], &event["target"]), (&json!(trace), &json!("probe")));
    assert_eq!(
        (&event["event"]["type"], &event["event"]["source"]),
        (&json!("nexus.http.request"), &json!("/fn/probe"))
    );
    let data = &event["event"]["data"];
    assert_eq!(
        json!([data["method"], data["path"], data["query"], data["body"], data["headers"]["content-type"]]),
        json!(["POST", "/request", "x=1", "grüße", "text/plain"])
    );
    // What the function passes on is its own span, not its caller's.
    let spans = nexus_tests::spans::of_json(&server.get(&format!("/v1/traces/{trace}")).await);
    let invoke = &nexus_tests::spans::named(&spans, "probe").id;
    assert_eq!(seen["headers"]["traceparent"], format!("00-{trace}-{invoke}-01"));
    assert_eq!(nexus_tests::spans::named(&spans, "accept nexus.http.request").parent, "00f067aa0ba902b7");

    let bytes: &[u8] = &[0xff, 0x00, 0x01];
    let response = server.request(Method::PUT, "/fn/probe/echo").body(bytes).send().await.expect("an answer");
    let event = server.get(&format!("/v1/events/{}", header(&response, "nexus-event-id"))).await;
    assert_eq!(event["event"]["data"]["body_base64"], "/wAB");
}

#[tokio::test]
async fn secrets_reach_the_function_and_not_the_log() {
    let server = probe().await;
    let request = server.request(Method::GET, "/fn/probe/status/200").header("authorization", "Bearer hush-1");
    let response = request.header("cookie", "session=hush-2").send().await.expect("an answer");
    let id = header(&response, "nexus-event-id").to_owned();
    let event = server.request(Method::GET, &format!("/v1/events/{id}")).send().await.expect("an answer");
    let text = event.text().await.expect("text");
    assert!(!text.contains("hush"), "{text}");
    let event: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(event["event"]["data"]["redacted"], json!(["authorization", "cookie"]));
    assert!(!server.log().contains("hush"));

    let request = server.request(Method::GET, "/fn/probe/request").header("authorization", "Bearer hush-1");
    let (_, seen) = server.answer(request.header("cookie", "session=hush-2")).await;
    assert_eq!(seen["headers"]["authorization"], "Bearer hush-1");
    assert_eq!(seen["headers"]["cookie"], "session=hush-2");
}

#[tokio::test]
async fn the_other_kinds_are_called_too() {
    let server = Server::start();
    for name in ["noop", "order-check", "cli", "cli-p1", "hello-http"] {
        server.deploy(name, name, json!({})).await;
    }
    let call = async |name: &str, body: String| {
        let request = server.request(Method::POST, &format!("/fn/{name}")).body(body);
        let response = request.send().await.expect("an answer");
        let kind = response.headers().get("content-type").map(|v| v.to_str().expect("text").to_owned());
        (response.status().as_u16(), kind.unwrap_or_default(), response.text().await.expect("text"))
    };
    assert_eq!(call("noop", String::new()).await, (204, String::new(), String::new()));
    assert_eq!(call("hello-http", String::new()).await.2, "hello");
    for name in ["cli", "cli-p1"] {
        let (status, kind, text) = call(name, "x".into()).await;
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((status, kind.as_str(), &answer["type"]), (200, "application/json", &json!("nexus.http.request")));
    }
    let order = std::fs::read_to_string(nexus_tests::server::repository().join("examples/order-check/order.json"));
    let (status, _, text) = call("order-check", order.expect("the sample")).await;
    assert_eq!(status, 200, "{text}");
    assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON")["accepted"], true);
    // A function may name the status of its answer.
    let (status, kind, text) = call("order-check", "{}".into()).await;
    assert_eq!((status, kind.as_str()), (400, "application/json"), "{text}");
}

#[tokio::test]
async fn what_goes_wrong_is_a_problem_with_the_event() {
    let server = Server::start();
    let limits = json!({"limits": {"timeout_ms": 500, "memory_mb": 16}});
    server.deploy("probe", "probe", limits).await;
    for (path, status, kind, outcome) in [
        ("/trap", 500, "trap", "trap"),
        ("/recurse", 500, "trap", "trap"),
        ("/loop", 504, "timeout", "timeout"),
        ("/sleep?ms=60000", 504, "timeout", "timeout"),
        ("/alloc?mb=64", 500, "out-of-memory", "out_of_memory"),
    ] {
        let response = server.request(Method::GET, &format!("/fn/probe{path}")).send().await.expect("an answer");
        assert_eq!(
            (response.status().as_u16(), header(&response, "content-type")),
            (status, "application/problem+json")
        );
        let id = header(&response, "nexus-event-id").to_owned();
        let problem: Value = serde_json::from_str(&response.text().await.expect("text")).expect("JSON");
        assert_eq!(problem["type"], format!("urn:nexus:problem:{kind}"), "{path}: {problem}");
        let event = server.get(&format!("/v1/events/{id}")).await;
        let invocation = &event["invocations"][0];
        assert_eq!((&invocation["status"], &event["status"]), (&json!(outcome), &json!("failed")), "{path}");
        assert_eq!(invocation["invocation_id"], problem["invocation_id"]);
        // It was answered: it is not tried again.
        assert_eq!(invocation["retry_at"], Value::Null);
    }
    for (name, status) in [("none", 404), ("No", 400)] {
        let response = server.request(Method::GET, &format!("/fn/{name}/x")).send().await.expect("an answer");
        assert_eq!(
            (response.status().as_u16(), header(&response, "content-type")),
            (status, "application/problem+json")
        );
        assert!(!response.headers().contains_key("nexus-event-id"));
    }
}
