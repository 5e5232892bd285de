//! `thumbnail`: answers a PNG or JPEG with a small PNG of it.
//!
//! A function of the standard world `wasi:http`. The picture is the body of a POST, or the data of an event, which comes as one;
//! `?width=` says how wide, `THUMBNAIL_WIDTH` where the request does not. The work itself is in [`picture`].

mod picture;

use std::io::{self, Read, Write};

use picture::Refusal;
use serde_json::json;
use wasip2::http::types::{Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam};

wasip2::http::proxy::export!(Thumbnail);

struct Thumbnail;

/// The largest file that is read.
const BODY_BYTES_MAX: u64 = 16 * 1024 * 1024;
const WIDTH_DEFAULT: u32 = 128;
const WIDTH_MAX: u32 = 1024;

impl wasip2::exports::http::incoming_handler::Guest for Thumbnail {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        match answer(&request) {
            Ok(png) => respond(out, 200, "image/png", &png),
            Err((status, error)) => {
                eprintln!("no thumbnail: {error}");
                respond(out, status, "application/json", json!({ "error": error }).to_string().as_bytes());
            }
        }
    }
}

/// The thumbnail, or a status and what is wrong.
fn answer(request: &IncomingRequest) -> Result<Vec<u8>, (u16, String)> {
    if !matches!(request.method(), Method::Post) {
        return Err((405, "POST a PNG or JPEG".to_owned()));
    }
    let width = width(&request.path_with_query().unwrap_or_default()).map_err(|e| (400, e))?;
    let body = read(request).map_err(|e| (400, format!("the request can't be read: {e}")))?;
    if body.len() as u64 > BODY_BYTES_MAX {
        return Err((413, format!("a file of more than {BODY_BYTES_MAX} bytes is not read")));
    }
    let png = picture::thumbnail(&body, width).map_err(|refusal| match refusal {
        Refusal::NotAPicture => (415, "the body is no PNG or JPEG".to_owned()),
        Refusal::Broken(e) => (422, format!("the picture can't be decoded: {e}")),
        Refusal::TooLarge(e) => (422, e),
    })?;
    eprintln!("{} bytes in, {} out, at most {width} wide", body.len(), png.len());
    Ok(png)
}

/// The width that the request asks for, that the configuration names, or the default.
fn width(target: &str) -> Result<u32, String> {
    let query = target.split_once('?').map(|(_, query)| query).unwrap_or_default();
    let asked = query.split('&').find_map(|pair| pair.strip_prefix("width=")).map(str::to_owned);
    let Some(text) = asked.or_else(|| std::env::var("THUMBNAIL_WIDTH").ok()) else {
        return Ok(WIDTH_DEFAULT);
    };
    match text.parse() {
        Ok(width) if (1..=WIDTH_MAX).contains(&width) => Ok(width),
        _ => Err(format!("the width {text:?} is no number from 1 to {WIDTH_MAX}")),
    }
}

/// Reads the body, and one byte more than is allowed, by which a longer one is known.
fn read(request: &IncomingRequest) -> io::Result<Vec<u8>> {
    let body = request.consume().map_err(|()| io::Error::other("the body was taken before"))?;
    let stream = body.stream().map_err(|()| io::Error::other("the body was taken before"))?;
    let mut bytes = Vec::new();
    stream.take(BODY_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Answers the request. An error of writing means that nobody listens any more: there is nothing left to do then.
fn respond(out: ResponseOutparam, status: u16, content_type: &str, body: &[u8]) {
    let headers = Fields::new();
    let _ = headers.append("content-type", content_type.as_bytes());
    let response = OutgoingResponse::new(headers);
    let _ = response.set_status_code(status);
    let outgoing = response.body().expect("the body of a new response can be taken once");
    ResponseOutparam::set(out, Ok(response));
    {
        // The stream has to be gone before the body is finished.
        let mut stream = outgoing.write().expect("the stream of a new body can be taken once");
        let _ = stream.write_all(body).and_then(|()| Write::flush(&mut stream));
    }
    let _ = OutgoingBody::finish(outgoing, None);
}
