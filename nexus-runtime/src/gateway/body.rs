//! Reading a request's body: whole, bounded, in time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// Reads the body. Too much of it is refused with 413, before it is read where its length is told.
pub async fn read(body: Body, bytes_max: usize, patience: Duration) -> Result<Bytes, Problem> {
    use http_body::Body as _;
    let too_large = || {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-too-large",
            format!("the body is larger than {bytes_max} bytes, the bound of this server"),
        )
    };
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(patience, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Problem::bad_request("body", format!("the body broke off: {error}"))),
        Err(_) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "body-timeout",
            format!("the body did not come within {} s", patience.as_secs()),
        )),
    }
}

/// Reads a JSON object. serde would take an array for one too, its members by position; nobody who sends one means that.
pub fn object<T: DeserializeOwned>(json: &[u8], kind: &'static str, what: &str) -> Result<T, Problem> {
    let read = match json.trim_ascii_start().first() {
        Some(b'[') => Err("it is an array, not an object".to_owned()),
        _ => serde_json::from_slice(json).map_err(|e| e.to_string()),
    };
    read.map_err(|why| Problem::bad_request(kind, format!("{what} is not valid: {why}")))
}

/// A body that tells when it was read to its end.
pub struct Watched {
    inner: Body,
    ended: Arc<AtomicBool>,
}

impl Watched {
    /// Sets `ended` when the last of `inner` was read.
    pub fn new(inner: Body, ended: Arc<AtomicBool>) -> Self {
        Self { inner, ended }
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if frame.is_none() || self.inner.is_end_stream() {
            self.ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}
