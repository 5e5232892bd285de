//! The smallest function of the world `wasi:http`: it answers every request with 200 and `hello`.
//!
//! The benchmark runs these very bytes in Nexus and in `wasmtime serve`, so that the ratio of the two is a ratio of hosts and
//! not of guests. Hence no standard library and an allocator that only ever moves forward.
#![no_std]

#[path = "../../bump.rs"]
mod bump;

use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

wasip2::http::proxy::export!(Hello);

struct Hello;

impl wasip2::exports::http::incoming_handler::Guest for Hello {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let response = OutgoingResponse::new(Fields::new());
        let body = ok(response.body());
        ResponseOutparam::set(out, Ok(response));
        let stream = ok(body.write());
        ok(stream.blocking_write_and_flush(b"hello"));
        drop(stream);
        ok(OutgoingBody::finish(body, None));
    }
}

/// Unwraps without the formatting code that `unwrap` would bring along.
fn ok<T, E>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(_) => core::arch::wasm32::unreachable(),
    }
}
