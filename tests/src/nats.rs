//! NATS servers for the tests: which storage a test program's servers use is said by its name, so that the same tests are of
//! all of them: `managed…` of servers that each start a nats-server, `cluster…` of servers at one cluster of three.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
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

/// Three nats-servers, on loopback or each in a network namespace of its own.
pub struct Cluster {
    nodes: Vec<Node>,
    hosts: Option<Hosts>,
    _folder: tempfile::TempDir,
}

/// One of them.
pub struct Node {
    /// Where clients connect.
    address: String,
    /// The network namespace that it is in.
    host: Option<String>,
    config: PathBuf,
    child: std::sync::Mutex<Child>,
}

impl Cluster {
    /// Starts them, and waits until each serves clients.
    pub fn start() -> Self {
        on_a_thread_that_stays(|| Self::start_here(None))
    }

    /// Starts them on hosts of their own, whose links can be cut: needs root.
    pub fn apart() -> Self {
        on_a_thread_that_stays(|| Self::start_here(Some(Hosts::new())))
    }

    fn start_here(hosts: Option<Hosts>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let node = |number: usize| {
            let data = folder.path().join(format!("node-{number}"));
            let config = folder.path().join(format!("node-{number}.conf"));
            let address = match &hosts {
                Some(hosts) => format!("{}:4222", hosts.address(number)),
                None => format!("127.0.0.1:{}", free_port()),
            };
            (address, config, data)
        };
        let planned: Vec<_> = (0..3).map(node).collect();
        let listens: Vec<String> = match &hosts {
            Some(_) => vec!["0.0.0.0:6222".into(); 3],
            None => (0..3).map(|_| format!("127.0.0.1:{}", free_port())).collect(),
        };
        let start = |(number, (address, config, data)): (usize, (String, PathBuf, PathBuf))| {
            let routes: Vec<String> = match &hosts {
                Some(hosts) => hosts.others(number).map(|address| format!("nats://{address}:6222")).collect(),
                None => listens.iter().map(|listen| format!("nats://{listen}")).collect(),
            };
            // A route that is told of by others would not be a link that can be cut.
            let text = format!(
                "server_name: node-{number}\nlisten: \"{address}\"\nmax_payload: 8MB\n\
                 jetstream {{ store_dir: {data:?}, sync_interval: always, max_mem: 64MB, max_file: 8GB }}\n\
                 cluster {{ name: tests, listen: {listen:?}, routes: {routes:?}, no_advertise: {apart} }}\n",
                listen = listens[number],
                apart = hosts.is_some(),
            );
            std::fs::write(&config, text).expect("a file");
            let host = hosts.as_ref().map(|hosts| hosts.names[number].clone());
            Node { address, child: std::sync::Mutex::new(spawn(&config, host.as_deref())), config, host }
        };
        let nodes: Vec<Node> = planned.into_iter().enumerate().map(start).collect();
        nodes.iter().for_each(Node::wait);
        Self { nodes, hosts, _folder: folder }
    }

    /// Cuts a server of [`Cluster::apart`] off from the two others, or joins it to them again. Clients reach it all the while.
    pub fn cut_off(&self, number: usize, cut: bool) {
        self.hosts.as_ref().expect("hosts of their own").cut_off(number, cut);
    }

    /// The addresses of all.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("nats://{}", node.address)).collect()
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
        let (config, host) = (self.config.clone(), self.host.clone());
        *self.child.lock().expect("not poisoned") = on_a_thread_that_stays(move || spawn(&config, host.as_deref()));
        self.wait();
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.lock().expect("not poisoned").id()
    }

    fn wait(&self) {
        let until = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(&self.address).is_err() {
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
fn spawn(config: &Path, host: Option<&str>) -> Child {
    let mut command = match host {
        Some(host) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", host]).arg(program());
            command
        }
        None => Command::new(program()),
    };
    command.arg("child").arg(std::process::id().to_string()).arg(nats_server()).arg("-c").arg(config);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nats-server")
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Three network namespaces, each with a link to this one and one to each other.
struct Hosts {
    names: Vec<String>,
    /// The second byte of all addresses, so that two test programs do not meet.
    net: u32,
}

impl Hosts {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let me = std::process::id();
        Self::remove_left_over();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let names = (0..3).map(|n| format!("nexus-{me}-{count}-{n}")).collect();
        // Made first, so that what is there goes also when something fails.
        let hosts = Self { names, net: 64 + (me + count) % 160 };
        let net = hosts.net;
        for (n, host) in hosts.names.iter().enumerate() {
            ip(&format!("netns add {host}"));
            ip(&format!("-n {host} link set lo up"));
            ip(&format!("link add nx{net}h{n} type veth peer name client netns {host}"));
            ip(&format!("address add 10.{net}.{n}.1/30 dev nx{net}h{n}"));
            ip(&format!("link set nx{net}h{n} up"));
            ip(&format!("-n {host} address add 10.{net}.{n}.2/30 dev client"));
            ip(&format!("-n {host} link set client up"));
        }
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            let (host, peer) = (&hosts.names[one], &hosts.names[other]);
            ip(&format!("-n {host} link add to{other} type veth peer name to{one} netns {peer}"));
            for (from, to, host) in [(one, other, host), (other, one, peer)] {
                ip(&format!("-n {host} address add {}/24 dev to{to}", hosts.between(from, to)));
                ip(&format!("-n {host} link set to{to} up"));
            }
        }
        hosts
    }

    /// What a test program that was killed has left.
    fn remove_left_over() {
        let listed = Command::new("ip").args(["netns", "list"]).output().expect("`ip`, of the package iproute2");
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let name = line.split(' ').next().unwrap_or_default();
            let owner = name.strip_prefix("nexus-").and_then(|rest| rest.split('-').next());
            if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                // Another program may be as fast.
                let _ = Command::new("ip").args(["netns", "delete", name]).status();
            }
        }
    }

    /// Where this namespace reaches a host.
    fn address(&self, host: usize) -> String {
        format!("10.{}.{host}.2", self.net)
    }

    /// The address of one host on its link with another.
    fn between(&self, host: usize, other: usize) -> String {
        format!("10.{}.{}.{}", self.net, 100 + host + other, 1 + host)
    }

    /// Where a host reaches the two others.
    fn others(&self, host: usize) -> impl Iterator<Item = String> {
        (0..3).filter(move |other| *other != host).map(move |other| self.between(other, host))
    }

    fn cut_off(&self, host: usize, cut: bool) {
        for other in (0..3).filter(|other| *other != host) {
            let name = &self.names[host];
            ip(&format!("-n {name} link set to{other} {}", if cut { "down" } else { "up" }));
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &self.names {
            // Its links go with it. It may never have been made.
            let _ = Command::new("ip").args(["netns", "delete", host]).status();
        }
    }
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().expect("`ip`, of the package iproute2");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}
