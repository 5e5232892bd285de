//! `cargo xtask languages`: the tests' functions in JavaScript and Python, which are too large to be in the repository.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::ci::target;
use crate::process::{cargo, must, output, root};

/// The package of npm that makes components of JavaScript (StarlingMonkey).
const JAVASCRIPT: &str = "@bytecodealliance/componentize-js@0.23.0";
/// The package of PyPI that makes components of Python (CPython).
const PYTHON: &str = "componentize-py==0.25.1";
/// The version of WASI that StarlingMonkey is built for.
const WASI: &str = "0.2.10";

const WORLD: &str = "package nexus:languages;\n\nworld app {\n  include wasi:http/proxy@0.2.10;\n}\n";

/// The folder with `javascript.wasm` and `python.wasm`: the one that is named, or else one that they are built in, unless they are
/// there already.
pub fn run() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("NEXUS_LANGUAGES") {
        return Ok(named.into());
    }
    let folder = target().join("tools/languages");
    let sources = root().join("tests/guests/languages");
    let stamp = stamp(&sources)?;
    if std::fs::read_to_string(folder.join("stamp")).is_ok_and(|have| have == stamp) {
        return Ok(folder);
    }
    println!("building the tests' functions in JavaScript and Python in {}", folder.display());
    std::fs::create_dir_all(&folder)?;
    let wit = wit(&folder)?;
    javascript(&folder, &sources, &wit).context("no component of JavaScript; it needs node and npm")?;
    python(&folder, &sources, &wit).context("no component of Python; it needs python3 with pip")?;
    std::fs::write(folder.join("stamp"), stamp)?;
    Ok(folder)
}

/// What they are built from.
fn stamp(sources: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for file in ["app.js", "app.py", "build.mjs"] {
        hash.update(std::fs::read(sources.join(file)).with_context(|| format!("tests/guests/languages/{file}"))?);
    }
    Ok(format!("{JAVASCRIPT} {PYTHON} {WASI} {:x}", hash.finalize()))
}

/// The definitions of WASI: those that the engine's own crate has, under the version that is asked for. They differ in nothing else.
fn wit(folder: &Path) -> Result<PathBuf> {
    let metadata = output(&mut cargo(&["metadata", "--format-version", "1", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let crates = metadata["packages"].as_array().context("cargo's metadata has no packages")?;
    let http = crates.iter().find(|package| package["name"] == "wasmtime-wasi-http");
    let manifest =
        http.and_then(|package| package["manifest_path"].as_str()).context("wasmtime-wasi-http is not used")?;
    let from = Path::new(manifest).with_file_name("wit/deps");
    let wit = folder.join("wit");
    let deps = wit.join("deps");
    std::fs::create_dir_all(&deps)?;
    std::fs::write(wit.join("world.wit"), WORLD)?;
    for entry in std::fs::read_dir(&from).with_context(|| from.display().to_string())? {
        let path = entry?.path();
        let (Some(name), text) = (path.file_name(), std::fs::read_to_string(&path)?) else { continue };
        let version =
            text.lines().next().and_then(|line| line.trim_end_matches(';').rsplit('@').next().map(str::to_owned));
        let Some(version) = version else { bail!("{} names no version", path.display()) };
        std::fs::write(deps.join(name), text.replace(&version, WASI))?;
    }
    Ok(wit)
}

fn javascript(folder: &Path, sources: &Path, wit: &Path) -> Result<()> {
    let npm = folder.join("npm");
    std::fs::create_dir_all(&npm)?;
    let install = ["install", "--silent", "--no-audit", "--no-fund", "--prefix"];
    must(Command::new("npm").args(install).arg(&npm).arg(JAVASCRIPT))?;
    // Packages are looked for from where the program is.
    let program = npm.join("build.mjs");
    std::fs::copy(sources.join("build.mjs"), &program)?;
    must(Command::new("node").arg(&program).arg(sources.join("app.js")).arg(wit).arg(folder.join("javascript.wasm")))
}

fn python(folder: &Path, sources: &Path, wit: &Path) -> Result<()> {
    let pip = folder.join("pip");
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--target"];
    must(Command::new("python3").args(install).arg(&pip).arg(PYTHON))?;
    let mut build = Command::new(pip.join("bin/componentize-py"));
    build.env("PYTHONPATH", &pip).env("RUST_BACKTRACE", "0").arg("-d").arg(wit).args([
        "-w",
        "app",
        "componentize",
        "-p",
    ]);
    must(build.arg(sources).args(["app", "-o"]).arg(folder.join("python.wasm")))
}
