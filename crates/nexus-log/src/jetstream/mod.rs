//! Storage in NATS JetStream: for several runtimes, and for more than one machine.
//!
//! One stream is the log. Each of its messages is a group of writes of one runtime (`wire`); the server's acknowledgement makes
//! it durable, and its place in the stream gives it its order. Every runtime takes all groups in, in that order, into a copy of
//! its own in its data directory, which is laid out as the embedded storage is and is planned by the same code: the same writes
//! on the same state come to the same everywhere. So the places of events have no gaps, duplicates are known by `source` and
//! `id` for as long as the window is, an outcome is one with what it emits, and reading asks nobody. The copy can be thrown
//! away; it is made anew from the stream.
//!
//! * `stream`: the stream is made once, checked, and never changed.
//! * `send`, `outbox`: the way out, and who waits for it to come back.
//! * `follow`, `apply`: the way in.
//! * `artifacts`: an object store.
//! * `shorten`, `snapshot`: what is not kept any more leaves the stream; a snapshot of a copy stands for it.

mod apply;
mod artifacts;
mod broken;
mod connect;
mod follow;
mod outbox;
mod send;
mod shorten;
mod snapshot;
mod stream;
mod wire;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use async_nats::jetstream::object_store::ObjectStore;
use async_nats::jetstream::stream::Stream;
use nexus_core::ids::RuntimeId;
use nexus_core::threads;
use tokio::sync::{mpsc, watch};

use crate::contract::{Members, Storage, StorageError};
use crate::embedded::EmbeddedConfig;
use crate::embedded::core::Core;
use crate::embedded::directory::{self, Content, Directory};
use crate::embedded::log::EmbeddedLog;
use crate::embedded::registry::EmbeddedRegistry;
use crate::embedded::shared::Shared;
use crate::embedded::writer::release;
use apply::{Applied, Applier, Entry};
use broken::Broken;
use outbox::Outbox;

/// Messages that wait for the applying thread.
const ENTRIES_MAX: usize = 16;
/// How long servers may take to be there, at the start.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// The pause between two tries.
const START_PAUSE: Duration = Duration::from_millis(500);
/// How long a copy may take to close.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);
/// How often opening says how far it has come.
const PROGRESS_PERIOD: Duration = Duration::from_secs(5);

/// Where the servers are, who this is to them, and how the log is kept.
#[derive(Clone)]
pub struct JetStreamConfig {
    /// Addresses of servers of one cluster, as `nats://host:4222` or `tls://host:4222`. At least one.
    pub servers: Vec<String>,
    /// How this runtime proves who it is.
    pub login: Login,
    /// Certificates to trust beside the system's, in PEM.
    pub ca: Option<PathBuf>,
    /// A certificate and its key to show to the server, in PEM.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The name of the stream: letters, digits, `-` and `_`. Its subject is `NAME.log`, its object store `NAME_ARTIFACTS`.
    pub stream: String,
    /// Copies of each message in the cluster: 1, 3 or 5.
    pub replicas: usize,
    /// Where in the cluster the stream may be.
    pub placement: Option<Placement>,
    /// This runtime's copy.
    pub copy: EmbeddedConfig,
}

/// Where in a cluster a stream may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The cluster's name.
    pub cluster: Option<String>,
    /// Tags that a server must have.
    pub tags: Vec<String>,
}

/// How a runtime proves who it is. What is secret is read from files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Login {
    /// By nothing, or by what the address says.
    #[default]
    None,
    /// By a file of credentials, as `nsc` makes it: the account is the one that it is for.
    Credentials(PathBuf),
    /// By a token in a file.
    Token(PathBuf),
}

impl JetStreamConfig {
    /// A stream `NEXUS` of one replica at these servers, without a login, and its copy in a directory.
    pub fn new(servers: Vec<String>, copy: EmbeddedConfig) -> Self {
        Self {
            servers,
            login: Login::None,
            ca: None,
            certificate: None,
            stream: "NEXUS".to_owned(),
            replicas: 1,
            placement: None,
            copy,
        }
    }

    fn validate(&self) -> Result<(), StorageError> {
        let name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.stream.is_empty() || self.stream.len() > 64 || !self.stream.chars().all(name) {
            return Err(StorageError::Invalid(format!(
                "{:?} is no name for a stream: 1 to 64 letters, digits, - and _",
                self.stream
            )));
        }
        if !matches!(self.replicas, 1 | 3 | 5) {
            return Err(StorageError::Invalid(format!("{} replicas; 1, 3 or 5 can be had", self.replicas)));
        }
        Ok(())
    }
}

/// Connects, makes what is not there, and takes in all that the stream has.
///
/// # Errors
///
/// [`StorageError::Failed`] if the servers cannot be reached, [`StorageError::Other`] if what is there is not what is asked for
/// (another stream, other replicas, a directory of another log), and what opening a directory may say.
pub async fn open(config: JetStreamConfig) -> Result<JetStream, StorageError> {
    config.validate()?;
    let copied = directory::copied(&config.copy.data_dir);
    let Reached { jetstream, identity, stream, objects } = reach(&config, copied).await?;
    let last = stream.cached_info().state.last_sequence;
    let content = Content::Copy(identity.log.clone());
    let copy = config.copy.clone();
    let opened = tokio::task::spawn_blocking(move || open_copy(copy, &content)).await;
    let (shared, mut core, mut message) =
        opened.map_err(|e| StorageError::Failed(format!("opening was cut short: {e}")))??;
    let first = stream.cached_info().state.first_sequence;
    if first > message + 1 {
        (core, message) = from_snapshot(&jetstream, &identity, &shared, core, (first, last)).await?;
    }
    stream::check_reach(&identity.name, &stream.cached_info().state, message)?;
    let artifacts = artifacts::ObjectArtifacts::new(objects, shared.clone());

    let me = shared.members.borrow().me;
    let log = xxhash_rust::xxh3::xxh3_64(identity.log.as_bytes());
    let outbox = Arc::new(Outbox::new(me, random()));
    let broken = Broken::new(shared.clone(), outbox.clone());
    let (entries, incoming) = mpsc::channel(ENTRIES_MAX);
    let applied = watch::Sender::new(Applied { message, ..Applied::default() });
    let mut applied_now = applied.subscribe();
    let start = |error: std::io::Error| StorageError::Failed(format!("starting a thread of the log: {error}"));
    let applier = Applier {
        shared: shared.clone(),
        outbox: outbox.clone(),
        entries: incoming,
        applied,
        core: Some(core),
        log,
        digests: VecDeque::new(),
        broken: broken.clone(),
    };
    let applier = threads::spawn(threads::LOG, move || applier.run()).map_err(start)?;
    let follower =
        follow::follow(jetstream.clone(), identity.clone(), entries.clone(), applied_now.clone(), broken.clone());
    let shortener = shorten::Shortener {
        shared: shared.clone(),
        jetstream: jetstream.clone(),
        identity: identity.clone(),
        replicas: config.replicas,
        placement: config.placement.clone(),
        broken: broken.clone(),
        applied: applied_now.clone(),
    };
    let mut opened = JetStream {
        shortening: tokio::spawn(shortener.clone().run()),
        shortener,
        storage: Storage {
            log: Arc::new(EmbeddedLog::new(shared.clone())),
            registry: Arc::new(EmbeddedRegistry::new(shared.clone())),
            artifacts: Arc::new(artifacts),
        },
        shared: shared.clone(),
        outbox: outbox.clone(),
        entries: entries.clone(),
        jetstream: jetstream.clone(),
        follower: tokio::spawn(follower),
        broken: broken.watch(),
        sender: None,
        applier: Some(applier),
    };
    // From what it says first all know of this runtime, and count on it: so it has caught up by then.
    catch_up(&mut applied_now, &mut broken.watch(), last).await?;
    let sender = send::Sender {
        shared: shared.clone(),
        outbox,
        entries,
        jetstream,
        stream: identity.name.clone(),
        subject: stream::subject(&identity.name),
        runtime: tokio::runtime::Handle::current(),
        log,
        applied: applied_now,
        broken: broken.clone(),
    };
    opened.sender = Some(threads::spawn(threads::LOG, move || sender.run()).map_err(start)?);
    let mut members = shared.members.subscribe();
    let mut broken = broken.watch();
    tokio::select! {
        joined = members.wait_for(|members| members.all.contains(&me)) => {
            joined.map(drop).map_err(|_| StorageError::Closed)?;
        }
        why = broken.wait_for(Option::is_some) => {
            let why = why.ok().and_then(|why| why.clone()).unwrap_or_default();
            return Err(StorageError::Other(why));
        }
    }
    Ok(opened)
}

/// What there is at the servers.
struct Reached {
    jetstream: Context,
    identity: stream::Identity,
    stream: Stream,
    objects: ObjectStore,
}

/// Reaches all that is needed. Servers that are just being started, too, and a cluster that is choosing who leads it, are waited for.
async fn reach(config: &JetStreamConfig, copied: Option<String>) -> Result<Reached, StorageError> {
    let began = Instant::now();
    loop {
        let reached = async {
            let jetstream = connect::connect(config).await?;
            let (identity, stream) = stream::make(&jetstream, config, copied.as_deref()).await?;
            let objects = artifacts::make(&jetstream, config).await?;
            Ok(Reached { jetstream, identity, stream, objects })
        };
        match reached.await {
            Err(error @ StorageError::Failed(_)) if began.elapsed() < START_PATIENCE => {
                tracing::warn!(%error, "NATS is not ready; trying again");
                tokio::time::sleep(START_PAUSE).await;
            }
            reached => return reached,
        }
    }
}

/// Waits until the copy has all that the stream had when it was opened.
async fn catch_up(
    applied: &mut watch::Receiver<Applied>,
    broken: &mut watch::Receiver<Option<String>>,
    last: u64,
) -> Result<(), StorageError> {
    loop {
        let message = applied.borrow().message;
        tokio::select! {
            reached = applied.wait_for(|applied| applied.message >= last) => {
                return reached.map(drop).map_err(|_| StorageError::Closed);
            }
            why = broken.wait_for(Option::is_some) => {
                let why = why.ok().and_then(|why| why.clone()).unwrap_or_default();
                return Err(StorageError::Other(why));
            }
            () = tokio::time::sleep(PROGRESS_PERIOD) => {
                tracing::info!(message, last, "taking in the log from NATS");
            }
        }
    }
}

fn open_copy(config: EmbeddedConfig, content: &Content) -> Result<(Arc<Shared>, Core, u64), StorageError> {
    let directory = Directory::take(&config.data_dir, content)?;
    shorten::tidy(&directory);
    directory::remove_temporary(&directory.artifacts())
        .map_err(|e| StorageError::Failed(format!("tidying {}: {e}", config.data_dir.display())))?;
    let shared = Arc::new(Shared::new(config, directory));
    let core = match Core::open(&shared) {
        // After a loss of power, perhaps: what is in it is only a copy.
        Err(StorageError::Damaged(why)) => {
            let database = shared.directory()?.database();
            tracing::warn!(why, "the copy of the log is damaged; it is made anew");
            std::fs::remove_dir_all(&database)
                .map_err(|e| StorageError::Failed(format!("removing {}: {e}", database.display())))?;
            Core::open(&shared)?
        }
        opened => opened?,
    };
    let message = introduce(&shared, &core)?;
    Ok((shared, core, message))
}

/// Tells who shares the log, by what is in the copy; the last message that is in it.
fn introduce(shared: &Shared, core: &Core) -> Result<u64, StorageError> {
    let me = runtime_id(&shared.config.data_dir)?;
    let membership = &core.state.membership;
    shared.members.send_replace(Arc::new(Members { me, all: membership.runtimes(), epoch: membership.epoch }));
    apply::applied(&core.store)
}

/// The copy ends before the stream begins: it is made anew from a snapshot, where there is one.
async fn from_snapshot(
    jetstream: &Context,
    identity: &stream::Identity,
    shared: &Arc<Shared>,
    core: Core,
    (first, last): (u64, u64),
) -> Result<(Core, u64), StorageError> {
    shared.set_store(None);
    let store = core.store;
    drop(core.state);
    let closed = tokio::task::spawn_blocking(move || release(store, CLOSE_PATIENCE).is_none()).await;
    if !closed.unwrap_or(false) {
        return Err(StorageError::Failed("the copy of the log does not close".to_owned()));
    }
    shorten::restore(jetstream, identity, shared, first, last).await?;
    let shared = shared.clone();
    let open = move || {
        let core = Core::open(&shared)?;
        let message = introduce(&shared, &core)?;
        Ok((core, message))
    };
    let opened = tokio::task::spawn_blocking(open).await;
    opened.map_err(|e| StorageError::Failed(format!("opening was cut short: {e}")))?
}

/// Who the runtime with this directory is: the same as before, so that after a restart its part is its own again at once.
fn runtime_id(folder: &Path) -> Result<RuntimeId, StorageError> {
    let path = folder.join("RUNTIME");
    let failed = |e: std::io::Error| StorageError::Failed(format!("{}: {e}", path.display()));
    match std::fs::read_to_string(&path) {
        Ok(text) => u64::from_str_radix(text.trim(), 16)
            .map(RuntimeId)
            .map_err(|_| StorageError::Damaged(format!("{} names no runtime", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = RuntimeId(random());
            directory::write_new(&path, format!("{id}\n").as_bytes()).map_err(failed)?;
            Ok(id)
        }
        Err(error) => Err(failed(error)),
    }
}

fn random() -> u64 {
    let random = nexus_core::ids::InvocationId::generate().0.into_bytes();
    xxhash_rust::xxh3::xxh3_64(&random)
}

/// An opened log in NATS. Dropped without [`JetStream::close`], it still sends what waits, but nobody waits for that.
pub struct JetStream {
    storage: Storage,
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
    entries: mpsc::Sender<Entry>,
    jetstream: Context,
    follower: tokio::task::JoinHandle<()>,
    shortener: shorten::Shortener,
    shortening: tokio::task::JoinHandle<()>,
    broken: watch::Receiver<Option<String>>,
    /// Once it has caught up.
    sender: Option<JoinHandle<()>>,
    applier: Option<JoinHandle<()>>,
}

impl JetStream {
    /// The three parts. Clones stay valid after [`JetStream::close`] and answer [`StorageError::Closed`].
    pub fn storage(&self) -> Storage {
        self.storage.clone()
    }

    /// Waits until the log cannot be followed any further, and why: what was acknowledged is missing in it, it is another one, or
    /// a later release writes to it.
    pub fn broken(&self) -> impl Future<Output = String> + Send + 'static {
        let mut broken = self.broken.clone();
        async move {
            loop {
                let why = broken.borrow_and_update().clone();
                match why {
                    Some(why) => return why,
                    None if broken.changed().await.is_err() => std::future::pending().await,
                    None => {}
                }
            }
        }
    }

    /// Shortens the stream at once to what came after this moment, whatever it holds; a snapshot in an object store stands
    /// for what is removed. By itself that is done where the stream has more than twice of what is kept, and some minutes after
    /// the snapshot: runtimes that lag behind lose their way now, and must be started again.
    ///
    /// # Errors
    ///
    /// [`StorageError::Full`] if there is no room for the snapshot in the data directory, where it is made, and
    /// [`StorageError::Failed`].
    pub async fn shorten(&self) -> Result<(), StorageError> {
        let message = self.shortener.snapshot().await?;
        self.shortener.purge(message).await
    }

    /// Takes no more, sends all that waits, waits until that has come back, and lets go of the directory.
    ///
    /// # Errors
    ///
    /// [`StorageError::Failed`] if something did not come back; whether it is in the stream is not known then.
    pub async fn close(mut self) -> Result<(), StorageError> {
        self.shared.queue.close();
        let (Some(sender), Some(applier)) = (self.sender.take(), self.applier.take()) else { return Ok(()) };
        // The last groups come back before the sender ends, or are given up.
        let sent = tokio::task::spawn_blocking(move || sender.join()).await;
        // It has ended already where it could not go on.
        let _ = self.entries.send(Entry::Close).await;
        let applied = tokio::task::spawn_blocking(move || applier.join()).await;
        self.follower.abort();
        self.shortening.abort();
        let mut waiting = self.outbox.waiting();
        let back = *waiting.borrow_and_update() == 0;
        if let Err(error) = self.jetstream.client().drain().await {
            tracing::debug!(%error, "the connection to NATS ended otherwise");
        }
        match (sent, applied) {
            (Ok(Ok(())), Ok(Ok(()))) if back => Ok(()),
            (Ok(Ok(())), Ok(Ok(()))) => {
                Err(StorageError::Failed("the last writes have not come back from NATS".to_owned()))
            }
            _ => Err(StorageError::Failed("a thread of the log broke off".to_owned())),
        }
    }
}

impl Drop for JetStream {
    fn drop(&mut self) {
        self.shared.queue.close();
        self.follower.abort();
        self.shortening.abort();
        let _ = self.entries.try_send(Entry::Close);
    }
}
