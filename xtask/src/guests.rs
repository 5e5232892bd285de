//! `cargo xtask guests`: builds the example functions and the test fixtures, and keeps account of what was built from what.
//!
//! The built components are in the repository, so that nobody needs a WebAssembly toolchain to run or test Nexus. What keeps them
//! honest is the manifest: for each guest the SHA-256 of its sources and of its component. A changed source without a new component is
//! then seen by [`check_source_hashes`], which needs no toolchain, and a component that its source does not build by `--check`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// A crate that `nexus build` makes a component of, named as its folder is.
struct Guest {
    /// The folder, from the repository's root.
    dir: &'static str,
    /// Files outside the crate's own sources that its component is made of.
    shared: &'static [&'static str],
}

/// The WIT package of the narrow world.
const WIT: &str = "wit/nexus-function.wit";
/// The copy of it that a new function is given.
const TEMPLATE_WIT: &str = "nexus-runtime/templates/rust/wit/nexus-function.wit";
/// The allocator of the guests without a standard library.
const BUMP: &str = "tests/guests/bump.rs";

const GUESTS: [Guest; 10] = [
    Guest { dir: "examples/order-check", shared: &[WIT] },
    Guest { dir: "examples/thumbnail", shared: &[] },
    Guest { dir: "examples/webhook-forward", shared: &[] },
    Guest { dir: "tests/guests/cli", shared: &[] },
    Guest { dir: "tests/guests/cli-p1", shared: &["tests/guests/cli/src/main.rs"] },
    Guest { dir: "tests/guests/hello-http", shared: &[BUMP] },
    Guest { dir: "tests/guests/noop", shared: &[BUMP, WIT] },
    Guest { dir: "tests/guests/order-check-flawed", shared: &["examples/order-check/src/order.rs", WIT] },
    Guest { dir: "tests/guests/probe", shared: &[] },
    Guest { dir: "tests/guests/script", shared: &[] },
];

/// Folders whose every crate must be in [`GUESTS`].
const GUEST_FOLDERS: [&str; 2] = ["examples", "tests/guests"];

const MANIFEST: &str = "tests/guests/manifest.txt";

/// Builds every guest and writes the manifest; with `check`, builds them elsewhere and fails where the committed bytes differ.
pub fn run(check: bool) -> Result<()> {
    let root = root();
    check_completeness(&root)?;
    if check { rebuild_and_compare(&root) } else { rebuild(&root) }
}

/// Fails where a guest's sources or its component are not those of the manifest. Needs no WebAssembly toolchain.
pub fn check_source_hashes() -> Result<()> {
    let root = root();
    check_completeness(&root)?;
    let recorded = Manifest::read(&root)?;
    let mut stale = Vec::new();
    for guest in &GUESTS {
        let now = Hashes::of(&root, guest)?;
        match recorded.guests.get(guest.dir) {
            None => stale.push(format!("{} is not in {MANIFEST}", guest.dir)),
            Some(then) if then.sources != now.sources => {
                stale.push(format!("{} has changed since its component was built", guest.dir));
            }
            Some(then) if then.wasm != now.wasm => {
                stale.push(format!("{} is not the component that was built", guest.wasm()));
            }
            Some(_) => {}
        }
    }
    ensure!(stale.is_empty(), "{}: run `cargo xtask guests`", stale.join("; "));
    Ok(())
}

fn rebuild(root: &Path) -> Result<()> {
    let target_dir = target_dir(root).join("guests");
    for guest in &GUESTS {
        build(root, &root.join(guest.dir), &target_dir)?;
    }
    let mut manifest = Manifest { compiler: compiler()?, guests: BTreeMap::new() };
    for guest in &GUESTS {
        manifest.guests.insert(guest.dir.to_owned(), Hashes::of(root, guest)?);
    }
    manifest.write(root)
}

/// Builds from copies in a folder of another name, which shows as well that no path of this machine gets into a component.
fn rebuild_and_compare(root: &Path) -> Result<()> {
    check_source_hashes()?;
    let recorded = Manifest::read(root)?;
    let compiler = compiler()?;
    ensure!(
        recorded.compiler == compiler,
        "the guests were built with {}, and here is {compiler}, which makes other bytes of the same source: \
         use the first, or rebuild all with `cargo xtask guests`",
        recorded.compiler
    );

    let copy = std::env::temp_dir().join(format!("nexus-guests-{}", std::process::id()));
    let result = compare_builds(root, &copy);
    let removed = std::fs::remove_dir_all(&copy);
    result?;
    removed.with_context(|| format!("{} can't be removed", copy.display()))
}

fn compare_builds(root: &Path, copy: &Path) -> Result<()> {
    for guest in &GUESTS {
        for file in guest.files(root)?.iter().chain([&format!("{}/nexus.toml", guest.dir)]) {
            let to = copy.join(file);
            let folder = to.parent().context("a file without a folder")?;
            std::fs::create_dir_all(folder)?;
            std::fs::copy(root.join(file), &to).with_context(|| format!("{file} can't be copied"))?;
        }
    }
    let mut different = Vec::new();
    for guest in &GUESTS {
        build(root, &copy.join(guest.dir), &copy.join("target"))?;
        if std::fs::read(copy.join(guest.wasm()))? != std::fs::read(root.join(guest.wasm()))? {
            different.push(guest.wasm());
        }
    }
    ensure!(different.is_empty(), "not what their sources build: {}", different.join(", "));
    Ok(())
}

/// Runs `nexus build`, as a user would. The guests share a target folder, and with it the standard library.
fn build(root: &Path, dir: &Path, guests_target_dir: &Path) -> Result<()> {
    let status = Command::new(cargo())
        .current_dir(root)
        .args(["run", "--quiet", "--package", "nexus-runtime", "--target-dir"])
        .arg(target_dir(root))
        .args(["--", "build"])
        .arg(dir)
        // For the cargo that `nexus build` runs: the one above has been told on its command line.
        .env("CARGO_TARGET_DIR", guests_target_dir)
        .status()
        .context("cargo could not be started")?;
    ensure!(status.success(), "`nexus build {}` failed", dir.display());
    Ok(())
}

/// The compiler that `nexus build` chooses, and its version: another one makes other bytes.
fn compiler() -> Result<String> {
    let usual = "rustc";
    let target_library = output(usual, &["--print", "target-libdir", "--target", "wasm32-wasip2"]).unwrap_or_default();
    let chosen =
        if !target_library.is_empty() && Path::new(&target_library).is_dir() { usual } else { "/usr/bin/rustc" };
    output(chosen, &["--version"]).with_context(|| format!("{chosen} can't be asked for its version"))
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// Fails where a folder has a crate that is not in the list, or a template a copy that is not one: both would go unnoticed for long.
fn check_completeness(root: &Path) -> Result<()> {
    for folder in GUEST_FOLDERS {
        for entry in std::fs::read_dir(root.join(folder)).with_context(|| format!("{folder} can't be read"))? {
            let entry = entry?;
            let dir = format!("{folder}/{}", entry.file_name().to_string_lossy());
            let listed = GUESTS.iter().any(|guest| guest.dir == dir);
            ensure!(
                listed || !entry.path().join("Cargo.toml").is_file(),
                "{dir} is not in the list of xtask/src/guests.rs"
            );
        }
    }
    let same = std::fs::read(root.join(WIT))? == std::fs::read(root.join(TEMPLATE_WIT))?;
    ensure!(same, "{TEMPLATE_WIT} is not a copy of {WIT}");
    Ok(())
}

impl Guest {
    /// The component, from the repository's root: in the guest's folder, and named after it.
    fn wasm(&self) -> String {
        let name = self.dir.rsplit('/').next().unwrap_or(self.dir);
        format!("{}/{name}.wasm", self.dir)
    }

    /// The files that the component is made of, from the repository's root, in a fixed order.
    ///
    /// Samples, READMEs and `nexus.toml` are not among them: to change how a function is deployed is not to change the function.
    fn files(&self, root: &Path) -> Result<Vec<String>> {
        let mut files: Vec<String> = self.shared.iter().map(|&file| file.to_owned()).collect();
        for name in ["Cargo.toml", "Cargo.lock", "build.rs"] {
            let file = format!("{}/{name}", self.dir);
            if root.join(&file).is_file() {
                files.push(file);
            }
        }
        let mut folders = vec![format!("{}/src", self.dir)];
        while let Some(folder) = folders.pop() {
            if !root.join(&folder).is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(root.join(&folder))? {
                let entry = entry?;
                let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
                if entry.file_type()?.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        Ok(files)
    }
}

/// What a guest is made of and what it was made into, each as SHA-256 in hexadecimal.
struct Hashes {
    sources: String,
    wasm: String,
}

impl Hashes {
    fn of(root: &Path, guest: &Guest) -> Result<Hashes> {
        let mut sources = Sha256::new();
        for file in guest.files(root)? {
            let bytes = std::fs::read(root.join(&file)).with_context(|| format!("{file} can't be read"))?;
            // The lengths keep the end of one file and the start of the next apart.
            sources.update(format!("{file}\0{}\0", bytes.len()));
            sources.update(&bytes);
        }
        let wasm = std::fs::read(root.join(guest.wasm())).with_context(|| format!("{} is missing", guest.wasm()))?;
        Ok(Hashes { sources: hex::encode(sources.finalize()), wasm: hex::encode(Sha256::digest(wasm)) })
    }
}

/// The file that is kept in the repository: a line for the compiler, and one for each guest.
struct Manifest {
    compiler: String,
    guests: BTreeMap<String, Hashes>,
}

impl Manifest {
    fn read(root: &Path) -> Result<Manifest> {
        let text = std::fs::read_to_string(root.join(MANIFEST)).with_context(|| format!("{MANIFEST} can't be read"))?;
        Manifest::parse(&text)
    }

    fn write(&self, root: &Path) -> Result<()> {
        std::fs::write(root.join(MANIFEST), self.text()).with_context(|| format!("{MANIFEST} can't be written"))
    }

    fn text(&self) -> String {
        let mut text = String::from(
            "# Written by `cargo xtask guests`: what the components in the repository were built from, and with what.\n\
             # guest, SHA-256 of its sources, SHA-256 of its component\n",
        );
        // Writing to a string can't fail.
        let _ = writeln!(text, "compiler {}", self.compiler);
        for (dir, hashes) in &self.guests {
            let _ = writeln!(text, "{dir} {} {}", hashes.sources, hashes.wasm);
        }
        text
    }

    fn parse(text: &str) -> Result<Manifest> {
        let mut compiler = None;
        let mut guests = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix("compiler ") {
                compiler = Some(name.to_owned());
                continue;
            }
            let [dir, sources, wasm] = line.split(' ').collect::<Vec<_>>()[..] else {
                bail!("{MANIFEST} has a line that is none of its own: {line:?}");
            };
            guests.insert(dir.to_owned(), Hashes { sources: sources.to_owned(), wasm: wasm.to_owned() });
        }
        Ok(Manifest { compiler: compiler.with_context(|| format!("{MANIFEST} names no compiler"))?, guests })
    }
}

fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// The workspace's own target folder.
fn target_dir(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_components_are_of_the_committed_sources() {
        check_source_hashes().expect("the guests are up to date");
    }

    #[test]
    fn a_manifest_reads_as_it_was_written() {
        let hashes = Hashes { sources: "ab".into(), wasm: "cd".into() };
        let guests = BTreeMap::from([("examples/x".to_owned(), hashes)]);
        let written = Manifest { compiler: "rustc 1.96.0 (abc 2026-05-25)".into(), guests }.text();
        let read = Manifest::parse(&written).expect("a manifest");
        assert_eq!(read.text(), written);
        assert!(Manifest::parse("examples/x only-one-hash").is_err());
        assert!(Manifest::parse("").is_err());
    }
}
