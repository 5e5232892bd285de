//! The index, each entry against the events; and all else that is in the `meta` keyspace.

use nexus_core::ids::Seq;

use super::super::error::AdminError;
use super::super::watch::{Pace, Phase, Watch};
use super::readable;
use super::report::Report;
use super::scan::{Known, Seen, shown};
use crate::contract::StorageError;
use crate::embedded::codec::{self, Envelope};
use crate::embedded::state::COUNTERS_KEY;
use crate::embedded::store::{Store, failed};

pub(super) fn check(
    store: &Store,
    known: &Known,
    seen: &Seen,
    report: &mut Report,
    watch: Watch<'_>,
) -> Result<(), AdminError> {
    let total = seen.ids + seen.invocations + seen.traces + known.blocks.len() as u64;
    let mut index = Index { store, known, report, pace: Pace::new(watch, Phase::Index, total)?, look_up: false };
    let counted = index.ids()?;
    let traces = index.traces()?;
    index.meta()?;
    // As many as events have: then each has its event.
    index.look_up = true;
    if seen.whole && (counted.ids > seen.ids || counted.invocations > seen.invocations) {
        index.ids()?;
    }
    if seen.whole && traces > seen.traces {
        index.traces()?;
    }
    Ok(())
}

#[derive(Default)]
struct Counted {
    ids: u64,
    invocations: u64,
}

struct Index<'a> {
    store: &'a Store,
    known: &'a Known,
    report: &'a mut Report,
    pace: Pace<'a>,
    /// Whether entries are looked up now, rather than looked at and counted.
    look_up: bool,
}

impl Index<'_> {
    fn ids(&mut self) -> Result<Counted, AdminError> {
        let mut counted = Counted::default();
        for entry in self.store.ids.iter() {
            let read = entry.into_inner().map_err(failed);
            let Some((key, value)) = self.read("the index of ids", read)? else { break };
            match (key.len(), key[0]) {
                (17, b'e') => counted.ids += self.places(&key, &value)?,
                (17, b'i') => counted.invocations += self.invocation(&key, &value)?,
                _ => self.form(&key, "the index of ids", "its key is of no known kind"),
            }
            self.pace.one()?;
        }
        Ok(counted)
    }

    /// The places of one id and source; how many of them are kept.
    fn places(&mut self, key: &[u8], value: &[u8]) -> Result<u64, AdminError> {
        let places = codec::seqs(value);
        if value.is_empty() || !value.len().is_multiple_of(8) || !places.is_sorted_by(|a, b| a < b) {
            self.form(key, "the index of ids", "it does not name places in their order");
        }
        let mut kept = 0;
        for seq in places {
            if !self.kept(seq) {
                continue;
            }
            kept += 1;
            let key_of = |envelope: &Envelope| envelope.id_key() == key;
            self.event("the index of ids", key, seq, key_of)?;
        }
        Ok(kept)
    }

    fn invocation(&mut self, key: &[u8], value: &[u8]) -> Result<u64, AdminError> {
        let (seq, n) = match codec::unpair(value) {
            Ok(pair) if value.len() == 16 => pair,
            _ => {
                self.form(key, "the index of invocations", "it does not name an outcome");
                return Ok(0);
            }
        };
        if !self.kept(seq) {
            return Ok(0);
        }
        if self.look_up {
            let place = || format!("the index of invocations, {}", hex(&key[1..]));
            let outcome = self.store.outcomes.get(codec::pair(seq, n)).map_err(failed);
            match self.read(&place(), outcome)? {
                Some(Some(value)) if codec::outcome_invocation(&value).is_ok_and(|own| own == key) => {}
                Some(Some(_)) => self.report.add(place(), format!("outcome {n} of event {seq} is of another")),
                Some(None) => self.report.add(place(), format!("outcome {n} of event {seq} is not there")),
                None => {}
            }
        }
        Ok(1)
    }

    fn traces(&mut self) -> Result<u64, AdminError> {
        let mut kept = 0;
        for entry in self.store.traces.iter() {
            let read = entry.key().map_err(failed);
            let Some(key) = self.read("the index of traces", read)? else { break };
            match codec::seq_at(&key, 16) {
                Ok(seq) if key.len() == 24 => {
                    if self.kept(seq) {
                        kept += 1;
                        self.event("the index of traces", &key[..16], seq, |envelope| envelope.trace == key[..16])?;
                    }
                }
                _ => self.form(&key, "the index of traces", "its key is not a trace and a place"),
            }
            self.pace.one()?;
        }
        Ok(kept)
    }

    /// Looks the event of an entry up.
    fn event(
        &mut self,
        index: &str,
        key: &[u8],
        seq: Seq,
        fits: impl FnOnce(&Envelope) -> bool,
    ) -> Result<(), AdminError> {
        if !self.look_up {
            return Ok(());
        }
        let place = || format!("{index}, {}", hex(key));
        let event = self.store.event_value(seq);
        match self.read(&place(), event)? {
            // One that cannot be read is reported with the events.
            Some(Some(value)) if Envelope::decode(&value).map_or(true, |envelope| fits(&envelope)) => {}
            Some(Some(_)) => self.report.add(place(), format!("event {seq} is another")),
            Some(None) => self.report.add(place(), format!("event {seq} is not there")),
            None => {}
        }
        Ok(())
    }

    fn meta(&mut self) -> Result<(), AdminError> {
        for entry in self.store.meta.iter() {
            let read = entry.into_inner().map_err(failed);
            let Some((key, value)) = self.read("the small values", read)? else { break };
            match key[0] {
                b'r' => self.registry(&key, &value),
                b'k' | b'l' if key.len() == 18 => self.block(&key)?,
                // These are read before the events and with them.
                b'b' | b'p' => {}
                b'd' if key.len() > 9 => {
                    // Counts it, if it is of an event that retention took.
                    self.kept(codec::seq_at(&key, 1)?);
                }
                _ if *key == *COUNTERS_KEY => {}
                b'a' | b'm' | b'o' => self.form(&key, "the small values", "it belongs to a copy of another log"),
                _ => self.form(&key, "the small values", "its key is of no known kind"),
            }
            self.pace.one()?;
        }
        Ok(())
    }

    fn registry(&mut self, key: &[u8], value: &[u8]) {
        self.report.registry += 1;
        let place = format!("the registry entry {}", String::from_utf8_lossy(&key[1..]));
        if std::str::from_utf8(&key[1..]).is_err() {
            self.report.add(&place, "its key is no text");
        }
        let revision = codec::bytes(value, 0).map(u64::from_be_bytes);
        let counted = self.known.counters.revision;
        match revision {
            Ok(revision) if revision <= counted => {}
            Ok(revision) => {
                self.report.add(place, format!("it is of revision {revision}, only {counted} were counted"))
            }
            Err(_) => self.report.add(place, "it has no revision"),
        }
    }

    /// A type or source in a block: both keys are there, and the block is.
    fn block(&mut self, key: &[u8]) -> Result<(), AdminError> {
        let (by_hash, by_block) = match both(key) {
            Ok(both) => both,
            Err(error) => return self.report.unreadable(format!("the index of blocks, {}", hex(key)), error),
        };
        let place = format!("the index of blocks, {}", hex(key));
        let other = if *key == by_hash { by_block } else { by_hash };
        let there = self.store.meta.contains_key(other).map_err(failed);
        if self.read(&place, there)? == Some(false) {
            self.report.add(&place, "it is there by hash or by block, but not by both");
        }
        let number = codec::seq_at(&by_block, 1)?.0;
        if !self.known.blocks.contains_key(&number) {
            self.report.add(place, format!("block {number} is not there"));
        }
        Ok(())
    }

    /// Whether a place is one that retention did not take; the others are counted, once.
    fn kept(&mut self, seq: Seq) -> bool {
        let kept = seq >= self.known.counters.floor;
        self.report.left_over += u64::from(!kept && !self.look_up);
        kept
    }

    /// An entry that is of no form; said once.
    fn form(&mut self, key: &[u8], index: &str, what: &str) {
        if !self.look_up {
            self.report.add(format!("{index}, {}", shown(key)), what);
        }
    }

    fn read<T>(&mut self, place: &str, read: Result<T, StorageError>) -> Result<Option<T>, AdminError> {
        readable(self.report, place, read)
    }
}

/// Both keys of a type or source in a block, from either of them.
fn both(key: &[u8]) -> Result<([u8; 18], [u8; 18]), StorageError> {
    let by_block = match key[0] {
        b'l' => codec::bytes(key, 0)?,
        _ => {
            let mut by_block = [b'l'; 18];
            by_block[1..9].copy_from_slice(&key[10..18]);
            by_block[9] = key[1];
            by_block[10..].copy_from_slice(&key[2..10]);
            by_block
        }
    };
    Ok((codec::by_hash(&by_block)?, by_block))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
