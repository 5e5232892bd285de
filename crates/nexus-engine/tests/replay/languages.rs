//! JavaScript (StarlingMonkey) and Python (CPython): with their collectors of garbage, seeds of hashes, clocks and loops of events.
//!
//! Their components are 13 and 22 MB, so that they are not in the repository: `cargo xtask test` builds them and names their folder.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::guests::{config, guest_in, journal_of, playing, post, recording, run, same};
use super::whimsy::Whimsy;

/// How often each is recorded and replayed.
const ROUNDS: usize = 20;

async fn check(name: &str, differs: &[&str]) {
    let folder = std::env::var_os("NEXUS_LANGUAGES").unwrap_or_else(|| {
        panic!(
            "NEXUS_LANGUAGES does not name the folder of {name}.wasm: `cargo xtask languages` builds it and says how"
        )
    });
    let guest = guest_in(&PathBuf::from(folder).join(format!("{name}.wasm")));
    let whimsy = Whimsy::start().await;
    let urls: Vec<_> = (0..5).map(|i| whimsy.url(&format!("/{i}"))).collect();
    let body = json!({"urls": urls}).to_string();
    let mut answers: Vec<Value> = Vec::new();
    for _ in 0..ROUNDS {
        let recorded = run(&guest, post(body.as_bytes()), config(), recording()).await;
        assert_eq!(recorded.status.as_str(), "ok", "{name}: {:?} {:?}", recorded.error, recorded.logs);
        let journal = journal_of(&recorded);
        let asked = whimsy.asked();
        let replay = run(&guest, post(body.as_bytes()), config(), playing(journal)).await;
        same(&recorded, &replay, name);
        assert_eq!(whimsy.asked(), asked, "a replay asks nobody");
        answers.push(serde_json::from_slice(&recorded.answer.body).expect("JSON"));
    }
    // Otherwise the replays would mean nothing.
    for what in differs {
        assert!(answers.iter().any(|answer| answer[what] != answers[0][what]), "{name}: {what} never differed");
    }
}

#[tokio::test]
async fn javascript_is_played_back() {
    check("javascript", &["now", "random", "uuid", "bytes", "order", "came"]).await;
}

#[tokio::test]
async fn python_is_played_back() {
    check("python", &["now", "random", "secret", "uuid", "order", "came"]).await;
}
