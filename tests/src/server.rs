//! The program as a process: started on a free port with a data directory of its own, stopped by its id.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

use crate::collector::{Collector, without_capabilities};
use crate::wait::{PATIENCE, until};

/// The repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are in the repository").to_owned()
}

/// The program, as the same build made it: `cargo xtask test` builds everything, then runs the tests.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        // This test's own program lies in TARGET/PROFILE/deps.
        let me = std::env::current_exe().expect("current program");
        let program = me.parent().and_then(Path::parent).expect("target folder").join("nexus");
        assert!(
            program.is_file(),
            "{} is not built: run `cargo xtask test`, or `cargo build` first",
            program.display()
        );
        program
    })
}

/// Whether the tests of this program are of servers without a capability, each with a collector: its name says so. So the same
/// tests are of both.
fn is_split() -> bool {
    let me = std::env::current_exe().expect("current program");
    crate::privilege::is_root() && me.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"split"))
}

/// A client. It speaks only to loopback and without TLS, but cannot be made without an implementation of it.
pub fn client() -> reqwest::Client {
    // Fails only where there is one already, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A connection that was idle for as long as a test's server lets it be, a second at the least, may be closed just when it is used.
    reqwest::Client::builder().pool_idle_timeout(Duration::from_millis(500)).build().expect("client")
}

/// A function's component among the examples or the tests' guests.
pub fn component(name: &str) -> Vec<u8> {
    let path = ["examples", "tests/guests"].map(|dir| repository().join(dir).join(name).join(format!("{name}.wasm")));
    path.iter().find_map(|p| std::fs::read(p).ok()).unwrap_or_else(|| panic!("there is no component {name}"))
}

/// How a server is started.
pub struct ServerBuilder {
    command: Vec<std::ffi::OsString>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    data_dir: Option<PathBuf>,
    config: String,
    unprivileged: bool,
    /// The collector that loads the probes; the server then has no capability.
    collector: Option<PathBuf>,
    pid_namespace: bool,
    without_btf: bool,
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    url: String,
    http: reqwest::Client,
    log: std::sync::Arc<std::sync::Mutex<String>>,
    data_dir: PathBuf,
    // Dropped in this order: a collector's socket is in the folder.
    _collector: Option<(Collector, tempfile::TempDir)>,
    _temporary: Option<tempfile::TempDir>,
}

impl ServerBuilder {
    /// As `nexus dev` of this folder, and not as `nexus serve`.
    pub fn dev(mut self, dir: &Path) -> Self {
        self.command = vec!["dev".into(), dir.into()];
        self
    }

    /// Another argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Another environment variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// This data directory, which outlives the server.
    pub fn data_dir(mut self, dir: &Path) -> Self {
        self.data_dir = Some(dir.to_owned());
        self
    }

    /// Lines of the configuration file. `listen` and `data_dir` are set by flags.
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// A line of the configuration file that belongs to no table.
    pub fn setting(mut self, toml: &str) -> Self {
        self.config.insert_str(0, &format!("{toml}\n"));
        self
    }

    /// Without any privilege, also where the test has one.
    pub fn unprivileged(mut self) -> Self {
        self.unprivileged = true;
        self
    }

    /// The kernel's account comes from the collector at this socket, and the server has no capability at all.
    pub fn collector(mut self, socket: &Path) -> Self {
        self.collector = Some(socket.to_owned());
        self
    }

    /// Where the kernel does not describe its types: what it says of them is hidden, for this server alone.
    pub fn without_btf(mut self) -> Self {
        self.without_btf = true;
        self
    }

    /// In a PID namespace of its own, as in a container: its threads know themselves by other ids than the host does.
    pub fn in_pid_namespace(mut self) -> Self {
        self.pid_namespace = true;
        self
    }

    /// The free disk space that the server keeps for itself; none unless said.
    pub fn disk_reserve_mib(mut self, mib: u64) -> Self {
        self.config = self.config.replace("disk_reserve_mib = 0", &format!("disk_reserve_mib = {mib}"));
        self
    }

    /// The command that would be run, and the folder that must live as long as it does.
    pub fn command(&self) -> (Command, PathBuf, Option<tempfile::TempDir>) {
        let temporary = tempfile::tempdir().expect("temporary folder");
        let data_dir = self.data_dir.clone().unwrap_or_else(|| temporary.path().join("data"));
        let config = temporary.path().join("nexus.toml");
        std::fs::write(&config, &self.config).expect("write the configuration");
        let mut command = Command::new(program());
        if self.unprivileged && crate::privilege::is_root() {
            use std::os::unix::fs::PermissionsExt;
            // Another user has to read the configuration and to make the data directory.
            let all = std::fs::Permissions::from_mode(0o777);
            std::fs::set_permissions(temporary.path(), all).expect("a folder for everybody");
            command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]).arg(program());
        }
        if self.without_btf {
            command = Command::new("unshare");
            let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
            command.args(["--mount", "sh", "-c", hide]).arg(program());
        }
        if let Some(socket) = &self.collector {
            command = without_capabilities(program(), self.pid_namespace);
            command.env("NEXUS_COLLECTOR", socket);
        }
        command
            .args(&self.command)
            .arg("--config")
            .arg(config)
            .args(["--listen", "127.0.0.1:0", "--log-format", "json"])
            .arg("--data-dir")
            .arg(&data_dir)
            .args(crate::nats::arguments(&data_dir))
            .args(&self.args)
            .env_remove("RUST_BACKTRACE")
            .env_remove("RUST_LOG")
            .envs(self.env.iter().map(|(n, v)| (n, v)));
        (command, data_dir, Some(temporary))
    }

    /// Starts it and waits until it is ready.
    pub fn start(mut self) -> Server {
        let mut beside = None;
        let folder = tempfile::tempdir().expect("temporary folder");
        if is_split() && !self.unprivileged && !self.without_btf && self.collector.is_none() {
            let collector = Collector::start(&folder.path().join("collector"));
            self.collector = Some(collector.socket().to_owned());
            beside = Some((collector, folder));
        }
        let (mut command, data_dir, temporary) = self.command();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let log: std::sync::Arc<std::sync::Mutex<String>> = Default::default();
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let sink = log.clone();
        std::thread::spawn(move || {
            let mut line = String::new();
            while stderr.read_line(&mut line).is_ok_and(|n| n > 0) {
                sink.lock().expect("not poisoned").push_str(&line);
                line.clear();
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut ready = String::new();
        stdout.read_line(&mut ready).expect("standard output");
        let Some(url) = ready.trim().strip_prefix("ready on ") else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the server did not get ready: {ready:?}\n{}", log.lock().expect("not poisoned"));
        };
        let http = client();
        // Whatever else it prints is read, so that it never blocks.
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        Server { child, url: url.to_owned(), http, log, data_dir, _collector: beside, _temporary: temporary }
    }
}

impl Server {
    /// A server with an own data directory.
    pub fn builder() -> ServerBuilder {
        // The reserve is for disks of production; tests run where there is little room too.
        let config = "[limits]\ndisk_reserve_mib = 0\n".to_owned();
        ServerBuilder {
            command: vec!["serve".into()],
            args: Vec::new(),
            env: Vec::new(),
            data_dir: None,
            config,
            unprivileged: false,
            collector: None,
            pid_namespace: false,
            without_btf: false,
        }
    }

    /// A server with all defaults.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its data is.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// What it wrote to standard error so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("not poisoned").clone()
    }

    /// A request to a path.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// GET, which must succeed; JSON.
    pub async fn get(&self, path: &str) -> Value {
        let response = self.request(Method::GET, path).send().await.expect(path);
        let status = response.status();
        let text = response.text().await.expect(path);
        assert!(status.is_success(), "GET {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("GET {path}: {e}: {text}"))
    }

    /// Sends, and returns status and JSON (or the text, if it is none).
    pub async fn answer(&self, request: RequestBuilder) -> (u16, Value) {
        let response: Response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        let text = response.text().await.expect("a body");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Deploys a component of the examples or the tests' guests, with this configuration; returns the version.
    pub async fn deploy(&self, name: &str, component_name: &str, config: Value) -> u64 {
        self.deploy_bytes(name, component(component_name), config).await
    }

    /// Deploys another version of a function, whose configuration stays.
    pub async fn deploy_version(&self, name: &str, component_name: &str) -> u64 {
        let put = self.request(Method::PUT, &format!("/v1/functions/{name}"));
        let put = put.header("content-type", "application/wasm").body(component(component_name));
        let (status, answer) = self.answer(put).await;
        assert!(matches!(status, 200 | 201), "deploy {name}: {status} {answer}");
        answer["version"].as_u64().expect("version")
    }

    /// Deploys these bytes.
    pub async fn deploy_bytes(&self, name: &str, bytes: Vec<u8>, config: Value) -> u64 {
        let put = self.request(Method::PUT, &format!("/v1/functions/{name}"));
        let (status, answer) = self.answer(put.header("content-type", "application/wasm").body(bytes)).await;
        assert!(matches!(status, 200 | 201), "deploy {name}: {status} {answer}");
        let put = self.request(Method::PUT, &format!("/v1/functions/{name}/config"));
        let (status, problem) = self.answer(put.json(&config)).await;
        assert_eq!(status, 200, "configure {name}: {problem}");
        answer["version"].as_u64().expect("version")
    }

    /// A replay to its end.
    pub async fn replay(&self, request: Value) -> Value {
        let (status, answer) = self.answer(self.request(Method::POST, "/v1/replays").json(&request)).await;
        assert_eq!(status, 202, "{request}: {answer}");
        let id = answer["replay_id"].as_str().expect("an id");
        until("the replay's end", async || {
            let replay = self.get(&format!("/v1/replays/{id}")).await;
            (replay["status"] != "running").then_some(replay)
        })
        .await
    }

    /// Sends one event in structured mode, which must be taken; returns its receipt.
    pub async fn send(&self, event: Value) -> Value {
        let post = self.request(Method::POST, "/v1/events").header("content-type", "application/cloudevents+json");
        let (status, answer) = self.answer(post.body(event.to_string())).await;
        assert_eq!(status, 202, "send: {answer}");
        answer["events"][0].clone()
    }

    /// Waits until the event satisfies the condition, and returns it.
    pub async fn event_until(&self, id: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let event = self.get(&format!("/v1/events/{id}")).await;
            if condition(&event) {
                return event;
            }
            assert!(began.elapsed() < PATIENCE, "event {id} did not come to it: {event:#}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the event has one of these statuses.
    pub async fn settled(&self, id: &str, status: &str) -> Value {
        self.event_until(id, |e| e["status"] == status).await
    }

    /// Ends it with a signal that lets work end; returns its exit code.
    pub fn stop(mut self) -> Option<i32> {
        let killed = Command::new("kill").arg(self.child.id().to_string()).status().expect("kill runs");
        assert!(killed.success());
        self.child.wait().expect("it ends").code()
    }

    /// Waits until it has ended by itself; its exit code.
    pub async fn ended(mut self) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status.code();
            }
            assert!(began.elapsed() < PATIENCE, "the server did not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("it is killed");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the server's log\n{}", self.log());
        }
    }
}

/// The command line as a user has it.
pub struct Cli {
    url: String,
}

impl Cli {
    /// Commands that talk to this server.
    pub fn of(server: &Server) -> Self {
        Self { url: server.url().to_owned() }
    }

    /// Commands that talk to this address.
    pub fn at(url: &str) -> Self {
        Self { url: url.to_owned() }
    }

    /// Runs a command to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.command(args).output().expect("the program runs")
    }

    /// Runs a command to its end with this as its standard output.
    pub fn run_to<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>, stdout: Stdio) -> Output {
        let child = self.command(args).stdout(stdout).stderr(Stdio::piped()).spawn().expect("the program runs");
        child.wait_with_output().expect("it ends")
    }

    /// A command that is not yet run.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(program());
        command.args(args).env("NEXUS_URL", &self.url).env_remove("RUST_BACKTRACE").stdin(Stdio::null());
        command
    }

    /// Runs a command that must succeed; its standard output.
    pub fn text<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let output = self.run(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Runs a command that must succeed; its JSON.
    pub fn json<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Value {
        let mut args: Vec<_> = args.into_iter().map(|a| a.as_ref().to_owned()).collect();
        args.splice(0..0, ["--output".into(), "json".into()]);
        serde_json::from_str(&self.text(args)).expect("JSON")
    }
}

/// Reads a stream to its end.
pub fn read_to_end(mut stream: impl Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("text");
    text
}
