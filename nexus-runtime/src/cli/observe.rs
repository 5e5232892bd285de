//! `nexus observe`: any program under the probes, or processes that run already.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use nexus_collector::observe::ObserveError;
use nexus_collector::otlp::{observed_span, span_exporter};
use nexus_collector::watch::{Target, Watch, trace_of};
use nexus_collector::{Probes, ProbesConfig, observe};
use nexus_core::kernel::KernelAccount;
use nexus_core::trace::TraceContext;
use opentelemetry::KeyValue;
use opentelemetry_sdk::trace::SpanExporter as _;
use serde_json::{Value, json};

use super::style::say;
use super::{Done, Failure, Output, style, trace};
use crate::config::{Config, Otlp, OtlpProtocol};

/// How often processes that run are looked at.
const PERIOD: Duration = Duration::from_millis(250);

/// Arguments of `nexus observe`.
#[derive(Args)]
pub struct ObserveArgs {
    /// A process that runs already, with its threads and the children that it makes from now on: until it ends, or Ctrl-C
    #[arg(long, conflicts_with_all = ["command", "cgroup"])]
    pid: Option<u32>,
    /// The processes of a cgroup (as in /proc/PID/cgroup, or its folder) and of those below it: until Ctrl-C
    #[arg(long, value_name = "PATH", conflicts_with = "command")]
    cgroup: Option<PathBuf>,
    /// For so many seconds at most
    #[arg(long, conflicts_with = "command", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// Where a span with the account goes, in the trace that TRACEPARENT names in the program's environment; none unless said.
    /// OTEL_EXPORTER_OTLP_ENDPOINT and _PROTOCOL are read too
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required_unless_present_any = ["pid", "cgroup"])]
    command: Vec<OsString>,
}

/// What was observed, and how to tell it.
struct Observed {
    /// What it is called in JSON and in a span.
    named: Vec<(&'static str, Value)>,
    name: String,
    exit_code: Option<i32>,
    started: SystemTime,
    duration: Duration,
    kernel: KernelAccount,
    tasks: u64,
    trace: Option<TraceContext>,
}

pub fn run(args: ObserveArgs, output: Output) -> Done {
    let otlp = Config { otlp: Otlp { endpoint: args.otlp_endpoint.clone(), ..Otlp::default() }, ..Config::default() }
        .with_otel_environment(|name| std::env::var(name).ok())?
        .otlp;
    let probes = Probes::load(&ProbesConfig::for_observe()).map_err(|e| Failure::failed(e.to_string()))?;
    let target = match (args.pid, &args.cgroup) {
        (Some(pid), _) => Some(Target::Process(pid)),
        (None, Some(path)) => Some(Target::cgroup(path)),
        (None, None) => None,
    };
    let observed = match target {
        Some(target) => attached(target, args.seconds.map(Duration::from_secs), &probes),
        None => started(&args.command, &probes),
    };
    let observed = observed.map_err(|e| {
        // A shell's codes for a command that is not there or cannot be run.
        Failure { code: u8::try_from(e.exit_code()).unwrap_or(1), message: e.to_string() }
    })?;
    let printed = print(&observed, output);
    if let Some(endpoint) = &otlp.endpoint
        && let Err(failure) = export(endpoint, otlp.protocol == OtlpProtocol::Grpc, &observed)
    {
        // What it was run for is done, and printed.
        eprintln!("nexus: {}", failure.message);
    }
    printed
}

fn started(command: &[OsString], probes: &Probes) -> Result<Observed, ObserveError> {
    let started = SystemTime::now();
    let observed = observe::run(command, probes)?;
    let words: Vec<_> = command.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    Ok(Observed {
        name: words.first().cloned().unwrap_or_default(),
        named: vec![("command", json!(words))],
        exit_code: Some(observed.exit_code),
        started,
        duration: observed.duration,
        kernel: observed.kernel,
        tasks: observed.tasks,
        trace: own_trace(),
    })
}

/// The trace of this program's environment, which is also that of the program that it starts.
fn own_trace() -> Option<TraceContext> {
    let mut trace = TraceContext::parse(&std::env::var("TRACEPARENT").ok()?).ok()?;
    trace.tracestate = std::env::var("TRACESTATE").ok().filter(|state| state.len() <= 512);
    Some(trace)
}

fn attached(target: Target, most: Option<Duration>, probes: &Probes) -> Result<Observed, ObserveError> {
    let (started, began) = (SystemTime::now(), Instant::now());
    let mut watch = Watch::begin(target, probes)?;
    let (name, named, trace) = match watch.target() {
        Target::Process(id) => {
            let comm = std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
            (comm.trim().to_owned(), ("pid", json!(id)), trace_of(*id))
        }
        Target::Cgroup(path) => (path.display().to_string(), ("cgroup", json!(path)), None),
    };
    let interrupted = interrupts()?;
    eprintln!("observing {name}; Ctrl-C ends it");
    let of_process = matches!(watch.target(), Target::Process(_));
    while most.is_none_or(|most| began.elapsed() < most) {
        let left = most.map_or(PERIOD, |most| most.saturating_sub(began.elapsed()).min(PERIOD));
        if interrupted.recv_timeout(left).is_ok() {
            break;
        }
        match watch.refresh() {
            Ok(false) if of_process => break,
            Ok(_) => {}
            // It was removed: its processes have ended.
            Err(ObserveError::Cgroup { .. }) => break,
            Err(error) => return Err(error),
        }
    }
    let seen = watch.read()?;
    probes.failures()?;
    Ok(Observed {
        name,
        named: vec![named],
        exit_code: None,
        started,
        duration: seen.duration,
        kernel: seen.kernel,
        tasks: seen.tasks,
        trace,
    })
}

/// Tells of SIGINT and SIGTERM, which otherwise do nothing from now on.
fn interrupts() -> Result<std::sync::mpsc::Receiver<()>, ObserveError> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = std::sync::mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ObserveError::Wait)?;
    let guard = runtime.enter();
    let interrupt = signal(SignalKind::interrupt()).map_err(ObserveError::Wait)?;
    let terminate = signal(SignalKind::terminate()).map_err(ObserveError::Wait)?;
    drop(guard);
    std::thread::spawn(move || {
        runtime.block_on(async {
            let (mut interrupt, mut terminate) = (interrupt, terminate);
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        // Nobody waits any more.
        let _ = sender.send(());
    });
    Ok(receiver)
}

fn export(endpoint: &str, grpc: bool, observed: &Observed) -> Result<(), Failure> {
    let attributes = observed.named.iter().map(|(name, value)| match value {
        Value::Array(words) => {
            let words: Vec<_> = words.iter().filter_map(Value::as_str).collect();
            KeyValue::new("process.command_line", words.join(" "))
        }
        Value::Number(id) => KeyValue::new("process.pid", id.as_i64().unwrap_or_default()),
        other => KeyValue::new(*name, other.as_str().unwrap_or_default().to_owned()),
    });
    let attributes =
        attributes.chain(observed.exit_code.map(|code| KeyValue::new("process.exit.code", i64::from(code))));
    let time = (observed.started, observed.duration);
    let trace = observed.trace.as_ref();
    let span = observed_span(observed.name.clone(), trace, time, &observed.kernel, attributes.collect());
    let trace_id = span.span_context.trace_id();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(e.to_string()))?;
    runtime.block_on(async {
        let exporter = span_exporter(endpoint, grpc).map_err(|e| Failure::failed(format!("{endpoint}: {e}")))?;
        exporter.export(vec![span]).await.map_err(|e| Failure::failed(format!("the span was not taken: {e}")))
    })?;
    eprintln!("trace {trace_id}");
    Ok(())
}

fn print(observed: &Observed, output: Output) -> Done {
    let duration_ns = u64::try_from(observed.duration.as_nanos()).unwrap_or(u64::MAX);
    let kernel = serde_json::to_value(&observed.kernel).map_err(|e| Failure::failed(e.to_string()))?;
    match output {
        Output::Json => {
            let mut json = json!({"duration_ns": duration_ns, "tasks": observed.tasks, "kernel": kernel});
            for (name, value) in &observed.named {
                json[*name] = value.clone();
            }
            if let Some(code) = observed.exit_code {
                json["exit_code"] = json!(code);
                // On a line of its own, also where the program's output ends without one.
                say!();
            }
            say!("{json}");
        }
        // The program's own output went to standard output; the account follows it, apart.
        Output::Text => {
            say!();
            let took = style::duration(duration_ns);
            match observed.exit_code {
                Some(code) => say!("exit code  {code}  after {took}  {} tasks", observed.tasks),
                None => say!("observed   {} for {took}  {} tasks", observed.name, observed.tasks),
            }
            trace::print_kernel(&kernel, "");
        }
    }
    Ok(ExitCode::from(u8::try_from(observed.exit_code.unwrap_or(0)).unwrap_or(1)))
}
