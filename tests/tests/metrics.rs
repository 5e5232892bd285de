//! The metrics page and the log lines: the format, and that they say what happened.

use std::collections::BTreeMap;

use nexus_tests::{Server, until};
use reqwest::Method;
use serde_json::{Value, json};

fn event(id: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t", "data": data})
}

async fn page(server: &Server) -> String {
    let response = server.request(Method::GET, "/metrics").send().await.expect("an answer");
    let kind = response.headers()["content-type"].to_str().expect("text").to_owned();
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.text().await.expect("text")
}

/// Samples by name and labels, without their exemplars. The labels stay in the order of the page.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let sample = |line: &str| {
        let line = line.split(" # ").next().unwrap_or_default();
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    page.lines().filter(|l| !l.starts_with('#')).filter_map(sample).collect()
}

#[tokio::test]
async fn the_page_is_openmetrics() {
    let server = Server::start();
    server.deploy("noop", "noop", json!({"triggers": [{"filters": []}]})).await;
    let receipt = server.send(event("1", json!({}))).await;
    server.settled("1", "done").await;
    let page = page(&server).await;
    assert!(page.ends_with("\n# EOF\n") && page.matches("# EOF").count() == 1, "{page}");
    let mut types = BTreeMap::new();
    for line in page.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "two metrics are named {name}");
        } else if !line.starts_with('#') {
            // Every sample belongs to a metric that was declared before it, with the suffix of its type.
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let suffixes = ["_total", "_bucket", "_sum", "_count", ""];
            let family = suffixes.iter().find_map(|s| types.get_key_value(name.strip_suffix(s)?));
            let (family, kind) = family.unwrap_or_else(|| panic!("{name} is not declared"));
            assert!(kind != "counter" || name == format!("{family}_total"), "{line}");
        }
    }
    let trace = receipt["trace_id"].as_str().expect("a trace");
    for name in [
        "faas_invocations_total{",
        "faas_invoke_duration_seconds_bucket{",
        "nexus_event_append_duration_seconds_bucket{",
    ] {
        let exemplar = format!("# {{trace_id=\"{trace}\"}}");
        assert!(page.lines().any(|l| l.starts_with(name) && l.contains(&exemplar)), "{name}: {page}");
    }
}

#[tokio::test]
async fn counters_grow_by_what_happened() {
    let server = Server::start();
    let config = json!({
        "triggers": [{"filters": []}],
        "retry": {"attempts_max": 3, "backoff_ms": 1},
        "limits": {"timeout_ms": 400},
    });
    server.deploy("probe", "probe", config).await;
    for n in 0..5 {
        server.send(event(&format!("ok-{n}"), json!({"emit": []}))).await;
        server.settled(&format!("ok-{n}"), "done").await;
    }
    server.send(event("ok-0", json!({}))).await;
    for (id, data) in
        [("error", json!({"status": 500})), ("loop", json!({"loop": true})), ("no", json!({"status": 400}))]
    {
        server.send(event(id, data)).await;
        server.settled(id, "dead").await;
    }
    server.request(Method::GET, "/fn/probe/hello").send().await.expect("an answer");
    for (id, verdict) in [("ok-0", "identical"), ("error", "identical")] {
        let request = server.request(Method::POST, "/v1/replays").json(&json!({"event_id": id, "mode": "live"}));
        let (_, answer) = server.answer(request).await;
        let path = format!("/v1/replays/{}", answer["replay_id"].as_str().expect("an id"));
        let done = until("the replay", async || Some(server.get(&path).await).filter(|r| r["status"] == "done")).await;
        assert_eq!(done["results"][0]["verdict"], verdict);
    }
    // 5 fine, 3 and 3 that fail or never end, 1 that is not tried again, 1 call, 2 replays.
    let page = page(&server).await;
    let samples = samples(&page);
    for (name, expected) in [
        (r#"faas_invocations_total{function="probe",trigger="pubsub",status="ok"}"#, 5.0),
        (r#"faas_invocations_total{function="probe",trigger="pubsub",status="error"}"#, 4.0),
        (r#"faas_invocations_total{function="probe",trigger="pubsub",status="timeout"}"#, 3.0),
        (r#"faas_invocations_total{function="probe",trigger="http",status="ok"}"#, 1.0),
        (r#"faas_invocations_total{function="probe",trigger="other",status="ok"}"#, 1.0),
        (r#"faas_invocations_total{function="probe",trigger="other",status="error"}"#, 1.0),
        (r#"faas_errors_total{function="probe",status="error"}"#, 5.0),
        (r#"faas_errors_total{function="probe",status="timeout"}"#, 3.0),
        (r#"faas_timeouts_total{function="probe"}"#, 3.0),
        (r#"faas_coldstarts_total{function="probe"}"#, 1.0),
        (r#"faas_invoke_duration_seconds_count{function="probe"}"#, 15.0),
        (r#"faas_init_duration_seconds_count{function="probe"}"#, 15.0),
        // 8 events and a call; the duplicate is no new one.
        ("nexus_events_accepted_total", 9.0),
        ("nexus_events_duplicate_total", 1.0),
        ("nexus_event_append_duration_seconds_count", 9.0),
        (r#"nexus_delivery_lag_seconds_count{function="probe"}"#, 9.0),
        (r#"nexus_retries_total{function="probe"}"#, 4.0),
        (r#"nexus_dead_letters_total{function="probe"}"#, 3.0),
        (r#"nexus_replays_total{mode="live",verdict="identical"}"#, 2.0),
        (r#"nexus_queue_depth{state="waiting"}"#, 0.0),
        (r#"nexus_queue_depth{state="parked"}"#, 0.0),
    ] {
        assert_eq!(samples.get(name), Some(&expected), "{name}\n{page}");
    }
    let bucket = |le: &str| samples[&format!("faas_invoke_duration_seconds_bucket{{le=\"{le}\",function=\"probe\"}}")];
    assert_eq!(bucket("+Inf"), 15.0);
    assert!(bucket("0.05") <= 12.0, "three took 400 ms at least");
}

#[tokio::test]
async fn what_waits_is_a_gauge() {
    let server = Server::start();
    let config = json!({"triggers": [{"filters": []}], "retry": {"attempts_max": 9, "backoff_ms": 60000, "backoff_max_ms": 60000}});
    server.deploy("probe", "probe", config).await;
    for id in ["1", "2"] {
        server.send(event(id, json!({"status": 500}))).await;
        server.settled(id, "failed").await;
    }
    until("both to be parked", async || {
        let samples = samples(&page(&server).await);
        let of = |state: &str| samples[&format!("nexus_queue_depth{{state=\"{state}\"}}")];
        (of("parked") == 2.0 && of("waiting") == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_functions_lines_are_in_the_servers_log_and_in_its_events() {
    let server = Server::start();
    server.deploy("probe", "probe", json!({"triggers": [{"filters": []}]})).await;
    let receipt = server.send(event("1", json!({"log": ["first", "with \"quotes\" and \u{1b}[31mcolour"]}))).await;
    let done = server.settled("1", "done").await;
    let invocation = &done["invocations"][0]["invocation_id"];
    let lines = until("the lines", async || {
        let lines: Vec<Value> = server.log().lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        let lines: Vec<_> = lines.into_iter().filter(|l| l["target"] == "nexus::function").collect();
        (lines.len() == 2).then_some(lines)
    })
    .await;
    for (line, written) in lines.iter().zip(["first", "with \"quotes\" and \u{1b}[31mcolour"]) {
        assert_eq!(line["message"], written);
        let labels = [&line["trace_id"], &line["event_id"], &line["invocation_id"], &line["function"], &line["stream"]];
        assert_eq!(labels, [&receipt["trace_id"], &json!("1"), invocation, &json!("probe"), &json!("stderr")]);
    }
    // What goes wrong is said with the same two ids.
    server.send(event("2", json!({"status": 400}))).await;
    let dead = server.settled("2", "dead").await;
    let failed = until("the failure's line", async || {
        server
            .log()
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok())
            .find(|l| l["level"] == "WARN" && l["message"] == "invocation failed")
    })
    .await;
    assert_eq!((&failed["trace_id"], &failed["event_id"]), (&dead["trace_id"], &json!("2")), "{failed}");
}

#[tokio::test]
async fn lines_are_followed_as_they_are_written() {
    let server = Server::start();
    server.deploy("probe", "probe", json!({"triggers": [{"filters": []}]})).await;
    server.send(event("1", json!({"log": ["one", "two"]}))).await;
    server.settled("1", "done").await;
    let of = |text: &str| -> Vec<Value> { text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect() };
    let response = server.request(Method::GET, "/v1/logs?event_id=1").send().await.expect("an answer");
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let written = of(&response.text().await.expect("text"));
    assert_eq!(written.iter().map(|l| &l["line"]).collect::<Vec<_>>(), ["one", "two"]);
    let keys: Vec<_> = written[0].as_object().expect("a line").keys().collect();
    assert_eq!(keys, ["event_id", "function", "invocation_id", "line", "stream", "time", "trace_id"]);

    // Of one event: what was there, then what comes, and nothing of another event.
    let mut all = server.request(Method::GET, "/v1/logs?follow=true").send().await.expect("an answer");
    let mut one = server.request(Method::GET, "/v1/logs?follow=true&event_id=1").send().await.expect("an answer");
    server.send(event("2", json!({"log": ["three"]}))).await;
    server.settled("2", "done").await;
    let request = server.request(Method::POST, "/v1/replays").json(&json!({"event_id": "1", "mode": "live"}));
    assert_eq!(server.answer(request).await.0, 202);
    let read = async |response: &mut reqwest::Response, lines: usize| {
        let mut text = String::new();
        while text.lines().count() < lines {
            let chunk = response.chunk().await.expect("a chunk").expect("it goes on");
            text.push_str(std::str::from_utf8(&chunk).expect("text"));
        }
        of(&text).iter().map(|l| l["line"].as_str().expect("a line").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(read(&mut all, 3).await, ["three", "one", "two"]);
    assert_eq!(read(&mut one, 4).await, ["one", "two", "one", "two"]);
}
