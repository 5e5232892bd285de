//! What the writer can be asked for, and how it answers.

use std::sync::Arc;

use bytes::Bytes;
use nexus_core::ids::{FunctionName, Seq};
use nexus_core::outcome::Outcome;
use tokio::sync::oneshot;

use super::codec::{Envelope, Prepared};
use crate::contract::{Parked, Progress, Receipt, Release, Revision, StorageError};

/// Where an answer goes. Whoever asked may have gone: then nobody hears it, and what was written stays.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, StorageError>>;

/// One request.
pub(crate) enum Request {
    Append { batch: Vec<Prepared>, answer: Answer<Vec<Receipt>> },
    Commit { commit: Box<PreparedCommit>, answer: Answer<Vec<Receipt>> },
    Put { key: String, value: Bytes, expected: Option<Revision>, answer: Answer<Revision> },
    Delete { key: String, expected: Revision, answer: Answer<()> },
    Remove { removal: Removal, answer: Answer<u64> },
    Release { letters: Vec<(Seq, FunctionName)>, how: Release, answer: Answer<u64> },
    Park { parked: Vec<Parked>, answer: Answer<()> },
    Progress { answer: Answer<Progress> },
}

/// An outcome made ready by whoever commits it.
pub(crate) struct PreparedCommit {
    pub(crate) outcome: Arc<Outcome>,
    pub(crate) value: fjall::Slice,
    pub(crate) emitted: Vec<Prepared>,
}

/// Events that retention found to be too old or too many; the writer checks again that they may go.
pub(crate) struct Removal {
    pub(crate) events: Vec<Removed>,
    /// Every event before this place is in `events`, or was removed before, or is not there.
    pub(crate) floor: Seq,
}

/// One of them.
pub(crate) struct Removed {
    pub(crate) seq: Seq,
    pub(crate) envelope: Envelope,
    /// Of the event and its outcomes.
    pub(crate) bytes: u64,
    /// Number and invocation key of each outcome.
    pub(crate) outcomes: Vec<(u64, [u8; 17])>,
}

impl Request {
    /// Bytes that wait with it.
    pub(crate) fn bytes(&self) -> usize {
        let events = |batch: &[Prepared]| batch.iter().map(|p| p.value.len() + 128).sum::<usize>();
        match self {
            Self::Append { batch, .. } => events(batch),
            Self::Commit { commit, .. } => commit.value.len() + events(&commit.emitted),
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Delete { key, .. } => key.len(),
            Self::Remove { removal, .. } => removal.events.len() * 256,
            Self::Release { letters, .. } => letters.len() * 96,
            Self::Park { parked, .. } => parked.len() * 96,
            Self::Progress { .. } => 0,
        }
    }

    /// Answers that it was not done.
    pub(crate) fn refuse(self, error: StorageError) {
        // A receiver that is gone is nobody's error.
        match self {
            Self::Append { answer, .. } | Self::Commit { answer, .. } => drop(answer.send(Err(error))),
            Self::Put { answer, .. } => drop(answer.send(Err(error))),
            Self::Delete { answer, .. } | Self::Park { answer, .. } => drop(answer.send(Err(error))),
            Self::Remove { answer, .. } | Self::Release { answer, .. } => drop(answer.send(Err(error))),
            Self::Progress { answer } => drop(answer.send(Err(error))),
        }
    }
}

/// An answer that is given once the group is durable.
pub(crate) enum Pending {
    Receipts(Answer<Vec<Receipt>>, Vec<Receipt>),
    Revision(Answer<Revision>, Revision),
    Unit(Answer<()>),
    Count(Answer<u64>, u64),
    Progress(Answer<Progress>, Progress),
}

impl Pending {
    /// Answers: done, or why not.
    pub(crate) fn finish(self, failure: Option<StorageError>) {
        fn send<T>(answer: Answer<T>, value: T, failure: Option<StorageError>) {
            drop(answer.send(failure.map_or(Ok(value), Err)));
        }
        match self {
            Self::Receipts(answer, value) => send(answer, value, failure),
            Self::Revision(answer, value) => send(answer, value, failure),
            Self::Unit(answer) => send(answer, (), failure),
            Self::Count(answer, value) => send(answer, value, failure),
            Self::Progress(answer, value) => send(answer, value, failure),
        }
    }
}
