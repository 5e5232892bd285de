//! Functions: deployed in every kind, versioned, configured, taken away.

use std::path::Path;

use nexus_tests::{Cli, Server, server};
use reqwest::Method;
use serde_json::{Value, json};

async fn put(server: &Server, name: &str, bytes: Vec<u8>) -> (u16, Value) {
    let put = server.request(Method::PUT, &format!("/v1/functions/{name}"));
    server.answer(put.header("content-type", "application/wasm").body(bytes)).await
}

async fn configure(server: &Server, name: &str, config: &str) -> (u16, Value) {
    let put = server.request(Method::PUT, &format!("/v1/functions/{name}/config"));
    server.answer(put.header("content-type", "application/json").body(config.to_owned())).await
}

#[tokio::test]
async fn each_kind_is_told_by_its_bytes() {
    let server = Server::start();
    for (name, kind) in [
        ("noop", "nexus:function"),
        ("order-check", "nexus:function"),
        ("hello-http", "wasi:http"),
        ("probe", "wasi:http"),
        ("cli", "wasi:cli"),
        ("cli-p1", "wasi:preview1"),
    ] {
        let (status, first) = put(&server, name, server::component(name)).await;
        assert_eq!((status, &first["kind"], &first["version"]), (201, &json!(kind), &json!(1)), "{name}: {first}");
        assert!(first["digest"].as_str().is_some_and(|d| d.starts_with("sha256:") && d.len() == 7 + 64), "{first}");
        // The same bytes again are the same version.
        assert_eq!(put(&server, name, server::component(name)).await, (200, first), "{name}");
    }
    let list = server.get("/v1/functions").await;
    let names: Vec<_> = list["items"].as_array().expect("items").iter().map(|f| f["name"].clone()).collect();
    assert_eq!(names, ["cli", "cli-p1", "hello-http", "noop", "order-check", "probe"]);
    assert_eq!(list["next"], Value::Null);
}

#[tokio::test]
async fn other_bytes_are_another_version() {
    let server = Server::start();
    let versions = ["noop", "hello-http", "noop"];
    for (at, component) in versions.iter().enumerate() {
        let (status, answer) = put(&server, "f", server::component(component)).await;
        assert_eq!((status, &answer["version"]), (201, &json!(at + 1)), "{answer}");
    }
    let list = server.get("/v1/functions/f/versions").await["items"].clone();
    let of = |key: &str| list.as_array().expect("items").iter().map(|v| v[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("version"), [1, 2, 3]);
    assert_eq!(of("kind"), ["nexus:function", "wasi:http", "nexus:function"]);
    assert_eq!(of("digest")[0], of("digest")[2]);
    assert_ne!(of("digest")[0], of("digest")[1]);
    let function = server.get("/v1/functions/f").await;
    assert_eq!((&function["version"], &function["kind"]), (&json!(3), &json!("nexus:function")));
    assert_eq!(function["created_at"], of("created_at")[2]);
    let keys: Vec<_> = function.as_object().expect("a function").keys().map(String::as_str).collect();
    assert_eq!(keys, ["config", "created_at", "digest", "kind", "name", "stats", "version"]);
}

#[tokio::test]
async fn a_configuration_replaces_the_one_before() {
    let server = Server::start();
    put(&server, "noop", server::component("noop")).await;
    let whole = json!({
        "triggers": [{"filters": [{"exact": {"type": "a"}}, {"not": {"prefix": {"source": "/x"}}}]}, {"filters": []}],
        "env": {"A": "1", "B": ""},
        "limits": {"timeout_ms": 5, "memory_mb": 6, "concurrency": 7},
        "retry": {"attempts_max": 2, "backoff_ms": 3, "backoff_max_ms": 4},
        "egress": ["example.com", "127.0.0.1:*"],
        "mounts": [],
    });
    let (status, answer) = configure(&server, "noop", &whole.to_string()).await;
    assert_eq!((status, &answer["config"]), (200, &whole), "{answer}");
    assert_eq!(server.get("/v1/functions/noop").await["config"], whole);

    // What is not named goes back to its default, and a new version keeps the configuration.
    configure(&server, "noop", r#"{"env": {"C": "2"}}"#).await;
    put(&server, "noop", server::component("order-check")).await;
    let config = server.get("/v1/functions/noop").await["config"].clone();
    assert_eq!(config["env"], json!({"C": "2"}));
    assert_eq!((&config["triggers"], &config["egress"]), (&json!([]), &json!([])));
    assert_eq!(config["limits"], json!({"timeout_ms": 30000, "memory_mb": 128, "concurrency": 100}));
}

#[tokio::test]
async fn what_cannot_be_is_named_and_changes_nothing() {
    let server = Server::start();
    put(&server, "noop", server::component("noop")).await;
    let before = server.get("/v1/functions/noop").await;
    for (config, named) in [
        (r#"{"trigers": []}"#, "trigers"),
        (r#"{"limits": {"timeout": 5}}"#, "timeout"),
        (r#"{"limits": {"timeout_ms": 0}}"#, "limits.timeout_ms"),
        (r#"{"limits": {"memory_mb": 5000}}"#, "limits.memory_mb"),
        (r#"{"limits": {"concurrency": -1}}"#, "-1"),
        (r#"{"retry": {"attempts_max": 0}}"#, "retry.attempts_max"),
        (r#"{"retry": {"backoff_ms": 10, "backoff_max_ms": 5}}"#, "retry.backoff_max_ms"),
        (r#"{"egress": ["http://example.com"]}"#, "egress[0]"),
        (r#"{"env": {"A=B": "x"}}"#, "env.A=B"),
        (r#"{"triggers": [{"filters": [{"exactly": {"type": "a"}}]}]}"#, "exactly"),
        (r#"{"triggers": [{"filters": [{"all": [{"exact": {}}]}]}]}"#, "all[0].exact"),
        (r#"{"triggers": [{"filters": [{"sql": "type == 'a'"}]}]}"#, "sql: at byte 6"),
        (r#"{"triggers": [{"filter": []}]}"#, "filter"),
        ("[]", "not valid"),
        ("{", "not valid"),
    ] {
        let (status, problem) = configure(&server, "noop", config).await;
        assert_eq!(status, 400, "{config}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|d| d.contains(named)), "{config}: {problem}");
    }
    assert_eq!(server.get("/v1/functions/noop").await, before);
    assert_eq!(configure(&server, "none", "{}").await.0, 404);
}

#[tokio::test]
async fn a_deleted_function_is_gone_and_its_events_stay() {
    let server = Server::start();
    server.deploy("noop", "noop", json!({"triggers": [{"filters": []}]})).await;
    server.send(json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"})).await;
    server.settled("1", "done").await;
    let delete = || server.answer(server.request(Method::DELETE, "/v1/functions/noop"));
    assert_eq!(delete().await.0, 204);
    assert_eq!(delete().await.0, 404);
    for path in ["/v1/functions/noop", "/v1/functions/noop/versions", "/fn/noop"] {
        assert_eq!(server.answer(server.request(Method::GET, path)).await.0, 404, "{path}");
    }
    assert_eq!(server.get("/v1/events/1").await["invocations"][0]["function"], "noop");
    // An event from now on goes nowhere, which is no failure.
    server.send(json!({"specversion": "1.0", "id": "2", "source": "/s", "type": "t"})).await;
    assert_eq!(server.settled("2", "done").await["invocations"], json!([]));
}

/// Every `nexus.toml` in the repository says what the server then has.
#[tokio::test]
async fn the_examples_deploy_by_their_folders() {
    let server = Server::start();
    let cli = Cli::of(&server);
    let folders =
        ["examples", "tests/guests"].map(|d| std::fs::read_dir(server::repository().join(d)).expect("a folder"));
    let mut deployed = 0;
    for folder in folders.into_iter().flatten().map(|f| f.expect("an entry").path()) {
        let Ok(manifest) = std::fs::read_to_string(folder.join("nexus.toml")) else { continue };
        let said = cli.text([Path::new("deploy"), &folder]);
        let name = folder.file_name().and_then(|n| n.to_str()).expect("a name").to_owned();
        assert!(said.starts_with(&format!("deployed {name} version 1 (")), "{said}");
        let config = server.get(&format!("/v1/functions/{name}")).await["config"].clone();
        // The two things that every example which has them writes on a line of their own.
        for (key, has) in [("triggers", &config["triggers"]), ("egress", &config["egress"])] {
            let written = manifest.lines().any(|l| l.starts_with(key));
            assert_eq!(has.as_array().is_some_and(|a| !a.is_empty()), written, "{name} {key}: {config}");
        }
        assert!(cli.text([Path::new("deploy"), &folder]).starts_with("unchanged"), "{name}");
        deployed += 1;
    }
    assert!(deployed >= 8, "{deployed} of the repository's functions");
    let order = server.get("/v1/functions/order-check").await["config"].clone();
    assert_eq!(order["triggers"], json!([{"filters": [{"exact": {"type": "order.created"}}]}]));
    assert_eq!((&order["env"]["ORDER_LIMIT_CENTS"], &order["limits"]["timeout_ms"]), (&json!("1000000"), &json!(1000)));
}

#[tokio::test]
async fn flags_of_deploy_change_what_they_name() {
    let server = Server::start();
    let cli = Cli::of(&server);
    let wasm = server::repository().join("tests/guests/noop/noop.wasm");
    let wasm = wasm.to_str().expect("text");
    cli.text(["deploy", wasm, "--name", "n", "--on", "type=a.*,source=/x", "--on", "type=b", "--env", "A=1"]);
    cli.text(["deploy", wasm, "--name", "n", "--env", "B=2=3"]);
    let config = server.get("/v1/functions/n").await["config"].clone();
    assert_eq!(config["env"], json!({"A": "1", "B": "2=3"}));
    let first = json!({"all": [{"prefix": {"type": "a."}}, {"exact": {"source": "/x"}}]});
    assert_eq!(config["triggers"], json!([{"filters": [first]}, {"filters": [{"exact": {"type": "b"}}]}]));
}
