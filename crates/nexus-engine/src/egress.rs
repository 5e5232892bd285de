//! A function's outgoing requests: allowed or not, bounded, traced, and its own work wherever they run.
//!
//! wasmtime's own implementation drives connections in tasks that nobody would know the owner of. Here every future that
//! works for a request is marked, so that the kernel's account of the invocation holds its sockets too.

use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::uri::Scheme;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use nexus_core::function::FunctionConfig;
use nexus_core::ids::InvocationId;
use nexus_core::mark::{Marked, Marker, Part};
use nexus_core::outcome::{HostCall, Network};
use nexus_core::trace::{SpanId, TraceContext};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc};
use wasmtime_wasi_http::p2::DEFAULT_OUTGOING_BODY_BUFFER_CHUNKS;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::socket::Socket;
use crate::tape::{Answer, Answers, Tape, recorded, whole};

/// How much of a URL and of a method the record of a call keeps.
const URL_BYTES_MAX: usize = 2048;
const METHOD_BYTES_MAX: usize = 32;
/// Writes to one body that a replay holds.
const PLAYED_CHUNKS_MAX: usize = 1 << 24;

/// The import that all of this is done for.
const HANDLE: Part = Part::Import("wasi:http/outgoing-handler.handle");

type Sent = Result<(http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

/// The span of an invocation's `index`th outgoing request.
pub fn call_span(invocation: InvocationId, index: usize) -> SpanId {
    SpanId::derive(invocation.0.as_bytes(), &format!("call {index}"))
}

/// The outgoing requests of one invocation.
pub(crate) struct Calls {
    invocation: InvocationId,
    trace: TraceContext,
    config: Arc<FunctionConfig>,
    marker: Arc<dyn Marker>,
    started: Instant,
    calls_max: usize,
    open: Arc<Semaphore>,
    made: Mutex<Vec<HostCall>>,
    dropped: AtomicU64,
    /// Names that are being resolved, on threads that cannot be stopped.
    resolving: Arc<AtomicUsize>,
    /// Held by every future that works for a request; see [`Calls::ended`].
    alive: Mutex<Option<mpsc::Sender<()>>>,
    gone: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

impl Calls {
    pub fn new(
        invocation: InvocationId,
        trace: TraceContext,
        config: Arc<FunctionConfig>,
        marker: Arc<dyn Marker>,
        started: Instant,
        bounds: (usize, usize),
    ) -> Arc<Self> {
        let (alive, gone) = mpsc::channel(1);
        Arc::new(Self {
            invocation,
            trace,
            config,
            marker,
            started,
            calls_max: bounds.1,
            open: Arc::new(Semaphore::new(bounds.0)),
            made: Mutex::new(Vec::new()),
            dropped: AtomicU64::new(0),
            resolving: Arc::default(),
            alive: Mutex::new(Some(alive)),
            gone: tokio::sync::Mutex::new(gone),
        })
    }

    /// Waits until nothing works for the invocation any more, so that its account is whole, unless its guest was left
    /// behind; then returns its calls. No request can begin after that.
    pub async fn ended(&self, guest_gone: bool) -> Ended {
        drop(self.alive.lock().take());
        if guest_gone {
            // Nobody sends: this resolves when the last sender is dropped.
            let _ = self.gone.lock().await.recv().await;
        }
        Ended {
            made: std::mem::take(&mut *self.made.lock()),
            dropped: self.dropped.load(Ordering::Relaxed),
            resolving: self.resolving.load(Ordering::Acquire) > 0,
        }
    }

    fn begin(&self, call: HostCall) -> Result<usize, Error> {
        let mut made = self.made.lock();
        if made.len() >= self.calls_max {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return Err(Error::ConnectionLimitReached);
        }
        made.push(call);
        Ok(made.len() - 1)
    }

    fn end(&self, index: usize, status: Option<u16>, error: Option<String>) {
        if let Some(call) = self.made.lock().get_mut(index) {
            call.duration_ns = (self.started.elapsed().as_nanos() as u64).saturating_sub(call.offset_ns);
            call.status = status;
            call.error = error;
        }
    }

    /// Notes something of the connection of a call.
    pub fn note(&self, index: usize, note: impl FnOnce(&mut Network)) {
        if let Some(call) = self.made.lock().get_mut(index) {
            note(&mut call.network);
        }
    }

    /// Wraps a future so that it is marked and known to be alive.
    fn owned<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Box<dyn Future<Output = Result<T, Error>> + Send> {
        match self.alive.lock().clone() {
            Some(alive) => {
                Box::new(Owned { inner: Marked::new(self.marker.clone(), HANDLE, Box::pin(future)), _alive: alive })
            }
            None => Box::new(async { Err(Error::ConnectionTerminated) }),
        }
    }
}

/// What is known of an invocation's requests when it is over.
pub(crate) struct Ended {
    pub made: Vec<HostCall>,
    /// Requests beyond the bound.
    pub dropped: u64,
    /// Whether a name is still being resolved.
    pub resolving: bool,
}

/// Fields are dropped in order: the work is gone before the sign of life is.
struct Owned<T: Send + 'static> {
    inner: Marked<T>,
    _alive: mpsc::Sender<()>,
}

impl<T: Send + 'static> Future for Owned<T> {
    type Output = T;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

/// The hook through which `wasi:http/outgoing-handler` sends.
pub(crate) struct Hooks {
    calls: Arc<Calls>,
    tape: Tape,
    /// Writes to a body that nobody has taken yet.
    chunks_max: usize,
}

impl Hooks {
    pub fn new(calls: Arc<Calls>, tape: Tape) -> Self {
        // In a replay it was decided when it was recorded whether a write finds room.
        let chunks_max = if tape.plays() { PLAYED_CHUNKS_MAX } else { DEFAULT_OUTGOING_BODY_BUFFER_CHUNKS };
        Self { calls, tape, chunks_max }
    }
}

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _consumed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let calls = self.calls.clone();
        let asked = |answers: &mut Answers| answers.to(request.method().as_str(), &whole(request.uri()));
        match self.tape.answers(asked) {
            Some(Answer::Recorded(came)) => Box::new(std::future::ready(recorded(came))),
            Some(Answer::Denied) => Box::new(std::future::ready(Err(Error::HttpRequestDenied))),
            Some(Answer::Live) | None => {
                let work = send(calls.clone(), request, options);
                calls.owned(work)
            }
        }
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        self.chunks_max
    }
}

/// Where a request goes.
struct Destination {
    host: String,
    port: u16,
    tls: bool,
}

impl Destination {
    fn of(uri: &http::Uri) -> Result<Self, Error> {
        let host = uri.host().filter(|h| !h.is_empty()).ok_or(Error::HttpRequestUriInvalid)?;
        let tls = uri.scheme() == Some(&Scheme::HTTPS);
        Ok(Self { host: host.to_owned(), port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }), tls })
    }
}

async fn send(calls: Arc<Calls>, request: http::Request<WasiBody>, options: Option<RequestOptions>) -> Sent {
    let uri = request.uri();
    let url = format!(
        "{}://{}{}",
        uri.scheme_str().unwrap_or("http"),
        uri.authority().map_or("", |a| a.as_str().rsplit('@').next().unwrap_or_default()),
        uri.path()
    );
    let call = HostCall {
        method: shortened(request.method().as_str(), METHOD_BYTES_MAX),
        url: shortened(&url, URL_BYTES_MAX),
        status: None,
        error: None,
        offset_ns: calls.started.elapsed().as_nanos() as u64,
        duration_ns: 0,
        network: Network::default(),
    };
    let index = calls.begin(call)?;
    // Until it ends by itself it was cut off: by the guest, or by the end of the invocation.
    let mut ended = EndOnDrop { calls: &calls, index, done: false };
    let sent = exchange(&calls, index, request, options).await;
    ended.done = true;
    match &sent {
        Ok((response, _)) => calls.end(index, Some(response.status().as_u16()), None),
        Err(error) => calls.end(index, None, Some(describe(error))),
    }
    sent
}

struct EndOnDrop<'a> {
    calls: &'a Calls,
    index: usize,
    done: bool,
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.calls.end(self.index, None, Some("cancelled before a response came".into()));
        }
    }
}

async fn exchange(
    calls: &Arc<Calls>,
    index: usize,
    mut request: http::Request<WasiBody>,
    options: Option<RequestOptions>,
) -> Sent {
    let destination = Destination::of(request.uri())?;
    if !calls.config.may_call(&destination.host, destination.port) {
        return Err(Error::HttpRequestDenied);
    }
    let permit = calls.open.clone().try_acquire_owned().map_err(|_| Error::ConnectionLimitReached)?;
    let left = calls.config.limits.timeout().saturating_sub(calls.started.elapsed());
    let bound = |wanted: Option<Duration>| wanted.unwrap_or(left).min(left);
    let connect_timeout = bound(options.as_ref().and_then(|o| o.connect_timeout));
    let first_byte_timeout = bound(options.as_ref().and_then(|o| o.first_byte_timeout));

    if !request.headers().contains_key("traceparent") {
        let span = calls.trace.at(call_span(calls.invocation, index));
        if let Ok(value) = http::HeaderValue::from_str(&span.traceparent()) {
            request.headers_mut().insert("traceparent", value);
            // It belongs to the trace that was just named; beside another's traceparent it would be wrong.
            let state = span.tracestate.as_deref().and_then(|s| http::HeaderValue::from_str(s).ok());
            if let Some(state) = state {
                request.headers_mut().insert("tracestate", state);
            }
        }
    }
    // Only a proxy is sent the whole URI.
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
    *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;

    let (mut sender, connection) = tokio::time::timeout(connect_timeout, async {
        let stream = connect(calls, index, &destination).await?;
        hyper::client::conn::http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(Error::from)
    })
    .await
    .map_err(|_| Error::ConnectionTimeout)??;

    // The connection moves only when it is polled: here until the head is there, then by the future that is returned.
    let mut connection = Box::pin(connection);
    let mut response = Box::pin(tokio::time::timeout(first_byte_timeout, sender.send_request(request)));
    let mut closed = false;
    let response = std::future::poll_fn(|cx| {
        if let Poll::Ready(response) = response.as_mut().poll(cx) {
            return Poll::Ready(response);
        }
        if !closed && let Poll::Ready(result) = connection.as_mut().poll(cx) {
            closed = true;
            if let Err(error) = result {
                return Poll::Ready(Ok(Err(error)));
            }
            return response.as_mut().poll(cx);
        }
        Poll::Pending
    })
    .await
    .map_err(|_| Error::ConnectionReadTimeout)?
    .map_err(Error::from)?;

    let io = calls.owned(async move {
        let _permit = permit;
        if closed { Ok(()) } else { connection.await.map_err(Error::from) }
    });
    Ok((response.map(|body| body.map_err(Error::from).boxed_unsync()), io))
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn connect(calls: &Arc<Calls>, index: usize, destination: &Destination) -> Result<Box<dyn Stream>, Error> {
    let addresses = resolve(calls, index, destination).await?;
    let began = Instant::now();
    let mut last = Error::DestinationNotFound;
    for address in addresses {
        let connected = Socket::connect(calls, index, address).await;
        calls.note(index, |network| network.connect_ns = Some(nanos(began.elapsed())));
        match connected {
            Ok(stream) if destination.tls => {
                let began = Instant::now();
                let agreed = tls(destination, stream).await;
                calls.note(index, |network| network.tls_ns = Some(nanos(began.elapsed())));
                return agreed;
            }
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => last = Error::ConnectionRefused,
            Err(error) => last = Error::Connect(error),
        }
    }
    Err(last)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The system's resolver blocks, so it runs on a thread for that, bound to the invocation while it does.
async fn resolve(calls: &Arc<Calls>, index: usize, destination: &Destination) -> Result<Vec<SocketAddr>, Error> {
    let bare = destination.host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse() {
        return Ok(vec![SocketAddr::new(ip, destination.port)]);
    }
    let (host, port, marker) = (destination.host.clone(), destination.port, calls.marker.clone());
    let resolving = Counted::in_(calls.resolving.clone());
    let began = Instant::now();
    let resolved = tokio::task::spawn_blocking(move || {
        let _resolving = resolving;
        let mut result = None;
        marker.marked(HANDLE, &mut || result = Some((host.as_str(), port).to_socket_addrs().map(Iterator::collect)));
        result
    })
    .await;
    calls.note(index, |network| network.dns_ns = Some(nanos(began.elapsed())));
    match resolved {
        Ok(Some(Ok(addresses))) => Ok(addresses),
        Ok(Some(Err(error))) => Err(Error::DnsError { rcode: Some(error.to_string()), info_code: None }),
        Ok(None) | Err(_) => Err(Error::DnsError { rcode: None, info_code: None }),
    }
}

/// Counts itself for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn in_(count: Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn tls(destination: &Destination, stream: Socket) -> Result<Box<dyn Stream>, Error> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.into() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map(|builder| builder.with_root_certificates(roots).with_no_client_auth());
        // The provider and the versions are compiled in together: there is no input that could make this fail.
        Arc::new(config.unwrap_or_else(|e| unreachable!("ring supports the default TLS versions: {e}")))
    });
    let bare = destination.host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = rustls::pki_types::ServerName::try_from(bare).map_err(|_| Error::HttpRequestUriInvalid)?;
    let stream = tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream).await.map_err(Error::Tls)?;
    Ok(Box::new(stream))
}

/// What is kept of a text that the guest chose: it may be as long as the guest's memory.
fn shortened(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes_max)])
}

/// An error as a person would say it.
fn describe(error: &Error) -> String {
    match error {
        Error::HttpRequestDenied => "refused: the host is not in the function's `egress`".into(),
        Error::ConnectionLimitReached => "refused: the invocation has too many requests open, or made too many".into(),
        Error::ConnectionRefused => "connection refused".into(),
        Error::ConnectionTimeout => "no connection in time".into(),
        Error::ConnectionReadTimeout => "no response in time".into(),
        Error::Connect(e) => format!("cannot connect: {e}"),
        Error::Tls(e) => format!("TLS failed: {e}"),
        Error::DnsError { rcode: Some(why), .. } => format!("name not resolved: {why}"),
        Error::Hyper(e) => format!("HTTP failed: {e}"),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        let check = |uri: &str, expected: Option<(&str, u16, bool)>| {
            let uri: http::Uri = uri.parse().expect("uri");
            let have = Destination::of(&uri).ok().map(|d| (d.host, d.port, d.tls));
            assert_eq!(have, expected.map(|(h, p, t)| (h.to_owned(), p, t)), "{uri}");
        };
        check("http://a.example/x", Some(("a.example", 80, false)));
        check("https://a.example", Some(("a.example", 443, true)));
        check("http://user:pw@a.example:8080/", Some(("a.example", 8080, false)));
        check("http://[::1]:9/", Some(("[::1]", 9, false)));
        check("/path", None);
    }
}
