//! Whatever is wrong in a request is refused by name, and changes nothing.

#[path = "bad_input/clients.rs"]
mod clients;

use nexus_tests::problem::{json as json_request, refused, state, unchanged};
use nexus_tests::{Server, ServerBuilder, server};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

/// A server with small bounds, one function and one event: something that a bad request could change.
async fn prepared() -> Server {
    prepared_from(Server::builder()).await
}

async fn prepared_from(builder: ServerBuilder) -> Server {
    let bounds = "body_bytes_max = 65536\nbatch_events_max = 4\ncomponent_bytes_max = 1500000";
    let server = builder.config(bounds).start();
    server.deploy("victim", "probe", json!({"env": {"A": "1"}})).await;
    server.send(event(&[])).await;
    server.settled("1", "done").await;
    server
}

/// A whole event with these members set, or taken away by null.
fn event(members: &[(&str, Value)]) -> Value {
    let mut event = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"});
    for (name, value) in members {
        match value {
            Value::Null => drop(event.as_object_mut().expect("object").remove(*name)),
            value => event[*name] = value.clone(),
        }
    }
    event
}

fn post(server: &Server, content_type: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
    server.request(Method::POST, "/v1/events").header("content-type", content_type).body(body)
}

#[tokio::test]
async fn structured_events() {
    let server = prepared().await;
    let before = state(&server).await;
    let long = "x".repeat(4097);
    let rows: &[(&str, Value, &str)] = &[
        ("specversion", Value::Null, "`specversion` is missing"),
        ("specversion", json!("0.3"), "`specversion`"),
        ("specversion", json!(1.0), "`specversion`"),
        ("id", Value::Null, "`id` is missing"),
        ("id", json!(""), "`id` is empty"),
        ("id", json!(7), "`id` is not a string"),
        ("id", json!(long), "`id` is longer"),
        ("id", json!("a\u{7}b"), "`id` has a control character"),
        ("source", Value::Null, "`source` is missing"),
        ("source", json!(""), "`source` is empty"),
        ("source", json!("a b"), "`source` is not a URI"),
        ("source", json!("/<x>"), "`source` is not a URI"),
        ("source", json!(true), "`source` is not a string"),
        ("type", Value::Null, "`type` is missing"),
        ("type", json!(""), "`type` is empty"),
        ("type", json!(1), "`type` is not a string"),
        ("type", json!("a\nb"), "`type` has a control character"),
        ("subject", json!(""), "`subject` is empty"),
        ("subject", json!(1), "`subject` is not a string"),
        ("time", json!("noon"), "`time`"),
        ("time", json!("2026-13-01T00:00:00Z"), "`time`"),
        ("time", json!(0), "`time` is not a string"),
        ("datacontenttype", json!(1), "`datacontenttype` is not a string"),
        ("datacontenttype", json!("a\u{0}b"), "`datacontenttype`"),
        ("dataschema", json!(1), "`dataschema` is not a string"),
        ("dataschema", json!(long), "`dataschema` is longer"),
        ("Upper", json!("x"), "`Upper`"),
        ("with-dash", json!("x"), "`with-dash`"),
        ("", json!("x"), "attribute ``"),
        ("ext", json!({}), "`ext`"),
        ("ext", json!([1]), "`ext`"),
        ("ext", json!(4_294_967_296_u64), "`ext`"),
        ("ext", json!(1.5), "`ext`"),
        ("data_base64", json!("***"), "`data_base64`"),
        ("data_base64", json!(1), "line 1"),
    ];
    for (name, value, names) in rows {
        let what = format!("{name} = {}", value.to_string().chars().take(40).collect::<String>());
        refused(&what, post(&server, STRUCTURED, event(&[(name, value.clone())]).to_string()), 400, names).await;
    }
    let both = event(&[("data", json!(1)), ("data_base64", json!("AA=="))]).to_string();
    let many: Vec<(String, Value)> = (0..65).map(|n| (format!("ext{n}"), json!("x"))).collect();
    let many = event(&many.iter().map(|(n, v)| (n.as_str(), v.clone())).collect::<Vec<_>>()).to_string();
    let twice = r#"{"specversion":"1.0","id":"1","id":"2","source":"/s","type":"t"}"#;
    let bodies: &[(&str, &str, &[u8])] = &[
        ("both kinds of data", "`data`", both.as_bytes()),
        ("too many extensions", "64", many.as_bytes()),
        ("an attribute twice", "`id` appears twice", twice.as_bytes()),
        ("nothing", "JSON", b""),
        ("an array", "JSON", b"[]"),
        ("a string", "JSON", b"\"event\""),
        ("a piece", "JSON", b"{\"specversion\":\"1.0\","),
        ("more than one", "JSON", b"{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\"}{}"),
        ("no UTF-8", "JSON", b"{\"specversion\":\"1.0\",\"id\":\"\xff\xfe\",\"source\":\"/s\",\"type\":\"t\"}"),
    ];
    for (what, names, body) in bodies {
        refused(what, post(&server, STRUCTURED, body.to_vec()), 400, names).await;
    }
    unchanged("at the end", &server, &before).await;
}

#[tokio::test]
async fn binary_events_and_batches() {
    let server = prepared().await;
    let before = state(&server).await;
    // A header is taken away by None, and set else.
    let rows: &[(&str, Option<&[u8]>, &str)] = &[
        ("ce-specversion", None, "no CloudEvent"),
        ("ce-specversion", Some(b"0.3"), "`specversion`"),
        ("ce-id", None, "`id` is missing"),
        ("ce-id", Some(b""), "`id` is empty"),
        ("ce-id", Some(b"a%00b"), "`id` has a control character"),
        ("ce-id", Some(b"\xff\xfe"), "`id` is not UTF-8"),
        ("ce-source", None, "`source` is missing"),
        ("ce-source", Some(b"a%20b"), "`source` is not a URI"),
        ("ce-type", None, "`type` is missing"),
        ("ce-type", Some(b""), "`type` is empty"),
        ("ce-time", Some(b"yesterday"), "`time`"),
        ("ce-subject", Some(b""), "`subject` is empty"),
        ("ce-datacontenttype", Some(b"text/plain"), "`datacontenttype`"),
        ("ce-data", Some(b"x"), "`data`"),
        ("ce-data_base64", Some(b"AA=="), "`data_base64`"),
        ("ce-my-ext", Some(b"x"), "`my-ext`"),
        ("ce-", Some(b"x"), "attribute ``"),
        ("content-type", Some(b"\xff\xfe"), "content-type"),
    ];
    let all: [(&str, &[u8]); 5] = [
        ("ce-specversion", b"1.0"),
        ("ce-id", b"2"),
        ("ce-source", b"/s"),
        ("ce-type", b"t"),
        ("content-type", b"text/plain"),
    ];
    let with = |name: &str, value: Option<&[u8]>| {
        let rest = all.iter().filter(|(n, _)| *n != name).map(|(n, v)| (*n, Some(*v)));
        let request = server.request(Method::POST, "/v1/events").body("{broken");
        rest.chain([(name, value)])
            .filter_map(|(n, v)| Some((n.to_owned(), v?.to_vec())))
            .fold(request, |r, (n, v)| r.header(n, http::HeaderValue::from_bytes(&v).expect("a value")))
    };
    for (name, value, names) in rows {
        let what = format!("{name} = {:?}", value.map(String::from_utf8_lossy));
        refused(&what, with(name, *value), 400, names).await;
    }
    let twice = with("ce-id", Some(b"2")).header("ce-id", "3");
    refused("ce-id twice", twice, 400, "`id` appears more than once").await;
    refused("data that is no JSON", with("content-type", Some(b"application/json")), 400, "`data`").await;
    refused("no event at all", server.request(Method::POST, "/v1/events"), 400, "no CloudEvent").await;
    for format in ["application/cloudevents+avro", "application/cloudevents", "application/cloudevents-batch+xml"] {
        refused(format, post(&server, format, "x"), 415, format).await;
    }

    let numbered = |n: usize| event(&[("id", json!(format!("batch-{n}")))]);
    for at in 0..3 {
        let mut batch: Vec<Value> = (0..3).map(numbered).collect();
        batch[at]["type"] = json!("");
        let request = post(&server, BATCH, Value::from(batch).to_string());
        let (_, problem) = refused("a bad event in a batch", request, 400, &format!("event {at} of the batch")).await;
        assert_eq!(problem["index"], at);
        assert!(problem["detail"].as_str().is_some_and(|d| d.contains("`type` is empty")), "{problem}");
    }
    let five: Vec<Value> = (0..5).map(numbered).collect();
    refused("too many events", post(&server, BATCH, Value::from(five).to_string()), 413, "4 is the most").await;
    for (body, names) in [("{}", "array"), ("", "array"), ("[1]", "event 0"), ("[[]]", "event 0"), ("[{}", "array")] {
        refused(body, post(&server, BATCH, body), 400, names).await;
    }
    unchanged("at the end", &server, &before).await;
}

#[tokio::test]
async fn names_ids_cursors_bounds_and_times() {
    let server = prepared().await;
    let before = state(&server).await;
    let nowhere = "018f0000-0000-7000-8000-000000000000";
    let long = format!("/v1/functions/{}", "a".repeat(64));
    let rows: &[(Method, &str, u16, &str)] = &[
        (Method::GET, "/v1/events?limit=0", 400, "`limit`"),
        (Method::GET, "/v1/events?limit=1001", 400, "`limit`"),
        (Method::GET, "/v1/events?limit=-1", 400, "`limit`"),
        (Method::GET, "/v1/events?limit=ten", 400, "`limit`"),
        (Method::GET, "/v1/events?from=noon", 400, "`from`"),
        (Method::GET, "/v1/events?to=2026-02-30T00:00:00Z", 400, "`to`"),
        (Method::GET, "/v1/events?status=odd", 400, "`status`"),
        (Method::GET, "/v1/events?trace_id=xyz", 400, "xyz"),
        (Method::GET, "/v1/events?trace_id=00000000000000000000000000000000", 400, "trace"),
        (Method::GET, "/v1/events?function=Bad", 400, "Bad"),
        (Method::GET, "/v1/events?cursor=x", 400, "`cursor`"),
        (Method::GET, "/v1/events?cursor=-1", 400, "`cursor`"),
        (Method::GET, "/v1/events?colour=red", 400, "colour"),
        (Method::GET, "/v1/events?limit=1&limit=2", 400, "limit"),
        (Method::GET, "/v1/events/nope", 404, "nope"),
        (Method::GET, "/v1/events/1?source=/other", 404, "1"),
        (Method::GET, "/v1/events/1?source=/s&source=/t", 400, "source"),
        (Method::GET, "/v1/events/1?sauce=/s", 400, "sauce"),
        (Method::GET, "/v1/events/%FF", 400, ""),
        (Method::GET, "/v1/invocations/x", 400, "invocation id"),
        (Method::GET, &format!("/v1/invocations/{nowhere}"), 404, nowhere),
        (Method::GET, "/v1/functions/Bad", 400, "function name"),
        (Method::GET, "/v1/functions/-a", 400, "function name"),
        (Method::GET, "/v1/functions/%2e%2e%2fetc", 400, "function name"),
        (Method::GET, &long, 400, "63 characters"),
        (Method::GET, "/v1/functions/%FF", 400, ""),
        (Method::GET, "/v1/functions/absent", 404, "absent"),
        (Method::GET, "/v1/functions/absent/versions", 404, "absent"),
        (Method::DELETE, "/v1/functions/absent", 404, "absent"),
        (Method::DELETE, "/v1/functions/Bad", 400, "function name"),
        (Method::GET, "/v1/replays/x", 400, "replay id"),
        (Method::GET, &format!("/v1/replays/{nowhere}"), 404, nowhere),
        (Method::DELETE, &format!("/v1/replays/{nowhere}"), 404, nowhere),
        (Method::GET, "/v1/traces/x", 400, "trace"),
        (Method::GET, "/v1/traces/4bf92f3577b34da6a3ce929d0e0e4736", 404, "4bf92f35"),
        (Method::GET, "/api/traces/x", 400, "trace"),
        (Method::GET, "/api/traces?limit=x", 400, "limit"),
        (Method::GET, "/v1/logs", 400, "event_id"),
        (Method::GET, "/v1/logs?follow=maybe", 400, "follow"),
        (Method::GET, "/v1/logs?event_id=nope", 404, "nope"),
        (Method::GET, "/fn/Bad", 400, "function name"),
        (Method::POST, "/fn/absent/x", 404, "absent"),
        (Method::GET, "/fn/%FF/x", 400, ""),
        (Method::GET, "/nowhere", 404, "/nowhere"),
        (Method::PATCH, "/v1/events", 405, "PATCH"),
        (Method::POST, "/v1/functions/victim", 405, "POST"),
        (Method::DELETE, "/metrics", 405, "DELETE"),
    ];
    for (method, path, status, names) in rows {
        refused(&format!("{method} {path}"), server.request(method.clone(), path), *status, names).await;
    }
    unchanged("at the end", &server, &before).await;
}

#[tokio::test]
async fn configurations() {
    let server = prepared().await;
    let before = state(&server).await;
    let mut deep = json!({"exact": {"type": "t"}});
    for _ in 0..20 {
        deep = json!({"not": deep});
    }
    let filter = |filter: Value| json!({"triggers": [{"filters": [filter]}]});
    let wide: Vec<Value> = (0..300).map(|n| json!({"exact": {"type": n.to_string()}})).collect();
    let env: Value = (0..257).map(|n| (n.to_string(), json!("x"))).collect::<serde_json::Map<_, _>>().into();
    let triggers: Vec<Value> = (0..65).map(|_| json!({"filters": []})).collect();
    let mount = |host: &str, guest: &str| json!({"mounts": [{"host": host, "guest": guest}]});
    let rows: &[(Value, &str)] = &[
        (json!({"trigger": []}), "trigger"),
        (json!({"triggers": {}}), "expected a sequence"),
        (json!({"triggers": [{"filter": []}]}), "filter"),
        (json!({"triggers": [{}]}), "filters"),
        (json!({"triggers": triggers}), "`triggers`"),
        (filter(json!(7)), "object"),
        (filter(json!({})), "exactly one"),
        (filter(json!({"exact": {"type": "a"}, "prefix": {"type": "a"}})), "exactly one"),
        (filter(json!({"regex": {"type": "a"}})), "regex"),
        (filter(json!({"sql": "type == 'a'"})), "sql: at byte 6"),
        (filter(json!({"not": {"sql": "lenght(type) = 1"}})), "LENGHT"),
        (filter(json!({"sql": 7})), "sql"),
        (filter(json!({"exact": {}})), "exact"),
        (filter(json!({"exact": "t"})), "exact"),
        (filter(json!({"exact": {"Type": "a"}})), "Type"),
        (filter(json!({"exact": {"type": 1}})), "exact.type"),
        (filter(json!({"prefix": {"type": ""}})), "prefix.type"),
        (filter(json!({"suffix": []})), "suffix"),
        (filter(json!({"all": []})), "all"),
        (filter(json!({"all": [{"exact": {"type": "a"}}, {"exact": {"type": 1}}]})), "all[1].exact.type"),
        (filter(json!({"any": {}})), "any"),
        (filter(json!({"any": wide})), "more than 256"),
        (filter(json!({"not": []})), "not"),
        (filter(deep), "deeper"),
        (json!({"env": {"": "x"}}), "`env.`"),
        (json!({"env": {"A=B": "x"}}), "`env.A=B`"),
        (json!({"env": {"A": "x\u{0}"}}), "`env.A`"),
        (json!({"env": {"A": 1}}), "string"),
        (json!({"env": {"A": "x".repeat(40_000)}}), "`env.A`"),
        (json!({"env": env}), "`env`"),
        (json!({"limits": {"timeout_ms": 0}}), "`limits.timeout_ms`"),
        (json!({"limits": {"timeout_ms": 900_001}}), "`limits.timeout_ms`"),
        (json!({"limits": {"memory_mb": 0}}), "`limits.memory_mb`"),
        (json!({"limits": {"memory_mb": 4097}}), "`limits.memory_mb`"),
        (json!({"limits": {"concurrency": 0}}), "`limits.concurrency`"),
        (json!({"limits": {"concurrency": 1001}}), "`limits.concurrency`"),
        (json!({"limits": {"concurrency": -1}}), "-1"),
        (json!({"limits": {"cpu": 1}}), "cpu"),
        (json!({"retry": {"attempts_max": 0}}), "`retry.attempts_max`"),
        (json!({"retry": {"backoff_ms": 3_600_001}}), "`retry.backoff_ms`"),
        (json!({"retry": {"backoff_ms": 10, "backoff_max_ms": 9}}), "`retry.backoff_max_ms`"),
        (json!({"retry": {"times": 1}}), "times"),
        (json!({"egress": "host"}), "expected a sequence"),
        (json!({"egress": [""]}), "`egress[0]`"),
        (json!({"egress": ["ok.example", "http://host/path"]}), "`egress[1]`"),
        (json!({"egress": ["host:0"]}), "`egress[0]`"),
        (mount("data", "/data"), "`mounts[0].host`"),
        (mount("/tmp", "data"), "`mounts[0].guest`"),
        (mount("/tmp", "/data"), "mounts_allowed"),
        (mount("/no/such/folder", "/data"), "/no/such/folder"),
        (json!({"mounts": [{"host": "/tmp", "guest": "/d", "mode": "rw"}]}), "mode"),
        (json!([]), "configuration"),
        (json!("x"), "configuration"),
    ];
    let path = "/v1/functions/victim/config";
    for (config, names) in rows {
        let what: String = config.to_string().chars().take(120).collect();
        refused(&what, json_request(&server, Method::PUT, path, config.to_string()), 400, names).await;
    }
    refused("no JSON", json_request(&server, Method::PUT, path, "{"), 400, "configuration").await;
    let absent = json_request(&server, Method::PUT, "/v1/functions/absent/config", "{}");
    refused("no such function", absent, 404, "absent").await;
    unchanged("at the end", &server, &before).await;
}

#[tokio::test]
async fn components() {
    let server = prepared().await;
    let before = state(&server).await;
    let probe = server::component("probe");
    let alien = |name: &str| {
        let path = server::repository().join("tests/guests/alien").join(format!("{name}.wat"));
        wat::parse_file(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let module =
        |needs: &str| wat::parse_str(format!("(module {needs} (func (export \"_start\")))")).expect("a module");
    let mut bent = probe.clone();
    bent[100..200].fill(0xff);
    let rows: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", Vec::new(), "empty"),
        ("a text", b"#!/bin/sh\necho".to_vec(), "#!/bin/s"),
        ("half a magic number", b"\0as".to_vec(), "not WebAssembly"),
        ("a magic number and no more", b"\0asm".to_vec(), "header"),
        ("a version of the future", b"\0asm\x63\0\0\0".to_vec(), "not valid WebAssembly"),
        ("a component without its end", probe[..probe.len() / 2].to_vec(), "not valid WebAssembly"),
        ("a component with its middle overwritten", bent, "not valid WebAssembly"),
        ("an import that nobody has", alien("unknown-import"), "acme:db/kv@1.0.0"),
        ("a module without an entry", alien("no-entry"), "_start"),
        ("a component without an entry", alien("not-a-function"), "answer"),
        ("a handle of another type", alien("wrong-type"), "handle"),
        ("more memory than any place has", module("(memory 65536)"), "memory"),
        ("a table that no place has", module("(table 1000000 funcref)"), "table"),
        ("more memories than places", module(&"(memory 1)".repeat(40)), "memories"),
    ];
    let untyped = |name: &str| server.request(Method::PUT, &format!("/v1/functions/{name}"));
    let put = |name: &str, bytes: Vec<u8>| untyped(name).header("content-type", "application/wasm").body(bytes);
    for (what, bytes, names) in rows {
        // Both as a new function and over one that runs.
        for name in ["new", "victim"] {
            refused(what, put(name, bytes.clone()), 422, names).await;
        }
    }
    for name in ["Upper", "a_b", "-", "a.b"] {
        refused(name, put(name, b"\0asm".to_vec()), 400, name).await;
    }
    refused("no content type", untyped("new").body("\0asm"), 415, "application/wasm").await;
    let mistyped = untyped("new").header("content-type", "text/plain").body("\0asm");
    refused("another content type", mistyped, 415, "application/wasm").await;
    unchanged("at the end", &server, &before).await;
    let (status, answer) = server.answer(server.request(Method::GET, "/fn/victim/hello")).await;
    assert_eq!((status, answer), (200, json!("hello")), "what ran before runs still");
}

#[tokio::test]
async fn replays() {
    let server = prepared().await;
    let before = state(&server).await;
    let rows: &[(Value, u16, &str)] = &[
        (json!({}), 400, "exactly one"),
        (json!({"event_id": "1", "trace_id": "x"}), 400, "exactly one"),
        (json!({"event_id": 1}), 400, "string"),
        (json!({"event": "1"}), 400, "event"),
        (json!({"event_id": "1", "mode": "dry"}), 400, "dry"),
        (json!({"event_id": "1", "mode": "live", "rate": 0}), 400, "`rate`"),
        (json!({"event_id": "1", "mode": "live", "rate": -1}), 400, "`rate`"),
        (json!({"event_id": "1", "mode": "live", "rate": "fast"}), 400, "fast"),
        (json!({"event_id": "1", "mode": "live", "function": "Bad"}), 400, "Bad"),
        (json!({"event_id": "1", "mode": "live", "function": "victim@0"}), 400, "version"),
        (json!({"event_id": "1", "mode": "live", "function": "victim@x"}), 400, "version"),
        (json!({"event_id": "1", "mode": "live", "function": "victim@99"}), 404, "victim@99"),
        (json!({"event_id": "1", "mode": "live", "function": "absent"}), 404, "absent"),
        (json!({"event_id": "nope", "mode": "live"}), 404, "nope"),
        (json!({"trace_id": "xyz", "mode": "live"}), 400, "xyz"),
        (json!({"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "mode": "live"}), 404, "4bf92f35"),
        (json!([]), 400, "request"),
    ];
    for (body, status, names) in rows {
        let request = json_request(&server, Method::POST, "/v1/replays", body.to_string());
        refused(&body.to_string(), request, *status, names).await;
    }
    // A form of another site can send this type without asking.
    let form = server.request(Method::POST, "/v1/replays").header("content-type", "text/plain");
    refused("not JSON", form.body(r#"{"event_id":"1","mode":"live"}"#), 415, "application/json").await;
    unchanged("at the end", &server, &before).await;
}
