//! The way out: requests that wait are taken together, and sent as one message.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, Context, ErrorCode};
use bytes::Bytes;
use nexus_core::threads;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};

use super::apply::{Applied, Entry};
use super::broken::Broken;
use super::outbox::Outbox;
use super::wire::{self, GroupId, Head};
use crate::contract::StorageError;
use crate::embedded::core::full;
use crate::embedded::queue::Taken;
use crate::embedded::request::Request;
use crate::embedded::shared::Shared;

/// How long a runtime says nothing, so that the others know that it is there. A mark of `advance` goes along.
const BEAT_PERIOD: Duration = Duration::from_secs(1);
/// How often it is looked whether there is room for what is overdue.
const OVERDUE_PAUSE: Duration = Duration::from_millis(50);
/// Groups that are on their way at once: while one waits for the disk of the server, the next are gathered and sent.
const IN_FLIGHT_MAX: usize = 4;
/// How long a group is sent again and again before whoever waits for it is told. Shorter than the stream's window for
/// duplicates, within which a group that is sent twice is kept once.
const PATIENCE: Duration = Duration::from_secs(20);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(250);
/// What is sent together has at most so many bytes, unless one write alone has more: many small messages are in memory at once.
const GROUP_BYTES_MAX: usize = 2 << 20;
/// What a message says of each write beside its own bytes, at most.
const FRAME_BYTES: usize = 64;
/// Of the largest message, what headers and the protocol take.
const OVERHEAD_BYTES: usize = 4096;

/// Sends what waits in the queue, until that is closed and empty.
pub(crate) struct Sender {
    pub(crate) shared: Arc<Shared>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) entries: mpsc::Sender<Entry>,
    pub(crate) jetstream: Context,
    pub(crate) stream: String,
    pub(crate) subject: String,
    pub(crate) runtime: Handle,
    /// Of which log this is.
    pub(crate) log: u64,
    pub(crate) applied: watch::Receiver<Applied>,
    pub(crate) broken: Broken,
}

impl Sender {
    /// Runs on a thread of its own.
    pub(crate) fn run(self) {
        let _nobody_waits_for_ever = self.broken.guard("sends");
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        let mut last = Instant::now();
        self.send_group(Vec::new(), &in_flight, false);
        loop {
            threads::checkpoint();
            // Where it is overdue, because too much is on its way, it looks again after a while.
            let wait = BEAT_PERIOD.saturating_sub(last.elapsed()).max(OVERDUE_PAUSE);
            match self.shared.queue.take(wait) {
                Taken::Group(requests) => {
                    if self.send(requests, &in_flight) {
                        last = Instant::now();
                    }
                }
                Taken::Idle => {}
                Taken::Closed => break,
            }
            // One that has sent what it may and gets nothing back delivers nothing either: the others must not count on it.
            if last.elapsed() >= BEAT_PERIOD && in_flight.available_permits() > 0 {
                self.send_group(Vec::new(), &in_flight, false);
                last = Instant::now();
            }
        }
        // All that is on its way comes back, or is given up, before the last word.
        drop(self.runtime.block_on(in_flight.acquire_many(IN_FLIGHT_MAX as u32)));
        self.send_group(Vec::new(), &in_flight, true);
        drop(self.runtime.block_on(in_flight.acquire_many(IN_FLIGHT_MAX as u32)));
    }

    /// Sends the requests in as few messages as they fit in. Whether any was sent.
    fn send(&self, requests: Vec<Request>, in_flight: &Arc<Semaphore>) -> bool {
        let free = match self.shared.directory().and_then(|directory| directory.free_bytes()) {
            Ok(free) => free,
            Err(error) => {
                requests.into_iter().for_each(|request| request.refuse(StorageError::Failed(error.to_string())));
                return false;
            }
        };
        let max = self.jetstream.client().server_info().max_payload.saturating_sub(OVERHEAD_BYTES);
        let group_max = max.min(GROUP_BYTES_MAX);
        let (mut group, mut bytes) = (Vec::new(), 0);
        let mut sent = false;
        for request in requests {
            if let Some(full) = full(&request, free, self.shared.config.reserve_bytes) {
                request.refuse(full);
                continue;
            }
            if matches!(request, Request::Progress { .. }) {
                // It asks what is known here. The channel is only closed when everything is.
                let _ = self.entries.blocking_send(Entry::Local(request));
                continue;
            }
            let size = request.bytes() + FRAME_BYTES;
            if size > max {
                let why = " by the NATS server in one message (its max_payload)";
                request.refuse(StorageError::TooLarge { bytes: size, max, why });
                continue;
            }
            if bytes > 0 && bytes + size > group_max {
                self.send_group(std::mem::take(&mut group), in_flight, false);
                sent = true;
                bytes = 0;
            }
            bytes += size;
            group.push(request);
        }
        if !group.is_empty() {
            self.send_group(group, in_flight, false);
            sent = true;
        }
        sent
    }

    fn send_group(&self, requests: Vec<Request>, in_flight: &Arc<Semaphore>, leaves: bool) {
        // Never closed: an error cannot be.
        let Ok(place) = self.runtime.block_on(in_flight.clone().acquire_owned()) else { return };
        let id = self.outbox.next_id();
        let (epoch, below) = self.shared.advanced_to();
        let Applied { message: applied, digest, .. } = *self.applied.borrow();
        let head = Head {
            id,
            now: self.shared.config.clock.now(),
            epoch,
            below,
            leaves,
            log: self.log,
            window: self.shared.config.dedup_window,
            applied: (applied, digest),
        };
        let message = wire::encode(&head, &requests);
        self.outbox.put(id, requests, place);
        let (jetstream, outbox) = (self.jetstream.clone(), self.outbox.clone());
        let (stream, subject) = (self.stream.clone(), self.subject.clone());
        self.runtime.spawn(async move {
            if let Err(why) = publish(&jetstream, &stream, &subject, id, message).await {
                tracing::error!(%why, group = %id, "a group of writes was not taken by NATS");
                outbox.refuse(id, &why);
            }
        });
    }
}

/// Whether the server, or this account of it, has no room for it: waiting would only keep those waiting who could be told.
fn is_full(error: &PublishError) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<jetstream::Error>());
    source.is_some_and(|error| {
        matches!(
            error.error_code(),
            ErrorCode::INSUFFICIENT_RESOURCES
                | ErrorCode::STORAGE_RESOURCES_EXCEEDED
                | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        )
    })
}

/// Publishes until the server says that it has the message.
async fn publish(jetstream: &Context, stream: &str, subject: &str, id: GroupId, message: Bytes) -> Result<(), String> {
    let began = Instant::now();
    let id = id.to_string();
    loop {
        let publish = PublishMessage::build().payload(message.clone()).message_id(&id).expected_stream(stream);
        let published = match jetstream.send_publish(subject.to_owned(), publish).await {
            Ok(acknowledged) => acknowledged.await,
            Err(error) => Err(error),
        };
        let Err(error) = published else { return Ok(()) };
        let again = !matches!(
            error.kind(),
            PublishErrorKind::MaxPayloadExceeded
                | PublishErrorKind::WrongLastMessageId
                | PublishErrorKind::WrongLastSequence
        );
        if !again || is_full(&error) || began.elapsed() > PATIENCE {
            return Err(format!("NATS did not confirm that it has it: {error}"));
        }
        tracing::warn!(%error, group = id, "a group of writes is sent to NATS again");
        tokio::time::sleep(PAUSE).await;
    }
}
