//! `nexus-collector`: the probes as a service, for runtimes that have no privilege of their own, and for any other process.

mod metrics;
mod watching;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use nexus_collector::otlp::{TIMEOUT, span_exporter};
use nexus_collector::{Daemon, DaemonConfig, DaemonStats, Probes, ProbesConfig};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::EnvFilter;

use watching::{AllTotals, Wanted};

/// Where it listens unless said.
const SOCKET: &str = "/run/nexus/collector.sock";

/// Spans that may wait to be exported; more are dropped, and said to be.
const SPANS_MAX: usize = 1024;

/// Watches the kernel for Nexus runtimes that have no privilege of their own, and for any other process.
///
/// Needs CAP_BPF and CAP_PERFMON, and nothing else. Each `nexus serve --collector SOCKET` gets probes of its own; when either
/// side ends, its probes are gone, and events say that nothing is watched until both are back.
#[derive(Parser)]
#[command(name = "nexus-collector", version, after_help = EXAMPLES)]
struct Args {
    /// The Unix socket to listen at for runtimes. Its owner and its group may open it [default: /run/nexus/collector.sock; with
    /// --watch none]
    #[arg(long, env = "NEXUS_COLLECTOR")]
    socket: Option<PathBuf>,
    /// A user whose runtimes are served, by name or number, beside root and this one; may be repeated
    #[arg(long, value_name = "USER", value_parser = user_id)]
    user: Vec<u32>,
    /// Runtimes that are served at a time; each adds to what a system call costs on this host
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    runtimes_max: u16,
    /// Threads of each that can be watched; each costs 36 KiB of kernel memory
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads_max: u32,
    /// Processes to watch that are no runtimes: pid:NUMBER, cgroup:PATH, command:NAME; may be repeated. Their numbers are among the
    /// metrics; each process gets a span when it ends, in the trace of its TRACEPARENT if its environment may be read
    #[arg(long, value_name = "WHAT")]
    watch: Vec<Wanted>,
    /// Where those spans go
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// How
    #[arg(long, value_enum, default_value_t = OtlpProtocol::Grpc, env = "OTEL_EXPORTER_OTLP_PROTOCOL")]
    otlp_protocol: OtlpProtocol,
    /// Where its own metrics are served, for Prometheus; nowhere unless said
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// How logs are written, to standard error; RUST_LOG chooses which
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "NEXUS_LOG_FORMAT")]
    log_format: LogFormat,
}

const EXAMPLES: &str = "Examples:
  nexus-collector --socket /run/nexus/collector.sock --user nexus --listen 127.0.0.1:7071
  nexus serve --collector /run/nexus/collector.sock
  nexus-collector --watch command:postgres --watch cgroup:/system.slice/nginx.service --listen 127.0.0.1:7071

deploy/nexus-collector.service runs it with exactly the privilege that it needs.";

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// A JSON object a line
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OtlpProtocol {
    /// gRPC, usually on port 4317
    Grpc,
    /// HTTP with protobuf, usually on port 4318
    #[value(name = "http/protobuf")]
    HttpProtobuf,
}

/// A user's number, by name or number.
fn user_id(user: &str) -> Result<u32, String> {
    if let Ok(id) = user.parse() {
        return Ok(id);
    }
    let users = std::fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
    let id = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == user).then(|| fields.nth(1)?.parse().ok()).flatten()
    };
    users.lines().find_map(id).ok_or_else(|| "there is no such user in /etc/passwd; its number is taken as well".into())
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Fails only where there is one already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => {
            logs.with_target(false).with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init()
        }
        LogFormat::Json => logs.json().flatten_event(true).init(),
    }
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nexus-collector: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    for (at, wanted) in args.watch.iter().enumerate() {
        anyhow::ensure!(!args.watch[..at].contains(wanted), "--watch {wanted} is there twice");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let listener = match args.listen {
        None => None,
        Some(listen) => Some(
            runtime
                .block_on(TcpListener::bind(listen))
                .with_context(|| format!("cannot listen on {listen}; choose another with --listen"))?,
        ),
    };
    let metrics_at = match &listener {
        Some(listener) => Some(format!("http://{}/metrics", listener.local_addr()?)),
        None => None,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    let socket = args.socket.or_else(|| args.watch.is_empty().then(|| SOCKET.into()));
    let mut stats = Arc::<DaemonStats>::default();
    if let Some(socket) = &socket {
        let daemon = Daemon::bind(DaemonConfig {
            socket: socket.clone(),
            users: args.user,
            runtimes_max: usize::from(args.runtimes_max),
            threads_max: args.threads_max,
        })?;
        stats = daemon.stats();
        let stop = Arc::clone(&stop);
        threads.push(std::thread::Builder::new().name("accept".into()).spawn(move || daemon.run(&stop))?);
    }
    let totals = AllTotals::default();
    let watches = !args.watch.is_empty();
    let (spans, waiting) = mpsc::channel(SPANS_MAX);
    if watches {
        let (wanted, totals, stop) = (args.watch, Arc::clone(&totals), Arc::clone(&stop));
        let spans = args.otlp_endpoint.is_some().then_some(spans);
        threads.push(start_watching(wanted, totals, spans, stop)?);
    }
    let exporting = match &args.otlp_endpoint {
        Some(endpoint) if watches => {
            let _within = runtime.enter();
            let exporter = span_exporter(endpoint, args.otlp_protocol == OtlpProtocol::Grpc)
                .with_context(|| format!("OTLP exporter for {endpoint}"))?;
            Some(runtime.spawn(export(exporter, waiting)))
        }
        _ => None,
    };
    // From here on a signal ends it in order.
    let (mut interrupt, mut terminate) = {
        let _within = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    tracing::info!(socket = ?socket, metrics = metrics_at.as_deref(), "ready");
    let at = socket.map_or_else(|| "nowhere for runtimes".into(), |socket| format!("at {}", socket.display()));
    let metrics = metrics_at.map_or_else(String::new, |at| format!(", metrics on {at}"));
    // Whoever started it may have stopped listening; the collector goes on.
    let _ = writeln!(std::io::stdout(), "ready {at}{metrics}");
    runtime.block_on(async {
        tokio::spawn(metrics::serve(listener, stats, totals));
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    });
    tracing::info!("stopping");
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a part panicked"))?;
    }
    // Who watches has ended, so the channel has, too.
    if let Some(exporting) = exporting
        && runtime.block_on(async { tokio::time::timeout(TIMEOUT, exporting).await }).is_err()
    {
        tracing::warn!("spans were still waiting to be exported at the end");
    }
    Ok(())
}

fn start_watching(
    wanted: Vec<Wanted>,
    totals: AllTotals,
    spans: Option<mpsc::Sender<SpanData>>,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<JoinHandle<()>> {
    let probes = Probes::load(&ProbesConfig::for_observe())?;
    let watching = move || watching::watch(&probes, wanted, &totals, spans.as_ref(), &stop);
    Ok(std::thread::Builder::new().name("watch".into()).spawn(watching)?)
}

/// Sends spans as they come, as many at a time as there are.
async fn export(exporter: opentelemetry_otlp::SpanExporter, mut waiting: mpsc::Receiver<SpanData>) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, SPANS_MAX).await > 0 {
        let spans = batch.len();
        if let Err(error) = exporter.export(std::mem::take(&mut batch)).await {
            tracing::warn!(%error, spans, "spans were not taken");
        }
    }
}
