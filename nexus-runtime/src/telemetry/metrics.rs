//! The metrics, by the names of CONTRACT: OpenMetrics with exemplars. Labels are closed sets or names of functions.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nexus_collector::Ledger;
use nexus_core::ids::FunctionName;
use nexus_core::kernel::{FASTER_THAN_NS, Syscalls};
use nexus_core::outcome::{Disposition, InvocationStatus, Outcome};
use nexus_core::record::Record;
use nexus_core::trace::TraceId;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelValue, EncodeMetric, LabelValueEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::exemplar::{CounterWithExemplar, HistogramWithExemplars};
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::overhead::{Overhead, Work};

type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];
type Exemplar = [(&'static str, TraceLabel); 1];
type Seconds = HistogramWithExemplars<Exemplar>;

/// A trace id that becomes text when the page is made, and not at every observation.
#[derive(Clone, Copy, Debug)]
struct TraceLabel(TraceId);

impl EncodeLabelValue for TraceLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), Error> {
        use std::fmt::Write as _;
        write!(encoder, "{}", self.0)
    }
}

/// Bucket bounds in seconds.
#[derive(Clone)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Seconds> for Buckets {
    fn new_metric(&self) -> Seconds {
        Seconds::new(self.0.iter().copied())
    }
}

const FAST: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0,
];

/// Every metric that is counted where it happens.
pub struct Metrics {
    /// What is done, to compare what it costs.
    pub work: Work,
    registry: parking_lot::RwLock<Registry>,
    invocations: Family<Labels<3>, CounterWithExemplar<Exemplar>>,
    invoke: Family<Labels<1>, Seconds, Buckets>,
    init: Family<Labels<1>, Seconds, Buckets>,
    coldstarts: Family<Labels<1>, Counter>,
    errors: Family<Labels<2>, CounterWithExemplar<Exemplar>>,
    timeouts: Family<Labels<1>, Counter>,
    accepted: Counter,
    duplicates: Counter,
    refused: Family<Labels<1>, Counter>,
    append: Seconds,
    lag: Family<Labels<1>, Seconds, Buckets>,
    retries: Family<Labels<1>, Counter>,
    dead: Family<Labels<1>, Counter>,
    replays: Family<Labels<2>, Counter>,
    syscalls: Family<Labels<3>, Counter>,
    by_function: Arc<ByFunction>,
    on_cpu: Family<Labels<1>, Seconds, Buckets>,
    run_queue: Family<Labels<1>, Seconds, Buckets>,
    off_cpu: Family<Labels<1>, Seconds, Buckets>,
    records_lost: Counter,
}

/// Metrics of each function, found once: looking each up by its labels costs more than counting.
type ByFunction = parking_lot::RwLock<BTreeMap<FunctionName, Arc<OfFunction>>>;

/// Metrics of one function.
struct OfFunction {
    invoke: Seconds,
    init: Seconds,
    lag: Seconds,
    /// On a CPU, ready, blocked; not there before there is a number.
    times: OnceLock<[Seconds; 3]>,
    syscalls: parking_lot::Mutex<BTreeMap<Cow<'static, str>, OfSyscall>>,
}

/// Metrics of one system call of a function.
struct OfSyscall {
    count: Counter,
    /// The histogram of their durations: the probes sort them, so it is kept as they hand it over.
    seconds: f64,
    calls: u64,
    faster: [u64; FASTER_THAN_NS.len()],
}

/// What is looked up when the page is asked for.
pub trait RuntimeView: Send + Sync + 'static {
    /// Events in the log that are not settled, and deliveries that wait to be tried again.
    fn queue(&self) -> (u64, u64);
    /// What the runtime itself made the kernel do, by part.
    fn runtime_syscalls(&self) -> BTreeMap<&'static str, Syscalls>;
    /// Whose the system calls of this process were, where that is known.
    fn ledger(&self) -> Option<Ledger>;
    /// What the probes cost, where it was measured.
    fn overhead(&self) -> Option<Overhead>;
    /// Spans that were not exported, where they are exported at all.
    fn spans_dropped(&self) -> Option<u64>;
}

fn function(name: &FunctionName) -> (&'static str, Cow<'static, str>) {
    ("function", name.to_string().into())
}

fn exemplar(trace: TraceId) -> Option<Exemplar> {
    Some([("trace_id", TraceLabel(trace))])
}

impl Metrics {
    /// All metrics, at zero.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let fast = || Family::new_with_constructor(Buckets(FAST));
        let metrics = Self {
            work: Work::default(),
            registry: parking_lot::RwLock::default(),
            invocations: Family::default(),
            invoke: fast(),
            init: fast(),
            coldstarts: Family::default(),
            errors: Family::default(),
            timeouts: Family::default(),
            accepted: Counter::default(),
            duplicates: Counter::default(),
            refused: Family::default(),
            append: Buckets(FAST).new_metric(),
            lag: fast(),
            retries: Family::default(),
            dead: Family::default(),
            replays: Family::default(),
            syscalls: Family::default(),
            by_function: Arc::default(),
            on_cpu: fast(),
            run_queue: fast(),
            off_cpu: fast(),
            records_lost: Counter::default(),
        };
        let mut registry = metrics.registry.write();
        let r = &mut *registry;
        r.register("faas_invocations", "Invocations that ended", metrics.invocations.clone());
        r.register("faas_invoke_duration_seconds", "From an invocation's start to its end", metrics.invoke.clone());
        r.register("faas_init_duration_seconds", "To make the instance", metrics.init.clone());
        r.register("faas_coldstarts", "Invocations that had to load the component", metrics.coldstarts.clone());
        r.register("faas_errors", "Invocations that did not end well", metrics.errors.clone());
        r.register("faas_timeouts", "Invocations that were stopped by their timeout", metrics.timeouts.clone());
        r.register("nexus_events_accepted", "Events taken into the log", metrics.accepted.clone());
        r.register("nexus_events_duplicate", "Events that were in the log already", metrics.duplicates.clone());
        r.register("nexus_requests_refused", "Requests refused at a limit", metrics.refused.clone());
        r.register("nexus_event_append_duration_seconds", "Until an event was durable", metrics.append.clone());
        r.register("nexus_delivery_lag_seconds", "From an event's arrival to its delivery", metrics.lag.clone());
        r.register("nexus_retries", "Deliveries tried again", metrics.retries.clone());
        r.register("nexus_dead_letters", "Deliveries given up", metrics.dead.clone());
        r.register("nexus_replays", "Events replayed", metrics.replays.clone());
        r.register("nexus_on_cpu_seconds", "Of an invocation: on a CPU", metrics.on_cpu.clone());
        r.register(
            "nexus_run_queue_seconds",
            "Of an invocation: ready, and waiting for a CPU",
            metrics.run_queue.clone(),
        );
        r.register("nexus_off_cpu_seconds", "Of an invocation: blocked", metrics.off_cpu.clone());
        r.register(
            "nexus_kernel_records_lost",
            "Records of slow system calls that found no room",
            metrics.records_lost.clone(),
        );
        drop(registry);
        metrics
    }

    /// Adds what is looked up when the page is asked for; once, when everything is wired.
    pub fn attach(&self, view: Arc<dyn RuntimeView>) {
        self.registry.write().register_collector(Box::new(Looked {
            view,
            functions: self.syscalls.clone(),
            by_function: self.by_function.clone(),
        }));
    }

    /// The page, in OpenMetrics text.
    pub fn page(&self) -> Result<String, Error> {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry.read())?;
        Ok(page)
    }

    /// An event was taken into the log.
    pub fn accepted(&self, took: Duration, trace: TraceId) {
        self.work.done();
        self.accepted.inc();
        self.append.observe(took.as_secs_f64(), exemplar(trace), None);
    }

    /// An event was there already.
    pub fn duplicate(&self) {
        self.duplicates.inc();
    }

    /// A request was refused at a limit: one of a closed set of reasons.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason.into())]).inc();
    }

    /// An invocation ended and its outcome is durable.
    pub fn delivered(&self, record: &Record, outcome: &Outcome) {
        self.work.done();
        let name = function(&outcome.function);
        let trace = record.entry.trace.trace_id;
        let by_name = [name.clone()];
        let labels =
            [name.clone(), ("trigger", outcome.trigger.as_str().into()), ("status", outcome.status.as_str().into())];
        self.invocations.get_or_create(&labels).inc_by(1, exemplar(trace), None);
        let seconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64();
        let of_function = self.of_function(&outcome.function);
        of_function.invoke.observe(seconds(outcome.duration_ns), exemplar(trace), None);
        of_function.init.observe(seconds(outcome.init_ns), exemplar(trace), None);
        if outcome.cold_start {
            self.coldstarts.get_or_create(&by_name).inc();
        }
        if outcome.status != InvocationStatus::Ok {
            let labels = [name.clone(), ("status", outcome.status.as_str().into())];
            self.errors.get_or_create(&labels).inc_by(1, exemplar(trace), None);
        }
        if outcome.status == InvocationStatus::Timeout {
            self.timeouts.get_or_create(&by_name).inc();
        }
        if outcome.disposition == Disposition::Dead {
            self.dead.get_or_create(&by_name).inc();
        }
        if outcome.attempt == 1 && outcome.disposition != Disposition::Replayed {
            let lag = outcome.delivered_at.duration_since(record.entry.received_at).as_secs_f64().max(0.0);
            of_function.lag.observe(lag, exemplar(trace), None);
        }
        let kernel = &outcome.kernel;
        if let Some(syscalls) = kernel.syscalls.as_ref().filter(|s| !s.is_empty()) {
            let mut known = of_function.syscalls.lock();
            for (syscall, stats) in syscalls {
                let of_syscall = known.entry(syscall.clone()).or_insert_with(|| {
                    let labels = [("owner", "invocation".into()), name.clone(), ("syscall", syscall.clone())];
                    OfSyscall {
                        count: self.syscalls.get_or_create_owned(&labels),
                        seconds: 0.0,
                        calls: 0,
                        faster: [0; 4],
                    }
                });
                of_syscall.count.inc_by(stats.count);
                // Too many slow calls of one kind at a time for the probes to sort: how long each took is not known.
                let Some(faster) = stats.faster else { continue };
                of_syscall.seconds += seconds(stats.total_ns);
                of_syscall.calls += stats.count;
                of_syscall.faster.iter_mut().zip(faster).for_each(|(sum, more)| *sum += more);
            }
        }
        if let (Some(on_cpu), Some(run_queue), Some(off_cpu)) =
            (kernel.on_cpu_ns, kernel.run_queue_ns, kernel.off_cpu_ns)
        {
            let families = [&self.on_cpu, &self.run_queue, &self.off_cpu];
            let times = of_function.times.get_or_init(|| families.map(|family| family.get_or_create_owned(&by_name)));
            for (histogram, ns) in times.iter().zip([on_cpu, run_queue, off_cpu]) {
                histogram.observe(seconds(ns), exemplar(trace), None);
            }
        }
        self.records_lost.inc_by(outcome.kernel.lost.unwrap_or(0));
    }

    fn of_function(&self, name: &FunctionName) -> Arc<OfFunction> {
        if let Some(known) = self.by_function.read().get(name) {
            return known.clone();
        }
        let labels = [function(name)];
        let found = OfFunction {
            invoke: self.invoke.get_or_create_owned(&labels),
            init: self.init.get_or_create_owned(&labels),
            lag: self.lag.get_or_create_owned(&labels),
            times: OnceLock::new(),
            syscalls: parking_lot::Mutex::default(),
        };
        self.by_function.write().entry(name.clone()).or_insert_with(|| Arc::new(found)).clone()
    }

    /// A delivery is tried again.
    pub fn retried(&self, name: &FunctionName) {
        self.retries.get_or_create(&[function(name)]).inc();
    }

    /// One event was replayed.
    pub fn replayed(&self, mode: &'static str, verdict: &'static str) {
        self.replays.get_or_create(&[("mode", mode.into()), ("verdict", verdict.into())]).inc();
    }
}

/// Metrics whose values are looked up: the queue, and system calls by owner (the functions' and the runtime's in one).
struct Looked {
    view: Arc<dyn RuntimeView>,
    functions: Family<Labels<3>, Counter>,
    by_function: Arc<ByFunction>,
}

impl std::fmt::Debug for Looked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Looked")
    }
}

impl Collector for Looked {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let (unsettled, parked) = self.view.queue();
        let mut depth = encoder.encode_descriptor(
            "nexus_queue_depth",
            "Events not yet settled, by state",
            None,
            MetricType::Gauge,
        )?;
        for (state, value) in [("waiting", unsettled), ("parked", parked)] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(depth.encode_family(&[("state", state)])?)?;
        }
        let runtime = self.view.runtime_syscalls();
        let help = "System calls, by who caused them";
        let ledger = self.view.ledger();
        let runtime = runtime.iter().flat_map(|(part, syscalls)| {
            syscalls.iter().map(|(syscall, stats)| ("runtime", *part, syscall.clone(), stats.count))
        });
        // What kind of calls the others make is not known.
        let other = ledger.iter().map(|ledger| ("other", "", "".into(), ledger.other));
        for (owner, part, syscall, count) in runtime.chain(other) {
            let labels: Labels<3> = [("owner", owner.into()), ("function", part.into()), ("syscall", syscall)];
            let counter = self.functions.get_or_create_owned(&labels);
            // These totals only grow; what was shown before is caught up with.
            counter.inc_by(count.saturating_sub(counter.get()));
        }
        self.functions.encode(encoder.encode_descriptor("nexus_syscalls", help, None, MetricType::Counter)?)?;
        let help = "How long system calls of functions took, as far as each is known";
        let mut times =
            encoder.encode_descriptor("nexus_syscall_duration_seconds", help, None, MetricType::Histogram)?;
        for (function, of_function) in self.by_function.read().iter() {
            for (syscall, of) in of_function.syscalls.lock().iter() {
                let labels = [("function", function.to_string()), ("syscall", syscall.to_string())];
                let mut encoder = times.encode_family(&labels)?;
                let slower = of.calls - of.faster.iter().sum::<u64>();
                let bounds = FASTER_THAN_NS.map(|ns| Duration::from_nanos(ns).as_secs_f64());
                let buckets = bounds.into_iter().zip(of.faster).chain([(f64::INFINITY, slower)]).collect::<Vec<_>>();
                encoder.encode_histogram::<NoLabelSet>(of.seconds, of.calls, &buckets, None)?;
            }
        }
        if let Some(ledger) = ledger {
            let gauge = ConstGauge::new(ledger.unattributed);
            let help = "System calls of this process that belong to nobody, or (below zero) were counted twice";
            let name = "nexus_kernel_unattributed_syscalls";
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        if let Some(overhead) = self.view.overhead() {
            let help = "Processor time that the probes cost, as a part of that without them; 0.02 is two in a hundred";
            let name = "nexus_probe_overhead_ratio";
            let mut ratios = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for cost in overhead.costs {
                ConstGauge::new(cost.ratio).encode(ratios.encode_family(&[("mode", cost.mode.as_str())])?)?;
            }
        }
        if let Some(dropped) = self.view.spans_dropped() {
            let counter = ConstCounter::new(dropped);
            let help = "Spans that were not exported";
            counter.encode(encoder.encode_descriptor("nexus_spans_dropped", help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
