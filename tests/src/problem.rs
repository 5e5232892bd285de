//! Errors as the API promises them (RFC 9457), and what must not change when one is returned.

use http::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;

use crate::Server;

/// Sends a request that must be refused with this status, as a whole problem whose detail contains `names`.
pub async fn refused(what: &str, request: RequestBuilder, status: u16, names: &str) -> (HeaderMap, Value) {
    let response = request.send().await.unwrap_or_else(|e| panic!("{what}: no answer: {e:?}"));
    let (have, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap_or_else(|e| panic!("{what}: no body: {e:?}"));
    assert_eq!(have, status, "{what}: {text}");
    let content_type = headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
    assert_eq!(content_type, "application/problem+json", "{what}: {text}");
    let problem: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{what}: {e}: {text}"));
    for member in ["type", "title", "detail"] {
        assert!(problem[member].as_str().is_some_and(|s| !s.is_empty()), "{what}: `{member}` is not there: {text}");
    }
    assert_eq!(problem["status"], status, "{what}: {text}");
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(names), "{what}: the problem does not name {names:?}: {detail}");
    (headers, problem)
}

/// What a refused request must leave as it was: every event, every function with its versions, every replay.
pub async fn state(server: &Server) -> Value {
    let functions = server.get("/v1/functions").await;
    let mut all = vec![server.get("/v1/events?limit=1000").await, server.get("/v1/replays").await];
    for function in functions["items"].as_array().expect("items") {
        let name = function["name"].as_str().expect("name");
        all.push(server.get(&format!("/v1/functions/{name}/versions")).await);
    }
    all.push(functions);
    all.into()
}

/// Checks that nothing has changed since; says only what has.
pub async fn unchanged(what: &str, server: &Server, before: &Value) {
    let now = state(server).await;
    let lines = |state: &Value| serde_json::to_string_pretty(state).expect("JSON");
    let (old, new) = (lines(before), lines(&now));
    let first = old.lines().zip(new.lines()).find(|(old, new)| old != new);
    assert!(now == *before, "{what}: something changed, first {first:?}");
}

/// A request with a JSON body.
pub fn json(server: &Server, method: Method, path: &str, body: impl Into<String>) -> RequestBuilder {
    server.request(method, path).header("content-type", "application/json").body(body.into())
}
