//! The seam between the engine and the probes: whose work a thread does right now.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Marks the current thread as working for one owner while `work` runs.
///
/// The collector's account of an invocation is one; [`Unmarked`] stands where nothing is watched.
pub trait Marker: Send + Sync + 'static {
    /// Runs `work` on this thread, at once and exactly once, marked as a part of the owner's work. A panic passes through and
    /// the mark is gone.
    fn marked(&self, part: Part, work: &mut dyn FnMut());

    /// Whether [`Marker::crossed`] is to be told; it is asked once, before the guest begins.
    fn wants_crossings(&self) -> bool {
        false
    }

    /// On a marked thread: the guest's code begins to run, or it ends to.
    fn crossed(&self, _into_guest: bool) {}
}

/// A part of an owner's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The guest, and whatever the host does for it on the same thread.
    Guest,
    /// What goes on beside the guest for one of its imports, by its name.
    Import(&'static str),
}

/// The marker where nothing is watched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unmarked;

impl Marker for Unmarked {
    fn marked(&self, _part: Part, work: &mut dyn FnMut()) {
        work();
    }
}

/// A future whose every poll is marked.
///
/// The future lives in a box: the guest's state is large, and pinning it needs no unsafe code so.
pub struct Marked<T: Send + 'static> {
    marker: Arc<dyn Marker>,
    part: Part,
    inner: Pin<Box<dyn Future<Output = T> + Send>>,
}

impl<T: Send + 'static> Marked<T> {
    /// Marks every poll of `inner` with `marker`, as this part of the work.
    pub fn new(marker: Arc<dyn Marker>, part: Part, inner: Pin<Box<dyn Future<Output = T> + Send>>) -> Self {
        Self { marker, part, inner }
    }
}

impl<T: Send + 'static> Future for Marked<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Self { marker, part, inner } = &mut *self;
        let mut result = Poll::Pending;
        marker.marked(*part, &mut || result = inner.as_mut().poll(cx));
        result
    }
}

impl<T: Send + 'static> Drop for Marked<T> {
    /// What is torn down (connections closed, memory given back) is the owner's work too.
    fn drop(&mut self) {
        let inner = &mut self.inner;
        let empty: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(std::future::pending());
        let mut old = Some(std::mem::replace(inner, empty));
        self.marker.marked(self.part, &mut || drop(old.take()));
    }
}
