//! The command line: what it prints, what it prints for programs, and its exit codes.

use std::collections::BTreeSet;

use nexus_tests::receiver::Receiver;
use nexus_tests::redact::redact;
use nexus_tests::{Cli, Server, server};
use reqwest::StatusCode;
use serde_json::{Value, json};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(inside: &str) -> String {
    server::repository().join(inside).to_str().expect("text").to_owned()
}

/// A server with the shop's two functions, whose messages go to the receiver.
async fn shop() -> (Server, Receiver, Cli) {
    // Without the kernel, whose numbers differ from machine to machine.
    let server = Server::builder().arg("--kernel").arg("off").start();
    let receiver = Receiver::answering(StatusCode::OK).await;
    let cli = Cli::of(&server);
    (server, receiver, cli)
}

/// Waits until the order and all that it caused are done.
async fn settled(server: &Server, id: &str) {
    let mut id = id.to_owned();
    loop {
        let event = server.settled(&id, "done").await;
        let invocations = event["invocations"].as_array().expect("invocations");
        match invocations.last().and_then(|i| i["emitted"][0].as_str()) {
            Some(next) => id = next.to_owned(),
            None => return,
        }
    }
}

/// The whole story of an order, as a person would see it.
#[tokio::test]
async fn a_story_in_text() {
    let (server, receiver, cli) = shop().await;
    let mut story = String::new();
    let mut tell = |args: &[&str]| {
        let output = cli.run(args);
        let code = output.status.code().expect("a code");
        let code = if code == 0 { String::new() } else { format!("[exit code {code}]\n") };
        let shown: Vec<_> = args.iter().map(|a| a.replace(&path(""), "")).collect();
        story.push_str(&format!(
            "$ nexus {}\n{}{}\n{code}\n",
            shown.join(" "),
            text(&output.stdout),
            text(&output.stderr)
        ));
    };
    tell(&["functions"]);
    tell(&["events"]);
    tell(&["deploy", &path("examples/order-check")]);
    tell(&["deploy", &path("examples/webhook-forward"), "--env", &format!("FORWARD_URL={}", receiver.url("/message"))]);
    tell(&["deploy", &path("examples/order-check")]);
    tell(&["functions"]);
    tell(&["functions", "get", "order-check"]);
    tell(&["functions", "versions", "order-check"]);
    let order = path("examples/order-check/order.json");
    let send = ["send", "--type", "order.created", "--id", "order-1", "--subject", "o-1001", "--file", &order];
    tell(&send);
    settled(&server, "order-1").await;
    tell(&send);
    tell(&["events"]);
    tell(&["events", "--type", "order.created"]);
    tell(&["events", "get", "order-1"]);
    tell(&["trace", "order-1"]);
    tell(&["logs", "--event", "order-1"]);
    tell(&["replay", "order-1", "--mode", "live"]);
    tell(&["replay", "order-1", "--mode", "live", "--data", r#"{"order_id":"o-2","customer":"ada","items":[]}"#]);
    tell(&["replay", "order-1", "--mode", "live", "--data", "1"]);
    tell(&["replay", "order-1"]);
    tell(&["invoke", "order-check", "--file", &order]);
    tell(&["invoke", "order-check", "--data", "{}"]);
    tell(&["invoke", "none"]);
    tell(&["events", "get", "none"]);
    tell(&["functions", "delete", "order-check"]);
    tell(&["functions", "get", "order-check"]);
    insta::with_settings!({snapshot_path => "../snapshots", omit_expression => true}, {
        insta::assert_snapshot!("story", redact(&story));
    });
}

/// A failed event has more to tell.
#[tokio::test]
async fn a_failure_in_text() {
    let (server, _receiver, cli) = shop().await;
    let config = json!({"triggers": [{"filters": []}], "retry": {"attempts_max": 2, "backoff_ms": 1}});
    server.deploy("probe", "probe", config).await;
    let data = r#"{"log": ["before it happens"], "trap": true}"#;
    cli.text(["send", "--type", "t", "--id", "bad-1", "--data", data]);
    server.settled("bad-1", "dead").await;
    let story = [vec!["events", "--status", "dead"], vec!["events", "get", "bad-1"], vec!["trace", "bad-1"]]
        .map(|args| format!("$ nexus {}\n{}", args.join(" "), cli.text(&args)))
        .join("\n");
    insta::with_settings!({snapshot_path => "../snapshots", omit_expression => true}, {
        insta::assert_snapshot!("failure", redact(&story));
    });
}

#[tokio::test]
async fn output_for_programs_has_the_contracts_members() {
    let (server, receiver, cli) = shop().await;
    let check = |value: &Value, members: &[&str]| {
        let have: BTreeSet<_> =
            value.as_object().unwrap_or_else(|| panic!("{value}")).keys().map(String::as_str).collect();
        let missing: Vec<_> = members.iter().filter(|m| !have.contains(*m)).collect();
        assert!(missing.is_empty(), "{missing:?} are not in {value:#}");
    };
    let function = ["name", "version", "digest", "kind", "config", "created_at", "stats"];
    check(&cli.json(["deploy", &path("examples/order-check")]), &["name", "version", "digest", "kind"]);
    let url = format!("FORWARD_URL={}", receiver.url("/"));
    cli.json(["deploy", &path("examples/webhook-forward"), "--env", &url]);
    let functions = cli.json(["functions"]);
    check(&functions, &["items", "next"]);
    check(&functions["items"][0], &function);
    check(&cli.json(["functions", "get", "order-check"]), &function);
    check(
        &cli.json(["functions", "versions", "order-check"])["items"][0],
        &["version", "digest", "kind", "created_at"],
    );
    let order = path("examples/order-check/order.json");
    let sent = cli.json(["send", "--type", "order.created", "--id", "1", "--file", &order]);
    check(&sent["events"][0], &["id", "source", "seq", "trace_id", "duplicate"]);
    settled(&server, "1").await;
    let event = ["event", "seq", "received_at", "trace_id", "status", "invocations"];
    let events = cli.json(["events"]);
    check(&events, &["items", "next"]);
    check(&events["items"][0], &event);
    let got = cli.json(["events", "get", "1"]);
    check(&got, &event);
    check(&got["event"], &["specversion", "id", "source", "type", "datacontenttype", "data"]);
    let invocation = [
        "invocation_id",
        "function",
        "version",
        "attempt",
        "trigger",
        "status",
        "started_at",
        "duration_ns",
        "cold_start",
        "emitted",
        "output",
        "kernel",
    ];
    check(&got["invocations"][0], &invocation);
    let id = got["invocations"][0]["invocation_id"].as_str().expect("an id");
    for id in ["1", id, got["trace_id"].as_str().expect("a trace")] {
        check(&cli.json(["trace", id]), &["resourceSpans"]);
    }
    let replay = cli.json(["replay", "1", "--mode", "live"]);
    check(&replay, &["status", "total", "done", "identical", "diverged", "failed", "results"]);
    check(&replay["results"][0], &["event_id", "verdict", "divergence", "diff"]);
    check(&cli.json(["invoke", "order-check", "--file", &order]), &["status", "event_id", "trace_id", "body"]);
    let lines = cli.text(["logs", "--event", "1", "--output", "json"]);
    for line in lines.lines() {
        let members = ["time", "trace_id", "event_id", "invocation_id", "function", "stream", "line"];
        check(&serde_json::from_str(line).expect("JSON"), &members);
    }
    assert_eq!(lines.lines().count(), 2, "of the event and of its replay");
}

/// A payload comes out of the command line as it went in.
#[tokio::test]
async fn output_for_programs_keeps_payloads() {
    let (_server, _receiver, cli) = shop().await;
    let data = r#"{"z":123456789012345678901234567890,"a":1.10}"#;
    cli.text(["send", "--id", "1", "--data", data]);
    for args in [vec!["events", "get", "1"], vec!["events"]] {
        let printed = cli.text([vec!["--output", "json"], args].concat());
        let squeezed: String = printed.chars().filter(|c| !c.is_whitespace()).collect();
        assert!(squeezed.contains(data), "{printed}");
        assert!(printed.lines().count() > 5, "it is for people's eyes too: {printed}");
    }
}

#[tokio::test]
async fn an_error_is_one_line_and_a_code() {
    let (server, _receiver, cli) = shop().await;
    server.deploy("probe", "probe", json!({})).await;
    let check = |cli: &Cli, args: &[&str], code: i32, named: &str| {
        let output = cli.run(args);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
        assert!(error.starts_with("nexus: ") && error.contains(named), "{args:?}: {error}");
        assert_eq!(text(&output.stdout), "", "{args:?}");
    };
    check(&cli, &["invoke", "probe", "--path", "/trap"], 1, "unreachable");
    check(&cli, &["replay", "x"], 3, "there is no event x");
    check(&cli, &["deploy", &path("README.md"), "--name", "x"], 1, "WebAssembly");
    check(&cli, &["no-such-command"], 2, "no-such-command");
    check(&cli, &["replay"], 2, "<ID>");
    check(&cli, &["replay", "1", "--mode", "quick"], 2, "quick");
    check(&cli, &["logs"], 2, "--event");
    check(&cli, &["send", "--data", "{"], 2, "--data is not JSON");
    check(&cli, &["send", "--source", "not a uri"], 2, "source");
    check(&cli, &["deploy", "x.wasm", "--on", "type"], 2, "attribute=value");
    check(&cli, &["invoke", "probe", "--path", "x"], 2, "--path");
    check(&cli, &["events", "--limit", "0"], 1, "limit");
    check(&cli, &["events", "get", "none"], 3, "no event none");
    check(&cli, &["functions", "get", "none"], 3, "no function none");
    check(&cli, &["functions", "delete", "none"], 3, "none");
    check(&cli, &["trace", "none"], 3, "none");
    check(&cli, &["logs", "--event", "none"], 3, "none");
    check(&cli, &["invoke", "none"], 3, "none");
    check(&cli, &["deploy", "none.wasm"], 3, "none.wasm");
    check(&cli, &["deploy", &path("docs")], 3, "nexus.toml");
    // Held by this test, so that nobody listens there.
    let vacant = nexus_tests::receiver::Vacant::new();
    let nobody = Cli::at(&format!("http://{}", vacant.address));
    for args in
        [vec!["functions"], vec!["send"], vec!["events", "get", "1"], vec!["invoke", "probe"], vec!["logs", "--follow"]]
    {
        check(&nobody, &args, 5, "no server at");
    }
    // A call that is answered is an answer, whatever it says; the code tells.
    let output = cli.run(["invoke", "probe", "--path", "/status/418"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), "status 418"));
}

/// `nexus … | head` ends quietly when nobody reads on.
#[tokio::test]
async fn a_reader_that_goes_away_is_no_error() {
    let (_server, _receiver, cli) = shop().await;
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = cli.run_to(["functions"], writer.into());
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("it is there on Linux");
    let output = cli.run_to(["functions"], full.into());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("standard output"), "{}", text(&output.stderr));
}
