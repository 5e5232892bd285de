//! What is replayed of an event: one function's delivery each.

use std::collections::BTreeMap;
use std::sync::Arc;

use nexus_core::event::{Data, is_json};
use nexus_core::function::{FunctionKind, FunctionVersion};
use nexus_core::ids::{FunctionRef, InvocationId, ReplayId};
use nexus_core::journal::{self, Journal};
use nexus_core::outcome::{Disposition, InvocationStatus, Outcome, TriggerKind};
use nexus_core::record::{NewRecord, Record};
use nexus_engine::{Answer, Journaling, Step};

use super::compare::{Expected, compare, side_effects};
use super::request::{Mode, ReplayError, ReplayRequest, ReplayResult, StepView, Verdict};
use crate::catalog::Entry;
use crate::gateway::http_event;
use crate::line::{Delivered, Delivery, How, Line, Replay};

/// One delivery to be made again.
#[derive(Clone)]
pub(super) struct Item {
    record: Arc<Record>,
    entry: Arc<Entry>,
    before: Option<Outcome>,
    /// It was delivered by this replay, before it broke off and went on; then it is not delivered again.
    after: Option<Outcome>,
}

/// The functions that the event went to, or would go to now if it went to none; those that are gone are left out. `id` is that of
/// a replay that may have done some of it.
pub(super) async fn of(
    line: &Line,
    record: &Arc<Record>,
    request: &ReplayRequest,
    id: Option<ReplayId>,
) -> Result<Vec<Item>, ReplayError> {
    let view = line.catalog.view();
    let (mut before, mut after): (BTreeMap<_, Outcome>, BTreeMap<_, Outcome>) = Default::default();
    let outcomes = line.storage.log.outcomes(record.seq).await?;
    let wanted = request.invocation_id.map(|wanted| first(&outcomes, wanted));
    for outcome in outcomes {
        if request.mode == Mode::Live && id.is_some() && outcome.replay_id == id {
            after.insert(outcome.function.clone(), outcome);
            continue;
        }
        let ran = outcome.status != InvocationStatus::Denied;
        let meant = match wanted {
            Some(wanted) => wanted == outcome.invocation_id,
            None => outcome.disposition != Disposition::Replayed,
        };
        if ran && meant {
            before.insert(outcome.function.clone(), outcome);
        }
    }
    if let Some(filter) = &request.filter {
        before.retain(|name, outcome| {
            filter.function.as_ref().is_none_or(|wanted| wanted == name)
                && filter.status.is_none_or(|wanted| wanted == outcome.status)
        });
        // Of many, only what has run is run again.
        if before.is_empty() {
            return Ok(Vec::new());
        }
    }
    let mut names: Vec<_> = before.keys().cloned().collect();
    if let Some(wanted) = &request.function {
        if request.filter.is_some() && !before.contains_key(&wanted.name) {
            return Ok(Vec::new());
        }
        names = vec![wanted.name.clone()];
        let entry = view
            .get(&wanted.name)
            .ok_or_else(|| ReplayError::NotFound(format!("there is no function {}", wanted.name)))?;
        if entry.version(wanted).is_none() {
            return Err(ReplayError::NotFound(format!("there is no function {wanted}")));
        }
    } else if names.is_empty() {
        names = view.route(&record.entry.event).map(|e| e.function.name.clone()).collect();
    }
    Ok(names
        .into_iter()
        .filter_map(|name| {
            let entry = view.get(&name)?.clone();
            let (before, after) = (before.remove(&name), after.remove(&name));
            Some(Item { record: record.clone(), entry, before, after })
        })
        .collect())
}

/// The invocation that is meant: of a replay from a journal, the one that wrote the journal. One that was live has its own.
fn first(outcomes: &[Outcome], wanted: InvocationId) -> InvocationId {
    let is_it = |outcome: &&Outcome| outcome.invocation_id == wanted;
    match outcomes.iter().find(is_it) {
        Some(replay)
            if replay.disposition == Disposition::Replayed && replay.live.is_none() && replay.journal.is_none() =>
        {
            replay.replay_of.unwrap_or(wanted)
        }
        Some(_) | None => wanted,
    }
}

/// The same event with another payload, if one is given.
pub(super) fn with_data(mut record: Record, request: &ReplayRequest) -> Result<Record, ReplayError> {
    let Some(data) = &request.data else { return Ok(record) };
    let event = &mut record.entry.event;
    event.data = Some(if is_json(event.datacontenttype.as_deref()) {
        Data::Json(data.clone())
    } else {
        let text = serde_json::from_str(data.get()).map_err(|_| {
            let kind = event.datacontenttype.clone().unwrap_or_default();
            ReplayError::Invalid(format!("the event's payload is {kind}; `data` must be a string"))
        })?;
        Data::Text(text)
    });
    Ok(record)
}

impl ReplayResult {
    /// One that says why nothing could be compared.
    pub(super) fn failed(event_id: String, source: String, function: String, why: String) -> Self {
        Self {
            event_id,
            source,
            function,
            verdict: Verdict::Failed,
            divergence: Some(why),
            diff: None,
            host_call: None,
            answered: None,
            unmatched: Vec::new(),
            unmatched_dropped: None,
            side_effects: None,
            printed: Vec::new(),
            steps: Vec::new(),
            notes: Vec::new(),
            cost: None,
            replay_of: None,
            invocation_id: None,
        }
    }
}

/// Steps of one replay that are told.
const STEPS_MAX: usize = 10_000;

/// The calls that were answered, with what the guest was like at each.
fn steps(journal: &Journal, steps: &[Step]) -> Vec<StepView> {
    let view = |(call, step): (journal::CallView, &Step)| StepView {
        call: call.call,
        import: call.import.to_owned(),
        asked: call.asked,
        answer: call.answer,
        printed: step.lines,
        memory_bytes: step.memory_bytes,
    };
    journal::calls(journal).into_iter().zip(steps).take(STEPS_MAX).map(view).collect()
}

/// What a replay from a journal needs of the recorded invocation.
struct Recorded {
    how: How,
    journal: Arc<Journal>,
    /// The same code on the same event.
    exactly: bool,
}

impl Item {
    /// The last attempt, if there was one.
    pub(super) fn before(&self) -> Option<&Outcome> {
        self.before.as_ref()
    }

    /// The function.
    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Runs it, and says what differs.
    pub(super) async fn replay(mut self, line: &Line, id: ReplayId, request: &ReplayRequest) -> ReplayResult {
        let event = &self.record.entry.event;
        let mut result = ReplayResult::failed(
            event.id.clone(),
            event.source.clone(),
            self.entry.function.name.to_string(),
            String::new(),
        );
        result.replay_of = self.before.as_ref().map(|before| before.invocation_id);
        let failed = |mut result: ReplayResult, why: String| {
            result.divergence = Some(why);
            result
        };
        if let Some(outcome) = self.after.take() {
            let delivered = Delivered {
                outcome: outcome.into(),
                answer: Answer::default(),
                replayed: None,
                not_emitted: Vec::new(),
            };
            return compare(self.before.as_ref(), None, &delivered, &Expected::InEffect, result);
        }
        let version = match self.version(request) {
            Ok(version) => version,
            Err(why) => return failed(result, why),
        };
        let recorded = match request.mode {
            Mode::Live => None,
            Mode::Deterministic => match self.recorded(line, request, &version).await {
                Ok(recorded) => Some(recorded),
                Err(why) => return failed(result, why),
            },
        };
        let (how, expected) = match &recorded {
            None => (How::Live { same_key: request.same_key }, Expected::InEffect),
            Some(recorded) if recorded.exactly => (recorded.how.clone(), Expected::Exactly(&recorded.journal)),
            Some(recorded) => (recorded.how.clone(), Expected::InEffect),
        };
        let is_call = self.record.entry.target.is_some() && version.kind == FunctionKind::WasiHttp;
        let http = http_event::request_of(event).filter(|_| is_call);
        // What an HTTP call saw is what it sees again; an event that was tried again after one is an event.
        let trigger = match (&recorded, &self.before) {
            (Some(_), Some(before)) => before.trigger,
            _ => TriggerKind::Other,
        };
        let of = result.replay_of;
        let delivery = Delivery {
            record: self.record.clone(),
            entry: self.entry.clone(),
            version,
            attempt: 1,
            trigger,
            http,
            replay: Some(Replay { of, id, how }),
        };
        let delivered = match line.deliver(delivery).await {
            Ok(delivered) => delivered,
            Err(error) => return failed(result, format!("the outcome could not be written: {error}")),
        };
        let emitted = match (&recorded, &self.before) {
            (Some(_), Some(before)) => self.emitted(line, before).await,
            _ => None,
        };
        let mut result = compare(self.before.as_ref(), emitted.as_deref(), &delivered, &expected, result);
        if let (Some(recorded), Some(replayed), true) = (&recorded, &delivered.replayed, request.steps) {
            result.steps = steps(&recorded.journal, &replayed.steps);
            result.printed.clone_from(&delivered.outcome.logs);
        }
        if let Some(recorded) = &recorded {
            let (found, any) = side_effects(&delivered.outcome.kernel);
            result.side_effects = Some(found);
            if result.verdict != Verdict::Identical {
                let redacted = http_event::redacted_of(&self.record.entry.event);
                if !redacted.is_empty() {
                    let names = redacted.join(", ");
                    result.notes.push(format!("the function saw headers that the log does not keep: {names}"));
                }
                let kept_out = |entry: &journal::Entry| match entry {
                    journal::Entry::Response(_, journal::Got::Head(head)) => {
                        head.headers.iter().any(|(_, value)| value == journal::REDACTED)
                    }
                    _ => false,
                };
                if recorded.journal.entries.iter().any(kept_out) {
                    result.notes.push("an answer had headers whose values the journal does not keep".into());
                }
                if let How::Recorded { config, .. } = &recorded.how
                    && !config.journal.redact_fields.is_empty()
                {
                    let names = config.journal.redact_fields.join(", ");
                    result.notes.push(format!("the journal does not keep these fields of answers: {names}"));
                }
                if delivered.replayed.as_ref().is_some_and(|replayed| replayed.other_engine) {
                    result.notes.push("its code was compiled by another version of the engine then".into());
                }
            }
            if any && !delivered.replayed.as_ref().is_some_and(|replayed| replayed.went_out) {
                result.verdict = Verdict::Leaked;
            }
        }
        result
    }

    /// The version that is asked for; where none is, the one that ran then, or for a live replay the current one.
    fn version(&self, request: &ReplayRequest) -> Result<FunctionVersion, String> {
        let name = self.entry.function.name.clone();
        let then = self.before.as_ref().filter(|_| request.mode == Mode::Deterministic).map(|before| before.version);
        let reference = request.function.clone().unwrap_or(FunctionRef { name, version: then });
        self.entry.version(&reference).cloned().ok_or_else(|| format!("function {reference} is gone"))
    }

    /// The journal, if there is one that is whole.
    async fn recorded(
        &self,
        line: &Line,
        request: &ReplayRequest,
        version: &FunctionVersion,
    ) -> Result<Recorded, String> {
        let Some(before) = &self.before else {
            return Err("the function has not run on this event: there is nothing to replay it from".into());
        };
        if let Some(why) = before.journal_partial {
            return Err(format!("the journal of its invocation is partial: {why}"));
        }
        let Some(kept) = &before.journal else {
            return Err(
                "there is no journal of its invocation: none was asked for (`journal.sample`), or it was run by a \
                        release that wrote none"
                    .into(),
            );
        };
        let journal = Arc::new(journal::read(kept).map_err(|damaged| damaged.to_string())?);
        let config = line.catalog.config(&self.entry, journal.header.config).await.map_err(|e| e.to_string())?;
        let Some(config) = config else {
            return Err("the configuration that its invocation had is not known any more".into());
        };
        let exactly = version.version == before.version && request.data.is_none();
        let journaling = match exactly {
            true => {
                let redacted = Arc::new(config.journal.redacted());
                Journaling::Replay { journal: journal.clone(), redacted, steps: request.steps }
            }
            false => Journaling::Answer { journal: journal.clone(), allow_live: request.allow_live },
        };
        let was_live = before.replay_id.zip(before.live);
        let how = How::Recorded { journaling, seen_as: before.invocation_id, config, was_live };
        Ok(Recorded { how, journal, exactly })
    }

    /// The events that the recorded invocation emitted. `None`: they are not all there any more.
    pub(super) async fn emitted(&self, line: &Line, before: &Outcome) -> Option<Vec<NewRecord>> {
        let mut ids = &before.emitted[..];
        if before.dead_letter_emitted {
            // It was emitted in the function's place.
            ids = ids.split_last()?.1;
        }
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            let records = line.storage.log.find(id, None).await.ok()?;
            let caused = |record: &Record| record.entry.cause.is_some_and(|cause| cause.seq == self.record.seq);
            found.push(records.into_iter().find(caused)?.entry);
        }
        Some(found)
    }
}
