//! Clients that send too much, too slowly, nothing, or noise.

use std::io::{Read, Write};
use std::net::TcpStream;

use nexus_tests::Server;
use nexus_tests::problem::{refused, state, unchanged};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{STRUCTURED, event, prepared, prepared_from};

/// A connection of its own, on which bytes are sent as they are.
struct Raw(TcpStream);

impl Raw {
    fn to(server: &Server) -> Self {
        let stream = TcpStream::connect(server.url().trim_start_matches("http://")).expect("connect");
        // Only a bound for a test that would hang: nothing is expected to take this long.
        stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("a bound");
        Self(stream)
    }

    fn send(mut self, bytes: impl AsRef<[u8]>) -> Self {
        // The server may have answered and closed before all was sent: what it answered is what counts.
        let _ = self.0.write_all(bytes.as_ref());
        self
    }

    /// What comes until the server closes.
    async fn answer(mut self, what: &str) -> String {
        let read = move || {
            let mut bytes = Vec::new();
            (self.0.read_to_end(&mut bytes), bytes)
        };
        let (ended, bytes) = tokio::task::spawn_blocking(read).await.expect("a thread");
        match ended {
            Ok(_) => {}
            // Closed with bytes unread, which the system tells as a reset.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(e) => panic!("{what}: the server does not close the connection: {e}"),
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[tokio::test]
async fn bodies_over_the_bound_are_refused_before_they_are_read() {
    let server = prepared().await;
    let before = state(&server).await;
    // None of the body is ever sent: who waited for it would answer 408.
    let rows = [
        ("POST /v1/events", 65_537, "65536 bytes"),
        ("POST /v1/events", u64::MAX / 2, "65536 bytes"),
        ("POST /fn/victim/echo", 65_537, "65536 bytes"),
        ("POST /v1/replays", 200_000, "bytes"),
        ("PUT /v1/functions/victim/config", (1 << 20) + 1, "1048576 bytes"),
        ("PUT /v1/functions/victim", 1_500_001, "1500000 bytes"),
    ];
    for (line, length, names) in rows {
        let kind = if line.ends_with("victim") { "application/wasm" } else { "application/json" };
        let head = format!(
            "{line} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        let answer = Raw::to(&server).send(head).answer(line).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{line} {length}: {answer}");
        assert!(answer.contains("application/problem+json") && answer.contains(names), "{line} {length}: {answer}");
    }
    // A length that is not told is counted. The last chunk never comes.
    let mut chunked =
        "POST /v1/events HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_owned();
    for _ in 0..5 {
        chunked.push_str(&format!("4000\r\n{}\r\n", "x".repeat(0x4000)));
    }
    let answer = Raw::to(&server).send(chunked).answer("a length that is not told").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    unchanged("at the end", &server, &before).await;
}

/// A client that is answered before it has sent its body goes on sending, and takes the connection for good. It has to be
/// told that it is not, or its next request is lost.
#[tokio::test]
async fn an_answer_before_the_body_was_read_ends_the_connection() {
    let server = prepared().await;
    let rows = [
        ("too large", "POST /v1/events", "413"),
        ("not a component", "PUT /v1/functions/new", "415"),
        ("no such name", "PUT /v1/functions/a_b", "400"),
        ("no such function", "POST /fn/absent", "404"),
        ("no such page", "POST /nowhere", "404"),
    ];
    for (what, line, status) in rows {
        let head = format!("{line} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100000\r\n\r\n");
        let answer = Raw::to(&server).send(head).answer(what).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
        assert!(answer.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{what}: {answer}");
    }
}

/// Most clients send all of a body before they read: the answer must be there then.
#[tokio::test]
async fn a_client_that_sends_on_after_its_answer_can_read_it() {
    let server = prepared().await;
    let rows = [
        ("too large", "POST /v1/events", "413"),
        ("not a component", "PUT /v1/functions/new", "415"),
        ("no such function", "POST /fn/absent", "404"),
        ("no such page", "POST /nowhere", "404"),
    ];
    for (what, line, status) in rows {
        let Raw(mut stream) = Raw::to(&server);
        let sent = tokio::task::spawn_blocking(move || {
            let head = format!("{line} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {}\r\n\r\n", 16 << 20);
            stream.write_all(head.as_bytes())?;
            (0..256).try_for_each(|_| stream.write_all(&[b'x'; 1 << 16]))?;
            Ok::<_, std::io::Error>(stream)
        });
        let stream = sent.await.expect("a thread").unwrap_or_else(|e| panic!("{what}: cut while it sends: {e}"));
        let answer = Raw(stream).answer(what).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
    }
    // Who sends for ever is cut.
    let Raw(mut stream) = Raw::to(&server);
    let head = "POST /nowhere HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(1 << 16));
    let cut = tokio::task::spawn_blocking(move || {
        stream.write_all(head.as_bytes()).expect("a head");
        (0..8192).take_while(|_| stream.write_all(chunk.as_bytes()).is_ok()).count()
    });
    assert!(cut.await.expect("a thread") < 8192, "half a gigabyte was taken");
}

#[tokio::test]
async fn a_client_that_stalls_is_cut_and_holds_up_nobody() {
    let server = prepared_from(Server::builder().config("read_timeout_s = 1")).await;
    let before = state(&server).await;
    let line = "POST /v1/events HTTP/1.1\r\nhost: 127.0.0.1\r\n";
    let rows = [
        ("nothing at all", String::new(), None),
        ("half a request line", "POST /v1/ev".to_owned(), None),
        ("half of the preface of HTTP/2", "PRI * HT".to_owned(), None),
        ("half a head", line.to_owned(), None),
        ("half a body", format!("{line}content-type: {STRUCTURED}\r\ncontent-length: 100\r\n\r\n{{"), Some("408")),
        (
            "half a chunk",
            format!("{line}content-type: {STRUCTURED}\r\ntransfer-encoding: chunked\r\n\r\n10\r\n{{"),
            Some("408"),
        ),
        (
            "half a call",
            "POST /fn/victim/echo HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9\r\n\r\nx".to_owned(),
            Some("408"),
        ),
    ];
    let stalled: Vec<_> =
        rows.iter().map(|(what, bytes, status)| (what, Raw::to(&server).send(bytes), status)).collect();
    for _ in 0..20 {
        let (status, answer) = server.answer(server.request(Method::GET, "/v1/functions/victim")).await;
        assert_eq!(status, 200, "beside clients that stall: {answer}");
    }
    for (what, raw, status) in stalled {
        let answer = raw.answer(what).await;
        if let Some(status) = status {
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer:?}");
            assert!(answer.contains("application/problem+json"), "{what}: {answer}");
        }
    }
    unchanged("at the end", &server, &before).await;
}

#[tokio::test]
async fn idle_connections_do_not_keep_others_out() {
    let server = Server::builder().config("connections_max = 2\nread_timeout_s = 1").start();
    let held: Vec<_> = (0..2).map(|_| Raw::to(&server)).collect();
    let answer = Raw::to(&server)
        .send("GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        .answer("a third")
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
    drop(held);
}

#[tokio::test]
async fn pages_of_other_sites_cannot_drive_the_api() {
    let server = prepared().await;
    let before = state(&server).await;
    let body = event(&[("id", json!("2"))]).to_string();
    let sent = |path: &str, origin: &str| {
        let request = server.request(Method::POST, path).header("origin", origin);
        request.header("content-type", STRUCTURED).body(body.clone())
    };
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1", "evil"] {
        refused(origin, sent("/v1/events", origin), 403, origin).await;
        refused(origin, sent("/v1/replays", origin), 403, origin).await;
        let delete = server.request(Method::DELETE, "/v1/functions/victim").header("origin", origin);
        refused(origin, delete, 403, origin).await;
        // An image or a script of another page has no Origin, but the browser says where it is from.
        let image = server.request(Method::GET, "/v1/functions/victim/profile").header("sec-fetch-site", "cross-site");
        refused(origin, image.header("sec-fetch-mode", "no-cors"), 403, "other sites").await;
        let (status, answer) = server.answer(sent("/fn/victim/status/204", origin)).await;
        assert_eq!(status, 204, "a function decides for itself whom it serves: {answer}");
    }
    let calls = server.get("/v1/events?type=nexus.http.request").await["items"].as_array().map(Vec::len);
    assert_eq!(calls, Some(4));
    let others =
        |state: &Value| state[0]["items"].as_array().expect("items").iter().filter(|e| e["event"]["id"] == "2").count();
    assert_eq!(others(&state(&server).await), 0);
    assert_eq!(state(&server).await[2], before[2], "the function is as it was");
    let (status, answer) = server.answer(sent("/v1/events", server.url())).await;
    assert_eq!(status, 202, "its own page may: {answer}");
    let link = server.request(Method::GET, "/").header("sec-fetch-site", "cross-site");
    let link = link.header("sec-fetch-mode", "navigate").send().await.expect("an answer");
    assert_eq!(link.status(), 200, "a link from elsewhere leads here");
}

/// DNS rebinding: a page of another site whose name was made to point here is of one origin with the server.
#[tokio::test]
async fn a_name_that_was_made_to_point_here_does_not_open_the_api() {
    let server = prepared_from(Server::builder().setting(r#"hosts_allowed = ["nexus.example"]"#)).await;
    let before = state(&server).await;
    let body = event(&[("id", json!("2"))]).to_string();
    let sent = |method: Method, path: &str, host: &str, origin: Option<&str>| {
        let request = server.request(method, path).header("host", host).header("content-type", STRUCTURED);
        match origin {
            Some(origin) => request.header("origin", origin).body(body.clone()),
            None => request.body(body.clone()),
        }
    };
    for host in ["evil.example", "evil.example:7070", "127.0.0.1.evil.example"] {
        let origin = format!("http://{host}");
        for origin in [Some(origin.as_str()), None] {
            refused(host, sent(Method::POST, "/v1/events", host, origin), 403, "hosts_allowed").await;
            refused(host, sent(Method::DELETE, "/v1/functions/victim", host, origin), 403, host).await;
            for path in ["/v1/events", "/v1/logs", "/", "/api/traces?service=victim"] {
                refused(host, sent(Method::GET, path, host, origin), 403, host).await;
            }
        }
        let (status, answer) = server.answer(sent(Method::GET, "/fn/victim/hello", host, None)).await;
        assert_eq!(status, 200, "a function decides for itself whom it serves: {answer}");
    }
    assert_eq!(state(&server).await[2], before[2], "the function is as it was");
    let (status, answer) =
        server.answer(sent(Method::POST, "/v1/events", "nexus.example", Some("http://nexus.example"))).await;
    assert_eq!(status, 202, "a name that was allowed: {answer}");
}

#[tokio::test]
async fn noise_is_never_the_servers_fault() {
    let seed = std::env::var("NEXUS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("NEXUS_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let server = prepared().await;
    let id = "018f0000-0000-7000-8000-000000000000";
    let wasm = nexus_tests::server::component("noop");
    let seeds: [(Method, String, &str, Vec<u8>); 7] = [
        (Method::POST, "/v1/events".into(), STRUCTURED, event(&[("data", json!({"a": [1, "b"]}))]).to_string().into()),
        (Method::POST, "/v1/events".into(), crate::BATCH, json!([event(&[]), event(&[])]).to_string().into()),
        (Method::POST, "/v1/events".into(), "text/plain", b"text".to_vec()),
        (Method::PUT, "/v1/functions/noise".into(), "application/wasm", wasm),
        (
            Method::PUT,
            "/v1/functions/victim/config".into(),
            "application/json",
            json!({"triggers": [{"filters": [{"not": {"prefix": {"type": "a"}}}]}], "limits": {"memory_mb": 64}})
                .to_string()
                .into(),
        ),
        (
            Method::POST,
            "/v1/replays".into(),
            "application/json",
            json!({"event_id": "1", "mode": "live"}).to_string().into(),
        ),
        (Method::POST, format!("/fn/victim/echo?id={id}"), "application/json", b"{}".to_vec()),
    ];
    for round in 0..600 {
        let (method, path, content_type, whole) = &seeds[rng.random_range(0..seeds.len())];
        let body = match rng.random_range(0..4) {
            0 => (0..rng.random_range(0..300)).map(|_| rng.random()).collect(),
            _ => bent(whole, &mut rng),
        };
        let mut request = server.request(method.clone(), path).header("content-type", *content_type).body(body.clone());
        for name in ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-x", "traceparent", "accept"] {
            if rng.random_bool(0.3) {
                let value: Vec<u8> = (0..rng.random_range(0..12)).map(|_| rng.random_range(0x20..0x7f)).collect();
                request = request.header(name, http::HeaderValue::from_bytes(&value).expect("printable"));
            }
        }
        let (status, answer) = server.answer(request).await;
        let what = format!("seed {seed}, round {round}: {method} {path}, {:?}", String::from_utf8_lossy(&body));
        assert!(status < 500, "{what}: {status} {answer}");
        if status >= 400 {
            assert_eq!(answer["status"], status, "{what}: {answer}");
        }
    }
    for _ in 0..200 {
        let noise: Vec<u8> = (0..rng.random_range(1..200)).map(|_| rng.random()).collect();
        // Whatever it answers: it closes, or the bytes were the beginning of something and the time runs out.
        drop(Raw::to(&server).send(&noise));
    }
    let (status, answer) = server.answer(server.request(Method::GET, "/fn/victim/hello")).await;
    assert_eq!((status, answer), (200, json!("hello")), "seed {seed}");
    assert_eq!(server.stop(), Some(0), "seed {seed}");
}

/// The bytes with a few of them changed, taken out, doubled, or cut off.
fn bent(whole: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..rng.random_range(1..6) {
        if bytes.is_empty() {
            break;
        }
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..5) {
            0 => bytes[at] = rng.random(),
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, *b"{}[]\",:0-\\".get(rng.random_range(0..10)).expect("ten")),
            3 => bytes.truncate(at),
            _ => {
                let piece = bytes[at..].iter().take(16).copied().collect::<Vec<_>>();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}
