//! Events over HTTP: taken in every mode, kept as they came, found again.

use nexus_tests::Server;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn traceparent(trace: &str) -> String {
    format!("00-{trace}-00f067aa0ba902b7-01")
}

/// A request in binary mode; the event is of type `t` from `/s`.
fn binary(server: &Server, id: &str) -> RequestBuilder {
    let post = server.request(Method::POST, "/v1/events").header("ce-specversion", "1.0");
    post.header("ce-id", id).header("ce-source", "/s").header("ce-type", "t")
}

fn structured(server: &Server, content_type: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
    server.request(Method::POST, "/v1/events").header("content-type", content_type).body(body)
}

fn event(id: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/s", "type": "t"})
}

async fn raw(server: &Server, path: &str) -> String {
    let response = server.request(Method::GET, path).send().await.expect("an answer");
    assert_eq!(response.status(), 200, "{path}");
    response.text().await.expect("text")
}

#[tokio::test]
async fn every_mode_is_taken_and_answered_alike() {
    let server = Server::start();
    let check = async |request: RequestBuilder, ids: &[&str]| {
        let (status, answer) = server.answer(request).await;
        assert_eq!(status, 202, "{answer}");
        let receipts = answer["events"].as_array().expect("receipts").clone();
        assert_eq!(receipts.iter().map(|r| r["id"].as_str().expect("id")).collect::<Vec<_>>(), ids);
        for receipt in receipts {
            let keys: Vec<_> = receipt.as_object().expect("a receipt").keys().map(String::as_str).collect();
            assert_eq!(keys, ["duplicate", "id", "seq", "source", "trace_id"]);
            assert_eq!((&receipt["source"], &receipt["duplicate"]), (&json!("/s"), &json!(false)));
            let found = server.get(&format!("/v1/events/{}", receipt["id"].as_str().expect("id"))).await;
            assert_eq!((&found["seq"], &found["trace_id"]), (&receipt["seq"], &receipt["trace_id"]));
        }
    };
    check(binary(&server, "binary"), &["binary"]).await;
    let one = event("structured").to_string();
    check(structured(&server, "application/cloudevents+json; charset=utf-8", one), &["structured"]).await;
    let two = json!([event("batch-1"), event("batch-2")]).to_string();
    check(structured(&server, "application/cloudevents-batch+json", two), &["batch-1", "batch-2"]).await;
    check(structured(&server, "application/cloudevents-batch+json", "[]"), &[]).await;
}

#[tokio::test]
async fn a_trace_goes_on_from_header_or_extension() {
    let server = Server::start();
    let check = async |id: &str, header: Option<String>, extension: Option<String>, expected: Option<&str>| {
        let mut event = event(id);
        if let Some(extension) = extension {
            event["traceparent"] = extension.into();
        }
        let mut request = structured(&server, "application/cloudevents+json", event.to_string());
        if let Some(header) = header {
            request = request.header("traceparent", header);
        }
        let (_, answer) = server.answer(request).await;
        let trace = answer["events"][0]["trace_id"].as_str().expect("a trace").to_owned();
        match expected {
            Some(expected) => assert_eq!(trace, expected, "{id}"),
            None => assert!(trace.len() == 32 && ![TRACE, OTHER_TRACE].contains(&trace.as_str()), "{id}: {trace}"),
        }
    };
    check("new", None, None, None).await;
    check("header", Some(traceparent(TRACE)), None, Some(TRACE)).await;
    check("extension", None, Some(traceparent(TRACE)), Some(TRACE)).await;
    check("header-wins", Some(traceparent(TRACE)), Some(traceparent(OTHER_TRACE)), Some(TRACE)).await;
    // The standard says to go on as if there were none.
    check("malformed", Some("00-nonsense".into()), None, None).await;
    check("malformed-header", Some("00-nonsense".into()), Some(traceparent(TRACE)), Some(TRACE)).await;

    // Both spans of the way in: the sender's is the parent of the event's own.
    let trace = server.get(&format!("/v1/traces/{TRACE}")).await;
    let spans = nexus_tests::spans::of_json(&trace);
    let accepts: Vec<_> = spans.iter().filter(|s| s.name == "accept t").collect();
    assert_eq!(accepts.len(), 4);
    assert!(accepts.iter().all(|s| s.parent == "00f067aa0ba902b7"), "{accepts:#?}");
}

#[tokio::test]
async fn a_duplicate_is_answered_with_the_first_receipt() {
    let server = Server::start();
    let first = server.send(event("1")).await;
    // Whatever else came with it: source and id decide.
    let mut changed = event("1");
    changed["type"] = "other".into();
    let again = structured(&server, "application/cloudevents+json", changed.to_string());
    let (status, answer) = server.answer(again.header("traceparent", traceparent(TRACE))).await;
    assert_eq!(status, 202);
    let mut expected = first.clone();
    expected["duplicate"] = true.into();
    assert_eq!(answer["events"], json!([expected]));

    // Within a batch too, and beside events that are none.
    let batch = json!([event("2"), event("1"), event("2")]).to_string();
    let (_, answer) = server.answer(structured(&server, "application/cloudevents-batch+json", batch)).await;
    let of =
        |key: &str| answer["events"].as_array().expect("receipts").iter().map(|r| r[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("duplicate"), [false, true, true]);
    assert_eq!(of("seq")[1], first["seq"]);
    assert_eq!(of("seq")[0], of("seq")[2]);

    let all = server.get("/v1/events").await;
    assert_eq!(all["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(server.get("/v1/events/1").await["event"]["type"], "t");
}

#[tokio::test]
async fn a_batch_is_taken_whole_or_not_at_all() {
    let server = Server::start();
    let mut bad = event("bad");
    bad["source"] = "".into();
    let batch = json!([event("good"), bad]).to_string();
    let (status, problem) = server.answer(structured(&server, "application/cloudevents-batch+json", batch)).await;
    assert_eq!((status, &problem["index"]), (400, &json!(1)), "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("source")), "{problem}");
    assert_eq!(server.get("/v1/events").await["items"], json!([]));
}

/// JSON of which every parser that reads it into values loses something.
const PAYLOAD: &str = r#"{"z":123456789012345678901234567890, "a" :1.10e2,
  "a": [ ], "é":"\u00e9" }"#;

#[tokio::test]
async fn a_payload_is_kept_byte_for_byte() {
    let server = Server::start();
    let (status, _) =
        server.answer(binary(&server, "binary").header("content-type", "application/json").body(PAYLOAD)).await;
    assert_eq!(status, 202);
    let whole = format!(r#"{{"specversion":"1.0","id":"structured","source":"/s","type":"t","data":{PAYLOAD}}}"#);
    server.answer(structured(&server, "application/cloudevents+json", whole.clone())).await;
    let batch = format!("[{}]", whole.replace("structured", "batch"));
    server.answer(structured(&server, "application/cloudevents-batch+json", batch)).await;
    for id in ["binary", "structured", "batch"] {
        let text = raw(&server, &format!("/v1/events/{id}")).await;
        assert!(text.contains(PAYLOAD), "{id}: {text}");
    }
    let text = raw(&server, "/v1/events").await;
    assert_eq!(text.matches(PAYLOAD).count(), 3, "{text}");
}

/// The function gets the JSON to the byte; only white space around it is not part of it (docs/decisions/0002).
#[tokio::test]
async fn a_function_gets_the_very_bytes_of_the_body() {
    let server = Server::start();
    server.deploy("probe", "probe", json!({"triggers": [{"filters": []}]})).await;
    let body = " {\"a\": 1,  \"b\":1.0}\n";
    server.answer(binary(&server, "1").header("content-type", "application/json").body(body)).await;
    let event = server.settled("1", "done").await;
    assert_eq!(event["invocations"][0]["output"]["data"]["length"], body.trim().len());
}

#[tokio::test]
async fn a_payload_need_not_be_json() {
    let server = Server::start();
    let check = async |id: &str, content_type: &str, body: &'static [u8], member: &str, expected: &str| {
        let (status, answer) = server.answer(binary(&server, id).header("content-type", content_type).body(body)).await;
        assert_eq!(status, 202, "{answer}");
        let event = server.get(&format!("/v1/events/{id}")).await["event"].clone();
        assert_eq!(event[member], expected, "{event}");
        assert_eq!(event["datacontenttype"], content_type);
    };
    check("text", "text/plain", "grüße\n".as_bytes(), "data", "grüße\n").await;
    check("bytes", "application/octet-stream", &[0xff, 0x00, 0x01], "data_base64", "/wAB").await;
    check("not-utf8", "text/plain", &[0xff, 0x00, 0x01], "data_base64", "/wAB").await;
    let bytes = json!({"specversion": "1.0", "id": "base64", "source": "/s", "type": "t",
                       "datacontenttype": "image/png", "data_base64": "/wAB"});
    server.send(bytes.clone()).await;
    assert_eq!(server.get("/v1/events/base64").await["event"], bytes);
}

#[tokio::test]
async fn attributes_in_headers_are_percent_encoded() {
    let server = Server::start();
    let request = binary(&server, "1").header("ce-subject", "Euro%20%E2%82%AC").header("ce-ext", "100%25");
    assert_eq!(server.answer(request).await.0, 202);
    let event = server.get("/v1/events/1").await["event"].clone();
    assert_eq!((&event["subject"], &event["ext"]), (&json!("Euro €"), &json!("100%")));
}

#[tokio::test]
async fn an_id_of_two_sources_needs_the_source() {
    let server = Server::start();
    server.send(event("1")).await;
    let mut other = event("1");
    other["source"] = "https://example.com/other?x=1".into();
    server.send(other.clone()).await;
    let (status, problem) = server.answer(server.request(Method::GET, "/v1/events/1")).await;
    let mut sources: Vec<_> =
        problem["sources"].as_array().expect("sources").iter().filter_map(Value::as_str).collect();
    sources.sort_unstable();
    assert_eq!((status, sources), (409, vec!["/s", "https://example.com/other?x=1"]));
    let found = server.get("/v1/events/1?source=https%3A%2F%2Fexample.com%2Fother%3Fx%3D1").await;
    assert_eq!(found["event"], other);
    assert_eq!(server.answer(server.request(Method::GET, "/v1/events/1?source=/none")).await.0, 404);
}

#[tokio::test]
async fn what_is_no_event_is_refused_with_a_problem() {
    let server = Server::builder().config("body_bytes_max = 1024\nbatch_events_max = 2").start();
    let json = "application/cloudevents+json";
    let check = async |request: RequestBuilder, status: u16, named: &str| {
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), status, "{named}");
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{named}");
        let problem: Value = serde_json::from_str(&response.text().await.expect("text")).expect("JSON");
        let text = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
        assert!(text("type").starts_with("urn:nexus:problem:"), "{problem}");
        assert!(!text("title").is_empty(), "{problem}");
        assert_eq!(problem["status"], status);
        assert!(text("detail").contains(named), "{named}: {problem}");
    };
    let without = |name: &str| {
        let mut event = event("1");
        event.as_object_mut().expect("an object").remove(name);
        event.to_string()
    };
    for name in ["specversion", "id", "source", "type"] {
        check(structured(&server, json, without(name)), 400, name).await;
    }
    check(structured(&server, json, "{"), 400, "JSON").await;
    check(structured(&server, json, event("1").to_string().replace("1.0", "0.3")), 400, "specversion").await;
    check(structured(&server, "application/cloudevents+avro", "x"), 415, "avro").await;
    check(structured(&server, "application/json", "{}"), 400, "ce-specversion").await;
    check(structured(&server, "application/cloudevents-batch+json", "{}"), 400, "array").await;
    let three = json!([event("1"), event("2"), event("3")]).to_string();
    check(structured(&server, "application/cloudevents-batch+json", three), 413, "3 events").await;
    check(binary(&server, "1").body(vec![b' '; 1025]), 413, "1024 bytes").await;
    check(binary(&server, "1").header("content-type", "application/json").body("{"), 400, "data").await;
    check(binary(&server, "1").header("ce-id", "2"), 400, "more than once").await;
    check(binary(&server, "1").header("ce-Bad_Name", "x"), 400, "bad_name").await;
    check(server.request(Method::GET, "/v1/events/none"), 404, "none").await;
    assert_eq!(server.get("/v1/events").await["items"], json!([]));
}
