//! A schedule as it stands in a function's configuration.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cron::Cron;
use super::zone::Zone;
use crate::event::ATTRIBUTE_BYTES_MAX;
use crate::ids::ScheduleName;

/// The most schedules that one function may have.
pub const SCHEDULES_MAX: usize = 64;
/// The longest payload of a tick, in bytes of JSON.
pub const DATA_BYTES_MAX: usize = 64 * 1024;
/// The type of a tick's event, if the schedule names none.
pub const TICK_TYPE: &str = "nexus.schedule.tick";

/// A schedule that cannot be; names the schedule, the key, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schedule {schedule:?}: `{key}` {why}")]
pub struct InvalidSchedule {
    /// The schedule's name as it was given, shortened.
    pub schedule: String,
    /// The key, as in `timezone`.
    pub key: &'static str,
    /// What is wrong with it, with an example.
    pub why: String,
}

/// When a function runs by itself, and on what event.
///
/// `{"name": "nightly", "cron": "0 3 * * *", "timezone": "Europe/Berlin", "missed": "once", "event": {"type": "…",
/// "data": …}}`, or once: `{"name": "launch", "at": "2026-12-24T18:00:00Z"}`. Needed are the name, and one of `cron`
/// and `at`. Unknown keys are errors. An expression, a zone and a time are read with the rest, so that none that cannot
/// be is ever in here; the bounds of the event are for [`TickEvent::validate`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Draft", into = "Draft")]
pub struct Schedule {
    /// Tells it from the function's other schedules. Ids of ticks are made of it: a new name makes a new schedule.
    pub name: ScheduleName,
    /// When.
    pub when: When,
    /// What happens with ticks that passed while nobody ran.
    pub missed: Missed,
    /// The event of each tick.
    pub event: TickEvent,
}

/// When a schedule ticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// Whenever the clocks of a zone show such a time; `UTC` if no zone is named.
    Cron {
        /// The time.
        cron: Cron,
        /// Whose clocks.
        timezone: Zone,
    },
    /// Once.
    At(Timestamp),
}

/// What happens with ticks that passed while nobody ran; [`Schedule::due`] has the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Missed {
    /// One run stands for them all.
    #[default]
    Once,
    /// Each is run, within bounds.
    All,
    /// They are left out.
    None,
}

impl Missed {
    const EVERY: [Self; 3] = [Self::Once, Self::All, Self::None];

    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Once => "once",
            Self::All => "all",
            Self::None => "none",
        }
    }
}

/// What a tick's event says, beside its id, source and time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TickEvent {
    /// Its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its payload: JSON, as it means, not as it was written (names of members are sorted, and numbers are of 64 bits).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl Default for TickEvent {
    fn default() -> Self {
        Self { ty: TICK_TYPE.to_owned(), data: None }
    }
}

impl TickEvent {
    /// Checks the bounds; an error is the key, and what is wrong with it.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        if self.ty.is_empty() || self.ty.len() > ATTRIBUTE_BYTES_MAX || self.ty.chars().any(char::is_control) {
            let why = format!(
                "must have 1 to {ATTRIBUTE_BYTES_MAX} bytes, and no control characters; an example: \"report.due\""
            );
            return Err(("type", why));
        }
        let bytes = self.data.as_ref().map_or(0, |data| data.to_string().len());
        if bytes > DATA_BYTES_MAX {
            return Err(("data", format!("has {bytes} bytes as JSON; {DATA_BYTES_MAX} is the most")));
        }
        Ok(())
    }
}

/// A schedule as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Draft {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timezone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    missed: Option<String>,
    #[serde(default)]
    event: TickEvent,
}

impl TryFrom<Draft> for Schedule {
    type Error = InvalidSchedule;

    fn try_from(draft: Draft) -> Result<Self, InvalidSchedule> {
        let Draft { name, cron, timezone, at, missed, event } = draft;
        let read = || {
            let when = when(cron.as_deref(), timezone.as_deref(), at.as_deref())?;
            let missed = missed.as_deref().map_or(Ok(Missed::default()), read_missed)?;
            let name = name.parse().map_err(|e| ("name", format!("is wrong: {e}; an example: \"nightly\"")))?;
            Ok((name, when, missed))
        };
        match read() {
            Ok((name, when, missed)) => Ok(Self { name, when, missed, event }),
            Err((key, why)) => Err(InvalidSchedule { schedule: short(&name), key, why }),
        }
    }
}

impl From<Schedule> for Draft {
    fn from(schedule: Schedule) -> Self {
        let (cron, timezone, at) = match schedule.when {
            When::Cron { cron, timezone } => (Some(cron.to_string()), Some(timezone.to_string()), None),
            When::At(at) => (None, None, Some(at.to_string())),
        };
        let missed = Some(schedule.missed.as_str().to_owned());
        Self { name: schedule.name.into(), cron, timezone, at, missed, event: schedule.event }
    }
}

/// A key, and what is wrong with it.
type Wrong = (&'static str, String);

fn when(cron: Option<&str>, timezone: Option<&str>, at: Option<&str>) -> Result<When, Wrong> {
    match (cron, at) {
        (Some(cron), None) => {
            let cron = Cron::parse(cron)
                .map_err(|e| ("cron", format!("is no cron expression: {e} (03:00 every day is \"0 3 * * *\")")))?;
            let zone = timezone.map_or(Ok(Zone::UTC), Zone::parse);
            let timezone = zone.map_err(|e| ("timezone", format!("is wrong: {e}; an example: \"Europe/Berlin\"")))?;
            Ok(When::Cron { cron, timezone })
        }
        (None, Some(_)) if timezone.is_some() => Err((
            "timezone",
            "is for `cron`; `at` has an offset of its own, as in \"2026-12-24T18:00:00+01:00\"".into(),
        )),
        (None, Some(at)) => once(at).map(When::At),
        (Some(_), Some(_)) => Err(("at", "stands beside `cron`; only one of them may".into())),
        (None, None) => {
            Err(("cron", "is missing, and so is `at`: one of them says when; an example: \"0 3 * * *\"".into()))
        }
    }
}

fn once(text: &str) -> Result<Timestamp, Wrong> {
    let example = "an example: \"2026-12-24T18:00:00Z\"";
    let at: Timestamp =
        text.parse().map_err(|_| ("at", format!("is {:?}, not a time with its offset; {example}", short(text))))?;
    // RFC 3339, in which events have their times, knows no years before 0; and nothing was to run before 1970.
    if at < Timestamp::UNIX_EPOCH {
        return Err(("at", format!("is before 1970; {example}")));
    }
    Ok(at)
}

fn read_missed(text: &str) -> Result<Missed, Wrong> {
    let known = Missed::EVERY.into_iter().find(|missed| missed.as_str() == text);
    known.ok_or_else(|| ("missed", format!("is {:?}; it must be \"once\", \"all\" or \"none\"", short(text))))
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schedules_round_trip() {
        let check = |given: Value, whole: Value| {
            let schedule: Schedule = serde_json::from_value(given.clone()).expect("a schedule");
            assert_eq!(serde_json::to_value(&schedule).expect("JSON"), whole, "{given}");
            assert_eq!(serde_json::from_value::<Schedule>(whole).expect("again"), schedule, "{given}");
        };
        check(
            json!({"name": "nightly", "cron": "0 3 * * *"}),
            json!({
                "name": "nightly", "cron": "0 3 * * *", "timezone": "UTC", "missed": "once",
                "event": {"type": TICK_TYPE},
            }),
        );
        let whole = json!({
            "name": "n", "cron": "@daily", "timezone": "Europe/Berlin", "missed": "all",
            "event": {"type": "report.due", "data": {"kind": ["a", 1, null]}},
        });
        check(whole.clone(), whole);
        check(
            json!({"name": "n", "cron": "@daily", "timezone": "asia/kolkata", "missed": "none", "event": {"data": 0}}),
            json!({
                "name": "n", "cron": "@daily", "timezone": "Asia/Kolkata", "missed": "none",
                "event": {"type": TICK_TYPE, "data": 0},
            }),
        );
        check(
            json!({"name": "launch", "at": "2026-12-24T19:00:00+01:00"}),
            json!({"name": "launch", "at": "2026-12-24T18:00:00Z", "missed": "once", "event": {"type": TICK_TYPE}}),
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key() {
        let check = |given: Value, expected: &str| {
            let error = serde_json::from_value::<Schedule>(given.clone()).expect_err("wrong").to_string();
            assert!(error.contains(expected), "{given}: {error}");
        };
        check(json!({"name": "n"}), "schedule \"n\": `cron` is missing, and so is `at`");
        check(json!({"cron": "@daily"}), "missing field `name`");
        check(json!({"name": "Nightly", "cron": "@daily"}), "schedule \"Nightly\": `name` is wrong");
        check(json!({"name": "", "cron": "@daily"}), "an example: \"nightly\"");
        check(json!({"name": "n", "cron": "0 24 * * *"}), "`cron` is no cron expression: hour: `24` is not 0 to 23");
        check(json!({"name": "n", "cron": "0 0 30 2 *"}), "never comes true");
        check(json!({"name": "n", "cron": "x"}), "\"0 3 * * *\"");
        check(json!({"name": "n", "cron": "@daily", "timezone": "Berlin"}), "`timezone` is wrong: \"Berlin\"");
        check(json!({"name": "n", "cron": "@daily", "timezone": "CEST"}), "\"Europe/Berlin\"");
        check(json!({"name": "n", "cron": "@daily", "at": "2026-12-24T18:00:00Z"}), "`at` stands beside `cron`");
        check(json!({"name": "n", "at": "2026-12-24T18:00:00"}), "`at` is \"2026-12-24T18:00:00\", not a time");
        check(json!({"name": "n", "at": "1969-12-24T18:00:00Z"}), "`at` is before 1970");
        check(json!({"name": "n", "at": "2026-12-24T18:00:00Z", "timezone": "UTC"}), "`timezone` is for `cron`");
        check(json!({"name": "n", "cron": "@daily", "missed": "twice"}), "`missed` is \"twice\"; it must be \"once\"");
        check(json!({"name": "n", "cron": "@daily", "event": {"typ": "x"}}), "`typ`");
        check(json!({"name": "n", "cron": "@daily", "tz": "UTC"}), "`tz`");
        let long = "x".repeat(100_000);
        let error = serde_json::from_value::<Schedule>(json!({"name": long, "at": long})).expect_err("wrong");
        assert!(error.to_string().len() < 400, "{error}");
    }

    #[test]
    fn events_are_bounded() {
        let check = |event: TickEvent, key: &str| {
            assert_eq!(event.validate().expect_err(key).0, key);
        };
        check(TickEvent { ty: String::new(), ..Default::default() }, "type");
        check(TickEvent { ty: "a\nb".into(), ..Default::default() }, "type");
        check(TickEvent { ty: "a".repeat(ATTRIBUTE_BYTES_MAX + 1), ..Default::default() }, "type");
        let data = |bytes: usize| TickEvent { data: Some("a".repeat(bytes - 2).into()), ..Default::default() };
        check(data(DATA_BYTES_MAX + 1), "data");
        assert_eq!(data(DATA_BYTES_MAX).validate(), Ok(()));
        assert_eq!(TickEvent::default().validate(), Ok(()));
    }
}
