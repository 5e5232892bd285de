//! Errors over HTTP: the one place that makes them (RFC 9457).

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use nexus_core::ids::InvalidId;
use nexus_log::StorageError;
use serde_json::{Value, json};

use crate::catalog::DeployError;
use crate::replay::ReplayError;

/// An error as a client sees it.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    /// The last part of the `type`, `urn:nexus:problem:…`.
    kind: &'static str,
    pub(super) detail: String,
    retry_after_s: Option<u32>,
    more: Vec<(&'static str, Value)>,
}

impl Problem {
    /// An error of a kind; `detail` says what, why and what to do.
    pub fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { status, kind, detail: detail.into(), retry_after_s: None, more: Vec::new() }
    }

    /// The request is wrong.
    pub fn bad_request(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, kind, detail)
    }

    /// What was asked for is not there.
    pub fn not_found(what: &str, name: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", format!("there is no {what} {name}"))
    }

    /// Try again after so many seconds.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Another member of the problem's object.
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.more.push((name, value.into()));
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": format!("urn:nexus:problem:{}", self.kind),
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        for (name, value) in self.more {
            body[name] = value;
        }
        let mut response = (self.status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<StorageError> for Problem {
    fn from(error: StorageError) -> Self {
        let (status, kind, retry) = match &error {
            StorageError::Full { .. } => (StatusCode::INSUFFICIENT_STORAGE, "disk-full", Some(5)),
            StorageError::Busy { .. } => (StatusCode::SERVICE_UNAVAILABLE, "busy", Some(1)),
            StorageError::Failed(_) => (StatusCode::SERVICE_UNAVAILABLE, "storage", Some(5)),
            StorageError::Closed => (StatusCode::SERVICE_UNAVAILABLE, "closing", Some(5)),
            StorageError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", None),
            StorageError::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid", None),
            StorageError::Conflict { .. } => (StatusCode::CONFLICT, "conflict", None),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "storage", None),
        };
        if status == StatusCode::INTERNAL_SERVER_ERROR || matches!(error, StorageError::Failed(_)) {
            tracing::error!(%error, "storage failed");
        }
        let problem = Self::new(status, kind, error.to_string());
        match retry {
            Some(seconds) => problem.retry_after(seconds),
            None => problem,
        }
    }
}

impl From<DeployError> for Problem {
    fn from(error: DeployError) -> Self {
        match error {
            DeployError::Rejected(rejected) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "component-rejected", rejected.to_string())
            }
            DeployError::Config(invalid) => Self::bad_request("invalid-config", invalid.to_string()),
            DeployError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "not-found", error.to_string()),
            DeployError::Engine(e) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "engine", e.to_string()),
            DeployError::Storage(e) => e.into(),
        }
    }
}

impl From<InvalidId> for Problem {
    fn from(error: InvalidId) -> Self {
        Self::bad_request("invalid-id", error.to_string())
    }
}

impl From<ReplayError> for Problem {
    fn from(error: ReplayError) -> Self {
        let detail = error.to_string();
        match error {
            ReplayError::Storage(e) => e.into(),
            ReplayError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "not-found", detail),
            ReplayError::Ambiguous { sources, .. } => {
                Self::new(StatusCode::CONFLICT, "several-sources", detail).with("sources", sources)
            }
            ReplayError::Unconfirmed(events) => {
                Self::new(StatusCode::CONFLICT, "unconfirmed", detail).with("events", events)
            }
            ReplayError::Invalid(_) => Self::bad_request("invalid-replay", detail),
            ReplayError::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail).retry_after(5),
        }
    }
}
