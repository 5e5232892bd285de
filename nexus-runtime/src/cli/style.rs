//! Colour where there is a terminal, and numbers that can be read.

use std::fmt::Arguments;
use std::io::{ErrorKind, IsTerminal, Write};

/// A line of data on standard output. Unlike `println!` it ends the program quietly when nobody reads on (`nexus … | head`),
/// and with an error where it cannot be written.
macro_rules! say {
    () => { say!("") };
    ($($arg:tt)*) => { $crate::cli::style::line(format_args!($($arg)*)) };
}
pub(super) use say;

/// What `say!` does.
pub fn line(text: Arguments<'_>) {
    let Err(error) = writeln!(std::io::stdout().lock(), "{text}") else { return };
    if error.kind() == ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    eprintln!("nexus: standard output: {error}");
    std::process::exit(1);
}

/// Whether standard output is a terminal that wants colour.
pub fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Text in a colour of the terminal's palette.
pub fn paint(text: &str, code: u8) -> String {
    if colour() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A status, green, yellow or red.
pub fn status(status: &str) -> String {
    let code = match status {
        "ok" | "done" | "identical" => 32,
        "pending" | "running" | "diverged" => 33,
        _ => 31,
    };
    paint(status, code)
}

/// A duration with three digits: `1.23 ms`.
pub fn duration(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}

/// Text that fits: cut with an ellipsis.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Rows of text under a head, in columns as wide as they need to be.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    let width = |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|c| visible(c)).chain([head[i].len()]).max();
    let widths: Vec<usize> = (0..head.len()).map(|i| width(i).unwrap_or(0)).collect();
    let line = |cells: Vec<String>| {
        let mut text = String::new();
        for (i, cell) in cells.iter().enumerate() {
            text.push_str(cell);
            if i + 1 < cells.len() {
                text.push_str(&" ".repeat(widths[i].saturating_sub(visible(cell)) + 2));
            }
        }
        say!("{}", text.trim_end());
    };
    line(head.iter().map(|h| paint(h, 1)).collect());
    rows.iter().for_each(|row| line(row.clone()));
}

/// Characters that are seen: without the codes for colour.
fn visible(text: &str) -> usize {
    let (mut count, mut escaped) = (0, false);
    for c in text.chars() {
        match (escaped, c) {
            (false, '\x1b') => escaped = true,
            (true, 'm') => escaped = false,
            (true, _) => {}
            (false, _) => count += 1,
        }
    }
    count
}

/// Makes text of a guest or a client safe for a terminal: no codes but our own.
pub fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        for (ns, text) in
            [(7, "7 ns"), (1_234, "1.23 µs"), (56_789, "56.8 µs"), (123_456, "123 µs"), (2_500_000_000, "2.50 s")]
        {
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn codes_for_colour_have_no_width() {
        assert_eq!(visible("\x1b[31mred\x1b[0m"), 3);
        assert_eq!(safe("a\x1b[31mb\n"), "a\u{fffd}[31mb\u{fffd}");
    }
}
