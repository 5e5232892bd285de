//! Stores that earlier releases wrote: each is in `tests/stores` as its release left it, beside what it told then.

use std::path::{Path, PathBuf};
use std::process::Command;

use nexus_core::ids::Seq;
use nexus_core::outcome::Disposition;
use nexus_log::conformance::outcome;
use nexus_log::embedded::admin;
use serde_json::{Value, json};

use super::stores::{append, commit, contents, opened, settings, small, varied};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stores")
}

fn tar(arguments: &[&str], file: &Path, data: &Path) {
    let status = Command::new("tar").args(arguments).arg(file).arg("-C").arg(data).arg(".").status().expect("tar");
    assert!(status.success(), "tar {arguments:?} {}", file.display());
}

/// All that a store tells, in the words of the contract.
async fn told(data: &Path) -> Value {
    let handle = opened(data, &settings()).await;
    let all = contents(&handle.storage(), &[nexus_core::ids::Digest::of(b"component")]).await;
    handle.close().await.expect("close");
    let records: Vec<_> = all.records.iter().map(|record| json!([record.seq, record.entry])).collect();
    let registry: Vec<_> = all.registry.iter().map(|(key, value, revision)| json!([key, value, revision.0])).collect();
    json!({
        "head": all.head, "delivered_below": all.delivered_below, "records": records,
        "outcomes": all.outcomes.values().flatten().collect::<Vec<_>>(),
        "by_invocation": all.by_invocation.len(),
        "parked": all.parked.iter().map(|p| json!([p.seq, p.function, p.attempt, p.at])).collect::<Vec<_>>(),
        "dead_letters": all.dead_letters.iter().map(|d| json!([d.seq, d.function, d.attempt, d.at])).collect::<Vec<_>>(),
        "registry": registry, "changes": all.changes, "artifacts": all.artifacts,
        "found": all.found.iter().filter(|(_, seqs)| !seqs.is_empty()).map(|(key, seqs)| json!([key, seqs])).collect::<Vec<_>>(),
    })
}

/// `cargo test -p nexus-log --test admin -- --ignored a_store_of_this_release`, once for each release.
#[tokio::test]
#[ignore = "writes a fixture"]
async fn a_store_of_this_release_is_kept() {
    let data = tempfile::tempdir().expect("a folder");
    // One that a server left, without its artifacts, or else one that is made here.
    match std::env::var("NEXUS_STORE") {
        Ok(served) => tar(&["-xzf"], Path::new(&served), data.path()),
        Err(_) => small(data.path(), &settings()).await,
    }
    let kind = if std::env::var_os("NEXUS_STORE").is_some() { "-served" } else { "" };
    let file = |extension: &str| folder().join(format!("{}{kind}.{extension}", env!("CARGO_PKG_VERSION")));
    tar(&["--sparse", "-czf"], &file("tgz"), data.path());
    let told = serde_json::to_string(&told(data.path()).await).expect("JSON");
    std::fs::write(file("json"), told).expect("written");
}

#[tokio::test]
async fn stores_of_earlier_releases_are_read_and_written_on() {
    let entries = std::fs::read_dir(folder()).expect("the stores");
    let stores: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    let stores: Vec<_> = stores.iter().filter(|path| path.extension().is_some_and(|e| e == "tgz")).collect();
    assert!(!stores.is_empty());
    for store in stores {
        let data = tempfile::tempdir().expect("a folder");
        tar(&["-xzf"], store, data.path());
        let report = admin::check(data.path(), &mut |_| std::ops::ControlFlow::Continue(())).expect("a check");
        assert!(report.problems.is_empty(), "{}: {report:?}", store.display());
        let expected = std::fs::read(store.with_extension("json")).expect("what it told");
        let expected: Value = serde_json::from_slice(&expected).expect("JSON");
        assert_eq!(told(data.path()).await, expected, "{}", store.display());

        let handle = opened(data.path(), &settings()).await;
        let log = handle.storage().log;
        let last = *log.head().borrow();
        assert_eq!(append(&*log, vec![varied(&settings(), 77)]).await, [last.next()]);
        let before = log.outcomes(Seq(2)).await.expect("outcomes").len();
        commit(&*log, outcome(Seq(2), 2, Disposition::Done), vec![]).await;
        assert_eq!(log.outcomes(Seq(2)).await.expect("outcomes").len(), before + 1);
        handle.close().await.expect("close");
    }
}
