//! Replays of many events: through kills and stops, held and let go.

use nexus_tests::{Cli, Server, until};
use reqwest::Method;
use serde_json::json;

use super::{event, on};

/// Events of a type `t` for `f`, all delivered.
async fn many(server: &Server, count: usize) {
    server.deploy("f", "noop", on("t")).await;
    let batch: Vec<_> = (0..count).map(|i| event(&i.to_string(), "t", json!({}))).collect();
    let request = server.request(Method::POST, "/v1/events");
    let request = request.header("content-type", "application/cloudevents-batch+json").body(json!(batch).to_string());
    assert_eq!(server.answer(request).await.0, 202);
    until("all deliveries", async || {
        let waiting = server.get("/v1/events?type=t&status=pending").await["items"].as_array().map(Vec::len);
        let running = server.get("/v1/events?type=t&status=running").await["items"].as_array().map(Vec::len);
        (waiting == Some(0) && running == Some(0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_replay_of_many_goes_on_after_a_kill() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(folder.path()).start();
    many(&server, 1600).await;
    let request = json!({"filter": {"type": "t"}, "rate": 500});
    let (status, answer) = server.answer(server.request(Method::POST, "/v1/replays").json(&request)).await;
    assert_eq!(status, 202, "{answer}");
    let path = format!("/v1/replays/{}", answer["replay_id"].as_str().expect("an id"));
    // What comes later is not meant.
    server.send(event("later", "t", json!({}))).await;
    until("a part of it", async || Some(server.get(&path).await).filter(|r| r["done"].as_u64() > Some(1300))).await;
    server.kill();

    let server = Server::builder().data_dir(folder.path()).start();
    let after = server.get(&path).await;
    assert!(after["done"].as_u64() >= Some(500) && after["status"] != "aborted", "what was kept: {after:#}");
    let ended = until("its end", async || Some(server.get(&path).await).filter(|r| r["status"] == "done")).await;
    assert_eq!((&ended["total"], &ended["done"], &ended["identical"]), (&json!(1600), &json!(1600), &json!(1600)));
    // And it stays over.
    server.stop();
    let server = Server::builder().data_dir(folder.path()).start();
    let kept = server.get(&path).await;
    assert_eq!((&kept["status"], &kept["identical"]), (&json!("done"), &json!(1600)));
    assert_eq!(kept["kinds"][0]["count"], 1600);
}

/// A live replay that is killed delivers no event again whose outcome is in the log.
#[tokio::test]
async fn a_live_replay_of_many_that_is_killed_delivers_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(folder.path()).start();
    many(&server, 600).await;
    let request = json!({"filter": {"type": "t"}, "mode": "live", "confirm": true, "rate": 400});
    let (status, answer) = server.answer(server.request(Method::POST, "/v1/replays").json(&request)).await;
    assert_eq!(status, 202, "{answer}");
    let path = format!("/v1/replays/{}", answer["replay_id"].as_str().expect("an id"));
    until("a part of it", async || Some(server.get(&path).await).filter(|r| r["done"].as_u64() > Some(450))).await;
    server.kill();

    let server = Server::builder().data_dir(folder.path()).start();
    let before = server.get(&path).await["done"].as_u64().expect("a number");
    let ended = until("its end", async || Some(server.get(&path).await).filter(|r| r["status"] == "done")).await;
    assert_eq!((&ended["total"], &ended["done"], &ended["failed"]), (&json!(600), &json!(600), &json!(0)), "{before}");
    for id in 0..600 {
        let event = server.get(&format!("/v1/events/{id}")).await;
        let invocations = event["invocations"].as_array().expect("a list");
        assert_eq!(invocations.len(), 2, "delivered, and once more: {event:#}");
    }
}

/// A server that is told to stop leaves a replay to be gone on with.
#[tokio::test]
async fn a_replay_of_many_goes_on_after_a_stop() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(folder.path()).start();
    many(&server, 600).await;
    let request = json!({"filter": {"type": "t"}, "rate": 400});
    let (_, answer) = server.answer(server.request(Method::POST, "/v1/replays").json(&request)).await;
    let path = format!("/v1/replays/{}", answer["replay_id"].as_str().expect("an id"));
    until("a part of it", async || Some(server.get(&path).await).filter(|r| r["done"].as_u64() > Some(100))).await;
    assert_eq!(server.stop(), Some(0), "it ends in good order");
    let server = Server::builder().data_dir(folder.path()).start();
    let ended = until("its end", async || Some(server.get(&path).await).filter(|r| r["status"] == "done")).await;
    assert_eq!((&ended["done"], &ended["identical"]), (&json!(600), &json!(600)), "{ended:#}");
}

#[tokio::test]
async fn a_replay_of_many_can_be_held() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::builder().data_dir(folder.path()).start();
    many(&server, 50).await;
    let request = json!({"filter": {"type": "t"}, "rate": 20, "concurrency": 1});
    let (_, answer) = server.answer(server.request(Method::POST, "/v1/replays").json(&request)).await;
    let id = answer["replay_id"].as_str().expect("an id");
    let cli = Cli::of(&server);
    cli.json(["replays", "pause", id]);
    let get = async || server.get(&format!("/v1/replays/{id}")).await;
    let held = until("it is held", async || Some(get().await).filter(|r| r["status"] == "paused")).await;
    let done = until("what it was at", async || {
        let (one, other) = (get().await, get().await);
        (one["done"] == other["done"]).then(|| one["done"].clone())
    })
    .await;
    assert!(done.as_u64() < Some(50) && held["total"] == 50, "{held:#}");
    assert!(cli.text(["replays"]).contains("paused"));
    // Over a kill too.
    server.kill();
    let server = Server::builder().data_dir(folder.path()).start();
    let cli = Cli::of(&server);
    let get = async || server.get(&format!("/v1/replays/{id}")).await;
    let held = until("it is there again", async || Some(get().await).filter(|r| r["status"] == "paused")).await;
    assert_eq!(held["done"], done, "{held:#}");
    cli.json(["replays", "resume", id]);
    let ended = until("its end", async || Some(get().await).filter(|r| r["status"] == "done")).await;
    assert_eq!(ended["identical"], 50);
    // Over is over.
    assert_eq!(cli.json(["replays", "pause", id])["status"], "done");
    let gone = server.request(Method::POST, "/v1/replays/00000000-0000-7000-8000-000000000000/pause");
    assert_eq!(server.answer(gone).await.0, 404);
}
