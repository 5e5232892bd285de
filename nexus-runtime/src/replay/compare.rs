//! What differs between two runs.

use std::num::NonZeroU64;

use nexus_core::journal::{Header, Journal};
use nexus_core::kernel::{KernelAccount, Syscalls};
use nexus_core::outcome::{InvocationStatus, LogLine, Outcome};
use nexus_core::record::NewRecord;
use nexus_engine::Replayed;
use serde::Serialize;
use serde_json::{Value, json};

use super::request::{Cost, Costs, ReplayResult, Verdict};
use crate::line::Delivered;

/// System calls by which something outside of the process can be reached or changed. Guests have none of them but by the host, and
/// in a replay the host answers from the journal.
const OUTWARD: [&str; 46] = [
    "accept",
    "accept4",
    "bind",
    "chmod",
    "chown",
    "connect",
    "copy_file_range",
    "creat",
    "execve",
    "execveat",
    "fallocate",
    "fchmod",
    "fchmodat",
    "fchown",
    "fchownat",
    "fork",
    "ftruncate",
    "futimesat",
    "io_uring_enter",
    "link",
    "linkat",
    "listen",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "open",
    "openat",
    "openat2",
    "pwrite64",
    "pwritev",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "sendfile",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "socket",
    "symlink",
    "symlinkat",
    "truncate",
    "unlink",
    "unlinkat",
    "utimensat",
];

/// Lines that are shown of what a guest had printed when it left the recording: the last ones.
const PRINTED_MAX: usize = 100;

/// How the two runs were to be alike.
pub(super) enum Expected<'a> {
    /// In everything: the same code on the same event with the same answers.
    Exactly(&'a Journal),
    /// In what they came to.
    InEffect,
}

/// What differs, the first thing first.
pub(super) fn compare(
    before: Option<&Outcome>,
    emitted_before: Option<&[NewRecord]>,
    delivered: &Delivered,
    expected: &Expected<'_>,
    mut result: ReplayResult,
) -> ReplayResult {
    let after = &delivered.outcome;
    (result.replay_of, result.invocation_id) = (after.replay_of, Some(after.invocation_id));
    (result.verdict, result.divergence) = (Verdict::Identical, None);
    if let Some(replayed) = &delivered.replayed {
        result.answered = Some(replayed.calls);
        result.unmatched.clone_from(&replayed.unmatched);
        result.unmatched_dropped = NonZeroU64::new(replayed.unmatched_dropped);
        if let Some(mut left) = replayed.divergence.clone() {
            left.printed = after.logs[after.logs.len().saturating_sub(PRINTED_MAX)..].to_vec();
            let sides = json!({"before": left.expected, "after": left.actual});
            result.host_call = Some(left);
            return differs(result, "host call", sides);
        }
    }
    let Some(before) = before else {
        if after.status != InvocationStatus::Ok {
            result.verdict = Verdict::Failed;
            result.divergence = Some(after.error.clone().unwrap_or_else(|| after.status.as_str().to_owned()));
        }
        return result;
    };
    result.cost = Some(Box::new(Costs { before: cost(before), after: cost(after) }));
    let exactly = matches!(expected, Expected::Exactly(_));
    let emitted = || match (emitted_before, delivered.replayed.is_some()) {
        (Some(before), true) => (events(before), events(&delivered.not_emitted)),
        // They are not all there any more; how many there were is known, without one in the place of a dead letter.
        (None, true) => {
            let count = before.emitted.len() - usize::from(before.dead_letter_emitted);
            (count.into(), delivered.not_emitted.len().into())
        }
        (_, false) => (before.emitted.len().into(), after.emitted.len().into()),
    };
    let (emitted_before, emitted_after) = emitted();
    let found = different("status", &before.status.as_str(), &after.status.as_str())
        .or_else(|| exactly.then(|| different("error", &before.error, &after.error)).flatten())
        .or_else(|| different("output", &before.output, &after.output))
        .or_else(|| different("emitted", &emitted_before, &emitted_after))
        .or_else(|| match (expected, &delivered.replayed) {
            (Expected::Exactly(journal), Some(replayed)) => unlike(before, after, &journal.header, replayed),
            _ => None,
        });
    if let Some((what, before, after)) = found {
        let mut sides = json!({"before": before, "after": after});
        if what == "output" {
            // What the function said comes before how much it was.
            let data = (before["data"] != after["data"]).then(|| first_difference(&before["data"], &after["data"]));
            let at = data.map_or_else(|| first_difference(&before, &after), |at| format!("/data{at}"));
            sides["at"] = at.into();
        }
        result = differs(result, what, sides);
    }
    if exactly && after.status == InvocationStatus::Timeout && before.status != InvocationStatus::Timeout {
        // It says nothing of the function.
        result.verdict = Verdict::Failed;
        result.divergence = Some("it took many times as long as it may: is this machine much slower, or busy?".into());
    }
    if !exactly && after.status != InvocationStatus::Ok && before.status == InvocationStatus::Ok {
        result.verdict = Verdict::Failed;
    }
    result
}

/// What differs, and both sides.
type Difference = (&'static str, Value, Value);

/// As JSON only where they differ: of many replays most do not.
fn different<T: PartialEq + Serialize>(what: &'static str, before: &T, after: &T) -> Option<Difference> {
    (before != after).then(|| (what, json!(before), json!(after)))
}

/// What else is to be the same of the same code on the same event.
fn unlike(before: &Outcome, after: &Outcome, recorded: &Header, replayed: &Replayed) -> Option<Difference> {
    // What the outcome has no room for.
    if recorded.output != replayed.output {
        let hash = |hash: u64| format!("hash {hash:016x}").into();
        return Some(("output", hash(recorded.output), hash(replayed.output)));
    }
    let lines = |o: &Outcome, count: usize| {
        let line = |line: &LogLine| json!({"stream": line.stream, "line": line.line});
        Value::from(o.logs.iter().take(count).map(line).collect::<Vec<_>>())
    };
    let (said, says) = (before.logs.len(), after.logs.len());
    // One that was stopped was stopped after some of them: then, or a little later.
    let (said, says) = if recorded.cut { (said.min(says), said.min(says)) } else { (said, says) };
    let same = |(a, b): (&LogLine, &LogLine)| (a.stream, &a.line) == (b.stream, &b.line);
    if said != says || !before.logs.iter().take(said).zip(&after.logs).all(same) {
        return Some(("logs", lines(before, said), lines(after, says)));
    }
    // A guest that was stopped had got so far by then, or not.
    if recorded.cut { None } else { different("memory", &before.memory_bytes, &after.memory_bytes) }
}

/// Bytes of JSON of one side that are shown.
const SIDE_BYTES_MAX: usize = 16 << 10;

fn differs(mut result: ReplayResult, what: &str, mut sides: Value) -> ReplayResult {
    for side in ["before", "after"] {
        let text = sides[side].to_string();
        if text.len() > SIDE_BYTES_MAX {
            let end = (0..=SIDE_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            sides[side] = format!("{}… ({} bytes)", &text[..end], text.len()).into();
        }
    }
    (result.verdict, result.divergence, result.diff) = (Verdict::Diverged, Some(what.to_owned()), Some(sides));
    result
}

/// Where two JSON values differ first, as a JSON pointer (RFC 6901).
fn first_difference(before: &Value, after: &Value) -> String {
    match (before, after) {
        (Value::Object(a), Value::Object(b)) => {
            for name in a.keys().chain(b.keys()) {
                let (x, y) = (a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null));
                if x != y || a.contains_key(name) != b.contains_key(name) {
                    return format!("/{}{}", name.replace('~', "~0").replace('/', "~1"), first_difference(x, y));
                }
            }
            String::new()
        }
        (Value::Array(a), Value::Array(b)) => {
            for at in 0..a.len().max(b.len()) {
                let (x, y) = (a.get(at).unwrap_or(&Value::Null), b.get(at).unwrap_or(&Value::Null));
                if x != y || at >= a.len() || at >= b.len() {
                    return format!("/{at}{}", first_difference(x, y));
                }
            }
            String::new()
        }
        _ => String::new(),
    }
}

/// Emitted events as they are compared: without what is of the moment, and not the function's.
fn events(records: &[NewRecord]) -> Value {
    let event = |record: &NewRecord| {
        let mut event = serde_json::to_value(&record.event).unwrap_or_default();
        if let Some(event) = event.as_object_mut() {
            for name in ["time", "traceparent", "tracestate"] {
                event.remove(name);
            }
        }
        event
    };
    records.iter().map(event).collect::<Vec<_>>().into()
}

fn cost(outcome: &Outcome) -> Cost {
    let kernel = &outcome.kernel;
    let counts = |calls: &Syscalls| calls.iter().map(|(name, of)| (name.clone(), of.count)).collect();
    Cost {
        duration_ns: outcome.duration_ns,
        memory_bytes: outcome.memory_bytes,
        on_cpu_ns: kernel.on_cpu_ns,
        run_queue_ns: kernel.run_queue_ns,
        off_cpu_ns: kernel.off_cpu_ns,
        syscalls: kernel.syscalls.as_ref().map(counts),
    }
}

/// What the kernel saw of side effects in a replay that was to have none: the words of it, and whether there were any.
pub(super) fn side_effects(kernel: &KernelAccount) -> (String, bool) {
    let Some(calls) = &kernel.syscalls else {
        let why = kernel.reason.as_deref().unwrap_or("the kernel is not watched");
        return (format!("not watched: {why}"), false);
    };
    let found: Vec<String> = calls
        .iter()
        .filter(|(name, stats)| stats.count > 0 && OUTWARD.contains(&name.as_ref()))
        .map(|(name, stats)| format!("{name} x{}", stats.count))
        .collect();
    match (found.is_empty(), kernel.complete) {
        (false, _) => (found.join(", "), true),
        (true, Some(true)) => ("none".to_owned(), false),
        (true, _) => ("none was seen, but the account is incomplete".to_owned(), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_effect_is_told_by_the_call_that_made_it() {
        let account = |json: Value| serde_json::from_value::<KernelAccount>(json).expect("an account");
        let calls = |name: &str| {
            json!({
                "mode": "full", "complete": true, "lost": 0,
                "syscalls": {name: {"count": 2, "errors": 0, "total_ns": 1, "max_ns": 1}, "madvise": {"count": 9, "errors": 0, "total_ns": 1, "max_ns": 1}}
            })
        };
        for name in OUTWARD {
            assert_eq!(side_effects(&account(calls(name))), (format!("{name} x2"), true));
        }
        assert_eq!(side_effects(&account(calls("futex"))), ("none".into(), false));
        let mut partly = calls("futex");
        partly["complete"] = false.into();
        let (said, leaked) = side_effects(&account(partly));
        assert!(!leaked && said.contains("incomplete"), "unknown is not none: {said}");
        let (said, leaked) = side_effects(&KernelAccount::off("no privilege"));
        assert_eq!((said.as_str(), leaked), ("not watched: no privilege", false));
    }

    #[test]
    fn the_first_difference_is_pointed_at() {
        let check = |before: Value, after: Value, at: &str| assert_eq!(first_difference(&before, &after), at);
        check(json!({"a": 1, "b": [1, {"c": 2}]}), json!({"a": 1, "b": [1, {"c": 3}]}), "/b/1/c");
        check(json!({"a": [1]}), json!({"a": [1, 2]}), "/a/1");
        check(json!({"a/b": 1, "~": 1}), json!({"a/b": 2, "~": 1}), "/a~1b");
        check(json!({"a": null}), json!({}), "/a");
        check(json!(1), json!("1"), "");
    }
}
