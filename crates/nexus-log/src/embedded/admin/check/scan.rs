//! The events with what came of them, each against everything that is kept about it elsewhere.

use std::collections::{BTreeMap, HashSet};

use fjall::Slice;
use nexus_core::ids::{FunctionName, Seq};

use super::super::error::AdminError;
use super::super::merged::{Item, Merged};
use super::super::watch::{Pace, Phase, Watch};
use super::deliveries::Deliveries;
use super::readable;
use super::report::Report;
use crate::contract::Parked;
use crate::embedded::codec::{self, Envelope, Kind};
use crate::embedded::plan::KNOWN_MAX;
use crate::embedded::state::{Block, Blocks, COUNTERS_KEY, Counters};
use crate::embedded::store::{Store, failed};

/// What the store knows without its events: what the server holds in memory.
pub(super) struct Known {
    pub(super) counters: Counters,
    pub(super) blocks: Blocks,
    pub(super) parked: BTreeMap<(Seq, FunctionName), Parked>,
}

impl Known {
    pub(super) fn load(store: &Store, report: &mut Report) -> Result<Self, AdminError> {
        let stored = store.meta.get(COUNTERS_KEY).map_err(failed);
        let decoded = stored.and_then(|value| value.map(|value| Counters::decode(&value)).transpose());
        let counters = readable(report, "the counters", decoded)?.flatten().unwrap_or_default();
        let Counters { next_seq, floor, delivered_below, .. } = counters;
        if floor < Seq(1) || floor > next_seq || delivered_below > next_seq {
            report.add("the counters", format!("they contradict each other: {counters:?}"));
        }
        let (mut blocks, mut parked) = (Blocks::new(), BTreeMap::new());
        for entry in store.meta.prefix(b"b") {
            let Some((key, value)) = readable(report, "the blocks", entry.into_inner().map_err(failed))? else { break };
            let block = codec::seq_at(&key, 1).and_then(|number| Ok((number.0, Block::decode(&value)?)));
            blocks.extend(readable(report, &format!("block {}", shown(&key)), block)?);
        }
        for entry in store.meta.prefix(b"p") {
            let read = entry.into_inner().map_err(failed);
            let Some((key, value)) = readable(report, "the parked deliveries", read)? else { break };
            let one = codec::decode_parked(&key, &value).map(|one| ((one.seq, one.function.clone()), one));
            parked.extend(readable(report, &format!("the parked delivery {}", shown(&key)), one)?);
        }
        report.parked = parked.len() as u64;
        Ok(Self { counters, blocks, parked })
    }
}

/// A key, for people: what is text as text.
pub(super) fn shown(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

/// Index entries that events and outcomes were found to have.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) ids: u64,
    pub(super) invocations: u64,
    pub(super) traces: u64,
    /// Whether all could be read. If not, an index entry without an event says nothing.
    pub(super) whole: bool,
}

/// Goes through all events and outcomes.
pub(super) struct Scan<'a> {
    store: &'a Store,
    known: &'a Known,
    report: &'a mut Report,
    seen: Seen,
    deliveries: Deliveries<'a>,
    /// The last event.
    event: Seq,
    /// The block so far, and the types and sources in it.
    number: u64,
    block: Block,
    has: HashSet<(Kind, u64)>,
    /// Blocks that had something.
    visited: HashSet<u64>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(store: &'a Store, known: &'a Known, report: &'a mut Report) -> Self {
        Self {
            deliveries: Deliveries::new(store, known),
            seen: Seen { whole: true, ..Seen::default() },
            event: Seq(0),
            number: 0,
            block: Block::empty(),
            has: HashSet::new(),
            visited: HashSet::new(),
            store,
            known,
            report,
        }
    }

    pub(super) fn run(mut self, watch: Watch<'_>) -> Result<Seen, AdminError> {
        let Counters { next_seq, floor, .. } = self.known.counters;
        let total = next_seq.0.saturating_sub(floor.0);
        let mut pace = Pace::new(watch, Phase::Events, total)?;
        let mut merged = Merged::new(self.store, &self.store.db.snapshot(), floor);
        loop {
            let item = match readable(self.report, &format!("what is behind event {}", self.event), merged.next())? {
                Some(Some(item)) => item,
                Some(None) => break,
                None => {
                    self.seen.whole = false;
                    break;
                }
            };
            match item {
                Item::Event((key, value)) => self.event(&key, &value)?,
                Item::Outcome((key, value)) => self.outcome(&key, &value)?,
            }
            pace.tick(self.event.0.saturating_sub(floor.0))?;
        }
        self.deliveries.end_event(self.event, self.report)?;
        self.end_block();
        if self.seen.whole {
            self.deliveries.end(self.report)?;
            self.gap(next_seq);
            self.never_came();
        }
        pace.tell(total)?;
        Ok(self.seen)
    }

    fn event(&mut self, key: &[u8], value: &Slice) -> Result<(), AdminError> {
        self.deliveries.end_event(self.event, self.report)?;
        self.report.events += 1;
        self.report.bytes += value.len() as u64;
        let seq = match codec::seq_at(key, 0) {
            Ok(seq) if key.len() == 8 => seq,
            _ => {
                self.report.add(format!("event {}", shown(key)), "its key is no place");
                return Ok(());
            }
        };
        self.gap(seq);
        self.event = seq;
        self.begin_block(codec::block_of(seq));
        let place = format!("event {seq}");
        if seq >= self.known.counters.next_seq {
            self.report.add(&place, format!("only those before {} were counted", self.known.counters.next_seq));
        }
        self.block.events += 1;
        self.block.bytes += value.len() as u64;
        let Some(record) = readable(self.report, &place, codec::decode_event(seq, value))? else { return Ok(()) };
        let envelope = Envelope::of(&record.entry);
        if Envelope::decode(value)? != envelope {
            self.report.add(&place, "what filters read of it is not what its record says");
        }
        self.block.received_min = self.block.received_min.min(envelope.received);
        self.block.received_max = self.block.received_max.max(envelope.received);
        self.indexed(seq, &place, &envelope)
    }

    /// The entries that an event has in the index.
    fn indexed(&mut self, seq: Seq, place: &str, envelope: &Envelope) -> Result<(), AdminError> {
        let ids = readable(self.report, place, self.store.ids.get(envelope.id_key()).map_err(failed))?.flatten();
        let known = ids.map(|value| codec::seqs(&value)).unwrap_or_default();
        if known.contains(&seq) {
            self.seen.ids += 1;
        } else if known.len() < KNOWN_MAX || known.iter().any(|other| *other < seq) {
            self.report.add(place, "the index of ids does not have it");
        }
        let trace = self.store.traces.contains_key(envelope.trace_key(seq)).map_err(failed);
        match readable(self.report, place, trace)? {
            Some(true) => self.seen.traces += 1,
            Some(false) => self.report.add(place, "the index of traces does not have it"),
            None => {}
        }
        for (kind, hash) in [(Kind::Type, envelope.ty), (Kind::Source, envelope.source)] {
            if self.has.insert((kind, hash)) {
                let (by_hash, by_block) = codec::block_keys(kind, hash, self.number);
                for (key, which) in [(by_hash, "by hash"), (by_block, "by block")] {
                    let there = self.store.meta.contains_key(key).map_err(failed);
                    if readable(self.report, place, there)? == Some(false) {
                        let kind = if kind == Kind::Type { "type" } else { "source" };
                        self.report.add(place, format!("the index of blocks {which} does not have its {kind}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn outcome(&mut self, key: &[u8], value: &Slice) -> Result<(), AdminError> {
        self.report.outcomes += 1;
        self.report.bytes += value.len() as u64;
        let (seq, n) = match codec::unpair(key) {
            Ok(pair) if key.len() == 16 => pair,
            _ => {
                self.report.add(format!("outcome {}", shown(key)), "its key is not a place and a number");
                return Ok(());
            }
        };
        let place = format!("outcome {n} of event {seq}");
        if seq != self.event {
            self.report
                .add(&place, "its event is not there; harmless, if it is of a replay that retention was ahead of");
        }
        self.begin_block(codec::block_of(seq));
        self.block.bytes += value.len() as u64;
        if n >= self.known.counters.next_outcome {
            self.report.add(&place, format!("only those before {} were counted", self.known.counters.next_outcome));
        }
        let Some(outcome) = readable(self.report, &place, codec::decode_outcome(value))? else { return Ok(()) };
        if outcome.seq != seq {
            self.report.add(&place, format!("it says that it is one of event {}", outcome.seq));
        }
        let invocation = codec::invocation_key(outcome.invocation_id);
        if codec::outcome_invocation(value)? != invocation {
            self.report.add(&place, "it stands under another invocation than its own");
        }
        let indexed = readable(self.report, &place, self.store.ids.get(invocation).map_err(failed))?.flatten();
        match indexed {
            Some(there) if *there == codec::pair(seq, n) => self.seen.invocations += 1,
            Some(_) => self.report.add(&place, "the index of invocations has another in its place"),
            None => self.report.add(&place, "the index of invocations does not have it"),
        }
        if seq == self.event {
            self.deliveries.note(outcome);
        }
        Ok(())
    }

    /// No event is between the last one and `next`: retention takes none that is not delivered.
    fn gap(&mut self, next: Seq) {
        let from = self.event.next().max(self.known.counters.delivered_below).max(self.known.counters.floor);
        if from < next {
            let place =
                if from.next() == next { format!("event {from}") } else { format!("events {from} to {}", next.0 - 1) };
            self.report.add(place, "not there, though not delivered yet");
        }
    }

    fn begin_block(&mut self, number: u64) {
        if self.number != number {
            self.end_block();
            self.number = number;
            self.block = Block::empty();
            self.has.clear();
        }
    }

    fn end_block(&mut self) {
        let (number, found) = (self.number, self.block);
        if found.events == 0 && found.bytes == 0 {
            return;
        }
        self.visited.insert(number);
        let place = format!("block {number} (events from {})", codec::block_start(number));
        let Some(stored) = self.known.blocks.get(&number) else {
            if found.events > 0 {
                self.report.add(place, format!("it is not known, but {} events are in it", found.events));
            }
            return;
        };
        if stored.events != found.events {
            self.report.add(&place, format!("it counts {} events, {} are there", stored.events, found.events));
        }
        // The block that retention has come to may count an outcome that came while its event went.
        let at_floor = number == codec::block_of(self.known.counters.floor);
        if stored.bytes != found.bytes && !(at_floor && stored.bytes > found.bytes) {
            self.report.add(&place, format!("it counts {} bytes, {} are there", stored.bytes, found.bytes));
        }
        let has_times = found.received_min <= found.received_max;
        if has_times && (stored.received_min > found.received_min || stored.received_max < found.received_max) {
            self.report.add(&place, "an event in it was received outside of its times");
        }
    }

    /// Blocks of which no event came.
    fn never_came(&mut self) {
        for (number, block) in &self.known.blocks {
            if block.events > 0 && !self.visited.contains(number) {
                let place = format!("block {number} (events from {})", codec::block_start(*number));
                self.report.add(place, format!("it counts {} events, none is there", block.events));
            }
        }
    }
}
