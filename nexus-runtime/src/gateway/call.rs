//! `/fn/{name}/…`: an HTTP call of a function. The request is an event like any other: durable before the function runs,
//! and the response waits until what came of it is durable too.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode};
use nexus_core::event::percent_decode;
use nexus_core::ids::FunctionName;
use nexus_core::outcome::{InvocationStatus, TriggerKind};
use nexus_core::record::Record;
use nexus_engine::HttpRequest;

use super::problem::Problem;
use super::{Shared, body, decode, http_event};
use crate::line::{Delivered, Delivery, Incoming};
use crate::telemetry::spans;

/// The header that names the event.
const EVENT_ID: HeaderName = HeaderName::from_static("nexus-event-id");
/// W3C Trace Context, level 2: the trace that the response belongs to.
const TRACERESPONSE: HeaderName = HeaderName::from_static("traceresponse");

pub async fn call(State(gateway): State<Shared>, request: Request) -> Result<Response, Problem> {
    let (name, path_and_query) = apart(request.uri());
    let name: FunctionName = name.parse()?;
    let view = gateway.line.catalog.view();
    let entry = view.get(&name).cloned().ok_or_else(|| Problem::not_found("function", &name))?;
    let version = entry.function.current().cloned().ok_or_else(|| Problem::not_found("function", &name))?;
    let busy = || {
        gateway.line.telemetry.metrics.refused("calls");
        let detail = format!(
            "as many calls of {name} run and wait as may ({} and {}); try again shortly",
            entry.config.limits.concurrency, gateway.limits.calls_waiting_max
        );
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail).retry_after(1)
    };
    if entry.calls.available_permits() == 0 {
        return Err(busy());
    }
    let (head, incoming_body) = request.into_parts();
    let parent = decode::trace_context(&head.headers);
    let mut headers = head.headers;
    http_event::strip(&mut headers);
    http_event::put_in_order(&mut headers);
    let http = HttpRequest {
        method: head.method,
        path_and_query,
        headers,
        body: body::read(incoming_body, gateway.limits.body_bytes_max, gateway.patience()).await?,
    };
    // Only now: a client that sends its body slowly keeps nobody out.
    let turn = entry.calls.clone().try_acquire_owned().map_err(|_| busy())?;

    let event_id = uuid::Uuid::now_v7().as_simple().to_string();
    let event = http_event::event_of(&name, &event_id, &http);
    let claim = gateway.dispatcher.claim(&event_id);
    let line = gateway.line.clone();
    // In a task of its own: once the event is in the log it is carried to its end, whether the client waits or not.
    let claimed_by = gateway.dispatcher.claimant();
    let work = gateway.dispatcher.spawn(async move {
        let incoming = Incoming { event, parent, target: Some(name), claimed_by };
        let (mut records, receipts) = match line.accept(vec![incoming]).await {
            Ok(accepted) => accepted,
            Err(error) => {
                claim.not_appended();
                return Err(error);
            }
        };
        let record = Arc::new(Record { seq: receipts[0].seq, entry: records.remove(0) });
        let delivery = Delivery {
            record: record.clone(),
            entry,
            version,
            attempt: 1,
            trigger: TriggerKind::Http,
            http: Some(http),
            replay: None,
        };
        // Held until the function has run: a client that goes away leaves its call behind.
        let _turn = turn;
        // If the outcome cannot be written the claim is dropped, and the next start finds the event undone.
        let delivered = line.deliver(delivery).await?;
        claim.settled();
        Ok((record, delivered))
    });
    let (record, delivered) = match work.await {
        Ok(result) => result?,
        Err(panicked) => {
            let detail = "the invocation broke off inside Nexus; the log of the server says where";
            tracing::error!(%panicked, event_id, "invocation task failed");
            return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail));
        }
    };
    let trace = record.entry.trace.at(spans::invoke_span(delivered.outcome.invocation_id));
    let mut response = respond(delivered);
    let headers = response.headers_mut();
    if let (Ok(id), Ok(trace)) = (HeaderValue::try_from(event_id), HeaderValue::try_from(trace.traceparent())) {
        headers.insert(EVENT_ID, id);
        headers.insert(TRACERESPONSE, trace);
    }
    Ok(response)
}

/// The function's name, and the path below it with the query. The path is the function's business and stays as it came:
/// it need not even be UTF-8 when it is decoded.
fn apart(uri: &http::Uri) -> (String, String) {
    let path = uri.path().strip_prefix("/fn/").unwrap_or_default();
    let (name, path) = path.split_at(path.find('/').unwrap_or(path.len()));
    let path = if path.is_empty() { "/" } else { path };
    let path_and_query = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    (percent_decode(name), path_and_query)
}

fn respond(delivered: Delivered) -> Response {
    let Delivered { outcome, answer, .. } = delivered;
    if outcome.status == InvocationStatus::Ok || answer.http_status.is_some() {
        let status = answer.http_status.and_then(|s| StatusCode::from_u16(s).ok());
        let empty = if answer.body.is_empty() { StatusCode::NO_CONTENT } else { StatusCode::OK };
        let mut response = Response::new(Body::from(answer.body));
        *response.status_mut() = status.unwrap_or(empty);
        *response.headers_mut() = answer.headers;
        http_event::strip(response.headers_mut());
        return response;
    }
    let (status, kind) = match outcome.status {
        InvocationStatus::Timeout => (StatusCode::GATEWAY_TIMEOUT, "timeout"),
        InvocationStatus::OutOfMemory => (StatusCode::INTERNAL_SERVER_ERROR, "out-of-memory"),
        InvocationStatus::Trap => (StatusCode::INTERNAL_SERVER_ERROR, "trap"),
        InvocationStatus::Denied => (StatusCode::SERVICE_UNAVAILABLE, "denied"),
        InvocationStatus::Error | InvocationStatus::Ok => (StatusCode::INTERNAL_SERVER_ERROR, "function-failed"),
    };
    let error = outcome.error.clone().unwrap_or_else(|| outcome.status.as_str().to_owned());
    Problem::new(status, kind, format!("function {} (version {}): {error}", outcome.function, outcome.version))
        .with("invocation_id", outcome.invocation_id.to_string())
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::apart;

    #[test]
    fn the_function_sees_the_path_below_its_name() {
        let check = |uri: &str, expected: &str| {
            assert_eq!(apart(&uri.parse().expect("uri")), ("f".to_owned(), expected.to_owned()), "{uri}");
        };
        check("/fn/f", "/");
        check("/fn/f/", "/");
        check("/fn/f?a=b", "/?a=b");
        check("/fn/f/x%20y/z?q=1&r", "/x%20y/z?q=1&r");
        check("/fn/f/%ff", "/%ff");
        check("/fn/%66/x", "/x");
    }
}
