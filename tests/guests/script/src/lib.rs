//! `script`: a function that does a list of things that a replay must give it the same answers to, and says what it learned.
//!
//! The request's body, or the event's data, is a JSON list of steps; README.md beside the guests lists them. The answer is the
//! JSON list of what each step came to.

use std::io::Write as _;

use serde_json::{Value, json};
use wasip2::clocks::{monotonic_clock, wall_clock};
use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, FutureIncomingResponse, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest,
    OutgoingResponse, ResponseOutparam, Scheme,
};
use wasip2::io::poll;
use wasip2::io::streams::{InputStream, StreamError};
use wasip2::random::{insecure, insecure_seed, random};

mod files;

wasip2::http::proxy::export!(Script);

struct Script;

impl wasip2::exports::http::incoming_handler::Guest for Script {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let body = request.consume().expect("a body can be taken once");
        let bytes = read_whole(body, 65_536);
        let steps: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let did: Vec<Value> = steps.as_array().into_iter().flatten().map(step).collect();
        let headers = Fields::new();
        let _ = headers.append("content-type", b"application/json");
        let response = OutgoingResponse::new(headers);
        let body = response.body().expect("the body of a new response can be taken once");
        ResponseOutparam::set(out, Ok(response));
        let mut stream = body.write().expect("the stream of a new body can be taken once");
        // Nobody may listen any more: there is nothing left to do then.
        let _ = stream.write_all(Value::from(did).to_string().as_bytes());
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}

fn step(step: &Value) -> Value {
    let number = |name: &str| step[name].as_u64().unwrap_or(0);
    match step["do"].as_str().unwrap_or_default() {
        "wall" => {
            let now = wall_clock::now();
            json!([now.seconds, now.nanoseconds])
        }
        "monotonic" => monotonic_clock::now().into(),
        "resolution" => json!([monotonic_clock::resolution(), wall_clock::resolution().nanoseconds]),
        "random" => hex(&random::get_random_bytes(number("n"))).into(),
        "random-u64" => random::get_random_u64().to_string().into(),
        "insecure" => hex(&insecure::get_insecure_random_bytes(number("n"))).into(),
        "insecure-u64" => insecure::get_insecure_random_u64().to_string().into(),
        "seed" => {
            let (a, b) = insecure_seed::insecure_seed();
            json!([a.to_string(), b.to_string()])
        }
        "sleep" => {
            monotonic_clock::subscribe_duration(number("ns")).block();
            Value::Null
        }
        // Asked until it is: how often is the host's doing.
        "spin" => {
            let timer = monotonic_clock::subscribe_duration(number("ns"));
            let mut asked = 0_u64;
            while !timer.ready() {
                asked += 1;
            }
            asked.into()
        }
        "race" => {
            let timers: Vec<_> = step["ns"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|ns| monotonic_clock::subscribe_duration(ns.as_u64().unwrap_or(0)))
                .collect();
            poll::poll(&timers.iter().collect::<Vec<_>>()).into()
        }
        "file" => files::step(step),
        "fan" => fan(step),
        "post" => post(step),
        "print" => {
            eprintln!("{}", step["text"].as_str().unwrap_or_default());
            Value::Null
        }
        "grow" => {
            let bytes = vec![1_u8; number("kb") as usize * 1024];
            std::hint::black_box(&bytes).len().into()
        }
        "nan" => {
            let nan = std::hint::black_box(0.0_f64) / std::hint::black_box(0.0_f64);
            format!("{:016x}", nan.to_bits()).into()
        }
        "trap" => core::arch::wasm32::unreachable(),
        "oversized-write" => {
            let request = OutgoingRequest::new(Fields::new());
            let body = request.body().expect("the body of a new request can be taken once");
            let stream = body.write().expect("the stream of a new body can be taken once");
            // More than may be written so at once: the host ends the guest.
            let _ = stream.blocking_write_and_flush(&[7; 5000]);
            Value::Null
        }
        "miscounted-body" => {
            let fields = Fields::new();
            let _ = fields.append("content-length", b"5");
            let request = OutgoingRequest::new(fields);
            let body = request.body().expect("the body of a new request can be taken once");
            let stream = body.write().expect("the stream of a new body can be taken once");
            let wrote = [&b"12345"[..], b"678"].map(|bytes| stream.blocking_write_and_flush(bytes).is_ok());
            drop(stream);
            json!([wrote, OutgoingBody::finish(body, None).err().map(|e| format!("{e:?}"))])
        }
        "wait-for-a-date" => loop {
            if wall_clock::now().seconds == 0 {
                break Value::Null;
            }
        },
        "loop" => loop {
            std::hint::black_box(0);
        },
        other => json!({ "unknown": other }),
    }
}

/// All URLs at once; what came, in the order in which it came: which one, the status, and what each read gave.
fn fan(step: &Value) -> Value {
    let chunk = step["chunk"].as_u64().unwrap_or(65_536);
    let urls: Vec<&str> = step["urls"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut came = Vec::new();
    let mut open: Vec<(usize, FutureIncomingResponse)> = Vec::new();
    for (at, url) in urls.iter().enumerate() {
        match start(url, &Method::Get, &[], None) {
            Ok(future) => open.push((at, future)),
            Err(why) => came.push(json!([at, why])),
        }
    }
    while !open.is_empty() {
        let pollables: Vec<_> = open.iter().map(|(_, future)| future.subscribe()).collect();
        let ready = poll::poll(&pollables.iter().collect::<Vec<_>>());
        drop(pollables);
        for place in ready.into_iter().rev() {
            let (at, future) = open.remove(place as usize);
            came.push(json!([at, finish(&future, chunk)]));
        }
    }
    came.into()
}

fn post(step: &Value) -> Value {
    let text = step["body"].as_str().unwrap_or_default();
    let url = step["url"].as_str().unwrap_or_default();
    let headers: Vec<(&str, &str)> =
        step["headers"].as_object().into_iter().flatten().map(|(n, v)| (n.as_str(), v.as_str().unwrap_or(""))).collect();
    match start(url, &Method::Post, &headers, Some(text.as_bytes())) {
        Ok(future) => {
            future.subscribe().block();
            finish(&future, 65_536)
        }
        Err(why) => why.into(),
    }
}

fn start(
    url: &str,
    method: &Method,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
) -> Result<FutureIncomingResponse, String> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let fields = Fields::new();
    for (name, value) in headers {
        fields.append(name, value.as_bytes()).map_err(|e| format!("{e:?}"))?;
    }
    let request = OutgoingRequest::new(fields);
    request.set_method(method).map_err(|()| "method")?;
    request.set_scheme(Some(&Scheme::Http)).map_err(|()| "scheme")?;
    request.set_authority(Some(authority)).map_err(|()| "authority")?;
    request.set_path_with_query(Some(path)).map_err(|()| "path")?;
    let outgoing = body.map(|_| request.body().expect("the body of a new request can be taken once"));
    let future = outgoing_handler::handle(request, None).map_err(|e| format!("{e:?}"))?;
    if let (Some(outgoing), Some(bytes)) = (outgoing, body) {
        let mut stream = outgoing.write().expect("the stream of a new body can be taken once");
        for piece in bytes.chunks(1000) {
            // Whoever is called may be gone.
            if stream.write_all(piece).is_err() {
                break;
            }
        }
        drop(stream);
        let _ = OutgoingBody::finish(outgoing, None);
    }
    Ok(future)
}

fn finish(future: &FutureIncomingResponse, chunk: u64) -> Value {
    match future.get() {
        Some(Ok(Ok(response))) => {
            let status = response.status();
            let mut headers: Vec<_> = response.headers().entries();
            headers.retain(|(name, _)| name.starts_with("x-"));
            let headers: Vec<_> =
                headers.into_iter().map(|(n, v)| format!("{n}: {}", String::from_utf8_lossy(&v))).collect();
            let body = response.consume().expect("a body can be taken once");
            let (mut pieces, mut hash) = (Vec::new(), 0_u64);
            let stream = body.stream().expect("a stream can be taken once");
            let end = loop {
                match read(&stream, chunk) {
                    Ok(bytes) => {
                        pieces.push(bytes.len());
                        hash = bytes.iter().fold(hash, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(*b)));
                    }
                    Err(StreamError::Closed) => break "closed".to_owned(),
                    Err(StreamError::LastOperationFailed(e)) => break e.to_debug_string(),
                }
            };
            drop(stream);
            let trailers = IncomingBody::finish(body);
            trailers.subscribe().block();
            let trailers = matches!(trailers.get(), Some(Ok(Ok(Some(_)))));
            json!({ "status": status, "headers": headers, "pieces": pieces, "hash": hash, "end": end, "trailers": trailers })
        }
        Some(Ok(Err(e))) => format!("{e:?}").into(),
        Some(Err(())) => "taken before".into(),
        None => "not there".into(),
    }
}

/// Now this way, now that way.
fn read(stream: &InputStream, chunk: u64) -> Result<Vec<u8>, StreamError> {
    if chunk % 2 == 0 {
        return stream.blocking_read(chunk);
    }
    stream.subscribe().block();
    stream.read(chunk)
}

fn read_whole(body: IncomingBody, chunk: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let stream = body.stream().expect("a stream can be taken once");
    while let Ok(piece) = stream.blocking_read(chunk) {
        bytes.extend(piece);
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
