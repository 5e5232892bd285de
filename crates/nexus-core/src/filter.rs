//! CloudEvents Subscriptions filters: `exact`, `prefix`, `suffix`, `all`, `any`, `not`.
//!
//! Source: CloudEvents Subscriptions API 1.0, "Filters". The dialect `sql` is refused by name until it is here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::event::Event;

/// How deep filters may nest.
pub const DEPTH_MAX: usize = 16;
/// How many filters one expression may hold, at every depth together.
pub const FILTERS_MAX: usize = 256;

/// A filter that is not one; `path` leads to the bad part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {why}")]
pub struct InvalidFilter {
    /// Where, as in `all[1].exact`.
    pub path: String,
    /// What is wrong there.
    pub why: String,
}

/// One filter expression.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Value", try_from = "Value")]
pub enum Filter {
    /// Every named attribute has exactly this value.
    Exact(BTreeMap<String, String>),
    /// Every named attribute begins with this.
    Prefix(BTreeMap<String, String>),
    /// Every named attribute ends with this.
    Suffix(BTreeMap<String, String>),
    /// Every one matches.
    All(Vec<Filter>),
    /// At least one matches.
    Any(Vec<Filter>),
    /// It does not match.
    Not(Box<Filter>),
}

impl Filter {
    /// Whether the event passes. An attribute that is absent matches nothing.
    pub fn matches(&self, event: &Event) -> bool {
        let every = |wanted: &BTreeMap<String, String>, test: fn(&str, &str) -> bool| {
            wanted.iter().all(|(name, want)| event.attribute(name).is_some_and(|have| test(&have, want)))
        };
        match self {
            Self::Exact(wanted) => every(wanted, |have, want| have == want),
            Self::Prefix(wanted) => every(wanted, |have, want| have.starts_with(want)),
            Self::Suffix(wanted) => every(wanted, |have, want| have.ends_with(want)),
            Self::All(filters) => filters.iter().all(|f| f.matches(event)),
            Self::Any(filters) => filters.iter().any(|f| f.matches(event)),
            Self::Not(filter) => !filter.matches(event),
        }
    }

    /// Reads a filter from its JSON.
    pub fn parse(value: &Value) -> Result<Self, InvalidFilter> {
        let mut budget = FILTERS_MAX;
        parse(value, "", 0, &mut budget)
    }
}

fn invalid<T>(path: &str, why: impl Into<String>) -> Result<T, InvalidFilter> {
    let path = if path.is_empty() { "filter" } else { path };
    Err(InvalidFilter { path: path.to_owned(), why: why.into() })
}

fn parse(value: &Value, path: &str, depth: usize, budget: &mut usize) -> Result<Filter, InvalidFilter> {
    if depth > DEPTH_MAX {
        return invalid(path, format!("nested deeper than {DEPTH_MAX}"));
    }
    *budget = match budget.checked_sub(1) {
        Some(left) => left,
        None => return invalid(path, format!("more than {FILTERS_MAX} filters in one expression")),
    };
    let Some(object) = value.as_object() else {
        return invalid(path, "must be an object with one dialect, like {\"exact\": {\"type\": \"order.created\"}}");
    };
    let mut entries = object.iter();
    let (Some((dialect, body)), None) = (entries.next(), entries.next()) else {
        return invalid(path, format!("must name exactly one dialect, not {}", object.len()));
    };
    let at = if path.is_empty() { dialect.clone() } else { format!("{path}.{dialect}") };
    match dialect.as_str() {
        "exact" => Ok(Filter::Exact(attributes(body, &at)?)),
        "prefix" => Ok(Filter::Prefix(attributes(body, &at)?)),
        "suffix" => Ok(Filter::Suffix(attributes(body, &at)?)),
        "all" => Ok(Filter::All(list(body, &at, depth, budget)?)),
        "any" => Ok(Filter::Any(list(body, &at, depth, budget)?)),
        "not" => Ok(Filter::Not(Box::new(parse(body, &at, depth + 1, budget)?))),
        "sql" => invalid(&at, "is not supported; use exact, prefix, suffix, all, any or not"),
        other => invalid(path, format!("unknown dialect {other:?}; known are exact, prefix, suffix, all, any, not")),
    }
}

fn attributes(body: &Value, path: &str) -> Result<BTreeMap<String, String>, InvalidFilter> {
    let Some(object) = body.as_object().filter(|o| !o.is_empty()) else {
        return invalid(path, "must be an object with at least one attribute");
    };
    let mut wanted = BTreeMap::new();
    for (name, value) in object {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return invalid(path, format!("{name:?} is not a name of an attribute (a-z and 0-9)"));
        }
        match value.as_str() {
            Some(text) if !text.is_empty() => wanted.insert(name.clone(), text.to_owned()),
            _ => return invalid(&format!("{path}.{name}"), "must be a string that is not empty"),
        };
    }
    Ok(wanted)
}

fn list(body: &Value, path: &str, depth: usize, budget: &mut usize) -> Result<Vec<Filter>, InvalidFilter> {
    let Some(items) = body.as_array().filter(|a| !a.is_empty()) else {
        return invalid(path, "must be an array with at least one filter");
    };
    items.iter().enumerate().map(|(i, item)| parse(item, &format!("{path}[{i}]"), depth + 1, budget)).collect()
}

impl TryFrom<Value> for Filter {
    type Error = InvalidFilter;
    fn try_from(value: Value) -> Result<Self, InvalidFilter> {
        Self::parse(&value)
    }
}

impl From<Filter> for Value {
    fn from(filter: Filter) -> Self {
        let map = |m: BTreeMap<String, String>| Value::Object(m.into_iter().map(|(k, v)| (k, v.into())).collect());
        let list = |l: Vec<Filter>| Value::Array(l.into_iter().map(Value::from).collect());
        let (dialect, body) = match filter {
            Filter::Exact(m) => ("exact", map(m)),
            Filter::Prefix(m) => ("prefix", map(m)),
            Filter::Suffix(m) => ("suffix", map(m)),
            Filter::All(l) => ("all", list(l)),
            Filter::Any(l) => ("any", list(l)),
            Filter::Not(f) => ("not", Value::from(*f)),
        };
        Value::Object(Map::from_iter([(dialect.to_owned(), body)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        let mut event = Event::new("1", "https://shop.example/eu", "com.example.order.created");
        event.set_attribute("region", "eu-west").expect("attribute");
        event
    }

    #[test]
    fn each_dialect() {
        let check = |json: &str, expected: bool| {
            let filter = Filter::parse(&serde_json::from_str(json).expect(json)).expect(json);
            assert_eq!(filter.matches(&event()), expected, "{json}");
            let again = Value::from(filter.clone());
            assert_eq!(Filter::parse(&again), Ok(filter), "{json}");
        };
        check(r#"{"exact":{"type":"com.example.order.created"}}"#, true);
        check(r#"{"exact":{"type":"com.example.order.created","region":"us"}}"#, false);
        check(r#"{"exact":{"subject":"x"}}"#, false);
        check(r#"{"prefix":{"type":"com.example."}}"#, true);
        check(r#"{"suffix":{"type":".created","region":"west"}}"#, true);
        check(r#"{"suffix":{"type":".deleted"}}"#, false);
        check(r#"{"all":[{"prefix":{"source":"https:"}},{"suffix":{"source":"/eu"}}]}"#, true);
        check(r#"{"any":[{"exact":{"type":"x"}},{"exact":{"region":"eu-west"}}]}"#, true);
        check(r#"{"not":{"exact":{"subject":"x"}}}"#, true);
        check(r#"{"not":{"any":[{"prefix":{"type":"com"}}]}}"#, false);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let check = |json: &str, path: &str, why: &str| {
            let error = Filter::parse(&serde_json::from_str(json).expect(json)).expect_err(json);
            assert_eq!(error.path, path, "{json}");
            assert!(error.why.contains(why), "{json}: {error}");
        };
        check("7", "filter", "object");
        check("{}", "filter", "exactly one");
        check(r#"{"exact":{"type":"a"},"prefix":{"type":"a"}}"#, "filter", "exactly one");
        check(r#"{"regex":{"type":"a"}}"#, "filter", "regex");
        check(r#"{"sql":"type = 'a'"}"#, "sql", "not supported");
        check(r#"{"exact":{}}"#, "exact", "at least one");
        check(r#"{"exact":{"Type":"a"}}"#, "exact", "Type");
        check(r#"{"all":[{"exact":{"type":"a"}},{"exact":{"type":1}}]}"#, "all[1].exact.type", "string");
        check(r#"{"any":[]}"#, "any", "at least one");
        check(r#"{"not":[]}"#, "not", "object");
    }

    #[test]
    fn depth_is_bounded() {
        let mut json = r#"{"exact":{"type":"a"}}"#.to_owned();
        for _ in 0..DEPTH_MAX + 1 {
            json = format!(r#"{{"not":{json}}}"#);
        }
        let error = Filter::parse(&serde_json::from_str(&json).expect("json")).expect_err("too deep");
        assert!(error.why.contains("deeper"), "{error}");
    }
}
