//! Outcomes, what they emit, and how far delivery has come.

use jiff::SignedDuration;
use nexus_core::ids::{FunctionName, InvocationId, Seq};
use nexus_core::outcome::Disposition;
use nexus_core::record::Cause;

use super::{Harness, Settings, advance, append, commit, numbered, open, opened, outcome, start};
use crate::contract::{Commit, Parked, Progress, Release, Storage, StorageError};

fn retry(seconds: i64) -> Disposition {
    Disposition::Retry { at: start() + SignedDuration::from_secs(seconds) }
}

/// Attempts and replays of an event come oldest first; each is found by its invocation; after a restart too.
pub async fn outcomes_come_in_order_and_by_invocation(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, opened, storage) = opened(harness, &settings).await;
    let (one, two) =
        (append(&*storage.log, numbered(&settings, 1)).await, append(&*storage.log, numbered(&settings, 2)).await);
    let of_one =
        [outcome(one, 1, retry(1)), outcome(one, 2, Disposition::Done), outcome(one, 1, Disposition::Replayed)];
    let of_two = outcome(two, 1, Disposition::Done);
    for outcome in [&of_one[0], &of_two, &of_one[1], &of_one[2]] {
        commit(&*storage.log, outcome.clone()).await;
    }
    opened.close().await.expect("close");
    let again = open(&*place, &settings).await;
    let log = again.storage().log;
    assert_eq!(log.outcomes(one).await.expect("outcomes"), of_one);
    assert_eq!(log.outcomes(two).await.expect("outcomes"), std::slice::from_ref(&of_two));
    assert!(log.outcomes(Seq(3)).await.expect("outcomes").is_empty());
    for outcome in of_one.iter().chain([&of_two]) {
        assert_eq!(log.outcome(outcome.invocation_id).await.expect("outcome").as_ref(), Some(outcome));
    }
    assert_eq!(log.outcome(InvocationId::generate()).await.expect("outcome"), None);
    again.close().await.expect("close");
}

/// Whoever asks together with others, about neighbours, what is far away, what has none, or the same, gets what is its own.
pub async fn many_ask_for_outcomes_at_once(harness: &dyn Harness) {
    let settings = Settings::default();
    let (_place, opened, storage) = opened(harness, &settings).await;
    let mut all = vec![Vec::new()];
    for n in 1..=60 {
        let seq = append(&*storage.log, numbered(&settings, n)).await;
        // None, one, two or three of an event; and a gap that is wider than what counts as near.
        let count = if (20..40).contains(&n) { 0 } else { n % 4 };
        let outcomes: Vec<_> = (1..=count as u32).map(|attempt| outcome(seq, attempt, retry(5))).collect();
        for outcome in &outcomes {
            commit(&*storage.log, outcome.clone()).await;
        }
        all.push(outcomes);
    }
    let mut asked: Vec<usize> = (0..=61).chain([7, 7, 60]).collect();
    asked.reverse();
    let asking: Vec<_> = asked
        .into_iter()
        .map(|n| {
            let log = storage.log.clone();
            (n, tokio::spawn(async move { log.outcomes(Seq(n as u64)).await }))
        })
        .collect();
    for (n, answer) in asking {
        let found = answer.await.expect("no panic").expect("outcomes");
        assert_eq!(found, all.get(n).cloned().unwrap_or_default(), "of {n}");
    }
    opened.close().await.expect("close");
}

/// The outcome and the emitted events are there together; an emitted duplicate is answered as such.
pub async fn a_commit_is_one_with_what_it_emits(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, opened, storage) = opened(harness, &settings).await;
    let seq = append(&*storage.log, numbered(&settings, 1)).await;
    let outcome = outcome(seq, 1, Disposition::Done);
    let mut emitted: Vec<_> = [1, 2, 3].map(|n| numbered(&settings, n)).to_vec();
    for record in &mut emitted {
        record.cause = Some(Cause { seq, invocation_id: outcome.invocation_id, depth: 1 });
        record.target = Some("next".parse().expect("a function name"));
    }
    let receipts =
        storage.log.commit(Commit { outcome: outcome.clone().into(), emitted: emitted.clone() }).await.expect("commit");
    let found: Vec<(u64, bool)> = receipts.iter().map(|receipt| (receipt.seq.0, receipt.duplicate)).collect();
    assert_eq!(found, [(1, true), (2, false), (3, false)]);
    assert_eq!(*storage.log.head().borrow(), Seq(3));
    opened.close().await.expect("close");

    let again = open(&*place, &settings).await;
    let log = again.storage().log;
    assert_eq!(log.outcomes(seq).await.expect("outcomes"), [outcome]);
    let read = log.read(Seq(2), 10).await.expect("read");
    assert_eq!(read.iter().map(|record| record.entry.clone()).collect::<Vec<_>>(), emitted[1..]);
    again.close().await.expect("close");
}

/// Whoever lost the answer commits again: there is one outcome, and the events were emitted once.
pub async fn a_second_commit_of_an_invocation_adds_nothing(harness: &dyn Harness) {
    let settings = Settings::default();
    let (_place, opened, storage) = opened(harness, &settings).await;
    let seq = append(&*storage.log, numbered(&settings, 1)).await;
    let commit = Commit { outcome: outcome(seq, 1, retry(5)).into(), emitted: vec![numbered(&settings, 2)] };
    let first = storage.log.commit(commit.clone()).await.expect("commit");
    let second = storage.log.commit(commit.clone()).await.expect("commit");
    assert_eq!((first[0].seq, first[0].duplicate), (Seq(2), false));
    assert_eq!((second[0].seq, second[0].duplicate), (Seq(2), true));
    assert_eq!(storage.log.outcomes(seq).await.expect("outcomes"), [(*commit.outcome).clone()]);
    assert_eq!(storage.log.progress().await.expect("progress").parked.len(), 1);
    opened.close().await.expect("close");
}

/// A delivery without an attempt is parked, until it has an outcome; after a restart too.
pub async fn what_is_for_later_is_parked_once(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, opened, storage) = opened(harness, &settings).await;
    let seq = append(&*storage.log, numbered(&settings, 1)).await;
    let later = |function: &str, seconds| Parked {
        seq,
        function: function.parse().expect("a function name"),
        attempt: 0,
        at: start() + SignedDuration::from_secs(seconds),
    };
    let parked = |storage: &Storage| {
        let log = storage.log.clone();
        async move { log.progress().await.expect("progress").parked }
    };
    storage.log.park(vec![later("worker", 10), later("other", 20)]).await.expect("park");
    // The same again, and one that was done meanwhile.
    storage.log.park(vec![later("worker", 30)]).await.expect("park");
    assert_eq!(parked(&storage).await, [later("other", 20), later("worker", 10)]);
    assert_eq!(storage.log.parked(seq).await.expect("parked"), [later("other", 20), later("worker", 10)]);
    assert_eq!(storage.log.parked(seq.next()).await.expect("parked"), []);
    commit(&*storage.log, outcome(seq, 1, Disposition::Done)).await;
    storage.log.park(vec![later("worker", 10)]).await.expect("park");
    assert_eq!(parked(&storage).await, [later("other", 20)]);

    let tried = Parked { attempt: 1, ..later("worker", 1) };
    assert!(matches!(storage.log.park(vec![tried]).await, Err(StorageError::Invalid(_))));
    opened.close().await.expect("close");
    let again = open(&*place, &settings).await;
    assert_eq!(parked(&again.storage()).await, [later("other", 20)]);
    again.close().await.expect("close");
}

/// `Retry` parks and parks anew, `Done` and `Dead` release, `Replayed` leaves it as it is; after a restart too.
pub async fn dispositions_park_and_release(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, mut opened, storage) = opened(harness, &settings).await;
    let seq = append(&*storage.log, numbered(&settings, 1)).await;
    let parked = |attempt, seconds| {
        vec![Parked {
            seq,
            function: "worker".parse().expect("a function name"),
            attempt,
            at: start() + SignedDuration::from_secs(seconds),
        }]
    };
    for (attempt, disposition, expected) in [
        (1, retry(10), parked(1, 10)),
        (2, retry(20), parked(2, 20)),
        (1, Disposition::Replayed, parked(2, 20)),
        (3, Disposition::Done, vec![]),
        (1, Disposition::Replayed, vec![]),
        (4, retry(30), parked(4, 30)),
        (5, Disposition::Dead, vec![]),
        (6, Disposition::Dead, vec![]),
    ] {
        commit(&*opened.storage().log, outcome(seq, attempt, disposition)).await;
        assert_eq!(opened.storage().log.progress().await.expect("progress").parked, expected, "{disposition:?}");
        opened.close().await.expect("close");
        opened = open(&*place, &settings).await;
        assert_eq!(
            opened.storage().log.progress().await.expect("progress").parked,
            expected,
            "{disposition:?}, reopened"
        );
    }
    // Each function has its own.
    for function in ["a", "b"] {
        let mut outcome = outcome(seq, 1, retry(1));
        outcome.function = function.parse().expect("a function name");
        commit(&*opened.storage().log, outcome).await;
    }
    let functions: Vec<String> = opened
        .storage()
        .log
        .progress()
        .await
        .expect("progress")
        .parked
        .iter()
        .map(|p| p.function.to_string())
        .collect();
    assert_eq!(functions, ["a", "b"]);
    opened.close().await.expect("close");
}

/// The mark is there after a restart, and never goes back.
pub async fn progress_is_there_after_reopening(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, mut opened, storage) = opened(harness, &settings).await;
    assert_eq!(storage.log.progress().await.expect("progress"), Progress::default());
    storage.log.append((0..10).map(|n| numbered(&settings, n)).collect()).await.expect("append");
    for (mark, expected) in [(4, 4), (2, 4), (11, 11)] {
        advance(&*opened.storage().log, Seq(mark)).await.expect("advance");
        opened.close().await.expect("close");
        opened = open(&*place, &settings).await;
        let progress = opened.storage().log.progress().await.expect("progress");
        assert_eq!(progress, Progress { delivered_below: Seq(expected), parked: Vec::new() });
    }
    opened.close().await.expect("close");
}

/// What is given up is listed, newest first, until it is tried again or dropped; after a restart too. What was emitted instead is
/// not in the list.
pub async fn dead_letters_are_kept_until_they_are_released(harness: &dyn Harness) {
    let settings = Settings::default();
    let (place, mut opened, storage) = opened(harness, &settings).await;
    storage.log.append((1..=6).map(|n| numbered(&settings, n)).collect()).await.expect("append");
    let function = |name: &str| name.parse::<FunctionName>().expect("a function name");
    for (seq, name, emitted) in [(1, "a", false), (2, "b", false), (2, "a", false), (3, "a", true), (4, "a", false)] {
        let mut outcome = outcome(Seq(seq), 3, Disposition::Dead);
        (outcome.function, outcome.dead_letter_emitted) = (function(name), emitted);
        commit(&*storage.log, outcome).await;
    }
    commit(&*storage.log, outcome(Seq(5), 1, Disposition::Expired)).await;
    for again in [false, true] {
        if again {
            opened.close().await.expect("close");
            opened = open(&*place, &settings).await;
        }
        let log = opened.storage().log;
        let list = async |of: Option<&str>, after: Option<(u64, &str)>, limit: usize| {
            let of = of.map(function);
            let after = after.map(|(seq, name)| (Seq(seq), function(name)));
            let letters = log.dead_letters(of.as_ref(), after, limit).await.expect("dead letters");
            assert!(letters.iter().all(|letter| letter.attempt == 3 && letter.at == start()), "{letters:?}");
            letters.iter().map(|letter| (letter.seq.0, letter.function.to_string())).collect::<Vec<_>>()
        };
        let named =
            |letters: &[(u64, &str)]| letters.iter().map(|(seq, name)| (*seq, (*name).to_owned())).collect::<Vec<_>>();
        assert_eq!(list(None, None, 10).await, named(&[(4, "a"), (2, "b"), (2, "a"), (1, "a")]));
        assert_eq!(list(None, None, 2).await, named(&[(4, "a"), (2, "b")]));
        assert_eq!(list(None, Some((2, "b")), 10).await, named(&[(2, "a"), (1, "a")]));
        assert_eq!(list(Some("b"), None, 10).await, named(&[(2, "b")]));
        assert_eq!(list(Some("c"), None, 10).await, named(&[]));
    }
    let log = opened.storage().log;
    let mut released = log.released();
    released.borrow_and_update();
    let some = vec![(Seq(2), function("a")), (Seq(4), function("a")), (Seq(6), function("a"))];
    assert_eq!(log.release(some.clone(), Release::Retry).await.expect("release"), 2);
    assert!(released.has_changed().expect("open"), "whoever delivers is told");
    assert_eq!(log.release(some, Release::Retry).await.expect("release"), 0, "they are there no more");
    assert_eq!(log.release(vec![(Seq(1), function("a"))], Release::Drop).await.expect("release"), 1);
    opened.close().await.expect("close");
    opened = open(&*place, &settings).await;
    let log = opened.storage().log;
    let left = log.dead_letters(None, None, 10).await.expect("dead letters");
    assert_eq!(left.iter().map(|letter| letter.seq.0).collect::<Vec<_>>(), [2]);
    let parked = log.progress().await.expect("progress").parked;
    let parked: Vec<_> = parked.iter().map(|p| (p.seq.0, p.function.as_str(), p.attempt, p.at)).collect();
    assert_eq!(parked, [(2, "a", 3, start()), (4, "a", 3, start())]);
    opened.close().await.expect("close");
}
