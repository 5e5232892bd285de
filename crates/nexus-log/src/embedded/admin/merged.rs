//! Events, each with what came of it, in the order of places: two keyspaces read as one.

use fjall::{Iter, Readable as _, Slice, Snapshot};
use nexus_core::ids::Seq;

use crate::contract::StorageError;
use crate::embedded::store::{Store, failed};

/// A key and its value.
pub(super) type Pair = (Slice, Slice);

/// One of both.
pub(super) enum Item {
    Event(Pair),
    Outcome(Pair),
}

/// Reads both from a place on, as they are at one moment.
pub(super) struct Merged {
    events: Ahead,
    outcomes: Ahead,
}

impl Merged {
    pub(super) fn new(store: &Store, at: &Snapshot, from: Seq) -> Self {
        let from = from.0.to_be_bytes();
        Self {
            events: Ahead::new(at.range(&store.events, from..)),
            outcomes: Ahead::new(at.range(&store.outcomes, from..)),
        }
    }

    /// The next; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Item>, StorageError> {
        // An event's key begins those of its outcomes, so that it comes before them.
        let event = match (self.events.peek()?, self.outcomes.peek()?) {
            (None, None) => return Ok(None),
            (Some(event), Some(outcome)) => event < outcome,
            (event, None) => event.is_some(),
            (None, Some(_)) => false,
        };
        let next = if event { self.events.take().map(Item::Event) } else { self.outcomes.take().map(Item::Outcome) };
        Ok(next)
    }
}

/// One keyspace, and its next entry.
pub(super) struct Ahead {
    iter: Iter,
    next: Option<Pair>,
}

impl Ahead {
    pub(super) fn new(iter: Iter) -> Self {
        Self { iter, next: None }
    }

    /// Takes what [`Ahead::peek`] showed.
    pub(super) fn take(&mut self) -> Option<Pair> {
        self.next.take()
    }

    /// The key of the next entry; `None` at the end.
    pub(super) fn peek(&mut self) -> Result<Option<&Slice>, StorageError> {
        if self.next.is_none() {
            self.next = self.iter.next().map(|entry| entry.into_inner().map_err(failed)).transpose()?;
        }
        Ok(self.next.as_ref().map(|(key, _)| key))
    }
}
