//! The straight line: an event's way through Nexus, in two halves; the log lies between them.
//!
//! ```text
//! accept:   decode -> admit -> append -> durable -> receipt
//! deliver:  read -> route -> permit -> invoke (slot marked) -> commit the outcome -> emit -> spans closed
//! ```
//!
//! Decoding and admitting are the gateway's, reading and routing the dispatcher's; what lies between is here. Replay
//! drives [`Line::deliver`] too. There is no second way to run a function.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nexus_core::clock::Clock;
use nexus_core::event::{Draft, Event, ExtensionValue};
use nexus_core::function::FunctionConfig;
use nexus_core::function::{DeadLetterEvent, FunctionVersion, Trigger};
use nexus_core::ids::{FunctionName, InvocationId, ReplayId, RuntimeId, Version};
use nexus_core::journal::Partial;
use nexus_core::kernel::KernelAccount;
use nexus_core::outcome::{Disposition, InvocationStatus, Outcome, TriggerKind};
use nexus_core::record::{Cause, DEPTH_MAX, NewRecord, Record};
use nexus_core::trace::{SpanId, TraceContext};
use nexus_engine::{Answer, Finished, HttpRequest, Invocation, Journaling, Profile, Replayed, Request};
use nexus_log::{Commit, Receipt, Storage, StorageError};

use crate::catalog::{Catalog, Entry};
use crate::kernel::Kernel;
use crate::output;
use crate::profile;
use crate::telemetry::{Telemetry, spans};

/// How long an outcome that storage will not take now is held and offered again, before the event is left to be
/// delivered again.
const COMMIT_PATIENCE: Duration = Duration::from_secs(30);

/// The longest wait that a function can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// Everything that an event meets on its way.
pub struct Line {
    /// Where events and outcomes are.
    pub storage: Storage,
    /// What is deployed.
    pub catalog: Arc<Catalog>,
    /// Who counts what the kernel does.
    pub kernel: Arc<Kernel>,
    /// Who is told.
    pub telemetry: Arc<Telemetry>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// An event that was decoded and admitted.
pub struct Incoming {
    /// The event.
    pub event: Event,
    /// The trace that it came with: by a header, which counts before its own `traceparent` extension.
    pub parent: Option<TraceContext>,
    /// The one function that it is addressed to.
    pub target: Option<FunctionName>,
    /// The runtime that delivers it itself.
    pub claimed_by: Option<RuntimeId>,
}

/// An event on its way to one function.
pub struct Delivery {
    /// The event.
    pub record: Arc<Record>,
    /// The function.
    pub entry: Arc<Entry>,
    /// The version of it to run.
    pub version: FunctionVersion,
    /// Counted from 1.
    pub attempt: u32,
    /// What made it happen.
    pub trigger: TriggerKind,
    /// The HTTP request as it came, with the headers that the log does not keep.
    pub http: Option<HttpRequest>,
    /// Whether this is a replay, and of what.
    pub replay: Option<Replay>,
}

/// A delivery that replays.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The invocation that is replayed, if the function had run before.
    pub of: Option<InvocationId>,
    /// The replay that asked for it.
    pub id: ReplayId,
    /// What the function is told, and what becomes of what it does.
    pub how: How,
}

/// How a replay is run.
#[derive(Clone, Debug)]
pub enum How {
    /// As a new run of the function, side effects included.
    Live {
        /// Whether it gets the idempotency key of the event, or one of its own.
        same_key: bool,
    },
    /// From the journal of an invocation, as that invocation; nothing that it emits is appended.
    Recorded {
        /// The journal, and how it is used.
        journaling: Journaling,
        /// The invocation.
        seen_as: InvocationId,
        /// The configuration that it had.
        config: Arc<FunctionConfig>,
        /// That invocation was a live replay: of this replay, and whether it had the event's own key.
        was_live: Option<(ReplayId, bool)>,
    },
}

impl How {
    /// Of a live replay: whether it has the event's own key.
    fn live(&self) -> Option<bool> {
        match self {
            Self::Live { same_key } => Some(*same_key),
            Self::Recorded { .. } => None,
        }
    }
}

impl Replay {
    /// What a live replay gives the function for a key of its own, or gave it when it was recorded.
    fn own_key(&self) -> Option<ReplayId> {
        match self.how {
            How::Live { same_key: false } => Some(self.id),
            How::Recorded { was_live: Some((id, false)), .. } => Some(id),
            How::Live { same_key: true } | How::Recorded { .. } => None,
        }
    }
}

/// What a delivery came to, after it is durable.
pub struct Delivered {
    /// What the log holds.
    pub outcome: Arc<Outcome>,
    /// What the function gave back, whole.
    pub answer: Answer,
    /// Of a replay from a journal: what there is to say of it,
    pub replayed: Option<Replayed>,
    /// and the events that it would have emitted.
    pub not_emitted: Vec<NewRecord>,
}

impl Line {
    /// The first half: what returns is durable.
    pub async fn accept(&self, incoming: Vec<Incoming>) -> Result<(Vec<NewRecord>, Vec<Receipt>), StorageError> {
        let began = Instant::now();
        let received_at = self.clock.now();
        let records: Vec<NewRecord> = incoming.into_iter().map(|i| i.into_record(received_at)).collect();
        let receipts = self.storage.log.append(records.clone()).await?;
        self.telemetry.accepted(&records, &receipts, began.elapsed());
        Ok((records, receipts))
    }

    /// The second half: runs one function on one event, and returns when what came of it is durable. An error means
    /// that the outcome could not be written: the event is not done.
    pub async fn deliver(&self, delivery: Delivery) -> Result<Delivered, StorageError> {
        let delivered_at = self.clock.now();
        let invocation_id = InvocationId::generate();
        let permit = delivery.entry.permits.clone().acquire_owned().await;
        let (finished, kernel, slow_syscalls, cold, started_at);
        match self.catalog.ready(&delivery.version, Profile::for_memory(delivery.config().limits.memory_mb)).await {
            Ok(ready) => {
                cold = ready.cold;
                started_at = self.clock.now();
                let started = Instant::now();
                // What a replay from a journal sees of the trace is what the recorded invocation saw.
                let trace = delivery.record.entry.trace.at(spans::invoke_span(delivery.seen_as(invocation_id)));
                let name = &delivery.entry.function.name;
                let watch = self.kernel.account(started, profile::owner(name, delivery.version.version, &trace));
                let invocation = self.invocation(&delivery, invocation_id, trace, started, watch.marker());
                finished = ready.loaded.invoke(invocation).await;
                if finished.left_behind {
                    watch.set_incomplete();
                }
                (kernel, slow_syscalls) = watch.read(started + finished.duration);
            }
            Err(error) => {
                (cold, started_at) = (None, self.clock.now());
                finished = denied(format!("the function cannot be loaded: {error}"));
                (kernel, slow_syscalls) = (KernelAccount::off("the function did not run"), Vec::new());
            }
        }
        drop(permit);
        let mut outcome = Outcome {
            invocation_id,
            seq: delivery.record.seq,
            function: delivery.entry.function.name.clone(),
            version: delivery.version.version,
            attempt: delivery.attempt,
            trigger: delivery.trigger,
            status: finished.status,
            error: finished.error,
            delivered_at,
            started_at,
            duration_ns: nanos(finished.duration),
            init_ns: nanos(finished.init),
            cold_start: cold.is_some(),
            load_ns: cold.map(nanos),
            replay_of: delivery.replay.as_ref().and_then(|r| r.of),
            replay_id: delivery.replay.as_ref().map(|r| r.id),
            live: delivery.replay.as_ref().and_then(|r| r.how.live()),
            emitted: Vec::new(),
            memory_bytes: finished.memory_bytes,
            output: output::kept(&finished.answer),
            disposition: Disposition::Done,
            dead_letter_emitted: false,
            host_calls: finished.host_calls,
            host_calls_dropped: finished.host_calls_dropped,
            logs: finished.logs,
            logs_dropped: finished.logs_dropped,
            kernel,
            slow_syscalls,
            journal_partial: finished.journal.as_ref().and_then(|(_, partial)| *partial),
            journal: finished.journal.map(|(journal, _)| journal),
        };
        let mut permanent = finished.permanent;
        let mut emitted = match self.fill_in(&delivery, invocation_id, finished.emitted) {
            Ok(emitted) => emitted,
            Err(why) => {
                // The same event would be answered in the same way again, side effects included.
                permanent = true;
                (outcome.status, outcome.error) = (InvocationStatus::Error, Some(why));
                Vec::new()
            }
        };
        outcome.disposition = disposition(&delivery, &outcome, permanent, finished.retry_after, self.clock.now());
        if outcome.disposition == Disposition::Dead
            && let Some(instead) = &delivery.entry.config.retry_for(&delivery.record.entry.event).dead_letter
        {
            let draft = dead_letter(instead, &delivery, &outcome);
            match draft.and_then(|draft| self.fill_in(&delivery, invocation_id, vec![draft])) {
                Ok(event) => {
                    emitted.extend(event);
                    outcome.dead_letter_emitted = true;
                }
                // Then it is kept as a dead letter, like any other.
                Err(why) => {
                    tracing::error!(event_id = delivery.record.entry.event.id, why, "no event for a dead letter")
                }
            }
        }
        let not_emitted = if delivery.is_recorded() { std::mem::take(&mut emitted) } else { Vec::new() };
        outcome.emitted = emitted.iter().map(|r| r.event.id.clone()).collect();
        let mut outcome = Arc::new(outcome);
        let mut committed = self.commit(&delivery.record, &outcome, &emitted).await;
        if let (Err(StorageError::TooLarge { .. }), Some(_)) = (&committed, &outcome.journal) {
            let without = Arc::make_mut(&mut outcome);
            (without.journal, without.journal_partial) = (None, Some(Partial::NotTaken));
            committed = self.commit(&delivery.record, &outcome, &emitted).await;
        }
        let replayed = finished.replayed;
        match committed {
            Ok(()) => Ok(Delivered { outcome, answer: finished.answer, replayed, not_emitted }),
            // Again it would be as much: so it is an outcome, without what is too much.
            Err(error @ (StorageError::TooLarge { .. } | StorageError::Invalid(_))) => {
                let mut outcome = Arc::unwrap_or_clone(outcome);
                outcome.status = InvocationStatus::Error;
                outcome.error = Some(format!("what the function gave back cannot be kept: {error}"));
                (outcome.output, outcome.emitted, outcome.dead_letter_emitted) = (None, Vec::new(), false);
                (outcome.logs, outcome.host_calls) = (Vec::new(), Vec::new());
                if outcome.journal.take().is_some() {
                    outcome.journal_partial = Some(Partial::NotTaken);
                }
                outcome.disposition = disposition(&delivery, &outcome, true, None, self.clock.now());
                let outcome = Arc::new(outcome);
                self.commit(&delivery.record, &outcome, &[]).await?;
                Ok(Delivered { outcome, answer: finished.answer, replayed, not_emitted })
            }
            Err(error) => Err(error),
        }
    }

    /// Ends a delivery that no function can take: it was deleted.
    pub async fn give_up(&self, record: &Record, name: FunctionName, attempt: u32) -> Result<(), StorageError> {
        let why = format!("there is no function `{name}` any more");
        self.not_run(record, name, attempt, why, Disposition::Dead).await
    }

    /// Ends a delivery without running the function, and says why.
    pub async fn not_run(
        &self,
        record: &Record,
        name: FunctionName,
        attempt: u32,
        why: String,
        disposition: Disposition,
    ) -> Result<(), StorageError> {
        let now = self.clock.now();
        let outcome = Outcome {
            invocation_id: InvocationId::generate(),
            seq: record.seq,
            error: Some(why),
            function: name,
            version: Version(0),
            attempt,
            trigger: TriggerKind::Pubsub,
            status: InvocationStatus::Denied,
            delivered_at: now,
            started_at: now,
            duration_ns: 0,
            init_ns: 0,
            cold_start: false,
            load_ns: None,
            replay_of: None,
            replay_id: None,
            live: None,
            emitted: Vec::new(),
            memory_bytes: None,
            output: None,
            disposition,
            dead_letter_emitted: false,
            host_calls: Vec::new(),
            host_calls_dropped: 0,
            logs: Vec::new(),
            logs_dropped: 0,
            kernel: KernelAccount::off("the function did not run"),
            slow_syscalls: Vec::new(),
            journal: None,
            journal_partial: None,
        };
        self.commit(record, &Arc::new(outcome), &[]).await
    }

    /// Writes the outcome and the emitted events as one. The function has run: where storage will not take its outcome
    /// now, offering it again is better than running the function again.
    async fn commit(&self, record: &Record, outcome: &Arc<Outcome>, emitted: &[NewRecord]) -> Result<(), StorageError> {
        let began = Instant::now();
        let mut pause = Duration::from_millis(10);
        let receipts = loop {
            let commit = Commit { outcome: Arc::clone(outcome), emitted: emitted.to_vec() };
            match self.storage.log.commit(commit).await {
                Ok(receipts) => break receipts,
                Err(error) if error.is_retryable() && began.elapsed() + pause < COMMIT_PATIENCE => {
                    tracing::warn!(event_id = record.entry.event.id, %error, "outcome not yet durable");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                Err(error) => return Err(error),
            }
        };
        self.telemetry.accepted(emitted, &receipts, began.elapsed());
        self.telemetry.delivered(record, outcome, began.elapsed());
        Ok(())
    }

    fn invocation(
        &self,
        delivery: &Delivery,
        id: InvocationId,
        trace: TraceContext,
        started: Instant,
        marker: Arc<dyn nexus_core::mark::Marker>,
    ) -> Invocation {
        let record = &delivery.record;
        let request = match (&delivery.http, delivery.version.kind) {
            (Some(http), nexus_core::function::FunctionKind::WasiHttp) => {
                let mut http = http.clone();
                if let Ok(value) = trace.traceparent().parse() {
                    http.headers.insert("traceparent", value);
                }
                Request::Http(http)
            }
            _ => Request::Event(Arc::new(as_seen(delivery, &trace))),
        };
        let on_line = || self.telemetry.on_line(record, &delivery.entry.function.name, id);
        let (journaling, on_line) = match delivery.replay.as_ref().map(|replay| &replay.how) {
            // What is said again is not news.
            Some(How::Recorded { journaling, .. }) => (journaling.clone(), None),
            Some(How::Live { .. }) | None => (delivery.entry.journaling(), Some(on_line())),
        };
        let config = delivery.config().clone();
        Invocation { id, request, config, trace, marker, started, on_line, journaling }
    }

    /// Makes whole events of what the function emitted. Their ids follow from the cause, so that the same event tried
    /// again emits the same ones, and the log takes them once.
    fn fill_in(&self, delivery: &Delivery, id: InvocationId, drafts: Vec<Draft>) -> Result<Vec<NewRecord>, String> {
        if drafts.is_empty() {
            return Ok(Vec::new());
        }
        let record = &delivery.record;
        let depth = record.entry.cause.map_or(0, |c| c.depth) + 1;
        if depth > DEPTH_MAX {
            return Err(format!(
                "emitted nothing: {DEPTH_MAX} causes lead to this event already. Does the function answer its own events?"
            ));
        }
        let function = &delivery.entry.function.name;
        let received_at = self.clock.now();
        let invoke = record.entry.trace.at(spans::invoke_span(id));
        let fill = |(index, mut draft): (usize, Draft)| {
            let cause = match delivery.replay.as_ref().map(|replay| &replay.how) {
                // A live replay is a new run in its own right: what it emits is not what the first run emitted.
                Some(How::Live { .. }) => format!("{id} {index}"),
                Some(How::Recorded { was_live: Some(_), seen_as, .. }) => format!("{seen_as} {index}"),
                Some(How::Recorded { .. }) | None => {
                    let event = &record.entry.event;
                    format!("{} {} {function} {index}", event.source, event.id)
                }
            };
            draft.specversion.get_or_insert_with(|| "1.0".into());
            draft.default_to("id", || nexus_core::ids::Digest::of(cause.as_bytes()).hex()[..32].to_owned());
            draft.default_to("source", || format!("/functions/{function}"));
            draft.default_to("time", || received_at.to_string());
            draft.default_to("traceparent", || invoke.traceparent());
            if let Some(state) = &invoke.tracestate {
                draft.default_to("tracestate", || state.clone());
            }
            let event = draft.finish().map_err(|e| format!("emitted event {index}: {e}"))?;
            Ok(NewRecord {
                received_at,
                trace: invoke.at(SpanId::generate()),
                parent_span: Some(invoke.span_id),
                cause: Some(Cause { seq: record.seq, invocation_id: id, depth }),
                target: None,
                claimed_by: None,
                event,
            })
        };
        drafts.into_iter().enumerate().map(fill).collect()
    }
}

impl Delivery {
    /// The invocation that the function takes itself for.
    fn seen_as(&self, id: InvocationId) -> InvocationId {
        match self.replay.as_ref().map(|replay| &replay.how) {
            Some(How::Recorded { seen_as, .. }) => *seen_as,
            Some(How::Live { .. }) | None => id,
        }
    }

    /// The configuration that it is run with.
    fn config(&self) -> &Arc<FunctionConfig> {
        match self.replay.as_ref().map(|replay| &replay.how) {
            Some(How::Recorded { config, .. }) => config,
            Some(How::Live { .. }) | None => &self.entry.config,
        }
    }

    /// Whether it is run from a journal: then it changes nothing.
    fn is_recorded(&self) -> bool {
        matches!(&self.replay, Some(Replay { how: How::Recorded { .. }, .. }))
    }
}

impl Incoming {
    fn into_record(self, received_at: jiff::Timestamp) -> NewRecord {
        let Self { event, parent, target, claimed_by } = self;
        let parent = parent.or_else(|| {
            let mut parent = TraceContext::parse(event.extension_str("traceparent")?).ok()?;
            parent.tracestate = event.extension_str("tracestate").filter(|s| s.len() <= 512).map(str::to_owned);
            Some(parent)
        });
        let span = SpanId::generate();
        let (trace, parent_span) = match parent {
            Some(parent) => (parent.at(span), Some(parent.span_id)),
            None => {
                let trace_id = nexus_core::trace::TraceId::generate();
                (TraceContext { trace_id, span_id: span, sampled: true, tracestate: None }, None)
            }
        };
        NewRecord { received_at, trace, parent_span, cause: None, target, claimed_by, event }
    }
}

/// The event as the function sees it: with the trace it is in, and with a key that is the same for every attempt, but for a live
/// replay that is to be done anew.
fn as_seen(delivery: &Delivery, trace: &TraceContext) -> Event {
    let (event, function) = (&delivery.record.entry.event, &delivery.entry.function.name);
    let mut seen = event.clone();
    let mut set = |name: &str, value: String| {
        seen.extensions.entry(name.to_owned()).or_insert(ExtensionValue::String(value));
    };
    set("traceparent", trace.traceparent());
    if let Some(state) = &trace.tracestate {
        set("tracestate", state.clone());
    }
    let cause = match delivery.replay.as_ref().and_then(Replay::own_key) {
        Some(replay) => format!("{replay} {} {} {function}", event.source, event.id),
        None => format!("{} {} {function}", event.source, event.id),
    };
    set("idempotencykey", nexus_core::ids::Digest::of(cause.as_bytes()).hex()[..32].to_owned());
    seen
}

/// What happens next. An HTTP call is over when it was answered; a replay changes nothing.
fn disposition(
    delivery: &Delivery,
    outcome: &Outcome,
    permanent: bool,
    asked_for: Option<Duration>,
    now: jiff::Timestamp,
) -> Disposition {
    if delivery.replay.is_some() {
        return Disposition::Replayed;
    }
    if outcome.status == InvocationStatus::Ok || delivery.trigger == TriggerKind::Http {
        return Disposition::Done;
    }
    let retry = delivery.entry.config.retry_for(&delivery.record.entry.event);
    let again = retry.after(delivery.attempt, rand::random());
    // What the function asks for counts, within a bound.
    let again = again.map(|wait| asked_for.map_or(wait, |asked| asked.min(RETRY_AFTER_MAX)));
    match again.filter(|_| !permanent).map(|wait| now.checked_add(wait)) {
        Some(Ok(at)) => Disposition::Retry { at },
        Some(Err(_)) | None => Disposition::Dead,
    }
}

/// The event that is emitted in the place of a dead letter.
fn dead_letter(instead: &DeadLetterEvent, delivery: &Delivery, outcome: &Outcome) -> Result<Draft, String> {
    let event = &delivery.record.entry.event;
    let id = format!("dead letter {} {} {} {}", event.source, event.id, outcome.function, outcome.attempt);
    let draft = serde_json::json!({
        "type": instead.ty,
        "id": nexus_core::ids::Digest::of(id.as_bytes()).hex()[..32].to_owned(),
        "data": {
            "event": event,
            "function": outcome.function,
            "version": outcome.version,
            "attempts": outcome.attempt,
            "status": outcome.status,
            "error": outcome.error,
        },
    });
    serde_json::from_value(draft).map_err(|e| e.to_string())
}

/// Why an event is too old to be delivered by now, if it is: by its own `expirytime` (CloudEvents, "Expiry Time"), or by the
/// trigger's `max_age_s`.
pub fn expired(record: &Record, trigger: Option<&Trigger>, now: jiff::Timestamp) -> Option<String> {
    let event = &record.entry.event;
    let expiry = event.attribute("expirytime").and_then(|text| text.parse::<jiff::Timestamp>().ok());
    if let Some(expiry) = expiry.filter(|expiry| *expiry <= now) {
        return Some(format!("expired at {expiry}, which it says itself (`expirytime`)"));
    }
    let max_s = trigger?.max_age_s?;
    // What was to come later is not old when its time has come.
    let born = event.not_before().map_or(record.entry.received_at, |at| at.max(record.entry.received_at));
    let age_s = now.duration_since(born).as_secs();
    (age_s >= i64::try_from(max_s).unwrap_or(i64::MAX)).then(|| {
        format!("expired: it is {age_s} s old, and its trigger takes none of {max_s} s or older (`max_age_s`)")
    })
}

fn denied(error: String) -> Finished {
    Finished {
        status: InvocationStatus::Denied,
        error: Some(error),
        permanent: false,
        retry_after: None,
        answer: Answer::default(),
        emitted: Vec::new(),
        host_calls: Vec::new(),
        host_calls_dropped: 0,
        logs: Vec::new(),
        logs_dropped: 0,
        left_behind: false,
        journal: None,
        replayed: None,
        memory_bytes: None,
        init: Duration::ZERO,
        duration: Duration::ZERO,
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
