//! Reads of single events and of what came of them, many at a time.
//!
//! A function that is behind has thousands of deliveries that each read their event, a replay of many reads outcomes too. Each on the blocking pool by itself, the
//! threads' waking and sleeping would cost more than the reading: so one job reads what is asked for, and a few more
//! where it does not keep up, as on a slow disk.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nexus_core::ids::Seq;
use nexus_core::outcome::Outcome;
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
/// Reads that one job takes at once.
const AT_ONCE: usize = 32;
/// How far apart events are whose outcomes are read in one scan.
const NEIGHBOURS_APART: u64 = 8;
/// How long one job has the store: whoever closes it waits for that.
const JOB_TIME: Duration = Duration::from_millis(100);

type Answer<T> = oneshot::Sender<Result<T, StorageError>>;

/// What somebody waits for.
enum Asked {
    /// An event.
    Event(Seq, Answer<Option<Arc<Record>>>),
    /// What came of one.
    Outcomes(Seq, Answer<Vec<Outcome>>),
}

impl Asked {
    fn refuse(self, error: StorageError) {
        match self {
            Self::Event(_, answer) => drop(answer.send(Err(error))),
            Self::Outcomes(_, answer) => drop(answer.send(Err(error))),
        }
    }
}

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

    /// Reads the oldest: events one after the other, what came of neighbours at once.
    fn read(&self, shared: &Shared, store: &Store) -> Result<(), StorageError> {
        let until = Instant::now() + JOB_TIME;
        while Instant::now() < until {
            let asked: Vec<_> = {
                let mut waiting = self.waiting();
                let count = waiting.asked.len().min(AT_ONCE);
                waiting.asked.drain(..count).collect()
            };
            if asked.is_empty() {
                break;
            }
            let mut outcomes = Vec::new();
            for asked in asked {
                match asked {
                    // Whoever asked may go away meanwhile.
                    Asked::Event(_, answer) if answer.is_closed() => {}
                    Asked::Outcomes(_, answer) if answer.is_closed() => {}
                    Asked::Event(seq, answer) => {
                        drop(answer.send(read::get(shared, store, seq).map(|found| found.map(Arc::new))));
                    }
                    Asked::Outcomes(seq, answer) => outcomes.push((seq, answer)),
                }
            }
            outcomes.sort_by_key(|(seq, _)| *seq);
            for run in outcomes.chunk_by_mut(|(one, _), (next, _)| next.0 - one.0 <= NEIGHBOURS_APART) {
                answer_run(shared, store, run);
            }
        }
        Ok(())
    }
}

/// Answers what came of neighbours, in one scan: finding the place where it begins costs more than going on from there.
fn answer_run(shared: &Shared, store: &Store, run: &mut [(Seq, Answer<Vec<Outcome>>)]) {
    let seqs: Vec<Seq> = run.iter().map(|(seq, _)| *seq).collect();
    let found = match &seqs[..] {
        [seq] => vec![read::outcomes(shared, store, *seq)],
        _ => read::outcomes_of_several(shared, store, &seqs),
    };
    for ((_, answer), found) in run.iter_mut().zip(found) {
        let (unasked, _) = oneshot::channel();
        drop(std::mem::replace(answer, unasked).send(found));
    }
}

/// One event from the store.
pub(crate) async fn get(shared: &Arc<Shared>, seq: Seq) -> Result<Option<Arc<Record>>, StorageError> {
    ask(shared, |answer| Asked::Event(seq, answer)).await
}

/// What came of an event, from the store.
pub(crate) async fn outcomes(shared: &Arc<Shared>, seq: Seq) -> Result<Vec<Outcome>, StorageError> {
    ask(shared, |answer| Asked::Outcomes(seq, answer)).await
}

async fn ask<T>(shared: &Arc<Shared>, asked: impl FnOnce(Answer<T>) -> Asked) -> Result<T, StorageError> {
    let (answer, answered) = oneshot::channel();
    if shared.gets.ask(asked(answer)) {
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
            unread.into_iter().for_each(|asked| asked.refuse(again(&error)));
        }
    }
}
