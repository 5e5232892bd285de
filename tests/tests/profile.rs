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

fn unpacked(gzip: &[u8]) -> Vec<u8> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    std::io::Write::write_all(&mut file, gzip).expect("room");
    let whole = Command::new("gzip").arg("-dc").stdin(file.reopen().expect("a file")).output().expect("gzip");
    assert!(whole.status.success(), "{whole:?}");
    whole.stdout
}

/// As much of pprof's format as tells in which lines a function is.
mod pprof {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Profile {
        #[prost(message, repeated, tag = "4")]
        pub location: Vec<Location>,
        #[prost(message, repeated, tag = "5")]
        pub function: Vec<Function>,
        #[prost(string, repeated, tag = "6")]
        pub string_table: Vec<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Location {
        #[prost(message, repeated, tag = "4")]
        pub line: Vec<Line>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Line {
        #[prost(uint64, tag = "1")]
        pub function_id: u64,
        #[prost(int64, tag = "2")]
        pub line: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Function {
        #[prost(uint64, tag = "1")]
        pub id: u64,
        #[prost(int64, tag = "2")]
        pub name: i64,
        #[prost(int64, tag = "4")]
        pub filename: i64,
    }
}

/// The files and lines in which a profile saw a function.
fn lines_of(gzip: &[u8], function: &str) -> Vec<(String, u64)> {
    let profile = <pprof::Profile as prost::Message>::decode(&unpacked(gzip)[..]).expect("a profile");
    let text = |at: i64| &profile.string_table[usize::try_from(at).expect("a place")];
    let file = |id: u64| {
        let found = profile.function.iter().find(|f| f.id == id && text(f.name) == function)?;
        Some(text(found.filename).clone())
    };
    let lines = profile.location.iter().flat_map(|location| &location.line);
    lines.filter_map(|line| Some((file(line.function_id)?, line.line as u64))).collect()
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
    let pprof = unpacked(&taken.expect("an answer").bytes().await.expect("a profile"));
    let folder = tempfile::tempdir().expect("a folder");
    // The table of texts holds names, units, and the trace that the samples belong to.
    let has = |text: &str| pprof.windows(text.len()).any(|w| w == text.as_bytes());
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
        ("kind=heap", "heap"),
        ("kind=off_cpu&min_us=0", "min_us"),
        ("second=1", "second"),
    ];
    for (query, names) in rows {
        refused(query, get(&format!("/v1/functions/noop/profile?{query}")), 400, names).await;
    }
}

#[tokio::test]
async fn where_a_function_is_blocked_is_seen_with_its_time() {
    if !can_watch_the_kernel() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let fifo = folder.path().join("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
    let server = Server::builder().arg("--allow-mount").arg(folder.path().to_str().expect("text")).start();
    server.deploy("files", "probe", json!({"mounts": [{"host": folder.path(), "guest": "/data"}]})).await;
    let folded = text(&server, "/v1/functions/files/profile?kind=off_cpu&seconds=3&min_us=100000&format=folded");
    let called = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        // One that waits for less than what is asked for.
        server.request(Method::GET, "/fn/files/sleep?ms=1").send().await.expect("an answer");
        let opened = async {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            drop(std::fs::OpenOptions::new().write(true).open(&fifo).expect("a reader"));
        };
        let path = "/fn/files/read?path=%2Fdata%2Ffifo";
        let (response, ()) = tokio::join!(server.request(Method::GET, path).send(), opened);
        let id = response.expect("an answer").headers()["nexus-event-id"].to_str().expect("text").to_owned();
        server.get(&format!("/v1/events/{id}")).await["invocations"][0].clone()
    };
    let (folded, invocation) = tokio::join!(folded, called);
    let blocked = invocation["kernel"]["syscalls"]["openat2"]["off_cpu_ns"].as_u64().expect("a time") / 1000;
    let stacks = stacks(&folded);
    let [(frames, microseconds)] = &stacks[..] else { panic!("one wait of 100 ms or longer: {folded}") };
    assert_eq!(frames.last(), Some(&"openat2 [blocked]"), "{folded}");
    assert!(frames.iter().any(|frame| frame.contains("probe")), "its own code: {folded}");
    // That call waited once.
    assert_eq!(*microseconds, blocked, "{folded}");
}

#[tokio::test]
async fn where_a_function_touches_new_memory_is_seen_page_by_page() {
    if !can_watch_the_kernel() {
        return;
    }
    let server = Server::start();
    server.deploy("large", "probe", json!({"limits": {"memory_mb": 256}})).await;
    let taken = server.request(Method::GET, "/v1/functions/large/profile?kind=memory&seconds=2&format=folded").send();
    let called = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        // In several calls, each of which leaves fewer samples than the ring has room for between two looks at it.
        for _ in 0..8 {
            server.request(Method::GET, "/fn/large/alloc?mb=4").send().await.expect("an answer");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let (taken, ()) = tokio::join!(taken, called);
    let folded = taken.expect("an answer").text().await.expect("text");
    let stacks = stacks(&folded);
    let own: u64 = stacks.iter().filter(|(frames, _)| frames.iter().any(|f| f.contains("alloc"))).map(|(_, n)| n).sum();
    let pages = (4 << 20) / rustix::param::page_size() as u64;
    // Of what a place in the pool keeps, nothing is touched anew.
    assert!(own >= pages, "{own} of {pages} pages or more: {folded}");
}

#[tokio::test]
async fn a_function_that_was_built_with_lines_is_seen_in_its_lines() {
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
    let (taken, _) = tokio::join!(taken, called);
    let pprof = taken.expect("an answer").bytes().await.expect("a profile");
    let lines = lines_of(&pprof, "probe::endless");
    let source = include_str!("../guests/probe/src/lib.rs");
    let begins = source.lines().position(|line| line.starts_with("fn endless(")).expect("the loop") as u64 + 1;
    // What the compiler put in, as the look at the clock in each turn, is of no line.
    let known: Vec<_> = lines.iter().filter(|(_, line)| *line != 0).collect();
    let own = known.iter().all(|(file, line)| file.ends_with("src/lib.rs") && (begins..begins + 5).contains(line));
    assert!(own && !known.is_empty(), "{lines:?}, the function begins in line {begins}");
}
