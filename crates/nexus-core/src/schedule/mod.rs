//! Schedules: events that the clock makes, by cron expressions in a time zone, or once.
//!
//! Everything here is a function of what it is given: a schedule, and the time that the caller passes. Who runs it asks
//! [`Schedule::next_after`] how long to sleep and [`Schedule::due`] what to run on waking, and appends what
//! [`Schedule::event`] makes. Two runtimes that do so make the same event with the same id, so that one of them counts.
//!
//! **Expressions** are those of crontab(5) of Debian's cron (Vixie cron 3.0pl1): minute, hour, day of the month, month,
//! day of the week; with a sixth field before them, seconds. [`Cron::parse`] has the grammar. As there, `0 0 13 * 5`
//! runs on every 13th *and* on every Friday: when both day fields are restricted, either of them is enough; a field
//! that holds a `*` is not restricted, and then both must match (`0 0 */2 * 1` runs on Mondays with an odd date).
//! It is code of our own because none of the libraries that were tried (`croner` 4.0.3, `cronexpr` 1.7.0, `jiff-cron`
//! 0.3.0) gives the ticks below where clocks change, and each brings an older jiff beside ours.
//!
//! **When clocks change**, cron(8) tells two kinds of job apart, and so does this module:
//! - An expression with *fixed hours* (`30 2 * * *`, `*/15 1-3 * * *`) is about that time of the day. What would fall
//!   into the time that is skipped in spring runs once, all of it together, at the first instant after the gap: a
//!   nightly job is not left out. What falls into the time that comes twice in autumn runs the first time only: a
//!   nightly job does not run twice.
//! - An expression with *open hours* (`*`, `*/2`, `0-23/2`: an element from midnight to midnight) is about the passing
//!   of time. It runs whenever the clock on the wall shows such a time: nothing is made up for in spring, and the
//!   repeated hour in autumn runs as any other.
//!
//! The hours alone decide. In cron(8) a `*` in the minutes opens a job too; then `*/15 2 * * *` would not run at all on
//! one day and twice as often on another, and `0-59/15` would differ from `*/15`. There is also no bound of three hours
//! above which a change counts as a correction of the clock: here a zone's rules are all that changes. So a day that a
//! zone leaves out (Apia, 2011-12-30) is a gap like any other. Ticks are instants: two times that fall upon one, as
//! 2:30 and 3:00 of `0,30 2,3 * * *` in spring, are one tick.
//!
//! **Time zones** are those of the IANA, by name, from the machine's database (`/usr/share/zoneinfo`, or `TZDIR`),
//! which is the newer one as a rule; what is not there is taken from the copy in the binary (200 KiB). A zone's rules
//! are read when the schedule is, and kept as long as it. Machines whose databases differ agree on all ticks but those
//! that the difference moves.

mod civil;
mod config;
mod cron;
mod due;
mod field;
#[cfg(test)]
mod properties;
mod stretch;
#[cfg(test)]
mod summer_time;
mod zone;

pub use config::{DATA_BYTES_MAX, InvalidSchedule, Missed, SCHEDULES_MAX, Schedule, TICK_TYPE, TickEvent, When};
pub use cron::{Cron, InvalidCron, TEXT_BYTES_MAX};
pub use due::{GRACE, MISSED_MAX, tick_event_id};
pub use stretch::SEARCH_DAYS;
pub use zone::{UnknownZone, ZONE_BYTES_MAX, Zone};
