//! Deliveries that wait to be tried again, or for the time of their event. The log has them too: this is only the alarm clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use nexus_core::ids::{FunctionName, Seq};
use nexus_log::Parked;
use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Default)]
pub(super) struct Retries {
    inner: Mutex<Inner>,
    added: Notify,
}

#[derive(Default)]
struct Inner {
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Of each delivery that waits: the attempt that failed last. What is in the heap beside that is out of date.
    attempts: Attempts,
    /// Those that are being tried.
    running: Attempts,
}

/// The attempt that failed last, of deliveries by event and function.
#[derive(Default)]
struct Attempts(HashMap<Seq, HashMap<FunctionName, u32>>);

impl Attempts {
    fn get(&self, seq: Seq, function: &FunctionName) -> Option<u32> {
        self.0.get(&seq)?.get(function).copied()
    }

    fn insert(&mut self, parked: &Parked) -> Option<u32> {
        self.0.entry(parked.seq).or_default().insert(parked.function.clone(), parked.attempt)
    }

    fn remove(&mut self, seq: Seq, function: &FunctionName) {
        let Some(of_event) = self.0.get_mut(&seq) else { return };
        of_event.remove(function);
        if of_event.is_empty() {
            self.0.remove(&seq);
        }
    }

    fn len(&self) -> usize {
        self.0.values().map(HashMap::len).sum()
    }
}

impl Inner {
    fn add(&mut self, parked: Parked) {
        if self.running.get(parked.seq, &parked.function).is_some_and(|attempt| attempt >= parked.attempt) {
            return;
        }
        if self.attempts.get(parked.seq, &parked.function).is_some_and(|attempt| attempt > parked.attempt) {
            return;
        }
        self.running.remove(parked.seq, &parked.function);
        if self.attempts.insert(&parked) != Some(parked.attempt) {
            self.waiting.push(Reverse(Waiting(parked)));
        }
    }
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
    /// Delivers these again, each at its time. What is known already, or is being tried, is not added; what is settled by then is
    /// seen when its time has come.
    pub fn add(&self, parked: impl IntoIterator<Item = Parked>) {
        let mut inner = self.inner.lock();
        parked.into_iter().for_each(|parked| inner.add(parked));
        drop(inner);
        self.added.notify_one();
    }

    /// A delivery that was taken has come to its end.
    pub fn ended(&self, seq: Seq, function: &FunctionName) {
        self.inner.lock().running.remove(seq, function);
    }

    /// Whether this delivery waits, or was taken and has not ended.
    pub fn has(&self, seq: Seq, function: &FunctionName) -> bool {
        let inner = self.inner.lock();
        inner.attempts.get(seq, function).is_some() || inner.running.get(seq, function).is_some()
    }

    pub fn len(&self) -> usize {
        self.inner.lock().attempts.len()
    }

    /// Waits for the next one whose time has come, and takes it. Cancelled, it takes none.
    pub async fn due(&self) -> Parked {
        loop {
            let wait = {
                let mut inner = self.inner.lock();
                let now = Timestamp::now();
                match inner.waiting.peek() {
                    Some(Reverse(first)) if first.0.at <= now => {
                        let Some(Reverse(Waiting(parked))) = inner.waiting.pop() else { continue };
                        if inner.attempts.get(parked.seq, &parked.function) == Some(parked.attempt) {
                            inner.attempts.remove(parked.seq, &parked.function);
                            inner.running.insert(&parked);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parked(seq: u64, attempt: u32) -> Parked {
        Parked { seq: Seq(seq), function: "f".parse().expect("a name"), attempt, at: Timestamp::UNIX_EPOCH }
    }

    async fn due(retries: &Retries) -> Option<(u64, u32)> {
        let due = tokio::time::timeout(Duration::from_millis(20), retries.due()).await.ok()?;
        Some((due.seq.0, due.attempt))
    }

    #[tokio::test]
    async fn each_delivery_is_tried_once_however_often_it_is_told_of() {
        let retries = Retries::default();
        retries.add([parked(1, 1), parked(2, 1)]);
        // The same, and one more, as read anew.
        retries.add(vec![parked(1, 1), parked(2, 1), parked(3, 4)]);
        retries.add([parked(1, 1)]);
        assert_eq!(retries.len(), 3);
        assert_eq!(
            [due(&retries).await, due(&retries).await, due(&retries).await],
            [Some((1, 1)), Some((2, 1)), Some((3, 4))]
        );
        // They are being tried: what is read anew still has them.
        retries.add(vec![parked(1, 1), parked(2, 1), parked(3, 4)]);
        assert_eq!(due(&retries).await, None);
        // One failed again, one has ended, and is parked no more.
        retries.add([parked(1, 2)]);
        retries.ended(Seq(2), &"f".parse().expect("a name"));
        assert_eq!([due(&retries).await, due(&retries).await], [Some((1, 2)), None]);
    }
}
