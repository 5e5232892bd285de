//! The tests, and everything that has to pass.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process::{cargo, find, must};
use crate::tidy;

/// Programs that some tests compare with; Debian's packages of the same names.
const COMPARED_WITH: [&str; 4] = ["strace", "sqlite3", "git", "tar"];

/// The whole suite. What is missing is installed where that is possible, else named.
pub fn test(args: &[String]) -> Result<()> {
    prepare()?;
    let mut tests = cargo(&["test"]);
    must(tests.args(args).env("RUST_BACKTRACE", "0"))
}

fn prepare() -> Result<()> {
    let missing: Vec<_> = COMPARED_WITH.into_iter().filter(|p| find(p).is_none()).collect();
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
    bail!("the tests compare with {}: install it with `sudo {install}`", missing.join(", "))
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
