//! `nexus new`: a function from a template that is part of the program.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use nexus_core::ids::FunctionName;

use super::style::say;
use super::{Done, Failure};

#[derive(Clone, Copy, ValueEnum)]
enum Template {
    /// A Rust function of the narrow world `nexus:function`: an event in, an outcome out
    Rust,
    /// A Rust function of the standard world `wasi:http`
    RustHttp,
}

/// Arguments of `nexus new`.
#[derive(Args)]
pub struct NewArgs {
    /// The template
    #[arg(value_enum)]
    template: Template,
    /// The function's name; its folder is made here
    name: FunctionName,
    /// Where to make the folder
    #[arg(long, default_value = ".")]
    dir: PathBuf,
}

type Files = &'static [(&'static str, &'static str)];

const RUST: Files = &[
    ("Cargo.toml", include_str!("../../templates/rust/Cargo.toml")),
    ("README.md", include_str!("../../templates/rust/README.md")),
    ("nexus.toml", include_str!("../../templates/rust/nexus.toml")),
    ("src/lib.rs", include_str!("../../templates/rust/src/lib.rs")),
    ("wit/nexus-function.wit", include_str!("../../templates/rust/wit/nexus-function.wit")),
    (".gitignore", "/target\n*.wasm\n"),
];

const RUST_HTTP: Files = &[
    ("Cargo.toml", include_str!("../../templates/rust-http/Cargo.toml")),
    ("README.md", include_str!("../../templates/rust-http/README.md")),
    ("nexus.toml", include_str!("../../templates/rust-http/nexus.toml")),
    ("src/lib.rs", include_str!("../../templates/rust-http/src/lib.rs")),
    (".gitignore", "/target\n*.wasm\n"),
];

pub fn run(args: &NewArgs) -> Done {
    let dir = args.dir.join(args.name.as_str());
    if dir.exists() {
        return Err(Failure::failed(format!("{} exists already; choose another name", dir.display())));
    }
    let files = match args.template {
        Template::Rust => RUST,
        Template::RustHttp => RUST_HTTP,
    };
    for (path, text) in files {
        write(&dir.join(path), &text.replace("{{name}}", args.name.as_str()))?;
    }
    say!("made {0}\nnext:\n  nexus build {0}\n  nexus deploy {0}", dir.display());
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}", path.display()));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    std::fs::write(path, text).map_err(failed)
}
