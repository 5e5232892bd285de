//! The list of events: every filter, page by page, and what it says to a question that is none.

use nexus_tests::Server;
use reqwest::Method;
use serde_json::{Value, json};

fn ids(page: &Value) -> Vec<String> {
    page["items"].as_array().expect("items").iter().map(|e| e["event"]["id"].as_str().expect("id").to_owned()).collect()
}

/// Every page after the other, by its cursor.
async fn pages(server: &Server, path: &str) -> Vec<Vec<String>> {
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("{path}{cursor}")).await;
        pages.push(ids(&page));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return pages,
        }
    }
}

#[tokio::test]
async fn every_filter_finds_its_events() {
    let server = Server::start();
    server.deploy("noop", "noop", json!({"triggers": [{"filters": [{"exact": {"type": "a"}}]}]})).await;
    let probe = json!({"triggers": [{"filters": [{"exact": {"type": "b"}}]}], "retry": {"attempts_max": 1}});
    server.deploy("probe", "probe", probe).await;
    let mut receipts = Vec::new();
    for (id, ty, source) in [("1", "a", "/x"), ("2", "a", "/y"), ("3", "b", "/x"), ("4", "c", "/y")] {
        let event = json!({"specversion": "1.0", "id": id, "source": source, "type": ty, "data": {"status": 500}});
        receipts.push(server.send(event).await);
        server.settled(id, if ty == "b" { "dead" } else { "done" }).await;
    }
    let third = server.get("/v1/events/3").await["received_at"].as_str().expect("a time").to_owned();
    let trace = receipts[1]["trace_id"].as_str().expect("a trace");
    let check = async |query: &str, expected: &[&str]| {
        assert_eq!(ids(&server.get(&format!("/v1/events?{query}")).await), expected, "{query}");
    };
    check("", &["4", "3", "2", "1"]).await;
    check("type=a", &["2", "1"]).await;
    check("source=/x", &["3", "1"]).await;
    check("type=a&source=/x", &["1"]).await;
    check("function=noop", &["2", "1"]).await;
    check("function=probe", &["3"]).await;
    check("status=dead", &["3"]).await;
    check("status=done", &["4", "2", "1"]).await;
    check("status=pending", &[]).await;
    check(&format!("trace_id={trace}"), &["2"]).await;
    // From is inclusive, to is not.
    check(&format!("from={third}"), &["4", "3"]).await;
    check(&format!("to={third}"), &["2", "1"]).await;
    check(&format!("from={third}&to={third}"), &[]).await;
    check("type=none", &[]).await;
    check("limit=2", &["4", "3"]).await;
}

#[tokio::test]
async fn the_pages_together_have_each_event_once() {
    let server = Server::start();
    server.deploy("noop", "noop", json!({"triggers": [{"filters": [{"exact": {"type": "odd"}}]}]})).await;
    for n in 0..25 {
        let ty = if n % 2 == 1 { "odd" } else { "even" };
        server.send(json!({"specversion": "1.0", "id": n.to_string(), "source": "/s", "type": ty})).await;
    }
    // The last odd one: with it all are delivered, for the log is read in order and noop has room for all.
    for n in (1..25).step_by(2) {
        server.settled(&n.to_string(), "done").await;
    }
    let check = async |query: &str, limit: usize, expected: Vec<String>| {
        let pages = pages(&server, &format!("/v1/events?limit={limit}{query}")).await;
        assert!(pages.iter().all(|p| p.len() <= limit), "{pages:?}");
        assert_eq!(pages.concat(), expected, "{query} by {limit}");
    };
    let descending = |step: usize| (0..25).rev().step_by(step).map(|n| n.to_string()).collect::<Vec<_>>();
    let odd: Vec<_> = (0..25).rev().filter(|n| n % 2 == 1).map(|n| n.to_string()).collect();
    for limit in [1, 7, 24, 25, 26] {
        check("", limit, descending(1)).await;
        check("&type=even", limit, descending(2)).await;
        // These have no index: the pages are filtered.
        check("&function=noop", limit, odd.clone()).await;
        check("&status=done&type=odd", limit, odd.clone()).await;
    }
}

#[tokio::test]
async fn a_bad_question_is_named() {
    let server = Server::start();
    let check = async |path: &str, named: &str| {
        let response = server.request(Method::GET, path).send().await.expect("an answer");
        let status = response.status();
        let kind = response.headers()["content-type"].to_str().expect("text").to_owned();
        let text = response.text().await.expect("text");
        assert_eq!((status.as_u16(), kind.as_str()), (400, "application/problem+json"), "{path}: {text}");
        let problem: Value = serde_json::from_str(&text).expect("JSON");
        assert!(problem["detail"].as_str().is_some_and(|d| d.contains(named)), "{path}: {problem}");
    };
    for (query, named) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=x", "limit"),
        ("cursor=x", "cursor"),
        ("from=yesterday", "from"),
        ("to=2026-13-01T00:00:00Z", "to"),
        ("status=finished", "status"),
        ("function=No", "function"),
        ("trace_id=1", "trace id"),
        ("colour=red", "colour"),
        ("type=a&type=b", "type"),
    ] {
        check(&format!("/v1/events?{query}"), named).await;
    }
    check("/v1/events/%ff", "UTF-8").await;
    check("/v1/functions/No", "function name").await;
    check("/v1/functions/%ff/versions", "UTF-8").await;
    check("/v1/traces/xyz", "trace id").await;
    check("/v1/traces/00000000000000000000000000000000", "zeros").await;
    check("/v1/invocations/1", "invocation").await;
    check("/v1/replays/1", "replay").await;
    check("/v1/logs", "event_id").await;
    check("/v1/logs?follow=perhaps", "follow").await;
    check("/api/traces/xyz", "trace id").await;
    check("/api/traces?limit=many", "").await;
    check("/trace/%ff", "UTF-8").await;
}
