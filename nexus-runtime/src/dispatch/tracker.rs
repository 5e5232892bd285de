//! How far delivery has come: below which place everything is settled, and what is in flight above it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nexus_core::ids::Seq;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Stage;

/// Counts what is in flight by place.
#[derive(Default)]
pub(super) struct Tracker {
    state: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    moved: Notify,
}

#[derive(Default)]
struct Inner {
    /// Everything before this place was read.
    read_below: Seq,
    /// Deliveries in flight by place, of events that are read in order.
    first: BTreeMap<Seq, usize>,
    /// Deliveries that are tried again; they do not hold the mark back, for they are parked in the log.
    again: HashMap<Seq, usize>,
    told: Seq,
    /// The epoch of the members in which the events that are read are this runtime's own.
    epoch: u64,
}

impl Inner {
    /// Everything before this place is settled.
    fn below(&self) -> Seq {
        self.first.keys().next().copied().unwrap_or(self.read_below).min(self.read_below)
    }
}

impl Tracker {
    /// Reading begins at this place, or begins again, in this epoch.
    pub fn start_at(&self, below: Seq, epoch: u64) {
        let mut inner = self.state.inner.lock();
        (inner.read_below, inner.told, inner.epoch) = (below, below, epoch);
    }

    /// Everything before this place was read.
    pub fn read_to(&self) -> Seq {
        self.state.inner.lock().read_below
    }

    /// Whether a first attempt of the event is in flight.
    #[cfg(test)]
    pub fn is_in_flight(&self, seq: Seq) -> bool {
        self.state.inner.lock().first.contains_key(&seq)
    }

    #[cfg(test)]
    fn below(&self) -> Seq {
        self.state.inner.lock().below()
    }

    /// Everything before this place was read and begun.
    pub fn read_below(&self, below: Seq) {
        self.state.inner.lock().read_below = below;
    }

    /// Begins so many deliveries of an event.
    pub fn begin(&self, seq: Seq, deliveries: usize) -> InFlight {
        *self.state.inner.lock().first.entry(seq).or_default() += deliveries;
        InFlight(Arc::new(Part {
            shared: self.state.clone(),
            seq,
            deliveries,
            again: false,
            unsettled: deliveries.into(),
        }))
    }

    /// Begins another attempt.
    pub fn begin_again(&self, seq: Seq) -> InFlight {
        *self.state.inner.lock().again.entry(seq).or_default() += 1;
        let part = Part { shared: self.state.clone(), seq, deliveries: 1, again: true, unsettled: 1.into() };
        InFlight(Arc::new(part))
    }

    pub fn stage(&self, seq: Seq) -> Stage {
        let inner = self.state.inner.lock();
        if inner.first.contains_key(&seq) || inner.again.contains_key(&seq) {
            Stage::InFlight
        } else if seq < inner.read_below {
            Stage::Settled
        } else {
            Stage::Waiting
        }
    }

    pub fn unsettled(&self, head: Seq) -> u64 {
        let inner = self.state.inner.lock();
        (head.next().0.saturating_sub(inner.read_below.0)) + (inner.first.len() + inner.again.len()) as u64
    }

    /// The mark and its epoch, if it moved since it was last asked for.
    pub fn news(&self) -> Option<(Seq, u64)> {
        let mut inner = self.state.inner.lock();
        let below = inner.below();
        (below > inner.told).then(|| {
            inner.told = below;
            (below, inner.epoch)
        })
    }

    /// Waits until the mark may have moved.
    pub async fn moved(&self) {
        self.state.moved.notified().await;
    }
}

/// Deliveries of one event that are in flight: each settles its clone. If one is dropped without, be it by a panic, the
/// event stays unsettled, holds the mark back, and is delivered at the next start.
#[derive(Clone)]
pub(super) struct InFlight(Arc<Part>);

struct Part {
    shared: Arc<Shared>,
    seq: Seq,
    deliveries: usize,
    again: bool,
    unsettled: AtomicUsize,
}

impl InFlight {
    /// One of the deliveries has come to its end; to be said once for each.
    pub fn settle(&self) {
        self.0.unsettled.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if *self.unsettled.get_mut() != 0 {
            return;
        }
        let mut inner = self.shared.inner.lock();
        let Inner { first, again, .. } = &mut *inner;
        if self.again {
            if let std::collections::hash_map::Entry::Occupied(mut count) = again.entry(self.seq) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        } else if let std::collections::btree_map::Entry::Occupied(mut count) = first.entry(self.seq) {
            *count.get_mut() -= self.deliveries;
            if *count.get() == 0 {
                count.remove();
            }
        }
        drop(inner);
        self.shared.moved.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_waits_for_the_oldest_in_flight() {
        let tracker = Tracker::default();
        tracker.start_at(Seq(1), 7);
        let (first, second) = (tracker.begin(Seq(1), 2), tracker.begin(Seq(2), 1));
        tracker.read_below(Seq(4));
        assert_eq!(tracker.news(), None);
        assert_eq!(tracker.stage(Seq(3)), Stage::Settled);
        second.settle();
        drop(second);
        assert_eq!((tracker.below(), tracker.stage(Seq(2))), (Seq(1), Stage::Settled));
        let other = first.clone();
        first.settle();
        drop(first);
        assert_eq!(tracker.stage(Seq(1)), Stage::InFlight);
        other.settle();
        drop(other);
        assert_eq!(tracker.news(), Some((Seq(4), 7)));
        assert_eq!(tracker.news(), None);
    }

    #[test]
    fn an_abandoned_event_holds_the_mark() {
        let tracker = Tracker::default();
        tracker.start_at(Seq(1), 7);
        let event = tracker.begin(Seq(1), 1);
        tracker.read_below(Seq(2));
        drop(event);
        assert_eq!(tracker.below(), Seq(1));
    }

    #[test]
    fn another_attempt_does_not_hold_the_mark() {
        let tracker = Tracker::default();
        tracker.start_at(Seq(5), 7);
        let again = tracker.begin_again(Seq(2));
        assert_eq!((tracker.stage(Seq(2)), tracker.below()), (Stage::InFlight, Seq(5)));
        assert_eq!(tracker.unsettled(Seq(4)), 1);
        again.settle();
        drop(again);
        assert_eq!(tracker.stage(Seq(2)), Stage::Settled);
    }
}
