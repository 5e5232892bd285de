//! `cargo xtask build-ebpf`: builds the probes, bit for bit reproducibly, and keeps the object beside the collector.
//!
//! Beside `collector/probes/nexus.bpf.o` lie `nexus.bpf.o.sha256` (for `sha256sum -c`) and `nexus.bpf.o.source`, which names
//! the hash of the sources and the tools. So a machine without any eBPF tool can tell a stale object, see
//! [`check_source_hash`].

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

const TARGET: &str = "bpfel-unknown-none";

/// What to install where [`find_toolchain`] finds nothing.
const RECIPES: &str = "no Rust toolchain here can build for bpfel-unknown-none. Either of these is enough:

  Debian:     apt-get install --no-install-recommends rustc-web libstd-rust-web-dev-bpf
              cargo install bpf-linker --version 0.10.4 --locked
  elsewhere:  rustup toolchain install nightly --component rust-src
              cargo install bpf-linker --version 0.10.4 --locked

NEXUS_EBPF_RUSTC may name the rustc to use. Nexus itself needs none of this: the built object is in the repository.";

/// A rustc that can build the probes, and where their `core` comes from.
struct Toolchain {
    rustc: PathBuf,
    core: Core,
}

enum Core {
    /// Installed for the target.
    Prebuilt,
    /// Built from `rust-src`, by this toolchain's cargo.
    FromSource { cargo: PathBuf },
}

/// Builds the probes and writes them to `collector/probes`; with `check`, only compares the bytes with what is there.
pub fn run(check: bool) -> Result<()> {
    let root = root()?;
    let probes = root.join("collector/probes");
    let object_path = probes.join("nexus.bpf.o");
    let toolchain = find_toolchain().context(RECIPES)?;
    let tools = tool_versions(&toolchain)?;
    let object = build(&root, &toolchain)?;
    let hash = hex::encode(Sha256::digest(&object));
    let source = format!("source {}\n{tools}", source_hash(&root)?);

    if check {
        let committed = fs::read(&object_path).with_context(|| format!("reading {}", object_path.display()))?;
        let committed_hash = hex::encode(Sha256::digest(&committed));
        let recorded = fs::read_to_string(probes.join("nexus.bpf.o.source")).unwrap_or_default();
        if committed != object {
            let built_with = recorded.lines().skip(1).collect::<Vec<_>>().join(", ");
            let here = tools.lines().collect::<Vec<_>>().join(", ");
            let hint = if built_with == here {
                "run `cargo xtask build-ebpf` and commit the result".to_owned()
            } else {
                format!("the tools differ, which alone can change the bytes: built with {built_with}; here {here}")
            };
            bail!("collector/probes/nexus.bpf.o is {committed_hash}, its sources give {hash}: {hint}");
        }
        check_source_hash()?;
        println!("collector/probes/nexus.bpf.o is what its sources give: {hash}");
        return Ok(());
    }

    fs::create_dir_all(&probes)?;
    fs::write(&object_path, &object)?;
    fs::write(probes.join("nexus.bpf.o.sha256"), format!("{hash}  nexus.bpf.o\n"))?;
    fs::write(probes.join("nexus.bpf.o.source"), source)?;
    println!("collector/probes/nexus.bpf.o: {} bytes, {hash}", object.len());
    Ok(())
}

/// Fails if the committed object was not built from the sources that lie here, or is not the one that was built.
pub fn check_source_hash() -> Result<()> {
    let root = root()?;
    let probes = root.join("collector/probes");
    let recorded = fs::read_to_string(probes.join("nexus.bpf.o.source")).context("reading nexus.bpf.o.source")?;
    let recorded = recorded.lines().next().and_then(|line| line.strip_prefix("source ")).unwrap_or_default();
    ensure!(
        recorded == source_hash(&root)?,
        "collector/probes/nexus.bpf.o is stale: nexus-ebpf or nexus-ebpf-common changed since. Run `cargo xtask build-ebpf`"
    );
    let object = fs::read(probes.join("nexus.bpf.o")).context("reading nexus.bpf.o")?;
    let expected = fs::read_to_string(probes.join("nexus.bpf.o.sha256")).context("reading nexus.bpf.o.sha256")?;
    ensure!(
        expected.split_whitespace().next() == Some(hex::encode(Sha256::digest(&object)).as_str()),
        "collector/probes/nexus.bpf.o does not match its .sha256. Run `cargo xtask build-ebpf`"
    );
    Ok(())
}

fn root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.canonicalize().with_context(|| format!("finding the workspace at {}", root.display()))
}

/// The hash over everything that is ours and goes into the object: both crates, the profile, and the versions of aya.
fn source_hash(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for folder in ["nexus-ebpf", "nexus-ebpf-common"] {
        list(&root.join(folder), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    let mut feed = |name: &str, content: &[u8]| {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    };
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        feed(&name, &fs::read(&file).with_context(|| format!("reading {}", file.display()))?);
    }
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("reading Cargo.lock")?;
    for package in lock.split("[[package]]") {
        if package.contains("name = \"aya-ebpf") || package.contains("name = \"aya-log-ebpf") {
            feed("Cargo.lock", package.trim().as_bytes());
        }
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("reading Cargo.toml")?;
    let profile = manifest.split("[profile.ebpf]").nth(1).unwrap_or_default();
    feed("profile.ebpf", profile.split("\n[").next().unwrap_or_default().trim().as_bytes());
    Ok(hex::encode(hash.finalize()))
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if path.extension().is_some_and(|ext| ext == "rs" || ext == "toml") {
            files.push(path);
        }
    }
    Ok(())
}

/// Looks for a toolchain: one with `core` for the target first, then one with `rust-src`.
fn find_toolchain() -> Option<Toolchain> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    candidates.extend(env::var_os("NEXUS_EBPF_RUSTC").map(PathBuf::from));
    candidates.extend(["rustc", "/usr/bin/rustc"].map(PathBuf::from));
    let nightly = output(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]));
    candidates.extend(nightly.map(PathBuf::from));

    let prebuilt = candidates.iter().find(|rustc| has_prebuilt_core(rustc));
    if let Some(rustc) = prebuilt {
        return Some(Toolchain { rustc: rustc.clone(), core: Core::Prebuilt });
    }
    candidates.into_iter().find_map(|rustc| {
        let sysroot = sysroot(&rustc)?;
        let cargo = sysroot.join("bin/cargo");
        (sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").exists() && cargo.exists())
            .then_some(Toolchain { rustc: sysroot.join("bin/rustc"), core: Core::FromSource { cargo } })
    })
}

fn has_prebuilt_core(rustc: &Path) -> bool {
    let libdir = output(Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]));
    let Some(Ok(entries)) = libdir.map(fs::read_dir) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    })
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    output(Command::new(rustc).args(["--print", "sysroot"])).map(PathBuf::from)
}

fn tool_versions(toolchain: &Toolchain) -> Result<String> {
    let rustc = output(Command::new(&toolchain.rustc).arg("--version")).context("asking rustc for its version")?;
    let linker = output(with_llvm(Command::new("bpf-linker").arg("--version")))
        .context("bpf-linker is missing: cargo install bpf-linker --version 0.10.4 --locked")?;
    Ok(format!("{rustc}\n{linker}\n"))
}

/// Builds the object and takes the DWARF out of it, which the kernel does not read; BTF stays.
fn build(root: &Path, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let target_dir = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("ebpf");
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;

    // No path of this machine may get into the object: it would differ on the next one. The last match wins in rustc.
    let mut remap: Vec<(PathBuf, &str)> =
        vec![(cargo_home.clone(), "cargo"), (root.to_path_buf(), "."), (target_dir.clone(), "target")];
    if let Some(sysroot) = sysroot(&toolchain.rustc) {
        remap.push((sysroot, "sysroot"));
    }
    // The registry's folder is named for its host, which may be a mirror.
    for registry in fs::read_dir(cargo_home.join("registry/src")).into_iter().flatten().flatten() {
        remap.push((registry.path(), "crates"));
    }
    let mut flags: Vec<OsString> =
        ["-C", "linker=bpf-linker", "-C", "link-arg=--btf", "-C", "debuginfo=2"].map(Into::into).into();
    for (from, to) in remap {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    }

    let mut command = match &toolchain.core {
        Core::Prebuilt => Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())),
        Core::FromSource { cargo } => {
            let mut command = Command::new(cargo);
            command.arg("-Zbuild-std=core");
            command
        }
    };
    command
        .current_dir(root)
        .args(["build", "--package", "nexus-ebpf", "--profile", "ebpf", "--target", TARGET, "--locked"])
        .env("RUSTC", &toolchain.rustc)
        // aya-ebpf and core itself use unstable features of the compiler.
        .env("RUSTC_BOOTSTRAP", if matches!(toolchain.core, Core::Prebuilt) { "aya_ebpf" } else { "1" })
        .env("CARGO_TARGET_DIR", &target_dir)
        // Before every other source of flags, so that the environment has no say in the bytes.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(std::ffi::OsStr::new("\u{1f}")))
        .env_remove("RUSTFLAGS")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    let status = with_llvm(&mut command).status().context("starting cargo")?;
    ensure!(status.success(), "building the probes failed: {status}");

    let built = target_dir.join(TARGET).join("ebpf/nexus-ebpf");
    let stripped = target_dir.join("nexus.bpf.o");
    strip(&built, &stripped)?;
    fs::read(&stripped).with_context(|| format!("reading {}", stripped.display()))
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    let mut tools: Vec<PathBuf> = ["llvm-objcopy"].map(PathBuf::from).into();
    if let Some(sysroot) = sysroot(Path::new("rustc")) {
        let host = output(Command::new("rustc").args(["--print", "host-tuple"])).unwrap_or_default();
        tools.push(sysroot.join("lib/rustlib").join(host).join("bin/rust-objcopy"));
    }
    for tool in tools {
        let mut command = Command::new(&tool);
        command.arg("--strip-debug").arg(from).arg(to).stderr(Stdio::null());
        // LLVM's releases write the same bytes here.
        if with_llvm(&mut command).status().is_ok_and(|status| status.success()) {
            return Ok(());
        }
    }
    bail!("neither llvm-objcopy (Debian: llvm) nor rustup's rust-objcopy could strip {}", from.display())
}

/// Lets a tool find the LLVM library of the Rust toolchain, which bpf-linker and rust-objcopy load.
fn with_llvm(command: &mut Command) -> &mut Command {
    if let Some(sysroot) = sysroot(Path::new("rustc")) {
        let mut path = sysroot.join("lib").into_os_string();
        if let Some(rest) = env::var_os("LD_LIBRARY_PATH") {
            path.push(":");
            path.push(rest);
        }
        command.env("LD_LIBRARY_PATH", path);
    }
    command
}

/// The first line that a command prints, if it succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}
