//! A real OTLP receiver, gRPC and HTTP: OpenTelemetry's own protocol types and service, nothing in between.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::sync::watch;

/// Receives spans on a free port of loopback.
pub struct Collector {
    /// Where it listens.
    pub address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    arrived: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Sink {
    spans: Arc<Mutex<Vec<Span>>>,
    arrived: watch::Sender<usize>,
}

impl Sink {
    fn take(&self, request: ExportTraceServiceRequest) {
        let mut spans = self.spans.lock().expect("not poisoned");
        spans.extend(request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans));
        self.arrived.send_replace(spans.len());
    }
}

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.take(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// A collector that speaks gRPC.
    pub async fn grpc() -> Self {
        Self::start(|listener, sink| async move {
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            let service = TraceServiceServer::new(sink);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .expect("serve");
        })
        .await
    }

    /// A collector that speaks HTTP with protobuf, at `/v1/traces`.
    pub async fn http() -> Self {
        Self::start(|listener, sink| async move {
            use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest as Export;
            let take = move |body: bytes::Bytes| {
                let sink = sink.clone();
                async move {
                    match <Export as prost::Message>::decode(body) {
                        Ok(request) => {
                            sink.take(request);
                            http::StatusCode::OK
                        }
                        Err(_) => http::StatusCode::BAD_REQUEST,
                    }
                }
            };
            let app = axum::Router::new().route("/v1/traces", axum::routing::post(take));
            axum::serve(listener, app).await.expect("serve");
        })
        .await
    }

    async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl FnOnce(tokio::net::TcpListener, Sink) -> F,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("address");
        let (sender, arrived) = watch::channel(0);
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let task = tokio::spawn(serve(listener, Sink { spans: spans.clone(), arrived: sender }));
        Self { address, spans, arrived, task }
    }

    /// The endpoint as it is configured.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Waits until spans that satisfy the condition have come, and returns all that came.
    pub async fn until(&self, condition: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let mut arrived = self.arrived.clone();
        let wait = async {
            loop {
                let spans = self.spans.lock().expect("not poisoned").clone();
                if condition(&spans) {
                    return spans;
                }
                arrived.changed().await.expect("the collector runs");
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), wait).await.expect("the spans did not come")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An attribute of a span as text.
pub fn attribute(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|a| a.key == key)?.value.as_ref()?.value.as_ref()?;
    Some(match value {
        Value::StringValue(s) => s.clone(),
        Value::BoolValue(b) => b.to_string(),
        Value::IntValue(i) => i.to_string(),
        Value::DoubleValue(d) => d.to_string(),
        _ => return None,
    })
}
