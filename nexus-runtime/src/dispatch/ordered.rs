//! Events that belong together, delivered to a function one after the other.
//!
//! A key is held while an event of it is delivered, and for as long as that waits to be tried again; what comes behind it waits.
//! Other keys go on.

use std::collections::{HashMap, VecDeque};

use nexus_core::ids::{FunctionName, Seq};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::lanes::Work;

/// Deliveries that wait behind others of their keys, all together. Beyond, events wait in the log, whoever they are for.
const WAITING_MAX: usize = 250_000;

/// What keeps a delivery in order: the function, and the event's key.
pub(super) type Key = (FunctionName, String);

#[derive(Default)]
pub(super) struct Ordered {
    inner: Mutex<Inner>,
    left: Notify,
}

#[derive(Default)]
struct Inner {
    keys: HashMap<Key, Held>,
    waiting: usize,
}

struct Held {
    /// By this event.
    seq: Seq,
    /// It is not running, but waits to be tried again.
    parked: bool,
    waiting: VecDeque<Work>,
}

impl Ordered {
    /// Gives the delivery back if its key is free, and holds that for it, or if its event holds it already, for an attempt before;
    /// or keeps it until those before it have left.
    pub fn enter(&self, key: &Key, mut work: Work) -> Option<Work> {
        let mut inner = self.inner.lock();
        if let Some(held) = inner.keys.get_mut(key) {
            if held.seq == work.seq {
                held.parked = false;
                return Some(work);
            }
            work.record = None;
            held.waiting.push_back(work);
            inner.waiting += 1;
            return None;
        }
        inner.keys.insert(key.clone(), Held { seq: work.seq, parked: false, waiting: VecDeque::new() });
        Some(work)
    }

    /// An event waits to be tried again, and holds its key meanwhile; unless another does.
    pub fn park(&self, key: &Key, seq: Seq) {
        let mut inner = self.inner.lock();
        let free = || Held { seq, parked: true, waiting: VecDeque::new() };
        let held = inner.keys.entry(key.clone()).or_insert_with(free);
        if held.seq == seq {
            held.parked = true;
        }
    }

    /// The event that held the key is settled: the next, which holds it now.
    pub fn leave(&self, key: &Key, seq: Seq) -> Option<Work> {
        let mut inner = self.inner.lock();
        let held = inner.keys.get_mut(key).filter(|held| held.seq == seq)?;
        held.parked = false;
        let next = held.waiting.pop_front();
        match &next {
            Some(next) => {
                held.seq = next.seq;
                inner.waiting -= 1;
            }
            None => drop(inner.keys.remove(key)),
        }
        drop(inner);
        self.left.notify_one();
        next
    }

    /// Everything is looked at anew: what waits is let go and given back, and keys are held by what runs alone.
    pub fn reset(&self) -> Vec<Work> {
        let mut inner = self.inner.lock();
        let waiting: Vec<Work> = inner.keys.values_mut().flat_map(|held| held.waiting.drain(..)).collect();
        inner.keys.retain(|_, held| !held.parked);
        inner.waiting = 0;
        drop(inner);
        waiting.iter().for_each(|work| work.in_flight.settle());
        self.left.notify_one();
        waiting
    }

    /// Waits until another delivery may wait.
    pub async fn place_to_wait(&self) {
        while self.inner.lock().waiting >= WAITING_MAX {
            self.left.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tracker::Tracker;
    use super::*;

    fn work(tracker: &Tracker, seq: u64) -> Work {
        let (seq, name) = (Seq(seq), "f".parse().expect("a name"));
        Work { seq, name, attempt: 1, kib: 1, record: None, key: None, in_flight: tracker.begin(seq, 1) }
    }

    fn key(key: &str) -> Key {
        ("f".parse().expect("a name"), key.to_owned())
    }

    #[test]
    fn one_key_waits_and_others_go_on() {
        let (tracker, ordered) = (Tracker::default(), Ordered::default());
        let enters = |seq, name: &str| ordered.enter(&key(name), work(&tracker, seq)).is_some();
        let leaves = |seq, name: &str| ordered.leave(&key(name), Seq(seq)).map(|work| work.seq.0);
        assert!(enters(1, "a"));
        assert!(!enters(2, "a") && !enters(3, "a"));
        assert!(enters(4, "b"));
        ordered.park(&key("a"), Seq(1));
        assert_eq!((leaves(4, "b"), leaves(3, "a")), (None, None));
        assert!(enters(1, "a"), "another attempt of the one that holds it");
        assert_eq!((leaves(1, "a"), leaves(2, "a"), leaves(3, "a")), (Some(2), Some(3), None));
        assert!(enters(5, "a"), "free again");
    }

    #[test]
    fn a_reset_lets_go_of_what_waits() {
        let (tracker, ordered) = (Tracker::default(), Ordered::default());
        tracker.start_at(Seq(1), 0);
        let running = ordered.enter(&key("a"), work(&tracker, 1)).expect("free");
        assert!(ordered.enter(&key("a"), work(&tracker, 2)).is_none());
        ordered.park(&key("b"), Seq(9));
        assert!(ordered.enter(&key("b"), work(&tracker, 3)).is_none());
        let mut let_go: Vec<_> = ordered.reset().iter().map(|work| work.seq.0).collect();
        let_go.sort_unstable();
        assert_eq!(let_go, [2, 3]);
        assert_eq!([1, 2, 3].map(|seq| tracker.is_in_flight(Seq(seq))), [true, false, false]);
        assert!(ordered.enter(&key("a"), work(&tracker, 2)).is_none(), "it still runs");
        assert!(ordered.enter(&key("b"), work(&tracker, 3)).is_some(), "nobody runs");
        running.in_flight.settle();
    }
}
