//! `nexus serve`, and what `nexus dev` shares with it.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;
use tracing::Subscriber;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_subscriber::EnvFilter;

use super::{Done, Failure};
use crate::config::{Config, KernelDetail, KernelWanted, LogFormat, OtlpProtocol};
use crate::kernel::{self, Kernel};
use crate::server::Server;
use crate::telemetry::Imports;

/// What `dev` and `serve` take.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// The configuration file
    #[arg(long, env = "NEXUS_CONFIG")]
    config: Option<PathBuf>,
    /// Where to listen [default: 127.0.0.1:7070]
    #[arg(long, env = "NEXUS_LISTEN")]
    listen: Option<SocketAddr>,
    /// Where everything durable is
    #[arg(long, env = "NEXUS_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// The log in NATS JetStream: addresses of its servers with commas between them, or `managed` for a server of our own
    #[arg(long, value_name = "URL|managed", env = "NEXUS_NATS")]
    nats: Option<String>,
    /// Copies of each message in the NATS cluster: 1, 3 or 5 [default: 1]
    #[arg(long, value_name = "N", env = "NEXUS_NATS_REPLICAS")]
    nats_replicas: Option<u8>,
    /// The name of the stream in NATS [default: NEXUS]
    #[arg(long, value_name = "NAME", env = "NEXUS_NATS_STREAM")]
    nats_stream: Option<String>,
    /// A file of credentials for NATS
    #[arg(long, value_name = "FILE", env = "NEXUS_NATS_CREDENTIALS")]
    nats_credentials: Option<PathBuf>,
    /// The program for `--nats managed` [default: nats-server]
    #[arg(long, value_name = "FILE", env = "NEXUS_NATS_SERVER")]
    nats_server: Option<PathBuf>,
    /// The kernel's account [default: auto]
    #[arg(long, value_enum, env = "NEXUS_KERNEL")]
    kernel: Option<KernelWanted>,
    /// The socket of a `nexus-collector` that loads the probes: then this process needs no privilege
    #[arg(long, value_name = "SOCKET", env = "NEXUS_COLLECTOR")]
    collector: Option<PathBuf>,
    /// How much the kernel's account tells [default: full]
    #[arg(long, value_enum, env = "NEXUS_KERNEL_DETAIL")]
    kernel_detail: Option<KernelDetail>,
    /// Where traces go: http://host:port of an OpenTelemetry collector
    #[arg(long, env = "NEXUS_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// How OTLP is spoken [default: grpc]
    #[arg(long, value_enum, env = "NEXUS_OTLP_PROTOCOL")]
    otlp_protocol: Option<OtlpProtocol>,
    /// How logs are written [default: text]
    #[arg(long, value_enum, env = "NEXUS_LOG_FORMAT")]
    log_format: Option<LogFormat>,
    /// A name under which the API may be reached, beside addresses and localhost; may be repeated
    #[arg(long)]
    allow_host: Vec<String>,
    /// A folder below which functions may have mounts; may be repeated
    #[arg(long)]
    allow_mount: Vec<PathBuf>,
}

impl ServerArgs {
    /// Defaults, then the file, then the environment and the flags; checked.
    pub fn config(&self, data_dir: PathBuf) -> anyhow::Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::from_file(path)?,
            None => Config { data_dir, ..Config::default() },
        };
        if let Some(listen) = self.listen {
            config.listen = listen;
        }
        if let Some(data_dir) = &self.data_dir {
            config.data_dir = data_dir.clone();
        }
        if let Some(servers) = &self.nats {
            config.nats.get_or_insert_default().servers = servers.clone();
        }
        let nats_asked = self.nats_replicas.is_some() || self.nats_stream.is_some() || self.nats_credentials.is_some();
        match &mut config.nats {
            Some(nats) => {
                nats.replicas = self.nats_replicas.unwrap_or(nats.replicas);
                nats.stream = self.nats_stream.clone().unwrap_or_else(|| nats.stream.clone());
                nats.credentials = self.nats_credentials.clone().or(nats.credentials.take());
                nats.program = self.nats_server.clone().unwrap_or_else(|| nats.program.clone());
            }
            None if nats_asked => {
                anyhow::bail!("--nats-… without --nats; say where the servers are, or `--nats managed`")
            }
            None => {}
        }
        if let Some(kernel) = self.kernel {
            config.kernel = kernel;
        }
        if let Some(socket) = &self.collector {
            config.collector = Some(socket.clone());
        }
        if let Some(detail) = self.kernel_detail {
            config.kernel_detail = detail;
        }
        if let Some(protocol) = self.otlp_protocol {
            config.otlp.protocol = protocol;
        }
        if let Some(endpoint) = &self.otlp_endpoint {
            config.otlp.endpoint = Some(endpoint.clone());
        }
        if let Some(format) = self.log_format {
            config.log_format = format;
        }
        config.hosts_allowed.extend(self.allow_host.iter().cloned());
        config.mounts_allowed.extend(self.allow_mount.iter().cloned());
        let config = config.with_otel_environment(|name| std::env::var(name).ok())?;
        config.validate()?;
        Ok(config)
    }
}

/// Runs a server until a signal ends it.
pub fn run(args: ServerArgs) -> Done {
    let config = args.config(PathBuf::from("nexus-data"))?;
    start_logs(config.log_format, config.kernel != KernelWanted::Off);
    serve(config, |_, _| async {})
}

/// Logs go to standard error; `RUST_LOG` chooses. With `imports`, the kernel's account tells guests' imports apart.
pub fn start_logs(format: LogFormat, imports: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match format {
        LogFormat::Text => {
            let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
            install(logs.with_target(false).with_ansi(colour).finish(), imports)
        }
        LogFormat::Json => install(logs.json().flatten_event(true).finish(), imports),
    };
    installed.unwrap_or_else(|error| eprintln!("nexus: no logs: {error}"));
}

fn install(logs: impl Subscriber + Send + Sync, imports: bool) -> Result<(), SetGlobalDefaultError> {
    if imports {
        tracing::subscriber::set_global_default(Imports::around(logs))
    } else {
        tracing::subscriber::set_global_default(logs)
    }
}

/// Loads the probes, then starts the threads that they watch, then the server; `beside` runs as long as it does.
pub fn serve<F: Future<Output = ()> + Send + 'static>(
    config: Config,
    beside: impl FnOnce(&Server, CancellationToken) -> F,
) -> Done {
    let kernel = Arc::new(Kernel::start(&config)?);
    kernel::publish(&kernel);
    kernel::publish_process_context();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().thread_name("nexus-worker").on_thread_start(kernel::register_task_thread);
    if kernel.has_collector() {
        // Another one may have come since the thread registered.
        runtime.on_thread_unpark(kernel::register_task_thread);
    }
    let runtime = runtime.build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = tokio::spawn(stop_on_signal(stop.clone()));
        let server = Server::start(config, kernel, stop.clone()).await?;
        let beside = tokio::spawn(beside(&server, stop.clone()));
        // Whoever started it may have stopped listening; the server goes on.
        let _ = writeln!(std::io::stdout(), "ready on http://{}", server.address);
        let ended = server.run_to_end().await;
        beside.abort();
        signals.abort();
        ended.map_err(Failure::from)
    })?;
    // Threads that a guest blocks in a file system are not waited for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(ExitCode::SUCCESS)
}

/// The first signal lets work end, the second does not.
async fn stop_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return tracing::error!("signals cannot be received; only SIGKILL ends this process");
    };
    for first in [true, false] {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if first {
            stop.cancel();
        } else {
            tracing::warn!("ending at once; what was cut off is delivered again at the next start");
            std::process::exit(130);
        }
    }
}
