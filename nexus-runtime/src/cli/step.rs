//! `nexus replay ID --step`: a replay, call by call of the host.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use serde_json::Value;

use super::style::{self, say};

/// Walks through the calls of a result; all of them are printed where nobody can be asked.
pub fn walk(result: &Value) {
    let steps = result["steps"].as_array().map_or(&[][..], Vec::as_slice);
    if steps.is_empty() {
        say!("  no call of the host was answered");
        return;
    }
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        for at in 0..steps.len() {
            show(result, steps, at);
        }
        return;
    }
    let left = result["host_call"]["call"].as_u64().and_then(|call| usize::try_from(call).ok());
    let mut at = 0;
    loop {
        show(result, steps, at);
        match ask(steps.len(), left) {
            Some(Go::To(wanted)) => at = wanted.min(steps.len() - 1),
            Some(Go::By(by)) => at = at.saturating_add_signed(by).min(steps.len() - 1),
            None => return,
        }
    }
}

enum Go {
    To(usize),
    By(isize),
}

/// Where to go; `None`: away.
fn ask(calls: usize, left: Option<usize>) -> Option<Go> {
    let help = "Enter: next, b: back, a number: there, e: the end, d: where it left the recording, q: quit";
    loop {
        // Where it cannot be printed nobody can answer.
        let _ = write!(std::io::stdout(), "[0 to {}; ? helps] ", calls - 1);
        let _ = std::io::stdout().flush();
        let mut line = String::new();
        if !std::io::stdin().lock().read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            return None;
        }
        match line.trim() {
            "" | "n" => return Some(Go::By(1)),
            "b" | "p" => return Some(Go::By(-1)),
            "e" => return Some(Go::To(usize::MAX)),
            "d" => match left {
                Some(call) => return Some(Go::To(call)),
                None => say!("it did not leave the recording"),
            },
            "q" => return None,
            other => match other.parse() {
                Ok(call) => return Some(Go::To(call)),
                Err(_) => say!("{help}"),
            },
        }
    }
}

fn show(result: &Value, steps: &[Value], at: usize) {
    let text = |v: &Value| style::cut(&style::safe(v.as_str().unwrap_or_default()), 1000);
    let step = &steps[at];
    let before = at.checked_sub(1).map(|before| &steps[before]);
    let of =
        |key: &str| (before.map_or(0, |before| before[key].as_u64().unwrap_or(0)), step[key].as_u64().unwrap_or(0));
    let (printed_before, printed) = of("printed");
    let lines = result["printed"].as_array().map_or(&[][..], Vec::as_slice);
    let range = usize::try_from(printed_before).unwrap_or(0)..usize::try_from(printed).unwrap_or(0);
    for line in lines.get(range).into_iter().flatten() {
        say!("      | {}", text(&line["line"]));
    }
    let (memory_before, memory) = of("memory_bytes");
    let grown = memory.saturating_sub(memory_before);
    let grown = if grown > 0 { format!("  (memory {} KiB, +{})", memory >> 10, grown >> 10) } else { String::new() };
    say!("{:>5} {} {}{grown}", step["call"].to_string(), text(&step["import"]), text(&step["asked"]));
    let answer = text(&step["answer"]);
    if !answer.is_empty() {
        say!("      = {answer}");
    }
}
