//! Schedules: ticks become events at their time, once, also over restarts and with several runtimes.

use std::time::Duration;

use nexus_tests::problem::refused;
use nexus_tests::{Server, until};
use reqwest::Method;
use serde_json::{Value, json};

fn every_second(missed: &str) -> Value {
    json!({"schedules": [{"name": "often", "cron": "* * * * * *", "missed": missed, "event": {"type": "tick", "data": {"n": 1}}}]})
}

/// The ticks of a function's schedule, oldest first.
async fn ticks(server: &Server) -> Vec<Value> {
    let page = server.get("/v1/events?limit=1000&type=tick").await;
    let mut items = page["items"].as_array().expect("items").clone();
    items.reverse();
    items
}

fn at(tick: &Value) -> jiff::Timestamp {
    tick["event"]["time"].as_str().expect("a time").parse().expect("a time")
}

#[tokio::test]
async fn each_tick_is_an_event_for_its_function() {
    let server = Server::start();
    server.deploy("clock", "noop", every_second("once")).await;
    // One that takes everything does not get what is addressed to another.
    server.deploy("nosy", "noop", json!({"triggers": [{"filters": []}]})).await;
    until("three ticks", || async { (ticks(&server).await.len() >= 3).then_some(()) }).await;
    let ticks = ticks(&server).await;
    for pair in ticks.windows(2) {
        assert_eq!(at(&pair[1]).duration_since(at(&pair[0])).as_millis(), 1000, "none is left out: {ticks:#?}");
    }
    let id = ticks[0]["event"]["id"].as_str().expect("an id");
    let tick = server.settled(id, "done").await;
    assert_eq!(
        (&tick["event"]["source"], &tick["event"]["data"]),
        (&json!("/functions/clock/schedules/often"), &json!({"n": 1}))
    );
    let invocations = tick["invocations"].as_array().expect("invocations");
    assert!(invocations.len() == 1 && invocations[0]["function"] == "clock", "{tick:#}");
    // Taken away, it ticks no more.
    server.deploy("clock", "noop", json!({})).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let before = self::ticks(&server).await.len();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(self::ticks(&server).await.len(), before);
}

#[tokio::test]
async fn ticks_that_were_missed_run_as_is_said() {
    for (missed, expected) in [("all", true), ("none", false)] {
        let folder = tempfile::tempdir().expect("a folder");
        let server = Server::builder().data_dir(folder.path()).start();
        server.deploy("clock", "noop", every_second(missed)).await;
        until("a tick", || async { (!ticks(&server).await.is_empty()).then_some(()) }).await;
        server.kill();
        let down = jiff::Timestamp::now();
        tokio::time::sleep(Duration::from_millis(3200)).await;
        let server = Server::builder().data_dir(folder.path()).start();
        let up = jiff::Timestamp::now();
        until("a tick after that", || async { ticks(&server).await.iter().any(|tick| at(tick) > up).then_some(()) })
            .await;
        let all = ticks(&server).await;
        // Younger than a minute, they are late and not missed, whatever is said of missed ones.
        let between = all.iter().filter(|tick| at(tick) > down && at(tick) < up).count();
        assert!(between >= 2, "{missed} {expected}: {between} ticks");
        let mut ids: Vec<_> = all.iter().map(|tick| tick["event"]["id"].to_string()).collect();
        ids.dedup();
        assert_eq!(ids.len(), all.len(), "each once");
    }
}

#[tokio::test]
async fn one_shots_run_once() {
    let server = Server::start();
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(1200);
    let config = json!({"schedules": [{"name": "launch", "at": soon.to_string(), "event": {"type": "tick"}}]});
    server.deploy("clock", "noop", config).await;
    until("the one", || async { (ticks(&server).await.len() == 1).then_some(()) }).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let ticks = ticks(&server).await;
    assert!(ticks.len() == 1 && at(&ticks[0]) == soon, "{ticks:#?}");
}

#[tokio::test]
async fn what_is_no_schedule_is_refused() {
    let server = Server::start();
    server.deploy("clock", "noop", json!({})).await;
    let put = |schedule: Value| {
        let config = json!({"schedules": [schedule]});
        server.request(Method::PUT, "/v1/functions/clock/config").json(&config)
    };
    let event = json!({"type": "t"});
    refused("no cron", put(json!({"name": "a", "cron": "61 * * * *", "event": event})), 400, "61").await;
    refused("no day", put(json!({"name": "a", "cron": "0 0 30 2 *", "event": event})), 400, "no such day").await;
    refused(
        "no zone",
        put(json!({"name": "a", "cron": "@daily", "timezone": "Mars/Base", "event": event})),
        400,
        "Mars",
    )
    .await;
    refused("no name", put(json!({"name": "A b", "cron": "@daily", "event": event})), 400, "name").await;
}
