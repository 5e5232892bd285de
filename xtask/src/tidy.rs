//! Rules that no compiler checks.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::process::root;
use crate::{build_ebpf, guests};

/// The longest file of source, in lines. Aim at 400.
const LINES_MAX: usize = 650;

/// Who may use what: a crate, and the folders whose code may name it.
const ALLOWED: [(&str, &[&str]); 6] = [
    ("wasmtime", &["crates/nexus-engine/"]),
    ("wasmtime_wasi", &["crates/nexus-engine/"]),
    ("fjall", &["crates/nexus-log/"]),
    ("async_nats", &["crates/nexus-log/"]),
    ("aya", &["collector/"]),
    ("aya_ebpf", &["nexus-ebpf/"]),
];

/// Where `unsafe` may stand.
const UNSAFE_ALLOWED: [&str; 6] = [
    "nexus-ebpf/",
    "nexus-ebpf-common/",
    "collector/src/raw",
    "crates/nexus-engine/src/cache.rs",
    "crates/nexus-engine/src/socket.rs",
    "tests/guests/",
];

/// What `apt-get download` and `pip download` leave where they are called, and `git add` then takes.
const STRAY: [&str; 4] = ["deb", "whl", "gz", "zip"];

/// Checks them all, and names every offence.
pub fn run() -> Result<()> {
    let mut offences = Vec::new();
    for path in sources(&root())? {
        let shown = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        let text = std::fs::read_to_string(&path).with_context(|| shown.clone())?;
        check(&shown, &text, &mut offences);
    }
    for entry in std::fs::read_dir(root())? {
        let name = PathBuf::from(entry?.file_name());
        if name.extension().is_some_and(|e| STRAY.iter().any(|s| e == *s)) {
            offences.push(format!("{}: a package that was fetched; it belongs under target", name.display()));
        }
    }
    ensure!(offences.is_empty(), "tidy found {} offences:\n{}", offences.len(), offences.join("\n"));
    build_ebpf::check_source_hash()?;
    guests::check_source_hashes()?;
    println!("tidy");
    Ok(())
}

fn check(path: &str, text: &str, offences: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > LINES_MAX {
        offences.push(format!("{path}: {lines} lines; {LINES_MAX} is the most, 400 the aim"));
    }
    for (at, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l)) {
        if line.ends_with([' ', '\t']) {
            offences.push(format!("{path}:{at}: white space at the end of the line"));
        }
        let code = line.split("//").next().unwrap_or_default();
        let word = |w: &str| {
            code.match_indices(w).any(|(i, _)| {
                let bound =
                    |c: Option<char>| c.is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == '-' || c == '"'));
                bound(code[..i].chars().next_back()) && bound(code[i + w.len()..].chars().next())
            })
        };
        for (name, allowed) in ALLOWED {
            if word(&format!("{name}::")) || word(&format!("use {name}")) {
                let inside = allowed.iter().any(|dir| path.starts_with(dir));
                if !inside && !path.starts_with("xtask/src/tidy.rs") {
                    offences.push(format!("{path}:{at}: {name} is for {} alone", allowed.join(", ")));
                }
            }
        }
        if word("unsafe")
            && !UNSAFE_ALLOWED.iter().any(|a| path.starts_with(a))
            && !path.starts_with("xtask/src/tidy.rs")
        {
            offences.push(format!("{path}:{at}: unsafe is not allowed here"));
        }
    }
}

/// Every file of Rust, but what was built and what is other people's.
fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if !name.starts_with('.') && name != "target" {
                found.extend(sources(&path)?);
            }
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn offences_are_found() {
        let count = |path: &str, text: &str| {
            let mut offences = Vec::new();
            check(path, text, &mut offences);
            offences.len()
        };
        assert_eq!(count("nexus-runtime/src/a.rs", "use wasmtime::Engine;"), 1);
        assert_eq!(count("crates/nexus-engine/src/a.rs", "use wasmtime::Engine;"), 0);
        assert_eq!(count("nexus-runtime/src/a.rs", "// wasmtime::Engine is elsewhere"), 0);
        assert_eq!(count("nexus-runtime/src/a.rs", "unsafe { x() }"), 1);
        assert_eq!(count("nexus-runtime/src/a.rs", "let unsafe_code = 1;"), 0);
        assert_eq!(count("a.rs", "x "), 1);
        assert_eq!(count("a.rs", &"x\n".repeat(700)), 1);
    }
}
