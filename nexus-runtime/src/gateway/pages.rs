//! The pages: the trace view, and the page that asks before it replays. Nothing is fetched from elsewhere.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use super::extract::Path;
use super::problem::Problem;

/// No script but our own, no frame around us: a page with a button that acts must not be clicked by another's page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn html(page: &'static str) -> Response {
    let mut response = (StatusCode::OK, page).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

pub async fn home() -> Response {
    html(include_str!("../../pages/home.html"))
}

pub async fn trace(Path(_trace): Path<String>) -> Response {
    html(include_str!("../../pages/trace.html"))
}

pub async fn replay(Path(_id): Path<String>) -> Response {
    html(include_str!("../../pages/replay.html"))
}

pub async fn asset(Path(file): Path<String>) -> Response {
    let (kind, text) = match file.as_str() {
        "nexus.css" => ("text/css; charset=utf-8", include_str!("../../pages/nexus.css")),
        "nexus.js" => ("text/javascript; charset=utf-8", include_str!("../../pages/nexus.js")),
        "home.js" => ("text/javascript; charset=utf-8", include_str!("../../pages/home.js")),
        "trace.js" => ("text/javascript; charset=utf-8", include_str!("../../pages/trace.js")),
        "replay.js" => ("text/javascript; charset=utf-8", include_str!("../../pages/replay.js")),
        _ => return Problem::not_found("file", file).into_response(),
    };
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}
