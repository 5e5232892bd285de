//! Why an event went to these functions and not to those.

use jiff::Timestamp;
use nexus_core::ids::FunctionName;
use nexus_core::record::Record;
use serde::Serialize;

use crate::catalog::View;

/// Functions that are shown of those that an event did not go to. There may be ten thousand.
const REFUSALS_MAX: usize = 100;

/// What one function's triggers say of an event.
#[derive(Debug, Serialize)]
pub struct Routing {
    function: FunctionName,
    matched: bool,
    /// The trigger that matches, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    trigger: Option<usize>,
    /// Why none does: for each trigger.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    why: Vec<String>,
    /// Since when the function is configured as it is now. What was before is not known: where the event is older, it may have
    /// been routed otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    configured_at: Option<Timestamp>,
    certain: bool,
}

/// What the functions that are deployed now say of an event: all that match, and the first of those that do not, with how many
/// of these there are. Empty for an event that is addressed to one function.
pub fn routing(view: &View, record: &Record) -> (Vec<Routing>, usize) {
    if record.entry.target.is_some() {
        return (Vec::new(), 0);
    }
    let event = &record.entry.event;
    let (mut shown, mut refused) = (Vec::new(), 0);
    for entry in view.iter() {
        let triggers = &entry.config.triggers;
        let trigger = triggers.iter().position(|trigger| trigger.matches(event));
        if trigger.is_none() {
            refused += 1;
            if refused > REFUSALS_MAX {
                continue;
            }
        }
        let why = match trigger {
            Some(_) => Vec::new(),
            None if triggers.is_empty() => vec!["it has no trigger".to_owned()],
            None => {
                triggers.iter().map(|t| t.filters.iter().find_map(|f| f.refusal(event)).unwrap_or_default()).collect()
            }
        };
        let configured_at = entry.function.configured_at;
        shown.push(Routing {
            function: entry.function.name.clone(),
            matched: trigger.is_some(),
            trigger,
            why,
            configured_at,
            certain: configured_at.is_some_and(|at| at <= record.entry.received_at),
        });
    }
    (shown, refused)
}
