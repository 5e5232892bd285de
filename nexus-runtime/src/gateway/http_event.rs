//! An HTTP call of a function is an event too: this is how one stands for the other.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use nexus_core::event::{Data, Event};
use nexus_core::ids::FunctionName;
use nexus_core::journal::REDACTED;
use nexus_engine::HttpRequest;
use serde::{Deserialize, Serialize};

/// The type of the event that stands for an HTTP call.
pub const TYPE: &str = "nexus.http.request";

/// Headers that are handed to the function but never written to the log: they hold secrets.
const SECRET: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

/// Headers that are about the connection, not the request (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

#[derive(Serialize, Deserialize)]
struct Call {
    method: String,
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    query: Option<String>,
    headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    /// Names of headers that the function got and the log did not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    redacted: Vec<String>,
}

/// Takes out of the headers what does not belong to the request itself.
pub fn strip(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Puts the headers into the form in which the log keeps them: in the order of their names, those of one name in one line (RFC
/// 9110, section 5.3; cookies: RFC 9113, section 8.2.3). So a function sees them alike when the call is replayed.
pub fn put_in_order(headers: &mut HeaderMap) {
    let mut names: Vec<HeaderName> = headers.keys().cloned().collect();
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    let mut ordered = HeaderMap::with_capacity(names.len());
    for name in names {
        if let Ok(value) = HeaderValue::try_from(joined(headers, &name)) {
            ordered.insert(name, value);
        }
    }
    *headers = ordered;
}

fn joined(headers: &HeaderMap, name: &HeaderName) -> Vec<u8> {
    let values: Vec<_> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    values.join(if *name == http::header::COOKIE { &b"; "[..] } else { &b", "[..] })
}

/// The event that stands for a call, without what must not be written down.
pub fn event_of(function: &FunctionName, id: &str, request: &HttpRequest) -> Event {
    let mut headers = BTreeMap::new();
    let mut redacted = Vec::new();
    for name in request.headers.keys() {
        if SECRET.contains(&name.as_str()) {
            redacted.push(name.to_string());
            continue;
        }
        headers.insert(name.to_string(), String::from_utf8_lossy(&joined(&request.headers, name)).into_owned());
    }
    let (path, query) = match request.path_and_query.split_once('?') {
        Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
        None => (request.path_and_query.clone(), None),
    };
    let (body, body_base64) = match std::str::from_utf8(&request.body) {
        Ok("") => (None, None),
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(BASE64.encode(&request.body))),
    };
    let call = Call { method: request.method.to_string(), path, query, headers, body, body_base64, redacted };
    let mut event = Event::new(id, format!("/fn/{function}"), TYPE);
    event.datacontenttype = Some("application/json".into());
    event.data = serde_json::value::to_raw_value(&call).ok().map(Data::Json);
    event
}

/// The names of headers that a call had and the log has not.
pub fn redacted_of(event: &Event) -> Vec<String> {
    let call = event.data.as_ref().filter(|_| event.ty == TYPE);
    call.and_then(|data| serde_json::from_slice::<Call>(data.as_bytes()).ok())
        .map_or_else(Vec::new, |call| call.redacted)
}

/// The call that an event stands for, if it stands for one: what a replay hands to a `wasi:http` function.
pub fn request_of(event: &Event) -> Option<HttpRequest> {
    if event.ty != TYPE || !event.source.starts_with("/fn/") {
        return None;
    }
    let call: Call = serde_json::from_slice(event.data.as_ref()?.as_bytes()).ok()?;
    let mut headers = HeaderMap::new();
    // What was kept out was there: a function that looks for it finds that much.
    let redacted = call.redacted.into_iter().map(|name| (name, REDACTED.to_owned()));
    let mut all = call.headers;
    all.extend(redacted);
    for (name, value) in all {
        let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) else { continue };
        headers.insert(name, value);
    }
    let body = match (call.body, call.body_base64) {
        (Some(text), _) => Bytes::from(text),
        (None, Some(text)) => BASE64.decode(text).ok()?.into(),
        (None, None) => Bytes::new(),
    };
    let path_and_query = match call.query {
        Some(query) => format!("{}?{query}", call.path),
        None => call.path,
    };
    Some(HttpRequest { method: call.method.parse().ok()?, path_and_query, headers, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_survives_but_for_its_secrets() {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/octet-stream"));
        headers.insert("authorization", HeaderValue::from_static("Bearer hush"));
        let request = HttpRequest {
            method: http::Method::PUT,
            path_and_query: "/a/b?c=d".into(),
            headers,
            body: Bytes::from_static(&[0xff, 0x00]),
        };
        let event = event_of(&"f".parse().expect("name"), "1", &request);
        assert!(!String::from_utf8(event.to_json()).expect("text").contains("hush"));
        let back = request_of(&event).expect("a call");
        assert_eq!(
            (back.method, back.path_and_query, back.body),
            (request.method, request.path_and_query, request.body)
        );
        assert_eq!(back.headers["authorization"], "[redacted]");
        assert_eq!(back.headers.len(), 2);
    }

    #[test]
    fn headers_are_seen_as_they_are_kept() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-b", "1"),
            ("cookie", "a=1"),
            ("accept", "text/a"),
            ("cookie", "b=2"),
            ("x-a", "2"),
            ("accept", "text/b"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        put_in_order(&mut headers);
        let request =
            HttpRequest { method: http::Method::GET, path_and_query: "/".into(), headers, body: Bytes::new() };
        let seen: Vec<_> =
            request.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().expect("text"))).collect();
        assert_eq!(seen, ["accept: text/a, text/b", "cookie: a=1; b=2", "x-a: 2", "x-b: 1"]);
        let back = request_of(&event_of(&"f".parse().expect("name"), "1", &request)).expect("a call");
        assert!(back.headers.keys().eq(request.headers.keys()), "in the same order");
    }

    #[test]
    fn other_events_are_no_calls() {
        assert!(request_of(&Event::new("1", "/s", "t")).is_none());
        assert!(request_of(&Event::new("1", "/elsewhere", TYPE)).is_none());
    }
}
