//! Tables in Markdown, as docs/benchmarks.md has them.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

/// A table that is printed when it is whole.
pub struct Table {
    title: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table under a title.
    pub fn new(title: &str, head: &[&str]) -> Self {
        Self { title: title.into(), head: head.iter().map(|h| (*h).to_owned()).collect(), rows: Vec::new() }
    }

    /// Another row.
    pub fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }

    /// Prints it.
    pub fn print(&self) {
        println!("\n**{}**\n", self.title);
        println!("| {} |", self.head.join(" | "));
        println!("|{}", "---|".repeat(self.head.len()));
        for row in &self.rows {
            println!("| {} |", row.join(" | "));
        }
        println!();
    }
}

/// The median.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// The value that so many of a hundred do not exceed.
pub fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(at).copied().unwrap_or(f64::NAN)
}

/// Microseconds, or milliseconds where they are many.
pub fn us(value: f64) -> String {
    if value >= 1000.0 { format!("{:.2} ms", value / 1000.0) } else { format!("{value:.0} µs") }
}

/// What the numbers were measured on.
pub fn machine() -> Result<()> {
    let cpus = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let model = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = model
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map_or("unknown", |m| m.trim_start_matches([' ', '\t', ':']));
    println!("{cpus} CPUs ({model}), Linux {}, load generator on the same machine", kernel.trim());
    Ok(())
}

/// What one write of 4 KiB with its fdatasync costs on this disk: below that no durable answer can be.
pub fn disk_floor(dir: &Path) -> Result<String> {
    const WRITES: u32 = 300;
    let path = dir.join("floor");
    let mut file = std::fs::File::create(&path)?;
    let block = [1u8; 4096];
    let began = Instant::now();
    for _ in 0..WRITES {
        file.write_all(&block)?;
        file.sync_data()?;
    }
    let each = began.elapsed() / WRITES;
    std::fs::remove_file(&path)?;
    Ok(format!("a write of 4 KiB and its fdatasync take {}", us(each.as_secs_f64() * 1e6)))
}

#[cfg(test)]
mod tests {
    use super::{median, percentile};

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(hundred.clone(), 99), percentile(hundred, 50)), (99.0, 50.0));
        assert_eq!(percentile(vec![7.0], 99), 7.0);
        assert!(percentile(Vec::new(), 99).is_nan());
    }
}
