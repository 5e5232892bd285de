//! What a replay has found up to now.

use nexus_core::ids::ReplayId;

use super::request::{Kind, Mode, ReplayResult, ReplayView, Status, Verdict};

/// Results that are kept one by one.
const RESULTS_MAX: usize = 1000;
/// Kinds of results that are told apart; the rest is counted.
const KINDS_MAX: usize = 100;
/// Events that are named as examples of a kind.
const EXAMPLES_MAX: usize = 5;

/// Counts of all, and the results as far as there is room: those that are not identical before those that are.
pub(super) struct Results {
    view: ReplayView,
}

impl Results {
    pub(super) fn new(id: ReplayId, mode: Mode, total: u64) -> Self {
        let view = ReplayView {
            replay_id: id,
            status: Status::Running,
            mode,
            total,
            done: 0,
            identical: 0,
            diverged: 0,
            failed: 0,
            leaked: 0,
            kinds: Vec::new(),
            results: Vec::new(),
            results_dropped: 0,
        };
        Self { view }
    }

    /// As they were kept.
    pub(super) fn of(view: ReplayView) -> Self {
        Self { view }
    }

    /// Whether more is to come.
    pub(super) fn is_running(&self) -> bool {
        !self.view.status.is_over()
    }

    pub(super) fn set(&mut self, status: Status) {
        self.view.status = status;
    }

    /// An event turned out to have so many deliveries.
    pub(super) fn found(&mut self, deliveries: usize) {
        self.view.total = self.view.total.saturating_add(deliveries as u64).saturating_sub(1);
    }

    pub(super) fn push(&mut self, result: ReplayResult) {
        let view = &mut self.view;
        view.done += 1;
        match result.verdict {
            Verdict::Identical => view.identical += 1,
            Verdict::Diverged => view.diverged += 1,
            Verdict::Failed => view.failed += 1,
            Verdict::Leaked => view.leaked += 1,
        }
        let same = |kind: &Kind| kind.verdict == result.verdict && kind.divergence == result.divergence;
        let known = view.kinds.iter().position(same);
        if known.is_none() && view.kinds.len() < KINDS_MAX {
            let (verdict, divergence) = (result.verdict, result.divergence.clone());
            view.kinds.push(Kind { verdict, divergence, count: 0, examples: Vec::new() });
        }
        let at = known.unwrap_or(view.kinds.len() - 1);
        if let Some(kind) = view.kinds.get_mut(at).filter(|kind| same(kind)) {
            kind.count += 1;
            if kind.examples.len() < EXAMPLES_MAX {
                kind.examples.push(result.event_id.clone());
            }
        }
        if view.results.len() < RESULTS_MAX {
            view.results.push(result);
            return;
        }
        view.results_dropped += 1;
        if result.verdict != Verdict::Identical
            && let Some(identical) = view.results.iter_mut().rfind(|kept| kept.verdict == Verdict::Identical)
        {
            *identical = result;
        }
    }

    pub(super) fn view(&self, results: bool) -> ReplayView {
        let mut view =
            if results { self.view.clone() } else { ReplayView { results: Vec::new(), ..self.view.clone() } };
        view.kinds.sort_by_key(|kind| std::cmp::Reverse(kind.count));
        if view.results_dropped > 0 {
            view.results.sort_by_key(|result| result.verdict == Verdict::Identical);
        }
        view
    }
}
