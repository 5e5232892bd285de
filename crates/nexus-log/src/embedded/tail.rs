//! The newest events, decoded, in memory: what delivery reads next is what was just appended.

use std::collections::VecDeque;
use std::sync::Arc;

use nexus_core::ids::Seq;
use nexus_core::record::Record;

/// The most events that are kept.
const EVENTS_MAX: usize = 8192;
/// The most bytes of stored events that are kept.
const BYTES_MAX: usize = 16 << 20;

/// The newest events without a gap, up to the last durable one.
#[derive(Default)]
pub(crate) struct Tail {
    records: VecDeque<(Arc<Record>, usize)>,
    bytes: usize,
}

impl Tail {
    /// Adds the next event; `bytes` is the size of its stored value.
    pub(crate) fn push(&mut self, record: Arc<Record>, bytes: usize) {
        if self.records.back().is_some_and(|(last, _)| last.seq.next() != record.seq) {
            self.clear();
        }
        self.records.push_back((record, bytes));
        self.bytes += bytes;
        while self.records.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            if let Some((_, bytes)) = self.records.pop_front() {
                self.bytes -= bytes;
            }
        }
    }

    /// Forgets everything: after the store was opened again, and when events in it were removed.
    pub(crate) fn clear(&mut self) {
        self.records.clear();
        self.bytes = 0;
    }

    /// The event at a place, if it is here.
    pub(crate) fn get(&self, seq: Seq) -> Option<Arc<Record>> {
        let first = self.records.front()?.0.seq;
        let at = usize::try_from(seq.0.checked_sub(first.0)?).ok()?;
        self.records.get(at).map(|(record, _)| record.clone())
    }

    /// At most `max` events from a place on, if that place is here.
    pub(crate) fn from(&self, seq: Seq, max: usize) -> Option<Vec<Arc<Record>>> {
        let first = self.records.front()?.0.seq;
        let at = usize::try_from(seq.0.checked_sub(first.0)?).ok()?;
        if at >= self.records.len() {
            return None;
        }
        Some(self.records.iter().skip(at).take(max).map(|(record, _)| record.clone()).collect())
    }
}
