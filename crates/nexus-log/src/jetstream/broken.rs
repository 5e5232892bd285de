//! When the log cannot go on: nobody waits for what will not come.

use std::sync::Arc;

use tokio::sync::watch;

use super::outbox::Outbox;
use crate::embedded::shared::Shared;

/// Who is told that the log cannot be followed any further.
#[derive(Clone)]
pub(crate) struct Broken {
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    why: watch::Sender<Option<String>>,
}

impl Broken {
    pub(crate) fn new(shared: Arc<Shared>, outbox: Arc<Outbox>) -> Self {
        Self { shared, outbox, why: watch::Sender::new(None) }
    }

    /// Takes no more, and answers all who wait.
    pub(crate) fn off(&self, why: String) {
        self.shared.queue.close();
        self.outbox.refuse_all(&why);
        self.why.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(why);
            first
        });
    }

    /// Whether it is.
    pub(crate) fn is(&self) -> bool {
        self.why.borrow().is_some()
    }

    /// Why, when it is.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<String>> {
        self.why.subscribe()
    }

    /// Breaks the log off if the thread that has this panics.
    pub(crate) fn guard(&self, does: &'static str) -> Guard {
        Guard { broken: self.clone(), does }
    }
}

/// See [`Broken::guard`].
pub(crate) struct Guard {
    broken: Broken,
    does: &'static str,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.broken.off(format!("the thread that {} for the log broke off", self.does));
        }
    }
}
