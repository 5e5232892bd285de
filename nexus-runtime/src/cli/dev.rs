//! `nexus dev`: a server, and the functions of a folder, reloaded when they change.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nexus_core::ids::Digest;
use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::serve::{self, ServerArgs};
use super::{Done, Failure};
use crate::catalog::Catalog;
use crate::config::KernelWanted;
use crate::manifest::{FILE, Manifest};

/// Changes come in bursts (a compiler writes, renames, sets times); this long after the last one they are looked at.
const QUIET: Duration = Duration::from_millis(100);

/// Arguments of `nexus dev`.
#[derive(Args)]
pub struct DevArgs {
    /// The folder with the functions: each has a nexus.toml beside its component
    #[arg(default_value = ".")]
    dir: PathBuf,
    #[command(flatten)]
    server: ServerArgs,
}

pub fn run(args: DevArgs) -> Done {
    if !args.dir.is_dir() {
        return Err(Failure::not_found(format!("there is no folder {}", args.dir.display())));
    }
    let config = args.server.config(args.dir.join(".nexus"))?;
    serve::start_logs(config.log_format, config.kernel != KernelWanted::Off);
    let dir = args.dir;
    serve::serve(config, move |server, stop| reload(dir, server.catalog.clone(), stop))
}

/// Deploys what is there, then what changes.
async fn reload(dir: PathBuf, catalog: Arc<Catalog>, stop: CancellationToken) {
    let (sender, mut changes) = mpsc::channel(1);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let relevant = match event {
            // Opening and reading a component is our own doing.
            Ok(event) => !event.kind.is_access() && event.paths.iter().any(|p| is_relevant(p)),
            Err(_) => true,
        };
        // Full means that a look is due already.
        if relevant {
            let _ = sender.try_send(());
        }
    });
    let mut watcher = match watcher {
        Ok(watcher) => watcher,
        Err(error) => return tracing::error!(%error, "changes cannot be watched for; restart to reload functions"),
    };
    // Watched before it is read, so that no change falls between the two.
    if let Err(error) = watcher.watch(&dir, RecursiveMode::Recursive) {
        tracing::error!(%error, dir = %dir.display(), "changes cannot be watched for; restart to reload functions");
    }
    let mut known = HashMap::new();
    deploy_all(&dir, &catalog, &mut known).await;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            change = changes.recv() => if change.is_none() { return },
        }
        while tokio::time::timeout(QUIET, changes.recv()).await.is_ok_and(|c| c.is_some()) {}
        deploy_all(&dir, &catalog, &mut known).await;
    }
}

fn is_relevant(path: &Path) -> bool {
    let built = path.components().any(|c| c.as_os_str() == "target" || c.as_os_str() == ".nexus");
    !built && (path.extension().is_some_and(|e| e == "wasm") || path.file_name().is_some_and(|n| n == FILE))
}

/// Deploys every function that is new or other than it was. A broken one is said and left alone; it stays as it was.
async fn deploy_all(dir: &Path, catalog: &Catalog, known: &mut HashMap<PathBuf, (Digest, Digest)>) {
    for path in Manifest::find(dir) {
        if let Err(error) = deploy_changed(&path, catalog, known).await {
            tracing::error!("{}: {error:#}", path.display());
        }
    }
}

async fn deploy_changed(
    path: &Path,
    catalog: &Catalog,
    known: &mut HashMap<PathBuf, (Digest, Digest)>,
) -> anyhow::Result<()> {
    let text = tokio::fs::read(path).await?;
    let manifest = Manifest::read(path)?;
    let bytes = match tokio::fs::read(&manifest.wasm).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::warn!(function = %manifest.name, "not built yet: `nexus build` makes {}", manifest.wasm.display());
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let now = (Digest::of(&text), Digest::of(&bytes));
    if known.get(path) == Some(&now) {
        return Ok(());
    }
    let deployed = catalog.deploy(&manifest.name, bytes.into()).await?;
    catalog.configure(&manifest.name, manifest.config).await?;
    // Remembered only now: what failed is tried again at the next change of anything.
    known.insert(path.to_owned(), now);
    let version = deployed.version;
    tracing::info!(function = %manifest.name, version = version.version.0, kind = version.kind.as_str(), "deployed");
    Ok(())
}
