//! What is known of the connections that a function makes, against servers whose behaviour is known beforehand. The kernel is
//! asked, which needs no privilege.

use std::net::SocketAddr;
use std::time::Duration;

use nexus_tests::Server;
use nexus_tests::receiver::Vacant;
use nexus_tests::spans::of_json;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers every request with so many bytes.
async fn answering(bytes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(serve(listener, bytes));
    address
}

async fn serve(listener: TcpListener, bytes: usize) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut request = vec![0; 4096];
            if stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).await.expect("a reader");
                stream.write_all(&vec![b'x'; bytes]).await.expect("a reader");
            }
        });
    }
}

/// The calls of an invocation that fetches this URL, and the client spans of them.
async fn fetch(server: &Server, url: &str) -> (Vec<Value>, Vec<Value>) {
    let url = url.replace(':', "%3A").replace('/', "%2F");
    let response = server.request(Method::GET, &format!("/fn/net/fetch?url={url}")).send().await.expect("an answer");
    let id = response.headers()["nexus-event-id"].to_str().expect("text").to_owned();
    let event = server.get(&format!("/v1/events/{id}")).await;
    let trace = server.get(&format!("/v1/traces/{}", event["trace_id"].as_str().expect("a trace"))).await;
    let spans = of_json(&trace);
    let client = spans.iter().filter(|span| span.attributes.contains_key("url.full"));
    let client = client.map(|span| json!(span.attributes)).collect();
    (event["invocations"][0]["host_calls"].as_array().cloned().unwrap_or_default(), client)
}

async fn server() -> Server {
    let server = Server::start();
    server.deploy("net", "probe", json!({"egress": ["127.0.0.1:*", "localhost:*", "no-such-name.invalid"]})).await;
    server
}

#[tokio::test]
async fn bytes_round_trips_and_the_peer_are_known() {
    let (address, server) = (answering(1_000_000).await, server().await);
    let (calls, spans) = fetch(&server, &format!("http://{address}/")).await;
    let network = &calls[0]["network"];
    let number = |name: &str| network[name].as_u64().unwrap_or_else(|| panic!("no {name}: {calls:?}"));
    assert_eq!(network["peer"], address.to_string());
    // The head is short.
    assert!((1_000_000..1_000_200).contains(&number("bytes_received")), "{network}");
    assert!((50..1000).contains(&number("bytes_sent")), "{network}");
    assert!(number("connect_ns") > 0 && number("connect_ns") < calls[0]["duration_ns"].as_u64().expect("a time"));
    assert!(number("rtt_ns") > 0, "{network}");
    assert_eq!(number("retransmits"), 0, "{network}");
    assert!(network["dns_ns"].is_null() && network["tls_ns"].is_null(), "there was none: {network}");
    let span = &spans[0];
    assert_eq!(span["network.peer.address"], "127.0.0.1", "{span}");
    assert_eq!(span["network.peer.port"].to_string().trim_matches('"'), address.port().to_string(), "{span}");
    assert_eq!(span["nexus.net.bytes_received"].to_string().trim_matches('"'), network["bytes_received"].to_string());
    assert!(span.get("nexus.net.dns_ns").is_none(), "{span}");
}

#[tokio::test]
async fn names_are_resolved_and_refusals_have_a_peer() {
    let (address, server) = (answering(1).await, server().await);
    let (calls, _) = fetch(&server, &format!("http://localhost:{}/", address.port())).await;
    let network = &calls[0]["network"];
    assert!(network["dns_ns"].as_u64().expect("a time") > 0, "{network}");
    assert_eq!(network["peer"], address.to_string());
    let vacant = Vacant::new();
    let (calls, spans) = fetch(&server, &format!("http://{}/", vacant.address)).await;
    let network = calls[0]["network"].as_object().expect("something");
    assert_eq!(network.keys().collect::<Vec<_>>(), ["connect_ns", "peer"], "no numbers: {network:?}");
    assert_eq!(spans[0]["error.type"], "connection refused", "{spans:?}");
    let (calls, _) = fetch(&server, "http://no-such-name.invalid/").await;
    let network = calls[0]["network"].as_object().expect("something");
    assert_eq!(network.keys().collect::<Vec<_>>(), ["dns_ns"], "{network:?}");
}

#[tokio::test]
async fn a_segment_that_is_sent_again_is_counted() {
    let server = server().await;
    // A listener whose queue is full drops what comes: it is sent again after a second.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let listener = socket.listen(0).expect("a listener");
    let address = listener.local_addr().expect("an address");
    let _first = tokio::net::TcpStream::connect(address).await.expect("it fills the queue");
    let later = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        serve(listener, 1).await;
    };
    let url = format!("http://{address}/");
    let (calls, _) = tokio::select! {
        fetched = fetch(&server, &url) => fetched,
        () = later => unreachable!("it serves without end"),
    };
    let network = &calls[0]["network"];
    assert_eq!(calls[0]["status"], 200, "{calls:?}");
    assert!(network["retransmits"].as_u64().expect("a number") >= 1, "{network}");
    assert!(network["connect_ns"].as_u64().expect("a time") >= 900_000_000, "{network}");
}
