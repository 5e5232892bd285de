//! Reads of single events, many at a time.
//!
//! A function that is behind has thousands of deliveries that each read their event. Each on the blocking pool by itself, the
//! threads' waking and sleeping would cost more than the reading: so one job at a time reads all that are asked for.

use std::sync::{Arc, Mutex, PoisonError};

use nexus_core::ids::Seq;
use nexus_core::record::Record;
use tokio::sync::oneshot;

use super::core::again;
use super::read;
use super::shared::Shared;
use crate::contract::StorageError;

/// The most events that one job reads, so that it lets go of the store again soon.
const JOB_MAX: usize = 256;

type Asked = (Seq, oneshot::Sender<Result<Option<Arc<Record>>, StorageError>>);

/// What is asked for, and not yet read.
#[derive(Default)]
pub(crate) struct Gets(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    asked: Vec<Asked>,
    /// Somebody sees to it that all of it is answered.
    served: bool,
}

impl Gets {
    fn ask(&self, asked: Asked) -> bool {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.asked.push(asked);
        std::mem::replace(&mut waiting.served, true)
    }

    /// The next to be read, the oldest first. None: nobody sees to it any more, until somebody asks.
    fn next(&self) -> Option<Vec<Asked>> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.asked.is_empty() {
            waiting.served = false;
            return None;
        }
        let most = JOB_MAX.min(waiting.asked.len());
        let rest = waiting.asked.split_off(most);
        Some(std::mem::replace(&mut waiting.asked, rest))
    }
}

/// One event from the store.
pub(crate) async fn get(shared: &Arc<Shared>, seq: Seq) -> Result<Option<Arc<Record>>, StorageError> {
    let (answer, answered) = oneshot::channel();
    if !shared.gets.ask((seq, answer)) {
        // In a task of its own: whoever asked first may go away before the others are answered.
        tokio::spawn(serve(shared.clone()));
    }
    // Unanswered is only what a read was at when it broke off.
    answered.await.map_err(|_| StorageError::Failed("a read broke off".to_owned()))?
}

async fn serve(shared: Arc<Shared>) {
    while let Some(asked) = shared.gets.next() {
        let asked = Arc::new(Mutex::new(asked));
        let job = asked.clone();
        let read = shared.read(move |shared, store| {
            let asked = std::mem::take(&mut *job.lock().unwrap_or_else(PoisonError::into_inner));
            for (seq, answer) in asked {
                // Whoever asked may have gone away.
                let _ = answer.send(read::get(shared, store, seq).map(|found| found.map(Arc::new)));
            }
            Ok(())
        });
        if let Err(error) = read.await {
            let unread = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
            for (_, answer) in unread {
                let _ = answer.send(Err(again(&error)));
            }
        }
    }
}
