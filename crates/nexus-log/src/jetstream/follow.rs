//! What comes from the stream, in its order, from the first message that the copy does not have.

use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};

use super::apply::{Applied, Entry};
use super::broken::Broken;
use super::stream::{self, Identity};
use crate::contract::StorageError;

/// The pause before the stream is asked again after it broke off.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the stream may seem to be gone, or another one, before that is believed.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing may come: this runtime itself says something each second.
const SILENCE: Duration = Duration::from_secs(5);
/// Messages that are asked for at once. As many wait on their way to the copy, and as many as are written together there: each
/// may be as large as the server lets one be, though nearly all are small.
const BATCH_MAX: i64 = 16;

/// Follows the stream until this is dropped, or the other end is.
pub(crate) async fn follow(
    jetstream: Context,
    identity: Identity,
    entries: mpsc::Sender<Entry>,
    mut applied: watch::Receiver<Applied>,
    broken: Broken,
) {
    let mut wrong_since = None;
    loop {
        let from = *applied.borrow_and_update();
        match follow_from(&jetstream, &identity, &entries, &mut applied, from).await {
            Ok(Ended::Restart) => {
                wrong_since = None;
                tokio::time::sleep(PAUSE / 5).await;
            }
            Ok(Ended::Closed) => return,
            Err(error @ StorageError::Other(_)) => {
                // A cluster that has just been started may not know all of its streams yet.
                let since = *wrong_since.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    tracing::error!(%error, "the log in NATS cannot be followed any further");
                    return broken.off(error.to_string());
                }
                tracing::warn!(%error, "looking again");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                wrong_since = None;
                tracing::warn!(%error, "the log in NATS broke off; asking again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Waits until the copy wants the stream from elsewhere, or (`true`) is closed.
async fn restarted(applied: &mut watch::Receiver<Applied>, from: Applied) -> bool {
    applied.wait_for(|now| now.restarts != from.restarts).await.is_err()
}

enum Ended {
    /// The copy wants it to go on from elsewhere.
    Restart,
    /// The copy is closed.
    Closed,
}

async fn follow_from(
    jetstream: &Context,
    identity: &Identity,
    entries: &mpsc::Sender<Entry>,
    applied: &mut watch::Receiver<Applied>,
    from: Applied,
) -> Result<Ended, StorageError> {
    let broken = |what: &str, error: String| StorageError::Failed(format!("{what}: {error}"));
    let stream = stream::the_same(jetstream, identity, from.message).await?;
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from.message + 1 },
        max_batch: BATCH_MAX,
        ..OrderedConfig::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(|e| broken("a consumer", e.to_string()))?;
    let mut messages = consumer.messages().await.map_err(|e| broken("its messages", e.to_string()))?;
    let mut last = from.message;
    loop {
        tokio::select! {
            biased;
            closed = restarted(applied, from) => {
                return Ok(if closed { Ended::Closed } else { Ended::Restart });
            }
            message = tokio::time::timeout(SILENCE, messages.next()) => match message {
                Ok(Some(Ok(message))) => {
                    let number = message.info().map_err(|e| broken("a message", e.to_string()))?.stream_sequence;
                    if number <= last {
                        // The client has begun anew by itself, and not where it was.
                        return Err(broken("a message", format!("{number} comes after {last}")));
                    }
                    if number > last + 1 && last == from.message {
                        let (first, end) = (last + 1, number - 1);
                        return Err(StorageError::Other(format!(
                            "messages {first} to {end} of the stream {} are missing: they were removed, or lost",
                            identity.name
                        )));
                    }
                    if number > last + 1 {
                        return Err(broken("a message", format!("{number} comes after {last}")));
                    }
                    last = number;
                    if entries.send(Entry::Message(Box::new(message))).await.is_err() {
                        return Ok(Ended::Closed);
                    }
                }
                Ok(Some(Err(error))) => return Err(broken("a message", error.to_string())),
                Ok(None) => return Err(broken("a message", "there are no more".to_owned())),
                Err(_) => return Err(broken("a message", format!("none for {} s", SILENCE.as_secs()))),
            },
        }
    }
}
