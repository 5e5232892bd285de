//! What happens where clocks change, zone by zone.

use jiff::Timestamp;

use super::{Cron, Zone};

/// The ticks after `from`, as the zone's clocks show them; the same ticks are found looking back.
fn check(text: &str, zone: &str, from: &str, expected: &[&str]) {
    let (cron, zone) = (Cron::parse(text).expect(text), Zone::parse(zone).expect(zone));
    let from: Timestamp = from.parse().expect(from);
    let mut ticks: Vec<Timestamp> = Vec::new();
    while ticks.len() < expected.len() {
        let last = ticks.last().copied().unwrap_or(from);
        ticks.push(cron.next_after(&zone, last).expect(text));
    }
    let shown: Vec<_> =
        ticks.iter().map(|t| zone.rules().to_offset(*t).to_datetime(*t).strftime("%m-%d %H:%M").to_string()).collect();
    assert_eq!(shown, expected, "{text} in {zone}");
    for (i, tick) in ticks.iter().enumerate() {
        let before = if i == 0 { from } else { ticks[i - 1] };
        assert_eq!(cron.newest(&zone, before, *tick), Some(*tick), "{text} in {zone}");
        let nearly = tick.checked_sub(jiff::SignedDuration::from_nanos(1)).expect("time");
        assert_eq!(cron.newest(&zone, before, nearly), None, "{text} in {zone} before {tick}");
    }
}

/// 2026-03-29, 01:00 UTC: from 02:00 to 03:00.
#[test]
fn berlin_in_spring() {
    let evening = |text, expected: &[&str]| check(text, "Europe/Berlin", "2026-03-28T22:00:00Z", expected);
    evening("30 2 * * *", &["03-29 03:00", "03-30 02:30"]);
    evening("0 2 * * *", &["03-29 03:00", "03-30 02:00"]);
    evening("59 1 * * *", &["03-29 01:59", "03-30 01:59"]);
    evening("0 3 * * *", &["03-29 03:00", "03-30 03:00"]);
    // What is skipped runs once, all together, also with what runs then anyway.
    evening("0,30 2 * * *", &["03-29 03:00", "03-30 02:00", "03-30 02:30"]);
    evening("*/15 2 * * *", &["03-29 03:00", "03-30 02:00"]);
    evening("30 2,3 * * *", &["03-29 03:00", "03-29 03:30", "03-30 02:30", "03-30 03:30"]);
    evening("0 2,3 * * *", &["03-29 03:00", "03-30 02:00", "03-30 03:00"]);
    evening("30 1-3 * * *", &["03-29 01:30", "03-29 03:00", "03-29 03:30", "03-30 01:30"]);
    // The day of the skipped time counts.
    evening("30 2 29 3 *", &["03-29 03:00"]);
    evening("30 2 * * MON", &["03-30 02:30"]);
    // Open hours are about real time.
    evening("30 * * * *", &["03-28 23:30", "03-29 00:30", "03-29 01:30", "03-29 03:30", "03-29 04:30"]);
    evening("0 */2 * * *", &["03-29 00:00", "03-29 04:00", "03-29 06:00"]);
    evening("0 0-23/2 * * *", &["03-29 00:00", "03-29 04:00"]);
    check("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:10:00Z", &["03-29 01:30", "03-29 03:00", "03-29 03:30"]);
}

/// 2026-10-25, 01:00 UTC: from 03:00 back to 02:00.
#[test]
fn berlin_in_autumn() {
    let midnight = |text, expected: &[&str]| check(text, "Europe/Berlin", "2026-10-24T22:10:00Z", expected);
    midnight("30 2 * * *", &["10-25 02:30", "10-26 02:30"]);
    midnight("0 3 * * *", &["10-25 03:00", "10-26 03:00"]);
    midnight("0 2,3 * * *", &["10-25 02:00", "10-25 03:00", "10-26 02:00"]);
    midnight("30 1-3 * * *", &["10-25 01:30", "10-25 02:30", "10-25 03:30"]);
    midnight("*/30 2 * * *", &["10-25 02:00", "10-25 02:30", "10-26 02:00"]);
    midnight("30 * * * *", &["10-25 00:30", "10-25 01:30", "10-25 02:30", "10-25 02:30", "10-25 03:30"]);
    midnight("0 */2 * * *", &["10-25 02:00", "10-25 02:00", "10-25 04:00"]);
    let cron = Cron::parse("30 2 * * *").expect("cron");
    let zone = Zone::parse("Europe/Berlin").expect("zone");
    let next = |from: &str| cron.next_after(&zone, from.parse().expect(from)).expect("tick").to_string();
    assert_eq!(next("2026-10-24T22:00:00Z"), "2026-10-25T00:30:00Z", "the first one");
    // Wherever in the repeated hour one asks, the second one is none.
    assert_eq!(next("2026-10-25T00:45:00Z"), "2026-10-26T01:30:00Z");
    assert_eq!(next("2026-10-25T01:00:00Z"), "2026-10-26T01:30:00Z");
    assert_eq!(next("2026-10-25T01:15:00Z"), "2026-10-26T01:30:00Z");
}

/// 2026-03-08, 07:00 UTC: from 02:00 to 03:00. 2026-11-01, 06:00 UTC: from 02:00 back to 01:00.
#[test]
fn new_york() {
    let spring = |text, expected: &[&str]| check(text, "America/New_York", "2026-03-08T05:10:00Z", expected);
    spring("15 2 * * *", &["03-08 03:00", "03-09 02:15"]);
    spring("15 * * * *", &["03-08 00:15", "03-08 01:15", "03-08 03:15"]);
    spring("0 12 * * SUN", &["03-08 12:00", "03-15 12:00"]);
    let autumn = |text, expected: &[&str]| check(text, "America/New_York", "2026-11-01T04:10:00Z", expected);
    autumn("30 1 * * *", &["11-01 01:30", "11-02 01:30"]);
    autumn("0 2 * * *", &["11-01 02:00", "11-02 02:00"]);
    autumn("@hourly", &["11-01 01:00", "11-01 01:00", "11-01 02:00"]);
    autumn("30 */6 1 11 *", &["11-01 00:30", "11-01 06:30", "11-01 12:30"]);
}

/// Half an hour: 2026-10-03, 15:30 UTC from 02:00 to 02:30; 2026-04-04, 15:00 UTC from 02:00 back to 01:30.
#[test]
fn lord_howe() {
    let spring = |text, expected: &[&str]| check(text, "Australia/Lord_Howe", "2026-10-03T14:40:00Z", expected);
    spring("15 2 * * *", &["10-04 02:30", "10-05 02:15"]);
    spring("30 2 * * *", &["10-04 02:30", "10-05 02:30"]);
    spring("45 2 * * *", &["10-04 02:45", "10-05 02:45"]);
    spring("*/15 * * * *", &["10-04 01:15", "10-04 01:30", "10-04 01:45", "10-04 02:30", "10-04 02:45"]);
    spring("0 * * * *", &["10-04 03:00", "10-04 04:00"]);
    let autumn = |text, expected: &[&str]| check(text, "Australia/Lord_Howe", "2026-04-04T14:10:00Z", expected);
    autumn("45 1 * * *", &["04-05 01:45", "04-06 01:45"]);
    autumn("15 1 * * *", &["04-05 01:15", "04-06 01:15"]);
    autumn("*/15 * * * *", &["04-05 01:15", "04-05 01:30", "04-05 01:45", "04-05 01:30", "04-05 01:45", "04-05 02:00"]);
    autumn("0 2 * * *", &["04-05 02:00", "04-06 02:00"]);
}

/// At midnight: Cairo 2026-04-24 from 00:00 to 01:00, 2026-10-30 from 00:00 back to 23:00 of the day before; Asuncion
/// 2023-10-01 from 00:00 to 01:00.
#[test]
fn at_midnight() {
    let spring = |text, expected: &[&str]| check(text, "Africa/Cairo", "2026-04-23T20:30:00Z", expected);
    spring("0 0 * * *", &["04-24 01:00", "04-25 00:00"]);
    spring("@weekly", &["04-26 00:00"]);
    spring("0 0 * * FRI", &["04-24 01:00", "05-01 00:00"]);
    spring("0 0 24 4 *", &["04-24 01:00"]);
    spring("0 0 * * THU", &["04-30 00:00"]);
    spring("0 */24 * * *", &["04-24 01:00", "04-25 00:00"]);
    spring("@hourly", &["04-23 23:00", "04-24 01:00", "04-24 02:00"]);
    let autumn = |text, expected: &[&str]| check(text, "Africa/Cairo", "2026-10-29T19:10:00Z", expected);
    autumn("30 23 * * *", &["10-29 23:30", "10-30 23:30"]);
    autumn("0 0 * * *", &["10-30 00:00", "10-31 00:00"]);
    autumn("30 * * * *", &["10-29 22:30", "10-29 23:30", "10-29 23:30", "10-30 00:30"]);
    check("@daily", "America/Asuncion", "2023-09-30T12:00:00Z", &["10-01 01:00", "10-02 00:00"]);
    check("@monthly", "America/Asuncion", "2023-09-30T12:00:00Z", &["10-01 01:00", "11-01 00:00"]);
}

/// No summer time, and 30 minutes off: 18:30 UTC is midnight.
#[test]
fn kolkata() {
    let check = |text, expected: &[&str]| check(text, "Asia/Kolkata", "2026-03-28T18:00:00Z", expected);
    check("0 0 * * *", &["03-29 00:00", "03-30 00:00", "03-31 00:00"]);
    check("@hourly", &["03-29 00:00", "03-29 01:00"]);
    check("30 2 L * *", &["03-31 02:30", "04-30 02:30"]);
}

/// A day that never was, 2011-12-30, and a zone that leaves its summer time for a month in spring.
#[test]
fn stranger_ones() {
    let apia = |text, expected: &[&str]| check(text, "Pacific/Apia", "2011-12-29T12:00:00Z", expected);
    apia("0 12 * * *", &["12-29 12:00", "12-31 00:00", "12-31 12:00"]);
    apia("0 12 30 12 *", &["12-31 00:00", "12-30 12:00"]);
    apia("0 */12 * * *", &["12-29 12:00", "12-31 00:00", "12-31 12:00"]);
    // Casablanca, 2026: back on February 15th at 03:00, forward on March 22nd at 02:00.
    check("30 2 * * *", "Africa/Casablanca", "2026-02-15T00:30:00Z", &["02-15 02:30", "02-16 02:30"]);
    check("30 2 * * *", "Africa/Casablanca", "2026-03-21T12:00:00Z", &["03-22 03:00", "03-23 02:30"]);
}
