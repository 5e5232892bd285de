//! What the probes cost, as the application feels it: the processor time of a piece of work, with them and without, in turn.
//!
//! The kernel's own statistics of programs leave their dispatch out, and a benchmark is of another load. So the probes are
//! taken away and put back for short windows while the server does its work, and the windows are compared in pairs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nexus_collector::{Level, ProbesError};
use nexus_core::kernel::KernelMode;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::kernel::Kernel;

/// A window with less work in it says nothing.
const WORK_MIN: u64 = 20;

/// After a change, until what was under way has ended.
const SETTLE: Duration = Duration::from_millis(20);

/// The levels that are compared, the one to compare with first.
const LEVELS: [Level; 3] = [Level::Off, Level::Counts, Level::Full];

/// Pieces of work that the server has done: events taken in, invocations that ended.
#[derive(Debug, Default)]
pub struct Work(AtomicU64);

impl Work {
    /// One more is done.
    pub fn done(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a level of the probes costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// The level.
    pub mode: KernelMode,
    /// Processor time of a piece of work, the median of the windows.
    pub cpu_ns: f64,
    /// How much more that is than without the probes, the median of the pairs: 0.02 is two in a hundred.
    pub ratio: f64,
}

/// A measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overhead {
    /// Processor time of a piece of work without the probes.
    pub off_cpu_ns: f64,
    /// What they cost more, by how much they tell.
    pub costs: Vec<Cost>,
    /// Rounds of windows, one for each level.
    pub rounds: u32,
    /// Pieces of work that were done meanwhile.
    pub work: u64,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum OverheadError {
    /// There are no probes.
    #[error("there is nothing to measure: {0}")]
    Off(String),
    /// The server does too little.
    #[error("the server did {0} pieces of work in a window, which says nothing; measure while it works, or for longer")]
    Idle(u64),
    /// It is being measured already.
    #[error("it is being measured already; try again when that is done")]
    Busy,
    /// It was told to stop.
    #[error("the server is stopping")]
    Stopped,
    /// The probes cannot be taken away or put back.
    #[error(transparent)]
    Probes(#[from] ProbesError),
}

/// Measures for about so long, one measurement at a time. Then the probes are as they were; where there is a budget, they
/// tell as much as it pays for.
pub async fn measure(
    kernel: &Kernel,
    work: &Work,
    total: Duration,
    rounds: u32,
    stop: &CancellationToken,
) -> Result<Overhead, OverheadError> {
    let Some(probes) = kernel.probes() else {
        let (_, reason) = kernel.mode();
        return Err(OverheadError::Off(reason.unwrap_or_default().into_owned()));
    };
    let Ok(_alone) = kernel.measuring.try_lock() else { return Err(OverheadError::Busy) };
    let window = (total / (rounds * LEVELS.len() as u32)).saturating_sub(SETTLE);
    // First with everything as it is: a server that does too little is left alone.
    let before = work.count();
    wait(window, stop).await?;
    if work.count() - before < WORK_MIN {
        return Err(OverheadError::Idle(work.count() - before));
    }
    let measured = windows(&probes, work, window, rounds, stop).await;
    // Whatever happened: as it was before.
    let (level, reason) = kernel.wanted();
    tokio::task::block_in_place(|| probes.set_level(level, &reason))?;
    let (cpu, done) = measured?;
    let mut costs = Vec::new();
    for (at, mode) in [(1, KernelMode::Counts), (2, KernelMode::Full)] {
        let [(_, scheduling), _, (_, page_faults), _] = probes.families();
        if scheduling.is_err() && page_faults.is_err() && mode == KernelMode::Full {
            continue;
        }
        let ratio = median(cpu.iter().map(|round| round[at] / round[0] - 1.0));
        costs.push(Cost { mode, cpu_ns: median(cpu.iter().map(|round| round[at])), ratio });
    }
    let off_cpu_ns = median(cpu.iter().map(|round| round[0]));
    let overhead = Overhead { off_cpu_ns, costs, rounds, work: done };
    kernel.set_overhead(overhead.clone());
    if let Some(ratio_max) = kernel.overhead_max {
        let level = level_for(&overhead, ratio_max);
        tracing::info!(costs = ?overhead.costs, ratio_max, ?level, "what the probes cost");
        let reason = format!("the probes would cost more than `kernel_overhead_max`, {ratio_max}");
        kernel.want(level, if level == Level::Full { String::new() } else { reason })?;
    }
    Ok(overhead)
}

async fn wait(time: Duration, stop: &CancellationToken) -> Result<(), OverheadError> {
    tokio::select! {
        () = stop.cancelled() => Err(OverheadError::Stopped),
        () = tokio::time::sleep(time) => Ok(()),
    }
}

/// The processor time of a piece of work in each window, a row for each round, and how much work there was.
async fn windows(
    probes: &nexus_collector::Probes,
    work: &Work,
    window: Duration,
    rounds: u32,
    stop: &CancellationToken,
) -> Result<(Vec<[f64; 3]>, u64), OverheadError> {
    let mut cpu = Vec::new();
    let began = work.count();
    for round in 0..rounds as usize {
        let mut row = [0.0; 3];
        for turn in 0..LEVELS.len() {
            // Each is first, second and last as often as the others: the load may drift.
            let at = (round + turn) % LEVELS.len();
            let reason = "taken away for a moment, to measure what the probes cost";
            tokio::task::block_in_place(|| probes.set_level(LEVELS[at], reason))?;
            tokio::time::sleep(SETTLE).await;
            let (before, done) = (process_cpu_ns(), work.count());
            wait(window, stop).await?;
            let (spent, done) = (process_cpu_ns() - before, work.count() - done);
            if done < WORK_MIN {
                return Err(OverheadError::Idle(done));
            }
            row[at] = spent as f64 / done as f64;
        }
        cpu.push(row);
    }
    Ok((cpu, work.count() - began))
}

fn process_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// The most that is told for a budget, where the measurement says so; nothing where even counting costs more. What is not
/// there to be told costs nothing.
pub fn level_for(overhead: &Overhead, ratio_max: f64) -> Level {
    let fits = |mode: KernelMode| overhead.costs.iter().any(|cost| cost.mode == mode && cost.ratio <= ratio_max);
    let only_counts = !overhead.costs.iter().any(|cost| cost.mode == KernelMode::Full);
    if fits(KernelMode::Full) || (only_counts && fits(KernelMode::Counts)) {
        Level::Full
    } else if fits(KernelMode::Counts) {
        Level::Counts
    } else {
        Level::Off
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_the_most_that_the_budget_pays_for() {
        let cost = |mode, ratio| Cost { mode, cpu_ns: 1.0, ratio };
        let measured = |counts, full| Overhead {
            off_cpu_ns: 1.0,
            costs: vec![cost(KernelMode::Counts, counts), cost(KernelMode::Full, full)],
            rounds: 1,
            work: 100,
        };
        assert_eq!(level_for(&measured(0.01, 0.02), 0.02), Level::Full);
        assert_eq!(level_for(&measured(0.01, 0.03), 0.02), Level::Counts);
        assert_eq!(level_for(&measured(0.03, 0.03), 0.02), Level::Off);
        assert_eq!(level_for(&measured(-0.01, -0.02), 0.0), Level::Full);
        let mut only_counts = measured(0.01, 0.0);
        only_counts.costs.pop();
        assert_eq!(level_for(&only_counts, 0.02), Level::Full, "nothing is taken away that is not there");
        assert_eq!(level_for(&only_counts, 0.001), Level::Off);
    }

    #[test]
    fn medians() {
        let of = |values: &[f64]| median(values.iter().copied());
        assert!((of(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((of(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
    }
}
