//! Which ticks are to run now, and what event each of them is.

use jiff::{SignedDuration, Timestamp};

use super::config::{Missed, Schedule, When};
use crate::event::{Data, Event};
use crate::ids::{Digest, FunctionName, ScheduleName};

/// A tick that is not older than this was not missed: it is only a little late. A runtime that restarts, or takes over
/// from another one, needs about as long.
pub const GRACE: SignedDuration = SignedDuration::from_secs(60);
/// The most missed ticks that [`Missed::All`] catches up with: the newest.
pub const MISSED_MAX: usize = 1000;

impl Schedule {
    /// The first tick after `instant`, if there is one: how long a runtime may sleep.
    pub fn next_after(&self, instant: Timestamp) -> Option<Timestamp> {
        match &self.when {
            When::Cron { cron, timezone } => cron.next_after(timezone, instant),
            When::At(at) => Some(*at).filter(|at| *at > instant),
        }
    }

    /// The ticks to run now, in their order, of those after `last` and up to `now`. `last` is the newest tick that ran
    /// or was left out, or, before the first, when the schedule was made. `last` after `now` means none.
    ///
    /// Ticks not older than [`GRACE`] are on time, and all of them run. Older ones were missed:
    /// - [`Missed::Once`] runs the newest of them, unless one is on time, which stands for them too;
    /// - [`Missed::All`] runs the newest [`MISSED_MAX`];
    /// - [`Missed::None`] runs none.
    ///
    /// So there are never more than 1,061: those of an expression with seconds, and the missed ones. It looks back from
    /// `now`, and stops at what is asked for, however long ago `last` is.
    pub fn due(&self, last: Timestamp, now: Timestamp) -> Vec<Timestamp> {
        let on_time_from = now.saturating_sub(GRACE).unwrap_or(Timestamp::MIN);
        let mut ticks = Vec::new();
        let mut missed = 0;
        let mut to = now;
        while let Some(tick) = self.newest(last, to) {
            if tick < on_time_from {
                let wanted = match self.missed {
                    Missed::Once => usize::from(ticks.is_empty() || missed > 0),
                    Missed::All => MISSED_MAX,
                    Missed::None => 0,
                };
                if missed == wanted {
                    break;
                }
                missed += 1;
            }
            ticks.push(tick);
            match tick.checked_sub(SignedDuration::from_nanos(1)) {
                Ok(before) => to = before,
                Err(_) => break,
            }
        }
        ticks.reverse();
        ticks
    }

    /// The newest tick after `after` and up to `to`.
    fn newest(&self, after: Timestamp, to: Timestamp) -> Option<Timestamp> {
        match &self.when {
            When::Cron { cron, timezone } => cron.newest(timezone, after, to),
            When::At(at) => Some(*at).filter(|at| after < *at && *at <= to),
        }
    }

    /// The event of one tick of the schedule, as a schedule of `function`.
    ///
    /// The same for everyone who makes it, to the byte: its `time` is that of the tick, however late it runs.
    pub fn event(&self, function: &FunctionName, tick: Timestamp) -> Event {
        let id = tick_event_id(function, &self.name, tick);
        let mut event = Event::new(id, source(function, &self.name), &self.event.ty);
        event.time = Some(tick.to_string());
        // JSON from memory into memory: there is nothing that could fail.
        let data = self.event.data.as_ref().and_then(|data| serde_json::value::to_raw_value(data).ok());
        event.datacontenttype = data.is_some().then(|| "application/json".to_owned());
        event.data = data.map(Data::Json);
        event
    }
}

fn source(function: &FunctionName, schedule: &ScheduleName) -> String {
    format!("/functions/{function}/schedules/{schedule}")
}

/// The id of a tick's event: 32 hexadecimal digits, of the function, the schedule's name and the instant alone.
///
/// Not of the expression: who changes it to one with the same tick in it does not run that tick a second time.
pub fn tick_event_id(function: &FunctionName, schedule: &ScheduleName, tick: Timestamp) -> String {
    let cause = format!("{} {tick}", source(function, schedule));
    Digest::of(cause.as_bytes()).hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(json: serde_json::Value) -> Schedule {
        serde_json::from_value(json).expect("a schedule")
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect(text)
    }

    #[test]
    fn missed_ticks_run_as_the_schedule_says() {
        let check = |missed: &str, last: &str, now: &str, expected: &[&str]| {
            let nightly = schedule(serde_json::json!({"name": "n", "cron": "0 3 * * *", "missed": missed}));
            let day = |text: &str| at(&format!("2026-01-{text}Z"));
            let expected: Vec<_> = expected.iter().map(|text| day(text)).collect();
            assert_eq!(nightly.due(day(last), day(now)), expected, "{missed} {last} {now}");
        };
        // On time, whatever was asked for.
        for missed in ["once", "all", "none"] {
            check(missed, "01T03:00:00", "02T02:59:59", &[]);
            check(missed, "01T03:00:00", "02T03:00:00", &["02T03:00:00"]);
            check(missed, "01T03:00:00", "02T03:01:00", &["02T03:00:00"]);
            check(missed, "02T03:00:00", "02T03:00:30", &[]);
            check(missed, "02T03:00:00", "01T03:00:30", &[]);
        }
        // One missed.
        check("once", "01T03:00:00", "02T03:01:01", &["02T03:00:00"]);
        check("all", "01T03:00:00", "02T03:01:01", &["02T03:00:00"]);
        check("none", "01T03:00:00", "02T03:01:01", &[]);
        // Several missed, and none or one of them on time.
        check("once", "01T03:00:00", "04T12:00:00", &["04T03:00:00"]);
        check("all", "01T03:00:00", "04T12:00:00", &["02T03:00:00", "03T03:00:00", "04T03:00:00"]);
        check("none", "01T03:00:00", "04T12:00:00", &[]);
        check("once", "01T03:00:00", "04T03:00:10", &["04T03:00:00"]);
        check("all", "01T03:00:00", "04T03:00:10", &["02T03:00:00", "03T03:00:00", "04T03:00:00"]);
        check("none", "01T03:00:00", "04T03:00:10", &["04T03:00:00"]);
    }

    #[test]
    fn what_is_due_is_bounded() {
        let check = |missed: &str, cron: &str, count: usize, oldest_seconds: i64| {
            let often = schedule(serde_json::json!({"name": "n", "cron": cron, "missed": missed}));
            let now = at("2026-07-01T00:00:00Z");
            let due = often.due(at("1990-01-01T00:00:00Z"), now);
            assert_eq!(due.len(), count, "{missed} {cron}");
            assert!(due.is_sorted(), "{missed} {cron}");
            let oldest = due.first().map(|tick| now.duration_since(*tick).as_secs());
            assert_eq!(oldest, Some(oldest_seconds), "{missed} {cron}");
        };
        check("all", "* * * * * *", 61 + MISSED_MAX, 60 + 1000);
        check("once", "* * * * * *", 61, 60);
        check("none", "* * * * * *", 61, 60);
        check("all", "* * * * *", 2 + MISSED_MAX, 60 * 1001);
        check("once", "* * * * *", 2, 60);
        check("all", "0 0 1 1 *", 36, 15_638_400 + 35 * 365 * 86_400 + 9 * 86_400);
    }

    #[test]
    fn once_is_once() {
        let launch = |missed: &str| {
            schedule(serde_json::json!({"name": "launch", "at": "2026-12-24T18:00:00.5Z", "missed": missed}))
        };
        let tick = at("2026-12-24T18:00:00.5Z");
        let check = |missed: &str, last: &str, now: &str, expected: bool| {
            let expected = if expected { vec![tick] } else { Vec::new() };
            assert_eq!(launch(missed).due(at(last), at(now)), expected, "{missed} {last} {now}");
        };
        for missed in ["once", "all", "none"] {
            check(missed, "2026-01-01T00:00:00Z", "2026-12-24T18:00:00Z", false);
            check(missed, "2026-01-01T00:00:00Z", "2026-12-24T18:01:00Z", true);
            check(missed, "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z", missed != "none");
            check(missed, "2026-12-24T18:00:00.5Z", "2027-01-01T00:00:00Z", false);
        }
        assert_eq!(launch("once").next_after(at("2026-01-01T00:00:00Z")), Some(tick));
        assert_eq!(launch("once").next_after(tick), None);
    }

    #[test]
    fn events_of_ticks_are_the_same_for_everyone() {
        let function: FunctionName = "reports".parse().expect("name");
        let mut nightly = schedule(serde_json::json!({
            "name": "nightly", "cron": "0 3 * * *", "event": {"type": "report.due", "data": {"kind": "all"}},
        }));
        let event = nightly.event(&function, at("2026-01-02T03:00:00Z"));
        assert_eq!(event.validate(), Ok(()));
        // Two versions of the program may run side by side: ids stay as they are.
        assert_eq!(event.id, "af1f74216f685878fc30a9626ce79474");
        assert_eq!(
            serde_json::to_value(&event).expect("JSON"),
            serde_json::json!({
                "specversion": "1.0",
                "id": event.id,
                "source": "/functions/reports/schedules/nightly",
                "type": "report.due",
                "time": "2026-01-02T03:00:00Z",
                "datacontenttype": "application/json",
                "data": {"kind": "all"},
            })
        );
        nightly.event.data = None;
        let bare = nightly.event(&function, at("2026-01-02T03:00:00Z"));
        assert_eq!((bare.id, bare.data, bare.datacontenttype), (event.id.clone(), None, None));

        let other = |function: &str, schedule: &str, tick: &str| {
            tick_event_id(&function.parse().expect("name"), &schedule.parse().expect("name"), at(tick))
        };
        assert_eq!(other("reports", "nightly", "2026-01-02T04:00:00+01:00"), event.id);
        assert_ne!(other("reports", "nightly", "2026-01-03T03:00:00Z"), event.id);
        assert_ne!(other("reports", "daily", "2026-01-02T03:00:00Z"), event.id);
        assert_ne!(other("orders", "nightly", "2026-01-02T03:00:00Z"), event.id);
    }
}
