//! `cli`: a command that reads one event on its standard input and says what it saw.
//!
//! `cli-p1` is the same source, built as a preview-1 module.

use std::io::{Read, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

/// Prints `{"type", "length"}` on standard output and a line on standard error, and exits with `data.exit_code`. With `data.emit`
/// it prints those events instead, completed to whole CloudEvents.
fn main() -> ExitCode {
    let mut input = Vec::new();
    if let Err(e) = std::io::stdin().read_to_end(&mut input) {
        eprintln!("standard input can't be read: {e}");
        return ExitCode::from(74);
    }
    let event: Value = match serde_json::from_slice(&input) {
        Ok(event) => event,
        Err(e) => {
            eprintln!("this is no event: {e}");
            return ExitCode::from(65);
        }
    };
    eprintln!("cli got {} bytes", input.len());

    let result = match event["data"]["emit"].as_array() {
        Some(wanted) => wanted.iter().enumerate().map(|(at, wanted)| complete(wanted, &event["id"], at)).collect(),
        None => json!({ "type": event["type"], "length": input.len() }),
    };
    if let Err(e) = writeln!(std::io::stdout(), "{result}") {
        eprintln!("standard output can't be written: {e}");
        return ExitCode::from(74);
    }
    ExitCode::from(event["data"]["exit_code"].as_u64().and_then(|code| code.try_into().ok()).unwrap_or(0))
}

/// A whole CloudEvent from the members that a test cared to give.
fn complete(event: &Value, cause: &Value, at: usize) -> Value {
    let cause = cause.as_str().unwrap_or("none");
    let mut whole =
        json!({ "specversion": "1.0", "id": format!("{cause}-{at}"), "source": "/cli", "type": "cli.emitted" });
    for (name, value) in event.as_object().into_iter().flatten() {
        whole[name] = value.clone();
    }
    whole
}
