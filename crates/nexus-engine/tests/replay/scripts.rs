//! Sequences of calls of the host that nobody thought of, against a world that is never the same.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::guests::{config, guest, journal_of, playing, post, recording, run, same};
use super::whimsy::Whimsy;

/// A step of the guest `script`; `@` stands for the server, which is known only when it runs.
fn step() -> impl Strategy<Value = Value> {
    let urls = prop::collection::vec(
        prop_oneof![4 => Just("@/a"), 1 => Just("http://127.0.0.1:1/refused"), 1 => Just("http://elsewhere.invalid/denied")],
        0..6,
    );
    prop_oneof![
        Just(json!({"do": "wall"})),
        Just(json!({"do": "monotonic"})),
        Just(json!({"do": "resolution"})),
        (0..3000_u64).prop_map(|n| json!({"do": "random", "n": n})),
        Just(json!({"do": "random-u64"})),
        (0..100_u64).prop_map(|n| json!({"do": "insecure", "n": n})),
        Just(json!({"do": "insecure-u64"})),
        Just(json!({"do": "seed"})),
        (0..2_000_000_u64).prop_map(|ns| json!({"do": "sleep", "ns": ns})),
        (0..1_000_000_u64).prop_map(|ns| json!({"do": "spin", "ns": ns})),
        prop::collection::vec(0..2_000_000_u64, 1..6).prop_map(|ns| json!({"do": "race", "ns": ns})),
        (urls, prop_oneof![Just(1_u64), Just(77), Just(1000), Just(65_536)])
            .prop_map(|(urls, chunk)| json!({"do": "fan", "urls": urls, "chunk": chunk})),
        "[a-z]{0,3000}".prop_map(
            |body| json!({"do": "post", "url": "@/p", "body": body, "headers": {"x-a": "1", "authorization": "hush"}})
        ),
        "[a-zA-Z ]{0,40}".prop_map(|text| json!({"do": "print", "text": text})),
        (0..2000_u64).prop_map(|kb| json!({"do": "grow", "kb": kb})),
        Just(json!({"do": "nan"})),
        Just(json!({"do": "miscounted-body"})),
        Just(json!({"do": "unknown"})),
    ]
}

fn script() -> impl Strategy<Value = Vec<Value>> {
    let end = prop_oneof![8 => Just(None), 1 => Just(Some("trap")), 1 => Just(Some("oversized-write"))];
    (prop::collection::vec(step(), 0..14), end).prop_map(|(mut steps, end)| {
        steps.extend(end.map(|end| json!({"do": end})));
        steps
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

#[test]
fn any_sequence_of_calls_is_played_back_to_the_bit() {
    let runtime = runtime();
    let whimsy = runtime.block_on(Whimsy::start());
    let guest = guest("script");
    let cases = std::env::var("NEXUS_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(150);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let answered = Cell::new(0);
    let all = runner.run(&script(), |steps| {
        let body = Value::from(steps).to_string().replace("@", &whimsy.url(""));
        let recorded = runtime.block_on(run(&guest, post(body.as_bytes()), config(), recording()));
        let journal = journal_of(&recorded);
        let asked = whimsy.asked();
        let replay = runtime.block_on(run(&guest, post(body.as_bytes()), config(), playing(journal)));
        same(&recorded, &replay, &body);
        prop_assert_eq!(whimsy.asked(), asked, "a replay asks nobody");
        answered.set(answered.get() + replay.replayed.map_or(0, |replayed| replayed.calls));
        Ok(())
    });
    if let Err(failed) = all {
        panic!("{failed}");
    }
    let answered = answered.get();
    assert!(answered > 1000, "{answered} calls were played back: too few to mean anything");
    assert!(whimsy.asked() > 50);
}
