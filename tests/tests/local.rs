//! Commands that work without a server, or are one: `new`, `doctor`, `observe`, `dev`.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Output, Stdio};

use nexus_tests::{Cli, Server, privilege, server, until};
use serde_json::{Value, json};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Commands of somebody who has no server.
fn alone() -> Cli {
    Cli::at("http://127.0.0.1:1")
}

fn files(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(dir).expect("below").to_str().expect("text").to_owned());
            }
        }
    }
    found
}

#[test]
fn a_new_function_is_a_folder_of_its_own() {
    let dir = tempfile::tempdir().expect("a folder");
    let base = dir.path().to_str().expect("text");
    let both = [".gitignore", "Cargo.toml", "README.md", "nexus.toml", "src/lib.rs"];
    let check = |template: &str, name: &str, more: &[&str]| {
        let said = alone().text(["new", template, name, "--dir", base]);
        assert!(said.contains(&format!("nexus build {base}/{name}")), "{said}");
        let made = dir.path().join(name);
        let expected: BTreeSet<_> = both.iter().chain(more).map(|f| (*f).to_owned()).collect();
        assert_eq!(files(&made), expected);
        for file in files(&made) {
            let text = std::fs::read_to_string(made.join(&file)).expect("text");
            assert!(!text.contains("{{name"), "{file} has a place that was not filled: {text}");
        }
        let manifest = std::fs::read_to_string(made.join("nexus.toml")).expect("text");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{manifest}");
    };
    check("rust", "my-function", &["wit/nexus-function.wit"]);
    check("rust-http", "my-http", &[]);

    // What is there is never written over.
    let kept = dir.path().join("my-function/src/lib.rs");
    std::fs::write(&kept, "mine").expect("write");
    for (args, code, named) in [
        (["new", "rust-http", "my-function", "--dir", base], 1, "exists already"),
        (["new", "rust", "My_Function", "--dir", base], 2, "function name"),
        (["new", "cobol", "x", "--dir", base], 2, "rust-http"),
    ] {
        let output = alone().run(args);
        let error = text(&output.stderr);
        assert_eq!((output.status.code(), error.lines().count()), (Some(code), 1), "{error}");
        assert!(error.contains(named), "{error}");
    }
    assert_eq!(std::fs::read_to_string(kept).expect("text"), "mine");
}

/// The template's WIT is the one that the program speaks.
#[test]
fn a_templates_world_is_ours() {
    let read = |path: &str| std::fs::read_to_string(server::repository().join(path)).expect(path);
    assert_eq!(read("nexus-runtime/templates/rust/wit/nexus-function.wit"), read("wit/nexus-function.wit"));
}

#[tokio::test]
async fn doctor_says_what_works() {
    let server = Server::start();
    let found = Cli::of(&server).json(["doctor"]);
    let items = found["items"].as_array().expect("items");
    let of = |name: &str| items.iter().find(|i| i["name"] == name).unwrap_or_else(|| panic!("no {name}: {found:#}"));
    for item in items {
        assert!(item["ok"].is_boolean() && item["says"].as_str().is_some_and(|s| !s.is_empty()), "{item}");
    }
    assert_eq!(found["ok"], items.iter().all(|i| i["ok"] == true));
    assert_eq!(
        (&of("server")["ok"], &of("server")["says"]),
        (&json!(true), &json!(format!("ready at {}", server.url())))
    );
    for name in ["kernel version", "BTF of the kernel", "disk space", "open files"] {
        assert!(of(name)["ok"].is_boolean());
    }
    // The one that is named, or else one that cannot be there.
    let nats = |program: &str| {
        let found = Cli::of(&server).json(["doctor", "--nats-server", program]);
        let items = found["items"].as_array().expect("items").clone();
        items.into_iter().find(|i| i["name"] == "nats-server").expect("nats-server")
    };
    let missing = nats("/nowhere/nats-server");
    assert!(missing["ok"] == false && missing["says"].as_str().expect("text").contains("install"), "{missing}");
    if let Ok(program) = std::env::var("NEXUS_NATS_SERVER") {
        let found = nats(&program);
        assert!(found["ok"] == true && found["says"].as_str().expect("text").contains("version 2."), "{found}");
    }
    let capabilities =
        items.iter().find(|i| i["name"].as_str().is_some_and(|n| n.contains("CAP_BPF"))).expect("the privilege");
    assert_eq!(capabilities["ok"], privilege::can_watch_the_kernel());

    // In text there is a line for each. A server that is not there is a finding, not a failure.
    let said = alone().text(["doctor"]);
    for item in items {
        let name = item["name"].as_str().expect("a name");
        let lines = said.lines().filter(|line| line.get(9..).is_some_and(|line| line.starts_with(name)));
        assert_eq!(lines.count(), 1, "{name}: {said}");
    }
    let line = said.lines().find(|l| l.contains("no server at")).expect("a finding");
    assert!(line.starts_with("missing"), "{line}");
}

#[test]
fn observe_counts_what_a_command_and_its_children_do() {
    if !privilege::can_watch_the_kernel() {
        return;
    }
    let observe = |args: &[&str]| -> (Output, Value) {
        let output = alone().run([&["observe", "--output", "json", "--"], args].concat());
        let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output, json)
    };
    let check = |args: &[&str], code: i32| {
        let (output, observed) = observe(args);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        assert_eq!((&observed["command"], &observed["exit_code"]), (&json!(args), &json!(code)), "{observed}");
        assert!(observed["duration_ns"].as_u64().is_some_and(|n| n > 0), "{observed}");
        let kernel = observed["kernel"].clone();
        assert!(["counts", "full"].contains(&kernel["mode"].as_str().expect("a mode")), "{kernel}");
        assert_eq!((&kernel["complete"], &kernel["lost"]), (&json!(true), &json!(0)), "{kernel}");
        for (name, call) in kernel["syscalls"].as_object().expect("calls") {
            for number in ["count", "errors", "total_ns", "max_ns"] {
                assert!(call[number].is_u64(), "{name} {number}: {call}");
            }
        }
        kernel
    };
    let count = |kernel: &Value, name: &str| kernel["syscalls"][name]["count"].as_u64().unwrap_or(0);
    assert_eq!(count(&check(&["true"], 0), "execve"), 1);
    check(&["sh", "-c", "exit 7"], 7);
    // Each child is one execve and one wait more.
    let kernel = check(&["sh", "-c", "/bin/true; /bin/true; /bin/false; exit 3"], 3);
    assert_eq!(count(&kernel, "execve"), 4, "{kernel:#}");
    assert!(count(&kernel, "wait4") >= 3, "{kernel:#}");
    let kernel = check(&["cat", "/no/such/file"], 1);
    assert!(kernel["syscalls"]["openat"]["errors"].as_u64().is_some_and(|n| n >= 1), "{kernel:#}");

    // The command's own output comes first; a signal and a missing command have a shell's codes.
    let said = alone().text(["observe", "--", "echo", "hello"]);
    assert!(said.starts_with("hello\n") && said.contains("write"), "{said}");
    let said = alone().text(["observe", "--output", "json", "--", "printf", "no end of line"]);
    let last = said.lines().last().unwrap_or_default();
    assert_eq!(serde_json::from_str::<Value>(last).expect(&said)["exit_code"], 0);
    assert_eq!(observe(&["sh", "-c", "kill -9 $$"]).0.status.code(), Some(128 + 9));
    let missing = observe(&["/no/such/command"]).0;
    assert_eq!((missing.status.code(), text(&missing.stderr).lines().count()), (Some(127), 1));
}

/// A folder with a copy of order-check, as somebody who develops it has it.
fn project() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let function = dir.path().join("order-check");
    std::fs::create_dir(&function).expect("a folder");
    for file in ["order-check.wasm", "nexus.toml"] {
        std::fs::copy(server::repository().join("examples/order-check").join(file), function.join(file)).expect("copy");
    }
    dir
}

#[tokio::test]
async fn dev_deploys_what_is_there_and_what_changes() {
    let dir = project();
    let function = dir.path().join("order-check");
    let server = Server::builder().dev(dir.path()).start();
    let get = async |name: &str, test: fn(&Value) -> bool| {
        until(name, async || {
            let list = server.get("/v1/functions").await["items"].clone();
            list.as_array().expect("items").iter().find(|f| f["name"] == name && test(f)).cloned()
        })
        .await
    };
    let first = get("order-check", |f| !f["config"]["triggers"].as_array().expect("triggers").is_empty()).await;
    assert_eq!((&first["version"], &first["kind"]), (&json!(1), &json!("nexus:function")));

    std::fs::write(function.join("order-check.wasm"), server::component("hello-http")).expect("write");
    let second = get("order-check", |f| f["version"] == 2).await;
    assert_eq!(second["kind"], "wasi:http");
    let response = server.request(reqwest::Method::GET, "/fn/order-check").send().await.expect("an answer");
    assert_eq!(response.text().await.expect("text"), "hello");

    let manifest = std::fs::read_to_string(function.join("nexus.toml")).expect("text");
    std::fs::write(function.join("nexus.toml"), manifest.replace("timeout_ms = 1000", "timeout_ms = 1234"))
        .expect("write");
    let third = get("order-check", |f| f["config"]["limits"]["timeout_ms"] == 1234).await;
    assert_eq!(third["version"], 2, "another configuration is no other version");

    // What cannot be deployed is said, and what is there stays; a new function comes all the same.
    std::fs::write(function.join("order-check.wasm"), "no component").expect("write");
    let another = dir.path().join("another");
    std::fs::create_dir(&another).expect("a folder");
    std::fs::write(another.join("another.wasm"), server::component("noop")).expect("write");
    std::fs::write(another.join("nexus.toml"), "name = \"another\"\n").expect("write");
    get("another", |f| f["version"] == 1).await;
    until("the error", async || server.log().contains("order-check/nexus.toml").then_some(())).await;
    assert_eq!(get("order-check", |_| true).await["version"], 2);
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test]
async fn events_are_followed_as_they_come() {
    let server = Server::start();
    server.send(json!({"specversion": "1.0", "id": "before", "source": "/s", "type": "t"})).await;
    let mut command = Cli::of(&server).command(["--output", "json", "events", "tail", "--type", "t"]);
    let mut tail = command.stdout(Stdio::piped()).spawn().expect("the program runs");
    let stdout = tail.stdout.take().expect("piped");
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|l| sender.send(l)));
    // It follows from when it first asked, which nobody sees: events are sent until one is told of.
    let mut n = 0;
    let first: Value = until("an event", async || {
        n += 1;
        for ty in ["other", "t"] {
            server.send(json!({"specversion": "1.0", "id": format!("{ty}-{n}"), "source": "/s", "type": ty})).await;
        }
        lines.try_recv().ok().map(|line| serde_json::from_str(&line).expect("JSON"))
    })
    .await;
    tail.kill().expect("it is killed");
    tail.wait().expect("it ends");
    let id = first["event"]["id"].as_str().expect("an id");
    assert!(id.starts_with("t-"), "{id}");
    // Nothing was left out from then on.
    let number = |id: &str| id.trim_start_matches("t-").parse::<u64>().expect("a number");
    let rest: Vec<_> = lines.iter().map(|l| serde_json::from_str::<Value>(&l).expect("JSON")).collect();
    let ids: Vec<_> = rest.iter().map(|e| number(e["event"]["id"].as_str().expect("an id"))).collect();
    assert_eq!(ids, (number(id) + 1..).take(ids.len()).collect::<Vec<_>>());
}
