//! The probes taken away and put back while the server works: what they cost is told, and no account lies meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use nexus_tests::privilege::can_watch_the_kernel;
use nexus_tests::problem::refused;
use nexus_tests::{Server, until};
use reqwest::Method;
use serde_json::json;

use super::{check, invoke, reader, reading};

#[tokio::test]
async fn an_idle_server_has_nothing_to_compare() {
    if !can_watch_the_kernel() {
        return;
    }
    let server = Server::start();
    let measure = |query: &str| server.request(Method::POST, &format!("/v1/kernel/overhead{query}"));
    refused("idle", measure("?seconds=3"), 409, "pieces of work").await;
    refused("too short", measure("?seconds=2"), 400, "seconds").await;
    let kernel = server.get("/v1/kernel").await;
    assert_eq!((&kernel["mode"], &kernel["overhead"]), (&json!("full"), &json!(null)), "as it was: {kernel}");
    let metrics = server.request(Method::GET, "/metrics").send().await.expect("metrics").text().await.expect("text");
    assert!(!metrics.contains("nexus_probe_overhead_ratio"), "unknown is not shown");
}

#[tokio::test]
async fn no_account_lies_while_the_probes_come_and_go() {
    if !can_watch_the_kernel() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let server = std::sync::Arc::new(reader(folder.path()).await);
    let done = std::sync::Arc::new(AtomicBool::new(false));
    // Exact numbers are known for each; two at once, so that threads meet changes in every state.
    let load: Vec<_> = (0..2)
        .map(|_| {
            let (server, done) = (server.clone(), done.clone());
            tokio::spawn(async move {
                let (mut whole, mut others) = (0, 0);
                while !done.load(Ordering::Relaxed) {
                    let invocation = invoke(&server, "/fn/files/read?path=%2Fdata%2Ffile&n=3").await;
                    let kernel = &invocation["kernel"];
                    if kernel["complete"] == true {
                        let mut full = invocation.clone();
                        // With less detail, but as exact.
                        full["kernel"]["mode"] = json!("full");
                        check("while the probes come and go", &full, &reading(3));
                        assert_eq!(kernel["mode"] == "full", !kernel["on_cpu_ns"].is_null(), "{kernel}");
                        whole += 1;
                    } else {
                        if kernel["mode"] == "off" {
                            assert!(kernel["reason"].as_str().is_some_and(|r| r.contains("measure")), "{kernel}");
                            assert_eq!(kernel.as_object().map(serde_json::Map::len), Some(2), "no numbers: {kernel}");
                        }
                        others += 1;
                    }
                }
                (whole, others)
            })
        })
        .collect();
    // A disk that stalls for a moment leaves a window without work.
    let measured = until("a measurement", || async {
        let measured = server.request(Method::POST, "/v1/kernel/overhead?seconds=6").send().await.expect("an answer");
        if measured.status() == 409 {
            return None;
        }
        Some(measured.json::<serde_json::Value>().await.expect("JSON"))
    })
    .await;
    done.store(true, Ordering::Relaxed);
    for load in load {
        let (whole, others) = load.await.expect("the load");
        assert!(whole > 10 && others > 10, "{whole} with the probes, {others} without");
    }
    let modes: Vec<_> = measured["costs"].as_array().expect("costs").iter().map(|c| c["mode"].clone()).collect();
    assert_eq!(modes, [json!("counts"), json!("full")], "{measured}");
    assert!(measured["costs"].as_array().expect("costs").iter().all(|c| c["ratio"].is_f64()), "{measured}");
    // And as it was.
    let invocation = invoke(&server, "/fn/files/read?path=%2Fdata%2Ffile&n=7").await;
    check("afterwards", &invocation, &reading(7));
    let kernel = server.get("/v1/kernel").await;
    assert_eq!((&kernel["mode"], &kernel["syscalls"]["unattributed"]), (&json!("full"), &json!(0)), "{kernel}");
    assert_eq!(kernel["overhead"], measured);
    let metrics = server.request(Method::GET, "/metrics").send().await.expect("metrics").text().await.expect("text");
    assert!(metrics.contains("nexus_probe_overhead_ratio{mode=\"full\"}"), "{metrics}");
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_leave_the_probes_off() {
    if !can_watch_the_kernel() {
        return;
    }
    let server = std::sync::Arc::new(Server::start());
    server.deploy("noop", "noop", json!({})).await;
    let done = std::sync::Arc::new(AtomicBool::new(false));
    let load = busy(&server, &done);
    let request = server.request(Method::POST, "/v1/kernel/overhead?seconds=3");
    let measuring = tokio::spawn(request.send());
    until("the probes to be taken away", || async { (server.get("/v1/kernel").await["mode"] == "off").then_some(()) })
        .await;
    measuring.abort();
    until("the measurement to be over", || async {
        let kernel = server.get("/v1/kernel").await;
        (kernel["mode"] == "full" && !kernel["overhead"].is_null()).then_some(())
    })
    .await;
    done.store(true, Ordering::Relaxed);
    for load in load {
        load.await.expect("the load");
    }
    check("afterwards", &invoke(&server, "/fn/noop").await, &[]);
}

/// Four clients that call the no-op function until they are told to stop.
fn busy(server: &std::sync::Arc<Server>, done: &std::sync::Arc<AtomicBool>) -> Vec<tokio::task::JoinHandle<()>> {
    let client = |_| {
        let (server, done) = (server.clone(), done.clone());
        tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let _ = server.request(Method::GET, "/fn/noop").send().await.expect("an answer").bytes().await;
            }
        })
    };
    (0..4).map(client).collect()
}

#[tokio::test]
async fn a_budget_takes_the_probes_as_far_away_as_it_must_and_says_so() {
    if !can_watch_the_kernel() {
        return;
    }
    // A budget of nothing: what the measurement makes of it is luck, but what follows from the measurement is not.
    let server = std::sync::Arc::new(Server::builder().setting("kernel_overhead_max = 0.0").start());
    server.deploy("noop", "noop", json!({})).await;
    assert_eq!(server.get("/v1/kernel").await["mode"], "full", "an idle server is not judged");
    let done = std::sync::Arc::new(AtomicBool::new(false));
    let load = busy(&server, &done);
    // A disk that stalls for a moment leaves a window without work.
    let measured = until("a measurement", || async {
        let measured = server.request(Method::POST, "/v1/kernel/overhead?seconds=3").send().await.expect("an answer");
        if measured.status() == 409 {
            return None;
        }
        measured.json::<serde_json::Value>().await.ok()
    })
    .await;
    done.store(true, Ordering::Relaxed);
    for load in load {
        load.await.expect("the load");
    }
    let ratio = |at: usize| measured["costs"][at]["ratio"].as_f64().unwrap_or_else(|| panic!("{measured}"));
    let expected = match (ratio(0) <= 0.0, ratio(1) <= 0.0) {
        (_, true) => "full",
        (true, false) => "counts",
        (false, false) => "off",
    };
    let kernel = server.get("/v1/kernel").await;
    assert_eq!(kernel["mode"], expected, "{kernel}");
    let account = invoke(&server, "/fn/noop").await["kernel"].clone();
    assert_eq!(account["mode"], expected, "{account}");
    if expected != "full" {
        for reason in [&kernel["reason"], &account["reason"]] {
            assert!(reason.as_str().is_some_and(|r| r.contains("kernel_overhead_max")), "{kernel} {account}");
        }
    }
}
