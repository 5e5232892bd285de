//! Every system call of the server belongs to somebody: what the kernel counts by process is what the owners have.

use nexus_tests::gate::Gate;
use nexus_tests::privilege::can_watch_the_kernel;
use nexus_tests::{Server, until};
use reqwest::Method;
use serde_json::json;

use super::{counts, invoke};

/// System calls of the page, by owner, and those that belong to nobody.
async fn ledger(server: &Server) -> (u64, u64, u64, i64) {
    let page = server.request(Method::GET, "/metrics").send().await.expect("metrics").text().await.expect("text");
    let of = |owner: &str| {
        let start = format!("nexus_syscalls_total{{owner=\"{owner}\"");
        let values =
            page.lines().filter(|l| l.starts_with(&start)).filter_map(|l| l.rsplit_once("} ")?.1.parse::<u64>().ok());
        values.sum::<u64>()
    };
    let unattributed = page
        .lines()
        .find_map(|line| line.strip_prefix("nexus_kernel_unattributed_syscalls ")?.parse().ok())
        .unwrap_or_else(|| panic!("no ledger: {page}"));
    (of("invocation"), of("runtime"), of("other"), unattributed)
}

#[tokio::test]
async fn the_ledger_closes_whatever_becomes_of_invocations() {
    if !can_watch_the_kernel() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), "hello\n").expect("a file");
    let gate = Gate::closed().await;
    let server = Server::builder().arg("--allow-mount").arg(folder.path().to_str().expect("text")).start();
    let limits = json!({"timeout_ms": 50, "memory_mb": 32});
    server.deploy("net", "probe", json!({"egress": [gate.egress()], "limits": limits})).await;
    let mounts = json!([{"host": folder.path(), "guest": "/data"}]);
    server.deploy("files", "probe", json!({"mounts": mounts, "limits": limits})).await;
    server.deploy("noop", "noop", json!({})).await;
    let paths = [
        "/fn/noop".to_owned(),
        "/fn/net/hello".to_owned(),
        "/fn/net/trap".to_owned(),
        "/fn/net/loop".to_owned(),
        "/fn/net/alloc?mb=64".to_owned(),
        "/fn/net/sleep?ms=60000".to_owned(),
        format!("/fn/net/fan?url={}&n=4", gate.url()),
        "/fn/files/read?path=%2Fdata%2Ffile&n=20".to_owned(),
    ];
    for round in 0..12 {
        let mut calls = Vec::new();
        for path in &paths {
            for at in 0..3 {
                let call = tokio::spawn(server.request(Method::GET, path).send());
                if at == 2 && round % 2 == 0 {
                    // Its client goes away.
                    call.abort();
                } else {
                    calls.push(call);
                }
            }
        }
        for call in calls {
            let _ = call.await.expect("a task").expect("an answer").bytes().await;
        }
        // Also while work goes on.
        let (_, runtime, _, unattributed) = ledger(&server).await;
        assert!(runtime > 0);
        assert_eq!(unattributed, 0, "round {round}");
    }
    // What the runtime does is known by its parts: the log's thread wrote all of these outcomes.
    let parts = server.get("/v1/kernel").await["syscalls"]["parts"].clone();
    for part in ["tasks", "log", "epoch"] {
        assert!(parts[part].as_u64().is_some_and(|calls| calls > 100), "{part}: {parts}");
    }
    // What the page says of invocations is what their accounts say.
    let before = ledger(&server).await;
    let own: u64 = counts(&invoke(&server, "/fn/noop").await).values().map(|(count, _)| count).sum();
    until("the page to have the last invocation", || async {
        let (invocations, ..) = ledger(&server).await;
        (invocations == before.0 + own).then_some(())
    })
    .await;
    let (invocations, runtime, other, unattributed) = ledger(&server).await;
    assert_eq!(unattributed, 0);
    assert!(invocations > 0 && runtime > 0 && other > 0, "{invocations} {runtime} {other}");
}
