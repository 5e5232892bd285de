//! Functions: what is deployed, and how it may run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::filter::Filter;
use crate::ids::{Digest, FunctionName, Version};
use crate::journal::Redact;
use crate::schedule::{self, Schedule};

/// The kinds of function, told apart by looking at the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FunctionKind {
    /// A component that exports `wasi:http/incoming-handler`.
    #[serde(rename = "wasi:http")]
    WasiHttp,
    /// A component of our own world, `nexus:function`.
    #[serde(rename = "nexus:function")]
    NexusFunction,
    /// A component that exports `wasi:cli/run`.
    #[serde(rename = "wasi:cli")]
    WasiCli,
    /// A core module of WASI preview 1 with `_start`.
    #[serde(rename = "wasi:preview1")]
    Preview1,
}

impl FunctionKind {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WasiHttp => "wasi:http",
            Self::NexusFunction => "nexus:function",
            Self::WasiCli => "wasi:cli",
            Self::Preview1 => "wasi:preview1",
        }
    }
}

/// A configuration that cannot be; names the part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {why}")]
pub struct InvalidConfig {
    /// The field, as in `limits.timeout_ms`.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

/// How a function may run, and on which events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FunctionConfig {
    /// Each trigger whose filters all match sends the event here. None: only calls by name.
    pub triggers: Vec<Trigger>,
    /// The clock's own events for the function: at most 64, each with a name of its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<Schedule>,
    /// The function's environment variables.
    pub env: BTreeMap<String, String>,
    /// Bounds of one invocation, and on how many at once.
    pub limits: Limits,
    /// What happens after a failure.
    pub retry: Retry,
    /// The hosts that the function may call: `host`, `host:port`, `host:*` or `*.host`. None by default.
    pub egress: Vec<String>,
    /// Folders of the host that the function sees. Only below those that the server allows.
    pub mounts: Vec<Mount>,
    /// What is recorded of its invocations, so that they can be replayed exactly.
    #[serde(skip_serializing_if = "JournalConfig::is_default")]
    pub journal: JournalConfig,
}

/// What is recorded of a function's invocations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JournalConfig {
    /// Of how many invocations a journal is written: 1 is all, 0 none, 0.1 every tenth or so.
    pub sample: f64,
    /// The most bytes of one journal before compression: 1,024 to 16,777,216. One that has more is marked partial, and its
    /// invocation cannot be replayed exactly; it is not disturbed.
    pub bytes_max: u64,
    /// Headers of outgoing requests and of their responses whose values are kept out, beside `authorization`,
    /// `proxy-authorization`, `cookie`, `set-cookie` and `x-api-key`. At most 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redact: Vec<String>,
    /// Members of JSON in the bodies of responses whose values are kept out, wherever they are. With any, bodies of requests
    /// are not shown. At most 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redact_fields: Vec<String>,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { sample: 1.0, bytes_max: 1 << 20, redact: Vec::new(), redact_fields: Vec::new() }
    }
}

impl JournalConfig {
    /// Headers whose values never come into a journal.
    const SECRET: [&'static str; 5] = ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"];

    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// All that is kept out.
    pub fn redacted(&self) -> Redact {
        let named = self.redact.iter().map(|name| name.to_ascii_lowercase());
        let headers = Self::SECRET.iter().map(|name| (*name).to_owned()).chain(named).collect();
        Redact { headers, fields: self.redact_fields.clone() }
    }

    fn validate(&self) -> Result<(), InvalidConfig> {
        let invalid = |field: &str, why: String| Err(InvalidConfig { field: format!("journal.{field}"), why });
        if !(0.0..=1.0).contains(&self.sample) {
            return invalid("sample", format!("is {}; it must be 0 (none) to 1 (all)", self.sample));
        }
        if !(1024..=16 << 20).contains(&self.bytes_max) {
            return invalid("bytes_max", format!("is {}; it must be 1024 to {}", self.bytes_max, 16 << 20));
        }
        if self.redact.len() > 64 || self.redact.iter().any(|name| name.is_empty() || name.len() > 256) {
            return invalid("redact", "must be at most 64 names of headers, each of 1 to 256 bytes".into());
        }
        let bad = |name: &String| name.is_empty() || name.len() > 256 || name.contains(['"', '\\']);
        if self.redact_fields.len() > 64 || self.redact_fields.iter().any(bad) {
            let why =
                "must be at most 64 names of members of JSON, each of 1 to 256 bytes, without quotes and backslashes";
            return invalid("redact_fields", why.into());
        }
        Ok(())
    }
}

/// One subscription.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trigger {
    /// All must match. None matches every event that is addressed to nobody.
    pub filters: Vec<Filter>,
    /// What happens after a failure on an event of this trigger; absent: as of the function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// An event that is older than this when its turn comes is not delivered; absent: however old. 1 to 2,592,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u64>,
    /// Whether events that belong together are delivered one after the other. Absent: in no order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
}

/// By what events are kept in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// By their `partitionkey` (CloudEvents, "Partitioning"): those with the same are delivered in the order of the log, the next
    /// when the one before is done or given up. Those without one in no order.
    PartitionKey,
}

impl Trigger {
    /// Whether the event passes.
    pub fn matches(&self, event: &Event) -> bool {
        self.filters.iter().all(|filter| filter.matches(event))
    }
}

/// Bounds of one invocation, and on how many at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The longest one invocation may take: 1 to 900,000.
    pub timeout_ms: u64,
    /// The most memory one instance may have: 1 to 4,096. Above 256 the function runs with guard pages.
    pub memory_mb: u32,
    /// How many may run at once: 1 to 1,000.
    pub concurrency: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { timeout_ms: 30_000, memory_mb: 128, concurrency: 100 }
    }
}

impl Limits {
    /// The longest one invocation may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// What happens after a failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Attempts in all, the first included: 1 to 100.
    pub attempts_max: u32,
    /// The wait after the first failure; doubled after each, give or take a quarter.
    pub backoff_ms: u64,
    /// The longest wait.
    pub backoff_max_ms: u64,
    /// What is emitted for an event that is given up, in the place of a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetterEvent>,
}

/// The event that is emitted for one that was given up. Its data has the event, the error and the attempts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadLetterEvent {
    /// Its `type`.
    #[serde(rename = "type")]
    pub ty: String,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts_max: 5, backoff_ms: 500, backoff_max_ms: 60_000, dead_letter: None }
    }
}

impl Retry {
    /// The wait before attempt `attempt + 1`, or `None` if `attempt` was the last. `jitter` is in `0.0..1.0`.
    ///
    /// Exponential with a jitter of a quarter either way: enough to spread a herd, little enough to be foreseen.
    pub fn after(&self, attempt: u32, jitter: f64) -> Option<Duration> {
        if attempt >= self.attempts_max {
            return None;
        }
        let doubled = self.backoff_ms.saturating_mul(1 << attempt.saturating_sub(1).min(30));
        let wait_ms = doubled.min(self.backoff_max_ms) as f64 * (0.75 + jitter.clamp(0.0, 1.0) / 2.0);
        Some(Duration::from_millis(wait_ms as u64))
    }
}

/// A folder of the host that a function sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// The folder on the host, absolute.
    pub host: std::path::PathBuf,
    /// Where the function sees it.
    pub guest: String,
    /// Whether the function may write there.
    #[serde(default)]
    pub writable: bool,
}

impl Retry {
    fn validate(&self, at: &str) -> Result<(), InvalidConfig> {
        let range = |field: &str, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(InvalidConfig { field: format!("{at}.{field}"), why: format!("is {value}; it must be {min} to {max}") })
        };
        range("attempts_max", u64::from(self.attempts_max), 1, 100)?;
        range("backoff_ms", self.backoff_ms, 0, 3_600_000)?;
        range("backoff_max_ms", self.backoff_max_ms, self.backoff_ms, 86_400_000)?;
        match &self.dead_letter {
            Some(event) if event.ty.is_empty() || event.ty.len() > 256 || event.ty.contains(char::is_control) => {
                Err(InvalidConfig {
                    field: format!("{at}.dead_letter.type"),
                    why: "must be the type of an event, 1 to 256 bytes, as `order.failed`".into(),
                })
            }
            _ => Ok(()),
        }
    }
}

impl FunctionConfig {
    /// The trigger that sends an event here: the first that matches. None for one that is addressed to the function.
    pub fn trigger_for(&self, event: &Event) -> Option<&Trigger> {
        self.triggers.iter().find(|trigger| trigger.matches(event))
    }

    /// The key by which an event is kept in order here, if it is.
    pub fn order_key(&self, event: &Event) -> Option<String> {
        match self.trigger_for(event)?.order? {
            Order::PartitionKey => event.attribute("partitionkey").map(|key| key.into_owned()),
        }
    }

    /// What happens after a failure on an event.
    pub fn retry_for(&self, event: &Event) -> &Retry {
        self.trigger_for(event).and_then(|trigger| trigger.retry.as_ref()).unwrap_or(&self.retry)
    }

    /// Checks the bounds of every field.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let range = |field: &str, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(InvalidConfig { field: field.into(), why: format!("is {value}; it must be {min} to {max}") })
        };
        let invalid = |field: String, why: &str| Err(InvalidConfig { field, why: why.into() });
        range("triggers", self.triggers.len() as u64, 0, 64)?;
        range("schedules", self.schedules.len() as u64, 0, schedule::SCHEDULES_MAX as u64)?;
        let mut names = BTreeSet::new();
        for (i, schedule) in self.schedules.iter().enumerate() {
            if !names.insert(&schedule.name) {
                return invalid(format!("schedules[{i}].name"), "is that of another schedule of the function");
            }
            schedule
                .event
                .validate()
                .map_err(|(key, why)| InvalidConfig { field: format!("schedules[{i}].event.{key}"), why })?;
        }
        range("limits.timeout_ms", self.limits.timeout_ms, 1, 900_000)?;
        range("limits.memory_mb", u64::from(self.limits.memory_mb), 1, 4096)?;
        range("limits.concurrency", u64::from(self.limits.concurrency), 1, 1000)?;
        self.retry.validate("retry")?;
        for (i, trigger) in self.triggers.iter().enumerate() {
            if let Some(retry) = &trigger.retry {
                retry.validate(&format!("triggers[{i}].retry"))?;
            }
            if let Some(age) = trigger.max_age_s {
                range(&format!("triggers[{i}].max_age_s"), age, 1, 30 * 86_400)?;
            }
        }
        range("env", self.env.len() as u64, 0, 256)?;
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return invalid(format!("env.{name}"), "has a name or value that no environment can hold");
            }
            if name.len() + value.len() > 32 * 1024 {
                return invalid(format!("env.{name}"), "is longer than 32 KiB");
            }
        }
        range("egress", self.egress.len() as u64, 0, 256)?;
        for (i, pattern) in self.egress.iter().enumerate() {
            if !egress::is_pattern(pattern) {
                return invalid(format!("egress[{i}]"), "must be host, host:port, host:* or *.host");
            }
        }
        self.journal.validate()?;
        range("mounts", self.mounts.len() as u64, 0, 16)?;
        for (i, mount) in self.mounts.iter().enumerate() {
            if !mount.host.is_absolute() {
                return invalid(format!("mounts[{i}].host"), "must be an absolute path");
            }
            if !mount.guest.starts_with('/') {
                return invalid(format!("mounts[{i}].guest"), "must begin with /");
            }
        }
        Ok(())
    }

    /// Whether the function may call this host and port.
    pub fn may_call(&self, host: &str, port: u16) -> bool {
        self.egress.iter().any(|pattern| egress::matches(pattern, host, port))
    }
}

mod egress {
    /// Splits `host:port`; an IPv6 address stands in brackets.
    fn split(pattern: &str) -> (&str, Option<&str>) {
        match pattern.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
            _ => (pattern, None),
        }
    }

    pub fn is_pattern(pattern: &str) -> bool {
        let (host, port) = split(pattern);
        let name = host.strip_prefix("*.").unwrap_or(host);
        let name_ok = !name.is_empty()
            && name.len() <= 255
            && (host.starts_with('[') && host.ends_with(']')
                || name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')));
        name_ok && port.is_none_or(|p| p == "*" || p.parse::<u16>().is_ok_and(|p| p > 0))
    }

    pub fn matches(pattern: &str, host: &str, port: u16) -> bool {
        let (want_host, want_port) = split(pattern);
        let host_ok = match want_host.strip_prefix("*.") {
            Some(domain) => {
                let (host, domain) = (host.to_ascii_lowercase(), domain.to_ascii_lowercase());
                host.strip_suffix(&domain).is_some_and(|sub| sub.len() > 1 && sub.ends_with('.'))
            }
            None => want_host.eq_ignore_ascii_case(host),
        };
        // A host alone means the two ports of the web; another port must be named.
        let port_ok = match want_port {
            None => matches!(port, 80 | 443),
            Some("*") => true,
            Some(want) => want.parse() == Ok(port),
        };
        host_ok && port_ok
    }
}

/// One deployed version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionVersion {
    /// Counted from 1.
    pub version: Version,
    /// Of the component or module.
    pub digest: Digest,
    /// What it is.
    pub kind: FunctionKind,
    /// When it was deployed.
    pub created_at: Timestamp,
}

/// A function with its versions; the last one is current.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// Its name.
    pub name: FunctionName,
    /// All versions, oldest first; never empty.
    pub versions: Vec<FunctionVersion>,
    /// How it may run.
    pub config: FunctionConfig,
    /// Since when it may so; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured_at: Option<Timestamp>,
}

impl Function {
    /// The current version.
    pub fn current(&self) -> Option<&FunctionVersion> {
        self.versions.last()
    }

    /// A version by its number.
    pub fn version(&self, version: Version) -> Option<&FunctionVersion> {
        self.versions.iter().find(|v| v.version == version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn egress_patterns() {
        let check = |pattern: &str, host: &str, port: u16, expected: bool| {
            let config = FunctionConfig { egress: vec![pattern.into()], ..Default::default() };
            assert_eq!(config.validate(), Ok(()), "{pattern}");
            assert_eq!(config.may_call(host, port), expected, "{pattern} {host}:{port}");
        };
        check("api.example.com", "api.example.com", 443, true);
        check("api.example.com", "API.example.com", 80, true);
        check("api.example.com", "api.example.com", 8080, false);
        check("api.example.com:8080", "api.example.com", 8080, true);
        check("127.0.0.1:*", "127.0.0.1", 9, true);
        check("*.example.com", "a.b.example.com", 443, true);
        check("*.example.com", "example.com", 443, false);
        check("*.example.com", "badexample.com", 443, false);
        check("[::1]:*", "[::1]", 80, true);
        for bad in ["", "a b", "host:0", "host:x", "*.", "http://host", "host/path"] {
            let config = FunctionConfig { egress: vec![bad.into()], ..Default::default() };
            assert!(config.validate().is_err(), "{bad}");
        }
    }

    #[test]
    fn back_off_doubles_within_its_bounds() {
        let retry = Retry { attempts_max: 4, backoff_ms: 100, backoff_max_ms: 250, dead_letter: None };
        let waits: Vec<_> = (1..=4).map(|attempt| retry.after(attempt, 0.5).map(|d| d.as_millis())).collect();
        assert_eq!(waits, [Some(100), Some(200), Some(250), None]);
        assert_eq!(retry.after(1, 0.0), Some(Duration::from_millis(75)));
    }

    #[test]
    fn unknown_fields_and_bounds_are_named() {
        assert!(serde_json::from_str::<FunctionConfig>(r#"{"trigers":[]}"#).is_err());
        let mut config = FunctionConfig::default();
        config.limits.memory_mb = 0;
        assert!(config.validate().expect_err("bound").to_string().contains("limits.memory_mb"));
    }

    #[test]
    fn schedules_are_bounded_and_have_names_of_their_own() {
        let read = |json: &str| serde_json::from_str::<FunctionConfig>(json).expect(json);
        let check = |config: &FunctionConfig, expected: &str| {
            let error = config.validate().expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        };
        let config = read(r#"{"schedules":[{"name":"a","cron":"@daily"},{"name":"b","at":"2026-12-24T18:00:00Z"}]}"#);
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(read(&serde_json::to_string(&config).expect("JSON")), config);
        check(
            &read(r#"{"schedules":[{"name":"a","cron":"@daily"},{"name":"a","cron":"@hourly"}]}"#),
            "`schedules[1].name` is that of another",
        );
        check(
            &read(r#"{"schedules":[{"name":"a","cron":"@daily","event":{"type":""}}]}"#),
            "`schedules[0].event.type` must have",
        );
        let many: Vec<_> = (0..65).map(|i| format!(r#"{{"name":"s{i}","cron":"@daily"}}"#)).collect();
        check(&read(&format!(r#"{{"schedules":[{}]}}"#, many.join(","))), "`schedules` is 65; it must be 0 to 64");
        let error = serde_json::from_str::<FunctionConfig>(r#"{"schedules":[{"name":"a","cron":"0 25 * * *"}]}"#);
        assert!(error.expect_err("hour").to_string().contains("schedule \"a\": `cron`"));
    }

    #[test]
    fn no_schedules_leave_no_trace() {
        let json = serde_json::to_string(&FunctionConfig::default()).expect("JSON");
        assert!(!json.contains("schedules"), "{json}");
    }
}
