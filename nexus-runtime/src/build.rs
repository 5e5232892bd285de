//! `nexus build`: makes the component of a Rust function out of its folder.
//!
//! There are two ways to a Rust compiler for WebAssembly. The usual one is rustup's target. Where rustup can fetch nothing, Debian's
//! packages do: their compiler builds the standard library from its source, and the linker that rustup's toolchain carries wraps the
//! result into a component. [`Recipe::find`] takes the first that is there.
//!
//! The same source gives the same bytes, in whatever folder it lies: paths are mapped to fixed names, so that a built component
//! that is kept in a repository can be checked against its source.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// Builds the function in `dir` and returns the path of the component (or preview-1 module) that was written.
///
/// The folder holds a `Cargo.toml` and, in most cases, a `nexus.toml`. What is done is said on standard error, where cargo's own
/// messages go as well.
pub fn build(dir: &Path) -> Result<PathBuf> {
    let dir = dir.canonicalize().with_context(|| format!("there is no folder {}", dir.display()))?;
    let function = Function::read(&dir)?;
    let recipe = Recipe::find(&dir, function.target)?;
    eprintln!("building {} as a {} with {recipe}", function.name, function.target.product());

    let target_dir = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| dir.join("target"), PathBuf::from);
    let mut cargo = cargo();
    cargo.current_dir(&dir).arg("rustc").arg("--release").args(function.artifact.selection());
    cargo.arg("--target").arg(recipe.triple(function.target)).arg("--target-dir").arg(&target_dir);
    recipe.configure(&mut cargo, &function, &dir)?;
    let status = cargo.status().context("cargo could not be started: is Rust installed (https://rustup.rs)?")?;
    ensure!(status.success(), "cargo could not build {}: its messages are above", dir.display());

    let built = target_dir.join(recipe.triple(function.target)).join("release").join(function.artifact.file_name());
    let bytes = std::fs::read(&built).with_context(|| format!("cargo left no {}", built.display()))?;
    function.target.check(&bytes).with_context(|| format!("{} is not what was asked for", built.display()))?;
    write_whole(&function.wasm, &bytes)?;
    eprintln!("wrote {} ({} kB)", function.wasm.display(), bytes.len().div_ceil(1000));
    Ok(function.wasm)
}

/// The cargo that runs this program, where one does, or else the one on the path.
fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// What the two files in the folder say about the build.
struct Function {
    name: String,
    artifact: Artifact,
    target: Target,
    /// Where the result goes.
    wasm: PathBuf,
}

/// The part of `nexus.toml` that a build needs. The other keys are for deploying, which checks them.
#[derive(Default, Deserialize)]
struct NexusToml {
    wasm: Option<PathBuf>,
    #[serde(default)]
    build: BuildSection,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BuildSection {
    #[serde(default)]
    target: Target,
}

/// What a function is built into, named as rustup names the target.
#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
enum Target {
    /// A component: `wasi:http`, `nexus:function` or `wasi:cli`, by what it exports.
    #[default]
    #[serde(rename = "wasm32-wasip2")]
    Component,
    /// A core module of WASI preview 1.
    #[serde(rename = "wasm32-wasip1")]
    Preview1,
}

impl Target {
    /// The target's name in rustup.
    fn triple(self) -> &'static str {
        match self {
            Target::Component => "wasm32-wasip2",
            Target::Preview1 => "wasm32-wasip1",
        }
    }

    fn product(self) -> &'static str {
        match self {
            Target::Component => "component",
            Target::Preview1 => "preview-1 module",
        }
    }

    /// Compares the first eight bytes, which tell a component from a module.
    fn check(self, bytes: &[u8]) -> Result<()> {
        let expected: &[u8] = match self {
            Target::Component => b"\0asm\x0d\0\x01\0",
            Target::Preview1 => b"\0asm\x01\0\0\0",
        };
        ensure!(bytes.starts_with(expected), "it is no {}", self.product());
        Ok(())
    }
}

/// Which of a crate's targets is the function.
#[derive(Debug, PartialEq)]
enum Artifact {
    /// A library that exports a handler, by the name of its file.
    Library(String),
    /// A program with `main`, by its name.
    Program(String),
}

impl Artifact {
    /// A crate may have both a library and a program. A library that asks to be a `cdylib` is the function then, since nothing but
    /// an export needs that.
    fn of(manifest: &CargoToml, has: impl Fn(&str) -> bool) -> Option<Artifact> {
        let library = || {
            let name = manifest.lib.as_ref().and_then(|lib| lib.name.clone());
            Some(Artifact::Library(name.unwrap_or_else(|| manifest.package.name.replace('-', "_"))))
        };
        if manifest.lib.as_ref().is_some_and(|lib| lib.crate_type.iter().any(|kind| kind == "cdylib")) {
            library()
        } else if let Some(bin) = manifest.bin.first() {
            Some(Artifact::Program(bin.name.clone()))
        } else if has("src/main.rs") {
            Some(Artifact::Program(manifest.package.name.clone()))
        } else if manifest.lib.is_some() || has("src/lib.rs") {
            library()
        } else {
            None
        }
    }

    /// The arguments that make `cargo rustc` build this one and nothing else.
    fn selection(&self) -> Vec<&OsStr> {
        match self {
            Artifact::Library(_) => ["--lib", "--crate-type", "cdylib"].map(OsStr::new).to_vec(),
            Artifact::Program(name) => vec![OsStr::new("--bin"), OsStr::new(name)],
        }
    }

    fn file_name(&self) -> String {
        match self {
            Artifact::Library(name) | Artifact::Program(name) => format!("{name}.wasm"),
        }
    }

    /// The part of wasi-libc that runs first.
    fn startup_object(&self) -> &'static str {
        match self {
            Artifact::Library(_) => "crt1-reactor.o",
            Artifact::Program(_) => "crt1-command.o",
        }
    }
}

/// The part of `Cargo.toml` that tells the function's name and kind.
#[derive(Deserialize)]
struct CargoToml {
    package: CargoPackage,
    lib: Option<CargoLib>,
    #[serde(default)]
    bin: Vec<CargoBin>,
}

#[derive(Deserialize)]
struct CargoPackage {
    name: String,
}

#[derive(Deserialize)]
struct CargoLib {
    name: Option<String>,
    #[serde(default, rename = "crate-type")]
    crate_type: Vec<String>,
}

#[derive(Deserialize)]
struct CargoBin {
    name: String,
}

impl Function {
    fn read(dir: &Path) -> Result<Function> {
        let manifest_path = dir.join("Cargo.toml");
        ensure!(
            manifest_path.is_file(),
            "{} has no Cargo.toml: nexus builds Rust functions; build others with their own tools and `nexus deploy` the component",
            dir.display()
        );
        let manifest: CargoToml = read_toml(&manifest_path)?;
        let settings_path = dir.join("nexus.toml");
        let settings = if settings_path.is_file() { read_toml(&settings_path)? } else { NexusToml::default() };

        let name = manifest.package.name.clone();
        let Some(artifact) = Artifact::of(&manifest, |path| dir.join(path).is_file()) else {
            bail!("{} has neither src/lib.rs nor src/main.rs: there is nothing to build", dir.display());
        };
        let wasm = dir.join(settings.wasm.unwrap_or_else(|| format!("{name}.wasm").into()));
        Ok(Function { name, artifact, target: settings.build.target, wasm })
    }
}

fn read_toml<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not as it should be", path.display()))
}

/// How this machine compiles Rust to WebAssembly.
enum Recipe {
    /// A compiler that has the target's standard library, as `rustup target add` leaves it.
    Usual { rustc: PathBuf },
    /// A compiler that has the source of its standard library, and everything that a linked program needs besides.
    FromSource(FromSource),
}

/// Debian's packages, and the component linker.
struct FromSource {
    rustc: PathBuf,
    wasm_ld: PathBuf,
    /// Wraps a linked module into a component; absent where a preview-1 module is all that is asked for.
    component_ld: Option<PathBuf>,
    wasi_libc: PathBuf,
}

/// Where Debian's package `rustc-web` puts the compiler. Its name without a folder would be rustup's.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// Where Debian's package `wasi-libc` puts its archives.
const DEBIAN_WASI_LIBC: &str = "/usr/lib/wasm32-wasi";

impl Recipe {
    fn find(dir: &Path, target: Target) -> Result<Recipe> {
        let rustc = PathBuf::from(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        if has_standard_library(&rustc, dir, target.triple()) {
            return Ok(Recipe::Usual { rustc });
        }
        match FromSource::find(&rustc, dir, target) {
            Ok(found) => Ok(Recipe::FromSource(found)),
            Err(missing) => bail!(
                "this machine has no Rust for WebAssembly: `rustup target add {}`, or on Debian \
                 `apt install rustc-web rust-web-src lld-22 wasi-libc` beside a toolchain of rustup (missing: {missing})",
                target.triple()
            ),
        }
    }

    /// The target that cargo is given.
    ///
    /// From source a component is built as a preview-1 module, which the linker then wraps: Debian's wasi-libc dates from before
    /// preview 2, and a program for wasm32-wasip2 would lack the functions that its libc is to bring (`cabi_realloc` first of all).
    fn triple(&self, target: Target) -> &'static str {
        match self {
            Recipe::Usual { .. } => target.triple(),
            Recipe::FromSource(_) => Target::Preview1.triple(),
        }
    }

    /// Adds what depends on the recipe to the command, after its other arguments: the last are for the compiler alone.
    fn configure(&self, cargo: &mut Command, function: &Function, dir: &Path) -> Result<()> {
        let rustc = match self {
            Recipe::Usual { rustc } => rustc,
            Recipe::FromSource(tools) => &tools.rustc,
        };
        // Flags from outside would change the result, and cargo takes them in the place of those in its configuration.
        cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTC", rustc);
        let triple = self.triple(function.target);
        let everywhere = shared_path_mappings(rustc, dir)?;
        cargo.arg("--config").arg(format!("target.{triple}.rustflags={}", toml_strings(everywhere)));
        if let Recipe::FromSource(_) = self {
            cargo.env("RUSTC_BOOTSTRAP", "1").arg("-Zbuild-std=std,panic_abort").arg("-Zbuild-std-features=");
        }

        // The function's own folder is mapped here and not in the flags above, since those are part of what identifies a built
        // dependency: functions that share a target folder then share the standard library, which takes a minute to build.
        cargo.arg("--").arg(path_mapping(dir, "/function"));
        if let Recipe::FromSource(tools) = self {
            cargo.args(tools.link_arguments(function)?);
        }
        Ok(())
    }
}

impl std::fmt::Display for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Recipe::Usual { rustc } => write!(f, "{}", rustc.display()),
            Recipe::FromSource(tools) => {
                write!(
                    f,
                    "{} and a standard library built from source (a minute, the first time)",
                    tools.rustc.display()
                )
            }
        }
    }
}

impl FromSource {
    /// Looks for every piece; the error names the first that is missing.
    fn find(usual_rustc: &Path, dir: &Path, target: Target) -> Result<FromSource, &'static str> {
        let rustc = PathBuf::from(DEBIAN_RUSTC);
        let root = sysroot(&rustc, dir).ok_or("rustc-web")?;
        if !root.join("lib/rustlib/src/rust/library/Cargo.lock").is_file() {
            return Err("rust-web-src");
        }
        let wasi_libc = PathBuf::from(DEBIAN_WASI_LIBC);
        if !wasi_libc.join("libc.a").is_file() {
            return Err("wasi-libc");
        }
        let wasm_ld = find_wasm_ld().ok_or("lld-22")?;
        let component_ld = match target {
            Target::Preview1 => None,
            Target::Component => {
                Some(find_component_ld(usual_rustc, dir).ok_or("wasm-component-ld, which rustup's toolchains carry")?)
            }
        };
        Ok(FromSource { rustc, wasm_ld, component_ld, wasi_libc })
    }

    /// What rustc would pass on its own, had it been built with wasi-libc.
    fn link_arguments(&self, function: &Function) -> Result<Vec<OsString>> {
        let mut arguments: Vec<OsString> = vec!["-Clink-self-contained=no".into()];
        let mut add = |prefix: &str, value: &OsStr| {
            let mut argument = OsString::from(prefix);
            argument.push(value);
            arguments.push(argument);
        };
        match &self.component_ld {
            Some(component_ld) => {
                add("-Clinker=", component_ld.as_os_str());
                add("-Clink-arg=--wasm-ld-path=", self.wasm_ld.as_os_str());
            }
            None => add("-Clinker=", self.wasm_ld.as_os_str()),
        }
        add("-Clink-arg=", self.wasi_libc.join(function.artifact.startup_object()).as_os_str());
        add("-Clink-arg=-L", self.wasi_libc.as_os_str());
        add("-Clink-arg=", OsStr::new("-lc"));
        if self.component_ld.is_none() {
            arguments.push("-Clinker-flavor=wasm-ld".into());
        }
        Ok(arguments)
    }
}

/// Whether the compiler has the standard library of a target.
fn has_standard_library(rustc: &Path, dir: &Path, triple: &str) -> bool {
    let Some(folder) = ask(rustc, dir, &["--print", "target-libdir", "--target", triple]) else {
        return false;
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return false;
    };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
}

fn sysroot(rustc: &Path, dir: &Path) -> Option<PathBuf> {
    ask(rustc, dir, &["--print", "sysroot"]).map(PathBuf::from)
}

/// One line that the compiler answers, asked in the function's folder since rustup chooses the toolchain by it.
fn ask(rustc: &Path, dir: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(rustc).args(arguments).current_dir(dir).output().ok()?;
    if !output.status.success() {
        return None;
    }
    let line = String::from_utf8(output.stdout).ok()?;
    Some(line.trim().to_owned()).filter(|line| !line.is_empty())
}

/// LLVM's linker for WebAssembly, by preference the one of the same release as the compiler.
fn find_wasm_ld() -> Option<PathBuf> {
    ["wasm-ld-22", "wasm-ld", "wasm-ld-23", "wasm-ld-21"].into_iter().find_map(find_program)
}

/// The linker that makes components: installed on its own, or the one that every toolchain of rustup carries, used or not.
fn find_component_ld(rustc: &Path, dir: &Path) -> Option<PathBuf> {
    let name = "wasm-component-ld";
    find_program(name).or_else(|| {
        let rustlib = sysroot(rustc, dir)?.join("lib/rustlib");
        let hosts = std::fs::read_dir(rustlib).ok()?;
        hosts.flatten().map(|host| host.path().join("bin").join(name)).find(|path| path.is_file())
    })
}

fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The mappings that are the same for every function of this machine: where cargo keeps its crates, and the compiler its library.
fn shared_path_mappings(rustc: &Path, dir: &Path) -> Result<Vec<String>> {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
        .context("there is neither CARGO_HOME nor a home folder")?;
    let mut mappings = vec![path_mapping(&cargo_home, "/cargo")];
    // The folder of a registry is named for its host and a hash of its address, and both differ where crates come from a mirror.
    let mut registries = registry_folders(&cargo_home);
    if registries.is_empty() {
        // Nothing was ever downloaded: the names are known only after this build's crates are.
        let _ = cargo().arg("fetch").current_dir(dir).status();
        registries = registry_folders(&cargo_home);
    }
    mappings.extend(registries.iter().map(|registry| path_mapping(registry, "/cargo/registry")));
    if let Some(root) = sysroot(rustc, dir) {
        mappings.push(path_mapping(&root.join("lib/rustlib/src/rust"), "/rust"));
    }
    // Cargo's configuration is text, and so must these be.
    mappings.into_iter().map(|m| m.into_string().map_err(|m| anyhow::anyhow!("{} is not text", m.display()))).collect()
}

/// The folders into which cargo unpacked crates, one for each registry, in a fixed order.
fn registry_folders(cargo_home: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(cargo_home.join("registry/src")) else {
        return Vec::new();
    };
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    folders
}

/// Has the compiler write `to` where it would write `from`. Of several mappings that fit it takes the last.
fn path_mapping(from: &Path, to: &str) -> OsString {
    let mut mapping = OsString::from("--remap-path-prefix=");
    mapping.push(from);
    mapping.push("=");
    mapping.push(to);
    mapping
}

/// An array of strings as a value in TOML.
fn toml_strings(strings: Vec<String>) -> String {
    toml::Value::Array(strings.into_iter().map(toml::Value::String).collect()).to_string()
}

/// Writes a file so that whoever watches it sees the old bytes or the new ones, and never half of them.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().context("the component's path has no folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    let partial = path.with_extension("wasm.partial");
    std::fs::write(&partial, bytes).with_context(|| format!("{} can't be written", partial.display()))?;
    std::fs::rename(&partial, path).with_context(|| format!("{} can't be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(manifest: &str, files: &[&str], expected: Option<Artifact>) {
        let manifest: CargoToml = toml::from_str(manifest).expect("a manifest");
        assert_eq!(Artifact::of(&manifest, |path| files.contains(&path)), expected);
    }

    #[test]
    fn which_artifact_is_the_function() {
        let library = |name: &str| Some(Artifact::Library(name.into()));
        let program = |name: &str| Some(Artifact::Program(name.into()));
        check("[package]\nname = 'a-b'\n[lib]\ncrate-type = ['cdylib']", &["src/lib.rs"], library("a_b"));
        check("[package]\nname = 'a'\n[lib]\nname = 'c'\ncrate-type = ['cdylib']", &["src/main.rs"], library("c"));
        check("[package]\nname = 'a-b'", &["src/main.rs", "src/lib.rs"], program("a-b"));
        check("[package]\nname = 'a'\n[[bin]]\nname = 'run'\npath = 'x.rs'", &[], program("run"));
        check("[package]\nname = 'a-b'", &["src/lib.rs"], library("a_b"));
        check("[package]\nname = 'a'", &[], None);
    }

    #[test]
    fn a_wrong_target_is_an_error() {
        assert!(toml::from_str::<NexusToml>("[build]\ntarget = 'wasm64'").is_err());
        let settings: NexusToml = toml::from_str("name = 'x'\n[build]\ntarget = 'wasm32-wasip1'").expect("valid");
        assert!(settings.build.target == Target::Preview1);
    }

    #[test]
    fn the_header_tells_a_component_from_a_module() {
        assert!(Target::Component.check(b"\0asm\x0d\0\x01\0rest").is_ok());
        assert!(Target::Component.check(b"\0asm\x01\0\0\0rest").is_err());
        assert!(Target::Preview1.check(b"\0asm\x01\0\0\0").is_ok());
        assert!(Target::Preview1.check(b"#!/bin/sh").is_err());
    }
}
