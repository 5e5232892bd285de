//! Events that somebody delivers himself: an HTTP call waits for its outcome, and runs on the thread that read it.
//!
//! The dispatcher meets these events in the log like any other. A claim tells it that they are taken care of, and holds
//! the mark of progress until they are. A claim dies with its process; then the next start delivers the event.

use std::collections::HashMap;
use std::sync::Arc;

use nexus_core::record::Record;
use parking_lot::Mutex;

use super::Dispatcher;
use super::tracker::InFlight;

/// The claims of this process, by event id.
#[derive(Default)]
pub(super) struct Claims(Mutex<HashMap<String, State>>);

enum State {
    /// Not yet met by the dispatcher.
    Open,
    /// Met; counted as in flight.
    Seen(InFlight, Arc<Record>),
    /// Over before the dispatcher met it.
    Over,
}

impl Claims {
    /// Whether the event is claimed. Called by the dispatcher, once for each event.
    pub fn seen(&self, dispatcher: &Dispatcher, record: &Arc<Record>) -> bool {
        let mut claims = self.0.lock();
        match claims.get_mut(&record.entry.event.id) {
            None => false,
            Some(State::Over) => {
                claims.remove(&record.entry.event.id);
                true
            }
            // Met anew, because the runtimes have changed.
            Some(State::Seen(..)) => true,
            Some(state) => {
                *state = State::Seen(dispatcher.tracker.begin(record.seq, 1), record.clone());
                true
            }
        }
    }
}

/// One claim. Dropped without [`Claim::settled`] or [`Claim::not_appended`] it leaves the event to the dispatcher.
pub struct Claim {
    dispatcher: Arc<Dispatcher>,
    event_id: String,
    ended: bool,
}

impl Claim {
    pub(super) fn new(dispatcher: Arc<Dispatcher>, event_id: &str) -> Self {
        dispatcher.claims.0.lock().insert(event_id.to_owned(), State::Open);
        Self { dispatcher, event_id: event_id.to_owned(), ended: false }
    }

    /// The outcome is durable.
    pub fn settled(mut self) {
        self.ended = true;
        let mut claims = self.dispatcher.claims.0.lock();
        match claims.remove(&self.event_id) {
            Some(State::Open) => {
                claims.insert(self.event_id.clone(), State::Over);
            }
            // Letting go of the last count moves the mark, which takes another lock: not under this one.
            Some(State::Seen(in_flight, _)) => {
                drop(claims);
                in_flight.settle();
            }
            Some(State::Over) | None => {}
        }
    }

    /// The event did not get into the log: there is nothing to meet.
    pub fn not_appended(mut self) {
        self.ended = true;
        self.dispatcher.claims.0.lock().remove(&self.event_id);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Its outcome could not be written, or it panicked: it is delivered like any other now.
        let state = self.dispatcher.claims.0.lock().remove(&self.event_id);
        if let Some(State::Seen(in_flight, record)) = state {
            self.dispatcher.take_over(record, in_flight);
        }
    }
}
