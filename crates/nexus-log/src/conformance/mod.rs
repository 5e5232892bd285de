//! The suite that every implementation of the contract passes.
//!
//! An implementation gives a [`Harness`], and [`conformance_tests!`](crate::conformance_tests) makes one test of each
//! property; [`run`] runs all of them in turn. A property panics with what is wrong; it uses no clock but the one that it
//! holds, and waits for nothing but answers.

mod append;
mod delivery;
mod parts;
mod queries;
mod retention;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nexus_core::clock::{Clock as _, ManualClock};
use nexus_core::event::{Data, Event};
use nexus_core::ids::{InvocationId, Seq, Version};
use nexus_core::kernel::KernelAccount;
use nexus_core::outcome::{Disposition, InvocationStatus, Outcome, TriggerKind};
use nexus_core::record::NewRecord;
use nexus_core::trace::{SpanId, TraceContext, TraceId};

use crate::contract::{Commit, Log, Receipt, Retention, Storage, StorageError};

pub use append::*;
pub use delivery::*;
pub use parts::*;
pub use queries::*;
pub use retention::*;

/// How a property wants its storage.
#[derive(Clone)]
pub struct Settings {
    /// What is kept.
    pub retention: Retention,
    /// For how long a second event of the same `source` and `id` is a duplicate.
    pub dedup_window: Duration,
    /// The time.
    pub clock: Arc<ManualClock>,
}

impl Default for Settings {
    fn default() -> Self {
        let clock = Arc::new(ManualClock::new(start()));
        Self { retention: Retention::default(), dedup_window: Duration::from_secs(24 * 60 * 60), clock }
    }
}

impl Settings {
    /// Moves the clock, forwards or (negative) back.
    pub fn pass(&self, seconds: i64) {
        let later = self.clock.now().checked_add(jiff::SignedDuration::from_secs(seconds));
        self.clock.set(later.expect("a time within the calendar"));
    }
}

/// Makes empty places in which storage can be opened.
#[async_trait]
pub trait Harness: Send + Sync {
    /// A place where nothing is.
    async fn place(&self) -> Box<dyn Place>;
}

/// Where storage is; it outlives what is opened in it.
#[async_trait]
pub trait Place: Send + Sync {
    /// Opens what is there.
    async fn open(&self, settings: &Settings) -> Result<Box<dyn Opened>, StorageError>;
}

/// Opened storage.
#[async_trait]
pub trait Opened: Send + Sync {
    /// Its three parts.
    fn storage(&self) -> Storage;
    /// Closes it in good order.
    async fn close(self: Box<Self>) -> Result<(), StorageError>;
}

macro_rules! properties {
    ($($name:ident),* $(,)?) => {
        /// Runs every property in turn, each in a place of its own.
        ///
        /// # Panics
        ///
        /// If one does not hold.
        pub async fn run(harness: &dyn Harness) {
            $( $name(harness).await; )*
        }

        /// Makes a test of each property; the argument is an expression that gives a [`Harness`](crate::conformance::Harness).
        #[macro_export]
        macro_rules! conformance_tests {
            ($harness:expr) => {
                $(
                    #[tokio::test]
                    async fn $name() {
                        $crate::conformance::$name(&$harness).await;
                    }
                )*
            };
        }
    };
}

properties!(
    appended_events_are_there_after_reopening,
    places_have_no_gaps,
    concurrent_appends_have_no_gaps,
    payloads_are_kept_to_the_byte,
    duplicates_are_answered_with_the_first_receipt,
    duplicates_within_a_batch_are_appended_once,
    the_window_ends,
    duplicates_are_known_after_reopening,
    a_batch_is_appended_whole,
    the_head_wakes_who_waits,
    after_closing_everything_says_so,
    outcomes_come_in_order_and_by_invocation,
    many_ask_for_outcomes_at_once,
    a_commit_is_one_with_what_it_emits,
    a_second_commit_of_an_invocation_adds_nothing,
    dispositions_park_and_release,
    what_is_for_later_is_parked_once,
    dead_letters_are_kept_until_they_are_released,
    progress_is_there_after_reopening,
    reads_go_on_from_any_place,
    find_gives_the_newest_of_each_source,
    queries_filter_by_every_field,
    queries_filter_exactly_when_the_clock_jumps,
    pages_cover_everything_once,
    the_registry_compares_and_sets,
    the_registry_lists_and_deletes,
    the_registry_is_there_after_reopening,
    artifacts_are_kept_once_and_checked,
    retention_by_age_takes_what_is_old,
    retention_by_size_takes_the_oldest,
    retention_leaves_what_is_not_delivered_or_parked,
    what_retention_took_is_gone_from_every_answer,
);

/// The time at which every property starts.
pub fn start() -> Timestamp {
    Timestamp::from_second(1_750_000_000).expect("a time within the calendar")
}

/// Tells the log how far delivery has come, in the epoch that is now.
pub async fn advance(log: &dyn Log, below: Seq) -> Result<(), StorageError> {
    let epoch = log.members().borrow().epoch;
    log.advance(below, epoch).await
}

/// An event of a number: its id is the number, its payload names it.
pub fn numbered(settings: &Settings, n: u64) -> NewRecord {
    record(settings, &n.to_string(), "/conformance", "test.numbered")
}

/// An event received now, of a trace of its own.
pub fn record(settings: &Settings, id: &str, source: &str, ty: &str) -> NewRecord {
    let mut event = Event::new(id, source, ty);
    let payload = serde_json::value::to_raw_value(&serde_json::json!({ "id": id })).expect("JSON");
    event.data = Some(Data::Json(payload));
    NewRecord {
        received_at: settings.clock.now(),
        trace: TraceContext {
            trace_id: TraceId::generate(),
            span_id: SpanId::generate(),
            sampled: true,
            tracestate: None,
        },
        parent_span: None,
        cause: None,
        target: None,
        claimed_by: None,
        event,
    }
}

/// The outcome of an invocation of the function `worker` on an event.
pub fn outcome(seq: Seq, attempt: u32, disposition: Disposition) -> Outcome {
    Outcome {
        invocation_id: InvocationId::generate(),
        seq,
        function: "worker".parse().expect("a function name"),
        version: Version(1),
        attempt,
        trigger: TriggerKind::Pubsub,
        status: if disposition == Disposition::Done { InvocationStatus::Ok } else { InvocationStatus::Error },
        error: None,
        delivered_at: start(),
        started_at: start(),
        duration_ns: 1_000,
        init_ns: 10,
        cold_start: false,
        load_ns: None,
        replay_of: None,
        replay_id: None,
        live: None,
        emitted: Vec::new(),
        memory_bytes: Some(65_536),
        output: None,
        disposition,
        dead_letter_emitted: false,
        host_calls: Vec::new(),
        host_calls_dropped: 0,
        logs: Vec::new(),
        logs_dropped: 0,
        kernel: KernelAccount::off("conformance"),
        slow_syscalls: Vec::new(),
        journal: None,
        journal_partial: None,
    }
}

/// Opens a new place.
async fn opened(harness: &dyn Harness, settings: &Settings) -> (Box<dyn Place>, Box<dyn Opened>, Storage) {
    let place = harness.place().await;
    let opened = open(&*place, settings).await;
    let storage = opened.storage();
    (place, opened, storage)
}

/// Opens a place, again or for the first time.
async fn open(place: &dyn Place, settings: &Settings) -> Box<dyn Opened> {
    place.open(settings).await.expect("opening")
}

/// Appends one event that is no duplicate.
async fn append(log: &dyn Log, record: NewRecord) -> Seq {
    let receipts = log.append(vec![record]).await.expect("append");
    let [Receipt { seq, duplicate: false, .. }] = receipts[..] else { panic!("{receipts:?}") };
    seq
}

/// Commits an outcome without emitted events.
async fn commit(log: &dyn Log, outcome: Outcome) {
    log.commit(Commit { outcome: outcome.into(), emitted: Vec::new() }).await.expect("commit");
}
