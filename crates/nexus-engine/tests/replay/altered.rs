//! Replays that are not what was recorded: the first call that differs is named, and nothing goes out.

use std::sync::Arc;

use bytes::Bytes;
use nexus_core::journal::{Entry, Got, Journal, Read, Whose};
use nexus_core::outcome::InvocationStatus;
use nexus_engine::{Finished, Journaling};
use serde_json::{Value, json};

use super::guests::{config, guest, journal_of, playing, post, recording, run};
use super::whimsy::Whimsy;

/// A script, recorded, and played back from a journal that was altered.
async fn altered(steps: &Value, alter: impl FnOnce(&mut Journal)) -> Finished {
    let guest = guest("script");
    let body = steps.to_string();
    let recorded = run(&guest, post(body.as_bytes()), config(), recording()).await;
    let mut journal = (*journal_of(&recorded)).clone();
    alter(&mut journal);
    run(&guest, post(body.as_bytes()), config(), playing(Arc::new(journal))).await
}

fn left(finished: &Finished) -> (usize, Option<String>, Option<String>) {
    let divergence = finished.replayed.as_ref().expect("a replay").divergence.clone().expect("it left the recording");
    (divergence.call, divergence.expected, divergence.actual)
}

#[tokio::test]
async fn the_first_call_that_differs_is_named() {
    let steps = json!([{"do": "print", "text": "begun"}, {"do": "wall"}, {"do": "random-u64"}, {"do": "monotonic"}]);
    let replay = altered(&steps, |journal| journal.entries[1] = Entry::Random(5)).await;
    let named = |text: &str| Some(text.to_owned());
    assert_eq!(left(&replay), (1, named("wasi:random/random 5 bytes"), named("wasi:random/random 8 bytes")));
    assert_eq!(replay.status, InvocationStatus::Trap);
    assert_eq!(replay.logs[0].line, "begun", "what it had printed by then");

    let replay = altered(&steps, |journal| journal.entries.truncate(2)).await;
    assert_eq!(left(&replay), (2, None, named("wasi:clocks/monotonic-clock.now")));

    let replay = altered(&steps, |journal| journal.entries.push(Entry::Block)).await;
    let (_, expected, actual) = left(&replay);
    assert_eq!((expected, actual), (named("wasi:io/poll.pollable.block"), None));

    let replay = altered(&steps, |journal| journal.entries.insert(0, Entry::Wall(1))).await;
    assert_eq!(left(&replay).0, 1, "a clock more than was read");
}

/// Code that another engine compiled may do the same; where it does not, it is known that it was another.
#[tokio::test]
async fn another_engine_is_noticed() {
    let steps = json!([{"do": "wall"}, {"do": "seed"}]);
    for other in [false, true] {
        let replay = altered(&steps, |journal| journal.header.engine ^= u64::from(other)).await;
        let replayed = replay.replayed.expect("a replay");
        assert_eq!((replayed.divergence, replayed.other_engine), (None, other));
    }
}

#[tokio::test]
async fn requests_that_differ_are_named_with_both_sides() {
    let whimsy = Whimsy::start().await;
    let steps = json!([{"do": "post", "url": whimsy.url("/p"), "body": "hello", "headers": {"x-a": "1", "authorization": "hush"}}]);
    let asked = |journal: &Journal| journal.entries.iter().position(|e| matches!(e, Entry::Request(..))).expect("one");
    let replay = altered(&steps, |journal| {
        let at = asked(journal);
        let Entry::Request(sent, _) = &mut journal.entries[at] else { unreachable!() };
        let secret = sent.headers.iter().find(|(name, _)| name == "authorization").expect("it was sent");
        assert_eq!(secret.1, "[redacted]", "what is secret is not in it");
        sent.url = "http://127.0.0.1:1/other".into();
    })
    .await;
    let (_, expected, actual) = left(&replay);
    assert!(expected.is_some_and(|e| e.contains("POST http://127.0.0.1:1/other")));
    let actual = actual.expect("what it did");
    assert!(actual.contains(&whimsy.url("/p")) && actual.contains("[redacted]"), "{actual}");
    assert!(!actual.contains("hush"), "what is secret is not told here either: {actual}");

    let replay = altered(&steps, |journal| {
        let wrote = journal.entries.iter_mut().find_map(|entry| match entry {
            Entry::Write(Whose::Request, _, hash, beginning, _) => Some((hash, beginning)),
            _ => None,
        });
        let (hash, beginning) = wrote.expect("a write");
        assert_eq!(*beginning, "hello");
        (*hash, *beginning) = (7, Bytes::from_static(b"hullo"));
    })
    .await;
    let (_, expected, actual) = left(&replay);
    assert!(expected.is_some_and(|e| e.contains(": hullo")) && actual.is_some_and(|a| a.contains(": hello")));
    assert_eq!(whimsy.asked(), 2, "the recorded ones");
}

#[tokio::test]
async fn what_the_guest_is_told_is_what_the_journal_says() {
    let whimsy = Whimsy::start().await;
    let steps = json!([{"do": "wall"}, {"do": "fan", "urls": [whimsy.url("/a")], "chunk": 100}]);
    let replay = altered(&steps, |journal| {
        // A world of our own: the journal is all that the guest knows of it.
        let ends = journal.entries.iter().position(|e| matches!(e, Entry::Request(..))).expect("one") + 1;
        let tail: Vec<_> =
            journal.entries.iter().filter(|e| matches!(e, Entry::MayWrite(..) | Entry::Flush(..))).cloned().collect();
        let sent = journal.entries[ends - 1].clone();
        let head = nexus_core::journal::Head { status: 299, headers: vec![("x-z".into(), Bytes::from_static(b"q"))] };
        journal.entries = vec![
            Entry::Wall(1_000_000_007),
            sent,
            Entry::Poll(1, vec![0]),
            Entry::Response(0, Got::Head(Box::new(head))),
            Entry::Body(0, Read::Bytes(Bytes::from_static(b"abc"))),
            Entry::Body(0, Read::Failed("the moon fell".into())),
            Entry::ErrorText("the moon fell".into()),
            Entry::Block,
            Entry::Trailers(Got::Nothing),
        ];
        // What it says of all this is not what it said then: there it leaves the recording.
        journal.entries.extend(tail);
    })
    .await;
    let (_, _, actual) = left(&replay);
    assert!(actual.is_some_and(|a| a.contains("to the body of the response")), "it got as far as its own answer");
}

/// Another payload: what is asked again is answered, what is not is denied, or goes out where that is allowed.
#[tokio::test]
async fn another_payload_is_answered_from_the_same_journal() {
    let whimsy = Whimsy::start().await;
    let guest = guest("script");
    let fan = |paths: &[&str]| {
        let urls: Vec<_> = paths.iter().map(|path| whimsy.url(path)).collect();
        json!([{"do": "wall"}, {"do": "seed"}, {"do": "random-u64"}, {"do": "fan", "urls": urls, "chunk": 65536}])
            .to_string()
    };
    let body = fan(&["/a", "/b"]);
    let recorded = run(&guest, post(body.as_bytes()), config(), recording()).await;
    let journal = journal_of(&recorded);
    let then: Value = serde_json::from_slice(&recorded.answer.body).expect("JSON");

    let asked = whimsy.asked();
    let answer = |allow_live| Journaling::Answer { journal: journal.clone(), allow_live };
    let other = fan(&["/b", "/c", "/a"]);
    let replay = run(&guest, post(other.as_bytes()), config(), answer(false)).await;
    let now: Value = serde_json::from_slice(&replay.answer.body).expect("JSON");
    assert_eq!(whimsy.asked(), asked);
    assert_eq!((&now[0], &now[2]), (&then[0], &then[2]), "the clock, and what was drawn");
    let of = |answer: &Value, at: u64| {
        let all = answer[3].as_array().expect("a list").iter();
        let found = all.filter(|came| came[0] == at).map(|came| came[1].clone()).next().expect("an answer");
        // How it is cut into pieces is not the answer's.
        match found {
            Value::Object(mut found) => {
                found.remove("pieces");
                found.remove("end");
                found.into()
            }
            other => other,
        }
    };
    let matches = |now: Value, then: Value| now == then || then.is_string();
    assert!(matches(of(&now, 2), of(&then, 0)), "/a: {now:#} {then:#}");
    assert!(matches(of(&now, 0), of(&then, 1)), "/b: {now:#} {then:#}");
    assert_eq!(of(&now, 1), "ErrorCode::HttpRequestDenied");
    let unmatched = &replay.replayed.as_ref().expect("a replay").unmatched;
    assert_eq!(unmatched.len(), 1);
    assert!(unmatched[0].request.ends_with("/c") && !unmatched[0].live);

    // Clocks go on where the recording ends, and are now where there is none.
    let clocks =
        json!([{"do": "monotonic"}, {"do": "spin", "ns": 1_000_000}, {"do": "wall"}, {"do": "wall"}]).to_string();
    let replay = run(&guest, post(clocks.as_bytes()), config(), answer(false)).await;
    let told: Value = serde_json::from_slice(&replay.answer.body).expect("JSON");
    assert_eq!(told[2], then[0], "the recorded one first");
    let nanos = |at: usize| told[at][0].as_u64().expect("s") * 1_000_000_000 + told[at][1].as_u64().expect("ns");
    assert!(nanos(3) >= nanos(2) && nanos(3) < nanos(2) + 60_000_000_000, "then it goes on: {told}");

    let replay = run(&guest, post(other.as_bytes()), config(), answer(true)).await;
    assert_eq!(whimsy.asked(), asked + 1);
    let replayed = replay.replayed.expect("a replay");
    assert!(replayed.unmatched[0].live && replayed.went_out);
}
