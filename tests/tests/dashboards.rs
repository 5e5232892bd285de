//! Dashboards, rules and links speak of what is there: every name in them is on a real page.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nexus_tests::{Server, privilege, server, until};
use reqwest::Method;
use serde_json::{Value, json};

fn dashboards() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![server::repository().join("dashboards")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if ["json", "yml", "yaml"].contains(&kind.as_str()) {
                let text = std::fs::read_to_string(&path).expect("text");
                found.push((path, text));
            }
        }
    }
    found
}

/// The names of our metrics in a text: what begins with `faas_` or `nexus_` and is a whole name.
fn metrics(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.' | '-');
    let ours = |name: &&str| name.starts_with("faas_") || name.starts_with("nexus_");
    text.split(|c| !is_name(c)).filter(ours).map(str::to_owned).collect()
}

async fn page_with_everything() -> String {
    let server = Server::start();
    let config = json!({
        "triggers": [{"filters": []}],
        "retry": {"attempts_max": 2, "backoff_ms": 1},
        "limits": {"timeout_ms": 400},
    });
    server.deploy("probe", "probe", config).await;
    for (id, data, status) in
        [("ok", json!({}), "done"), ("error", json!({"status": 500}), "dead"), ("loop", json!({"loop": true}), "dead")]
    {
        server.send(json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t", "data": data})).await;
        server.settled(id, status).await;
    }
    let request = server.request(Method::POST, "/v1/replays").json(&json!({"event_id": "ok", "mode": "live"}));
    let (_, answer) = server.answer(request).await;
    let path = format!("/v1/replays/{}", answer["replay_id"].as_str().expect("an id"));
    until("the replay", async || (server.get(&path).await["status"] == "done").then_some(())).await;
    server.request(Method::GET, "/metrics").send().await.expect("an answer").text().await.expect("text")
}

#[tokio::test]
async fn every_metric_is_on_the_page() {
    let page = page_with_everything().await;
    let there: BTreeSet<_> =
        page.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split(['{', ' ']).next()).collect();
    // The kernel's are there only where it is watched.
    let watched = privilege::can_watch_the_kernel();
    let mut names = 0;
    for (path, text) in dashboards() {
        for name in metrics(&text) {
            names += 1;
            let kernels =
                ["nexus_syscall", "nexus_on_cpu", "nexus_run_queue", "nexus_off_cpu", "nexus_kernel_unattributed"]
                    .iter()
                    .any(|kernels| name.starts_with(kernels));
            assert!(
                there.contains(name.as_str()) || kernels && !watched,
                "{name} of {} is not on the page",
                path.display()
            );
        }
    }
    assert!(names >= 15, "{names} names: are they still found?");
}

#[test]
fn names_are_found_in_expressions() {
    let found = metrics(r#"sum by (le) (rate(nexus_a_bucket{x="faas_b_total"}[5m])) / job:nexus_c:rate5m"#);
    assert_eq!(found, ["faas_b_total", "nexus_a_bucket"].map(str::to_owned).into());
}

/// Panels and alerts use no recorded series that nobody records.
#[test]
fn what_is_used_is_recorded() {
    let rules = dashboards().into_iter().find(|(path, _)| path.ends_with("prometheus/rules.yml")).expect("the rules").1;
    let recorded: BTreeSet<_> =
        rules.lines().filter_map(|l| Some(l.trim().strip_prefix("- record: ")?.to_owned())).collect();
    assert!(recorded.len() >= 5, "{recorded:?}");
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let mut used = BTreeSet::new();
    for (_, text) in dashboards() {
        for line in text.lines().filter(|l| !l.trim().starts_with("- record:")) {
            used.extend(line.split(|c| !is_name(c)).filter(|n| n.contains(':') && n.contains("5m")).map(str::to_owned));
        }
    }
    assert!(used.len() >= 5 && used.is_subset(&recorded), "{used:?} of {recorded:?}");
}

#[test]
fn a_dashboard_is_whole() {
    let path = server::repository().join("dashboards/grafana/nexus.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).expect("text")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|p| p["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids.len(), panels.len(), "two panels have one id");
    for panel in panels.iter().filter(|p| p["type"] != "row") {
        let targets = panel["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert!(!targets.is_empty(), "{} asks nothing", panel["title"]);
        for target in targets {
            assert!(
                !metrics(target["expr"].as_str().expect("an expression")).is_empty(),
                "{}: {target}",
                panel["title"]
            );
        }
    }
}

/// A link in Jaeger or Grafana leads to a page of Nexus.
#[tokio::test]
async fn links_lead_to_pages() {
    let server = Server::start();
    let mut links = 0;
    for (path, text) in dashboards() {
        for part in text.split("http://127.0.0.1:7070").skip(1) {
            let link: String =
                part.chars().take_while(|c| !c.is_whitespace() && !['"', '\'', ']', ','].contains(c)).collect();
            if !link.starts_with('/') {
                continue;
            }
            links += 1;
            let target = fill(&link);
            let (status, answer) = server.answer(server.request(Method::GET, &target)).await;
            assert!(status == 200, "{} of {}: {status} {answer}", link, Path::new(&path).display());
        }
    }
    assert!(links >= 3, "{links} links: are they still found?");
}

/// A link with an id in place of each variable: `#{traceID}` of Jaeger, `${__value.raw}` of Grafana.
fn fill(link: &str) -> String {
    let mut filled = String::new();
    let mut rest = link;
    while let Some(at) = rest.find(['#', '$']) {
        filled.push_str(&rest[..at]);
        filled.push_str("4bf92f3577b34da6a3ce929d0e0e4736");
        let variable = &rest[at..];
        // `$${…}` is a dollar that provisioning leaves alone.
        rest = variable.find('}').map_or("", |end| &variable[end + 1..]);
    }
    filled + rest
}
