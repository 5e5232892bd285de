//! One field of a cron expression: `*`, `5`, `MON-FRI`, `0-59/15`, and lists of them.

/// A set of the numbers 0 to 63.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Set(u64);

impl Set {
    /// Adds `first`, and every `step`th number after it up to `last`. Both are below 64, and `step` is not 0.
    fn add(&mut self, first: u8, last: u8, step: u8) {
        for n in (first..=last).step_by(usize::from(step)) {
            self.0 |= 1 << n;
        }
    }

    /// With 7, which is Sunday as 0 is, as 0.
    pub fn sunday_is_0(self) -> Self {
        Self((self.0 | self.0 >> 7 & 1) & 0x7f)
    }

    pub fn has(self, n: u8) -> bool {
        n < 64 && self.0 >> n & 1 == 1
    }

    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// The smallest member that is at least `n`.
    pub fn from(self, n: u8) -> Option<u8> {
        let rest = self.0 & u64::MAX.checked_shl(u32::from(n))?;
        (rest != 0).then_some(rest.trailing_zeros() as u8)
    }

    /// The largest member that is less than `n`.
    pub fn below(self, n: u8) -> Option<u8> {
        let rest = self.0 & !u64::MAX.checked_shl(u32::from(n)).unwrap_or(0);
        (rest != 0).then(|| 63 - rest.leading_zeros() as u8)
    }
}

/// What a field may hold.
pub(super) struct Field {
    pub name: &'static str,
    /// The numbers that may stand there.
    first: u8,
    last: u8,
    /// The longest step: one to the same value again.
    step_max: u8,
    /// Words for the numbers from `first` on.
    words: &'static [&'static str],
    example: &'static str,
}

const NO_WORDS: &[&str] = &[];
const MONTHS: &[&str] = &["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const DAYS: &[&str] = &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

impl Field {
    pub const SECOND: Self = Self::new("second", 0, 59, 60, NO_WORDS, "0, 0,30 or */10");
    pub const MINUTE: Self = Self::new("minute", 0, 59, 60, NO_WORDS, "0, 0,30 or */15");
    pub const HOUR: Self = Self::new("hour", 0, 23, 24, NO_WORDS, "3, 8-18 or */2");
    pub const DAY: Self = Self::new("day of the month", 1, 31, 31, NO_WORDS, "1, 1,15 or L (the last)");
    pub const MONTH: Self = Self::new("month", 1, 12, 12, MONTHS, "1, 1-6 or JAN");
    pub const WEEKDAY: Self = Self::new("day of the week", 0, 7, 7, DAYS, "1-5, MON-FRI or SUN (0 and 7 are SUN)");

    const fn new(
        name: &'static str,
        first: u8,
        last: u8,
        step_max: u8,
        words: &'static [&'static str],
        example: &'static str,
    ) -> Self {
        Self { name, first, last, step_max, words, example }
    }

    /// Reads the field, in time linear in its length; the error says what is wrong and gives an example.
    pub fn parse(&self, text: &str) -> Result<Values, String> {
        let mut values = Values::default();
        for element in text.split(',') {
            self.element(element, &mut values).map_err(|why| format!("{why}; examples: {}", self.example))?;
        }
        Ok(values)
    }

    fn element(&self, element: &str, values: &mut Values) -> Result<(), String> {
        if element.eq_ignore_ascii_case("L") && self.name == Self::DAY.name {
            values.last_day = true;
            return Ok(());
        }
        let (range, step) = match element.split_once('/') {
            Some((range, step)) => (range, Some(self.step(step)?)),
            None => (element, None),
        };
        let (first, last) = if matches!(range, "*" | "?") {
            values.star = true;
            (self.first, self.last)
        } else if let Some((first, last)) = range.split_once('-') {
            self.range(first, last)?
        } else if step.is_some() {
            return Err(format!("the step of `{element}` has no range: write `{range}-{}` before it", self.last));
        } else {
            let n = self.number(range)?;
            (n, n)
        };
        values.whole |= first == self.first && last == self.last;
        values.set.add(first, last, step.unwrap_or(1));
        Ok(())
    }

    fn range(&self, first_text: &str, last_text: &str) -> Result<(u8, u8), String> {
        let first = self.number(first_text)?;
        let mut last = self.number(last_text)?;
        // SAT-SUN: as the end of a range, Sunday is the seventh day.
        if self.name == Self::WEEKDAY.name && last == 0 && first > 0 {
            last = 7;
        }
        if first > last {
            return Err(format!("the range `{first_text}-{last_text}` runs backwards: write it as two, with a comma"));
        }
        Ok((first, last))
    }

    fn step(&self, text: &str) -> Result<u8, String> {
        digits(text)
            .filter(|step| (1..=self.step_max).contains(step))
            .ok_or_else(|| format!("the step `{text}` is not 1 to {}", self.step_max))
    }

    fn number(&self, text: &str) -> Result<u8, String> {
        let mut words = (self.first..).zip(self.words);
        if let Some((n, _)) = words.find(|(_, word)| text.eq_ignore_ascii_case(word)) {
            return Ok(n);
        }
        digits(text)
            .filter(|n| (self.first..=self.last).contains(n))
            .ok_or_else(|| format!("`{text}` is not {} to {}", self.first, self.last))
    }
}

/// A number of digits alone: `+5` is none.
fn digits(text: &str) -> Option<u8> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// What a field holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Values {
    pub set: Set,
    /// Whether there is a `*` in it, or a `?`.
    pub star: bool,
    /// Whether an element goes from the first number to the last, at whatever step.
    pub whole: bool,
    /// Whether there is an `L` in it, for the last day of the month.
    pub last_day: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_know_their_neighbours() {
        let mut set = Set::default();
        set.add(0, 59, 20);
        set.add(63, 63, 1);
        assert_eq!([0, 1, 20, 41, 63].map(|n| set.from(n)), [Some(0), Some(20), Some(20), Some(63), Some(63)]);
        assert_eq!([0, 1, 20, 21, 64].map(|n| set.below(n)), [None, Some(0), Some(0), Some(20), Some(63)]);
        assert_eq!((set.from(64), Set::default().from(0), Set::default().below(64)), (None, None, None));
        assert!(set.has(40) && !set.has(41) && !set.has(200));
    }

    #[test]
    fn fields_hold_what_they_say() {
        let check = |field: &Field, text: &str, expected: &[u8]| {
            let values = field.parse(text).expect(text);
            let members: Vec<_> = (0..64).filter(|n| values.set.has(*n)).collect();
            assert_eq!(members, expected, "{text}");
        };
        check(&Field::HOUR, "5", &[5]);
        check(&Field::HOUR, "05,7-9,7", &[5, 7, 8, 9]);
        check(&Field::HOUR, "*/8", &[0, 8, 16]);
        check(&Field::HOUR, "1-9/4,22-23", &[1, 5, 9, 22, 23]);
        check(&Field::HOUR, "*/24", &[0]);
        check(&Field::MONTH, "jan,Oct-DEC/2", &[1, 10, 12]);
        check(&Field::WEEKDAY, "fri-sun", &[5, 6, 7]);
        check(&Field::WEEKDAY, "SUN-tue", &[0, 1, 2]);
        check(&Field::WEEKDAY, "6-7", &[6, 7]);
        check(&Field::DAY, "?", &(1..=31).collect::<Vec<_>>());
        check(&Field::DAY, "l", &[]);
    }
}
