//! Profiles: a function's time on the CPU is found in its own code, under its own names, and nowhere else's.

use std::process::Command;

use nexus_tests::Server;
use nexus_tests::privilege::can_watch_the_kernel;
use nexus_tests::problem::refused;
use nexus_tests::server::Cli;
use reqwest::Method;
use serde_json::{Value, json};

/// Folded stacks: the frames of each, outermost first, and its samples.
fn stacks(folded: &str) -> Vec<(Vec<&str>, u64)> {
    folded
        .lines()
        .map(|line| {
            let (frames, count) = line.rsplit_once(' ').expect("a count");
            (frames.split(';').collect(), count.parse().expect("a number"))
        })
        .collect()
}

async fn text(server: &Server, path: &str) -> String {
    let response = server.request(Method::GET, path).send().await.expect("an answer");
    assert_eq!(response.status(), 200, "{path}");
    response.text().await.expect("text")
}

/// Calls a function that loops until its timeout; its invocation.
async fn looping(server: &Server, name: &str) -> (Value, String) {
    let response = server.request(Method::GET, &format!("/fn/{name}/loop")).send().await.expect("an answer");
    let id = response.headers()["nexus-event-id"].to_str().expect("text").to_owned();
    let event = server.get(&format!("/v1/events/{id}")).await;
    (event["invocations"][0].clone(), event["trace_id"].as_str().expect("a trace").to_owned())
}

#[tokio::test]
async fn a_function_is_seen_in_its_own_code_and_no_other_is() {
    if !can_watch_the_kernel() {
        return;
    }
    let server = Server::start();
    let limits = json!({"limits": {"timeout_ms": 1000}});
    for name in ["burner", "other"] {
        server.deploy(name, "probe", limits.clone()).await;
    }
    let folded = text(&server, "/v1/functions/burner/profile?seconds=5&hz=199&format=folded");
    let both = async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let second = server.request(Method::GET, "/v1/functions/other/profile?seconds=1&format=folded");
        let second = second.send().await.expect("an answer");
        assert_eq!(second.status(), 429, "another is being taken");
        assert!(second.headers().contains_key("retry-after"));
        tokio::join!(looping(&server, "burner"), looping(&server, "other"))
    };
    let (folded, ((burner, _), (other, _))) = tokio::join!(folded, both);
    assert_eq!((&burner["status"], &other["status"]), (&json!("timeout"), &json!("timeout")));
    let stacks = stacks(&folded);
    let all: u64 = stacks.iter().map(|(_, count)| count).sum();
    let own: u64 = stacks.iter().filter(|(frames, _)| frames.contains(&"probe::endless")).map(|(_, count)| count).sum();
    assert!(stacks.iter().all(|(frames, _)| frames[0] == "burner"), "{folded}");
    assert!(own * 10 >= all * 9, "{own} of {all} samples in the function's own loop: {folded}");
    // As many as the clock struck while it was on a CPU: not those of the other, which looped as long.
    let on_cpu = burner["kernel"]["on_cpu_ns"].as_u64().expect("a time");
    let expected = on_cpu * 199 / 1_000_000_000;
    assert!((expected * 7 / 10..=expected * 13 / 10).contains(&all), "{all} samples, {expected} expected");
}

#[tokio::test]
async fn the_formats_are_what_tools_read() {
    if !can_watch_the_kernel() {
        return;
    }
    let server = Server::start();
    server.deploy("burner", "probe", json!({"limits": {"timeout_ms": 700}})).await;
    let taken = server.request(Method::GET, "/v1/functions/burner/profile?seconds=2").send();
    let called = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        looping(&server, "burner").await
    };
    let (taken, (_, trace)) = tokio::join!(taken, called);
    let pprof = taken.expect("an answer").bytes().await.expect("a profile");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("profile.pb.gz");
    std::fs::write(&file, &pprof).expect("a file");
    let whole = Command::new("gzip").arg("-dc").arg(&file).output().expect("gzip");
    assert!(whole.status.success(), "{whole:?}");
    // The table of texts holds names, units, and the trace that the samples belong to.
    let has = |text: &str| whole.stdout.windows(text.len()).any(|w| w == text.as_bytes());
    for text in ["probe::endless", "nanoseconds", "trace_id", "burner (WebAssembly)", &trace] {
        assert!(has(text), "no {text:?}");
    }

    let cli = Cli::of(&server);
    let svg = folder.path().join("burner.svg");
    let drawn = cli.run(["profile", "burner", "--seconds", "1", "-o", svg.to_str().expect("text")]);
    // Nobody called it in that second.
    assert_eq!(drawn.status.code(), Some(3), "{drawn:?}");
    let error = String::from_utf8_lossy(&drawn.stderr).into_owned();
    assert!(error.contains("never on a CPU"), "{error}");
    let mut command = cli.command(["profile", "burner", "--seconds", "2", "-o", svg.to_str().expect("text")]);
    let drawing = tokio::task::spawn_blocking(move || command.output());
    let called = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        looping(&server, "burner").await
    };
    let (drawn, _) = tokio::join!(drawing, called);
    let drawn = drawn.expect("a thread").expect("the program");
    assert!(drawn.status.success(), "{drawn:?}");
    let svg = std::fs::read_to_string(&svg).expect("a flame graph");
    assert!(svg.contains("<svg") && svg.contains("probe::endless"), "{svg}");
}

#[tokio::test]
async fn what_cannot_be_profiled_says_why() {
    let server = Server::builder().arg("--kernel").arg("off").start();
    server.deploy("noop", "noop", json!({})).await;
    let get = |path: &str| server.request(Method::GET, path);
    refused("no probes", get("/v1/functions/noop/profile?seconds=1"), 409, "switched off").await;
    refused("no function", get("/v1/functions/none/profile"), 404, "none").await;
    let rows = [
        ("seconds=0", "seconds"),
        ("seconds=301", "301"),
        ("hz=0", "hz"),
        ("hz=1001", "1001"),
        ("seconds=x", "seconds"),
        ("format=pdf", "pdf"),
        ("second=1", "second"),
    ];
    for (query, names) in rows {
        refused(query, get(&format!("/v1/functions/noop/profile?{query}")), 400, names).await;
    }
}
