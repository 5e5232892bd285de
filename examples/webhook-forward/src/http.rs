//! Just enough of HTTP on top of `wasi:http`: reading what came, answering, and one outgoing POST.

use std::io::{self, Read, Write};

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse, RequestOptions,
    ResponseOutparam, Scheme,
};

/// The longest body that is read, from the caller or from the receiver.
const BODY_BYTES_MAX: u64 = 1024 * 1024;
const CONNECT_TIMEOUT_NS: u64 = 5_000_000_000;
const ANSWER_TIMEOUT_NS: u64 = 10_000_000_000;

/// A header's value, where it is there and is text.
pub fn header(request: &IncomingRequest, name: &str) -> Option<String> {
    let values = request.headers().get(name);
    values.into_iter().next().and_then(|value| String::from_utf8(value).ok())
}

/// The request's body, whole.
pub fn read_request(request: &IncomingRequest) -> io::Result<Vec<u8>> {
    let body = request.consume().map_err(|()| io::Error::other("the body was taken before"))?;
    read(body)
}

fn read(body: IncomingBody) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Ok(stream) = body.stream() {
        let mut bounded = stream.take(BODY_BYTES_MAX + 1);
        bounded.read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 > BODY_BYTES_MAX {
        return Err(io::Error::other(format!("the body is longer than {BODY_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// Answers the request. An error of writing means that nobody listens any more: there is nothing left to do then.
pub fn respond(out: ResponseOutparam, status: u16, headers: &[(&str, &str)], body: &[u8]) {
    let fields = Fields::new();
    for (name, value) in headers {
        let _ = fields.append(name, value.as_bytes());
    }
    let response = OutgoingResponse::new(fields);
    let _ = response.set_status_code(status);
    let outgoing = response.body().expect("the body of a new response can be taken once");
    ResponseOutparam::set(out, Ok(response));
    let _ = write(outgoing, body);
}

fn write(outgoing: OutgoingBody, bytes: &[u8]) -> io::Result<()> {
    {
        // The stream has to be gone before the body is finished.
        let mut stream = outgoing.write().map_err(|()| io::Error::other("the body was taken before"))?;
        stream.write_all(bytes)?;
        Write::flush(&mut stream)?;
    }
    OutgoingBody::finish(outgoing, None).map_err(io::Error::other)
}

/// What a receiver said.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// Posts JSON to a URL and waits for the answer; the error says in words what went wrong.
pub fn post_json(url: &str, body: &[u8]) -> Result<Answer, String> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        _ => return Err(format!("{url:?} is no http or https URL")),
    };
    let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));

    let headers = Fields::new();
    let length = body.len().to_string();
    for (name, value) in [("content-type", "application/json"), ("content-length", length.as_str())] {
        headers.append(name, value.as_bytes()).map_err(|e| format!("the header {name} was refused: {e:?}"))?;
    }
    let request = OutgoingRequest::new(headers);
    request
        .set_method(&Method::Post)
        .and_then(|()| request.set_scheme(Some(&scheme)))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(path)))
        .map_err(|()| format!("{url:?} is no valid URL"))?;
    let options = RequestOptions::new();
    let _ = options.set_connect_timeout(Some(CONNECT_TIMEOUT_NS));
    let _ = options.set_first_byte_timeout(Some(ANSWER_TIMEOUT_NS));

    let outgoing = request.body().map_err(|()| "the request has no body to write".to_owned())?;
    let future = outgoing_handler::handle(request, Some(options)).map_err(|e| format!("{e:?}"))?;
    // A receiver that answers without reading is no failure: what it answered is what counts.
    let _ = write(outgoing, body);
    future.subscribe().block();
    match future.get() {
        Some(Ok(Ok(response))) => {
            let status = response.status();
            let body = match response.consume() {
                Ok(body) => read(body).map_err(|e| format!("its answer broke off: {e}"))?,
                Err(()) => Vec::new(),
            };
            Ok(Answer { status, body })
        }
        Some(Ok(Err(e))) => Err(format!("{e:?}")),
        Some(Err(())) | None => Err("the host has no answer though it said so".to_owned()),
    }
}
