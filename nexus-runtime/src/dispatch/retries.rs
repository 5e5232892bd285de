//! Deliveries that wait to be tried again. The log has them too: this is only the alarm clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use jiff::Timestamp;
use nexus_log::Parked;
use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Default)]
pub(super) struct Retries {
    waiting: Mutex<BinaryHeap<Reverse<Waiting>>>,
    added: Notify,
}

struct Waiting(Parked);

impl Waiting {
    fn key(&self) -> (Timestamp, u64, &str) {
        (self.0.at, self.0.seq.0, self.0.function.as_str())
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Retries {
    pub fn add(&self, parked: impl IntoIterator<Item = Parked>) {
        self.waiting.lock().extend(parked.into_iter().map(|p| Reverse(Waiting(p))));
        self.added.notify_one();
    }

    pub fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Waits for the next one whose time has come, and takes it. Cancelled, it takes none.
    pub async fn due(&self) -> Parked {
        loop {
            let wait = {
                let mut waiting = self.waiting.lock();
                let now = Timestamp::now();
                match waiting.peek() {
                    Some(Reverse(first)) if first.0.at <= now => {
                        if let Some(Reverse(Waiting(parked))) = waiting.pop() {
                            return parked;
                        }
                        continue;
                    }
                    // A clock that was set back must not make it wait for long: it looks again after a minute.
                    Some(Reverse(first)) => {
                        let left = first.0.at.duration_since(now);
                        Duration::try_from(left).unwrap_or_default().min(Duration::from_secs(60))
                    }
                    None => Duration::from_secs(3600),
                }
            };
            tokio::select! {
                () = self.added.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}
