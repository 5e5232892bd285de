//! The open store and what is known of it: what a group of writes changes.

use std::sync::{Arc, PoisonError};

use nexus_core::ids::Seq;

use super::journal;
use super::plan::{self, Plan, Published};
use super::request::{Answer, Pending, Request};
use super::seen;
use super::shared::Shared;
use super::state::{self, State};
use super::store::Store;
use crate::contract::{Members, StorageError};

/// The open store, and what its one writer knows of it.
pub(crate) struct Core {
    pub(crate) store: Arc<Store>,
    pub(crate) state: State,
}

impl Core {
    /// Opens the store, reads the state back, and lets readers in.
    pub(crate) fn open(shared: &Shared) -> Result<Self, StorageError> {
        let path = shared.directory()?.database();
        journal::check(&path)?;
        let store = Arc::new(Store::open(&path)?);
        let (state, blocks) = state::load(&store)?;
        seen::fill(&store)?;
        *shared.blocks.write().unwrap_or_else(PoisonError::into_inner) = blocks;
        shared.tail().clear();
        shared.set_floor(state.counters.floor);
        shared.set_delivered_below(state.counters.delivered_below);
        shared.set_store(Some(store.clone()));
        shared.head.send_replace(Seq(state.counters.next_seq.0 - 1));
        Ok(Self { store, state })
    }

    /// Shows what is written now.
    pub(crate) fn publish(&mut self, shared: &Shared, published: Published) {
        let counters = self.state.counters;
        self.state.durable_below = counters.delivered_below;
        {
            let mut blocks = shared.blocks.write().unwrap_or_else(PoisonError::into_inner);
            for (number, block) in published.blocks {
                match block {
                    Some(block) => drop(blocks.insert(number, block)),
                    None => drop(blocks.remove(&number)),
                }
            }
        }
        shared.set_floor(counters.floor);
        shared.set_delivered_below(counters.delivered_below);
        let head = Seq(counters.next_seq.0 - 1);
        {
            let mut tail = shared.tail();
            if published.tail_spoiled {
                tail.clear();
            }
            for (record, bytes) in published.appended {
                tail.push(record, bytes);
            }
        }
        // Whoever is woken by an event finds what was deployed before it.
        let revision = counters.revision;
        shared.changes.send_if_modified(|old| std::mem::replace(old, revision) != revision);
        shared.head.send_if_modified(|old| std::mem::replace(old, head) != head);
        if published.released {
            shared.released.send_modify(|count| *count += 1);
        }
        let membership = &self.state.membership;
        shared.members.send_if_modified(|members| {
            let changed = members.epoch != membership.epoch;
            if changed {
                *members = Arc::new(Members { me: members.me, all: membership.runtimes(), epoch: membership.epoch });
            }
            changed
        });
    }
}

/// Plans one request. `Ok(None)`: it was refused on its own account and is answered.
pub(crate) fn step(plan: &mut Plan<'_>, request: Request) -> Result<Option<Pending>, StorageError> {
    /// An error that spoils the group is this request's answer too.
    fn spoil<T>((answer, error): (Answer<T>, StorageError)) -> StorageError {
        drop(answer.send(Err(StorageError::Failed(error.to_string()))));
        error
    }
    match request {
        Request::Append { batch, answer } => {
            plan::pending(plan.append(batch), answer, Pending::Receipts).map_err(spoil)
        }
        Request::Commit { commit, answer } => {
            plan::pending(plan.commit(*commit), answer, Pending::Receipts).map_err(spoil)
        }
        Request::Put { key, value, expected, answer } => {
            plan::pending(plan.put(&key, &value, expected), answer, Pending::Revision).map_err(spoil)
        }
        Request::Delete { key, expected, answer } => {
            plan::pending(plan.delete(&key, expected), answer, |answer, ()| Pending::Unit(answer)).map_err(spoil)
        }
        Request::Remove { removal, answer } => {
            plan::pending(plan.remove(removal), answer, Pending::Count).map_err(spoil)
        }
        Request::Release { letters, how, answer } => {
            plan::pending(plan.release(&letters, how), answer, Pending::Count).map_err(spoil)
        }
        Request::Park { parked, answer } => {
            plan::pending(plan.park_new(parked), answer, |answer, ()| Pending::Unit(answer)).map_err(spoil)
        }
        Request::Progress { answer } => Ok(Some(Pending::Progress(answer, plan.progress()))),
    }
}

/// Whether there is too little room for this kind of request: what is new stops first, what finishes work later, what
/// makes room last.
pub(crate) fn full(request: &Request, free_bytes: u64, reserve_bytes: u64) -> Option<StorageError> {
    let reserve_bytes = match request {
        Request::Append { .. } => reserve_bytes,
        Request::Park { .. }
        | Request::Commit { .. }
        | Request::Put { .. }
        | Request::Delete { .. }
        | Request::Release { .. } => reserve_bytes / 2,
        Request::Remove { .. } => reserve_bytes / 4,
        Request::Progress { .. } => 0,
    };
    (free_bytes < reserve_bytes).then_some(StorageError::Full { free_bytes, reserve_bytes })
}

/// The same error for another who waits.
pub(crate) fn again(error: &StorageError) -> StorageError {
    match error {
        StorageError::Full { free_bytes, reserve_bytes } => {
            StorageError::Full { free_bytes: *free_bytes, reserve_bytes: *reserve_bytes }
        }
        StorageError::Closed => StorageError::Closed,
        other => StorageError::Failed(other.to_string()),
    }
}
