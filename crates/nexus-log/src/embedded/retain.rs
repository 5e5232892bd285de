//! What goes: too old or too much, oldest first, never what is not delivered or is parked.
//!
//! Candidates are looked for beside the writer, a block at a time; the writer checks each again and removes it with all
//! that points to it. Files of events that lie before everything that stays are then dropped whole.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::SignedDuration;
use nexus_core::ids::{RuntimeId, Seq};

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
pub(crate) async fn retain(shared: &Arc<Shared>) -> Result<u64, StorageError> {
    let _one_at_a_time = shared.retaining.lock().await;
    let progress = ask(shared, |answer| Request::Progress { answer }).await?;
    let floor = shared.floor();
    // A mark that is not durable yet counts: it is written in one batch with the first removal.
    // Where others share the log, theirs counts too: only what all have said is known.
    let alone = shared.members.borrow().me == RuntimeId::default();
    let told = if alone { shared.advanced_to().1 } else { Seq(0) };
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
    // Everything before the first that stays is gone, also where the last blocks had nothing left to remove.
    let clear = search.stays.map_or(search.below, |stays| stays.min(search.below));
    if clear > shared.floor() {
        let removal = Removal { floor: clear, events: Vec::new() };
        ask(shared, |answer| Request::Remove { removal, answer }).await?;
    }
    if gone > 0 {
        tracing::info!(events = gone, "retention removed events");
    }
    // Also what another runtime removed from the same log.
    let floor = shared.floor();
    if floor.0 > shared.dropped_below.load(Ordering::Relaxed) {
        shared.read(move |_, store| store.drop_below(floor)).await?;
        shared.dropped_below.store(floor.0, Ordering::Relaxed);
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
            let removed = Removed::of(store, seq, &value)?;
            self.excess = self.excess.saturating_sub(removed.bytes);
            found.push(removed);
        }
        Ok(found)
    }
}

impl Removed {
    /// What goes with an event, by its value.
    pub(crate) fn of(store: &Store, seq: Seq, value: &[u8]) -> Result<Self, StorageError> {
        let envelope = Envelope::decode(value)?;
        let mut removed = Self { seq, envelope, bytes: value.len() as u64, outcomes: Vec::new() };
        for entry in store.outcomes.range(codec::pair(seq, 0)..=codec::pair(seq, u64::MAX)) {
            let (key, value) = entry.into_inner().map_err(failed)?;
            removed.bytes += value.len() as u64;
            removed.outcomes.push((codec::unpair(&key)?.1, codec::outcome_invocation(&value)?));
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nexus_core::event::Data;
    use nexus_core::outcome::Disposition;

    use super::*;
    use crate::conformance::{Settings, numbered, outcome};
    use crate::contract::{Commit, Retention};
    use crate::embedded::{Embedded, EmbeddedConfig, open};

    async fn opened(path: &Path) -> Embedded {
        let retention = Retention { max_age: None, max_bytes: Some(0) };
        open(EmbeddedConfig { retention, reserve_bytes: 0, ..EmbeddedConfig::new(path) }).await.expect("open")
    }

    /// Bytes of tables, once everything in memory is written out; and entries of every index.
    async fn stored(handle: &Embedded) -> (u64, [usize; 4]) {
        let look = |_: &Shared, store: &Store| {
            let tables = [&store.events, &store.outcomes, &store.ids, &store.traces, &store.meta];
            for table in tables {
                table.rotate_memtable_and_wait().map_err(failed)?;
            }
            let count = |table: &fjall::Keyspace| table.len().map_err(failed);
            let entries = [count(&store.outcomes)?, count(&store.ids)?, count(&store.traces)?, count(&store.meta)?];
            Ok((store.events.disk_space() + store.outcomes.disk_space(), entries))
        };
        handle.shared.read(look).await.expect("look")
    }

    #[tokio::test]
    async fn space_comes_back_and_no_index_entry_is_left() {
        let directory = tempfile::tempdir().expect("a directory");
        let settings = Settings::default();
        let mut handle = opened(directory.path()).await;
        let (_, empty) = stored(&handle).await;
        assert_eq!(empty, [0; 4]);
        // Several tables, each of more than one block, and one parked event in the middle.
        for part in 0..4_u64 {
            let log = handle.storage().log;
            for n in 0..15 {
                let mut batch: Vec<_> = (0..100).map(|m| numbered(&settings, part * 1500 + n * 100 + m)).collect();
                for record in &mut batch {
                    record.event.data = Some(Data::Binary(rand::random::<[u8; 900]>().to_vec().into()));
                }
                log.append(batch).await.expect("append");
            }
            let (seq, disposition) = (Seq(part * 1500 + 700), Disposition::Retry { at: crate::conformance::start() });
            let disposition = if part == 1 { disposition } else { Disposition::Done };
            log.commit(Commit { outcome: outcome(seq, 1, disposition).into(), emitted: vec![] }).await.expect("commit");
            stored(&handle).await;
        }
        let (full, _) = stored(&handle).await;
        let log = handle.storage().log;
        log.advance(Seq(5_001), 0).await.expect("advance");
        assert_eq!(log.retain().await.expect("retain"), 4_999);
        let left: Vec<u64> = log.read(Seq(1), 4096).await.expect("read").iter().map(|record| record.seq.0).collect();
        assert_eq!(left, std::iter::once(2_200).chain(5_001..=6_000).collect::<Vec<_>>());

        // The parked one is done with: nothing is left before the mark, and whole files go.
        let done = outcome(Seq(2_200), 2, Disposition::Done);
        log.commit(Commit { outcome: done.into(), emitted: vec![] }).await.expect("commit");
        assert_eq!(log.retain().await.expect("retain"), 1);
        let (less, _) = stored(&handle).await;
        assert!(less < full / 2, "{less} of {full} bytes are left");

        // What a journal brings back at opening stays out of sight.
        handle.close().await.expect("close");
        handle = opened(directory.path()).await;
        let log = handle.storage().log;
        assert_eq!(log.read(Seq(1), 1).await.expect("read")[0].seq, Seq(5_001));
        assert_eq!(log.get(Seq(1)).await.expect("get"), None);
        log.advance(Seq(6_001), 0).await.expect("advance");
        assert_eq!(log.retain().await.expect("retain"), 1_000);
        let (least, [outcomes, ids, traces, meta]) = stored(&handle).await;
        assert!(least < full / 10, "{least} of {full} bytes are left");
        assert_eq!([outcomes, ids, traces], [0; 3]);
        // The counters, and the newest block with its type and its source by hash and by block.
        assert_eq!(meta, 6);
        handle.close().await.expect("close");
    }
}
