//! Each function's own queue: what waits for one function holds up no other.
//!
//! A lane holds a bounded part of the room for deliveries. What finds no place in it waits as a place in the log, not as
//! a record in memory, and is read again when its turn comes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use nexus_core::ids::{FunctionName, Seq};
use nexus_core::record::Record;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::ordered::Key;
use super::tracker::InFlight;

/// One function may fill a fourth of the room for deliveries.
const LANES_IN_ROOM: u32 = 4;
/// Deliveries that wait in all lanes together. Beyond, events wait in the log, whoever they are for.
const WAITING_MAX: usize = 250_000;

/// One delivery to be made.
pub(super) struct Work {
    pub seq: Seq,
    pub name: FunctionName,
    /// Counted from 1.
    pub attempt: u32,
    /// What it holds in memory while it is made.
    pub kib: u32,
    /// The event, while it need not be read first.
    pub record: Option<Arc<Record>>,
    /// By what it is kept in order, if it is.
    pub key: Option<Key>,
    pub in_flight: InFlight,
}

pub(super) struct Lanes {
    lane_kib: u32,
    inner: Mutex<Inner>,
    left: Notify,
}

#[derive(Default)]
struct Inner {
    lanes: HashMap<FunctionName, Lane>,
    waiting: usize,
}

#[derive(Default)]
struct Lane {
    held_kib: u32,
    waiting: VecDeque<Work>,
}

impl Lane {
    /// A delivery that is larger than the whole lane is let in alone: it could never get in otherwise.
    fn has_place(&self, kib: u32, lane_kib: u32) -> bool {
        self.held_kib == 0 || self.held_kib.saturating_add(kib) <= lane_kib
    }
}

impl Lanes {
    pub fn new(room_kib: u32) -> Self {
        Self { lane_kib: room_kib / LANES_IN_ROOM, inner: Mutex::default(), left: Notify::new() }
    }

    /// Gives the delivery back if it may begin, or keeps it until those before it have left.
    pub fn enter(&self, mut work: Work) -> Option<Work> {
        let mut inner = self.inner.lock();
        let Inner { lanes, waiting } = &mut *inner;
        let lane = lanes.entry(work.name.clone()).or_default();
        if lane.waiting.is_empty() && lane.has_place(work.kib, self.lane_kib) {
            lane.held_kib += work.kib;
            return Some(work);
        }
        work.record = None;
        lane.waiting.push_back(work);
        *waiting += 1;
        None
    }

    /// A delivery that had entered is over; those that may begin now.
    pub fn leave(&self, name: &FunctionName, kib: u32) -> Vec<Work> {
        let mut next = Vec::new();
        let mut inner = self.inner.lock();
        let Inner { lanes, waiting } = &mut *inner;
        let Some(lane) = lanes.get_mut(name) else { return next };
        lane.held_kib = lane.held_kib.saturating_sub(kib);
        while lane.waiting.front().is_some_and(|first| lane.has_place(first.kib, self.lane_kib))
            && let Some(work) = lane.waiting.pop_front()
        {
            lane.held_kib += work.kib;
            next.push(work);
        }
        *waiting -= next.len();
        if lane.held_kib == 0 {
            lanes.remove(name);
        }
        drop(inner);
        self.left.notify_one();
        next
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

    fn work(tracker: &Tracker, seq: u64, name: &str, kib: u32) -> Work {
        let (seq, name) = (Seq(seq), name.parse().expect("a name"));
        Work { seq, name, attempt: 1, kib, record: None, key: None, in_flight: tracker.begin(seq, 1) }
    }

    #[test]
    fn a_full_lane_keeps_its_order_and_leaves_others_alone() {
        let (tracker, lanes) = (Tracker::default(), Lanes::new(400));
        let enters = |seq, name, kib| lanes.enter(work(&tracker, seq, name, kib)).is_some();
        let leaves = |name: &str, kib| {
            lanes.leave(&name.parse().expect("a name"), kib).iter().map(|w| w.seq.0).collect::<Vec<_>>()
        };
        assert!(enters(1, "a", 60));
        assert!(!enters(2, "a", 60), "no place");
        assert!(!enters(3, "a", 10), "a small one does not overtake");
        assert!(enters(4, "b", 100), "another lane");
        assert_eq!(leaves("a", 60), [2, 3]);
        assert_eq!(leaves("a", 10), [0; 0]);
        assert_eq!(leaves("a", 60), [0; 0]);
        assert!(enters(5, "a", 4000), "too large for any lane, but alone");
        assert!(!enters(6, "a", 1));
        assert_eq!(leaves("a", 4000), [6]);
    }
}
