//! Running programs: commands to their end, and a server for as long as it is needed.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// Cargo, in the repository.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(args);
    // Cargo tells this program about itself. Build scripts that watch those variables (ring's does) would run anew at each
    // change between `cargo` and `cargo xtask`, and everything that depends on them would be built again.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command that must succeed.
pub fn must(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{} cannot be started", shown(command)))?;
    ensure!(status.success(), "{} failed ({status})", shown(command));
    Ok(())
}

/// Runs a command that must succeed, and returns its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("{} cannot be started", shown(command)))?;
    let errors = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{} failed ({}): {}", shown(command), out.status, errors.trim());
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A command as one would type it.
pub fn shown(command: &Command) -> String {
    let parts: Vec<_> =
        [command.get_program()].into_iter().chain(command.get_args()).map(|p: &OsStr| p.to_string_lossy()).collect();
    parts.join(" ")
}

/// Where a program is, by the path.
pub fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// A program that runs until this is dropped.
pub struct Running {
    child: Child,
}

impl Running {
    /// Its processor time up to now, in microseconds: `/proc/PID/stat`, to a hundredth of a second.
    pub fn cpu_us(&self) -> Result<f64> {
        // Ticks of user space are a hundredth of a second on every Linux.
        const TICK_US: f64 = 10_000.0;
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name, in parentheses, may hold anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks = |at: usize| fields.split_whitespace().nth(at).and_then(|n| n.parse::<f64>().ok());
        let (user, system) = ticks(11).zip(ticks(12)).context("processor time of the server")?;
        Ok((user + system) * TICK_US)
    }

    /// Starts a program and waits for the line that `ready` recognises; returns what it made of it.
    pub fn start<T>(command: &mut Command, ready: impl Fn(&str) -> Option<T>) -> Result<(Self, T)> {
        let what = shown(command);
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("{what} cannot be started"))?;
        let stdout = child.stdout.take().context("standard output")?;
        let mut running = Self { child };
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        while lines.read_line(&mut line)? > 0 {
            if let Some(found) = ready(line.trim()) {
                // Whatever else it prints is read, so that it never blocks.
                std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
                return Ok((running, found));
            }
            line.clear();
        }
        let status = running.child.wait()?;
        bail!("{what} ended before it was ready ({status})")
    }

    /// A program that was started already.
    pub fn of(child: Child) -> Self {
        Self { child }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it end by itself: asks by signal, and waits.
    pub fn stop(mut self) -> Result<()> {
        must(Command::new("kill").arg(self.child.id().to_string()))?;
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address in Nexus's line `ready on http://…`.
pub fn nexus_ready(line: &str) -> Option<String> {
    line.strip_prefix("ready on ").map(str::to_owned)
}
