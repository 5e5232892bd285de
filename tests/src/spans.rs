//! Spans, whether they came over OTLP or from `/v1/traces`: in one shape, so that a test reads both alike.

use std::collections::{BTreeMap, HashMap};

use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use serde_json::Value;

/// A span.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Its trace, in hexadecimal.
    pub trace: String,
    /// Its id, in hexadecimal.
    pub id: String,
    /// Its parent's id; empty where it has none.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// Its kind, as OpenTelemetry writes it: `SPAN_KIND_CLIENT`.
    pub kind: &'static str,
    /// Whether its status is an error.
    pub failed: bool,
    /// Its attributes, as text.
    pub attributes: BTreeMap<String, String>,
    /// The names of its events.
    pub events: Vec<String>,
}

impl Seen {
    /// An attribute, which must be there.
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).unwrap_or_else(|| panic!("span {} has no {key}: {:#?}", self.name, self.attributes))
    }
}

impl From<&Span> for Seen {
    fn from(span: &Span) -> Self {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        Self {
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            name: span.name.clone(),
            kind: span.kind().as_str_name(),
            failed: span.status.as_ref().is_some_and(|s| s.code() == StatusCode::Error),
            attributes: span
                .attributes
                .iter()
                .filter_map(|a| Some((a.key.clone(), crate::otlp::attribute(span, &a.key)?)))
                .collect(),
            events: span.events.iter().map(|e| e.name.clone()).collect(),
        }
    }
}

/// The spans of an answer of `/v1/traces`.
pub fn of_json(trace: &Value) -> Vec<Seen> {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let spans = list(&trace["resourceSpans"]);
    let spans = spans.iter().flat_map(|r| list(&r["scopeSpans"])).flat_map(|s| list(&s["spans"]));
    spans.map(|span| from_json(&span)).collect()
}

fn from_json(span: &Value) -> Seen {
    let text = |key: &str| span[key].as_str().unwrap_or_default().to_owned();
    let attribute = |a: &Value| {
        // `{"stringValue": "x"}`, `{"intValue": "1"}`, `{"boolValue": true}`: one member, whose name is the type.
        let value = a["value"].as_object().and_then(|o| o.values().next()).expect("a value");
        (a["key"].as_str().expect("a key").to_owned(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let kind = span["kind"].as_i64().and_then(|k| SpanKind::try_from(i32::try_from(k).ok()?).ok()).expect("a kind");
    Seen {
        trace: text("traceId"),
        id: text("spanId"),
        parent: text("parentSpanId"),
        name: text("name"),
        kind: kind.as_str_name(),
        failed: span["status"]["code"] == 2,
        attributes: span["attributes"].as_array().into_iter().flatten().map(attribute).collect(),
        events: span["events"].as_array().into_iter().flatten().map(|e| e["name"].to_string()).collect(),
    }
}

/// The one span with this name.
pub fn named<'a>(spans: &'a [Seen], name: &str) -> &'a Seen {
    let found: Vec<_> = spans.iter().filter(|s| s.name == name).collect();
    assert_eq!(found.len(), 1, "spans named {name} among {:#?}", spans.iter().map(|s| &s.name).collect::<Vec<_>>());
    found[0]
}

/// Each span's way from the root, as names: `a > b > c`, sorted. Panics where the spans are not one tree.
pub fn tree(spans: &[Seen]) -> Vec<String> {
    let by_id: HashMap<_, _> = spans.iter().map(|s| (s.id.as_str(), s)).collect();
    assert_eq!(by_id.len(), spans.len(), "two spans have one id");
    let roots = spans.iter().filter(|s| !by_id.contains_key(s.parent.as_str())).count();
    assert_eq!(roots, 1, "the spans are not one tree: {spans:#?}");
    let mut ways: Vec<String> = spans
        .iter()
        .map(|span| {
            let up = std::iter::successors(Some(span), |s| by_id.get(s.parent.as_str()).copied());
            // No way is longer than there are spans, unless it goes in a circle.
            let mut names: Vec<_> = up.take(spans.len() + 1).map(|s| s.name.as_str()).collect();
            assert!(names.len() <= spans.len(), "the spans go in a circle: {spans:#?}");
            names.reverse();
            names.join(" > ")
        })
        .collect();
    ways.sort();
    ways
}
