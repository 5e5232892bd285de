//! A small web server for functions to call: records what came, answers as it is told.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method, StatusCode};

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    /// The method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: bytes::Bytes,
}

/// A web server on a free port of loopback; it ends when it is dropped.
pub struct Receiver {
    /// Where it listens.
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Receiver {
    /// Answers every request with this status, and with "received" as its body.
    pub async fn answering(status: StatusCode) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::on(listener, status)
    }

    fn on(listener: tokio::net::TcpListener, status: StatusCode) -> Self {
        let received: Arc<Mutex<Vec<Received>>> = Arc::default();
        let log = received.clone();
        let app = Router::new().fallback(move |request: Request<Body>| {
            let log = log.clone();
            async move { record(&log, request, status).await }
        });
        let address = listener.local_addr().expect("address");
        let task = tokio::spawn(async move { axum::serve(listener, app).await.expect("serve") });
        Self { address, received, task }
    }

    /// What came so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().expect("not poisoned").clone()
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// An address that refuses every connection until somebody moves in. The port is held all the time, so that no other test
/// can take it.
pub struct Vacant {
    /// The address.
    pub address: SocketAddr,
    socket: tokio::net::TcpSocket,
}

impl Vacant {
    /// A free port of loopback.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        Self { address: socket.local_addr().expect("address"), socket }
    }

    /// From now on there is a receiver.
    pub fn answering(self, status: StatusCode) -> Receiver {
        Receiver::on(self.socket.listen(128).expect("it listens"), status)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn record(log: &Mutex<Vec<Received>>, request: Request<Body>, status: StatusCode) -> Response {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 16 << 20).await.unwrap_or_default();
    let path = head.uri.to_string();
    log.lock().expect("not poisoned").push(Received { method: head.method, path, headers: head.headers, body });
    (status, "received").into_response()
}
