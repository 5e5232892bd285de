//! Another implementation of CloudEvents, the SDK of the standard's own project, must agree with ours.

use cloudevents::binding::http::{Builder, Serializer};
use cloudevents::event::{Data, Event, EventBuilder, EventBuilderV10, ExtensionValue};
use cloudevents::message::{Result, StructuredDeserializer};
use cloudevents::{AttributesReader, AttributesWriter};
use nexus_tests::{Server, spans};
use serde_json::{Value, json};

type Request = http::Request<Option<Vec<u8>>>;

fn binary(event: Event) -> Result<Request> {
    event.try_into()
}

fn structured(event: Event) -> Result<Request> {
    StructuredDeserializer::deserialize_structured(event, Serializer::new(Building(Some(http::Request::builder()))))
}

/// The SDK writes its structured mode into whatever is built.
struct Building(Option<http::request::Builder>);

impl Builder<Request> for Building {
    fn header(&mut self, name: &str, value: http::HeaderValue) {
        self.0 = self.0.take().map(|b| b.header(name, value));
    }

    fn body(&mut self, bytes: Vec<u8>) -> Result<Request> {
        Ok(self.0.take().expect("not yet built").body(Some(bytes)).expect("a request"))
    }

    fn finish(&mut self) -> Result<Request> {
        Ok(self.0.take().expect("not yet built").body(None).expect("a request"))
    }
}

/// Sends a request that the SDK made, and returns status and answer.
async fn send(server: &Server, request: Request) -> (u16, Value) {
    let (head, body) = request.into_parts();
    let post = server.request(reqwest::Method::POST, "/v1/events");
    server.answer(post.headers(head.headers).body(body.unwrap_or_default())).await
}

/// Events with what an event can have, under ids of their own.
fn events() -> Vec<Event> {
    let base = |id: &str| EventBuilderV10::new().id(id).source("/sdk/source").ty("com.example.type");
    let build = |builder: EventBuilderV10| builder.build().expect("an event");
    vec![
        build(base("minimal")),
        build(
            base("attributes")
                .subject("a subject")
                .time("2026-01-31T12:00:00.5Z")
                .extension("text", "value")
                .extension("tenant", "7"),
        ),
        build(base("json").data("application/json", json!({"a": [1, 2.5, null, "é"]}))),
        build(base("suffix").data("application/vnd.example+json", json!("text"))),
        build(base("schema").data_with_schema("application/json", "https://example.com/schema", json!(1))),
        build(base("text").data("text/plain", "grüße".to_owned())),
        build(base("bytes").data("application/octet-stream", vec![0_u8, 0xff, 1])),
        build(EventBuilderV10::new().id("uri").source("https://example.com/a?b=c#d").ty("x")),
    ]
}

/// Events whose data went over a wire as bytes and came back as text, or the other way round, are equal all the same.
fn same(event: &Event) -> (Vec<(String, String)>, Vec<u8>) {
    let mut attributes: Vec<_> = event.iter().map(|(name, value)| (name.to_owned(), value.to_string())).collect();
    attributes.sort();
    let bytes = match event.data() {
        None => Vec::new(),
        Some(Data::Binary(bytes)) => bytes.clone(),
        Some(Data::String(text)) => text.clone().into_bytes(),
        Some(Data::Json(json)) => json.to_string().into_bytes(),
    };
    (attributes, bytes)
}

/// What the SDK sends is taken, and what is told of it the SDK reads as the event that it was.
#[tokio::test]
async fn an_event_of_the_sdk_comes_back_equal() {
    let server = Server::start();
    for (mode, request) in [("binary", binary as fn(Event) -> Result<Request>), ("structured", structured)] {
        for mut event in events() {
            event.set_id(format!("{mode}-{}", event.id()));
            let (status, answer) = send(&server, request(event.clone()).expect("a request")).await;
            assert_eq!(status, 202, "{mode} {event}: {answer}");
            let path = format!("/v1/events/{}", event.id());
            let told: Event = serde_json::from_value(server.get(&path).await["event"].clone()).expect("an event");
            assert_eq!(same(&told), same(&event), "{mode}");
        }
    }
}

/// In the JSON format, extensions keep their types.
#[tokio::test]
async fn typed_extensions_stay_typed() {
    let server = Server::start();
    let mut event = EventBuilderV10::new().id("1").source("/sdk").ty("t").build().expect("an event");
    event.set_extension("truth", ExtensionValue::Boolean(true));
    event.set_extension("number", ExtensionValue::Integer(-7));
    assert_eq!(send(&server, structured(event.clone()).expect("a request")).await.0, 202);
    let told: Event = serde_json::from_value(server.get("/v1/events/1").await["event"].clone()).expect("an event");
    assert_eq!(told, event);
}

/// A batch is a JSON array of what the SDK writes.
#[tokio::test]
async fn a_batch_of_the_sdk_is_taken() {
    let server = Server::start();
    let batch = serde_json::to_string(&events()).expect("JSON");
    let post = server.request(reqwest::Method::POST, "/v1/events");
    let (status, answer) =
        server.answer(post.header("content-type", "application/cloudevents-batch+json").body(batch)).await;
    assert_eq!(status, 202, "{answer}");
    let page = server.get("/v1/events").await;
    let mut told: Vec<Event> = page["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|e| serde_json::from_value(e["event"].clone()).expect("an event"))
        .collect();
    told.reverse();
    assert_eq!(told.iter().map(same).collect::<Vec<_>>(), events().iter().map(same).collect::<Vec<_>>());
}

/// What functions emit, and the events that stand for calls, are CloudEvents for others too.
#[tokio::test]
async fn our_own_events_are_read_by_the_sdk() {
    let server = Server::start();
    server.deploy("probe", "probe", json!({"triggers": [{"filters": [{"exact": {"type": "t"}}]}]})).await;
    let data = json!({"emit": [{"type": "x", "data": {"n": 1}, "subject": "s"}]});
    let receipt =
        server.send(json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": data})).await;
    server.settled("1", "done").await;
    server.request(reqwest::Method::GET, "/fn/probe/hello").send().await.expect("an answer");
    let page = server.get("/v1/events").await;
    let items = page["items"].as_array().expect("items");
    let read = |value: &Value| serde_json::from_value::<Event>(value["event"].clone()).expect("an event");
    let types: Vec<_> = items.iter().map(|e| read(e).ty().to_owned()).collect();
    assert_eq!(types, ["nexus.http.request", "x", "t"]);
    let emitted = read(&items[1]);
    assert!(emitted.time().is_some());
    // The extension of distributed tracing: the trace, and the invocation's span.
    let trace = receipt["trace_id"].as_str().expect("a trace");
    let trace_spans = spans::of_json(&server.get(&format!("/v1/traces/{trace}")).await);
    let invoke = &spans::named(&trace_spans, "probe").id;
    let traceparent = emitted.extension("traceparent").map(ToString::to_string);
    assert_eq!(traceparent, Some(format!("00-{trace}-{invoke}-01")));
}
