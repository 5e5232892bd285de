//! What stands behind a guest's imports during one invocation.

use nexus_core::function::FunctionConfig;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::cli::StdoutStream;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p2::pipe::MemoryInputPipe;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::egress::Hooks;
use crate::limiter::Limiter;
use crate::tape::Tape;
use crate::tape::files::Files;
use crate::tape::http::Places;

/// The most handles that a guest may hold at once: streams, requests, pollables.
const HANDLES_MAX: usize = 10_000;
/// The most random bytes in one call.
pub(crate) const RANDOM_BYTES_MAX: u64 = 1 << 20;

/// The state of a component.
pub(crate) struct Host {
    pub limiter: Limiter,
    pub tape: Tape,
    pub places: Places,
    pub files: Files,
    pub table: ResourceTable,
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Hooks,
}

impl Host {
    /// `mounted`: the function sees folders.
    pub fn new(limiter: Limiter, wasi: WasiCtx, hooks: Hooks, tape: Tape, mounted: bool) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        let files = Files::new(mounted);
        Self { limiter, tape, places: Places::new(), files, table, wasi, http: WasiHttpCtx::new(), hooks }
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

/// The state of a preview-1 module.
pub(crate) struct Preview1Host {
    pub limiter: Limiter,
    pub tape: Tape,
    pub wasi: WasiP1Ctx,
}

/// What every kind of guest sees of the world: its environment, its mounts, its streams, and by the tape its clocks and random
/// numbers; no network but by `wasi:http`. A replay has no mounts: it changes nothing.
pub(crate) fn wasi(
    config: &FunctionConfig,
    tape: &Tape,
    stdin: Option<MemoryInputPipe>,
    stdout: impl StdoutStream + 'static,
    stderr: impl StdoutStream + 'static,
) -> Result<WasiCtxBuilder, String> {
    let mut wasi = WasiCtxBuilder::new();
    wasi.stdout(stdout).stderr(stderr).max_random_size(RANDOM_BYTES_MAX);
    // File calls run on the invocation's own thread, so that they are seen as its own (see `Loaded::invoke`). A mount takes
    // this over when it is added: it comes first. Without mounts the thread is one of the server's: nothing may block it, and a
    // preview-1 module's sleep would.
    let mounts = if tape.is_replay() { &[][..] } else { &config.mounts[..] };
    wasi.allow_blocking_current_thread(!mounts.is_empty());
    if let Some(stdin) = stdin {
        wasi.stdin(stdin);
    }
    for (name, value) in &config.env {
        wasi.env(name, value);
    }
    tape.install(&mut wasi);
    for mount in mounts {
        let perms = if mount.writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
        wasi.preopened_dir(&mount.host, &mount.guest, perms)
            .map_err(|e| format!("mount {} cannot be opened: {e:#}", mount.host.display()))?;
    }
    Ok(wasi)
}
