//! Traces as others see them: over OTLP, as `/v1/traces`, and in Jaeger's format, all of the same spans.

use std::collections::BTreeSet;

use nexus_tests::otlp::Collector;
use nexus_tests::receiver::Receiver;
use nexus_tests::spans::{self, Seen};
use nexus_tests::{Server, ServerBuilder, privilege};
use reqwest::StatusCode;
use serde_json::{Value, json};

/// The spans of an order that goes through order-check and webhook-forward, as they come over OTLP in the end. The trace's
/// parent is somebody else's span.
const TREE: [&str; 13] = [
    "accept order.created",
    "accept order.created > append",
    "accept order.created > deliver order-check",
    "accept order.created > deliver order-check > commit",
    "accept order.created > deliver order-check > order-check",
    "accept order.created > deliver order-check > order-check > accept order.accepted",
    "accept order.created > deliver order-check > order-check > accept order.accepted > append",
    "accept order.created > deliver order-check > order-check > accept order.accepted > deliver webhook-forward",
    "accept order.created > deliver order-check > order-check > accept order.accepted > deliver webhook-forward > commit",
    "accept order.created > deliver order-check > order-check > accept order.accepted > deliver webhook-forward > \
     webhook-forward",
    "accept order.created > deliver order-check > order-check > accept order.accepted > deliver webhook-forward > \
     webhook-forward > POST",
    "accept order.created > deliver order-check > order-check > accept order.accepted > deliver webhook-forward > \
     webhook-forward > accept notification.sent",
    "accept order.created > deliver order-check > order-check > accept order.accepted > deliver webhook-forward > \
     webhook-forward > accept notification.sent > append",
];

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Sends an order through both functions and waits for all of its spans.
async fn order(collector: &Collector, builder: ServerBuilder) -> (Server, Receiver, Vec<Seen>) {
    let server = builder.start();
    let receiver = Receiver::answering(StatusCode::OK).await;
    let on = |ty: &str| json!([{"filters": [{"exact": {"type": ty}}]}]);
    server.deploy("order-check", "order-check", json!({"triggers": on("order.created")})).await;
    let forward = json!({
        "triggers": on("order.accepted"), "egress": ["127.0.0.1:*"], "env": {"FORWARD_URL": receiver.url("/message")},
    });
    server.deploy("webhook-forward", "webhook-forward", forward).await;
    let path = nexus_tests::server::repository().join("examples/order-check/order.json");
    let data: Value = serde_json::from_str(&std::fs::read_to_string(path).expect("the sample")).expect("JSON");
    let receipt = server
        .send(json!({
            "specversion": "1.0", "id": "1", "source": "/shop", "type": "order.created", "subject": "o-1001",
            "traceparent": format!("00-{TRACE}-00f067aa0ba902b7-01"), "data": data,
        }))
        .await;
    assert_eq!(receipt["trace_id"], TRACE);
    let spans = collector.until(|spans| spans.len() >= TREE.len()).await;
    (server, receiver, spans.iter().map(Seen::from).collect())
}

fn check_attributes(span: &Seen, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(span.attribute(key), *value, "{key} of {}", span.name);
    }
}

#[tokio::test]
async fn an_event_is_one_tree_of_spans() {
    let collector = Collector::grpc().await;
    let builder = Server::builder().arg("--otlp-endpoint").arg(collector.endpoint());
    let (server, receiver, spans) = order(&collector, builder).await;
    let mut tree = TREE.to_vec();
    tree.sort_unstable();
    assert_eq!(spans::tree(&spans), tree);
    assert!(spans.iter().all(|s| s.trace == TRACE && !s.failed), "{spans:#?}");

    for (name, kind) in [
        ("accept order.created", "SPAN_KIND_SERVER"),
        ("deliver order-check", "SPAN_KIND_CONSUMER"),
        ("order-check", "SPAN_KIND_CONSUMER"),
        ("accept order.accepted", "SPAN_KIND_PRODUCER"),
        ("POST", "SPAN_KIND_CLIENT"),
    ] {
        assert_eq!(spans::named(&spans, name).kind, kind, "{name}");
    }
    let accept = spans::named(&spans, "accept order.created");
    assert_eq!(accept.parent, "00f067aa0ba902b7");
    check_attributes(
        accept,
        &[
            ("cloudevents.event_id", "1"),
            ("cloudevents.event_source", "/shop"),
            ("cloudevents.event_type", "order.created"),
            ("cloudevents.event_spec_version", "1.0"),
            ("cloudevents.event_subject", "o-1001"),
            ("nexus.event.seq", "1"),
        ],
    );
    let event = server.get("/v1/events/1").await;
    let invocation = event["invocations"][0]["invocation_id"].as_str().expect("an id");
    check_attributes(
        spans::named(&spans, "order-check"),
        &[
            ("faas.name", "order-check"),
            ("faas.version", "1"),
            ("faas.trigger", "pubsub"),
            ("faas.invocation_id", invocation),
            ("faas.coldstart", "true"),
            ("cloudevents.event_id", "1"),
            ("nexus.event.seq", "1"),
            ("nexus.function.version", "1"),
            ("nexus.attempt", "1"),
            ("nexus.status", "ok"),
        ],
    );
    check_attributes(
        spans::named(&spans, "POST"),
        &[
            ("http.request.method", "POST"),
            ("http.response.status_code", "200"),
            ("url.full", &receiver.url("/message")),
            ("server.address", "127.0.0.1"),
            ("server.port", &receiver.address.port().to_string()),
        ],
    );
}

#[tokio::test]
async fn the_local_view_has_the_spans_that_were_exported() {
    let collector = Collector::http().await;
    let builder = Server::builder().arg("--otlp-endpoint").arg(collector.endpoint());
    let (server, _receiver, mut exported) =
        order(&collector, builder.arg("--otlp-protocol").arg("http/protobuf")).await;
    let mut local = spans::of_json(&server.get(&format!("/v1/traces/{TRACE}")).await);
    for spans in [&mut exported, &mut local] {
        spans.sort_by(|a, b| a.id.cmp(&b.id));
        spans.iter_mut().for_each(|s| s.events.clear());
    }
    assert_eq!(local, exported);

    let jaeger = server.get(&format!("/api/traces/{TRACE}")).await["data"].clone();
    assert_eq!((jaeger.as_array().map(Vec::len), &jaeger[0]["traceID"]), (Some(1), &json!(TRACE)));
    let spans = jaeger[0]["spans"].as_array().expect("spans");
    let ids: BTreeSet<_> = spans.iter().map(|s| s["spanID"].as_str().expect("an id")).collect();
    assert_eq!(ids, exported.iter().map(|s| s.id.as_str()).collect());
    for span in spans {
        let same = exported.iter().find(|s| span["spanID"] == s.id.as_str()).expect("the same span");
        assert_eq!(span["operationName"], same.name.as_str());
        assert_eq!(span["references"][0]["spanID"], same.parent.as_str());
        let tag = |key: &str| {
            span["tags"].as_array().expect("tags").iter().find(|t| t["key"] == key).map(|t| t["value"].clone())
        };
        for (key, value) in &same.attributes {
            let tag = tag(key).unwrap_or_else(|| panic!("{} has no {key}", same.name));
            assert_eq!(&tag.as_str().map_or_else(|| tag.to_string(), str::to_owned), value);
        }
        let kind = tag("span.kind").expect("a kind");
        assert_eq!(format!("SPAN_KIND_{}", kind.as_str().expect("text").to_uppercase()), same.kind);
        assert!(span["startTime"].as_u64().is_some_and(|t| t > 0) && span["duration"].is_u64());
        assert!(!jaeger[0]["processes"][span["processID"].as_str().expect("a process")]["serviceName"].is_null());
    }
}

#[tokio::test]
async fn jaegers_search_finds_traces() {
    let collector = Collector::grpc().await;
    let builder = Server::builder().arg("--otlp-endpoint").arg(collector.endpoint());
    let (server, _receiver, _) = order(&collector, builder).await;
    server.send(json!({"specversion": "1.0", "id": "2", "source": "/s", "type": "x"})).await;
    assert_eq!(server.get("/api/services").await["data"], json!(["nexus"]));
    assert_eq!(server.get("/api/services/nexus/operations").await["data"], json!(["order-check", "webhook-forward"]));
    let operations = server.get("/api/operations?service=nexus").await["data"].clone();
    assert_eq!(
        operations.as_array().expect("data").iter().map(|o| &o["name"]).collect::<Vec<_>>(),
        ["order-check", "webhook-forward"]
    );
    let check = async |query: &str, traces: usize| {
        let found = server.get(&format!("/api/traces?service=nexus{query}")).await;
        assert_eq!(
            (found["data"].as_array().map(Vec::len), &found["total"]),
            (Some(traces), &json!(traces)),
            "{query}"
        );
    };
    check("", 2).await;
    check("&limit=1", 1).await;
    check("&operation=webhook-forward", 1).await;
    check("&operation=none", 0).await;
    check("&start=0&end=1000000", 0).await;
    check("&start=1000000&lookback=1h&maxDuration&minDuration", 2).await;
    let none = "0af7651916cd43dd8448eb211c80319c";
    for path in [format!("/api/traces/{none}"), format!("/v1/traces/{none}")] {
        assert_eq!(server.answer(server.request(reqwest::Method::GET, &path)).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn failures_and_attempts_are_seen() {
    let collector = Collector::grpc().await;
    // As OpenTelemetry's own environment names it.
    let server = Server::builder().env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()).start();
    let config = json!({"triggers": [{"filters": []}], "retry": {"attempts_max": 2, "backoff_ms": 1}});
    server.deploy("probe", "probe", config).await;
    server.send(json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": {"trap": true}})).await;
    // accept, append, and deliver, invoke, commit for each attempt.
    let spans: Vec<_> = collector.until(|spans| spans.len() >= 8).await.iter().map(Seen::from).collect();
    assert_eq!(spans::tree(&spans).len(), 8);
    let invocations: Vec<_> = spans.iter().filter(|s| s.name == "probe").collect();
    let mut attempts: Vec<_> = invocations.iter().map(|s| s.attribute("nexus.attempt")).collect();
    attempts.sort_unstable();
    assert_eq!(attempts, ["1", "2"]);
    for span in invocations {
        assert!(span.failed);
        check_attributes(span, &[("error.type", "trap"), ("nexus.status", "trap")]);
    }
}

/// The attributes with a number in them that only the probes can know.
const MEASURED: [&str; 4] = [
    "nexus.kernel.lost",
    "nexus.kernel.syscalls.count",
    "nexus.kernel.syscalls.errors",
    "nexus.kernel.syscalls.time_ns",
];

#[tokio::test]
async fn the_kernels_part_is_in_the_span_where_it_is_watched() {
    if !privilege::can_watch_the_kernel() {
        return;
    }
    let collector = Collector::grpc().await;
    let builder = Server::builder().arg("--otlp-endpoint").arg(collector.endpoint()).arg("--kernel").arg("required");
    let (server, _receiver, spans) = order(&collector, builder).await;
    let span = spans::named(&spans, "webhook-forward");
    assert!(["counts", "full"].contains(&span.attribute("nexus.kernel.mode")));
    assert_eq!(span.attribute("nexus.kernel.complete"), "true");
    for key in MEASURED {
        assert!(span.attribute(key).parse::<u64>().is_ok(), "{key}");
    }
    // It made one request over a connection of its own.
    assert_eq!(span.attribute("nexus.kernel.syscall.connect.count"), "1");
    assert_eq!(span.attribute("nexus.kernel.syscall.socket.count"), "1");
    let event = server.get("/v1/events?type=order.accepted").await["items"][0].clone();
    let kernel = &event["invocations"][0]["kernel"];
    let sum: u64 =
        kernel["syscalls"].as_object().expect("calls").values().map(|c| c["count"].as_u64().expect("a number")).sum();
    assert_eq!(span.attribute("nexus.kernel.syscalls.count"), sum.to_string());
    assert_eq!(kernel["syscalls"]["connect"]["count"], 1);
}

#[tokio::test]
async fn nothing_is_said_of_a_kernel_that_is_not_watched() {
    let collector = Collector::grpc().await;
    let builder = Server::builder().arg("--otlp-endpoint").arg(collector.endpoint()).arg("--kernel").arg("off");
    let (server, _receiver, spans) = order(&collector, builder).await;
    for name in ["order-check", "webhook-forward"] {
        let span = spans::named(&spans, name);
        check_attributes(span, &[("nexus.kernel.mode", "off")]);
        assert!(!span.attribute("nexus.kernel.reason").is_empty());
        let numbers: Vec<_> = span
            .attributes
            .keys()
            .filter(|k| k.starts_with("nexus.time.") || k.starts_with("nexus.kernel."))
            .filter(|k| !["nexus.kernel.mode", "nexus.kernel.reason"].contains(&k.as_str()))
            .collect();
        assert!(numbers.is_empty(), "{numbers:?}");
    }
    let kernel = server.get("/v1/events/1").await["invocations"][0]["kernel"].clone();
    assert!(kernel["reason"].is_string());
    assert_eq!((kernel.as_object().map(serde_json::Map::len), &kernel["mode"]), (Some(2), &json!("off")));
}
