//! The log of the contract: what is written goes through the queue, what is read comes from memory or the store.

use std::sync::Arc;

use async_trait::async_trait;
use nexus_core::ids::{FunctionName, InvocationId, Seq};
use nexus_core::outcome::Outcome;
use nexus_core::record::{NewRecord, Record};
use tokio::sync::{oneshot, watch};

use super::codec::{self, Prepared};
use super::request::{Answer, PreparedCommit, Request};
use super::shared::Shared;
use super::{gets, read, retain};
use crate::contract::{
    Commit, DeadLetter, EventQuery, Log, Members, Page, Parked, Progress, Receipt, Release, StorageError,
};

/// The most events in one batch or commit.
const BATCH_MAX: usize = 10_000;
/// The most deliveries that are parked at once.
const PARKED_MAX: usize = 10_000;
/// The most bytes that the values of one batch or commit may have.
const BATCH_BYTES_MAX: usize = 64 << 20;

/// The log in a directory.
pub(crate) struct EmbeddedLog {
    shared: Arc<Shared>,
}

impl EmbeddedLog {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

/// Makes events ready. Runs where the caller runs, so that the one writer has less to do.
fn prepare(batch: Vec<NewRecord>) -> Result<Vec<Prepared>, StorageError> {
    if batch.len() > BATCH_MAX {
        return Err(StorageError::Invalid(format!("a batch of {} events; {BATCH_MAX} are allowed", batch.len())));
    }
    let mut bytes = 0;
    let mut prepared = Vec::with_capacity(batch.len());
    for entry in batch {
        let one = Prepared::new(entry)?;
        bytes += one.value.len();
        if bytes > BATCH_BYTES_MAX {
            return Err(StorageError::TooLarge { bytes, max: BATCH_BYTES_MAX, why: "" });
        }
        prepared.push(one);
    }
    Ok(prepared)
}

/// Asks the writer, and waits for its answer.
pub(crate) async fn ask<T>(shared: &Shared, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, StorageError> {
    let (answer, answered) = oneshot::channel();
    shared.queue.push(request(answer))?;
    // The writer answers all that it takes, unless it broke off.
    answered.await.map_err(|_| StorageError::Closed)?
}

#[async_trait]
impl Log for EmbeddedLog {
    async fn append(&self, batch: Vec<NewRecord>) -> Result<Vec<Receipt>, StorageError> {
        let batch = prepare(batch)?;
        ask(&self.shared, |answer| Request::Append { batch, answer }).await
    }

    async fn commit(&self, commit: Commit) -> Result<Vec<Receipt>, StorageError> {
        let Commit { outcome, emitted } = commit;
        let value = codec::encode_outcome(&outcome)?;
        if value.len() > BATCH_BYTES_MAX {
            return Err(StorageError::TooLarge { bytes: value.len(), max: BATCH_BYTES_MAX, why: "" });
        }
        let commit = Box::new(PreparedCommit { outcome, value, emitted: prepare(emitted)? });
        ask(&self.shared, |answer| Request::Commit { commit, answer }).await
    }

    async fn park(&self, parked: Vec<Parked>) -> Result<(), StorageError> {
        if parked.len() > PARKED_MAX || parked.iter().any(|parked| parked.attempt != 0) {
            let why = format!("parks at most {PARKED_MAX} deliveries at once, and none that was tried");
            return Err(StorageError::Invalid(why));
        }
        ask(&self.shared, |answer| Request::Park { parked, answer }).await
    }

    async fn parked(&self, seq: Seq) -> Result<Vec<Parked>, StorageError> {
        self.shared.read(move |_, store| read::parked(store, seq)).await
    }

    async fn advance(&self, below: Seq, epoch: u64) -> Result<(), StorageError> {
        if self.shared.queue.is_closed() {
            return Err(StorageError::Closed);
        }
        self.shared.advance(below, epoch);
        Ok(())
    }

    fn delivered_below(&self) -> Seq {
        self.shared.delivered_below()
    }

    fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.shared.members.subscribe()
    }

    async fn progress(&self) -> Result<Progress, StorageError> {
        ask(&self.shared, |answer| Request::Progress { answer }).await
    }

    fn head(&self) -> watch::Receiver<Seq> {
        self.shared.head.subscribe()
    }

    async fn read(&self, from: Seq, max: usize) -> Result<Vec<Arc<Record>>, StorageError> {
        if self.shared.queue.is_closed() {
            return Err(StorageError::Closed);
        }
        // Only references are taken under the lock that the writer waits for too.
        let tail = self.shared.tail().from(from, max.min(read::READ_MAX));
        if let Some(records) = tail {
            return Ok(records);
        }
        if from > *self.shared.head.borrow() {
            return Ok(Vec::new());
        }
        self.shared.read(move |shared, store| read::read(shared, store, from, max)).await
    }

    async fn get(&self, seq: Seq) -> Result<Option<Arc<Record>>, StorageError> {
        if self.shared.queue.is_closed() {
            return Err(StorageError::Closed);
        }
        let tail = self.shared.tail().get(seq);
        if let Some(record) = tail {
            return Ok(Some(record));
        }
        gets::get(&self.shared, seq).await
    }

    async fn find(&self, id: &str, source: Option<&str>) -> Result<Vec<Record>, StorageError> {
        let (id, source) = (id.to_owned(), source.map(str::to_owned));
        self.shared.read(move |shared, store| read::find(shared, store, &id, source.as_deref())).await
    }

    async fn query(&self, query: &EventQuery) -> Result<Page, StorageError> {
        let query = query.clone();
        self.shared.read(move |shared, store| read::query(shared, store, &query)).await
    }

    async fn outcomes(&self, seq: Seq) -> Result<Vec<Outcome>, StorageError> {
        gets::outcomes(&self.shared, seq).await
    }

    async fn outcome(&self, invocation: InvocationId) -> Result<Option<Outcome>, StorageError> {
        self.shared.read(move |shared, store| read::outcome(shared, store, invocation)).await
    }

    async fn dead_letters(
        &self,
        function: Option<&FunctionName>,
        after: Option<(Seq, FunctionName)>,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, StorageError> {
        let function = function.cloned();
        self.shared.read(move |shared, store| read::dead_letters(shared, store, function, after, limit)).await
    }

    async fn release(&self, letters: Vec<(Seq, FunctionName)>, how: Release) -> Result<u64, StorageError> {
        if letters.len() > BATCH_MAX {
            return Err(StorageError::Invalid(format!(
                "{} dead letters at once; {BATCH_MAX} are allowed",
                letters.len()
            )));
        }
        ask(&self.shared, |answer| Request::Release { letters, how, answer }).await
    }

    fn released(&self) -> watch::Receiver<u64> {
        self.shared.released.subscribe()
    }

    async fn retain(&self) -> Result<u64, StorageError> {
        retain::retain(&self.shared).await
    }
}
