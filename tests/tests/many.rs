//! Very many of something: functions on one event, events in one batch.

use nexus_tests::problem::refused;
use nexus_tests::{Server, until};
use reqwest::Method;
use serde_json::json;

/// So many functions, or `NEXUS_FUNCTIONS` of them.
const FUNCTIONS: usize = 500;

#[tokio::test]
async fn an_event_for_very_many_functions_goes_to_each_of_them_once() {
    let count = std::env::var("NEXUS_FUNCTIONS").map_or(FUNCTIONS, |n| n.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(folder.path()).start();
    let on = |ty: &str| json!({"triggers": [{"filters": [{"exact": {"type": ty}}]}]});
    for n in 0..count {
        server.deploy(&format!("f{n}"), "noop", on("all")).await;
    }
    server.deploy("other", "noop", on("other")).await;
    let event = |id: &str, ty: &str| json!({"specversion": "1.0", "id": id, "source": "/s", "type": ty});
    server.send(event("one", "all")).await;
    // Whoever comes behind need not wait for all of them, and a crash in the middle does nothing twice.
    server.send(event("two", "other")).await;
    server.settled("two", "done").await;
    server.kill();
    let server = Server::builder().data_dir(folder.path()).start();
    let all = until("all invocations", || async {
        let event = server.get("/v1/events/one").await;
        let invocations = event["invocations"].as_array().expect("invocations").clone();
        (invocations.len() >= count && event["status"] == "done").then_some(invocations)
    })
    .await;
    let mut functions: Vec<_> = all.iter().map(|i| i["function"].as_str().expect("a name")).collect();
    functions.sort_unstable();
    functions.dedup();
    assert_eq!((functions.len(), all.len()), (count, count));
    assert!(all.iter().all(|i| i["status"] == "ok" && i["attempt"] == 1), "each once");
    // What it did not match is not told of a thousand times.
    let routing = server.get("/v1/events/two").await;
    let told = routing["routing"].as_array().expect("routing").len() as u64;
    assert!(told < 200 && told + routing["not_matched"].as_u64().expect("a number") > count as u64, "{told}");
}

#[tokio::test]
async fn a_batch_of_a_million_is_refused_as_a_whole() {
    let batch = |count: usize| {
        let events = (0..count).map(|n| format!(r#"{{"specversion":"1.0","id":"{n}","source":"/b","type":"t"}}"#));
        format!("[{}]", events.collect::<Vec<_>>().join(","))
    };
    let post = |server: &Server, body: &str| {
        let request = server.request(Method::POST, "/v1/events");
        request.header("content-type", "application/cloudevents-batch+json").body(body.to_owned())
    };
    let million = batch(1_000_000);
    // That so many bytes are refused before they are read is tested in `bad_input`; here they are allowed.
    let server = Server::builder().config("body_bytes_max = 100000000").start();
    refused("a million", post(&server, &million), 413, "1000000").await;
    assert_eq!(server.get("/v1/events").await["items"], json!([]));
    // What is allowed is taken.
    let (status, answer) = server.answer(post(&server, &batch(10_000))).await;
    assert_eq!((status, answer["events"].as_array().map(Vec::len)), (202, Some(10_000)));
}
