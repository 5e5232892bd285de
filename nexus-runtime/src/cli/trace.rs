//! `nexus trace`: a waterfall in the terminal, with the kernel's rows.

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::client::{Client, encoded, print_json};
use super::style::say;
use super::{Done, Failure, Output, style};

/// Columns of the bars.
const BAR: usize = 40;
/// Columns of the names.
const NAME: usize = 36;

/// Arguments of `nexus trace`.
#[derive(Args)]
pub struct TraceArgs {
    /// Of an event, a trace or an invocation
    id: String,
}

pub async fn run(args: TraceArgs, client: &Client) -> Done {
    let trace_id = resolve(&args.id, client).await?;
    let trace = client.get(&format!("/v1/traces/{trace_id}")).await?;
    match client.output {
        Output::Json => print_json(&trace),
        Output::Text => {
            say!("trace {trace_id}");
            draw(&spans(&trace));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The trace that an id leads to. A trace's id is 32 hexadecimal digits, which an event's may be too: both are tried.
pub async fn resolve(id: &str, client: &Client) -> Result<String, Failure> {
    let trace = id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if trace && client.find(&format!("/v1/traces/{id}")).await?.is_some() {
        return Ok(id.to_owned());
    }
    let found = match client.find(&format!("/v1/events/{}", encoded(id))).await? {
        Some(event) => Some(event),
        None if id.len() == 36 => client.find(&format!("/v1/invocations/{}", encoded(id))).await?,
        None => None,
    };
    let trace = found.as_ref().and_then(|f| f["trace_id"].as_str()).map(str::to_owned);
    trace.ok_or_else(|| Failure::not_found(format!("there is no event, trace or invocation {id}")))
}

struct Span {
    id: String,
    parent: String,
    name: String,
    start: u64,
    end: u64,
    error: Option<String>,
    attributes: BTreeMap<String, Value>,
    slow: Vec<(String, u64)>,
}

fn number(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0)
}

fn attributes(value: &Value) -> BTreeMap<String, Value> {
    let one = |a: &Value| {
        let value = a["value"].as_object()?.values().next()?.clone();
        Some((a["key"].as_str()?.to_owned(), value))
    };
    value.as_array().into_iter().flatten().filter_map(one).collect()
}

fn spans(trace: &Value) -> Vec<Span> {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let mut spans = Vec::new();
    for resource in list(&trace["resourceSpans"]) {
        for scope in list(&resource["scopeSpans"]) {
            for span in list(&scope["spans"]) {
                let text = |key: &str| span[key].as_str().unwrap_or_default().to_owned();
                let failed = span["status"]["code"] == 2 || span["status"]["code"] == "STATUS_CODE_ERROR";
                let events = list(&span["events"]);
                let slow = events.iter().filter(|e| e["name"] == "syscall").map(|e| {
                    let a = attributes(&e["attributes"]);
                    let name = a.get("syscall.name").and_then(Value::as_str).unwrap_or_default().to_owned();
                    (name, a.get("duration_ns").map_or(0, number))
                });
                spans.push(Span {
                    id: text("spanId"),
                    parent: text("parentSpanId"),
                    name: text("name"),
                    start: number(&span["startTimeUnixNano"]),
                    end: number(&span["endTimeUnixNano"]),
                    error: failed.then(|| span["status"]["message"].as_str().unwrap_or_default().to_owned()),
                    attributes: attributes(&span["attributes"]),
                    slow: slow.collect(),
                });
            }
        }
    }
    spans.sort_by_key(|s| s.start);
    spans
}

fn draw(spans: &[Span]) {
    let (Some(begin), Some(end)) = (spans.iter().map(|s| s.start).min(), spans.iter().map(|s| s.end).max()) else {
        return;
    };
    let mut children: HashMap<&str, Vec<&Span>> = HashMap::new();
    let known: std::collections::HashSet<&str> = spans.iter().map(|s| s.id.as_str()).collect();
    for span in spans {
        // A parent that is somewhere else makes this a root here.
        let parent = if known.contains(span.parent.as_str()) { span.parent.as_str() } else { "" };
        children.entry(parent).or_default().push(span);
    }
    let mut stack: Vec<(&Span, usize)> = children.get("").into_iter().flatten().rev().map(|s| (*s, 0)).collect();
    while let Some((span, depth)) = stack.pop() {
        draw_span(span, depth, begin, end - begin);
        stack.extend(children.get(span.id.as_str()).into_iter().flatten().rev().map(|s| (*s, depth + 1)));
    }
}

fn draw_span(span: &Span, depth: usize, begin: u64, whole: u64) {
    let scale =
        |at: u64| if whole == 0 { 0 } else { ((at - begin) as u128 * BAR as u128 / u128::from(whole)) as usize };
    let (from, to) = (scale(span.start).min(BAR - 1), scale(span.end).min(BAR));
    let filled = (to - from.min(to)).max(1);
    let bar = format!("{}{}{}", " ".repeat(from), "█".repeat(filled), " ".repeat(BAR - (from + filled).min(BAR)));
    let bar = if span.error.is_some() { style::paint(&bar, 31) } else { style::paint(&bar, 36) };
    let name = style::cut(&format!("{}{}", "  ".repeat(depth), style::safe(&span.name)), NAME);
    let mut notes = Vec::new();
    if span.attributes.get("faas.coldstart") == Some(&Value::Bool(true)) {
        notes.push("cold".to_owned());
    }
    if span.attributes.contains_key("nexus.replay.of") {
        notes.push("replay".to_owned());
    }
    if let Some(status) = span.attributes.get("http.response.status_code") {
        notes.push(status.as_str().map_or_else(|| status.to_string(), str::to_owned));
    }
    if let Some(url) = span.attributes.get("url.full").and_then(Value::as_str) {
        notes.push(style::safe(url));
    }
    if let Some(error) = &span.error {
        notes.push(style::paint(&style::safe(error), 31));
    }
    say!("{name:<NAME$} {bar} {:>9}  {}", style::duration(span.end.saturating_sub(span.start)), notes.join("  "));
    kernel_rows(span, depth);
}

/// The kernel's rows of an invocation's span.
fn kernel_rows(span: &Span, depth: usize) {
    let Some(mode) = span.attributes.get("nexus.kernel.mode").and_then(Value::as_str) else { return };
    let indent = "  ".repeat(depth + 1);
    if mode == "off" {
        let reason = span.attributes.get("nexus.kernel.reason").and_then(Value::as_str).unwrap_or("unknown");
        return say!("{indent}{}", style::paint(&format!("kernel: not watched ({})", style::safe(reason)), 2));
    }
    // OTLP's JSON has 64-bit numbers as text.
    let signed = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
    let time = |name: &str| span.attributes.get(&format!("nexus.time.{name}")).and_then(signed);
    if let Some(parts) = times(time) {
        say!("{}", style::paint(&format!("{indent}kernel: {parts}"), 2));
    }
    let rows = numbered(span, "nexus.kernel.syscall.");
    if rows.is_empty() {
        say!("{indent}{}", style::paint("kernel: no system call", 2));
    }
    for (name, numbers) in rows {
        let of = |what: &str| numbers.get(what).copied().unwrap_or(0);
        let errors = if of("errors") > 0 { format!("  {} errors", of("errors")) } else { String::new() };
        let text = format!(
            "{indent}kernel: {name} ×{}  {}  longest {}{errors}",
            of("count"),
            style::duration(of("time_ns")),
            style::duration(of("max_ns"))
        );
        say!("{}", style::paint(&text, 2));
    }
    for (name, numbers) in numbered(span, "nexus.kernel.import.") {
        let of = |what: &str| numbers.get(what).copied().unwrap_or(0);
        let text = format!("{indent}import: {name} ×{}  {}", of("count"), style::duration(of("time_ns")));
        say!("{}", style::paint(&text, 2));
    }
    for (name, ns) in &span.slow {
        say!("{}", style::paint(&format!("{indent}slow: {name} {}", style::duration(*ns)), 33));
    }
    if span.attributes.get("nexus.kernel.complete") == Some(&Value::Bool(false)) {
        say!("{indent}{}", style::paint("kernel: incomplete, something was missed", 33));
    }
}

/// The attributes `PREFIXNAME.WHAT` of a span, by name: the longest first.
fn numbered<'a>(span: &'a Span, prefix: &str) -> Vec<(&'a str, BTreeMap<&'a str, u64>)> {
    let mut all: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for (key, value) in &span.attributes {
        if let Some((name, what)) = key.strip_prefix(prefix).and_then(|k| k.rsplit_once('.')) {
            all.entry(name).or_default().insert(what, number(value));
        }
    }
    let mut rows: Vec<_> = all.into_iter().collect();
    rows.sort_by_key(|(_, numbers)| std::cmp::Reverse(numbers.get("time_ns").copied()));
    rows
}

/// Where the time went, in one line, if that is known.
fn times(part: impl Fn(&str) -> Option<i64>) -> Option<String> {
    let names = [
        ("on CPU", "on_cpu_ns"),
        ("in its own code", "guest_ns"),
        ("in system calls", "system_ns"),
        ("ready", "run_queue_ns"),
        ("blocked", "off_cpu_ns"),
        ("on disks", "io_wait_ns"),
        ("awaiting", "waiting_ns"),
        ("not explained", "residual_ns"),
    ];
    part("on_cpu_ns")?;
    let shown = names.iter().filter_map(|(label, name)| {
        let ns = part(name)?;
        let sign = if ns < 0 { "-" } else { "" };
        // What is nothing says nothing, but for the parts that are always asked for.
        (ns != 0 || *name == "on_cpu_ns").then(|| format!("{label} {sign}{}", style::duration(ns.unsigned_abs())))
    });
    Some(shown.collect::<Vec<_>>().join(" · "))
}

/// The kernel's account of an invocation or a program, as a table.
pub fn print_kernel(kernel: &Value, indent: &str) {
    if kernel["mode"] == "off" || kernel["mode"].is_null() {
        let reason = kernel["reason"].as_str().unwrap_or("unknown");
        return say!("{indent}kernel     not watched: {}", style::safe(reason));
    }
    let calls = kernel["syscalls"].as_object().cloned().unwrap_or_default();
    let sum = |what: &str| calls.values().map(|c| number(&c[what])).sum::<u64>();
    say!("{indent}kernel     {} system calls, {}", sum("count"), style::duration(sum("total_ns")));
    if let Some(parts) = times(|name| kernel[name].as_i64()) {
        say!("{indent}time       {parts}");
    }
    if let (Some(minor), Some(major)) =
        (kernel["page_faults"]["minor"].as_u64(), kernel["page_faults"]["major"].as_u64())
    {
        let switches = number(&kernel["context_switches"]);
        say!("{indent}           {minor} minor and {major} major page faults, {switches} context switches");
    }
    let mut rows: Vec<_> = calls.iter().collect();
    rows.sort_by_key(|(_, c)| std::cmp::Reverse(number(&c["total_ns"])));
    for (name, c) in rows {
        let errors = if number(&c["errors"]) > 0 { format!("  {} errors", c["errors"]) } else { String::new() };
        say!(
            "{indent}           {name:<18} {:>8}  {:>9}  longest {:>9}{errors}",
            c["count"].to_string(),
            style::duration(number(&c["total_ns"])),
            style::duration(number(&c["max_ns"])),
        );
    }
    if kernel["complete"] == false {
        say!("{indent}           incomplete: something was missed (lost {})", kernel["lost"]);
    }
}
