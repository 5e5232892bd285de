//! Requests that wait for the writer: bounded, and closed once.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::request::Request;
use crate::contract::StorageError;

/// The most bytes that may wait, so that a few large writes cannot fill the memory.
const WAITING_BYTES_MAX: usize = 64 << 20;
/// The most requests in one group, so that answers do not wait for ever.
const GROUP_MAX: usize = 1024;
/// The most bytes in one group.
const GROUP_BYTES_MAX: usize = 8 << 20;

/// The queue in front of the writer.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    ready: Condvar,
    max: usize,
}

#[derive(Default)]
struct Inner {
    requests: VecDeque<(Request, usize)>,
    bytes: usize,
    closed: bool,
}

/// What the writer finds.
pub(crate) enum Taken {
    /// Requests, oldest first.
    Group(Vec<Request>),
    /// Nothing came within the time.
    Idle,
    /// Closed, and nothing waits any more.
    Closed,
}

impl Queue {
    /// A queue for at most `max` waiting requests.
    pub(crate) fn new(max: usize) -> Self {
        Self { inner: Mutex::default(), ready: Condvar::new(), max: max.max(1) }
    }

    /// Puts a request in, or says at once why not.
    pub(crate) fn push(&self, request: Request) -> Result<(), StorageError> {
        let bytes = request.bytes();
        let mut inner = self.lock();
        if inner.closed {
            return Err(StorageError::Closed);
        }
        // One that is larger than the whole bound is let in alone: it could never get in otherwise.
        let waiting = inner.requests.len();
        // What only asks takes no room, and who asks it must know.
        let asks = matches!(request, Request::Progress { .. });
        if !asks && (waiting >= self.max || (waiting > 0 && inner.bytes + bytes > WAITING_BYTES_MAX)) {
            return Err(StorageError::Busy { waiting });
        }
        inner.requests.push_back((request, bytes));
        inner.bytes += bytes;
        drop(inner);
        self.ready.notify_one();
        Ok(())
    }

    /// Takes all that waits, up to the bounds of a group; waits for the first.
    pub(crate) fn take(&self, idle: Duration) -> Taken {
        let inner = self.lock();
        let waiting = |inner: &mut Inner| inner.requests.is_empty() && !inner.closed;
        let (mut inner, _) =
            self.ready.wait_timeout_while(inner, idle, waiting).unwrap_or_else(PoisonError::into_inner);
        if inner.requests.is_empty() {
            return if inner.closed { Taken::Closed } else { Taken::Idle };
        }
        let mut group = Vec::with_capacity(inner.requests.len().min(GROUP_MAX));
        let mut group_bytes = 0;
        while let Some((_, bytes)) = inner.requests.front() {
            if group.len() >= GROUP_MAX || (!group.is_empty() && group_bytes + bytes > GROUP_BYTES_MAX) {
                break;
            }
            if let Some((request, bytes)) = inner.requests.pop_front() {
                inner.bytes -= bytes;
                group_bytes += bytes;
                group.push(request);
            }
        }
        Taken::Group(group)
    }

    /// Lets nothing more in. What waits is still taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_all();
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
