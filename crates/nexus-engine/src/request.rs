//! What a function is run on, and what it gives back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::Full;
use nexus_core::event::{Draft, Event, percent_encode};
use xxhash_rust::xxh3::Xxh3Default;

/// An HTTP request as it is handed to a function.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    /// The method.
    pub method: http::Method,
    /// Path and query, from `/` on.
    pub path_and_query: String,
    /// The headers, `host` among them.
    pub headers: HeaderMap,
    /// The body, whole.
    pub body: Bytes,
}

/// What a function is run on.
#[derive(Clone, Debug)]
pub enum Request {
    /// An event, in the way of the function's world.
    Event(Arc<Event>),
    /// An HTTP request as it came. Only for `wasi:http`; other worlds get the event that stands for it.
    Http(HttpRequest),
}

/// What a function gave back.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The HTTP status, where it answered over HTTP or named one.
    pub http_status: Option<u16>,
    /// Response headers, the content type among them.
    pub headers: HeaderMap,
    /// The bytes.
    pub body: Bytes,
}

impl Answer {
    pub(crate) fn of(content_type: &str, body: Bytes) -> Self {
        let mut headers = HeaderMap::new();
        if let Ok(value) = content_type.parse() {
            headers.insert(http::header::CONTENT_TYPE, value);
        }
        Self { http_status: None, headers, body }
    }

    /// How long the function asks to be left alone, by the header of that name in seconds.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }

    /// A hash of all that was given back.
    pub(crate) fn hash(&self, emitted: &[Draft]) -> u64 {
        let mut hash = Xxh3Default::new();
        hash.update(&self.http_status.unwrap_or(0).to_le_bytes());
        for (name, value) in &self.headers {
            hash.update(name.as_str().as_bytes());
            hash.update(&[0]);
            hash.update(value.as_bytes());
            hash.update(&[0]);
        }
        hash.update(&self.body);
        for draft in emitted {
            for word in draft.words() {
                hash.update(word.as_bytes());
                hash.update(&[0]);
            }
        }
        hash.digest()
    }

    /// The media type that the function named.
    pub fn content_type(&self) -> Option<&str> {
        self.headers.get(http::header::CONTENT_TYPE)?.to_str().ok()
    }
}

/// The request that a `wasi:http` function sees: as it came, or an event in CloudEvents' binary mode.
pub(crate) fn to_http(request: &Request) -> Result<http::Request<Full<Bytes>>, String> {
    let (event, mut http) = match request {
        Request::Http(request) => {
            let mut http = http::Request::new(Full::new(request.body.clone()));
            *http.method_mut() = request.method.clone();
            *http.uri_mut() = request.path_and_query.parse().map_err(|e| format!("path: {e}"))?;
            *http.headers_mut() = request.headers.clone();
            http.headers_mut().entry(http::header::HOST).or_insert(http::HeaderValue::from_static("nexus"));
            return Ok(http);
        }
        Request::Event(event) => {
            let body = event.data.as_ref().map_or_else(Bytes::new, |d| Bytes::copy_from_slice(d.as_bytes()));
            (event, http::Request::new(Full::new(body)))
        }
    };
    *http.method_mut() = http::Method::POST;
    *http.uri_mut() = http::Uri::from_static("/");
    let headers = http.headers_mut();
    headers.insert(http::header::HOST, http::HeaderValue::from_static("nexus"));
    let mut set = |name: &str, value: &str| -> Result<(), String> {
        let name = http::HeaderName::try_from(name).map_err(|e| format!("attribute {name}: {e}"))?;
        let value = http::HeaderValue::try_from(value).map_err(|e| format!("attribute {name}: {e}"))?;
        headers.insert(name, value);
        Ok(())
    };
    set("ce-specversion", "1.0")?;
    set("ce-id", &percent_encode(&event.id))?;
    set("ce-source", &percent_encode(&event.source))?;
    set("ce-type", &percent_encode(&event.ty))?;
    for (name, value) in [("subject", &event.subject), ("time", &event.time), ("dataschema", &event.dataschema)] {
        if let Some(value) = value {
            set(&format!("ce-{name}"), &percent_encode(value))?;
        }
    }
    for (name, value) in &event.extensions {
        set(&format!("ce-{name}"), &percent_encode(&value.to_string()))?;
    }
    match (&event.datacontenttype, &event.data) {
        (Some(content_type), _) => set("content-type", content_type)?,
        (None, Some(_)) => set("content-type", "application/json")?,
        (None, None) => {}
    }
    Ok(http)
}
