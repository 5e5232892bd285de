//! Which record may follow which: what is written is held to it as well as what is read.

use jiff::Timestamp;
use nexus_core::ids::Seq;

use super::format::{CHUNK_BYTES, Entry};
use crate::embedded::state::Counters;

/// The records so far, as far as the next depends on them.
#[derive(Default)]
pub(super) struct Order {
    head: Option<(Timestamp, Counters)>,
    stage: u8,
    event: Seq,
    outcome: (Seq, u64),
    /// What of the last artifact is yet to come.
    artifact_bytes: u64,
}

impl Order {
    /// The head, once there was one.
    pub(super) fn head(&self) -> Option<(Timestamp, Counters)> {
        self.head
    }

    /// Whether the end may follow.
    pub(super) fn may_end(&self) -> bool {
        self.head.is_some() && self.artifact_bytes == 0
    }

    /// Takes the next record, or says why it may not follow.
    pub(super) fn take(&mut self, entry: &Entry<'_>) -> Result<(), String> {
        let stage = match entry {
            Entry::Head { .. } => 1,
            Entry::Registry { .. } => 2,
            Entry::Parked(_) => 3,
            Entry::Dead(_) => 4,
            Entry::Event { .. } | Entry::Outcome { .. } => 5,
            Entry::Artifact { .. } | Entry::Bytes(_) => 6,
            Entry::End { .. } => 7,
        };
        let in_artifact = matches!(entry, Entry::Bytes(_));
        if stage < self.stage || (stage == 1) != self.head.is_none() || in_artifact != (self.artifact_bytes > 0) {
            return Err("a record comes at the wrong place".to_owned());
        }
        self.stage = stage;
        self.content(entry)
    }

    fn content(&mut self, entry: &Entry<'_>) -> Result<(), String> {
        if let Entry::Head { made_at, counters } = entry {
            let Counters { next_seq, floor, delivered_below, .. } = *counters;
            self.head = Some((*made_at, *counters));
            let fits = floor >= Seq(1) && floor <= next_seq && delivered_below <= next_seq;
            return fits.then_some(()).ok_or_else(|| format!("its counters contradict each other: {counters:?}"));
        }
        let Some((_, counters)) = self.head else { return Err("it has no head".to_owned()) };
        let kept = |seq: Seq| seq >= counters.floor && seq < counters.next_seq;
        match entry {
            Entry::Registry { revision, key, .. } if *revision > counters.revision => {
                Err(format!("the registry entry {key} is of revision {revision}, which was not counted"))
            }
            Entry::Parked(parked) if !kept(parked.seq) => {
                Err(format!("a delivery of event {} is parked, which was not counted", parked.seq))
            }
            Entry::Dead(letter) if !kept(letter.seq) => {
                Err(format!("a delivery of event {} is dead, which was not counted", letter.seq))
            }
            Entry::Event { seq, .. } => {
                let fits = kept(*seq) && *seq > self.event && *seq > self.outcome.0;
                self.event = *seq;
                fits.then_some(()).ok_or_else(|| format!("event {seq} was not counted, or is behind a later one"))
            }
            Entry::Outcome { seq, n, .. } => {
                let fits = kept(*seq) && *seq >= self.event && (*seq, *n) > self.outcome && *n < counters.next_outcome;
                self.outcome = (*seq, *n);
                fits.then_some(())
                    .ok_or_else(|| format!("outcome {n} of event {seq} was not counted, or is behind a later one"))
            }
            Entry::Artifact { bytes, .. } => {
                self.artifact_bytes = *bytes;
                Ok(())
            }
            Entry::Bytes(bytes) => {
                let fits = !bytes.is_empty() && bytes.len() <= CHUNK_BYTES && bytes.len() as u64 <= self.artifact_bytes;
                self.artifact_bytes = self.artifact_bytes.saturating_sub(bytes.len() as u64);
                fits.then_some(()).ok_or_else(|| "an artifact has other bytes than it should".to_owned())
            }
            _ => Ok(()),
        }
    }
}
