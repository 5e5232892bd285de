//! `probe`: a function that does what a test asks of it, well or badly.
//!
//! Over HTTP the path says what to do; an event says it in its data. README.md beside the guests lists all of it.

mod http;

use std::hint::black_box;

use http::Request;
use serde_json::{Map, Value, json};
use wasip2::clocks::{monotonic_clock, wall_clock};
use wasip2::http::types::{IncomingRequest, ResponseOutparam};
use wasip2::random::random::get_random_bytes;

wasip2::http::proxy::export!(Probe);

struct Probe;

impl wasip2::exports::http::incoming_handler::Guest for Probe {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let request = Request::read(request);
        if request.header("ce-type").is_some() {
            return on_event(&request, out);
        }
        let path = request.path.clone();
        match path.strip_prefix('/').unwrap_or(&path) {
            "hello" => http::respond(out, 200, "text/plain", b"hello"),
            "echo" => {
                let content_type = request.header("content-type").unwrap_or("application/octet-stream");
                http::respond(out, 200, content_type, &request.body);
            }
            "request" => respond_json(out, 200, &describe(&request)),
            "trap" => trap(),
            "loop" => endless(),
            "recurse" => respond_json(out, 200, &json!({ "depth": recurse(black_box(0)) })),
            "alloc" => respond_json(out, 200, &json!({ "mb": allocate(request.number("mb", 1)) })),
            "big" => big(out, request.number("mb", 1)),
            "log" => log(out, request.number("n", 1)),
            "env" => respond_json(
                out,
                200,
                &std::env::vars().map(|(k, v)| (k, Value::from(v))).collect::<Map<_, _>>().into(),
            ),
            "random" => respond_json(out, 200, &json!({ "hex": hex(&get_random_bytes(request.number("n", 16))) })),
            "clock" => respond_json(out, 200, &clock()),
            "sleep" => {
                sleep(request.number("ms", 10));
                respond_json(out, 200, &clock());
            }
            "fetch" => {
                let url = request.param("url").unwrap_or_default();
                respond_json(out, 200, &fetched(http::fetch_sequential(&url, request.number("n", 1))));
            }
            "fan" => {
                let url = request.param("url").unwrap_or_default();
                respond_json(out, 200, &fetched(http::fetch_concurrent(&url, request.number("n", 1))));
            }
            "read" => read_files(&request, out),
            "write" => write_file(&request, out),
            "tasks" => hold_resources(out, request.number("n", 1)),
            other => match other.strip_prefix("status/").and_then(|code| code.parse().ok()) {
                Some(code) => http::respond(out, code, "text/plain", format!("status {code}").as_bytes()),
                None => respond_json(out, 404, &json!({ "error": format!("probe knows no /{other}") })),
            },
        }
    }
}

/// An event in CloudEvents binary mode. Its data says what to do, in this order: `log` (lines), `sleep_ms`, `alloc_mb`, `loop`, `trap`,
/// `status` (fails with it, or succeeds with it), `emit` (events to answer with); otherwise the event is described.
fn on_event(request: &Request, out: ResponseOutparam) {
    let data: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    for line in data["log"].as_array().into_iter().flatten() {
        eprintln!("{}", line.as_str().unwrap_or("a line that is no string"));
    }
    if let Some(ms) = data["sleep_ms"].as_u64() {
        sleep(ms);
    }
    if let Some(mb) = data["alloc_mb"].as_u64() {
        allocate(mb);
    }
    if data["loop"] == true {
        endless();
    }
    if data["trap"] == true {
        trap();
    }
    if let (Some(status), Some(seconds)) = (data["status"].as_u64(), data["retry_after_s"].as_u64()) {
        return http::respond_with(out, status as u16, &[("retry-after", &seconds.to_string())]);
    }
    if let Some(status) = data["status"].as_u64() {
        return respond_json(out, status as u16, &json!({ "status": status }));
    }
    if let Some(wanted) = data["emit"].as_array() {
        let id = request.header("ce-id").unwrap_or("none");
        let events: Vec<Value> = wanted.iter().enumerate().map(|(at, event)| complete(event, id, at)).collect();
        let body = Value::from(events).to_string();
        return http::respond(out, 200, "application/cloudevents-batch+json", body.as_bytes());
    }
    respond_json(out, 200, &describe(request));
}

/// A whole CloudEvent from the members that a test cared to give. The id follows from the event that caused it, so that a
/// second attempt emits the same events again.
fn complete(event: &Value, cause: &str, at: usize) -> Value {
    let mut whole =
        json!({ "specversion": "1.0", "id": format!("{cause}-{at}"), "source": "/probe", "type": "probe.emitted" });
    for (name, value) in event.as_object().into_iter().flatten() {
        whole[name] = value.clone();
    }
    whole
}

/// What the guest saw of the request.
fn describe(request: &Request) -> Value {
    // A header that comes twice is joined as HTTP has it.
    let mut headers = Map::new();
    for (name, value) in &request.headers {
        match headers.get_mut(name) {
            Some(Value::String(first)) => {
                first.push_str(", ");
                first.push_str(value);
            }
            _ => {
                headers.insert(name.clone(), Value::from(value.as_str()));
            }
        }
    }
    json!({
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "headers": headers,
        "length": request.body.len(),
    })
}

fn trap() -> ! {
    core::arch::wasm32::unreachable()
}

fn endless() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

/// Recurses until the stack is used up. The frame is passed on by reference, which keeps the compiler from turning this into
/// a loop.
fn recurse(depth: u64) -> u64 {
    let frame = [depth; 64];
    black_box(&frame);
    if depth == u64::MAX {
        return depth;
    }
    let below = recurse(black_box(depth + 1));
    black_box(&frame);
    below.wrapping_add(frame[0])
}

/// Allocates and touches that many mebibytes, one after the other, keeping all of them until the end.
fn allocate(mb: u64) -> u64 {
    const PAGE_BYTES: usize = 4096;
    let mut held: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mb {
        let mut block = vec![0_u8; 1024 * 1024];
        block.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
        held.push(black_box(block));
    }
    held.len() as u64
}

/// A body of that many mebibytes, written piece by piece: it is never in the guest's memory as a whole.
fn big(out: ResponseOutparam, mb: u64) {
    http::respond_streaming(out, 200, "application/octet-stream", |stream| {
        let piece = [b'x'; 64 * 1024];
        (0..mb * 16).try_for_each(|_| stream.write_all(&piece))
    });
}

fn log(out: ResponseOutparam, n: u64) {
    println!("probe writes {n} lines");
    for line in 1..=n {
        eprintln!("line {line} of {n}");
    }
    respond_json(out, 200, &json!({ "lines": n }));
}

fn clock() -> Value {
    let wall = wall_clock::now();
    json!({
        "wall_ns": wall.seconds * 1_000_000_000 + u64::from(wall.nanoseconds),
        "monotonic_ns": monotonic_clock::now(),
    })
}

fn sleep(ms: u64) {
    monotonic_clock::subscribe_duration(ms * 1_000_000).block();
}

fn fetched(results: Vec<http::Fetched>) -> Value {
    results.into_iter().map(|result| result.map_or_else(Value::from, Value::from)).collect()
}

/// Opens, reads and closes the same file again and again.
fn read_files(request: &Request, out: ResponseOutparam) {
    let path = request.param("path").unwrap_or_default();
    let mut total_bytes = 0;
    for _ in 0..request.number("n", 1) {
        match std::fs::read(&path) {
            Ok(bytes) => total_bytes += bytes.len(),
            Err(e) => {
                return respond_json(out, 500, &json!({ "error": e.to_string(), "kind": format!("{:?}", e.kind()) }));
            }
        }
    }
    respond_json(out, 200, &json!({ "bytes": total_bytes }));
}

/// Writes the body of the request to a file.
fn write_file(request: &Request, out: ResponseOutparam) {
    let path = request.param("path").unwrap_or_default();
    match std::fs::write(&path, &request.body) {
        Ok(()) => respond_json(out, 200, &json!({ "bytes": request.body.len() })),
        Err(e) => respond_json(out, 500, &json!({ "error": e.to_string(), "kind": format!("{:?}", e.kind()) })),
    }
}

/// Creates that many host resources and holds all of them at once.
fn hold_resources(out: ResponseOutparam, n: u64) {
    let held: Vec<_> = (0..n).map(|_| monotonic_clock::subscribe_duration(0)).collect();
    respond_json(out, 200, &json!({ "held": held.len() }));
}

fn respond_json(out: ResponseOutparam, status: u16, value: &Value) {
    http::respond(out, status, "application/json", value.to_string().as_bytes());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
