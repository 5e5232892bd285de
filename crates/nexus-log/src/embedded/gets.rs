//! Reads of single events, many at a time.
//!
//! A function that is behind has thousands of deliveries that each read their event. Each on the blocking pool by itself, the
//! threads' waking and sleeping would cost more than the reading: so one job reads what is asked for, and a few more
//! where it does not keep up, as on a slow disk.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nexus_core::ids::Seq;
use nexus_core::record::Record;
use tokio::sync::oneshot;

use super::core::again;
use super::read;
use super::shared::Shared;
use super::store::Store;
use crate::contract::StorageError;

/// Jobs at once.
const JOBS_MAX: usize = 4;
/// Reads that wait for each job before there is another.
const WAITING_PER_JOB: usize = 64;
/// How long one job has the store: whoever closes it waits for that.
const JOB_TIME: Duration = Duration::from_millis(100);

type Asked = (Seq, oneshot::Sender<Result<Option<Arc<Record>>, StorageError>>);

/// What is asked for, and not yet read.
#[derive(Default)]
pub(crate) struct Gets(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    asked: VecDeque<Asked>,
    jobs: usize,
}

impl Gets {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another job is needed; it is counted from now on.
    fn ask(&self, asked: Asked) -> bool {
        let mut waiting = self.waiting();
        waiting.asked.push_back(asked);
        let another = waiting.jobs < JOBS_MAX && waiting.asked.len() > waiting.jobs * WAITING_PER_JOB;
        waiting.jobs += usize::from(another);
        another
    }

    /// Reads the oldest, one after the other: one that breaks off takes none of the others with it.
    fn read(&self, shared: &Shared, store: &Store) -> Result<(), StorageError> {
        let until = Instant::now() + JOB_TIME;
        while Instant::now() < until {
            let Some((seq, answer)) = self.waiting().asked.pop_front() else { break };
            if !answer.is_closed() {
                // Whoever asked may go away now.
                let _ = answer.send(read::get(shared, store, seq).map(|found| found.map(Arc::new)));
            }
        }
        Ok(())
    }
}

/// One event from the store.
pub(crate) async fn get(shared: &Arc<Shared>, seq: Seq) -> Result<Option<Arc<Record>>, StorageError> {
    let (answer, answered) = oneshot::channel();
    if shared.gets.ask((seq, answer)) {
        // In a task of its own: whoever asked first may go away before the others are answered.
        tokio::spawn(serve(Job { shared: shared.clone(), counted: true }));
    }
    // Unanswered is only what a read was at when it broke off.
    answered.await.map_err(|_| StorageError::Failed("a read broke off".to_owned()))?
}

/// A job. However it ends, nobody waits for it in vain.
struct Job {
    shared: Arc<Shared>,
    /// Whether it counts among those at work.
    counted: bool,
}

impl Job {
    /// Whether there is something to read. If not, it counts no more: whoever asks from now on begins another.
    fn goes_on(&mut self) -> bool {
        let mut waiting = self.shared.gets.waiting();
        let more = !waiting.asked.is_empty();
        waiting.jobs -= usize::from(!more);
        self.counted = more;
        more
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        // It was broken off.
        let mut waiting = self.shared.gets.waiting();
        waiting.jobs -= 1;
        if waiting.jobs == 0 {
            waiting.asked.clear();
        }
    }
}

async fn serve(mut job: Job) {
    while job.goes_on() {
        let shared = &job.shared;
        let read = shared.read(|shared, store| shared.gets.read(shared, store)).await;
        if let Err(error) = read
            && shared.store().is_err()
        {
            let unread = std::mem::take(&mut shared.gets.waiting().asked);
            for (_, answer) in unread {
                let _ = answer.send(Err(again(&error)));
            }
        }
    }
}
