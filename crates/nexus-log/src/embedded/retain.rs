//! What goes: too old or too much, oldest first, never what is not delivered or is parked.
//!
//! Candidates are looked for beside the writer, a block at a time; the writer checks each again and removes it with all
//! that points to it. Files of events that lie before everything that stays are then dropped whole.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::SignedDuration;
use nexus_core::ids::Seq;

use super::codec::{self, Envelope};
use super::log::ask;
use super::request::{Removal, Removed, Request};
use super::shared::Shared;
use super::state::Block;
use super::store::{Store, failed};
use crate::contract::StorageError;

/// Events in one request to the writer, so that appends need not wait for long.
const REMOVAL_MAX: usize = 256;

/// What is to be kept, and how far the search has come.
struct Search {
    /// What was received before this goes.
    cutoff: Option<(i64, i32)>,
    /// Bytes that are more than is allowed.
    excess: u64,
    below: Seq,
    parked: HashSet<Seq>,
    /// The first event that stays.
    stays: Option<Seq>,
}

/// Removes what the retention does not keep; how many events went.
pub(super) async fn retain(shared: &Arc<Shared>) -> Result<u64, StorageError> {
    let _one_at_a_time = shared.retaining.lock().await;
    let progress = ask(shared, |answer| Request::Progress { answer }).await?;
    let floor = shared.floor();
    // A mark that is not durable yet counts: it is written in one batch with the first removal.
    let told = Seq(shared.advance_to.load(std::sync::atomic::Ordering::Acquire));
    let below = progress.delivered_below.max(told).min(shared.head.borrow().next());
    let (blocks, bytes): (Vec<(u64, Block)>, u64) = {
        let blocks = shared.blocks.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let last = codec::block_of(below);
        (
            blocks.range(..=last).map(|(number, block)| (*number, *block)).collect(),
            blocks.values().map(|block| block.bytes).sum(),
        )
    };
    let retention = shared.config.retention;
    // An age that reaches before all time keeps everything.
    let cutoff = retention
        .max_age
        .and_then(|age| SignedDuration::try_from(age).ok())
        .and_then(|age| shared.config.clock.now().checked_sub(age).ok());
    let mut search = Search {
        cutoff: cutoff.map(codec::instant),
        excess: retention.max_bytes.map_or(0, |max| bytes.saturating_sub(max)),
        below,
        parked: progress.parked.iter().map(|parked| parked.seq).collect(),
        stays: None,
    };
    let mut gone = 0;
    for (number, block) in blocks {
        let (first, end) = (codec::block_start(number).max(floor), codec::block_start(number + 1).min(search.below));
        if first >= end {
            continue;
        }
        if search.excess == 0 && search.cutoff.is_none_or(|cutoff| block.received_min >= cutoff) {
            search.stays.get_or_insert(first);
            continue;
        }
        let (searched, found) =
            shared.read(move |_, store| search.block(store, first, end).map(|found| (search, found))).await?;
        search = searched;
        let mut found = found.into_iter().peekable();
        while found.peek().is_some() {
            let events: Vec<Removed> = found.by_ref().take(REMOVAL_MAX).collect();
            // All before the next candidate is looked at; the first that stays is the bound.
            let looked_at = found.peek().map_or(end, |next| next.seq);
            let removal = Removal { floor: search.stays.map_or(looked_at, |stays| stays.min(looked_at)), events };
            let (asked, oldest) = (removal.events.len() as u64, removal.events.first().map(|event| event.seq));
            let removed = ask(shared, |answer| Request::Remove { removal, answer }).await?;
            gone += removed;
            if let Some(oldest) = oldest.filter(|_| removed < asked) {
                // The writer kept one that has been parked since: nothing after it may become the bound.
                search.stays = search.stays.map_or(Some(oldest), |stays| Some(stays.min(oldest)));
            }
        }
    }
    if gone > 0 {
        tracing::info!(events = gone, "retention removed events");
    }
    if shared.floor() > floor {
        let floor = shared.floor();
        shared.read(move |_, store| store.drop_below(floor)).await?;
    }
    Ok(gone)
}

impl Search {
    /// The events of a range that may go.
    fn block(&mut self, store: &Store, first: Seq, end: Seq) -> Result<Vec<Removed>, StorageError> {
        let mut found = Vec::new();
        for entry in store.events.range(first.0.to_be_bytes()..end.0.to_be_bytes()) {
            let (key, value) = entry.into_inner().map_err(failed)?;
            let seq = codec::seq_at(&key, 0)?;
            let envelope = Envelope::decode(&value)?;
            let old = self.cutoff.is_some_and(|cutoff| envelope.received < cutoff);
            if self.parked.contains(&seq) || (!old && self.excess == 0) {
                self.stays.get_or_insert(seq);
                continue;
            }
            let mut removed = Removed { seq, envelope, bytes: value.len() as u64, outcomes: Vec::new() };
            for entry in store.outcomes.range(codec::pair(seq, 0)..=codec::pair(seq, u64::MAX)) {
                let (key, value) = entry.into_inner().map_err(failed)?;
                removed.bytes += value.len() as u64;
                removed.outcomes.push((codec::unpair(&key)?.1, codec::outcome_invocation(&value)?));
            }
            self.excess = self.excess.saturating_sub(removed.bytes);
            found.push(removed);
        }
        Ok(found)
    }
}
