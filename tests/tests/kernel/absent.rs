//! Without the kernel's account: everything works, and says what is missing. Unknown is never shown as zero.

use std::process::Stdio;

use nexus_tests::spans::of_json;
use nexus_tests::{Server, privilege};
use serde_json::json;

use super::invoke;

/// Checks that an invocation and its span say that nothing was watched, and why; and that they have no numbers.
async fn says_that_it_is_off(server: &Server, reason: &[&str]) {
    server.deploy("noop", "noop", json!({})).await;
    let invocation = invoke(server, "/fn/noop").await;
    assert_eq!(invocation["status"], "ok", "{invocation}");
    let kernel = invocation["kernel"].as_object().expect("an account");
    assert_eq!(kernel.keys().collect::<Vec<_>>(), ["mode", "reason"], "no numbers: {kernel:?}");
    assert_eq!(kernel["mode"], "off");
    let says = |why: &str| assert!(reason.iter().all(|r| why.contains(r)), "{reason:?} in {why}");
    says(kernel["reason"].as_str().expect("a reason"));

    let event = server.get("/v1/events?limit=1").await["items"][0].clone();
    let trace = server.get(&format!("/v1/traces/{}", event["trace_id"].as_str().expect("a trace"))).await;
    let spans = of_json(&trace);
    let invoke = spans.iter().find(|s| s.attributes.contains_key("nexus.kernel.mode")).expect("the invocation's span");
    assert_eq!(invoke.attribute("nexus.kernel.mode"), "off");
    says(invoke.attribute("nexus.kernel.reason"));
    let numbers = |key: &&String| {
        key.starts_with("nexus.kernel.syscall") || key.starts_with("nexus.time.") || *key == "nexus.kernel.lost"
    };
    assert_eq!(invoke.attributes.keys().find(numbers), None, "{invoke:?}");
    let page =
        server.request(reqwest::Method::GET, "/metrics").send().await.expect("metrics").text().await.expect("text");
    assert!(!page.contains("nexus_syscalls_total{"), "{page}");
}

#[tokio::test]
async fn switched_off() {
    let server = Server::builder().arg("--kernel").arg("off").start();
    says_that_it_is_off(&server, &["switched off"]).await;
}

#[tokio::test]
async fn without_privilege() {
    let server = Server::builder().unprivileged().start();
    says_that_it_is_off(&server, &["CAP_BPF", "CAP_PERFMON"]).await;
    assert_eq!(server.stop(), Some(0));
}

#[tokio::test]
async fn without_the_kernels_types() {
    if !privilege::can_watch_the_kernel() || !privilege::can_mount() {
        return;
    }
    let server = Server::builder().without_btf().start();
    says_that_it_is_off(&server, &["no BTF at /sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]).await;
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn required_but_not_permitted() {
    let (mut command, _, _folder) = Server::builder().unprivileged().arg("--kernel").arg("required").command();
    let output = command.stdin(Stdio::null()).output().expect("the program runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b""[..]), "{stderr}");
    let lines: Vec<_> = stderr.lines().filter(|line| !line.starts_with('{')).collect();
    assert_eq!(lines.len(), 1, "one line: {stderr}");
    assert!(lines[0].contains("CAP_BPF") && lines[0].contains("CAP_PERFMON"), "{stderr}");
    // Where the privilege is there, it does start.
    if privilege::can_watch_the_kernel() {
        assert_eq!(Server::builder().arg("--kernel").arg("required").start().stop(), Some(0));
    }
}
