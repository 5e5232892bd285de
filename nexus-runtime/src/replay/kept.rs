//! Replays of many events, kept in the registry: they go on after a restart, or at another runtime when theirs is gone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nexus_core::ids::{ReplayId, RuntimeId, Seq};
use nexus_log::{Registry, Revision, StorageError};
use serde::{Deserialize, Serialize};

use super::request::{ReplayRequest, ReplayView, Verdict};

const PREFIX: &str = "replays/";
/// Replays that are kept; the oldest go.
const KEPT_MAX: usize = 200;
/// Bytes of results that are kept with one: the registry is for small values.
const RESULTS_BYTES_MAX: usize = 128 << 10;

/// How often it is looked for replays whose runtime is gone.
pub(super) const PERIOD: Duration = Duration::from_secs(5);

/// A replay as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) request: ReplayRequest,
    pub(super) view: ReplayView,
    /// Who runs it.
    pub(super) owner: RuntimeId,
    /// Everything before this place is done, and counted in the view.
    pub(super) next: Seq,
}

impl Kept {
    /// With as many results as there is room for, those that are not identical first.
    fn trimmed(&self) -> Self {
        let mut kept = self.clone();
        let mut results = std::mem::take(&mut kept.view.results);
        results.sort_by_key(|result| result.verdict == Verdict::Identical);
        let all = results.len();
        let mut room = RESULTS_BYTES_MAX;
        for result in results {
            let bytes = serde_json::to_vec(&result).map_or(usize::MAX, |json| json.len());
            if bytes <= room {
                room -= bytes;
                kept.view.results.push(result);
            }
        }
        kept.view.results_dropped += (all - kept.view.results.len()) as u64;
        kept
    }
}

fn key(id: ReplayId) -> String {
    format!("{PREFIX}{id}")
}

/// Writes a replay down, if it is still as it was at `expected`; `None`: somebody else has changed it.
pub(super) async fn save(
    registry: &Arc<dyn Registry>,
    kept: &Kept,
    expected: Option<Revision>,
) -> Result<Option<Revision>, StorageError> {
    let json = serde_json::to_vec(&kept.trimmed()).map_err(|e| StorageError::Failed(e.to_string()))?;
    match registry.put(&key(kept.view.replay_id), Bytes::from(json), expected).await {
        Ok(revision) => Ok(Some(revision)),
        Err(StorageError::Conflict { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All that are kept, the oldest first; their ids begin with their time. One that cannot be read is left out and said.
pub(super) async fn all(registry: &Arc<dyn Registry>) -> Result<Vec<(Kept, Revision)>, StorageError> {
    let mut found = Vec::new();
    for (key, value, revision) in registry.list(PREFIX).await? {
        match serde_json::from_slice(&value) {
            Ok(kept) => found.push((kept, revision)),
            Err(error) => tracing::warn!(key, %error, "a replay that is kept cannot be read"),
        }
    }
    Ok(found)
}

/// One of them.
pub(super) async fn one(registry: &Arc<dyn Registry>, id: ReplayId) -> Result<Option<(Kept, Revision)>, StorageError> {
    let Some((value, revision)) = registry.get(&key(id)).await? else { return Ok(None) };
    let kept = serde_json::from_slice(&value).map_err(|e| StorageError::Damaged(format!("replay {id}: {e}")))?;
    Ok(Some((kept, revision)))
}

/// Forgets the oldest that are over, so that one more has room.
pub(super) async fn make_room(registry: &Arc<dyn Registry>) -> Result<(), StorageError> {
    let all = all(registry).await?;
    let over = all.len().saturating_sub(KEPT_MAX - 1);
    for (kept, revision) in all.into_iter().filter(|(kept, _)| kept.view.status.is_over()).take(over) {
        match registry.delete(&key(kept.view.replay_id), revision).await {
            // Somebody else has changed or forgotten it.
            Ok(()) | Err(StorageError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
