//! The whole program in one place: what is made, in which order, and how it ends.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use nexus_core::clock::SystemClock;
use nexus_core::kernel::Syscalls;
use nexus_engine::{Engine, EngineConfig};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use crate::catalog::Catalog;
use crate::config::Config;
use crate::dispatch::Dispatcher;
use crate::gateway::{self, Gateway, Hosts};
use crate::kernel::Kernel;
use crate::line::Line;
use crate::overhead::{self, OverheadError};
use crate::replay::Replays;
use crate::schedules;
use crate::storage;
use crate::telemetry::{Exporter, RuntimeView, Telemetry};

/// How often retention looks for what is too old or too much.
const RETENTION_PERIOD: Duration = Duration::from_secs(30);

/// How often it is measured what the probes cost, where there is a budget for it; for how long, and in how many rounds.
const BUDGET_PERIOD: Duration = Duration::from_secs(300);
const BUDGET_MEASURE: Duration = Duration::from_secs(6);
const BUDGET_ROUNDS: u32 = 6;

/// How often a collector is looked for that was not there.
const COLLECTOR_PERIOD: Duration = Duration::from_secs(1);

/// How often the probes are asked what they have to say.
const PROBES_PERIOD: Duration = Duration::from_secs(5);

/// A server that is ready.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// What is deployed, for whoever deploys from a folder.
    pub catalog: Arc<Catalog>,
    config: Config,
    stop: CancellationToken,
    storage: storage::Opened,
    dispatcher: Arc<Dispatcher>,
    telemetry: Arc<Telemetry>,
    tasks: TaskTracker,
}

impl Server {
    /// Opens the data directory, starts every part, and listens. Everything ends when `stop` is cancelled and
    /// [`Server::run_to_end`] returns.
    pub async fn start(config: Config, kernel: Arc<Kernel>, stop: CancellationToken) -> anyhow::Result<Self> {
        // The address first: a port in use should not cost the opening of a large log.
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}; choose another address with --listen", config.listen))?;
        let address = listener.local_addr()?;
        let storage = storage::open(&config).await?;
        let mut engine_config = EngineConfig::new(config.data_dir.join("compiled"));
        engine_config.instances_max = config.limits.instances_max;
        let engine = Engine::start(engine_config)?;
        let catalog =
            Catalog::open(storage.storage(), engine, config.mounts_allowed.clone(), config.limits.calls_waiting_max)
                .await?;
        let telemetry = Telemetry::new(Exporter::start(&config.otlp)?);
        let line = Arc::new(Line {
            storage: storage.storage(),
            catalog: catalog.clone(),
            kernel: kernel.clone(),
            telemetry: telemetry.clone(),
            clock: Arc::new(SystemClock),
        });
        let tasks = TaskTracker::new();
        let dispatcher = Dispatcher::new(line.clone(), config.limits.in_flight_kib_max, stop.clone());
        let looked =
            Looked { dispatcher: dispatcher.clone(), kernel: kernel.clone(), telemetry: Arc::downgrade(&telemetry) };
        telemetry.metrics.attach(Arc::new(looked));
        tasks.spawn(until_stopped("dispatcher", dispatcher.clone().run(), stop.clone()));
        tasks.spawn(until_stopped("log", until_broken(storage.broken(), stop.clone()), stop.clone()));
        tasks.spawn(catalog.clone().follow(stop.clone()));
        tasks.spawn(schedules::run(line.clone(), stop.clone()));
        tasks.spawn(retain(line.clone(), stop.clone()));
        tasks.spawn(listen_to_probes(kernel.clone(), stop.clone()));
        if kernel.has_collector() {
            tasks.spawn(look_for_collector(kernel.clone(), stop.clone()));
        }
        if config.kernel_overhead_max.is_some() {
            tasks.spawn(keep_to_budget(kernel.clone(), telemetry.clone(), stop.clone()));
        }
        let replays = Replays::new(line.clone(), tasks.clone(), stop.clone());
        tasks.spawn(replays.clone().go_on());
        let gateway = Arc::new(Gateway {
            replays,
            line,
            dispatcher: dispatcher.clone(),
            limits: config.limits.clone(),
            stop: stop.clone(),
            requests: Semaphore::new(config.limits.requests_max),
            hosts: Hosts::new(config.hosts_allowed.clone()),
            store: storage.running(),
            backups: Arc::new(Semaphore::new(1)),
        });
        tasks.spawn(accept(listener, gateway, config.clone(), stop.clone()));
        let (mode, reason) = kernel.mode();
        tracing::info!(%address, data_dir = %config.data_dir.display(), kernel = mode.as_str(), reason = reason.as_deref(), "ready");
        Ok(Self { address, catalog, config, stop, storage, dispatcher, telemetry, tasks })
    }

    /// Waits for the stop, lets what runs come to its end, and closes everything in order.
    pub async fn run_to_end(self) -> anyhow::Result<()> {
        self.stop.cancelled().await;
        tracing::info!("stopping; a second signal ends at once");
        let patience = self.config.drain_timeout();
        self.tasks.close();
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::warn!("some requests were cut off after {} s", patience.as_secs());
        }
        if !self.dispatcher.drain(patience).await {
            tracing::warn!("some deliveries were cut off; they are delivered again at the next start");
        }
        self.telemetry.close().await;
        self.storage.close().await.context("closing the log")?;
        Ok(())
    }
}

/// What the metrics page looks up. The telemetry owns the page, so it is held weakly.
struct Looked {
    dispatcher: Arc<Dispatcher>,
    kernel: Arc<Kernel>,
    telemetry: std::sync::Weak<Telemetry>,
}

impl RuntimeView for Looked {
    fn queue(&self) -> (u64, u64) {
        (self.dispatcher.depth(), self.dispatcher.parked() as u64)
    }

    fn runtime_syscalls(&self) -> BTreeMap<&'static str, Syscalls> {
        self.kernel.runtime_totals()
    }

    fn overhead(&self) -> Option<crate::overhead::Overhead> {
        self.kernel.overhead()
    }

    fn ledger(&self) -> Option<nexus_collector::Ledger> {
        self.kernel.ledger()
    }

    fn spans_dropped(&self) -> Option<u64> {
        self.telemetry.upgrade()?.spans_dropped()
    }
}

/// Waits until storage cannot go on, or the server stops.
async fn until_broken(broken: impl Future<Output = String>, stop: CancellationToken) -> Result<(), String> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        why = broken => Err(why),
    }
}

/// Runs a part that should only end when it is told to. If it ends by itself, everything stops: half a server is worse
/// than none.
async fn until_stopped<E: std::fmt::Display>(
    name: &'static str,
    part: impl Future<Output = Result<(), E>>,
    stop: CancellationToken,
) {
    if let Err(error) = part.await {
        tracing::error!(%error, "{name} failed; stopping");
    } else if !stop.is_cancelled() {
        tracing::error!("{name} ended; stopping");
    }
    stop.cancel();
}

async fn retain(line: Arc<Line>, stop: CancellationToken) {
    let mut period = tokio::time::interval(RETENTION_PERIOD);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => {}
        }
        match line.storage.log.retain().await {
            Ok(0) => {}
            Ok(events) => tracing::info!(events, "retention took the oldest events"),
            Err(error) => tracing::warn!(%error, "retention failed; trying again later"),
        }
    }
}

/// The probes' messages become log lines, and what they could not do is said when it grows.
async fn listen_to_probes(kernel: Arc<Kernel>, stop: CancellationToken) {
    let mut period = tokio::time::interval(PROBES_PERIOD);
    let mut before = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => {}
        }
        kernel.settle();
        let Some(failures) = kernel.failures() else {
            if kernel.has_collector() {
                continue;
            }
            return;
        };
        let now = failures.values().sum();
        if now > before {
            tracing::warn!(?failures, "the probes missed something; accounts of that time are not complete");
        }
        before = now;
    }
}

/// Gets the kernel's account back when the collector has ended and is there again.
async fn look_for_collector(kernel: Arc<Kernel>, stop: CancellationToken) {
    let mut period = tokio::time::interval(COLLECTOR_PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => {}
        }
        let looking = kernel.clone();
        if let Err(panicked) = tokio::task::spawn_blocking(move || looking.reconnect()).await {
            tracing::error!(%panicked, "looking for the collector failed");
        }
    }
}

/// Measures now and then what the probes cost, and lets them tell as much as the budget pays for.
async fn keep_to_budget(kernel: Arc<Kernel>, telemetry: Arc<Telemetry>, stop: CancellationToken) {
    let mut period = tokio::time::interval_at(tokio::time::Instant::now() + BUDGET_PERIOD, BUDGET_PERIOD);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => {}
        }
        let work = &telemetry.metrics.work;
        match overhead::measure(&kernel, work, BUDGET_MEASURE, BUDGET_ROUNDS, &stop).await {
            Ok(_) => {}
            // Where little is done they cost little.
            Err(OverheadError::Idle(_) | OverheadError::Busy | OverheadError::Stopped | OverheadError::Off(_)) => {}
            Err(error @ OverheadError::Probes(_)) => tracing::warn!(%error, "what the probes cost was not measured"),
        }
    }
}

async fn accept(listener: TcpListener, gateway: Arc<Gateway>, config: Config, stop: CancellationToken) {
    let connections = Arc::new(Semaphore::new(config.limits.connections_max));
    let router = gateway::router(gateway);
    let graceful = GracefulShutdown::new();
    // HTTP/1.1 alone: looking for HTTP/2's preface first would wait without end for a client that sends nothing.
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(config.limits.read_timeout_s));
    loop {
        let Ok(place) = connections.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: the connections that there are will end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Small answers should not wait for more; if it cannot be set, they are only slower.
        let _ = stream.set_nodelay(true);
        let service = router.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            service.clone().call(request.map(axum::body::Body::new))
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}
