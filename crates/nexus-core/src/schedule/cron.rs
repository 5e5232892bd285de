//! A cron expression: what it says, and whether it can ever come true.

use std::fmt;
use std::str::FromStr;

use jiff::civil::date;

use super::field::{Field, Set};

/// The longest expression, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;

/// The macros of crontab(5), but `@reboot`, which is no time.
const MACROS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// An expression that is none; says which part is wrong, how, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {why}")]
pub struct InvalidCron {
    /// The field, as in `day of the month`, or `expression` for the whole.
    pub part: &'static str,
    /// What is wrong with it.
    pub why: String,
}

/// A cron expression. What it says is a time on a wall; a [`super::Zone`] makes it instants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    text: String,
    pub(super) seconds: Set,
    pub(super) minutes: Set,
    pub(super) hours: Set,
    pub(super) days: Set,
    pub(super) last_day: bool,
    pub(super) months: Set,
    pub(super) weekdays: Set,
    /// Whether one of the two day fields is enough; else both must match.
    pub(super) either_day: bool,
    /// Whether the hours are open, as the module says; else they are fixed.
    pub(super) open_hours: bool,
}

impl Cron {
    /// Reads an expression of at most [`TEXT_BYTES_MAX`] bytes, in time linear in its length.
    ///
    /// Five fields, minute first, or six, second first; between them spaces or tabs. A field is a list, with commas, of
    /// `*`, numbers, and ranges `1-5`; a range and `*` may have a step: `*/15`, `8-18/2`. Months and days of the week
    /// have names of three letters, in any case, and 0 and 7 are both Sunday. `?` is `*`. `L`, among the days of the
    /// month, is the last. Instead of fields: `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`, `@midnight`,
    /// `@hourly`.
    ///
    /// An expression that never comes true, as on the 30th of February, is an error. So is what other programs mean
    /// something else by, or nothing: a range that runs backwards, a step without a range (`5/15`), a step that is
    /// longer than the field (`*/90`), years, `W`, `#`, `@reboot`.
    pub fn parse(text: &str) -> Result<Self, InvalidCron> {
        let whole = |why: String| InvalidCron { part: "expression", why };
        if text.len() > TEXT_BYTES_MAX {
            return Err(whole(format!("has {} bytes; {TEXT_BYTES_MAX} is the most", text.len())));
        }
        let fields = match text.trim_ascii() {
            name if name.starts_with('@') => expand(name).map_err(whole)?,
            fields => fields,
        };
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let (second, fields) = match fields.as_slice() {
            [second, fields @ ..] if fields.len() == 5 => (*second, fields),
            fields => ("0", fields),
        };
        let [minute, hour, day, month, weekday] = fields else {
            return Err(whole(format!(
                "has {} fields, not 5 (minute, hour, day of the month, month, day of the week) or 6 (second first)",
                fields.len()
            )));
        };
        let read = |field: Field, text: &str| field.parse(text).map_err(|why| InvalidCron { part: field.name, why });
        let hours = read(Field::HOUR, hour)?;
        let (days, weekdays) = (read(Field::DAY, day)?, read(Field::WEEKDAY, weekday)?);
        let cron = Self {
            text: text.trim_ascii().to_owned(),
            seconds: read(Field::SECOND, second)?.set,
            minutes: read(Field::MINUTE, minute)?.set,
            hours: hours.set,
            days: days.set,
            last_day: days.last_day,
            months: read(Field::MONTH, month)?.set,
            weekdays: weekdays.set.sunday_is_0(),
            either_day: !days.star && !weekdays.star,
            // An hour alone is fixed however it is written: `*/24` is midnight.
            open_hours: hours.whole && hours.set.len() > 1,
        };
        if !cron.comes_true() {
            return Err(whole("never comes true: no such day is in any of its months".to_owned()));
        }
        Ok(cron)
    }

    /// The expression as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// From 2000 on, every date of a leap year has met every day of the week after 28 years.
    fn comes_true(&self) -> bool {
        self.first_from(date(2000, 1, 1).at(0, 0, 0, 0), date(2028, 1, 1).at(0, 0, 0, 0)).is_some()
    }
}

fn expand(name: &str) -> Result<&'static str, String> {
    match MACROS.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)) {
        Some((_, fields)) => Ok(fields),
        None => Err(format!("`{name}` is not known; known are {}", MACROS.map(|(known, _)| known).join(", "))),
    }
}

impl FromStr for Cron {
    type Err = InvalidCron;
    fn from_str(text: &str) -> Result<Self, InvalidCron> {
        Self::parse(text)
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named_with_its_field() {
        let check = |text: &str, part: &str, why: &str| {
            let error = Cron::parse(text).expect_err(text);
            assert_eq!(error.part, part, "{text}");
            assert!(error.why.contains(why), "{text}: {error}");
        };
        check("", "expression", "has 0 fields");
        check("   ", "expression", "has 0 fields");
        check("* * * *", "expression", "has 4 fields");
        check("0 0 0 1 1 * 2027", "expression", "has 7 fields");
        check(&format!("0 0 * * {}", "1,".repeat(130)), "expression", "256");
        check("@reboot", "expression", "@hourly");
        check("@daily 5", "expression", "`@daily 5` is not known");
        check("60 * * * *", "minute", "`60` is not 0 to 59");
        check("60 * * * * *", "second", "0 to 59");
        check("-1 * * * *", "minute", "`` is not");
        check("+1 * * * *", "minute", "`+1`");
        check("1, * * * *", "minute", "`` is not");
        check("999999999999999999999 * * * *", "minute", "is not 0 to 59");
        check("1-5/0 * * * *", "minute", "step `0` is not 1 to 60");
        check("*/90 * * * *", "minute", "step `90`");
        check("*/ * * * *", "minute", "step `` is not");
        check("5/15 * * * *", "minute", "`5-59` before it");
        check("1-2-3 * * * *", "minute", "`2-3`");
        check("1/2/3 * * * *", "minute", "step `2/3`");
        check("* 24 * * *", "hour", "0 to 23");
        check("* 22-2 * * *", "hour", "write it as two");
        check("0 0 0 * *", "day of the month", "1 to 31");
        check("0 0 15W * *", "day of the month", "L (the last)");
        check("0 0 L-3 * *", "day of the month", "`L` is not");
        check("0 0 * 13 *", "month", "1 to 12");
        check("0 0 * MON *", "month", "JAN");
        check("0 0 * * 8", "day of the week", "0 to 7");
        check("0 0 * * L", "day of the week", "`L`");
        check("0 0 * * 5#3", "day of the week", "`5#3`");
        check("0 0 * * JAN", "day of the week", "SUN");
        check("0 0 * * ü", "day of the week", "`ü`");
    }

    #[test]
    fn what_never_comes_true_is_refused() {
        let check = |text: &str, possible: bool| {
            assert_eq!(Cron::parse(text).is_ok(), possible, "{text}: {:?}", Cron::parse(text));
        };
        check("0 0 30 2 *", false);
        check("0 0 30,31 FEB *", false);
        check("0 0 31 2,4,6,9,11 *", false);
        check("0 0 30 2 MON", true);
        check("0 0 30 2 */2", false);
        check("0 0 29 2 *", true);
        check("0 0 29 2 */7", true);
        check("0 0 L 2 *", true);
        check("0 0 31 2-4 *", true);
    }

    #[test]
    fn hours_are_fixed_or_open() {
        let check = |text: &str, open: bool| assert_eq!(Cron::parse(text).expect(text).open_hours, open, "{text}");
        check("30 2 * * *", false);
        check("*/15 1-3 * * *", false);
        check("* 2 * * *", false);
        check("0 8-18/2 * * *", false);
        check("0 */24 * * *", false);
        check("@daily", false);
        check("@hourly", true);
        check("30 * * * *", true);
        check("0 */2 * * *", true);
        check("0 0-23/2 * * *", true);
        check("*/10 * * * * *", true);
    }

    #[test]
    fn expressions_are_shown_as_they_were_written() {
        for text in ["0 3 * * *", "@Daily", "*/5\t0  3 * JAN-mar ?"] {
            assert_eq!(Cron::parse(&format!(" {text} ")).expect(text).to_string(), text);
        }
    }
}
