//! Replays that cannot be what they should: each has a clear verdict, and nothing goes out.

use nexus_tests::{Cli, Server};
use reqwest::Method;
use serde_json::{Value, json};

use super::{check, event, on};

#[tokio::test]
async fn a_replay_of_a_replay_is_of_the_first() {
    let server = Server::start();
    server.deploy("f", "probe", on("t")).await;
    // What it emits has ids that follow from who ran; a live one has others.
    server.send(event("1", "t", json!({"emit": [{"type": "e", "data": 1}], "log": ["one"]}))).await;
    let first = server.settled("1", "done").await["invocations"][0]["invocation_id"].clone();
    let result = check(&server, json!({"event_id": "1"}), "identical", Value::Null).await;
    assert_eq!(result["replay_of"], first);
    // By its own id too.
    let request = json!({"invocation_id": result["invocation_id"]});
    let again = check(&server, request, "identical", Value::Null).await;
    assert_eq!(again["replay_of"], first, "{again:#}");
    assert_ne!(again["invocation_id"], result["invocation_id"]);
    // One that was live has a journal of its own, and is the one that is played back.
    let live = server.replay(json!({"event_id": "1", "mode": "live"})).await["results"][0]["invocation_id"].clone();
    let of_live = check(&server, json!({"invocation_id": live}), "identical", Value::Null).await;
    assert_eq!(of_live["replay_of"], live, "{of_live:#}");
}

#[tokio::test]
async fn a_version_that_is_gone_is_named() {
    let server = Server::start();
    server.deploy("f", "script", on("t")).await;
    server.send(event("1", "t", json!([{"do": "wall"}]))).await;
    server.settled("1", "done").await;
    let (status, _) = server.answer(server.request(Method::DELETE, "/v1/functions/f")).await;
    assert_eq!(status, 204);
    let (status, problem) =
        server.answer(server.request(Method::POST, "/v1/replays").json(&json!({"event_id": "1"}))).await;
    assert!(status == 404 && problem.to_string().contains('f'), "{status} {problem}");
    let asked = json!({"event_id": "1", "function": "f@1"});
    let (status, problem) = server.answer(server.request(Method::POST, "/v1/replays").json(&asked)).await;
    assert!(status == 404 && problem["detail"].as_str().is_some_and(|d| d.contains("no function f")), "{problem}");
}

/// A case whose journal was damaged, cut, or is of a later release; and guests that trap or never end in the replay alone.
#[tokio::test]
async fn what_a_case_cannot_be_is_said() {
    let server = Server::start();
    let mut config = on("t");
    config["limits"] = json!({"timeout_ms": 300});
    server.deploy("f", "script", config).await;
    server.send(event("1", "t", json!([{"do": "wall"}, {"do": "random", "n": 100}]))).await;
    server.settled("1", "done").await;
    let case = server.get("/v1/events/1/export").await;
    drop(server);

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("case.json").display().to_string();
    let component = nexus_tests::server::repository().join("tests/guests/script/script.wasm").display().to_string();
    let local = Cli::at("http://127.0.0.1:1");
    let journal = case["deliveries"][0]["outcome"]["journal"].as_str().expect("a journal").to_owned();
    let altered = format!("{}{}{}", &journal[..20], if &journal[20..21] == "A" { "B" } else { "A" }, &journal[21..]);
    let cut = journal[..journal.len() / 8 * 4].to_owned();
    // The first byte is the format: 1 is `AQ` or `AA`, 255 is `/w`.
    let newer = format!("/w{}", &journal[2..]);
    for (name, journal, said) in [
        ("altered", altered, "the journal is damaged"),
        ("cut", cut, "the journal is damaged"),
        ("newer", newer, "format 25"),
    ] {
        let mut case = case.clone();
        case["deliveries"][0]["outcome"]["journal"] = journal.into();
        std::fs::write(&path, case.to_string()).expect("room");
        let output = local.run(["replay", &path, "--component", &component]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(said), "{name}: {text}");
    }
    std::fs::write(&path, case.to_string()).expect("room");
    for (data, divergence) in [(r#"[{"do":"loop"}]"#, "timeout"), (r#"[{"do":"trap"}]"#, "trap")] {
        let output = local.run(["--output", "json", "replay", &path, "--component", &component, "--data", data]);
        let replay: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let result = &replay["results"][0];
        assert_eq!(
            (&result["verdict"], &result["diff"]["after"]),
            (&json!("failed"), &json!(divergence)),
            "{replay:#}"
        );
        assert_eq!(output.status.code(), Some(1));
    }
}
