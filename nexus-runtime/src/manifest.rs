//! `nexus.toml`: a function beside its component, for `nexus deploy DIR` and `nexus dev DIR`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use nexus_core::function::FunctionConfig;
use nexus_core::ids::FunctionName;
use serde::Deserialize;

/// The file's name.
pub const FILE: &str = "nexus.toml";
/// How deep below its folder `nexus dev` looks.
const DEPTH_MAX: usize = 4;

/// A function as its folder describes it.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The function's name.
    pub name: FunctionName,
    /// The component.
    pub wasm: PathBuf,
    /// How it may run.
    pub config: FunctionConfig,
}

#[derive(Deserialize)]
struct Raw {
    name: FunctionName,
    wasm: Option<PathBuf>,
    /// Read by `nexus build`.
    #[serde(default, rename = "build")]
    _build: toml::Table,
    #[serde(flatten)]
    rest: toml::Table,
}

impl Manifest {
    /// Reads a `nexus.toml`. Unknown keys are errors.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let named = |e: toml::de::Error| anyhow::anyhow!("{}: {}", path.display(), e.message().trim());
        let raw: Raw = toml::from_str(&text).map_err(named)?;
        let config: FunctionConfig = raw.rest.try_into().map_err(named)?;
        config.validate().with_context(|| path.display().to_string())?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let wasm = dir.join(raw.wasm.unwrap_or_else(|| format!("{}.wasm", raw.name).into()));
        Ok(Self { name: raw.name, wasm, config })
    }

    /// Every `nexus.toml` in a folder and below, sorted; what cargo builds is not looked at.
    pub fn find(dir: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(dir, 0, &mut found);
        found.sort();
        found
    }
}

fn walk(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let manifest = dir.join(FILE);
    if manifest.is_file() {
        found.push(manifest);
    }
    if depth == DEPTH_MAX {
        return;
    }
    // A folder that cannot be read has no functions for us.
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let hidden = name.to_string_lossy().starts_with('.');
        if entry.file_type().is_ok_and(|t| t.is_dir()) && !hidden && name != "target" && name != "node_modules" {
            walk(&entry.path(), depth + 1, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Manifest> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join(FILE);
        std::fs::write(&path, text)?;
        Manifest::read(&path)
    }

    #[test]
    fn a_manifest() {
        let manifest = read(
            r#"
            name = "order-check"
            triggers = [{ filters = [{ exact = { type = "order.created" } }] }]
            [env]
            LIMIT = "5"
            [build]
            target = "wasm32-wasip1"
            "#,
        )
        .expect("manifest");
        assert_eq!(manifest.config.triggers.len(), 1);
        assert!(manifest.wasm.ends_with("order-check.wasm"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("name = \"A\"", "function name"),
            ("name = \"a\"\ntrigers = []", "trigers"),
            ("name = \"a\"\n[limits]\nmemory_mb = 0", "limits.memory_mb"),
            ("wasm = \"a.wasm\"", "name"),
            ("name = \"a\"\ntriggers = [{ filters = [{ exact = {} }] }]", "exact"),
        ] {
            let error = format!("{:#}", read(text).expect_err(text));
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
