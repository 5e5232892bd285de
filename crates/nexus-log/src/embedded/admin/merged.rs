//! Events, each with what came of it, in the order of places: two keyspaces read as one.

use fjall::{Iter, Readable as _, Slice, Snapshot};
use nexus_core::ids::Seq;

use crate::contract::StorageError;
use crate::embedded::store::{Store, failed};

/// A key and its value.
type Pair = (Slice, Slice);

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
            events: Ahead { iter: at.range(&store.events, from..), next: None },
            outcomes: Ahead { iter: at.range(&store.outcomes, from..), next: None },
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
        let next =
            if event { self.events.next.take().map(Item::Event) } else { self.outcomes.next.take().map(Item::Outcome) };
        Ok(next)
    }
}

/// One keyspace, and its next entry.
struct Ahead {
    iter: Iter,
    next: Option<Pair>,
}

impl Ahead {
    fn peek(&mut self) -> Result<Option<&Slice>, StorageError> {
        if self.next.is_none() {
            self.next = self.iter.next().map(|entry| entry.into_inner().map_err(failed)).transpose()?;
        }
        Ok(self.next.as_ref().map(|(key, _)| key))
    }
}
