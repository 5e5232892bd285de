//! `{{name}}`: answers HTTP requests, and takes events as requests too.
//!
//! A function of the standard world `wasi:http`: what is built here runs in any host of that world. Nexus sends an event as
//! `POST /` in CloudEvents binary mode: its attributes are the headers `ce-id`, `ce-type`, `ce-source` and so on, its data is the body.

use std::io::{self, Read, Write};

use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

wasip2::http::proxy::export!(Function);

struct Function;

impl wasip2::exports::http::incoming_handler::Guest for Function {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let body = match read_body(&request) {
            Ok(body) => body,
            Err(e) => {
                return respond(
                    out,
                    400,
                    &[],
                    format!("the body can't be read: {e}\n").as_bytes(),
                );
            }
        };
        match (header(&request, "ce-type"), header(&request, "ce-id")) {
            (Some(kind), Some(id)) => on_event(&kind, &id, &body, out),
            _ => on_request(&request, &body, out),
        }
    }
}

/// An event. A response in binary mode is an event that the function emits; one without `ce-specversion` would be its output.
/// A status of 408, 425, 429 or 5xx means: again later. Another 4xx means: never.
fn on_event(kind: &str, id: &str, data: &[u8], out: ResponseOutparam) {
    // A line on standard error is a line in the function's log, and is shown with the event's trace.
    eprintln!("{kind} with {} bytes of data", data.len());
    let headers = [
        ("ce-specversion", "1.0"),
        // An id that follows from the cause: a second attempt emits the same event again, not another.
        ("ce-id", &format!("{id}-seen")),
        ("ce-source", "/{{name}}"),
        ("ce-type", "note.seen"),
        ("content-type", "application/json"),
    ];
    respond(
        out,
        200,
        &headers,
        format!(r#"{{"bytes":{}}}"#, data.len()).as_bytes(),
    );
}

/// A request to /fn/{{name}}/…, as it came.
fn on_request(request: &IncomingRequest, body: &[u8], out: ResponseOutparam) {
    let target = request.path_with_query().unwrap_or_default();
    let text = format!("hello from {{name}}: {target}, {} bytes\n", body.len());
    respond(out, 200, &[("content-type", "text/plain")], text.as_bytes());
}

fn header(request: &IncomingRequest, name: &str) -> Option<String> {
    let values = request.headers().get(name);
    values
        .into_iter()
        .next()
        .and_then(|value| String::from_utf8(value).ok())
}

fn read_body(request: &IncomingRequest) -> io::Result<Vec<u8>> {
    let body = request
        .consume()
        .map_err(|()| io::Error::other("it was taken before"))?;
    let mut stream = body
        .stream()
        .map_err(|()| io::Error::other("it was taken before"))?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Answers the request. An error of writing means that nobody listens any more: there is nothing left to do then.
fn respond(out: ResponseOutparam, status: u16, headers: &[(&str, &str)], body: &[u8]) {
    let fields = Fields::new();
    for (name, value) in headers {
        let _ = fields.append(name, value.as_bytes());
    }
    let response = OutgoingResponse::new(fields);
    let _ = response.set_status_code(status);
    let outgoing = response
        .body()
        .expect("the body of a new response can be taken once");
    ResponseOutparam::set(out, Ok(response));
    {
        // The stream has to be gone before the body is finished.
        let mut stream = outgoing
            .write()
            .expect("the stream of a new body can be taken once");
        let _ = stream
            .write_all(body)
            .and_then(|()| Write::flush(&mut stream));
    }
    let _ = OutgoingBody::finish(outgoing, None);
}
