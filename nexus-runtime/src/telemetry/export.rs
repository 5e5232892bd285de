//! Traces by OTLP: batched, bounded, and never in the way of the work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use nexus_collector::otlp::{TIMEOUT, span_exporter};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::trace::SpanExporter as _;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Spans;
use crate::config::{Otlp, OtlpProtocol};

/// Groups of spans (one of an event, one of an invocation) that may wait; more are dropped, and counted.
const WAITING_MAX: usize = 8192;
/// Spans in one request.
const BATCH_MAX: usize = 512;
/// How long a span waits for others.
const LINGER: Duration = Duration::from_millis(500);

/// Sends spans to a collector.
pub struct Exporter {
    sender: Mutex<Option<mpsc::Sender<Spans>>>,
    dropped: Arc<AtomicU64>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Exporter {
    /// Starts exporting, if there is somewhere to export to. Must be called on the runtime.
    pub fn start(config: &Otlp) -> anyhow::Result<Option<Self>> {
        let Some(endpoint) = &config.endpoint else { return Ok(None) };
        let exporter = span_exporter(endpoint, config.protocol == OtlpProtocol::Grpc)
            .with_context(|| format!("OTLP exporter for {endpoint}"))?;
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(run(exporter, receiver, dropped.clone()));
        Ok(Some(Self { sender: Mutex::new(Some(sender)), dropped, task: Mutex::new(Some(task)) }))
    }

    /// Hands spans over. Where there is no room they are dropped and counted: telemetry does not hold up the work.
    pub fn send(&self, spans: Spans) {
        let count = spans.len() as u64;
        let sent = self.sender.lock().as_ref().is_some_and(|sender| sender.try_send(spans).is_ok());
        if !sent {
            self.dropped.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Spans that found no room, or that the collector did not take.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Sends what waits and ends.
    pub async fn close(&self) {
        drop(self.sender.lock().take());
        let task = self.task.lock().take();
        if let Some(task) = task
            && tokio::time::timeout(TIMEOUT, task).await.is_err()
        {
            tracing::warn!("spans were still waiting to be exported at the end");
        }
    }
}

async fn run(exporter: SpanExporter, mut receiver: mpsc::Receiver<Spans>, dropped: Arc<AtomicU64>) {
    let mut failing = false;
    while let Some(mut batch) = receiver.recv().await {
        let until = tokio::time::Instant::now() + LINGER;
        while batch.len() < BATCH_MAX {
            match tokio::time::timeout_at(until, receiver.recv()).await {
                Ok(Some(more)) => batch.extend(more),
                Ok(None) | Err(_) => break,
            }
        }
        let count = batch.len() as u64;
        match exporter.export(batch).await {
            Ok(()) if failing => {
                failing = false;
                tracing::info!("the OTLP collector takes spans again");
            }
            Ok(()) => {}
            Err(error) => {
                dropped.fetch_add(count, Ordering::Relaxed);
                // Said once, not for every batch of an outage.
                if !failing {
                    failing = true;
                    tracing::warn!(%error, spans = count, "the OTLP collector does not take spans; they are dropped");
                }
            }
        }
    }
}
