//! `wasi:http` by the tape: outgoing requests and all that is learned of their answers; and which stream is whose body.

use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Body as _;
use nexus_core::journal::{Entry, Got, Head, HttpFailure, Read, Sent, Whose};
use wasmtime::component::{Linker, Resource};
use wasmtime::{StoreContextMut, format_err};
use wasmtime_wasi::p2::bindings::cli::{stderr, stdin, stdout};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream};
use wasmtime_wasi_http::p2::bindings::http::outgoing_handler;
use wasmtime_wasi_http::p2::bindings::http::types::{
    self, ErrorCode, Host as _, HostIncomingBody as _, HostOutgoingBody as _, IoError, Method, Scheme,
};
use wasmtime_wasi_http::p2::body::{HostFutureTrailers, HostIncomingBody, HostOutgoingBody, HyperOutgoingBody};
use wasmtime_wasi_http::p2::types::{
    HostFutureIncomingResponse, HostIncomingRequest, HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse,
};
use wasmtime_wasi_http::{FieldMap, RequestOptions, WasiHttpView as _};

use super::failure::{code, failure};
use super::io::define;
use crate::host::Host;

/// What stands for a value that was kept out of the journal.
const REDACTED: &[u8] = nexus_core::journal::REDACTED.as_bytes();

/// What a stream reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The answer to the request of this number.
    Answer(u32),
    /// The file stream of this number.
    File(u32),
}

impl Source {
    /// A read as the journal has it.
    pub(super) fn read(self, read: Read) -> Entry {
        match self {
            Self::Answer(of) => Entry::Body(of, read),
            Self::File(of) => Entry::FileRead(of, read),
        }
    }

    /// Something left out.
    pub(super) fn skipped(self, skipped: Result<u64, Read>) -> Entry {
        match self {
            Self::Answer(of) => Entry::Skipped(of, skipped),
            Self::File(of) => Entry::FileSkipped(of, skipped),
        }
    }
}

/// Which of the host's things belong to which request. They are told apart by their numbers in the table of resources, which are
/// given out again: so whoever makes a thing of a kind says anew what it is.
#[derive(Default)]
pub(crate) struct Places {
    requests: u32,
    futures: HashMap<u32, u32>,
    responses: HashMap<u32, u32>,
    bodies: HashMap<u32, u32>,
    trailers: HashMap<u32, u32>,
    inputs: HashMap<u32, Source>,
    outgoing: HashMap<u32, Whose>,
    outputs: HashMap<u32, Whose>,
    /// In a replay: bodies of requests that go nowhere. Whoever writes to them must not find them closed.
    held: Vec<HyperOutgoingBody>,
    /// The most bytes that may be written to a body at once.
    pub(super) write_budget: usize,
}

impl Places {
    pub(crate) fn new() -> Self {
        Self { write_budget: wasmtime_wasi_http::p2::DEFAULT_OUTGOING_BODY_CHUNK_SIZE, ..Self::default() }
    }

    /// What a stream reads, if it is known.
    pub(super) fn source_at(&self, stream: u32) -> Option<Source> {
        self.inputs.get(&stream).copied()
    }

    /// This stream reads that.
    pub(super) fn reads(&mut self, stream: u32, source: Source) {
        self.inputs.insert(stream, source);
    }

    /// This stream writes that.
    pub(super) fn writes(&mut self, stream: u32, whose: Whose) {
        self.outputs.insert(stream, whose);
    }

    /// Lets go of what was written to bodies that go nowhere.
    pub(super) fn drain(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for body in &mut self.held {
            while let Poll::Ready(Some(Ok(_))) = Pin::new(&mut *body).poll_frame(&mut context) {}
        }
    }

    /// Whose body a stream writes, if it writes one.
    pub(super) fn body_at(&self, stream: u32) -> Option<Whose> {
        self.outputs.get(&stream).copied()
    }
}

/// Notes what a thing is, or that it is nothing of the kind.
fn note<T>(places: &mut HashMap<u32, T>, rep: u32, what: Option<T>) {
    match what {
        Some(what) => drop(places.insert(rep, what)),
        None => drop(places.remove(&rep)),
    }
}

/// Puts these functions in the place of wasmtime's own. Shadowing must be allowed.
pub(crate) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut handler = linker.instance("wasi:http/outgoing-handler@0.2.12")?;
    define!(handler, "wasi:http/outgoing-handler", "handle", handle);
    let mut http = linker.instance("wasi:http/types@0.2.12")?;
    define!(http, "wasi:http/types", "[method]future-incoming-response.get", get);
    define!(http, "wasi:http/types", "[method]future-trailers.get", trailers);
    define!(http, "wasi:http/types", "[method]incoming-response.consume", consume_response);
    define!(http, "wasi:http/types", "[method]incoming-request.consume", consume_request);
    define!(http, "wasi:http/types", "[method]incoming-body.stream", body_stream);
    define!(http, "wasi:http/types", "[static]incoming-body.finish", body_finish);
    define!(http, "wasi:http/types", "[method]outgoing-request.body", request_body);
    define!(http, "wasi:http/types", "[method]outgoing-response.body", response_body);
    define!(http, "wasi:http/types", "[method]outgoing-body.write", body_write);
    define!(http, "wasi:http/types", "http-error-code", http_error_code);
    // Streams of no body.
    let mut cli = linker.instance("wasi:cli/stdin@0.2.12")?;
    define!(cli, "wasi:cli/stdin", "get-stdin", get_stdin);
    let mut cli = linker.instance("wasi:cli/stdout@0.2.12")?;
    define!(cli, "wasi:cli/stdout", "get-stdout", get_stdout);
    let mut cli = linker.instance("wasi:cli/stderr@0.2.12")?;
    define!(cli, "wasi:cli/stderr", "get-stderr", get_stderr);
    Ok(())
}

/// A request as the journal has it.
fn sent(request: &HostOutgoingRequest, redacted: &[String]) -> Sent {
    let method = match &request.method {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Connect => "CONNECT",
        Method::Options => "OPTIONS",
        Method::Trace => "TRACE",
        Method::Patch => "PATCH",
        Method::Other(name) => name,
    };
    let scheme = match &request.scheme {
        None | Some(Scheme::Https) => "https",
        Some(Scheme::Http) => "http",
        Some(Scheme::Other(name)) => name,
    };
    let (authority, path) = (request.authority.as_deref(), request.path_with_query.as_deref());
    // A user and a password before the host are for the host alone.
    let authority = authority.unwrap_or_default().rsplit('@').next().unwrap_or_default();
    let url = format!("{scheme}://{authority}{}", path.filter(|path| !path.is_empty()).unwrap_or("/"));
    Sent { method: method.to_owned(), url, headers: taken_down(&request.headers, redacted) }
}

fn taken_down(headers: &HeaderMap, redacted: &[String]) -> Vec<(String, Bytes)> {
    let value = |name: &HeaderName, value: &HeaderValue| {
        let kept_out = redacted.iter().any(|redacted| redacted == name.as_str());
        if kept_out { Bytes::from_static(REDACTED) } else { Bytes::copy_from_slice(value.as_bytes()) }
    };
    headers.iter().map(|(name, of)| (name.as_str().to_owned(), value(name, of))).collect()
}

/// Whether a request is the recorded one; values that were kept out are any.
fn same(recorded: &Sent, now: &Sent) -> bool {
    let same_value = |(recorded, now): (&(String, Bytes), &(String, Bytes))| {
        recorded.0 == now.0 && (recorded.1 == now.1 || recorded.1 == REDACTED)
    };
    recorded.method == now.method
        && recorded.url == now.url
        && recorded.headers.len() == now.headers.len()
        && recorded.headers.iter().zip(&now.headers).all(same_value)
}

pub(super) fn header_map(headers: &[(String, Bytes)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let (Ok(name), Ok(value)) =
            (HeaderName::try_from(name.as_str()), HeaderValue::from_maybe_shared(value.clone()))
        else {
            continue;
        };
        // More than there can be were never read, and a journal may be anybody's.
        if map.try_append(name, value).is_err() {
            break;
        }
    }
    map
}

/// A failure of the journal's, as the guest got it.
pub(super) fn known(failure: &HttpFailure) -> wasmtime::Result<ErrorCode> {
    code(failure).ok_or_else(|| format_err!("the journal has an error code that there is not: {failure}"))
}

type Handled = wasmtime::Result<(Result<Resource<HostFutureIncomingResponse>, ErrorCode>,)>;

fn handle(
    host: &mut Host,
    (request, options): (Resource<HostOutgoingRequest>, Option<Resource<RequestOptions>>),
) -> Handled {
    let number = host.places.requests;
    host.places.requests += 1;
    let asked = match host.tape.is_there() {
        true => Some(Box::new(sent(host.table.get(&request)?, &host.tape.redacted().headers))),
        false => None,
    };
    if let Some(asked) = &asked {
        let pick = |entry: &Entry| match entry {
            Entry::Request(recorded, refused) if same(recorded, asked) => Some(refused.clone()),
            _ => None,
        };
        if let Some(refused) = host.tape.played(|| Entry::Request(asked.clone(), None), pick)? {
            host.places.held.extend(host.table.delete(request)?.body);
            if let Some(refused) = refused {
                return Ok((Err(known(&refused)?),));
            }
            // Nobody asks it whether it is there: the tape knows.
            let future = host.table.push(HostFutureIncomingResponse::Consumed)?;
            host.places.futures.insert(future.rep(), number);
            return Ok((Ok(future),));
        }
    }
    let result = match outgoing_handler::Host::handle(&mut host.http(), request, options) {
        Ok(future) => Ok(future),
        Err(error) => Err(error.downcast()?),
    };
    if let Ok(future) = &result {
        host.places.futures.insert(future.rep(), number);
    }
    if let Some(asked) = asked {
        host.tape.record(|| Entry::Request(asked, result.as_ref().err().map(failure)));
    }
    Ok((result,))
}

type GotResponse = Option<Result<Result<Resource<HostIncomingResponse>, ErrorCode>, ()>>;

fn get(host: &mut Host, (future,): (Resource<HostFutureIncomingResponse>,)) -> wasmtime::Result<(GotResponse,)> {
    let of = host.places.futures.get(&future.rep()).copied().unwrap_or(u32::MAX);
    let pick = |entry: &Entry| match entry {
        Entry::Response(recorded, got) if *recorded == of => Some(got.clone()),
        _ => None,
    };
    let got: GotResponse = match host.tape.played(|| Entry::Response(of, Got::NotYet), pick)? {
        None => {
            let got = types::HostFutureIncomingResponse::get(&mut host.http(), future)?;
            let entry = match &got {
                _ if !host.tape.is_there() => None,
                None => Some(Got::NotYet),
                Some(Err(())) => Some(Got::Taken),
                Some(Ok(Err(code))) => Some(Got::Failed(failure(code))),
                Some(Ok(Ok(response))) => {
                    let response = host.table.get(response)?;
                    let headers = taken_down(&response.headers, &host.tape.redacted().headers);
                    Some(Got::Head(Box::new(Head { status: response.status, headers })))
                }
            };
            if let Some(entry) = entry {
                host.tape.record(|| Entry::Response(of, entry));
            }
            got
        }
        Some(Got::NotYet) => None,
        Some(Got::Taken | Got::Nothing) => Some(Err(())),
        Some(Got::Failed(failure)) => Some(Ok(Err(known(&failure)?))),
        Some(Got::Head(head)) => {
            // What is read of it, the tape knows.
            let empty = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
            let response = HostIncomingResponse {
                status: head.status,
                headers: FieldMap::new_immutable(host.http().hooks, header_map(&head.headers)),
                body: Some(HostIncomingBody::new(empty)),
            };
            Some(Ok(Ok(host.table.push(response)?)))
        }
    };
    if let Some(Ok(Ok(response))) = &got {
        host.places.responses.insert(response.rep(), of);
    }
    Ok((got,))
}

type GotTrailers = Option<Result<Result<Option<Resource<FieldMap>>, ErrorCode>, ()>>;

/// Those of the function's own request are of no answer.
const OF_NONE: u32 = u32::MAX;

fn trailers(host: &mut Host, (future,): (Resource<HostFutureTrailers>,)) -> wasmtime::Result<(GotTrailers,)> {
    let of = host.places.trailers.get(&future.rep()).copied().unwrap_or(OF_NONE);
    let pick = |entry: &Entry| match entry {
        Entry::TrailersOf(recorded, got) if *recorded == of => Some(got.clone()),
        Entry::Trailers(got) => Some(got.clone()),
        _ => None,
    };
    let got = match host.tape.played(|| Entry::TrailersOf(of, Got::NotYet), pick)? {
        Some(got) => got,
        None => {
            let got = types::HostFutureTrailers::get(&mut host.http(), future)?;
            if host.tape.is_there() {
                let entry = match &got {
                    None => Got::NotYet,
                    Some(Err(())) => Got::Taken,
                    Some(Ok(Err(code))) => Got::Failed(failure(code)),
                    Some(Ok(Ok(None))) => Got::Nothing,
                    Some(Ok(Ok(Some(fields)))) => {
                        let headers = taken_down(host.table.get(fields)?, &host.tape.redacted().headers);
                        Got::Head(Box::new(Head { status: 0, headers }))
                    }
                };
                host.tape.record(|| Entry::TrailersOf(of, entry));
            }
            return Ok((got,));
        }
    };
    let got = match got {
        Got::NotYet => None,
        Got::Taken => Some(Err(())),
        Got::Nothing => Some(Ok(Ok(None))),
        Got::Failed(failure) => Some(Ok(Err(known(&failure)?))),
        Got::Head(head) => {
            let fields = FieldMap::new_immutable(host.http().hooks, header_map(&head.headers));
            Some(Ok(Ok(Some(host.table.push(fields)?))))
        }
    };
    Ok((got,))
}

type Consumed = wasmtime::Result<(Result<Resource<HostIncomingBody>, ()>,)>;

fn consume_response(host: &mut Host, (response,): (Resource<HostIncomingResponse>,)) -> Consumed {
    let of = host.places.responses.get(&response.rep()).copied();
    let body = types::HostIncomingResponse::consume(&mut host.http(), response)?;
    if let Ok(body) = &body {
        note(&mut host.places.bodies, body.rep(), of);
    }
    Ok((body,))
}

fn consume_request(host: &mut Host, (request,): (Resource<HostIncomingRequest>,)) -> Consumed {
    let body = types::HostIncomingRequest::consume(&mut host.http(), request)?;
    if let Ok(body) = &body {
        note(&mut host.places.bodies, body.rep(), None);
    }
    Ok((body,))
}

fn body_stream(
    host: &mut Host,
    (body,): (Resource<HostIncomingBody>,),
) -> wasmtime::Result<(Result<Resource<DynInputStream>, ()>,)> {
    let of = host.places.bodies.get(&body.rep()).copied();
    let stream = host.http().stream(body)?;
    if let Ok(stream) = &stream {
        note(&mut host.places.inputs, stream.rep(), of.map(Source::Answer));
    }
    Ok((stream,))
}

fn body_finish(
    host: &mut Host,
    (body,): (Resource<HostIncomingBody>,),
) -> wasmtime::Result<(Resource<HostFutureTrailers>,)> {
    let of = host.places.bodies.get(&body.rep()).copied();
    let trailers = types::HostIncomingBody::finish(&mut host.http(), body)?;
    note(&mut host.places.trailers, trailers.rep(), of);
    Ok((trailers,))
}

type Outgoing = wasmtime::Result<(Result<Resource<HostOutgoingBody>, ()>,)>;

fn request_body(host: &mut Host, (request,): (Resource<HostOutgoingRequest>,)) -> Outgoing {
    let body = types::HostOutgoingRequest::body(&mut host.http(), request)?;
    if let Ok(body) = &body {
        host.places.outgoing.insert(body.rep(), Whose::Request);
    }
    Ok((body,))
}

fn response_body(host: &mut Host, (response,): (Resource<HostOutgoingResponse>,)) -> Outgoing {
    let body = types::HostOutgoingResponse::body(&mut host.http(), response)?;
    if let Ok(body) = &body {
        host.places.outgoing.insert(body.rep(), Whose::Response);
    }
    Ok((body,))
}

fn body_write(
    host: &mut Host,
    (body,): (Resource<HostOutgoingBody>,),
) -> wasmtime::Result<(Result<Resource<DynOutputStream>, ()>,)> {
    let whose = host.places.outgoing.get(&body.rep()).copied();
    let stream = host.http().write(body)?;
    if let Ok(stream) = &stream {
        note(&mut host.places.outputs, stream.rep(), whose);
    }
    Ok((stream,))
}

fn http_error_code(host: &mut Host, (error,): (Resource<IoError>,)) -> wasmtime::Result<(Option<ErrorCode>,)> {
    let pick = |entry: &Entry| if let Entry::ErrorCode(code) = entry { Some(code.clone()) } else { None };
    if let Some(recorded) = host.tape.played(|| Entry::ErrorCode(None), pick)? {
        return Ok((recorded.as_ref().map(known).transpose()?,));
    }
    let code = host.http().http_error_code(error)?;
    host.tape.record(|| Entry::ErrorCode(code.as_ref().map(failure)));
    Ok((code,))
}

fn get_stdin(host: &mut Host, (): ()) -> wasmtime::Result<(Resource<DynInputStream>,)> {
    let stream = stdin::Host::get_stdin(&mut wasmtime_wasi::cli::WasiCliView::cli(host))?;
    note(&mut host.places.inputs, stream.rep(), None);
    Ok((stream,))
}

fn get_stdout(host: &mut Host, (): ()) -> wasmtime::Result<(Resource<DynOutputStream>,)> {
    let stream = stdout::Host::get_stdout(&mut wasmtime_wasi::cli::WasiCliView::cli(host))?;
    note(&mut host.places.outputs, stream.rep(), None);
    Ok((stream,))
}

fn get_stderr(host: &mut Host, (): ()) -> wasmtime::Result<(Resource<DynOutputStream>,)> {
    let stream = stderr::Host::get_stderr(&mut wasmtime_wasi::cli::WasiCliView::cli(host))?;
    note(&mut host.places.outputs, stream.rep(), None);
    Ok((stream,))
}
