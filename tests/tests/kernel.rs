//! The kernel's account of an invocation, against numbers that are known beforehand: what the function was told to do.

use std::collections::BTreeMap;

use nexus_tests::gate::Gate;
use nexus_tests::privilege::can_watch_the_kernel;
use nexus_tests::receiver::Receiver;
use nexus_tests::{Cli, Server, until};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

#[path = "kernel/absent.rs"]
mod absent;
#[path = "kernel/ledger.rs"]
mod ledger;
#[path = "kernel/overhead.rs"]
mod overhead;
#[path = "kernel/time.rs"]
mod time;

/// System calls by name: calls, and how many of them returned an error.
type Counts = BTreeMap<String, (u64, u64)>;

/// What may happen to any invocation: memory for its instance, a new thread's signal stack, the allocator, a wake-up.
const INCIDENTAL: [&str; 10] =
    ["ioctl", "mmap", "munmap", "madvise", "mprotect", "sigaltstack", "getrandom", "futex", "clone3", "rt_sigprocmask"];

/// The counts of an account, which must be whole.
pub fn counts(invocation: &Value) -> Counts {
    let kernel = &invocation["kernel"];
    assert_eq!(
        (&kernel["mode"], &kernel["complete"], &kernel["lost"]),
        (&json!("full"), &json!(true), &json!(0)),
        "{kernel}"
    );
    let syscalls = kernel["syscalls"].as_object().unwrap_or_else(|| panic!("no system calls: {kernel}"));
    let number = |v: &Value, member: &str| v[member].as_u64().unwrap_or_else(|| panic!("{member}: {kernel}"));
    for (name, stats) in syscalls {
        assert!(number(stats, "max_ns") <= number(stats, "total_ns") && number(stats, "count") > 0, "{name}: {kernel}");
    }
    syscalls.iter().map(|(name, stats)| (name.clone(), (number(stats, "count"), number(stats, "errors")))).collect()
}

/// Calls a function with GET; the one invocation.
pub async fn invoke(server: &Server, path: &str) -> Value {
    let response = server.request(Method::GET, path).send().await.expect(path);
    let id = response.headers()["nexus-event-id"].to_str().expect("text").to_owned();
    let _ = response.bytes().await.expect("a body");
    server.get(&format!("/v1/events/{id}")).await["invocations"][0].clone()
}

/// Checks that these were counted exactly, and nothing else but what may happen to any invocation.
fn check(what: &str, invocation: &Value, expected: &[(&str, u64, u64)]) {
    assert_eq!(invocation["status"], "ok", "{what}: {invocation}");
    let have = counts(invocation);
    for (name, count, errors) in expected {
        let found = have.get(*name).copied().unwrap_or_default();
        assert_eq!(found, (*count, *errors), "{what}: {name} (calls, errors) in {have:?}");
    }
    let known = |name: &String| INCIDENTAL.contains(&name.as_str()) || expected.iter().any(|(n, ..)| n == name);
    let strange: Vec<_> = have.keys().filter(|name| !known(name)).collect();
    assert!(strange.is_empty(), "{what}: {strange:?} in {have:?}");
}

/// A function that reads files of a folder, and its server.
async fn reader(folder: &std::path::Path) -> Server {
    std::fs::write(folder.join("file"), "hello\n").expect("a file");
    let server = Server::builder().arg("--allow-mount").arg(folder.to_str().expect("text")).start();
    server.deploy("files", "probe", json!({"mounts": [{"host": folder, "guest": "/data"}]})).await;
    server
}

/// Rust's `fs::read` in the guest, as wasmtime's host makes it: opened below the mount with `openat2`, looked at with
/// `statx` for its type, its size and each end of the read, its flags asked for twice, read until nothing is left, closed.
/// Before that, once, the mount itself is opened, looked at and closed.
fn reading(n: u64) -> [(&'static str, u64, u64); 6] {
    [
        ("openat", 1, 0),
        ("openat2", n, 0),
        ("statx", 4 * n, 0),
        ("fcntl", 1 + 2 * n, 0),
        ("pread64", 2 * n, 0),
        ("close", 1 + n, 0),
    ]
}

#[tokio::test]
async fn files_are_counted_exactly() {
    if !can_watch_the_kernel() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let server = reader(folder.path()).await;
    for n in [0, 1, 2, 10, 20, 400] {
        let invocation = invoke(&server, &format!("/fn/files/read?path=%2Fdata%2Ffile&n={n}")).await;
        check(&format!("{n} reads"), &invocation, &reading(n));
        assert_eq!(invocation["output"]["data"], json!({"bytes": 6 * n}));
    }
    // Which import of the guest made which of them: none is left but the mount's, and what a handle's end closes.
    let invocation = invoke(&server, "/fn/files/read?path=%2Fdata%2Ffile&n=20").await;
    let imports = invocation["kernel"]["imports"].as_object().expect("imports");
    let descriptor = |method: &str| format!("wasi:filesystem/types.[method]descriptor.{method}");
    let expected = [
        (descriptor("open-at"), json!({"openat2": 20, "statx": 20})),
        (descriptor("stat"), json!({"statx": 20})),
        (descriptor("get-type"), json!({"statx": 20})),
        (descriptor("metadata-hash"), json!({"statx": 20})),
        (descriptor("get-flags"), json!({"fcntl": 20})),
        ("wasi:io/streams.[method]input-stream.blocking-read".into(), json!({"pread64": 40})),
    ];
    for (import, calls) in &expected {
        let made = &imports[import];
        for (name, count) in calls.as_object().expect("calls") {
            assert_eq!(&made[name]["count"], count, "{import}: {name} in {imports:#?}");
        }
    }
    // The terminal's trace says the same.
    let shown = Cli::of(&server).text(["trace", invocation["invocation_id"].as_str().expect("text")]);
    let open = format!("import: {} ×40", descriptor("open-at"));
    for expected in ["kernel: on CPU ", "in its own code ", "kernel: openat2 ×20", &open] {
        assert!(shown.contains(expected), "{expected} in {shown}");
    }
    let few: Vec<_> = imports.keys().filter(|name| !expected.iter().any(|(import, _)| import == *name)).collect();
    assert!(few.iter().all(|name| name.starts_with("wasi:random/")), "{few:?}");
    // And so does the metrics page, which sorts them by how long they took.
    let page = server.request(Method::GET, "/metrics").send().await.expect("an answer").text().await.expect("text");
    let sample = |bucket: &str| -> f64 {
        let name = format!("nexus_syscall_duration_seconds_{bucket}function=\"files\",syscall=\"pread64\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("{name} in {page}")).parse().expect("a number")
    };
    let of_all = 2.0 * f64::from(1 + 2 + 10 + 20 + 400 + 20);
    assert_eq!((sample("count{"), sample("bucket{le=\"+Inf\",")), (of_all, of_all));
    let bounds = ["0.00001", "0.0001", "0.001", "0.01"].map(|le| sample(&format!("bucket{{le=\"{le}\",")));
    assert!(bounds[0] > 0.0 && bounds[3] > 0.9 * of_all, "{bounds:?} of {of_all}");
    let missing = invoke(&server, "/fn/files/read?path=%2Fdata%2Fmissing").await;
    assert_eq!(counts(&missing)["openat2"], (1, 1), "an error is counted as one: {missing}");
}

#[tokio::test]
async fn connections_are_counted_exactly() {
    if !can_watch_the_kernel() {
        return;
    }
    let receiver = Receiver::answering(StatusCode::OK).await;
    let server = Server::start();
    let egress = json!(["127.0.0.1:*"]);
    server.deploy("net", "probe", json!({"egress": egress})).await;
    let encoded = format!("http%3A%2F%2F{}%2F", receiver.address);
    for way in ["fetch", "fan"] {
        for m in [0, 1, 2, 10, 20] {
            let invocation = invoke(&server, &format!("/fn/net/{way}?url={encoded}&n={m}")).await;
            assert_eq!(invocation["output"]["data"], json!(vec![200; usize::try_from(m).expect("few")]));
            let have = counts(&invocation);
            let calls = &invocation["kernel"]["imports"]["wasi:http/outgoing-handler.handle"];
            assert_eq!(calls["connect"]["count"].as_u64().unwrap_or(0), m, "{}", invocation["kernel"]);
            let of = |name: &str| have.get(name).copied().unwrap_or_default();
            // Each connection does not wait: `connect` returns EINPROGRESS, and how it went is asked for later. At its end the
            // kernel is asked what it knows of it.
            for (name, errors) in [("socket", 0), ("connect", m), ("close", 0), ("writev", 0)] {
                assert_eq!(of(name), (m, errors), "{way} {m}: {name} in {have:?}");
            }
            assert_eq!(of("getsockopt"), (2 * m, 0), "{way} {m}: {have:?}");
            assert_eq!(of("epoll_ctl"), (2 * m, 0), "{way} {m}: {have:?}");
            assert!(of("recvfrom").0 >= m, "{way} {m}: {have:?}");
            assert!(!have.keys().any(|name| name.starts_with("open")), "{way} {m}: {have:?}");
        }
    }
    assert_eq!(receiver.received().len(), 66);
    let refused = invoke(&server, "/fn/net/fetch?url=http%3A%2F%2F127.0.0.1%3A1%2F&n=3").await;
    let have = counts(&refused);
    assert_eq!((have["connect"], have["socket"], have["close"]), ((3, 3), (3, 0), (3, 0)), "{have:?}");
}

#[tokio::test]
async fn invocations_that_run_at_once_do_not_mix() {
    if !can_watch_the_kernel() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let receiver = Receiver::answering(StatusCode::OK).await;
    let server = std::sync::Arc::new(reader(folder.path()).await);
    server.deploy("net", "probe", json!({"egress": [receiver.address.to_string()]})).await;
    server.deploy("noop", "noop", json!({})).await;
    let calls = (1..=48_u64).map(|at| {
        let (server, address) = (server.clone(), receiver.address);
        tokio::spawn(async move {
            // Sixteen of each at once, and each has a number of its own.
            let path = match at % 3 {
                0 => format!("/fn/files/read?path=%2Fdata%2Ffile&n={at}"),
                1 => format!("/fn/net/fetch?url=http%3A%2F%2F{address}%2F&n={at}"),
                _ => "/fn/noop".to_owned(),
            };
            (at, invoke(&server, &path).await)
        })
    });
    for call in calls.collect::<Vec<_>>() {
        let (at, invocation) = call.await.expect("a call");
        match at % 3 {
            0 => check(&format!("{at} reads among others"), &invocation, &reading(at)),
            1 => {
                let have = counts(&invocation);
                assert_eq!((have["connect"].0, have["socket"].0), (at, at), "{at} connections among others: {have:?}");
                assert!(!have.contains_key("openat2") && !have.contains_key("pread64"), "{have:?}");
            }
            _ => check("nothing among others", &invocation, &[]),
        }
    }
}

#[tokio::test]
async fn doing_nothing_costs_next_to_nothing() {
    if !can_watch_the_kernel() {
        return;
    }
    let server = Server::start();
    server.deploy("noop", "noop", json!({})).await;
    let mut least = u64::MAX;
    for at in 0..60 {
        let invocation = invoke(&server, "/fn/noop").await;
        if at >= 20 {
            check("noop", &invocation, &[]);
            let total: u64 = counts(&invocation).values().map(|(count, _)| count).sum();
            assert!(total <= 16, "{total} system calls: {invocation}");
            least = least.min(total);
        }
    }
    assert!(least <= 2, "at best {least}");
}

#[tokio::test]
async fn the_metrics_are_the_sum_of_the_accounts() {
    if !can_watch_the_kernel() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let server = reader(folder.path()).await;
    server.deploy("noop", "noop", json!({})).await;
    let mut sums: BTreeMap<(String, String), u64> = BTreeMap::new();
    for n in 0..12 {
        for (name, path) in
            [("files", format!("/fn/files/read?path=%2Fdata%2Ffile&n={n}")), ("noop", "/fn/noop".into())]
        {
            for (syscall, (count, _)) in counts(&invoke(&server, &path).await) {
                *sums.entry((name.to_owned(), syscall)).or_default() += count;
            }
        }
    }
    // The page is made when it is asked for; an invocation is on it a moment after its answer.
    until("the metrics to say what the accounts say", || async {
        let page = server.request(Method::GET, "/metrics").send().await.expect("metrics").text().await.expect("text");
        let of_function = page.lines().filter_map(|line| {
            let (labels, value) = line.strip_prefix("nexus_syscalls_total{")?.split_once("} ")?;
            let label = |name: &str| {
                labels.split(',').find_map(|l| l.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
            };
            (label("owner") == Some("invocation")).then_some(())?;
            Some((
                (label("function")?.to_owned(), label("syscall")?.to_owned()),
                value.split(' ').next()?.parse().ok()?,
            ))
        });
        (of_function.collect::<BTreeMap<_, u64>>() == sums).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_a_timeout_cuts_off_is_counted() {
    if !can_watch_the_kernel() {
        return;
    }
    let gate = Gate::closed().await;
    let server = Server::start();
    let settings = json!({"limits": {"timeout_ms": 300}, "egress": [gate.egress()]});
    server.deploy("net", "probe", settings).await;
    for (way, n) in [("fetch", 1), ("fan", 5)] {
        let invocation = invoke(&server, &format!("/fn/net/{way}?url={}&n={n}", gate.url())).await;
        assert_eq!(invocation["status"], "timeout", "{invocation}");
        let have = counts(&invocation);
        // Closed too: what is torn down after the timeout is the function's work as well.
        assert_eq!((have["connect"], have["socket"], have["close"]), ((n, n), (n, 0), (n, 0)), "{have:?}");
    }
    assert_eq!(gate.held().came, 6);
    let trap = invoke(&server, "/fn/net/trap").await;
    assert_eq!(trap["status"], "trap");
    counts(&trap);
}

#[tokio::test]
async fn with_no_threshold_every_call_is_an_event_of_the_span() {
    if !can_watch_the_kernel() {
        return;
    }
    let receiver = Receiver::answering(StatusCode::OK).await;
    let server = Server::builder().setting("slow_syscall_us = 0").start();
    server.deploy("net", "probe", json!({"egress": [receiver.address.to_string()]})).await;
    let url = format!("http%3A%2F%2F{}%2F", receiver.address);
    let response = server.request(Method::GET, &format!("/fn/net/fetch?url={url}")).send().await.expect("an answer");
    let id = response.headers()["nexus-event-id"].to_str().expect("text").to_owned();
    let event = server.get(&format!("/v1/events/{id}")).await;
    let have = counts(&event["invocations"][0]);
    let trace = server.get(&format!("/v1/traces/{}", event["trace_id"].as_str().expect("trace"))).await;
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let spans = list(&trace["resourceSpans"])
        .iter()
        .flat_map(|r| list(&r["scopeSpans"]))
        .flat_map(|s| list(&s["spans"]))
        .collect::<Vec<_>>();
    let events = spans.iter().flat_map(|s| list(&s["events"])).filter(|e| e["name"] == "syscall");
    let mut seen: Counts = BTreeMap::new();
    for event in events {
        let attribute = |name: &str| {
            let found = list(&event["attributes"]).into_iter().find(|a| a["key"] == name);
            found.unwrap_or_else(|| panic!("no {name}: {event}"))["value"].clone()
        };
        let int =
            |name: &str| attribute(name)["intValue"].as_str().and_then(|s| s.parse::<i64>().ok()).expect("a number");
        assert!(int("duration_ns") >= 0, "{event}");
        let counted =
            seen.entry(attribute("syscall.name")["stringValue"].as_str().expect("name").to_owned()).or_default();
        counted.0 += 1;
        counted.1 += u64::from((-4095..0).contains(&int("syscall.ret")));
    }
    assert_eq!(seen, have, "each call is an event, and nothing else is");
}
