//! What is given up: dead letters, events in their place, events that are too old; and what a function says of when to try again.

use nexus_tests::problem::refused;
use nexus_tests::server::Cli;
use nexus_tests::{Server, until};
use reqwest::Method;
use serde_json::{Value, json};

fn event(id: &str, ty: &str, data: Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/dlq", "type": ty, "data": data})
}

fn on(ty: &str, retry: Value) -> Value {
    json!({"triggers": [{"filters": [{"exact": {"type": ty}}]}], "retry": retry})
}

/// Two attempts, at once.
fn twice() -> Value {
    json!({"attempts_max": 2, "backoff_ms": 1, "backoff_max_ms": 1})
}

fn fails() -> Value {
    json!({"status": 500})
}

async fn dead_letters(server: &Server, query: &str) -> Vec<(String, String)> {
    let page = server.get(&format!("/v1/dlq{query}")).await;
    let text = |item: &Value, key: &str| item[key].as_str().expect(key).to_owned();
    page["items"].as_array().expect("items").iter().map(|i| (text(i, "event_id"), text(i, "function"))).collect()
}

#[tokio::test]
async fn what_is_given_up_is_listed_tried_again_and_dropped() {
    let server = Server::start();
    for name in ["a", "b"] {
        server.deploy(name, "probe", on("work", twice())).await;
    }
    for id in ["e1", "e2", "e3"] {
        server.send(event(id, "work", fails())).await;
    }
    for id in ["e1", "e2", "e3"] {
        // Given up by one function it is dead already; the other may still be at it.
        let all = |e: &Value| e["status"] == "dead" && e["invocations"].as_array().map(Vec::len) == Some(4);
        server.event_until(id, all).await;
    }
    let all = dead_letters(&server, "").await;
    assert_eq!(all.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["e3", "e3", "e2", "e2", "e1", "e1"]);
    let of_a = dead_letters(&server, "?function=a&limit=2").await;
    assert_eq!(of_a, [("e3".to_owned(), "a".to_owned()), ("e2".to_owned(), "a".to_owned())]);
    let page = server.get("/v1/dlq?limit=4").await;
    let next = page["next"].as_str().expect("a next page");
    assert_eq!(dead_letters(&server, &format!("?limit=4&cursor={next}")).await.len(), 2);
    let letter = &page["items"][0];
    assert_eq!((&letter["attempts"], &letter["status"]), (&json!(2), &json!("error")));
    assert!(letter["error"].as_str().is_some_and(|why| why.contains("500")), "{letter}");

    // As somebody on call does it.
    let cli = Cli::of(&server);
    let table = cli.text(["dlq"]);
    assert!(table.contains("e2") && table.contains("GIVEN UP"), "{table}");
    assert!(cli.text(["dlq", "retry", "e1", "--function", "a"]).contains("retried 1"));
    // It fails once more, and is given up at once: its attempts are used up.
    let tried = server.event_until("e1", |e| e["invocations"].as_array().is_some_and(|i| i.len() == 5)).await;
    assert!(tried["invocations"].as_array().expect("invocations").iter().any(|i| i["attempt"] == 3), "{tried:#}");
    until("the dead letter to be there again", || async {
        (dead_letters(&server, "?function=a").await.len() == 3).then_some(())
    })
    .await;
    // The function is fixed: what it could not do is done.
    let answer = cli.run(["dlq", "retry", "--function", "b"]);
    assert_eq!(answer.status.code(), Some(2), "more than one, and nobody to ask: {answer:?}");
    server.deploy("b", "noop", on("work", twice())).await;
    assert!(cli.text(["dlq", "retry", "--function", "b", "--yes"]).contains("retried 3"));
    until("all of them to be done", || async {
        let left = dead_letters(&server, "?function=b").await;
        let done = server.get("/v1/events/e3").await["invocations"]
            .as_array()?
            .iter()
            .any(|i| i["function"] == "b" && i["status"] == "ok");
        (left.is_empty() && done).then_some(())
    })
    .await;
    assert!(cli.text(["dlq", "drop", "--all", "--yes"]).contains("dropped 3"));
    assert_eq!(dead_letters(&server, "").await, []);
    assert!(cli.text(["dlq"]).contains("no dead letters"));
    assert_eq!(cli.run(["dlq", "retry", "e1"]).status.code(), Some(3));
    // The event and what came of it stay.
    server.settled("e1", "dead").await;
}

#[tokio::test]
async fn dead_letters_are_there_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(folder.path()).start();
    server.deploy("a", "probe", on("work", twice())).await;
    server.send(event("e1", "work", fails())).await;
    server.settled("e1", "dead").await;
    server.kill();
    let server = Server::builder().data_dir(folder.path()).start();
    assert_eq!(dead_letters(&server, "").await.len(), 1);
    server.deploy("a", "noop", on("work", twice())).await;
    Cli::of(&server).text(["dlq", "retry", "e1"]);
    let done = server.settled("e1", "done").await;
    assert_eq!(
        (done["invocations"].as_array().map(Vec::len), &done["invocations"][2]["attempt"]),
        (Some(3), &json!(3))
    );
}

#[tokio::test]
async fn an_event_can_be_emitted_in_the_place_of_a_dead_letter() {
    let server = Server::start();
    let mut retry = twice();
    retry["dead_letter"] = json!({"type": "work.failed"});
    server.deploy("a", "probe", on("work", retry)).await;
    server.deploy("alarm", "noop", on("work.failed", json!({}))).await;
    server.send(event("e1", "work", fails())).await;
    let dead = server.settled("e1", "dead").await;
    let emitted = dead["invocations"][1]["emitted"][0].as_str().expect("an event").to_owned();
    let told = server.settled(&emitted, "done").await;
    assert_eq!((&told["event"]["type"], &told["trace_id"]), (&json!("work.failed"), &dead["trace_id"]));
    let data = &told["event"]["data"];
    assert_eq!((&data["event"]["id"], &data["attempts"], &data["function"]), (&json!("e1"), &json!(2), &json!("a")));
    assert_eq!(told["invocations"][0]["function"], "alarm");
    assert_eq!(dead_letters(&server, "").await, [], "it went there instead");
}

#[tokio::test]
async fn a_function_says_when_to_try_again_or_that_it_is_of_no_use() {
    let server = Server::start();
    let retry = json!({"attempts_max": 3, "backoff_ms": 1, "backoff_max_ms": 1});
    server.deploy("a", "probe", on("work", retry)).await;
    // 400 says that the same again is answered alike.
    server.send(event("never", "work", json!({"status": 400}))).await;
    let never = server.settled("never", "dead").await;
    assert_eq!(never["invocations"].as_array().map(Vec::len), Some(1));
    server.send(event("later", "work", json!({"status": 503, "retry_after_s": 3600}))).await;
    let later = server.event_until("later", |e| e["invocations"].as_array().is_some_and(|i| i.len() == 1)).await;
    let at: jiff::Timestamp = later["invocations"][0]["retry_at"].as_str().expect("a time").parse().expect("a time");
    let wait_s = at.duration_since(jiff::Timestamp::now()).as_secs();
    assert!((3500..=3600).contains(&wait_s), "in {wait_s} s");
}

#[tokio::test]
async fn a_trigger_has_its_own_patience() {
    let server = Server::start();
    let triggers = json!([
        {"filters": [{"exact": {"type": "once"}}], "retry": {"attempts_max": 1}},
        {"filters": [{"exact": {"type": "thrice"}}]},
    ]);
    let retry = json!({"attempts_max": 3, "backoff_ms": 1, "backoff_max_ms": 1});
    server.deploy("a", "probe", json!({"triggers": triggers, "retry": retry})).await;
    for (ty, attempts) in [("once", 1), ("thrice", 3)] {
        server.send(event(ty, ty, fails())).await;
        let dead = server.settled(ty, "dead").await;
        assert_eq!(dead["invocations"].as_array().map(Vec::len), Some(attempts), "{ty}");
    }
}

#[tokio::test]
async fn what_is_too_old_is_not_delivered() {
    let server = Server::start();
    let triggers = json!([{"filters": [{"exact": {"type": "short"}}], "max_age_s": 1}, {"filters": [{"exact": {"type": "long"}}]}]);
    let retry = json!({"attempts_max": 10, "backoff_ms": 1500, "backoff_max_ms": 1500});
    server.deploy("a", "probe", json!({"triggers": triggers, "retry": retry})).await;
    // By what it says itself.
    let mut old = event("old", "long", json!({}));
    old["expirytime"] = json!("2020-01-01T00:00:00Z");
    server.send(old).await;
    let old = server.settled("old", "dead").await;
    assert_eq!(old["invocations"].as_array().map(Vec::len), Some(1), "{old:#}");
    assert_eq!(old["invocations"][0]["status"], "denied");
    assert!(old["invocations"][0]["error"].as_str().is_some_and(|why| why.contains("expirytime")), "{old:#}");
    let mut young = event("young", "long", json!({}));
    young["expirytime"] = json!("2200-01-01T00:00:00Z");
    server.send(young).await;
    server.settled("young", "done").await;
    // By its trigger: the first attempt is in time, the second is not.
    server.send(event("waits", "short", fails())).await;
    let waits = server.settled("waits", "dead").await;
    let attempts: Vec<_> =
        waits["invocations"].as_array().expect("invocations").iter().map(|i| i["status"].clone()).collect();
    assert_eq!(attempts, ["error", "denied"], "{waits:#}");
    assert!(waits["invocations"][1]["error"].as_str().is_some_and(|why| why.contains("max_age_s")), "{waits:#}");
    assert_eq!(dead_letters(&server, "").await, [], "what is too old is of no use to anybody");
}

#[tokio::test]
async fn an_event_tells_where_it_went_and_why() {
    let server = Server::start();
    // Sent before there is any function.
    server.send(event("early", "work", json!({"n": 1}))).await;
    server.settled("early", "done").await;
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    server.deploy("takes", "noop", json!({"triggers": [{"filters": [{"prefix": {"type": "other"}}]}, {"filters": [{"sql": "type = 'work'"}]}]})).await;
    server.deploy("other", "noop", json!({"triggers": [{"filters": [{"exact": {"type": "other"}}]}]})).await;
    server.deploy("calls", "noop", json!({})).await;
    server.send(event("e1", "work", json!({}))).await;
    let story = server.settled("e1", "done").await;
    let of = |name: &str| {
        let all = story["routing"].as_array().expect("routing");
        all.iter().find(|r| r["function"] == name).unwrap_or_else(|| panic!("{name}: {story:#}")).clone()
    };
    assert_eq!(
        (&of("takes")["matched"], &of("takes")["trigger"], &of("takes")["certain"]),
        (&json!(true), &json!(1), &json!(true))
    );
    assert_eq!(of("other")["why"], json!(["type is \"work\", which is not \"other\""]));
    assert_eq!(of("calls")["why"], json!(["it has no trigger"]));
    assert_eq!(story["not_matched"], 2);
    let early = server.get("/v1/events/early").await;
    assert!(early["routing"].as_array().expect("routing").iter().all(|r| r["certain"] == false), "{early:#}");
    assert_eq!(early["invocations"], json!([]), "it was before them");
    let text = Cli::of(&server).text(["events", "get", "e1"]);
    for expected in [
        "goes to    takes  trigger 1",
        "not to     other  type is \"work\", which is not \"other\"",
        "it has no trigger",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let text = Cli::of(&server).text(["events", "get", "early"]);
    assert!(text.contains("as configured now, which is later than the event"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_is_named() {
    let server = Server::start();
    let post = |body: Value| server.request(Method::POST, "/v1/dlq/retry").json(&body);
    refused("nothing said", post(json!({})), 400, "event_id").await;
    refused("an array", post(json!([])), 400, "array").await;
    refused("no such event", post(json!({"event_id": "none"})), 404, "none").await;
    refused("unknown member", post(json!({"event": "x"})), 400, "event").await;
    refused("limit", server.request(Method::GET, "/v1/dlq?limit=0"), 400, "limit").await;
    refused("cursor", server.request(Method::GET, "/v1/dlq?cursor=x"), 400, "cursor").await;
    let form = server.request(Method::POST, "/v1/dlq/drop").header("content-type", "text/plain").body("{\"all\":true}");
    refused("another site's form", form, 415, "application/json").await;
    server.deploy("a", "noop", json!({})).await;
    for (config, field) in [
        (json!({"retry": {"dead_letter": {"type": ""}}}), "retry.dead_letter.type"),
        (json!({"triggers": [{"filters": [], "retry": {"attempts_max": 0}}]}), "triggers[0].retry.attempts_max"),
        (json!({"triggers": [{"filters": [], "max_age_s": 0}]}), "triggers[0].max_age_s"),
    ] {
        refused(field, server.request(Method::PUT, "/v1/functions/a/config").json(&config), 400, field).await;
    }
}
