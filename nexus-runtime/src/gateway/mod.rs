//! Everything over HTTP: events in, functions called, the control API, the metrics, the pages.

mod backup;
mod body;
mod call;
mod decode;
mod dlq;
mod events;
mod extract;
mod functions;
mod hosts;
pub mod http_event;
mod jaeger;
mod kernel;
mod logs;
mod pages;
mod problem;
mod profiles;
mod replays;
mod routing;
mod traces;
mod views;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post, put};
use http::{StatusCode, header};
use nexus_log::embedded::admin::Running;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::ServerLimits;
use crate::dispatch::Dispatcher;
use crate::line::Line;
use crate::replay::Replays;
pub use hosts::Hosts;
use problem::Problem;

/// What every handler works with.
pub struct Gateway {
    /// The straight line.
    pub line: Arc<Line>,
    /// Who delivers.
    pub dispatcher: Arc<Dispatcher>,
    /// Replays that run, and those that ran.
    pub replays: Arc<Replays>,
    /// Bounds on what comes in.
    pub limits: ServerLimits,
    /// Cancelled when the server is told to stop.
    pub stop: CancellationToken,
    /// One permit for each request that is worked on.
    pub requests: Semaphore,
    /// The names under which the API may be reached.
    pub hosts: Hosts,
    /// The store, to be backed up; none where the log is in NATS.
    pub store: Option<Running>,
    /// One permit: for the backup that is being made.
    pub backups: Arc<Semaphore>,
}

impl Gateway {
    fn patience(&self) -> Duration {
        Duration::from_secs(self.limits.read_timeout_s)
    }
}

type Shared = Arc<Gateway>;

/// All routes.
pub fn router(gateway: Shared) -> Router {
    let api = Router::new()
        .route("/v1/events", post(events::append).get(events::list))
        .route("/v1/events/{id}", get(events::get))
        .route("/v1/events/{id}/export", get(events::export))
        .route("/v1/functions", get(functions::list))
        .route("/v1/functions/{name}", put(functions::deploy).get(functions::get).delete(functions::delete))
        .route("/v1/functions/{name}/config", put(functions::configure))
        .route("/v1/functions/{name}/versions", get(functions::versions))
        .route("/v1/functions/{name}/versions/{version}", get(functions::component))
        .route("/v1/functions/{name}/profile", get(profiles::take))
        .route("/v1/invocations/{id}", get(events::invocation))
        .route("/v1/invocations/{id}/export", get(events::export_invocation))
        .route("/v1/invocations/{id}/journal", get(events::journal))
        .route("/v1/replays", post(replays::start).get(replays::list))
        .route("/v1/replays/{id}", get(replays::get).delete(replays::abort))
        .route("/v1/replays/{id}/pause", post(replays::pause))
        .route("/v1/replays/{id}/resume", post(replays::resume))
        .route("/v1/dlq", get(dlq::list))
        .route("/v1/dlq/retry", post(dlq::retry))
        .route("/v1/dlq/drop", post(dlq::drop))
        .route("/v1/backup", get(backup::take))
        .route("/v1/traces/{trace_id}", get(traces::get))
        .route("/v1/logs", get(logs::follow))
        .route("/v1/kernel", get(kernel::get))
        .route("/v1/kernel/overhead", post(kernel::measure))
        .route("/api/traces", get(jaeger::search))
        .route("/api/traces/{trace_id}", get(jaeger::trace))
        .route("/api/services", get(jaeger::services))
        .route("/api/services/{service}/operations", get(jaeger::service_operations))
        .route("/api/operations", get(jaeger::operations))
        .route("/", get(pages::home))
        .route("/trace/{trace_id}", get(pages::trace))
        .route("/replay/{id}", get(pages::replay))
        .route("/assets/{file}", get(pages::asset))
        .layer(middleware::from_fn_with_state(gateway.clone(), hosts::own_clients));
    Router::new()
        .route("/fn/{name}", any(call::call))
        .route("/fn/{name}/", any(call::call))
        .route("/fn/{name}/{*path}", any(call::call))
        .merge(api)
        .layer(middleware::from_fn_with_state(gateway.clone(), admit))
        // Asked for by machines that must get an answer when everything else is busy.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .fallback(|request: Request| async move { Problem::not_found("page", request.uri().path()) })
        .method_not_allowed_fallback(|request: Request| async move {
            let detail = format!("{} is not allowed on {}", request.method(), request.uri().path());
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail)
        })
        .with_state(gateway)
        .layer(middleware::from_fn(end_where_unread))
}

/// A client that is answered before its body was read goes on sending it. It is told that the connection ends with the
/// answer, so that it does not send its next request on it; and for a moment it is let send, so that it reads the answer.
async fn end_where_unread(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    if http_body::Body::is_end_stream(&body) {
        return next.run(Request::from_parts(head, body)).await;
    }
    // One that asks before it sends (`Expect`) has not begun to.
    let asks = head.headers.contains_key(header::EXPECT);
    let progress = Arc::new(body::Progress::default());
    let watched = body::Watched::new(body, progress.clone());
    let mut response = next.run(Request::from_parts(head, axum::body::Body::new(watched))).await;
    if !progress.is_ended() {
        if let Some(rest) = progress.rest().filter(|_| !asks) {
            tokio::spawn(body::pass_over(rest));
        }
        response.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));
    }
    response
}

/// Lets no more requests in than are worked on at once: the rest is told to come back.
async fn admit(State(gateway): State<Shared>, request: Request, next: Next) -> Response {
    match gateway.requests.try_acquire() {
        Ok(_permit) => next.run(request).await,
        Err(_) => {
            gateway.line.telemetry.metrics.refused("requests");
            let detail = format!("{} requests are worked on already; try again shortly", gateway.limits.requests_max);
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).retry_after(1).into_response()
        }
    }
}

async fn ready(State(gateway): State<Shared>) -> Response {
    if gateway.stop.is_cancelled() {
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "closing", "the server is stopping").into_response();
    }
    "ready\n".into_response()
}

async fn metrics(State(gateway): State<Shared>) -> Response {
    match gateway.line.telemetry.metrics.page() {
        Ok(page) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], page).into_response()
        }
        Err(e) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics", e.to_string()).into_response(),
    }
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("../../openapi.json")).into_response()
}
