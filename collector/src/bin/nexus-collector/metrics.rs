//! The metrics page.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use nexus_collector::DaemonStats;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::watching::AllTotals;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves it, if there is somewhere to.
pub async fn serve(listener: Option<TcpListener>, stats: Arc<DaemonStats>, totals: AllTotals) {
    let Some(listener) = listener else { return };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Looked { stats, totals }));
    let registry = Arc::new(registry);
    let page = move || {
        let registry = Arc::clone(&registry);
        async move {
            let mut page = String::new();
            let encoded = prometheus_client::encoding::text::encode(&mut page, &registry);
            encoded.map(|()| ([(header::CONTENT_TYPE, OPENMETRICS)], page)).map_err(|error| {
                tracing::error!(%error, "the metrics cannot be written");
                StatusCode::INTERNAL_SERVER_ERROR
            })
        }
    };
    if let Err(error) = axum::serve(listener, Router::new().route("/metrics", get(page))).await {
        tracing::error!(%error, "metrics are served no more");
    }
}

#[derive(Debug)]
struct Looked {
    stats: Arc<DaemonStats>,
    totals: AllTotals,
}

impl Collector for Looked {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gauges = [
            ("nexus_collector_runtimes", "Runtimes that are served", &self.stats.runtimes),
            ("nexus_collector_threads", "Their threads that the probes know", &self.stats.threads),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value.load(Ordering::Relaxed) as u64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            ("nexus_collector_runtimes_served", "Runtimes that were served", &self.stats.runtimes_total),
            ("nexus_collector_connections_refused", "Connections that were refused", &self.stats.refused_total),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value.load(Ordering::Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        self.watched(&mut encoder)
    }
}

impl Looked {
    /// The numbers of what is watched; `function` names it, as it names functions on a runtime's page.
    fn watched(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let all = self.totals.lock().clone();
        if all.is_empty() {
            return Ok(());
        }
        let help = "System calls, by who caused them";
        let mut calls = encoder.encode_descriptor("nexus_syscalls", help, None, MetricType::Counter)?;
        for (what, totals) in &all {
            for (syscall, [count, ..]) in &totals.syscalls {
                let labels = [("owner", "observed"), ("function", what), ("syscall", syscall)];
                ConstCounter::new(*count).encode(calls.encode_family(&labels)?)?;
            }
        }
        let help = "System calls that returned an error";
        let mut errors = encoder.encode_descriptor("nexus_observed_syscall_errors", help, None, MetricType::Counter)?;
        for (what, totals) in &all {
            for (syscall, [_, count, _]) in totals.syscalls.iter().filter(|(_, [_, errors, _])| *errors > 0) {
                let labels = [("function", what), ("syscall", syscall)];
                ConstCounter::new(*count).encode(errors.encode_family(&labels)?)?;
            }
        }
        let help = "Time in system calls";
        let mut seconds =
            encoder.encode_descriptor("nexus_observed_syscall_seconds", help, None, MetricType::Counter)?;
        for (what, totals) in &all {
            for (syscall, [.., ns]) in &totals.syscalls {
                let labels = [("function", what), ("syscall", syscall)];
                ConstCounter::new(*ns as f64 / 1e9).encode(seconds.encode_family(&labels)?)?;
            }
        }
        let help = "Time of threads: on a CPU, ready for one, blocked, and of that for a disk";
        let mut times = encoder.encode_descriptor("nexus_observed_seconds", help, None, MetricType::Counter)?;
        for (what, totals) in &all {
            for (state, ns) in &totals.times {
                let labels = [("function", what.as_str()), ("state", state)];
                ConstCounter::new(*ns as f64 / 1e9).encode(times.encode_family(&labels)?)?;
            }
        }
        let help = "Threads that were watched";
        let mut tasks = encoder.encode_descriptor("nexus_observed_tasks", help, None, MetricType::Counter)?;
        for (what, totals) in &all {
            ConstCounter::new(totals.tasks).encode(tasks.encode_family(&[("function", what)])?)?;
        }
        let help = "Whether nothing was missed";
        let mut complete = encoder.encode_descriptor("nexus_observed_complete", help, None, MetricType::Gauge)?;
        for (what, totals) in &all {
            let gauge = ConstGauge::new(u64::from(totals.complete));
            gauge.encode(complete.encode_family(&[("function", what)])?)?;
        }
        Ok(())
    }
}
