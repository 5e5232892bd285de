//! Events that are taken now and delivered later.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nexus_tests::problem::refused;
use nexus_tests::{Server, until};
use reqwest::Method;
use serde_json::{Value, json};

fn event(id: &str, not_before: Timestamp) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t", "nexusnotbefore": not_before.to_string(), "data": {}})
}

fn on_t() -> Value {
    json!({"triggers": [{"filters": [{"exact": {"type": "t"}}]}]})
}

fn from_now(ms: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_millis(ms)
}

/// Waits until so many deliveries are parked.
async fn parked(server: &Server, count: usize) {
    let line = format!("nexus_queue_depth{{state=\"parked\"}} {count}");
    until(&line, || async {
        let page =
            server.request(Method::GET, "/metrics").send().await.expect("an answer").text().await.expect("a page");
        page.lines().any(|found| found == line).then_some(())
    })
    .await;
}

/// Delivered once, in the first attempt, and not before its time.
async fn delivered(server: &Server, id: &str, not_before: Timestamp) {
    let event = server.settled(id, "done").await;
    let invocations = event["invocations"].as_array().expect("invocations");
    assert!(invocations.len() == 1 && invocations[0]["attempt"] == 1, "{event:#}");
    let started: Timestamp = invocations[0]["started_at"].as_str().expect("a time").parse().expect("a time");
    assert!(started >= not_before, "{started} is before {not_before}");
}

#[tokio::test]
async fn it_comes_at_its_time_and_holds_up_nobody() {
    let server = Server::start();
    let mut config = on_t();
    config["triggers"][0]["order"] = json!("partitionkey");
    server.deploy("worker", "probe", config).await;
    let later = from_now(5000);
    let mut first = event("later", later);
    first["partitionkey"] = json!("k");
    server.send(first).await;
    let mut second = event("now", Timestamp::UNIX_EPOCH);
    second["partitionkey"] = json!("k");
    server.send(second).await;
    delivered(&server, "now", Timestamp::UNIX_EPOCH).await;
    let waits = server.get("/v1/events/later").await;
    assert_eq!((&waits["status"], &waits["invocations"]), (&json!("pending"), &json!([])), "{waits:#}");
    let listed = server.get("/v1/events?status=pending").await;
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(1), "{listed:#}");
    delivered(&server, "later", later).await;
}

#[tokio::test]
async fn it_survives_a_kill_and_is_late_when_nobody_ran() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(folder.path()).start();
    server.deploy("worker", "probe", on_t()).await;
    let (missed, later) = (from_now(3000), from_now(14_000));
    server.send(event("missed", missed)).await;
    server.send(event("later", later)).await;
    parked(&server, 2).await;
    // The mark of delivery is past both.
    server.send(event("now", Timestamp::UNIX_EPOCH)).await;
    server.settled("now", "done").await;
    server.kill();
    tokio::time::sleep(Duration::from_millis(3100)).await;
    let server = Server::builder().data_dir(folder.path()).start();
    delivered(&server, "missed", missed).await;
    assert_eq!(server.get("/v1/events/later").await["status"], "pending");
    delivered(&server, "later", later).await;
}

#[tokio::test]
async fn it_does_not_expire_while_it_waits_and_goes_to_whom_it_matched() {
    let server = Server::start();
    let mut config = on_t();
    config["triggers"][0]["max_age_s"] = json!(4);
    server.deploy("worker", "probe", config).await;
    server.deploy("gone", "noop", on_t()).await;
    let later = from_now(6000);
    server.send(event("later", later)).await;
    parked(&server, 2).await;
    let (status, _) = server.answer(server.request(Method::DELETE, "/v1/functions/gone")).await;
    assert_eq!(status, 204);
    // Too late to be asked.
    server.deploy("young", "noop", on_t()).await;
    let event = server.settled("later", "dead").await;
    let of = |function: &str| {
        let invocations = event["invocations"].as_array().expect("invocations");
        let mut of = invocations.iter().filter(|i| i["function"] == function);
        (of.next().map(|i| i["status"].clone()), of.count())
    };
    assert_eq!(of("worker"), (Some(json!("ok")), 0), "{event:#}");
    assert_eq!(of("gone"), (Some(json!("denied")), 0), "{event:#}");
    assert_eq!(of("young"), (None, 0), "{event:#}");
}

#[tokio::test]
async fn what_is_no_time_is_refused() {
    let server = Server::start();
    for wrong in [json!("tomorrow"), json!(12), json!(true), json!("2027-01-01"), json!("2999-01-01T00:00:00Z")] {
        let mut event = event("1", Timestamp::UNIX_EPOCH);
        event["nexusnotbefore"] = wrong;
        let request = server
            .request(Method::POST, "/v1/events")
            .header("content-type", "application/cloudevents+json")
            .body(event.to_string());
        refused("an event", request, 400, "nexusnotbefore").await;
    }
}
