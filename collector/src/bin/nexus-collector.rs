//! `nexus-collector`: the probes as a service, for runtimes that have no privilege of their own.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use axum::Router;
use axum::http::header;
use axum::routing::get;
use clap::{Parser, ValueEnum};
use nexus_collector::{Daemon, DaemonConfig, DaemonStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Watches the kernel for Nexus runtimes that have no privilege of their own.
///
/// Needs CAP_BPF and CAP_PERFMON, and nothing else. Each `nexus serve --collector SOCKET` gets probes of its own; when either
/// side ends, its probes are gone, and events say that nothing is watched until both are back.
#[derive(Parser)]
#[command(name = "nexus-collector", version, after_help = EXAMPLES)]
struct Args {
    /// The Unix socket to listen at. Its owner and its group may open it
    #[arg(long, default_value = "/run/nexus/collector.sock", env = "NEXUS_COLLECTOR")]
    socket: PathBuf,
    /// A user whose runtimes are served, by name or number, beside root and this one; may be repeated
    #[arg(long, value_name = "USER", value_parser = user_id)]
    user: Vec<u32>,
    /// Runtimes that are served at a time; each adds to what a system call costs on this host
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    runtimes_max: u16,
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

deploy/nexus-collector.service runs it with exactly the privilege that it needs.";

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// A JSON object a line
    Json,
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (metrics, address) = match args.listen {
        None => (None, None),
        Some(listen) => {
            let listener = runtime.block_on(TcpListener::bind(listen));
            let listener =
                listener.with_context(|| format!("cannot listen on {listen}; choose another with --listen"))?;
            let address = listener.local_addr()?;
            (Some(listener), Some(address))
        }
    };
    let config =
        DaemonConfig { socket: args.socket.clone(), users: args.user, runtimes_max: usize::from(args.runtimes_max) };
    let daemon = Daemon::bind(config)?;
    let (stats, stop) = (daemon.stats(), daemon.stop_flag());
    let serving = std::thread::Builder::new().name("accept".into()).spawn(move || daemon.run())?;
    let metrics_at = address.map(|address| format!("http://{address}/metrics"));
    tracing::info!(socket = %args.socket.display(), metrics = metrics_at.as_deref(), "ready");
    // Whoever started it may have stopped listening; the collector goes on.
    let _ = writeln!(
        std::io::stdout(),
        "ready at {}{}",
        args.socket.display(),
        match &metrics_at {
            Some(at) => format!(", metrics on {at}"),
            None => String::new(),
        }
    );
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let metrics = tokio::spawn(serve_metrics(metrics, stats));
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        metrics.abort();
        anyhow::Ok(())
    })?;
    tracing::info!("stopping");
    stop.store(true, Ordering::Relaxed);
    serving.join().map_err(|_| anyhow::anyhow!("the part that accepts connections panicked"))
}

async fn serve_metrics(listener: Option<TcpListener>, stats: Arc<DaemonStats>) {
    let Some(listener) = listener else { return };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Stats(stats)));
    let registry = Arc::new(registry);
    let page = move || {
        let registry = Arc::clone(&registry);
        async move {
            let mut page = String::new();
            let encoded = prometheus_client::encoding::text::encode(&mut page, &registry);
            encoded.map(|()| ([(header::CONTENT_TYPE, OPENMETRICS)], page)).map_err(|error| {
                tracing::error!(%error, "the metrics cannot be written");
                axum::http::StatusCode::INTERNAL_SERVER_ERROR
            })
        }
    };
    if let Err(error) = axum::serve(listener, Router::new().route("/metrics", get(page))).await {
        tracing::error!(%error, "metrics are served no more");
    }
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug)]
struct Stats(Arc<DaemonStats>);

impl Collector for Stats {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gauges = [
            ("nexus_collector_runtimes", "Runtimes that are served", &self.0.runtimes),
            ("nexus_collector_threads", "Their threads that the probes know", &self.0.threads),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value.load(Ordering::Relaxed) as u64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            ("nexus_collector_runtimes_served", "Runtimes that were served", &self.0.runtimes_total),
            ("nexus_collector_connections_refused", "Connections that were refused", &self.0.refused_total),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value.load(Ordering::Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
