//! Schedules: at its time, each tick becomes an event for its function.
//!
//! Of the runtimes that share a log the first one runs them; when it goes, the next does. A tick's event has an id that follows from
//! it, so that one that is sent twice, as after a crash, is in the log once. How far each schedule has come is in the registry.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nexus_core::ids::FunctionName;
use nexus_log::{Members, Revision, StorageError};
use tokio_util::sync::CancellationToken;

use crate::line::{Incoming, Line};

/// Where the registry has how far a schedule has come.
const PREFIX: &str = "schedules/";
/// The longest sleep: clocks are set, and time zones change.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// The pause after storage failed.
const STORAGE_PAUSE: Duration = Duration::from_secs(1);
/// How far a schedule has come is written down this often at most: what is sent again after a crash is a duplicate.
const NOTE_PERIOD: SignedDuration = SignedDuration::from_secs(10);

/// How far one schedule has come.
#[derive(Clone, Copy)]
struct Come {
    /// Every tick up to here has run, or was left out.
    to: Timestamp,
    /// The same as the registry has it, and its revision there.
    noted: Option<(Timestamp, Revision)>,
}

/// Runs the schedules of all functions until the server stops.
pub async fn run(line: Arc<Line>, stop: CancellationToken) {
    let log = line.storage.log.clone();
    let (mut members, mut changes) = (log.members(), line.storage.registry.changes());
    let mut known: Option<HashMap<String, Come>> = None;
    loop {
        let mine = leads(&members.borrow_and_update());
        changes.borrow_and_update();
        let sleep = if mine {
            match pass(&line, &mut known).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::error!(%error, "schedules wait for storage");
                    // What is known may not be what is there.
                    known = None;
                    STORAGE_PAUSE
                }
            }
        } else {
            known = None;
            SLEEP_MAX
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(sleep) => {}
            changed = members.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Whether this runtime is the one that runs schedules.
fn leads(members: &Members) -> bool {
    members.all.first() == Some(&members.me)
}

/// Runs what is due, and says how long nothing will be.
async fn pass(line: &Arc<Line>, known: &mut Option<HashMap<String, Come>>) -> Result<Duration, StorageError> {
    line.catalog.caught_up().await;
    let known = match known {
        Some(known) => known,
        None => known.insert(noted(line).await?),
    };
    let view = line.catalog.view();
    let mut next: Option<Timestamp> = None;
    let mut seen = Vec::new();
    for entry in view.iter() {
        let function = &entry.function;
        for schedule in &entry.config.schedules {
            let key = format!("{PREFIX}{}/{}", function.name, schedule.name);
            seen.push(key.clone());
            let now = line.clock.now();
            // One that is new begins when it was made.
            let made = function.configured_at.unwrap_or(now);
            let come = known.entry(key.clone()).or_insert(Come { to: made, noted: None });
            let ticks = schedule.due(come.to, now);
            let ran = !ticks.is_empty();
            for tick in ticks {
                send(line, &function.name, schedule, tick).await?;
            }
            come.to = come.to.max(now);
            let noted = come.noted.map(|(noted, _)| noted);
            let stale = noted.is_none_or(|noted| come.to.duration_since(noted) >= NOTE_PERIOD);
            if noted.is_none() || (ran && stale) {
                note(line, &key, come).await?;
            }
            next = next.into_iter().chain(schedule.next_after(come.to)).min();
        }
    }
    // What is no more is forgotten: one of the same name begins anew.
    for (key, come) in known.extract_if(|key, _| !seen.contains(key)).collect::<Vec<_>>() {
        if let Some((_, revision)) = come.noted {
            match line.storage.registry.delete(&key, revision).await {
                Ok(()) | Err(StorageError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let until = next.map(|next| next.duration_since(line.clock.now()));
    let until = until.map(|until| Duration::try_from(until).unwrap_or_default());
    Ok(until.unwrap_or(SLEEP_MAX).min(SLEEP_MAX))
}

async fn send(
    line: &Arc<Line>,
    function: &FunctionName,
    schedule: &nexus_core::schedule::Schedule,
    tick: Timestamp,
) -> Result<(), StorageError> {
    let event = schedule.event(function, tick);
    let incoming = Incoming { event, parent: None, target: Some(function.clone()), claimed_by: None };
    let (_, receipts) = line.accept(vec![incoming]).await?;
    let duplicate = receipts.first().is_some_and(|receipt| receipt.duplicate);
    tracing::debug!(%function, schedule = %schedule.name, %tick, duplicate, "a schedule's tick");
    Ok(())
}

/// How far all schedules have come, as the registry has it.
async fn noted(line: &Arc<Line>) -> Result<HashMap<String, Come>, StorageError> {
    let mut known = HashMap::new();
    for (key, value, revision) in line.storage.registry.list(PREFIX).await? {
        let to = std::str::from_utf8(&value).ok().and_then(|text| text.parse::<Timestamp>().ok());
        let to = to.ok_or_else(|| StorageError::Damaged(format!("registry entry {key} has no time")))?;
        known.insert(key, Come { to, noted: Some((to, revision)) });
    }
    Ok(known)
}

/// Writes down how far a schedule has come.
async fn note(line: &Arc<Line>, key: &str, come: &mut Come) -> Result<(), StorageError> {
    let expected = come.noted.map(|(_, revision)| revision);
    let revision = line.storage.registry.put(key, come.to.to_string().into(), expected).await?;
    come.noted = Some((come.to, revision));
    Ok(())
}
