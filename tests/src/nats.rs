//! NATS servers for the tests: which storage a test program's servers use is said by its name, so that the same tests are of
//! all of them: `managed…` of servers that each start a nats-server, `cluster…` of servers at one cluster of three.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::server::program;

/// The storage that a test program's servers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A directory.
    Embedded,
    /// A nats-server of each server's own.
    Managed,
    /// Three nats-servers.
    Cluster,
}

/// What this test program's name says.
pub fn storage() -> Storage {
    let me = std::env::current_exe().expect("current program");
    let name = me.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match name {
        name if name.starts_with("managed") => Storage::Managed,
        name if name.starts_with("cluster") => Storage::Cluster,
        _ => Storage::Embedded,
    }
}

/// The nats-server that `cargo xtask test` found or got.
pub fn nats_server() -> PathBuf {
    let named = std::env::var_os("NEXUS_NATS_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = || std::env::split_paths(&path).map(|dir| dir.join("nats-server")).find(|file| file.is_file());
    named.or_else(found).expect("a nats-server: `cargo xtask test` gets it, and sets NEXUS_NATS_SERVER")
}

/// Arguments that put a server's log where this test program's name says, for what is in this data directory.
pub fn arguments(data_dir: &Path) -> Vec<String> {
    match storage() {
        Storage::Embedded => Vec::new(),
        Storage::Managed => vec!["--nats".into(), "managed".into()],
        Storage::Cluster => {
            // A log of its own for each directory; its path has letters that no stream's name may have.
            let name: String = data_dir.to_string_lossy().bytes().map(|byte| format!("{byte:02x}")).collect();
            let name = format!("T{}", &name[name.len().saturating_sub(60)..]);
            let servers = cluster().urls().join(",");
            ["--nats", &servers, "--nats-replicas", "3", "--nats-stream", &name].map(str::to_owned).to_vec()
        }
    }
}

/// The cluster of this test program. It ends with it.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(Cluster::start)
}

/// Three nats-servers on loopback.
pub struct Cluster {
    nodes: Vec<Node>,
    _folder: tempfile::TempDir,
}

/// One of them.
pub struct Node {
    /// Where clients connect.
    pub port: u16,
    config: PathBuf,
    child: std::sync::Mutex<Child>,
}

impl Cluster {
    /// Starts them, and waits until each serves clients.
    pub fn start() -> Self {
        on_a_thread_that_stays(Self::start_here)
    }

    fn start_here() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let ports: Vec<(u16, u16)> = (0..3).map(|_| (free_port(), free_port())).collect();
        let routes: Vec<String> = ports.iter().map(|(_, route)| format!("nats://127.0.0.1:{route}")).collect();
        let node = |(number, (port, route)): (usize, &(u16, u16))| {
            let data = folder.path().join(format!("node-{number}"));
            let config = folder.path().join(format!("node-{number}.conf"));
            let text = format!(
                "server_name: node-{number}\nlisten: \"127.0.0.1:{port}\"\nmax_payload: 8MB\n\
                 jetstream {{ store_dir: {data:?}, sync_interval: always, max_mem: 64MB, max_file: 8GB }}\n\
                 cluster {{ name: tests, listen: \"127.0.0.1:{route}\", routes: {routes:?} }}\n"
            );
            std::fs::write(&config, text).expect("a file");
            Node { port: *port, child: std::sync::Mutex::new(spawn(&config)), config }
        };
        let nodes: Vec<Node> = ports.iter().enumerate().map(node).collect();
        nodes.iter().for_each(Node::wait);
        Self { nodes, _folder: folder }
    }

    /// The addresses of all.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("nats://127.0.0.1:{}", node.port)).collect()
    }

    /// The servers.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }
}

impl Node {
    /// Kills it.
    pub fn kill(&self) {
        let mut child = self.child.lock().expect("not poisoned");
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Starts it again after [`Node::kill`].
    pub fn start(&self) {
        let config = self.config.clone();
        *self.child.lock().expect("not poisoned") = on_a_thread_that_stays(move || spawn(&config));
        self.wait();
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.lock().expect("not poisoned").id()
    }

    fn wait(&self) {
        let until = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < until, "nats-server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What is started ends with the thread that starts it: this one lives as long as the program.
fn on_a_thread_that_stays<T: Send + 'static>(start: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(start());
        loop {
            std::thread::park();
        }
    });
    started.recv().expect("it starts")
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.iter().for_each(Node::kill);
    }
}

/// A server that ends with the thread that starts it.
fn spawn(config: &Path) -> Child {
    let mut command = Command::new(program());
    command.arg("child").arg(std::process::id().to_string()).arg(nats_server()).arg("-c").arg(config);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nats-server")
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}
