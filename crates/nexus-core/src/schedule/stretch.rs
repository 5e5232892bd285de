//! The instants that an expression means in a zone.
//!
//! A zone's time is cut into stretches in which its clocks run evenly. Within one, times on the wall and instants are
//! the same but for an offset; what is special about a gap or a repeated hour is all at a stretch's beginning.

use jiff::civil::DateTime;
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};

use super::cron::Cron;
use super::zone::Zone;

/// How far [`Cron::next_after`] looks: 41 years. Every date meets every day of the week within 40 (February 29th needs
/// them around 2100, which is no leap year), so that an expression which comes true at all does so within them.
pub const SEARCH_DAYS: i64 = 41 * 366;

const SECOND: SignedDuration = SignedDuration::from_secs(1);
const SEARCH: SignedDuration = SignedDuration::from_hours(SEARCH_DAYS * 24);

impl Cron {
    /// The first tick after `instant`, or `None` if there is none within [`SEARCH_DAYS`] or the years of jiff.
    ///
    /// A step for each day that may be meant, and each month that is not: some 1,600 to a February 29th in 40 years.
    pub fn next_after(&self, zone: &Zone, instant: Timestamp) -> Option<Timestamp> {
        let mut from = whole_second(instant)?.checked_add(SECOND).ok()?;
        let until = from.saturating_add(SEARCH).unwrap_or(Timestamp::MAX);
        while from < until {
            let stretch = Stretch::around(zone, from);
            if let Some(tick) = stretch.first(self, from, until) {
                return Some(tick);
            }
            from = stretch.end?;
        }
        None
    }

    /// The newest tick up to `to` and after `after`; not further back than [`SEARCH_DAYS`].
    pub fn newest(&self, zone: &Zone, after: Timestamp, to: Timestamp) -> Option<Timestamp> {
        let from = whole_second(after)?.checked_add(SECOND).ok()?;
        let mut to = whole_second(to)?;
        let from = from.max(to.saturating_sub(SEARCH).unwrap_or(Timestamp::MIN));
        while from <= to {
            let stretch = Stretch::around(zone, to);
            if let Some(tick) = stretch.last(self, from, to) {
                return Some(tick);
            }
            to = stretch.start?.at.checked_sub(SECOND).ok()?;
        }
        None
    }
}

/// The last whole second up to `instant`; ticks have no parts of one.
fn whole_second(instant: Timestamp) -> Option<Timestamp> {
    let part = SignedDuration::from_nanos(i64::from(instant.subsec_nanosecond()));
    let towards_zero = instant.checked_sub(part).ok()?;
    // Before 1970 the part of a second is negative.
    if part.is_negative() { towards_zero.checked_sub(SECOND).ok() } else { Some(towards_zero) }
}

/// A time in which a zone keeps one offset from UTC.
struct Stretch {
    start: Option<Start>,
    /// The first instant after it.
    end: Option<Timestamp>,
    offset: Offset,
}

/// How a stretch begins.
#[derive(Clone, Copy)]
struct Start {
    at: Timestamp,
    /// The offset before it.
    before: Offset,
}

impl Stretch {
    /// The one that `instant`, a whole second, lies in.
    fn around(zone: &Zone, instant: Timestamp) -> Self {
        let rules = zone.rules();
        // `preceding` looks strictly before; a stretch that begins with `instant` is the one that it lies in.
        let begun = instant.checked_add(SECOND).ok().and_then(|next| rules.preceding(next).next());
        let start = begun.and_then(|begun| {
            let before = rules.to_offset(begun.timestamp().checked_sub(SECOND).ok()?);
            Some(Start { at: begun.timestamp(), before })
        });
        let end = rules.following(instant).next().map(|ends| ends.timestamp());
        Self { start, end, offset: rules.to_offset(instant) }
    }

    /// The first tick from `from` on, which lies in it, and before `until`.
    fn first(&self, cron: &Cron, from: Timestamp, until: Timestamp) -> Option<Timestamp> {
        if let Some(tick) = self.after_gap(cron).filter(|tick| *tick >= from) {
            return Some(tick);
        }
        let before = self.end.map_or(until, |end| end.min(until));
        let wall = cron.first_from(self.wall_from(cron, from), self.offset.to_datetime(before))?;
        self.offset.to_timestamp(wall).ok()
    }

    /// The last tick up to `to`, which lies in it, and not before `from`.
    fn last(&self, cron: &Cron, from: Timestamp, to: Timestamp) -> Option<Timestamp> {
        match cron.last_up_to(self.offset.to_datetime(to), self.wall_from(cron, from)) {
            Some(wall) => self.offset.to_timestamp(wall).ok(),
            None => self.after_gap(cron).filter(|tick| *tick >= from),
        }
    }

    /// The first time on the wall in it that can be a tick, from `from` on. With fixed hours, times that the stretch
    /// before has shown already do not count again.
    fn wall_from(&self, cron: &Cron, from: Timestamp) -> DateTime {
        let Some(start) = self.start else { return self.offset.to_datetime(from) };
        let wall = self.offset.to_datetime(from.max(start.at));
        if cron.open_hours { wall } else { wall.max(start.before.to_datetime(start.at)) }
    }

    /// Its first instant, if times were skipped there of which one was meant, and the hours are fixed.
    fn after_gap(&self, cron: &Cron) -> Option<Timestamp> {
        let start = self.start.filter(|_| !cron.open_hours)?;
        let skipped = cron.first_from(start.before.to_datetime(start.at), self.offset.to_datetime(start.at));
        skipped.map(|_| start.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect(text)
    }

    #[test]
    fn parts_of_a_second_are_cut_off() {
        for (given, expected) in [
            ("2026-01-01T00:00:00.999Z", "2026-01-01T00:00:00Z"),
            ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
            ("1969-12-31T23:59:58.25Z", "1969-12-31T23:59:58Z"),
            ("1969-12-31T23:59:58Z", "1969-12-31T23:59:58Z"),
        ] {
            assert_eq!(whole_second(at(given)), Some(at(expected)), "{given}");
        }
    }

    #[test]
    fn next_is_strictly_after() {
        let cron = Cron::parse("0 3 * * *").expect("cron");
        let check = |given: &str, expected: &str| {
            assert_eq!(cron.next_after(&Zone::UTC, at(given)), Some(at(expected)), "{given}");
        };
        check("2026-01-01T02:59:59.999999999Z", "2026-01-01T03:00:00Z");
        check("2026-01-01T03:00:00Z", "2026-01-02T03:00:00Z");
        check("2026-01-01T03:00:00.000000001Z", "2026-01-02T03:00:00Z");
        check("1960-01-01T02:59:59.5Z", "1960-01-01T03:00:00Z");
    }

    /// A whole cycle of the calendar, for the rarest expression that there is: February 29th, if it is a Sunday.
    #[test]
    fn the_search_is_long_enough() {
        let cron = Cron::parse("0 0 29 2 */7").expect("cron");
        let (mut tick, mut longest) = (at("2000-01-01T00:00:00Z"), 0);
        while tick < at("2420-01-01T00:00:00Z") {
            let next = cron.next_after(&Zone::UTC, tick).expect("a tick");
            assert_eq!(cron.newest(&Zone::UTC, tick, at("2500-01-01T00:00:00Z").min(next)), Some(next));
            longest = longest.max(next.duration_since(tick).as_hours() / 24);
            tick = next;
        }
        assert_eq!(longest / 365, 40, "{longest} days");
        assert!(longest < SEARCH_DAYS, "{longest} days");
    }

    #[test]
    fn the_search_ends_where_time_does() {
        let cron = Cron::parse("* * * * * *").expect("cron");
        for zone in ["UTC", "Europe/Berlin", "America/New_York"] {
            let zone = Zone::parse(zone).expect(zone);
            assert_eq!(cron.next_after(&zone, Timestamp::MAX), None);
            assert_eq!(cron.newest(&zone, Timestamp::MAX, Timestamp::MAX), None);
            assert_eq!(cron.newest(&zone, Timestamp::MIN, Timestamp::MIN), None);
            cron.next_after(&zone, Timestamp::MIN).expect("the second one");
            cron.newest(&zone, Timestamp::MIN, Timestamp::MAX).expect("the last one");
        }
    }
}
