//! The guest of one invocation, in the way of its world.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use futures_util::future::{self, Either};
use http_body_util::{BodyExt, Limited};
use nexus_core::event::Draft;
use nexus_core::function::FunctionConfig;
use nexus_core::mark::Marker;
use nexus_core::outcome::LogStream;
use parking_lot::Mutex;
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi::p2::pipe::MemoryInputPipe;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;

use crate::egress::{Calls, Hooks};
use crate::emit;
use crate::engine::ProfileEngine;
use crate::host::{self, Host, Preview1Host};
use crate::limiter::{Limiter, Memory};
use crate::request::{Answer, Request, to_http};
use crate::streams::{Lines, Sink};
use crate::tape::{CutHere, Tape};
use crate::worlds::{Loaded, World};

/// In a replay, for what the guest has answered to be taken once the guest is stopped: it is all there.
const ANSWER_PATIENCE: Duration = Duration::from_millis(200);

/// How a guest failed.
pub(crate) enum Failure {
    /// It said so itself.
    Said { why: String, permanent: bool, retry_after: Option<Duration>, answer: Box<Answer> },
    /// It was stopped, or broke a rule.
    Stopped(wasmtime::Error),
    /// It gave back more than it may.
    TooMuch,
}

/// The guest's time is up.
#[derive(Debug, thiserror::Error)]
#[error("the invocation's time is up")]
pub(crate) struct TimeUp;

/// What a guest came to.
pub(crate) struct Ran {
    pub result: Result<(Answer, Vec<Draft>), Failure>,
    /// `None`: not known.
    pub memory: Option<Memory>,
    pub init: Duration,
    /// The guest was let go of before it came to its end.
    pub cut: bool,
}

/// Everything that the guest's future owns.
pub(crate) struct Guest {
    pub loaded: Arc<Loaded>,
    pub request: Request,
    pub config: Arc<FunctionConfig>,
    pub started: Instant,
    pub calls: Arc<Calls>,
    pub lines: Arc<Mutex<Lines>>,
    pub marker: Arc<dyn Marker>,
    pub tape: Tape,
    /// Bytes of its memories, for the tape.
    pub memory: Arc<AtomicUsize>,
    /// How long it may take.
    pub timeout: Duration,
}

impl Guest {
    /// Runs it, from its instance to its end.
    pub async fn run(self) -> Ran {
        let began = Instant::now();
        let mut init = Duration::ZERO;
        let mut memory = None;
        let mut cut = false;
        let result = match &self.loaded.world {
            World::Http(pre) => match self.component_store(None, None) {
                Ok(mut store) => {
                    let result = self.run_http(pre, &mut store, began, &mut init, &mut cut).await;
                    self.look_back(&result, &mut store);
                    memory = Some(store.data().limiter.memory());
                    result
                }
                Err(failure) => Err(failure),
            },
            World::Nexus { pre, handle } => match self.component_store(None, None) {
                Ok(mut store) => {
                    let result = self.run_nexus(pre, handle, &mut store, began, &mut init).await;
                    self.look_back(&result, &mut store);
                    memory = Some(store.data().limiter.memory());
                    result
                }
                Err(failure) => Err(failure),
            },
            World::Cli(pre) => {
                let stdout = Sink::result(self.loaded.engine.config.output_bytes_max);
                match self.component_store(Some(self.stdin()), Some(stdout.clone())) {
                    Ok(mut store) => {
                        let result = self.run_cli(pre, &mut store, stdout, began, &mut init).await;
                        self.look_back(&result, &mut store);
                        memory = Some(store.data().limiter.memory());
                        result
                    }
                    Err(failure) => Err(failure),
                }
            }
            World::Preview1(pre) => self.run_preview1(pre, began, &mut init, &mut memory).await,
        };
        Ran { result, memory, init, cut }
    }

    fn event_json(&self) -> Vec<u8> {
        match &self.request {
            Request::Event(event) => event.to_json(),
            // The runtime hands HTTP requests as such to `wasi:http` alone.
            Request::Http(_) => Vec::new(),
        }
    }

    fn stdin(&self) -> MemoryInputPipe {
        let mut json = self.event_json();
        json.push(b'\n');
        MemoryInputPipe::new(json)
    }

    fn limiter(&self) -> Limiter {
        Limiter::new(self.config.limits.memory_mb, self.memory.clone())
    }

    fn component_store(&self, stdin: Option<MemoryInputPipe>, stdout: Option<Sink>) -> Result<Store<Host>, Failure> {
        let stdout = stdout.unwrap_or_else(|| Sink::lines(LogStream::Stdout, self.lines.clone()));
        let stderr = Sink::lines(LogStream::Stderr, self.lines.clone());
        let mut wasi =
            host::wasi(&self.config, &self.tape, stdin, Flushed(stdout), Flushed(stderr)).map_err(not_permanent)?;
        let host = Host::new(
            self.limiter(),
            wasi.build(),
            Hooks::new(self.calls.clone(), self.tape.clone()),
            self.tape.clone(),
            !self.config.mounts.is_empty(),
        );
        let mut store = Store::new(&self.profile_engine().wasmtime, host);
        store.limiter(|host| &mut host.limiter);
        self.set_deadline(&mut store);
        self.tell_crossings(&mut store);
        Ok(store)
    }

    fn profile_engine(&self) -> &ProfileEngine {
        self.loaded.profile_engine()
    }

    /// At every tick the guest lets others run, and at its deadline it is stopped.
    fn set_deadline<T: Send + 'static>(&self, store: &mut Store<T>) {
        let deadline = self.started + self.timeout;
        // A replay of one that was stopped, once it has made all the calls that were recorded: it may never make another.
        let cut = self.started + self.config.limits.timeout();
        let debugged = self.loaded.engine.config.closer.debugger;
        let tape = self.tape.clone();
        let looked_at = self.loaded.engine.config.closer.samples.then(|| self.loaded.engine.clone());
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(move |store| {
            if let Some(engine) = &looked_at {
                engine.seen.sample(&store);
            }
            if let Some(over) = tape.over() {
                Err(over)
            } else if Instant::now() >= deadline || (!debugged && tape.is_played_to_its_cut() && Instant::now() >= cut)
            {
                Err(TimeUp.into())
            } else {
                Ok(UpdateDeadline::Yield(1))
            }
        });
    }

    /// Tells the marker when the guest's code runs, and when the host's does.
    fn tell_crossings<T: Send + 'static>(&self, store: &mut Store<T>) {
        if self.marker.wants_crossings() {
            let marker = self.marker.clone();
            store.call_hook(move |_, hook| {
                marker.crossed(!hook.entering_host());
                Ok(())
            });
        }
    }

    async fn run_http(
        &self,
        pre: &wasmtime_wasi_http::p2::bindings::ProxyPre<Host>,
        store: &mut Store<Host>,
        began: Instant,
        init: &mut Duration,
        cut: &mut bool,
    ) -> Result<(Answer, Vec<Draft>), Failure> {
        use wasmtime_wasi_http::WasiHttpView;
        let proxy = pre.instantiate_async(&mut *store).await.map_err(Failure::Stopped)?;
        *init = began.elapsed();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let request = to_http(&self.request).map_err(not_permanent)?;
        let request = store.data_mut().http().new_incoming_request(Scheme::Http, request).map_err(Failure::Stopped)?;
        let outparam = store.data_mut().http().new_response_outparam(sender).map_err(Failure::Stopped)?;
        let handler = proxy.wasi_http_incoming_handler();
        let bytes_max = self.loaded.engine.config.output_bytes_max;
        let call = async {
            *cut = true;
            let called = handler.call_handle(&mut *store, request, outparam).await;
            *cut = false;
            called.map_err(Failure::Stopped)
        };
        let receive = async {
            let Ok(answer) = receiver.await else { return Ok(None) };
            let response = answer.map_err(|code| not_permanent(format!("the function answered with {code:?}")))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, bytes_max).collect().await.map_err(|e| {
                match e.downcast::<wasmtime_wasi_http::Error>() {
                    Ok(e) => not_permanent(format!("the response's body broke off: {e:?}")),
                    Err(_) => Failure::TooMuch,
                }
            })?;
            Ok(Some(Answer { http_status: Some(head.status.as_u16()), headers: head.headers, body: body.to_bytes() }))
        };
        // Both run at once: the guest waits where its body is not taken. A guest that fails after it answered has failed.
        let (call, receive) = (pin!(call), pin!(receive));
        let answer = match future::select(call, receive).await {
            Either::Left((Ok(()), receive)) => receive.await?,
            // In a replay it never waits: it may have come to where the recorded one was let go of, because of its answer.
            Either::Left((Err(Failure::Stopped(error)), receive)) if error.is::<CutHere>() => {
                match tokio::time::timeout(ANSWER_PATIENCE, receive).await {
                    Ok(Err(failure)) => return Err(failure),
                    Ok(Ok(_)) | Err(_) => return Err(Failure::Stopped(error)),
                }
            }
            Either::Left((Err(failure), _)) => return Err(failure),
            Either::Right((answer, call)) => {
                let answer = answer?;
                call.await?;
                answer
            }
        };
        let answer = answer.ok_or_else(|| not_permanent("the function set no response".into()))?;
        match self.request {
            // The response goes back as it is, but the invocation did not go well.
            Request::Http(_) if answer.http_status.is_some_and(|s| s >= 500) => {
                let why = format!("the function answered with status {}", answer.http_status.unwrap_or_default());
                Err(Failure::Said { why, permanent: true, retry_after: None, answer: Box::new(answer) })
            }
            Request::Http(_) => Ok((answer, Vec::new())),
            Request::Event(_) => answered(answer),
        }
    }

    async fn run_nexus(
        &self,
        pre: &wasmtime::component::InstancePre<Host>,
        handle: &wasmtime::component::ComponentExportIndex,
        store: &mut Store<Host>,
        began: Instant,
        init: &mut Duration,
    ) -> Result<(Answer, Vec<Draft>), Failure> {
        let instance = pre.instantiate_async(&mut *store).await.map_err(Failure::Stopped)?;
        *init = began.elapsed();
        let handle = instance
            .get_typed_func::<(&[u8],), (Result<Vec<u8>, String>,)>(&mut *store, handle)
            .map_err(Failure::Stopped)?;
        let event = self.event_json();
        let (outcome,) = handle.call_async(&mut *store, (&event,)).await.map_err(Failure::Stopped)?;
        match outcome {
            Ok(bytes) if bytes.len() > self.loaded.engine.config.output_bytes_max => Err(Failure::TooMuch),
            Ok(bytes) => emit::from_outcome(bytes).map_err(not_permanent),
            Err(why) => Err(said(why)),
        }
    }

    async fn run_cli(
        &self,
        pre: &wasmtime_wasi::p2::bindings::CommandPre<Host>,
        store: &mut Store<Host>,
        stdout: Sink,
        began: Instant,
        init: &mut Duration,
    ) -> Result<(Answer, Vec<Draft>), Failure> {
        let command = pre.instantiate_async(&mut *store).await.map_err(Failure::Stopped)?;
        *init = began.elapsed();
        let ended = match command.wasi_cli_run().call_run(&mut *store).await {
            Ok(Ok(())) => Ok(0),
            Ok(Err(())) => Ok(1),
            Err(error) => exit_code(error),
        };
        exited(ended, &stdout)
    }

    async fn run_preview1(
        &self,
        pre: &wasmtime::InstancePre<Preview1Host>,
        began: Instant,
        init: &mut Duration,
        memory: &mut Option<Memory>,
    ) -> Result<(Answer, Vec<Draft>), Failure> {
        let stdout = Sink::result(self.loaded.engine.config.output_bytes_max);
        let stderr = Sink::lines(LogStream::Stderr, self.lines.clone());
        let mut wasi = host::wasi(&self.config, &self.tape, Some(self.stdin()), stdout.clone(), Flushed(stderr))
            .map_err(not_permanent)?;
        let host = Preview1Host { limiter: self.limiter(), tape: self.tape.clone(), wasi: wasi.build_p1() };
        let mut store = Store::new(&self.profile_engine().wasmtime, host);
        store.limiter(|host| &mut host.limiter);
        self.set_deadline(&mut store);
        self.tell_crossings(&mut store);
        let instance = pre.instantiate_async(&mut store).await.map_err(Failure::Stopped)?;
        *init = began.elapsed();
        let start = instance.get_typed_func::<(), ()>(&mut store, "_start").map_err(Failure::Stopped)?;
        let ended = match start.call_async(&mut store, ()).await {
            Ok(()) => Ok(0),
            Err(error) => exit_code(error),
        };
        if let Err(error) = &ended {
            self.loaded.engine.seen.trapped(error, &mut store);
        }
        *memory = Some(store.data().limiter.memory());
        exited(ended, &stdout)
    }

    /// Of a guest that trapped, keeps what it was like, where that was asked for.
    fn look_back<T>(&self, result: &Result<T, Failure>, store: &mut Store<Host>) {
        if let Err(Failure::Stopped(error)) = result {
            self.loaded.engine.seen.trapped(error, store);
        }
    }
}

/// The error of a `nexus:function`: text, or a JSON object that says more (see `wit/nexus-function.wit`).
fn said(why: String) -> Failure {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Said {
        error: String,
        #[serde(default)]
        permanent: bool,
        #[serde(default)]
        retry_after_ms: Option<u64>,
    }
    match serde_json::from_str::<Said>(&why) {
        Ok(said) => Failure::Said {
            why: said.error,
            permanent: said.permanent,
            retry_after: said.retry_after_ms.map(Duration::from_millis),
            answer: Box::default(),
        },
        Err(_) => not_permanent(why),
    }
}

fn not_permanent(why: String) -> Failure {
    Failure::Said { why, permanent: false, retry_after: None, answer: Box::default() }
}

/// An event's delivery over HTTP: 2xx is success; 408, 425, 429 and 5xx are worth another try, as Knative has it.
fn answered(answer: Answer) -> Result<(Answer, Vec<Draft>), Failure> {
    match answer.http_status {
        None | Some(200..=299) => emit::from_response(answer).map_err(not_permanent),
        Some(code) => {
            let permanent = !matches!(code, 408 | 425 | 429 | 500..);
            let why = format!("the function answered with status {code}");
            let retry_after = answer.retry_after();
            Err(Failure::Said { why, permanent, retry_after, answer: Box::new(answer) })
        }
    }
}

/// A command's exit code, or the trap that ended it.
fn exit_code(error: wasmtime::Error) -> Result<i32, wasmtime::Error> {
    match error.downcast_ref::<wasmtime_wasi::I32Exit>() {
        Some(exit) => Ok(exit.0),
        None => Err(error),
    }
}

fn exited(ended: Result<i32, wasmtime::Error>, stdout: &Sink) -> Result<(Answer, Vec<Draft>), Failure> {
    let Some(result) = stdout.take_result() else { return Err(Failure::TooMuch) };
    match ended {
        Ok(0) => emit::from_stdout(result).map_err(not_permanent),
        Ok(code) => Err(not_permanent(format!("the command ended with exit code {code}"))),
        Err(error) => Err(Failure::Stopped(error)),
    }
}

/// Logs the last line, though it has no end, when the guest's store goes.
struct Flushed(Sink);

impl Drop for Flushed {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl wasmtime_wasi::cli::IsTerminal for Flushed {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl wasmtime_wasi::cli::StdoutStream for Flushed {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        self.0.async_stream()
    }

    fn p2_stream(&self) -> Box<dyn wasmtime_wasi::p2::OutputStream> {
        self.0.p2_stream()
    }
}
