//! What waits and what was given up, against what the outcomes say.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use nexus_core::ids::{FunctionName, Seq};
use nexus_core::outcome::{Disposition, Outcome};

use super::super::error::AdminError;
use super::super::merged::Ahead;
use super::readable;
use super::report::Report;
use super::scan::{Known, shown};
use crate::contract::Parked;
use crate::embedded::codec;
use crate::embedded::store::Store;

const GONE: &str = "its event is not there";

/// How a delivery stands after its last outcome.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Retry(u32, Timestamp),
    Dead(u32),
    Settled,
}

/// Goes along with the events, in their order.
pub(super) struct Deliveries<'a> {
    /// Parked deliveries whose event did not come yet.
    parked: BTreeMap<&'a (Seq, FunctionName), &'a Parked>,
    /// Dead letters whose event did not come yet; `None`, once one could not be read.
    letters: Option<Ahead>,
    /// Of the last event.
    last: BTreeMap<FunctionName, Last>,
    /// Of the last event: the attempts that ended in a dead letter.
    died: HashSet<(FunctionName, u32)>,
}

impl<'a> Deliveries<'a> {
    pub(super) fn new(store: &Store, known: &'a Known) -> Self {
        let letters = store.meta.range(codec::tagged(b'd', known.counters.floor.0)..codec::tagged(b'd' + 1, 0));
        Self {
            parked: known.parked.iter().collect(),
            letters: Some(Ahead::new(letters)),
            last: BTreeMap::new(),
            died: HashSet::new(),
        }
    }

    /// An outcome of the last event.
    pub(super) fn note(&mut self, outcome: Outcome) {
        let last = match outcome.disposition {
            Disposition::Retry { at } => Last::Retry(outcome.attempt, at),
            Disposition::Dead => {
                if !outcome.dead_letter_emitted {
                    self.died.insert((outcome.function.clone(), outcome.attempt));
                }
                Last::Dead(outcome.attempt)
            }
            Disposition::Done | Disposition::Expired => Last::Settled,
            Disposition::Replayed => return,
        };
        self.last.insert(outcome.function, last);
    }

    /// All outcomes of an event came: what is kept of its deliveries is what they say.
    pub(super) fn end_event(&mut self, seq: Seq, report: &mut Report) -> Result<(), AdminError> {
        let mut last = std::mem::take(&mut self.last);
        while let Some(first) = self.parked.first_entry().filter(|first| first.key().0 <= seq) {
            let one = first.remove();
            let place = format!("the parked delivery of event {} to {}", one.seq, one.function);
            if one.seq != seq {
                report.add(place, GONE);
                continue;
            }
            match last.remove(&one.function) {
                Some(Last::Retry(attempt, at)) if attempt == one.attempt && at == one.at => {}
                // A dead letter that was released: when, only the entry knows.
                Some(Last::Dead(attempt)) if attempt == one.attempt => {}
                Some(Last::Retry(..) | Last::Dead(_)) => {
                    report.add(place, "its attempt or time is not that of its last outcome");
                }
                // It is for later, and had no attempt yet.
                None if one.attempt == 0 => {}
                Some(Last::Settled) | None => {
                    report.add(place, "its last outcome does not say that it is to be tried again");
                }
            }
        }
        for (function, _) in last.iter().filter(|(_, last)| matches!(last, Last::Retry(..))) {
            let what = format!("its last outcome says that {function} is to be tried again, but it is not parked");
            report.add(format!("event {seq}"), what);
        }
        self.letters_up_to(seq, report)?;
        self.died.clear();
        Ok(())
    }

    /// No more events come.
    pub(super) fn end(&mut self, report: &mut Report) -> Result<(), AdminError> {
        for one in std::mem::take(&mut self.parked).into_values() {
            report.add(format!("the parked delivery of event {} to {}", one.seq, one.function), GONE);
        }
        self.letters_up_to(Seq(u64::MAX), report)
    }

    /// Dead letters can be dropped, and those of a delivery that went on stay: that each has its outcome is all that is
    /// known.
    fn letters_up_to(&mut self, seq: Seq, report: &mut Report) -> Result<(), AdminError> {
        while let Some(letters) = &mut self.letters {
            let peeked = letters.peek().and_then(|key| key.map(|key| codec::seq_at(key, 1)).transpose());
            let Some(next) = readable(report, "the dead letters", peeked)? else {
                self.letters = None;
                break;
            };
            if next.is_none_or(|next| next > seq) {
                break;
            }
            let Some((key, value)) = letters.take() else { break };
            report.dead_letters += 1;
            let place = format!("the dead letter {}", shown(&key));
            let Some(letter) = readable(report, &place, codec::decode_dead(&key, &value))? else { continue };
            let place = format!("the dead letter of event {} to {}", letter.seq, letter.function);
            if letter.seq != seq {
                report.add(place, GONE);
            } else if !self.died.contains(&(letter.function, letter.attempt)) {
                report.add(place, "no outcome says that this attempt was its last");
            }
        }
        Ok(())
    }
}
