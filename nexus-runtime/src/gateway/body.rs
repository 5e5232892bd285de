//! Reading a request's body: whole, bounded, in time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use super::Shared;
use super::problem::Problem;

/// A request that is small, in bytes.
const REQUEST_BYTES_MAX: usize = 64 << 10;

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

/// Refuses what is not said to be JSON. A form of another site cannot send this content type: one more thing between a link and
/// a side effect.
pub fn check_json(headers: &HeaderMap) -> Result<(), Problem> {
    let media = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if media.split(';').next().unwrap_or_default().trim() == "application/json" {
        return Ok(());
    }
    let detail = "this is asked for with content type application/json";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json", detail))
}

/// Reads a small request that is a JSON object.
pub async fn json<T: DeserializeOwned>(gateway: &Shared, headers: &HeaderMap, body: Body) -> Result<T, Problem> {
    check_json(headers)?;
    let body = read(body, REQUEST_BYTES_MAX, gateway.patience()).await?;
    object(&body, "invalid-body", "the request")
}

/// Reads a JSON object. serde would take an array for one too, its members by position; nobody who sends one means that.
pub fn object<T: DeserializeOwned>(json: &[u8], kind: &'static str, what: &str) -> Result<T, Problem> {
    let read = match json.trim_ascii_start().first() {
        Some(b'[') => Err("it is an array, not an object".to_owned()),
        _ => serde_json::from_slice(json).map_err(|e| e.to_string()),
    };
    read.map_err(|why| Problem::bad_request(kind, format!("{what} is not valid: {why}")))
}

/// After an answer: how long a client may send nothing before the connection ends, how long it may go on, and how much of it is
/// read.
const PAUSE_MAX: Duration = Duration::from_secs(1);
const REST_TIME_MAX: Duration = Duration::from_secs(10);
const REST_BYTES_MAX: usize = 64 << 20;

/// Reads and drops what a client still sends when it has been answered. A connection that is closed with bytes unread is reset,
/// and the answer may be lost with it.
pub async fn pass_over(mut body: Body) {
    let rest = async {
        let mut bytes = 0;
        while bytes < REST_BYTES_MAX
            && let Ok(Some(Ok(frame))) = tokio::time::timeout(PAUSE_MAX, body.frame()).await
        {
            bytes += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Then it is cut.
    let _ = tokio::time::timeout(REST_TIME_MAX, rest).await;
}

/// How far a [`Watched`] body was read.
#[derive(Default)]
pub struct Progress {
    ended: AtomicBool,
    rest: Mutex<Option<Body>>,
}

impl Progress {
    /// Whether it was read to its end.
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    /// What is left of it, once nobody reads it any more.
    pub fn rest(&self) -> Option<Body> {
        self.rest.lock().take()
    }
}

/// A body that tells how far it was read.
pub struct Watched {
    inner: Body,
    progress: Arc<Progress>,
}

impl Watched {
    /// Tells `progress` how far `inner` was read.
    pub fn new(inner: Body, progress: Arc<Progress>) -> Self {
        Self { inner, progress }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.progress.is_ended() {
            *self.progress.rest.lock() = Some(std::mem::take(&mut self.inner));
        }
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
            self.progress.ended.store(true, Ordering::Relaxed);
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
