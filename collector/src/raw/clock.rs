//! The clock of marks: the time-stamp counter where the kernel itself trusts it as its clock, else the monotonic clock.
//!
//! Reading the counter takes 10 ns where the clock's system call without a switch takes 25, and every mark looks twice.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};

/// What the kernel took for its clock: it checks that the counters of all CPUs agree and never stop before it takes them.
const CLOCK_SOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

/// How long a rate is used before it is measured again, in ticks: a second, at a gigahertz.
const RATE_TICKS_MAX: u64 = 1_000_000_000;

/// Ticks of the clock of marks. Only differences mean something, and only [`Rate`] makes time of them.
#[inline]
pub(crate) fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    if counter_is_trusted() {
        // SAFETY: the instruction exists on every x86-64, and reads a register.
        return unsafe { std::arch::x86_64::_rdtsc() };
    }
    monotonic_ns()
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn counter_is_trusted() -> bool {
    static TRUSTED: OnceLock<bool> = OnceLock::new();
    *TRUSTED.get_or_init(|| clock_source() == "tsc")
}

/// Whether looking at the clock makes no system call.
pub(crate) fn clock_is_read_without_a_call() -> bool {
    // The sources that the kernel's vDSO can read.
    ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"].contains(&clock_source().as_str())
}

fn clock_source() -> String {
    std::fs::read_to_string(CLOCK_SOURCE).unwrap_or_default().trim().to_owned()
}

/// Now on the monotonic clock, which is the probes' too, in nanoseconds.
#[inline]
pub(crate) fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// The rate of the clock of marks, measured from a moment on: the later it is asked for, the more exact.
#[derive(Debug)]
pub(crate) struct Rate {
    since: (u64, u64),
    /// Ticks of a nanosecond as last measured, as the bits of an `f64`, and until when that is good enough, in ticks.
    measured: AtomicU64,
    fresh_until: AtomicU64,
}

impl Rate {
    /// Begins to measure. To be asked some milliseconds later at the earliest.
    pub(crate) fn begin() -> Self {
        Self { since: both(), measured: AtomicU64::new(0), fresh_until: AtomicU64::new(0) }
    }

    /// Ticks of a nanosecond.
    pub(crate) fn ticks_per_ns(&self) -> f64 {
        let now = ticks();
        if now < self.fresh_until.load(Ordering::Acquire) {
            return f64::from_bits(self.measured.load(Ordering::Relaxed));
        }
        let (ticks, ns) = both();
        let (ticks, ns) = (ticks.saturating_sub(self.since.0), ns.saturating_sub(self.since.1));
        let measured = if ns == 0 { 1.0 } else { ticks as f64 / ns as f64 };
        self.measured.store(measured.to_bits(), Ordering::Relaxed);
        // As long again as it has been measured, up to a second or so: it becomes more exact with time.
        self.fresh_until.store(now + ticks.min(RATE_TICKS_MAX), Ordering::Release);
        measured
    }
}

/// The same moment on both clocks, as nearly as three readings of one around the other can tell.
fn both() -> (u64, u64) {
    let readings = (0..3).map(|_| {
        let before = ticks();
        let ns = monotonic_ns();
        let after = ticks();
        (after.saturating_sub(before), (before + (after.saturating_sub(before)) / 2, ns))
    });
    readings.min_by_key(|(took, _)| *took).map_or((0, 0), |(_, both)| both)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn ticks_are_time() {
        let rate = Rate::begin();
        let (instant, before) = (Instant::now(), ticks());
        std::thread::sleep(Duration::from_millis(50));
        let (after, elapsed) = (ticks(), instant.elapsed());
        let ns = (after - before) as f64 / rate.ticks_per_ns();
        let off = (ns - elapsed.as_nanos() as f64).abs();
        // Whatever may come between two readings, it is not a fiftieth of it.
        assert!(off < 1_000_000.0, "{ns} ns by ticks, {elapsed:?} by the clock");
    }
}
