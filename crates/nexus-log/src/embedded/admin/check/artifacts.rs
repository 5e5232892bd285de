//! The artifacts: each file's bytes against the digest that is its name.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::super::backup::{digest, names};
use super::super::error::{AdminError, doing};
use super::super::format::CHUNK_BYTES;
use super::super::watch::{Pace, Phase, Watch};
use super::report::Report;

pub(super) fn check(folder: &Path, report: &mut Report, watch: Watch<'_>) -> Result<(), AdminError> {
    if !folder.exists() {
        report.add("the artifacts", "their directory is not there");
        return Ok(());
    }
    let names = names(folder)?;
    let mut pace = Pace::new(watch, Phase::Artifacts, names.len() as u64)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    for (at, name) in names.iter().enumerate() {
        let place = || format!("artifact {name}");
        let Some(digest) = digest(name) else {
            report.add(place(), "its name is no digest");
            continue;
        };
        let path = folder.join(name);
        let mut file = File::open(&path).map_err(doing("opening", &path))?;
        let mut found = Sha256::new();
        loop {
            let read = file.read(&mut chunk).map_err(doing("reading", &path))?;
            if read == 0 {
                break;
            }
            found.update(&chunk[..read]);
            report.artifact_bytes += read as u64;
            pace.tell(at as u64)?;
        }
        report.artifacts += 1;
        if found.finalize() != digest.into() {
            report.add(place(), "its bytes are not those of its digest");
        }
        pace.tell(at as u64 + 1)?;
    }
    Ok(())
}
