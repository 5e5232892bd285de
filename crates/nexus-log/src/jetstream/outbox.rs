//! Groups that were sent, until they come back in the stream's order and are answered.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nexus_core::ids::RuntimeId;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::wire::GroupId;
use crate::contract::StorageError;
use crate::embedded::request::Request;

/// The groups of this runtime that wait.
pub(crate) struct Outbox {
    runtime: RuntimeId,
    inner: Mutex<Inner>,
    waiting: watch::Sender<usize>,
}

struct Inner {
    groups: HashMap<u64, Group>,
    last: u64,
}

/// One of them, and its place among those that may be on their way at once.
struct Group {
    requests: Vec<Request>,
    _place: OwnedSemaphorePermit,
}

impl Outbox {
    /// Of a runtime. Its groups are numbered from somewhere on: never again from where an earlier process of the same began.
    pub(crate) fn new(runtime: RuntimeId, from: u64) -> Self {
        let inner = Inner { groups: HashMap::new(), last: from };
        Self { runtime, inner: Mutex::new(inner), waiting: watch::Sender::new(0) }
    }

    /// The number of the next group.
    pub(crate) fn next_id(&self) -> GroupId {
        let mut inner = self.lock();
        inner.last = inner.last.wrapping_add(1);
        GroupId { runtime: self.runtime, number: inner.last }
    }

    /// Keeps a group, and its place, until it comes back.
    pub(crate) fn put(&self, id: GroupId, requests: Vec<Request>, place: OwnedSemaphorePermit) {
        let mut inner = self.lock();
        inner.groups.insert(id.number, Group { requests, _place: place });
        self.waiting.send_replace(inner.groups.len());
    }

    /// A group has come back: the requests, if it is of this runtime and somebody waits for it.
    pub(crate) fn take(&self, id: GroupId) -> Option<Vec<Request>> {
        if id.runtime != self.runtime {
            return None;
        }
        let mut inner = self.lock();
        let taken = inner.groups.remove(&id.number);
        self.waiting.send_replace(inner.groups.len());
        taken.map(|group| group.requests)
    }

    /// A group may not have got there: whoever waits for it is told, and asks again if they like. It may come back even so.
    pub(crate) fn refuse(&self, id: GroupId, why: &str) {
        for request in self.take(id).into_iter().flatten() {
            request.refuse(StorageError::Failed(why.to_owned()));
        }
    }

    /// Nothing comes back any more.
    pub(crate) fn refuse_all(&self, why: &str) {
        let groups = std::mem::take(&mut self.lock().groups);
        for request in groups.into_values().flat_map(|group| group.requests) {
            request.refuse(StorageError::Failed(why.to_owned()));
        }
        self.waiting.send_replace(0);
    }

    /// How many groups wait.
    pub(crate) fn waiting(&self) -> watch::Receiver<usize> {
        self.waiting.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
