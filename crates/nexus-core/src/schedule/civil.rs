//! The times on a wall that an expression means, without a zone.

use jiff::civil::{Date, DateTime, Time};

use super::cron::Cron;

impl Cron {
    /// The first match from `from` on and before `before`.
    ///
    /// Steps over whole months that are not meant, and day by day within the others.
    pub(super) fn first_from(&self, from: DateTime, before: DateTime) -> Option<DateTime> {
        let mut at = from;
        while at < before {
            let date = at.date();
            let next = if !self.means_month(date) {
                date.last_of_month().tomorrow()
            } else if let Some(time) = self.means_day(date).then(|| self.time_from(at.time())).flatten() {
                return Some(date.to_datetime(time)).filter(|found| *found < before);
            } else {
                date.tomorrow()
            };
            at = next.ok()?.to_datetime(Time::midnight());
        }
        None
    }

    /// The last match up to `to` and not before `from`.
    pub(super) fn last_up_to(&self, to: DateTime, from: DateTime) -> Option<DateTime> {
        let mut at = to;
        while at >= from {
            let date = at.date();
            let previous = if !self.means_month(date) {
                date.first_of_month().yesterday()
            } else if let Some(time) = self.means_day(date).then(|| self.time_up_to(at.time())).flatten() {
                return Some(date.to_datetime(time)).filter(|found| *found >= from);
            } else {
                date.yesterday()
            };
            at = previous.ok()?.to_datetime(Time::MAX);
        }
        None
    }

    fn means_month(&self, date: Date) -> bool {
        self.months.has(date.month() as u8)
    }

    /// Whether the day is meant, if its month is.
    fn means_day(&self, date: Date) -> bool {
        let day = date.day();
        let by_date = self.days.has(day as u8) || self.last_day && day == date.days_in_month();
        let by_weekday = self.weekdays.has(date.weekday().to_sunday_zero_offset() as u8);
        if self.either_day { by_date || by_weekday } else { by_date && by_weekday }
    }

    /// The first time of a day from `from` on, which has no parts of a second.
    fn time_from(&self, from: Time) -> Option<Time> {
        let [hour, minute, second] = parts(from);
        let in_minute = || Some((hour, minute, self.seconds.from(second)?));
        let in_hour = || Some((hour, self.minutes.from(minute + 1)?, self.seconds.from(0)?));
        let later = || Some((self.hours.from(hour + 1)?, self.minutes.from(0)?, self.seconds.from(0)?));
        let found = if !self.hours.has(hour) {
            later()
        } else if !self.minutes.has(minute) {
            in_hour().or_else(later)
        } else {
            in_minute().or_else(in_hour).or_else(later)
        };
        time(found?)
    }

    /// The last time of a day up to `to`.
    fn time_up_to(&self, to: Time) -> Option<Time> {
        let [hour, minute, second] = parts(to);
        let in_minute = || Some((hour, minute, self.seconds.below(second + 1)?));
        let in_hour = || Some((hour, self.minutes.below(minute)?, self.seconds.below(60)?));
        let earlier = || Some((self.hours.below(hour)?, self.minutes.below(60)?, self.seconds.below(60)?));
        let found = if !self.hours.has(hour) {
            earlier()
        } else if !self.minutes.has(minute) {
            in_hour().or_else(earlier)
        } else {
            in_minute().or_else(in_hour).or_else(earlier)
        };
        time(found?)
    }
}

/// Hour, minute and second: never negative, and below 60.
fn parts(time: Time) -> [u8; 3] {
    [time.hour(), time.minute(), time.second()].map(|part| part as u8)
}

fn time((hour, minute, second): (u8, u8, u8)) -> Option<Time> {
    Time::new(hour as i8, minute as i8, second as i8, 0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The matches from the first day of 2024 on, a leap year that begins on a Monday, and back again.
    #[test]
    fn expressions_mean_times() {
        let check = |text: &str, expected: &[&str]| {
            let cron = Cron::parse(text).expect(text);
            let (from, to): (DateTime, DateTime) =
                ("2024-01-01T00:00:00".parse().expect("time"), "2065-01-01T00:00:00".parse().expect("time"));
            let mut at = from;
            let mut found = Vec::new();
            while found.len() < expected.len() {
                let next = cron.first_from(at, to).expect(text);
                found.push(next);
                at = next.checked_add(jiff::SignedDuration::from_secs(1)).expect("time");
            }
            let shown: Vec<_> = found.iter().map(|t| t.strftime("%m-%d %H:%M:%S").to_string()).collect();
            assert_eq!(shown, expected, "{text}");
            let mut at = *found.last().expect("one");
            for earlier in found.iter().rev() {
                assert_eq!(cron.last_up_to(at, from), Some(*earlier), "{text} back from {at}");
                at = earlier.checked_sub(jiff::SignedDuration::from_secs(1)).expect("time");
            }
            assert_eq!(cron.last_up_to(at, from), None, "{text}");
        };
        check("* * * * *", &["01-01 00:00:00", "01-01 00:01:00", "01-01 00:02:00"]);
        check("*/20 * * * * *", &["01-01 00:00:00", "01-01 00:00:20", "01-01 00:00:40", "01-01 00:01:00"]);
        check("15,45 30 12 * * *", &["01-01 12:30:15", "01-01 12:30:45", "01-02 12:30:15"]);
        check("30 2 * * *", &["01-01 02:30:00", "01-02 02:30:00"]);
        check("59 23 31 12 *", &["12-31 23:59:00", "12-31 23:59:00"]);
        check("0-10/5 1,13 * * *", &["01-01 01:00:00", "01-01 01:05:00", "01-01 01:10:00", "01-01 13:00:00"]);
        check("23 0-23/12 * * *", &["01-01 00:23:00", "01-01 12:23:00", "01-02 00:23:00"]);
        check("0 0 1 */3 *", &["01-01 00:00:00", "04-01 00:00:00", "07-01 00:00:00"]);
        check("0 0 31 * *", &["01-31 00:00:00", "03-31 00:00:00", "05-31 00:00:00"]);
        check("0 0 L * *", &["01-31 00:00:00", "02-29 00:00:00", "03-31 00:00:00", "04-30 00:00:00"]);
        check("0 0 15,L 2-3 *", &["02-15 00:00:00", "02-29 00:00:00", "03-15 00:00:00", "03-31 00:00:00"]);
        check("0 0 L * 1-5", &["01-01 00:00:00", "01-02 00:00:00"]);
        check("0 22 * * 1-5", &["01-01 22:00:00", "01-02 22:00:00", "01-03 22:00:00", "01-04 22:00:00"]);
        check("5 4 * * sun", &["01-07 04:05:00", "01-14 04:05:00"]);
        check("5 4 * * 0", &["01-07 04:05:00"]);
        check("5 4 * * 7", &["01-07 04:05:00"]);
        check("0 0 * * Fri-Sun", &["01-05 00:00:00", "01-06 00:00:00", "01-07 00:00:00", "01-12 00:00:00"]);
        check("0 0 ? * 3", &["01-03 00:00:00", "01-10 00:00:00"]);
        check("0 0 3 ? ?", &["01-03 00:00:00", "02-03 00:00:00"]);
        check("0 0 * oct *", &["10-01 00:00:00", "10-02 00:00:00"]);
        check("0 0 29 2 *", &["02-29 00:00:00", "02-29 00:00:00"]);
        // crontab(5): either day is enough when both are restricted.
        check("30 4 1,15 * 5", &["01-01 04:30:00", "01-05 04:30:00", "01-12 04:30:00", "01-15 04:30:00"]);
        check("0 0 13 * FRI", &["01-05 00:00:00", "01-12 00:00:00", "01-13 00:00:00"]);
        // With a star in one of them, both must match.
        check("0 0 */2 * MON", &["01-01 00:00:00", "01-15 00:00:00", "01-29 00:00:00", "02-05 00:00:00"]);
        check("0 0 1 * */2", &["02-01 00:00:00", "06-01 00:00:00"]);
        check("@yearly", &["01-01 00:00:00", "01-01 00:00:00"]);
        check("@ANNUALLY", &["01-01 00:00:00", "01-01 00:00:00"]);
        check("@monthly", &["01-01 00:00:00", "02-01 00:00:00"]);
        check("@weekly", &["01-07 00:00:00", "01-14 00:00:00"]);
        check("@daily", &["01-01 00:00:00", "01-02 00:00:00"]);
        check("@midnight", &["01-01 00:00:00", "01-02 00:00:00"]);
        check("@hourly", &["01-01 00:00:00", "01-01 01:00:00"]);
    }
}
