//! CloudEvents Subscriptions filters: `exact`, `prefix`, `suffix`, `all`, `any`, `not`, `sql`.
//!
//! Source: CloudEvents Subscriptions API 1.0, "Filters". Expressions of `sql` are those of [`crate::cesql`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cesql::{self, Attributes, Expression};
use crate::event::{Event, ExtensionValue};

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
    /// The CloudEvents SQL expression is true, and evaluating it is no error.
    Sql(Box<Expression>),
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
            Self::Sql(expression) => expression.matches(event),
        }
    }

    /// Why the event does not pass; `None` if it does. In one line, for people.
    pub fn refusal(&self, event: &Event) -> Option<String> {
        if self.matches(event) {
            return None;
        }
        let first = |wanted: &BTreeMap<String, String>, how: &str, test: fn(&str, &str) -> bool| {
            let fails =
                |(name, want): &(&String, &String)| !event.attribute(name).is_some_and(|have| test(&have, want));
            let (name, want) = wanted.iter().find(fails)?;
            Some(match event.attribute(name) {
                Some(have) => format!("{name} is {have:?}, which {how} {want:?}"),
                None => format!("{name} is absent"),
            })
        };
        match self {
            Self::Exact(wanted) => first(wanted, "is not", |have, want| have == want),
            Self::Prefix(wanted) => first(wanted, "does not begin with", |have, want| have.starts_with(want)),
            Self::Suffix(wanted) => first(wanted, "does not end with", |have, want| have.ends_with(want)),
            Self::All(filters) => filters.iter().find_map(|filter| filter.refusal(event)),
            Self::Any(filters) => {
                let whys: Vec<_> = filters.iter().filter_map(|filter| filter.refusal(event)).take(3).collect();
                Some(format!("none of {} matches: {}", filters.len(), whys.join("; ")))
            }
            Self::Not(filter) => Some(format!("it matches {}, which it must not", Value::from((**filter).clone()))),
            Self::Sql(expression) => {
                let evaluated = expression.evaluate(event);
                Some(match evaluated.error {
                    Some(error) => format!("`{expression}` fails: {error}"),
                    None => format!("`{expression}` is not true"),
                })
            }
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
        "sql" => Ok(Filter::Sql(Box::new(expression(body, &at)?))),
        other => {
            invalid(path, format!("unknown dialect {other:?}; known are exact, prefix, suffix, all, any, not, sql"))
        }
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

/// An expression of which every function exists: to call another one could only be an error, event by event.
fn expression(body: &Value, path: &str) -> Result<Expression, InvalidFilter> {
    let Some(text) = body.as_str() else {
        return invalid(path, "must be a string, a CloudEvents SQL expression");
    };
    let expression = match Expression::parse(text) {
        Ok(expression) => expression,
        Err(error) => return invalid(path, error.to_string()),
    };
    match expression.missing_function() {
        Some(error) => invalid(path, error.to_string()),
        None => Ok(expression),
    }
}

/// Extensions that are numbers or truth are that in expressions too. A time is text, as it came.
impl Attributes for Event {
    fn get(&self, name: &str) -> Option<cesql::Value<'_>> {
        match self.extensions.get(name) {
            Some(ExtensionValue::Boolean(truth)) => Some(cesql::Value::Boolean(*truth)),
            Some(ExtensionValue::Integer(number)) => Some(cesql::Value::Integer(*number)),
            _ => self.attribute(name).map(cesql::Value::String),
        }
    }
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
            Filter::Sql(e) => ("sql", Value::String(e.to_string())),
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
        event.extensions.insert("attempt".into(), ExtensionValue::Integer(3));
        event.extensions.insert("vip".into(), ExtensionValue::Boolean(true));
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
        check(r#"{"sql":"type LIKE 'com.example.%' AND region = 'eu-west'"}"#, true);
        check(r#"{"all":[{"sql":"attempt < 4"},{"sql":"vip"},{"sql":"EXISTS region"}]}"#, true);
        check(r#"{"sql":"region"}"#, false);
        check(r#"{"sql":"attempt"}"#, false);
    }

    #[test]
    fn an_expression_with_an_error_does_not_match() {
        let check = |text: &str, expected: bool| {
            let filter = Filter::parse(&serde_json::json!({"sql": text})).expect(text);
            assert_eq!(filter.matches(&event()), expected, "{text}");
            assert_eq!(Filter::Not(Box::new(filter)).matches(&event()), !expected, "not {text}");
        };
        check("subject != 'x'", false);
        check("subject = 'x' OR true", false);
        check("NOT EXISTS subject OR subject != 'x'", true);
        check("attempt / 0 = 0", false);
        check("region", false);
    }

    #[test]
    fn every_attribute_is_there_for_expressions() {
        let mut event = event();
        for (name, value) in [
            ("subject", "s"),
            ("time", "2018-04-26T14:48:09+02:00"),
            ("datacontenttype", "text/plain"),
            ("dataschema", "urn:x"),
        ] {
            assert_eq!(event.get(name), None, "{name}");
            event.set_attribute(name, value).expect(name);
            assert_eq!(event.get(name), Some(value.into()), "{name}");
        }
        assert_eq!(event.get("specversion"), Some("1.0".into()));
        assert_eq!(event.get("id"), Some("1".into()));
        assert_eq!(event.get("source"), Some("https://shop.example/eu".into()));
        assert_eq!(event.get("type"), Some("com.example.order.created".into()));
        assert_eq!(event.get("region"), Some("eu-west".into()));
        assert_eq!(event.get("attempt"), Some(3.into()));
        assert_eq!(event.get("vip"), Some(true.into()));
        assert_eq!(event.get("data"), None);
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
        check(r#"{"sql":7}"#, "sql", "string");
        check(r#"{"sql":""}"#, "sql", "at byte 0");
        check(r#"{"any":[{"sql":"type = 'a'"},{"sql":"type == 'a'"}]}"#, "any[1].sql", "at byte 6");
        check(r#"{"not":{"sql":"true OR lenght(type) = 1"}}"#, "not.sql", "at byte 8: there is no function LENGHT");
        check(r#"{"exact":{}}"#, "exact", "at least one");
        check(r#"{"exact":{"Type":"a"}}"#, "exact", "Type");
        check(r#"{"all":[{"exact":{"type":"a"}},{"exact":{"type":1}}]}"#, "all[1].exact.type", "string");
        check(r#"{"any":[]}"#, "any", "at least one");
        check(r#"{"not":[]}"#, "not", "object");
    }

    #[test]
    fn a_refusal_says_why() {
        let check = |json: &str, expected: Option<&str>| {
            let filter = Filter::parse(&serde_json::from_str(json).expect(json)).expect(json);
            assert_eq!(filter.refusal(&event()).as_deref(), expected, "{json}");
        };
        check(r#"{"exact":{"region":"eu-west"}}"#, None);
        check(r#"{"exact":{"region":"us"}}"#, Some(r#"region is "eu-west", which is not "us""#));
        check(r#"{"exact":{"subject":"x"}}"#, Some("subject is absent"));
        check(r#"{"prefix":{"region":"us"}}"#, Some(r#"region is "eu-west", which does not begin with "us""#));
        check(r#"{"suffix":{"region":"us"}}"#, Some(r#"region is "eu-west", which does not end with "us""#));
        check(r#"{"all":[{"exact":{"id":"1"}},{"exact":{"subject":"x"}}]}"#, Some("subject is absent"));
        check(r#"{"any":[{"exact":{"subject":"x"}}]}"#, Some("none of 1 matches: subject is absent"));
        check(r#"{"not":{"exact":{"id":"1"}}}"#, Some(r#"it matches {"exact":{"id":"1"}}, which it must not"#));
        check(r#"{"sql":"region = 'us'"}"#, Some("`region = 'us'` is not true"));
        assert!(Filter::parse(&serde_json::json!({"sql": "1/0 = 1"})).expect("sql").refusal(&event()).is_some());
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
