//! A replay in this process: `nexus replay CASE.json --component FILE`, with no server, from what `nexus events export` wrote; or with
//! a closer look, from what the server has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use nexus_core::clock::SystemClock;
use nexus_engine::{Engine, EngineConfig};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::Client;
use super::replay::{ReplayArgs, conclude};
use super::{Done, Failure, Global, Output, closer, on_client_runtime};
use crate::catalog::Catalog;
use crate::config::Config;
use crate::kernel::{self, Kernel};
use crate::line::Line;
use crate::replay::case::Case;
use crate::replay::{ReplayRequest, Replays};
use crate::storage;
use crate::telemetry::Telemetry;

/// Replays a case in this process: a log, a catalog and an engine of its own, in a folder that goes when it is over.
pub fn run(args: ReplayArgs, global: Global) -> Done {
    // A case may be anybody's: what is allowed to it is in it.
    if args.goes_out() {
        return Err(Failure::usage("it is replayed here without the network: neither --mode live nor --allow-live"));
    }
    let output = global.output;
    let (case, component) = match args.case() {
        Some(case) => {
            let Some(component) = &args.component else {
                let why = "a case is replayed with the component that ran, or another: --component FILE";
                return Err(Failure::usage(why));
            };
            let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
            (Case::read(&read(&case)?).map_err(|e| Failure::failed(e.to_string()))?, read(component)?)
        }
        None => on_client_runtime(async {
            let one = || Failure::usage("--profile, --core-dump and --debug are for one event: say which, by its id");
            let id = args.id().ok_or_else(one)?;
            closer::fetch(&Client::new(&global)?, id, args.source(), args.function()).await
        })?,
    };
    let folder = Folder::new()?;
    let config = Config { data_dir: folder.0.clone(), ..Config::default() };
    let kernel = Arc::new(Kernel::start(&config)?);
    kernel::publish(&kernel);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().worker_threads(2).on_thread_start(kernel::register_task_thread);
    runtime.build()?.block_on(replay(args, case, component, config, kernel, output))
}

async fn replay(
    args: ReplayArgs,
    case: Case,
    component: Vec<u8>,
    config: Config,
    kernel: Arc<Kernel>,
    output: Output,
) -> Done {
    let storage = storage::open(&config).await?;
    let engine = EngineConfig::new(config.data_dir.join("compiled"));
    let engine = EngineConfig { instances_max: 16, closer: args.closer.closer(), ..engine };
    let engine = Engine::start(engine).map_err(anyhow::Error::from)?;
    let catalog = Catalog::open(storage.storage(), engine.clone(), Vec::new(), config.limits.calls_waiting_max)
        .await
        .map_err(anyhow::Error::from)?;
    let line = Arc::new(Line {
        storage: storage.storage(),
        catalog,
        kernel,
        telemetry: Telemetry::new(None),
        clock: Arc::new(SystemClock),
    });
    let event = &case.record.event;
    let mut request = ReplayRequest {
        event_id: Some(event.id.clone()),
        source: Some(event.source.clone()),
        ..ReplayRequest::default()
    };
    args.fill_in(&mut request)?;
    // The version is the component's: a case has no others.
    let function = request.function.take().map(|function| function.name.to_string());
    let same = case.set_up(&line, function.as_deref(), component.into()).await;
    let same = same.map_err(|e| Failure::failed(e.to_string()))?;
    if !same {
        eprintln!("nexus: the component is not the one that ran: it gets the recorded answers to what it asks");
        request.function = Some(only_function(&line)?);
    }
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let replays = Replays::new(line, tasks.clone(), stop);
    tasks.close();
    args.closer.before().await?;
    let id = replays.start(request.clone()).await.map_err(|e| Failure::failed(e.to_string()))?;
    tasks.wait().await;
    let view = replays.get(id).await.map_err(|e| Failure::failed(e.to_string()))?.context("the replay is gone")?;
    let runs = match args.closer.repeat() {
        Some(time) => 1 + replays.repeat(&request, time).await.map_err(|e| Failure::failed(e.to_string()))?,
        None => 1,
    };
    args.closer.after(&engine, runs)?;
    let view: Value = serde_json::to_value(view).map_err(anyhow::Error::from)?;
    drop(replays);
    storage.close().await.map_err(anyhow::Error::from)?;
    conclude(&args, &view, output)
}

/// The function of the case, at the version that was deployed for it.
fn only_function(line: &Line) -> anyhow::Result<nexus_core::ids::FunctionRef> {
    let view = line.catalog.view();
    let name = view.iter().next().map(|entry| entry.function.name.clone()).context("nothing was deployed")?;
    Ok(nexus_core::ids::FunctionRef { name, version: None })
}

/// A folder that goes with this.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = std::env::temp_dir().join(format!("nexus-case-{}", uuid::Uuid::now_v7().as_simple()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("nexus: {} could not be removed: {error}", self.0.display());
        }
    }
}
