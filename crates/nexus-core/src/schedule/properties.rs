//! Properties of every expression, against a model that looks at each minute.

use std::collections::BTreeSet;

use jiff::civil::DateTime;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use proptest::sample::select;

use super::{Cron, Zone};

const MINUTE: SignedDuration = SignedDuration::from_secs(60);

/// A field, and the values that it means.
#[derive(Clone, Debug)]
struct Part {
    text: String,
    values: BTreeSet<i8>,
    star: bool,
}

/// A field with values `first..=last`; often a star, or with few values.
fn part(first: i8, last: i8) -> impl Strategy<Value = Part> {
    let range = move |text: String, a: i8, b: i8, step: i8, star: bool| Part {
        text,
        values: (a..=b).step_by(step as usize).collect(),
        star,
    };
    let single = (first..=last).prop_map(move |n| range(n.to_string(), n, n, 1, false));
    let step = (1..=last).prop_map(move |step| range(format!("*/{step}"), first, last, step, true));
    let between = (first..=last, first..=last, 1..=last).prop_map(move |(a, b, step)| {
        let (a, b) = (a.min(b), a.max(b));
        range(format!("{a}-{b}/{step}"), a, b, step, false)
    });
    let element = prop_oneof![3 => single, 1 => between, 1 => step];
    let list = proptest::collection::vec(element, 1..4).prop_map(|elements| Part {
        text: elements.iter().map(|e| e.text.as_str()).collect::<Vec<_>>().join(","),
        values: elements.iter().flat_map(|e| e.values.iter().copied()).collect(),
        star: elements.iter().any(|e| e.star),
    });
    prop_oneof![2 => Just(range("*".into(), first, last, 1, true)), 3 => list]
}

/// An expression as a model has it: sets of values.
#[derive(Clone, Debug)]
struct Model {
    minute: Part,
    hour: Part,
    day: Part,
    month: Part,
    weekday: Part,
}

impl Model {
    fn any() -> impl Strategy<Value = Self> {
        // Every month, so that there is no day that never comes, and nearly always something to compare.
        let month = select(vec!["*", "?", "1-12", "jan-DEC"]);
        let month = month.prop_map(|text| Part { text: text.into(), values: (1..=12).collect(), star: false });
        // The hours in which clocks change somewhere.
        let changing = proptest::collection::vec(select(vec![0_i8, 1, 2, 3, 23]), 1..4).prop_map(|hours| Part {
            text: hours.iter().map(i8::to_string).collect::<Vec<_>>().join(","),
            values: hours.into_iter().collect(),
            star: false,
        });
        let hour = prop_oneof![part(0, 23), changing];
        (part(0, 59), hour, part(1, 31), month, part(0, 6)).prop_map(|(minute, hour, day, month, weekday)| Self {
            minute,
            hour,
            day,
            month,
            weekday,
        })
    }

    fn text(&self) -> String {
        [&self.minute, &self.hour, &self.day, &self.month, &self.weekday].map(|p| p.text.as_str()).join(" ")
    }

    fn open_hours(&self) -> bool {
        let whole = |e: &str| e.split('/').next().is_some_and(|range| matches!(range, "*" | "0-23"));
        self.hour.values.len() > 1 && self.hour.text.split(',').any(whole)
    }

    fn matches(&self, wall: DateTime) -> bool {
        let day = self.day.values.contains(&wall.day());
        let weekday = self.weekday.values.contains(&wall.weekday().to_sunday_zero_offset());
        let days = if self.day.star || self.weekday.star { day && weekday } else { day || weekday };
        self.minute.values.contains(&wall.minute())
            && self.hour.values.contains(&wall.hour())
            && self.month.values.contains(&wall.month())
            && days
    }

    /// Whether the instant, a whole minute, is a tick. Looks at what the clocks show now and showed a minute ago.
    fn ticks_at(&self, zone: &Zone, instant: Timestamp) -> bool {
        let wall = |t: Timestamp| zone.rules().to_offset(t).to_datetime(t);
        let now = wall(instant);
        if self.open_hours() {
            return self.matches(now);
        }
        // The first instant that shows this time, where there are two.
        let first = zone.rules().to_ambiguous_timestamp(now).earlier().expect("a time");
        let mut skipped = wall(instant - MINUTE) + MINUTE;
        while skipped < now {
            if self.matches(skipped) {
                return true;
            }
            skipped += MINUTE;
        }
        first == instant && self.matches(now)
    }
}

/// Zones, and instants shortly before their clocks change, or do not.
fn places() -> impl Strategy<Value = (Zone, Timestamp)> {
    let places = select(vec![
        ("UTC", "2024-02-27T22:00:00Z"),
        ("Asia/Kolkata", "2026-12-31T10:00:00Z"),
        ("Europe/Berlin", "2026-03-28T12:00:00Z"),
        ("Europe/Berlin", "2026-10-24T12:00:00Z"),
        ("America/New_York", "2026-03-07T18:00:00Z"),
        ("America/New_York", "2026-10-31T18:00:00Z"),
        ("Australia/Lord_Howe", "2026-10-03T03:00:00Z"),
        ("Australia/Lord_Howe", "2026-04-04T03:00:00Z"),
        ("Africa/Cairo", "2026-04-23T12:00:00Z"),
        ("Africa/Cairo", "2026-10-29T12:00:00Z"),
        ("America/Asuncion", "2023-09-30T12:00:00Z"),
        ("Pacific/Apia", "2011-12-30T00:00:00Z"),
    ]);
    (places, 0..1440_i64).prop_map(|((zone, at), minutes)| {
        let at: Timestamp = at.parse().expect(at);
        (Zone::parse(zone).expect(zone), at + SignedDuration::from_mins(minutes))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn no_tick_is_skipped_and_none_made_up(model in Model::any(), (zone, from) in places()) {
        let text = model.text();
        let cron = Cron::parse(&text).expect(&text);
        let to = from + SignedDuration::from_hours(36);
        let mut expected = Vec::new();
        let mut at = from + MINUTE;
        while at <= to {
            if model.ticks_at(&zone, at) {
                expected.push(at);
            }
            at += MINUTE;
        }
        let mut forward = Vec::new();
        let mut at = from;
        while let Some(tick) = cron.next_after(&zone, at).filter(|tick| *tick <= to) {
            prop_assert!(tick > at, "{} is not after {}", tick, at);
            forward.push(tick);
            at = tick;
        }
        prop_assert_eq!(&forward, &expected, "{} in {} from {}", &text, &zone, from);
        let mut backward = Vec::new();
        let mut at = to;
        while let Some(tick) = cron.newest(&zone, from, at) {
            prop_assert!(tick <= at && tick > from);
            backward.push(tick);
            at = tick - SignedDuration::from_nanos(1);
        }
        backward.reverse();
        prop_assert_eq!(&backward, &expected, "{} in {} back to {}", &text, &zone, from);
    }

    #[test]
    fn with_seconds_it_is_the_same_but_for_them(model in Model::any(), second in 0..60_i64, (zone, from) in places()) {
        let cron = Cron::parse(&model.text()).expect("cron");
        let later = Cron::parse(&format!("{second} {}", model.text())).expect("cron");
        // A tick that makes up for a gap is at its end, whatever the second.
        if model.open_hours() {
            let tick = cron.next_after(&zone, from).expect("tick");
            let seconds = SignedDuration::from_secs(second);
            prop_assert_eq!(later.next_after(&zone, from + seconds), Some(tick + seconds));
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,300}") {
        let _ = Cron::parse(&text);
        let _ = Zone::parse(&text);
    }

    #[test]
    fn nothing_like_an_expression_makes_the_parser_or_the_search_panic(
        text in "[0-9*/,?LSUNJAmon@ -]{0,12} [0-9*/,-]{1,6} [0-9L*/,?-]{1,6} [0-9JANfeb*/,-]{1,6} [0-7SUNmon*/,-]{1,6}",
        (zone, from) in places(),
    ) {
        if let Ok(cron) = Cron::parse(&text) {
            let tick = cron.next_after(&zone, from).expect(&text);
            prop_assert!(tick > from);
            prop_assert_eq!(cron.newest(&zone, from, tick), Some(tick));
        }
    }
}

#[test]
fn texts_of_any_length_are_refused_or_read_at_once() {
    // Each of them would take minutes, were the work more than linear in what is within the bound.
    for text in [
        "*,".repeat(500_000),
        " ".repeat(1_000_000),
        "0-59/1,".repeat(200_000),
        format!("{} * * * *", ["*/1"; 60].join(",")),
        format!("* * * * {}", "1".repeat(240)),
        "@".repeat(256),
        "\u{1F552}".repeat(64),
    ] {
        for _ in 0..1000 {
            let _ = Cron::parse(&text);
        }
    }
    assert!(Cron::parse(&format!("{} * * * *", ["*/1"; 60].join(","))).is_ok());
}
