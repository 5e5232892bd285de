//! Files of the host: what a guest learned of them then is what a replay tells it, when they are long gone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;

use nexus_core::journal::Entry;
use nexus_engine::{Finished, Journaling, Replayed};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::guests::{guest, journal_of, mounting, playing, post, recording, run, same};

fn call() -> impl Strategy<Value = Value> {
    let path = || prop::sample::select(vec!["a", "b", "d", "d/a", "l", "nope/x", "../x", ".", ""]);
    let text = prop_oneof!["[a-z]{0,20}", "[a-z]{3000}"];
    let calls = vec![
        "read-stream",
        "read-stream",
        "skip",
        "read",
        "write-stream",
        "write-stream",
        "append",
        "write",
        "read-only",
        "copy",
        "set-size",
        "sync",
        "advise",
        "flags",
        "stat",
        "stat-at",
        "hash",
        "same",
        "set-times",
        "set-times-at",
        "list",
        "mkdir",
        "rmdir",
        "unlink",
        "rename",
        "link",
        "symlink",
        "readlink",
    ];
    (prop::sample::select(calls), path(), path(), text, 0..100_u64, prop_oneof![Just(1_u64), Just(70), Just(65_536)])
        .prop_map(|(call, path, to, text, from, n)| {
            json!({"do": "file", "call": call, "path": path, "to": to, "text": text, "from": from, "n": n})
        })
}

/// All that is below a folder: kinds, contents.
fn below(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let kind = path.symlink_metadata().expect("it is there").file_type();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if kind.is_dir() {
            all.extend(below(&path).into_iter().map(|(below, content)| (format!("{name}/{below}"), content)));
        }
        let content = if kind.is_file() { std::fs::read(&path).expect("a file") } else { Vec::new() };
        all.insert(format!("{name} {kind:?}"), content);
    }
    all
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

#[test]
fn any_sequence_of_calls_about_files_is_played_back_without_one() {
    let runtime = runtime();
    let guest = guest("script");
    let cases = std::env::var("NEXUS_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let (calls, went_well) = (Mutex::new(BTreeSet::new()), Mutex::new(0));
    let all = runner.run(&prop::collection::vec(call(), 0..25), |steps| {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("a"), "what was in it ".repeat(300)).expect("a file");
        std::fs::create_dir(folder.path().join("d")).expect("a folder");
        let body = Value::from(steps.clone()).to_string();
        let recorded = runtime.block_on(run(&guest, post(body.as_bytes()), mounting(folder.path()), recording()));
        let journal = journal_of(&recorded);
        for entry in &journal.entries {
            if let Entry::File(asked, answer) = entry {
                calls.lock().expect("whole").insert(asked.split(' ').next().unwrap_or_default().to_owned());
                *went_well.lock().expect("whole") += u64::from(answer.is_ok());
            }
        }
        // Other files are there now; whoever looked would see them, and whoever wrote would be seen.
        std::fs::remove_dir_all(folder.path().join("d")).ok();
        std::fs::write(folder.path().join("b"), "something else").ok();
        let before = below(folder.path());
        let replay = runtime.block_on(run(&guest, post(body.as_bytes()), mounting(folder.path()), playing(journal)));
        same(&recorded, &replay, &body);
        prop_assert_eq!(below(folder.path()), before, "a replay touches nothing");
        Ok(())
    });
    if let Err(failed) = all {
        panic!("{failed}");
    }
    let (calls, went_well) = (calls.into_inner().expect("whole"), went_well.into_inner().expect("whole"));
    // All of the interface.
    for call in [
        "get-directories",
        "read-via-stream",
        "write-via-stream",
        "append-via-stream",
        "advise",
        "sync-data",
        "get-flags",
        "get-type",
        "set-size",
        "set-times",
        "read",
        "write",
        "read-directory",
        "sync",
        "create-directory-at",
        "stat",
        "stat-at",
        "set-times-at",
        "link-at",
        "open-at",
        "readlink-at",
        "remove-directory-at",
        "rename-at",
        "symlink-at",
        "unlink-file-at",
        "is-same-object",
        "metadata-hash",
        "metadata-hash-at",
        "read-directory-entry",
    ] {
        assert!(calls.contains(call), "nobody asked {call}: {calls:?}");
    }
    assert!(went_well > 500, "{went_well} calls went well: too few to mean anything");
}

/// A splice is bounded by what may be written, and not by what a guest may write at once; and what is copied is there.
#[tokio::test]
async fn what_is_spliced_is_copied() {
    let folder = tempfile::tempdir().expect("a folder");
    let content = "what was in it ".repeat(600);
    std::fs::write(folder.path().join("a"), &content).expect("a file");
    let body = json!([{"do": "file", "call": "copy", "path": "a", "to": "b", "n": 65_536}]).to_string();
    let guest = guest("script");
    let recorded = run(&guest, post(body.as_bytes()), mounting(folder.path()), recording()).await;
    assert_eq!(said(&recorded)[0], "Ok(Ok(9000))");
    assert_eq!(std::fs::read_to_string(folder.path().join("b")).expect("a copy"), content);
    std::fs::remove_file(folder.path().join("b")).expect("it was there");
    let replay = run(&guest, post(body.as_bytes()), mounting(folder.path()), playing(journal_of(&recorded))).await;
    same(&recorded, &replay, "a splice");
    assert!(!folder.path().join("b").exists());
}

/// Behind what was left out nothing is known of a file.
#[tokio::test]
async fn what_is_behind_a_gap_is_not_told_in_another_place() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("a"), "0123456789abcdef").expect("a file");
    let guest = guest("script");
    let skip = json!([{"do": "file", "call": "skip", "path": "a", "n": 10}]).to_string();
    let recorded = run(&guest, post(skip.as_bytes()), mounting(folder.path()), recording()).await;
    let read = json!([{"do": "file", "call": "read-stream", "path": "a", "n": 100}]).to_string();
    let answer = Journaling::Answer { journal: journal_of(&recorded), allow_live: false };
    let replay = run(&guest, post(read.as_bytes()), mounting(folder.path()), answer).await;
    let now = said(&replay)[0].to_string();
    assert!(now.contains("did not read further") && !now.contains("abcdef"), "{now}");
}

fn said(finished: &Finished) -> Value {
    serde_json::from_slice(&finished.answer.body).unwrap_or_else(|e| panic!("{e}: {finished:?}"))
}

/// Another version may read in other pieces, and twice; what was never read is not permitted.
#[tokio::test]
async fn another_payload_reads_what_was_read() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("a"), "0123456789").expect("a file");
    std::fs::write(folder.path().join("b"), "secret").expect("a file");
    let guest = guest("script");
    let steps = |n: u64, more: &[Value]| {
        let read = json!({"do": "file", "call": "read-stream", "path": "a", "n": n});
        let list = json!({"do": "file", "call": "list", "path": "."});
        let write = json!({"do": "file", "call": "write-stream", "path": "c", "text": format!("{n}")});
        Value::from([&[read, list, write], more].concat()).to_string()
    };
    let body = steps(4, &[]);
    let recorded = run(&guest, post(body.as_bytes()), mounting(folder.path()), recording()).await;
    assert_eq!(said(&recorded)[0], r#"Ok((["0123", "4567", "89"], "closed"))"#);
    std::fs::remove_file(folder.path().join("a")).expect("it was there");
    std::fs::remove_file(folder.path().join("c")).expect("it was written");

    let body = steps(
        100,
        &[
            json!({"do": "file", "call": "read-stream", "path": "a", "n": 7}),
            json!({"do": "file", "call": "read-stream", "path": "b", "n": 7}),
            json!({"do": "file", "call": "list", "path": "."}),
        ],
    );
    let answer = Journaling::Answer { journal: journal_of(&recorded), allow_live: false };
    let replay = run(&guest, post(body.as_bytes()), mounting(folder.path()), answer).await;
    let now = said(&replay);
    // As it was read: in pieces of at most four.
    assert_eq!(now[0], r#"Ok((["0123", "4567", "89"], "closed"))"#);
    assert_eq!(now[1], said(&recorded)[1], "the names that it had then");
    assert_eq!(now[2], said(&recorded)[2], "a write goes nowhere, and goes well");
    assert_eq!(now[3], now[0]);
    let denied = now[4].as_str().expect("text");
    assert!(denied.contains("not-permitted"), "{denied}");
    assert!(now[5].as_str().is_some_and(|list| list.contains("not-permitted")), "its names were told once: {now}");
    let Replayed { unmatched, unmatched_dropped: dropped, .. } = replay.replayed.expect("a replay");
    let asked: Vec<_> = unmatched.iter().map(|unmatched| &unmatched.request[..]).collect();
    assert!(asked[0].starts_with("open-at /m/b ") && asked[1] == "read-directory-entry /m/.", "{asked:?}");
    assert!(unmatched.iter().all(|unmatched| !unmatched.live) && dropped == 0);
    assert!(!folder.path().join("c").exists());

    // Of very many the first are told, and how many more there were.
    let many = vec![json!({"do": "file", "call": "read-stream", "path": "b", "n": 7}); 1003];
    let answer = Journaling::Answer { journal: journal_of(&recorded), allow_live: false };
    let replay = run(&guest, post(Value::from(many).to_string().as_bytes()), mounting(folder.path()), answer).await;
    let Replayed { unmatched, unmatched_dropped, went_out, .. } = replay.replayed.expect("a replay");
    assert_eq!((unmatched.len(), unmatched_dropped, went_out), (1000, 3, false));
}
