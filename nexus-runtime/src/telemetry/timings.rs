//! How long appends and commits took: known only after what the log holds was written, so it is remembered beside it.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use nexus_core::ids::{InvocationId, Seq};
use parking_lot::Mutex;

/// How many of each are remembered. Older ones are shown as unknown.
const REMEMBERED: usize = 20_000;

/// The latest durations. What is forgotten, or was before the last start, is unknown.
#[derive(Default)]
pub struct Timings {
    appends: Mutex<Ring<Seq>>,
    commits: Mutex<Ring<InvocationId>>,
}

struct Ring<K> {
    order: VecDeque<K>,
    durations: HashMap<K, Duration>,
}

impl<K> Default for Ring<K> {
    fn default() -> Self {
        Self { order: VecDeque::new(), durations: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash> Ring<K> {
    fn put(&mut self, key: K, took: Duration) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.durations.remove(&oldest);
        }
        self.order.push_back(key);
        self.durations.insert(key, took);
    }
}

impl Timings {
    /// The event at this place was durable after this time.
    pub fn appended(&self, seq: Seq, took: Duration) {
        self.appends.lock().put(seq, took);
    }

    /// The outcome of this invocation was durable after this time.
    pub fn committed(&self, invocation: InvocationId, took: Duration) {
        self.commits.lock().put(invocation, took);
    }

    /// How long the event's append took.
    pub fn append(&self, seq: Seq) -> Option<Duration> {
        self.appends.lock().durations.get(&seq).copied()
    }

    /// How long the outcome's commit took.
    pub fn commit(&self, invocation: InvocationId) -> Option<Duration> {
        self.commits.lock().durations.get(&invocation).copied()
    }
}
