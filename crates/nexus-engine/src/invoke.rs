//! One invocation: a fresh instance, one call, and everything about it that is to be known.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use nexus_core::event::Draft;
use nexus_core::function::{FunctionConfig, FunctionKind};
use nexus_core::ids::InvocationId;
use nexus_core::journal::{Kept, Partial};
use nexus_core::mark::{Marked, Marker, Part};
use nexus_core::outcome::{HostCall, InvocationStatus, LogLine};
use nexus_core::trace::TraceContext;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use wasmtime::Trap;

use crate::egress::Calls;
use crate::guest::{Failure, Guest, Ran, TimeUp};
use crate::request::{Answer, Request};
use crate::streams::{Lines, OnLine};
use crate::tape::{CutHere, Journaling, Left, Looks, Replayed, Tape};
use crate::worlds::Loaded;

/// How much longer than its timeout an invocation is waited for, where it blocks in the host and its own clock is not
/// asked.
const TIMEOUT_SLACK: Duration = Duration::from_millis(20);
/// How many times its timeout a replay may take: it may run on a slower or a busier machine.
const REPLAY_PATIENCE: u32 = 10;

/// How long one may take that a debugger looks at.
const DEBUGGED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// One run of a function.
pub struct Invocation {
    /// Its id.
    pub id: InvocationId,
    /// What it is run on.
    pub request: Request,
    /// The function's configuration.
    pub config: Arc<FunctionConfig>,
    /// The invocation's own span: the parent of its outgoing requests.
    pub trace: TraceContext,
    /// Whose work its polls are.
    pub marker: Arc<dyn Marker>,
    /// Its beginning; offsets count from here.
    pub started: Instant,
    /// Called with each log line as it is written.
    pub on_line: Option<OnLine>,
    /// What becomes of its journal.
    pub journaling: Journaling,
}

/// Everything that is known of an invocation when it is over.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: InvocationStatus,
    /// What went wrong, in one line.
    pub error: Option<String>,
    /// Whether trying again cannot help, because the function said so.
    pub permanent: bool,
    /// How long it asks to be left alone before the next attempt.
    pub retry_after: Option<Duration>,
    /// What it gave back, if it was to.
    pub answer: Answer,
    /// The events that it emitted.
    pub emitted: Vec<Draft>,
    /// Its outgoing requests.
    pub host_calls: Vec<HostCall>,
    /// Outgoing requests that were refused because it had made as many as it may; there is no record of them.
    pub host_calls_dropped: u64,
    /// The lines that it wrote.
    pub logs: Vec<LogLine>,
    /// Lines that found no room.
    pub logs_dropped: u64,
    /// Whether something that cannot be ended still works for it: a thread that blocks in a file or in a name's
    /// resolution. What that does from now on is in nobody's account.
    pub left_behind: bool,
    /// Its journal, where one was written, and why it is not whole, if it is not.
    pub journal: Option<(Kept, Option<Partial>)>,
    /// What there is to say of it as a replay, if it is one.
    pub replayed: Option<Replayed>,
    /// Bytes of its linear memories at its end, when they are largest. `None` where that is not known.
    pub memory_bytes: Option<u64>,
    /// The time to make the instance.
    pub init: Duration,
    /// From its start to its end.
    pub duration: Duration,
}

impl Loaded {
    /// Runs the function once. Never fails itself: whatever the guest does is in [`Finished`].
    ///
    /// Cancelled (dropped), it ends the guest at once.
    pub async fn invoke(self: &Arc<Self>, invocation: Invocation) -> Finished {
        let Invocation { id, request, config, trace, marker, started, on_line, journaling } = invocation;
        let bounds = &self.engine.config;
        let lines = Lines::new(started, bounds.log_bytes_max, on_line);
        let calls = Calls::new(
            id,
            trace,
            config.clone(),
            marker.clone(),
            started,
            (bounds.host_calls_open_max, bounds.host_calls_max),
        );
        let own = config.limits.timeout();
        // What was stopped by its time is stopped at the same call: it may be later here. What says so is the time that it had.
        let (timeout, told) = match &journaling {
            Journaling::Replay { journal, .. } if journal.header.cut => (own * REPLAY_PATIENCE, own),
            Journaling::Replay { .. } => (own * REPLAY_PATIENCE, own * REPLAY_PATIENCE),
            Journaling::Off | Journaling::Record { .. } | Journaling::Answer { .. } => (own, own),
        };
        // Somebody looks at it step by step.
        let timeout = if bounds.closer.debugger { DEBUGGED } else { timeout };
        // The pool has a place for each permit; waiting here is back-pressure, an exhausted pool would be an error.
        let place = self.profile_engine().places.clone().acquire_many_owned(self.places).await;
        let mounted = !config.mounts.is_empty();
        let partial = (mounted && self.kind() == FunctionKind::Preview1).then_some(Partial::Files);
        let memory = Arc::new(AtomicUsize::new(0));
        let looks = Looks { lines: lines.clone(), memory: memory.clone() };
        let tape = Tape::new(journaling, self.profile_engine().code, partial, looks);
        // A replay has no folders, whose calls would block.
        let blocking = mounted && !tape.is_replay();
        let guest = Guest {
            loaded: self.clone(),
            request,
            config,
            started,
            calls: calls.clone(),
            lines: lines.clone(),
            marker: marker.clone(),
            tape: tape.clone(),
            memory,
            timeout,
        };
        let marked = Marked::new(marker, Part::Guest, Box::pin(guest.run()));
        let ran = if blocking {
            run_on_blocking_thread(self.engine.blocking.clone(), marked, place, timeout).await
        } else {
            let ran = tokio::time::timeout(timeout + TIMEOUT_SLACK, marked).await.unwrap_or_else(|_| time_up());
            drop(place);
            Some(ran)
        };
        let ended = calls.ended(ran.is_some()).await;
        let left_guest = ran.is_none();
        let left_behind = left_guest || ended.resolving;
        let ran = ran.unwrap_or_else(time_up);
        let (logs, logs_dropped) = lines.lock().take();
        let duration = started.elapsed();
        let Ran { result, memory, init, cut } = ran;
        let mut finished = Finished {
            status: InvocationStatus::Ok,
            error: None,
            permanent: false,
            retry_after: None,
            answer: Answer::default(),
            emitted: Vec::new(),
            host_calls: ended.made,
            host_calls_dropped: ended.dropped,
            logs,
            logs_dropped,
            left_behind,
            journal: None,
            replayed: None,
            memory_bytes: memory.map(|memory| memory.bytes as u64),
            init,
            duration,
        };
        match result {
            Ok((answer, emitted)) => (finished.answer, finished.emitted) = (answer, emitted),
            Err(failure) => {
                fail(&mut finished, failure, memory.is_some_and(|m| m.refused), told, bounds.output_bytes_max)
            }
        }
        if tape.is_there() {
            let output = finished.answer.hash(&finished.emitted);
            let cut = finished.status == InvocationStatus::Timeout || cut;
            finished.journal = tape.recorded(cut, output, left_guest);
            finished.replayed = tape.replayed(output);
        }
        finished
    }
}

fn fail(finished: &mut Finished, failure: Failure, refused: bool, timeout: Duration, output_bytes_max: usize) {
    let (status, error) = match failure {
        Failure::Said { why, permanent, retry_after, answer } => {
            (finished.permanent, finished.retry_after) = (permanent, retry_after);
            finished.answer = *answer;
            (InvocationStatus::Error, why)
        }
        Failure::TooMuch => {
            (InvocationStatus::Error, format!("the function gave back more than {output_bytes_max} bytes"))
        }
        Failure::Stopped(error) if error.is::<Left>() => (InvocationStatus::Trap, Left.to_string()),
        Failure::Stopped(error) if error.is::<TimeUp>() || error.is::<CutHere>() => {
            (InvocationStatus::Timeout, format!("stopped after {} ms, its timeout", timeout.as_millis()))
        }
        Failure::Stopped(error) if refused => {
            (InvocationStatus::OutOfMemory, format!("needed more memory than it may have: {}", reason(&error)))
        }
        Failure::Stopped(error) => (InvocationStatus::Trap, reason(&error)),
    };
    finished.status = status;
    finished.error = Some(error);
}

/// The cause of a trap in one line; for a trap in code, with the function that it happened in.
fn reason(error: &wasmtime::Error) -> String {
    let cause = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    let place = error
        .downcast_ref::<wasmtime::WasmBacktrace>()
        .and_then(|backtrace| backtrace.frames().first().and_then(|f| f.func_name().map(str::to_owned)));
    match place {
        Some(function) => format!("{cause}, in {:#}", rustc_demangle::demangle(&function)),
        None => cause,
    }
}

fn time_up() -> Ran {
    Ran { result: Err(Failure::Stopped(TimeUp.into())), memory: None, init: Duration::ZERO, cut: true }
}

/// A function with mounts reads and writes files with calls that block. They run on a thread that may, and as the
/// thread is the invocation's own while it polls, they are counted as the invocation's own.
///
/// `None`: a call blocks beyond the timeout, as opening a FIFO does, and nothing can end it. The thread is left behind and
/// keeps its places, so that those that are left behind are bounded too.
async fn run_on_blocking_thread(
    threads: Arc<Semaphore>,
    marked: Marked<Ran>,
    place: Result<OwnedSemaphorePermit, AcquireError>,
    timeout: Duration,
) -> Option<Ran> {
    let patience = timeout + TIMEOUT_SLACK;
    let runtime = tokio::runtime::Handle::current();
    let Ok(thread) = tokio::time::timeout(patience, threads.acquire_owned()).await else { return Some(time_up()) };
    let run = tokio::task::spawn_blocking(move || {
        let ran = runtime.block_on(async { tokio::time::timeout(patience, marked).await });
        drop((thread, place));
        ran
    });
    let not_begun = run.abort_handle();
    match tokio::time::timeout(patience + TIMEOUT_SLACK, run).await {
        Ok(Ok(Ok(ran))) => Some(ran),
        Ok(Ok(Err(_))) => Some(time_up()),
        Ok(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
        Err(_) => {
            not_begun.abort();
            None
        }
    }
}
