//! The privilege apart: a `nexus-collector` with CAP_BPF and CAP_PERFMON alone, and servers that have none at all.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::server::program;

/// Options of `setpriv` that leave a process these capabilities, of all that root has.
fn bounded_to(capabilities: &str) -> [String; 4] {
    [
        format!("--inh-caps=-all{capabilities}"),
        format!("--ambient-caps=-all{capabilities}"),
        format!("--bounding-set=-all{capabilities}"),
        "--no-new-privs".into(),
    ]
}

/// A command without any capability: as this user, whose files it may use. In a PID namespace of its own, if asked for.
pub fn without_capabilities(program: &Path, pid_namespace: bool) -> Command {
    let mut command = Command::new(if pid_namespace { "unshare" } else { "setpriv" });
    if pid_namespace {
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "setpriv"]);
    }
    command.args(bounded_to("")).arg(program);
    command
}

/// A running collector; killed when dropped.
pub struct Collector {
    child: Child,
    socket: PathBuf,
    /// Where its metrics are, if it was told to serve them.
    pub metrics: Option<String>,
    _stdout: BufReader<ChildStdout>,
}

impl Collector {
    /// Starts one that listens at this socket, and waits until it does.
    pub fn start(socket: &Path) -> Self {
        Self::with_args(socket, &[])
    }

    /// The same with further arguments.
    pub fn with_args(socket: &Path, args: &[&str]) -> Self {
        let mut child = Self::command(socket)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the collector starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut ready = String::new();
        stdout.read_line(&mut ready).expect("standard output");
        if !ready.starts_with("ready at ") {
            let _ = child.kill();
            let _ = child.wait();
            let mut log = String::new();
            let _ = child.stderr.take().expect("piped").read_to_string(&mut log);
            panic!("the collector did not get ready: {ready:?}\n{log}");
        }
        // Whatever it logs is read, so that it never blocks.
        let mut stderr = child.stderr.take().expect("piped");
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        let metrics = ready.trim().split_once("metrics on ").map(|(_, url)| url.to_owned());
        Self { child, socket: socket.to_owned(), metrics, _stdout: stdout }
    }

    /// The command that would be run.
    pub fn command(socket: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(bounded_to(",+bpf,+perfmon")).arg(program().with_file_name("nexus-collector"));
        command.arg("--socket").arg(socket).env_remove("RUST_BACKTRACE").env_remove("RUST_LOG");
        command
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().expect("it is killed");
        self.child.wait().expect("it ends");
    }

    /// Ends it with a signal that lets it clean up; its exit code.
    pub fn stop(mut self) -> Option<i32> {
        let killed = Command::new("kill").arg(self.child.id().to_string()).status().expect("kill runs");
        assert!(killed.success());
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
