//! Of a copy: which runtimes share the log, and how far each has delivered its part.
//!
//! All of this follows from the messages of the log alone, so that every runtime has the same at the same message. Time is the
//! server's, and a pause in which nobody could send counts as short: a server that stood still is no reason to give anybody up.

use std::collections::BTreeMap;

use nexus_core::ids::{RuntimeId, Seq};

use super::codec::bytes;
use crate::contract::StorageError;

/// The key of what is kept of it.
pub(crate) const MEMBERS_KEY: &[u8] = b"m";

/// A runtime that sends nothing for so long is given up, in milliseconds of the log's time. It sends something each second.
const LEASE_MS: u64 = 4_000;
/// What a pause between two messages counts at most, in milliseconds.
const PAUSE_MS: u64 = 1_500;

/// The runtimes, as they are after a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Membership {
    /// Raised whenever one comes or goes.
    pub(crate) epoch: u64,
    /// The log's time, in milliseconds.
    time_ms: u64,
    /// When the last message was published, by the server's clock, in milliseconds since 1970.
    published_ms: u64,
    members: BTreeMap<RuntimeId, Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Member {
    seen_ms: u64,
    /// Every event before this place that is its own is delivered or parked, by what it said in this epoch.
    mark: Seq,
}

/// What a message says of its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beat {
    pub(crate) runtime: RuntimeId,
    /// The epoch in which it looked at its events.
    pub(crate) epoch: u64,
    /// Its mark.
    pub(crate) below: Seq,
    /// It goes.
    pub(crate) leaves: bool,
    /// When the server took the message, in milliseconds since 1970.
    pub(crate) published_ms: u64,
}

impl Membership {
    /// Takes a message in. `below`: how far all have delivered up to now. Returns how far they have now.
    pub(crate) fn take(&mut self, beat: &Beat, below: Seq) -> Seq {
        let passed = beat.published_ms.saturating_sub(self.published_ms);
        self.time_ms += if self.published_ms == 0 { 0 } else { passed.min(PAUSE_MS) };
        self.published_ms = beat.published_ms.max(self.published_ms);
        let before = self.members.len();
        let fresh = Member { seen_ms: self.time_ms, mark: below };
        let known = self.members.insert(beat.runtime, fresh);
        let joined = known.is_none();
        if let (Some(known), Some(member)) = (known, self.members.get_mut(&beat.runtime)) {
            // What it said of an earlier epoch, in which other events were its own, says nothing now.
            let said = if beat.epoch == self.epoch { beat.below } else { Seq(0) };
            member.mark = known.mark.max(said);
        }
        let all = self.members.values().map(|member| member.mark).min().unwrap_or(below).max(below);
        let now = self.time_ms;
        self.members.retain(|runtime, member| {
            let gone = *runtime == beat.runtime && beat.leaves;
            !gone && member.seen_ms + LEASE_MS >= now
        });
        if joined || self.members.len() < before {
            self.epoch += 1;
            // Everything from here on has new owners, who look at it anew.
            self.members.values_mut().for_each(|member| member.mark = all);
        }
        all
    }

    /// The runtimes, in order.
    pub(crate) fn runtimes(&self) -> Vec<RuntimeId> {
        self.members.keys().copied().collect()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![1];
        for number in [self.epoch, self.time_ms, self.published_ms] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        for (runtime, member) in &self.members {
            for number in [runtime.0, member.seen_ms, member.mark.0] {
                out.extend_from_slice(&number.to_be_bytes());
            }
        }
        out
    }

    pub(crate) fn decode(value: &[u8]) -> Result<Self, StorageError> {
        let number = |at: usize| Ok::<_, StorageError>(u64::from_be_bytes(bytes(value, 1 + 8 * at)?));
        let mut members = BTreeMap::new();
        let count = value.len().saturating_sub(25) / 24;
        for at in (0..count).map(|member| 3 + 3 * member) {
            members.insert(RuntimeId(number(at)?), Member { seen_ms: number(at + 1)?, mark: Seq(number(at + 2)?) });
        }
        Ok(Self { epoch: number(0)?, time_ms: number(1)?, published_ms: number(2)?, members })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(runtime: u64, epoch: u64, below: u64, published_ms: u64) -> Beat {
        Beat { runtime: RuntimeId(runtime), epoch, below: Seq(below), leaves: false, published_ms }
    }

    /// Takes beats in, and says after each: the epoch, who is there, how far all are.
    struct Log(Membership, Seq);

    impl Log {
        fn take(&mut self, beat: Beat) -> (u64, Vec<u64>, u64) {
            self.1 = self.0.take(&beat, self.1);
            assert_eq!(Membership::decode(&self.0.encode()).expect("as it was"), self.0);
            (self.0.epoch, self.0.runtimes().iter().map(|runtime| runtime.0).collect(), self.1.0)
        }
    }

    #[test]
    fn all_are_as_far_as_the_last_of_them() {
        let mut log = Log(Membership::default(), Seq(0));
        assert_eq!(log.take(beat(1, 0, 5, 1_000)), (1, vec![1], 0), "what it said was of another epoch");
        assert_eq!(log.take(beat(1, 1, 5, 2_000)), (1, vec![1], 5));
        assert_eq!(log.take(beat(2, 0, 9, 2_500)), (2, vec![1, 2], 5));
        assert_eq!(log.take(beat(1, 1, 8, 2_600)), (2, vec![1, 2], 5), "of the epoch before");
        assert_eq!(log.take(beat(1, 2, 8, 2_700)), (2, vec![1, 2], 5), "the other is not there yet");
        assert_eq!(log.take(beat(2, 2, 7, 2_800)), (2, vec![1, 2], 7));
        assert_eq!(log.take(beat(2, 2, 6, 2_900)), (2, vec![1, 2], 7), "marks never go back");
    }

    #[test]
    fn who_leaves_or_is_silent_is_given_up_and_all_look_anew() {
        let mut log = Log(Membership::default(), Seq(0));
        log.take(beat(1, 0, 0, 1_000));
        log.take(beat(2, 0, 0, 1_000));
        log.take(beat(1, 2, 50, 1_500));
        log.take(beat(2, 2, 10, 1_500));
        for second in 2..6 {
            assert_eq!(log.take(beat(1, 2, 50, second * 1_000)), (2, vec![1, 2], 10));
        }
        assert_eq!(log.take(beat(1, 2, 60, 6_000)), (3, vec![1], 10), "the second one's part is open");
        assert_eq!(log.take(beat(1, 3, 60, 7_000)), (3, vec![1], 60));
        let leaves = Beat { leaves: true, ..beat(1, 3, 70, 8_000) };
        assert_eq!(log.take(leaves), (4, vec![], 70));
    }

    #[test]
    fn a_pause_in_which_nobody_can_send_gives_nobody_up() {
        let mut log = Log(Membership::default(), Seq(0));
        log.take(beat(1, 0, 0, 1_000));
        log.take(beat(2, 0, 0, 1_000));
        assert_eq!(log.take(beat(1, 2, 0, 60_000)), (2, vec![1, 2], 0));
        assert_eq!(log.take(beat(2, 2, 0, 60_100)), (2, vec![1, 2], 0));
        // Nor does a clock that jumps back.
        assert_eq!(log.take(beat(1, 2, 0, 10)), (2, vec![1, 2], 0));
    }
}
