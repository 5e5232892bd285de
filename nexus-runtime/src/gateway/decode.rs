//! CloudEvents over HTTP, in all three content modes (HTTP Protocol Binding 1.0.2).

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use nexus_core::event::{Data, Event, InvalidEvent, percent_decode};
use nexus_core::trace::TraceContext;
use serde_json::value::RawValue;

use super::problem::Problem;

/// The events of one request: one, or a batch.
pub struct Decoded {
    /// In the order of the request; never empty but for an empty batch.
    pub events: Vec<Event>,
}

/// Reads the events of a request. One bad event makes the whole request bad, and the problem says which.
pub fn decode(headers: &HeaderMap, body: Bytes, batch_events_max: usize) -> Result<Decoded, Problem> {
    let content_type = text(headers, header::CONTENT_TYPE.as_str())?;
    let media = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match media.as_str() {
        "application/cloudevents+json" => {
            let event = Event::from_json(&body).map_err(|e| invalid(&e, None))?;
            Ok(Decoded { events: vec![event] })
        }
        "application/cloudevents-batch+json" => batch(&body, batch_events_max),
        m if m.starts_with("application/cloudevents") => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-format",
            format!("event format {m:?} is not spoken here; use application/cloudevents+json or -batch+json"),
        )),
        _ if headers.contains_key("ce-specversion") => {
            let event = binary(headers, content_type, body).map_err(|e| invalid(&e, None))?;
            Ok(Decoded { events: vec![event] })
        }
        _ => Err(Problem::bad_request(
            "no-event",
            "the request is no CloudEvent: send header `ce-specversion: 1.0` with the other `ce-` headers (binary mode), \
             or content type application/cloudevents+json (structured) or application/cloudevents-batch+json (batch)",
        )),
    }
}

fn batch(body: &[u8], batch_events_max: usize) -> Result<Decoded, Problem> {
    let raw: Vec<&RawValue> = serde_json::from_slice(body)
        .map_err(|e| Problem::bad_request("invalid-batch", format!("the batch is not a JSON array of events: {e}")))?;
    if raw.len() > batch_events_max {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "batch-too-large",
            format!("the batch has {} events; {batch_events_max} is the most. Send it in parts", raw.len()),
        ));
    }
    let read = |(index, raw): (usize, &&RawValue)| {
        Event::from_json(raw.get().as_bytes()).map_err(|e| invalid(&e, Some(index)))
    };
    Ok(Decoded { events: raw.iter().enumerate().map(read).collect::<Result<_, _>>()? })
}

fn binary(headers: &HeaderMap, content_type: Option<&str>, body: Bytes) -> Result<Event, InvalidEvent> {
    let mut event = Event::new("", "", "");
    let mut version = None;
    for name in headers.keys() {
        let Some(attribute) = name.as_str().strip_prefix("ce-") else { continue };
        let wrong = |why: &str| InvalidEvent::Attribute { name: attribute.to_owned(), why: why.to_owned() };
        let mut values = headers.get_all(name).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return Err(wrong("appears more than once")) };
        let value = std::str::from_utf8(value.as_bytes()).map_err(|_| wrong("is not UTF-8"))?;
        let value = percent_decode(value);
        match attribute {
            "specversion" => version = Some(value),
            "datacontenttype" => return Err(wrong("travels as the Content-Type header in binary mode")),
            "data" | "data_base64" => return Err(wrong("is not an attribute; the body is the data")),
            _ => event.set_attribute(attribute, &value)?,
        }
    }
    match version.as_deref() {
        Some("1.0") => {}
        other => {
            let why = format!("is {:?}; only 1.0 is spoken here", other.unwrap_or_default());
            return Err(InvalidEvent::Attribute { name: "specversion".into(), why });
        }
    }
    for (name, value) in [("id", &event.id), ("source", &event.source), ("type", &event.ty)] {
        if value.is_empty() && !headers.contains_key(format!("ce-{name}")) {
            return Err(InvalidEvent::Missing(name));
        }
    }
    event.datacontenttype = content_type.map(str::to_owned);
    if !body.is_empty() {
        event.data = Some(Data::from_body(body, content_type)?);
    }
    event.validate()?;
    Ok(event)
}

/// The trace that a request came with: a malformed header is ignored, as the standard says.
pub fn trace_context(headers: &HeaderMap) -> Option<TraceContext> {
    let mut context = TraceContext::parse(headers.get("traceparent")?.to_str().ok()?).ok()?;
    context.tracestate =
        headers.get("tracestate").and_then(|v| v.to_str().ok()).filter(|s| s.len() <= 512).map(str::to_owned);
    Some(context)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Problem> {
    headers
        .get(name)
        .map(|v| v.to_str().map_err(|_| Problem::bad_request("invalid-header", format!("header {name} is not text"))))
        .transpose()
}

fn invalid(error: &InvalidEvent, index: Option<usize>) -> Problem {
    match index {
        None => Problem::bad_request("invalid-event", error.to_string()),
        Some(index) => {
            Problem::bad_request("invalid-event", format!("event {index} of the batch: {error}; none was taken"))
                .with("index", index)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(n, v): &(&str, &str)| {
            (n.parse::<http::HeaderName>().expect("name"), http::HeaderValue::from_bytes(v.as_bytes()).expect("value"))
        };
        pairs.iter().map(pair).collect()
    }

    const CE: [(&str, &str); 4] = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")];

    fn with(more: &[(&str, &str)]) -> HeaderMap {
        headers(&[&CE[..], more].concat())
    }

    #[test]
    fn binary_mode_keeps_the_body_to_the_byte() {
        let map = with(&[("content-type", "application/json"), ("ce-subject", "caf%C3%A9"), ("ce-ext", "v")]);
        let decoded = decode(&map, Bytes::from_static(b"{\"a\": 1.0}"), 10).expect("event");
        let event = &decoded.events[0];
        assert_eq!(event.data.as_ref().expect("data").as_bytes(), b"{\"a\": 1.0}");
        assert_eq!(event.subject.as_deref(), Some("café"));
        assert_eq!(event.extension_str("ext"), Some("v"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |map: HeaderMap, body: &'static str, expected: &str| {
            let problem = decode(&map, Bytes::from_static(body.as_bytes()), 2).err().expect(expected);
            assert!(problem.detail.contains(expected), "{problem:?}");
        };
        check(headers(&[]), "{}", "no CloudEvent");
        check(headers(&[("content-type", "application/cloudevents+avro")]), "", "avro");
        check(headers(&[("content-type", "application/cloudevents+json")]), "{", "JSON");
        check(headers(&[("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-type", "t")]), "", "`source` is missing");
        check(headers(&[("ce-specversion", "0.3"), CE[1], CE[2], CE[3]]), "", "specversion");
        check(with(&[("content-type", "application/json")]), "{broken", "data");
        check(with(&[("ce-id", "2")]), "", "more than once");
        check(with(&[("ce-bad_name", "x")]), "", "bad_name");
        let batch = headers(&[("content-type", "application/cloudevents-batch+json")]);
        check(batch.clone(), "{}", "array");
        check(batch.clone(), "[{},{},{}]", "3 events");
        check(batch, r#"[{"specversion":"1.0","id":"1","source":"/s","type":"t"},{"specversion":"1.0"}]"#, "event 1");
    }

    #[test]
    fn an_empty_batch_is_a_batch() {
        let map = headers(&[("content-type", "application/cloudevents-batch+json; charset=utf-8")]);
        assert!(decode(&map, Bytes::from_static(b"[]"), 2).expect("batch").events.is_empty());
    }
}
