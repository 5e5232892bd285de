//! Just enough of HTTP on top of `wasi:http`: a request read whole, a response written whole or streamed, and outgoing GETs.

use std::io::Write;

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    ErrorCode, Fields, FutureIncomingResponse, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest,
    OutgoingResponse, ResponseOutparam, Scheme,
};
use wasip2::io::poll;
use wasip2::io::streams::StreamError;

/// A request, read whole.
pub struct Request {
    pub method: String,
    pub path: String,
    /// The part after the `?`, still encoded.
    pub query: String,
    /// Names in lower case, in the order in which they came.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn read(request: IncomingRequest) -> Request {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let headers = request
            .headers()
            .entries()
            .into_iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), String::from_utf8_lossy(&value).into_owned()))
            .collect();
        let method = match request.method() {
            Method::Get => "GET".to_owned(),
            Method::Head => "HEAD".to_owned(),
            Method::Post => "POST".to_owned(),
            Method::Put => "PUT".to_owned(),
            Method::Delete => "DELETE".to_owned(),
            Method::Connect => "CONNECT".to_owned(),
            Method::Options => "OPTIONS".to_owned(),
            Method::Trace => "TRACE".to_owned(),
            Method::Patch => "PATCH".to_owned(),
            Method::Other(name) => name,
        };
        let body = request.consume().map(read_body).unwrap_or_default();
        Request { method, path: path.to_owned(), query: query.to_owned(), headers, body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The value of a query parameter, decoded.
    pub fn param(&self, name: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| percent_decode(value))
        })
    }

    /// A numeric query parameter, or `default` where it is absent or no number.
    pub fn number(&self, name: &str, default: u64) -> u64 {
        self.param(name).and_then(|text| text.parse().ok()).unwrap_or(default)
    }
}

/// Reads a body to its end; what came before an error in the middle of it is kept.
fn read_body(body: IncomingBody) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(stream) = body.stream() {
        loop {
            match stream.blocking_read(64 * 1024) {
                Ok(chunk) => bytes.extend_from_slice(&chunk),
                Err(StreamError::Closed) => break,
                Err(StreamError::LastOperationFailed(e)) => {
                    eprintln!("reading a body: {}", e.to_debug_string());
                    break;
                }
            }
        }
    }
    bytes
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[i], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Answers with a status, a content type and a body that `write` produces as it goes.
///
/// An error of writing means that nobody listens any more: there is nothing left to do then.
pub fn respond_streaming(
    out: ResponseOutparam,
    status: u16,
    content_type: &str,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) {
    let headers = Fields::new();
    let _ = headers.append("content-type", content_type.as_bytes());
    let response = OutgoingResponse::new(headers);
    if response.set_status_code(status).is_err() {
        let _ = response.set_status_code(500);
    }
    let body = response.body().expect("the body of a new response can be taken once");
    ResponseOutparam::set(out, Ok(response));
    let mut stream = body.write().expect("the stream of a new body can be taken once");
    let written = write(&mut stream).and_then(|()| Write::flush(&mut stream));
    drop(stream);
    if written.is_ok() {
        let _ = OutgoingBody::finish(body, None);
    }
}

/// An answer of headers alone.
pub fn respond_with(out: ResponseOutparam, status: u16, headers: &[(&str, &str)]) {
    let fields = Fields::new();
    for (name, value) in headers {
        let _ = fields.append(name, value.as_bytes());
    }
    let response = OutgoingResponse::new(fields);
    let _ = response.set_status_code(status);
    let body = response.body().expect("the body of a new response can be taken once");
    ResponseOutparam::set(out, Ok(response));
    let _ = OutgoingBody::finish(body, None);
}

/// Answers with a whole body.
pub fn respond(out: ResponseOutparam, status: u16, content_type: &str, body: &[u8]) {
    respond_streaming(out, status, content_type, |stream| stream.write_all(body));
}

/// What became of an outgoing request: the status, or the name of the error.
pub type Fetched = Result<u16, String>;

/// `n` GETs of `url`, one after the other; each body is read to its end.
pub fn fetch_sequential(url: &str, n: u64) -> Vec<Fetched> {
    (0..n)
        .map(|_| {
            let future = start_get(url)?;
            future.subscribe().block();
            finish_get(&future)
        })
        .collect()
}

/// `n` GETs of `url` at the same time, in the order in which they were started.
pub fn fetch_concurrent(url: &str, n: u64) -> Vec<Fetched> {
    let started: Vec<_> = (0..n).map(|_| start_get(url)).collect();
    let mut results: Vec<Option<Fetched>> =
        started.iter().map(|s| s.as_ref().err().map(|error| Err(error.clone()))).collect();
    loop {
        let waiting: Vec<usize> = (0..results.len()).filter(|&i| results[i].is_none()).collect();
        if waiting.is_empty() {
            return results.into_iter().flatten().collect();
        }
        let futures: Vec<_> = waiting.iter().filter_map(|&i| started[i].as_ref().ok()).collect();
        let pollables: Vec<_> = futures.iter().map(|future| future.subscribe()).collect();
        let ready = poll::poll(&pollables.iter().collect::<Vec<_>>());
        for at in ready {
            results[waiting[at as usize]] = Some(finish_get(futures[at as usize]));
        }
    }
}

fn start_get(url: &str) -> Result<FutureIncomingResponse, String> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        _ => return Err("BadUrl".to_owned()),
    };
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    let request = OutgoingRequest::new(Fields::new());
    let set = request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(path)));
    if set.is_err() {
        return Err("BadUrl".to_owned());
    }
    outgoing_handler::handle(request, None).map_err(|e| error_name(&e))
}

/// Takes the response of a request that is ready.
fn finish_get(future: &FutureIncomingResponse) -> Fetched {
    match future.get() {
        Some(Ok(Ok(response))) => {
            let status = response.status();
            let _ = response.consume().map(read_body);
            Ok(status)
        }
        Some(Ok(Err(e))) => Err(error_name(&e)),
        Some(Err(())) => Err("TakenTwice".to_owned()),
        None => Err("NotReady".to_owned()),
    }
}

/// The name of an error without its details: `ErrorCode::DnsError(…)` is `DnsError`.
fn error_name(error: &ErrorCode) -> String {
    let text = format!("{error:?}");
    let name = text.strip_prefix("ErrorCode::").unwrap_or(&text);
    name.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}
