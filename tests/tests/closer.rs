//! A closer look at a replay: profiles, core dumps and a debugger, at no cost to the server that ran it.

use std::process::Command;

use nexus_tests::{Cli, Server};
use reqwest::Method;
use serde_json::{Value, json};

/// A server with the guest `script`, and an event that did these steps.
async fn server(steps: Value) -> Server {
    let server = Server::start();
    let config = json!({"triggers": [{"filters": [{"exact": {"type": "t"}}]}], "retry": {"attempts_max": 1}});
    server.deploy("f", "script", config).await;
    server.send(json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": steps})).await;
    let ended = if steps.to_string().contains("trap") { "dead" } else { "done" };
    server.settled("1", ended).await;
    server
}

#[tokio::test]
async fn where_a_function_is_on_a_cpu_is_seen_in_a_replay() {
    let many: Vec<_> = (0..200).map(|_| json!({"do": "random", "n": 20_000})).collect();
    let server = server(json!(many)).await;
    let folder = tempfile::tempdir().expect("a folder");
    let cli = Cli::of(&server);
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (folded, svg) = (file("p.folded"), file("p.svg"));
    let said = cli.text(["replay", "1", "--profile", &folded, "--profile-seconds", "1"]);
    assert!(said.contains("1 identical"), "{said}");
    let folded = std::fs::read_to_string(folded).expect("a profile");
    let seen = |name: &str| folded.lines().filter(|line| line.contains(name)).count();
    assert!(seen("incoming-handler") > 0 && seen("script::") > 0, "{folded}");
    for line in folded.lines() {
        let count = line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok());
        assert!(count.is_some_and(|count| count > 0) && !line.starts_with(' '), "{line:?}");
    }
    cli.text(["replay", "1", "--profile", &svg, "--profile-seconds", "1"]);
    let svg = std::fs::read_to_string(svg).expect("a flame graph");
    assert!(svg.contains("<svg") && svg.contains("samples in"), "{svg:.300}");
    // The server knows nothing of it.
    let event = server.get("/v1/events/1").await;
    assert_eq!(event["invocations"].as_array().map(Vec::len), Some(1));
}

/// The functions on the stacks of a core dump (WebAssembly/tool-conventions, Coredump.md), innermost first, and the bytes of
/// its memories.
fn read_core_dump(bytes: &[u8]) -> (usize, usize) {
    let (mut frames, mut memory) = (0, 0);
    for payload in wasmparser::Parser::new(0).parse_all(bytes) {
        match payload.expect("a module") {
            wasmparser::Payload::CustomSection(section) => {
                if let wasmparser::KnownCustom::CoreDumpStack(stack) = section.as_known() {
                    frames += stack.frames.len();
                }
            }
            wasmparser::Payload::DataSection(section) => {
                memory += section.into_iter().map(|data| data.expect("a segment").data.len()).sum::<usize>();
            }
            _ => {}
        }
    }
    (frames, memory)
}

#[tokio::test]
async fn what_a_function_was_like_when_it_trapped_is_kept() {
    let text = "what it had in its memory by then";
    let server = server(json!([{"do": "print", "text": text}, {"do": "wall"}, {"do": "trap"}])).await;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("core.wasm");
    let file = path.display().to_string();
    let said = Cli::of(&server).text(["replay", "1", "--core-dump", &file]);
    assert!(said.contains("1 identical"), "it traps again: {said}");
    let dump = std::fs::read(&path).expect("a core dump");
    let (frames, memory) = read_core_dump(&dump);
    assert!(frames >= 2 && memory > 10_000, "{frames} frames, {memory} bytes");
    assert!(dump.windows(text.len()).any(|bytes| bytes == text.as_bytes()), "its memory is in it");

    // Of what does not trap there is none, and it says so.
    server.send(json!({"specversion": "1.0", "id": "2", "source": "/s", "type": "t", "data": [{"do": "wall"}]})).await;
    server.settled("2", "done").await;
    std::fs::remove_file(&path).expect("it was written");
    let none = Cli::of(&server).run(["replay", "2", "--core-dump", &file]);
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(none.status.success() && said.contains("it did not trap") && !path.exists(), "{said}");
    for wrong in [["2", "--mode", "live"], ["--type", "t", "--yes"]] {
        let wrong = Cli::of(&server).run([&["replay", "--core-dump", &file], &wrong[..]].concat());
        assert_eq!(wrong.status.code(), Some(2), "{}", String::from_utf8_lossy(&wrong.stderr));
    }
}

/// gdb stops a replay in a function's own source, by the lines that its component has, and lets it go on.
#[tokio::test]
async fn a_replay_can_be_debugged() {
    let server = Server::start();
    server.deploy("f", "probe", json!({})).await;
    let response = server.request(Method::GET, "/fn/f/log?n=3").send().await.expect("an answer");
    let id = response.headers()["nexus-event-id"].to_str().expect("text").to_owned();
    server.settled(&id, "done").await;
    let source = include_str!("../guests/probe/src/http.rs");
    let line = source.lines().position(|line| line.contains("ResponseOutparam::set(out, Ok(response));")).expect("it");
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex", "set breakpoint pending on", "-ex", "set debuginfod enabled off"]);
    gdb.args(["-ex", &format!("break src/http.rs:{}", line + 1), "-ex", "run", "-ex", "backtrace 4"]);
    gdb.args(["-ex", "continue", "--args"]).arg(nexus_tests::server::program());
    gdb.args(["--url", server.url(), "replay", &id, "--debug"]);
    let output = tokio::task::spawn_blocking(move || gdb.output()).await.expect("no panic").expect("gdb");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let whole = || format!("{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(&format!("at src/http.rs:{}", line + 1)), "{}", whole());
    // Who called it, in another file.
    assert!(said.contains("at src/lib.rs:"), "{}", whole());
    assert!(said.contains("1 identical"), "and it goes on: {}", whole());
}

/// Whoever asks for a debugger is waited for.
#[tokio::test]
async fn without_a_debugger_nothing_runs() {
    let server = server(json!([{"do": "wall"}])).await;
    let mut waiting = Command::new(nexus_tests::server::program())
        .args(["--url", server.url(), "replay", "1", "--debug"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stderr = std::io::BufReader::new(waiting.stderr.take().expect("piped"));
    let mut said = String::new();
    while !said.contains("gdb -p") {
        assert!(std::io::BufRead::read_line(&mut stderr, &mut said).is_ok_and(|n| n > 0), "{said}");
    }
    assert!(said.contains(&format!("gdb -p {}", waiting.id())), "{said}");
    assert!(waiting.try_wait().expect("a child").is_none(), "it waits");
    waiting.kill().expect("a child");
    waiting.wait().expect("a child");
}
