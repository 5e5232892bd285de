//! `/v1/functions/{name}/profile`: takes a profile and answers with it.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use nexus_collector::Sampled;
use nexus_core::ids::FunctionName;
use serde::Deserialize;

use super::Shared;
use super::extract::{Path, Query};
use super::problem::Problem;
use crate::profile::{self, ProfileError};

/// The longest profile that one request takes.
const SECONDS_MAX: u64 = 300;

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Pprof,
    Folded,
    Svg,
}

/// What a profile is of.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    Cpu,
    OffCpu,
    Memory,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    #[serde(default)]
    kind: Kind,
    #[serde(default = "default_seconds")]
    seconds: u64,
    #[serde(default = "default_hz")]
    hz: u32,
    #[serde(default = "default_min_us")]
    min_us: u64,
    #[serde(default)]
    format: Format,
}

fn default_seconds() -> u64 {
    10
}

/// Not a round number, so that it does not keep step with what happens at round ones.
fn default_hz() -> u32 {
    99
}

/// As long as waiting has to be to be looked at.
fn default_min_us() -> u64 {
    1000
}

pub async fn take(
    State(gateway): State<Shared>,
    Path(name): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    let name: FunctionName = name.parse()?;
    let Wanted { kind, seconds, hz, min_us, format } = wanted;
    if !(1..=SECONDS_MAX).contains(&seconds) || !(1..=1000).contains(&hz) {
        let detail = format!("`seconds` must be 1 to {SECONDS_MAX}, `hz` 1 to 1000; they are {seconds} and {hz}");
        return Err(Problem::bad_request("invalid-query", detail));
    }
    if !(1..=60_000_000).contains(&min_us) {
        let detail = format!("`min_us` must be 1 to 60000000; it is {min_us}");
        return Err(Problem::bad_request("invalid-query", detail));
    }
    let sampled = match kind {
        Kind::Cpu => Sampled::Clock { hz },
        Kind::OffCpu => Sampled::Blocked { min_ns: min_us * 1000 },
        Kind::Memory => Sampled::PageFaults,
    };
    let view = gateway.line.catalog.view();
    let entry = view.get(&name).cloned().ok_or_else(|| Problem::not_found("function", &name))?;
    let versions = entry.function.versions.iter().map(|v| v.version).collect();
    let traces = matches!(format, Format::Pprof);
    let wanted = profile::Wanted { function: name, versions, sampled, duration: Duration::from_secs(seconds), traces };
    let kernel = gateway.line.kernel.clone();
    // Ends with the server, and with the client.
    let stop = gateway.stop.child_token();
    let _ended = stop.clone().drop_guard();
    let taken = tokio::task::spawn_blocking(move || profile::take(&kernel, &wanted, &stop));
    let internal = |panicked: tokio::task::JoinError| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", panicked.to_string())
    };
    let mut taken = taken.await.map_err(internal)??;
    let mut loaded = Vec::new();
    for version in taken.versions() {
        // It ran just now, so it is loaded. If it was forgotten since, its frames stay without names.
        let Some(version) = entry.function.version(version) else { continue };
        match gateway.line.catalog.ready(version, entry.profile()).await {
            Ok(ready) => {
                let bytes = gateway.line.catalog.artifact(version.digest).await.unwrap_or_else(|error| {
                    tracing::debug!(version = version.version.0, %error, "its code has no lines in the profile");
                    Bytes::new()
                });
                loaded.push((ready.loaded, bytes));
            }
            Err(error) => tracing::debug!(version = version.version.0, %error, "its code has no names in the profile"),
        }
    }
    let drawn = tokio::task::spawn_blocking(move || {
        taken.name(&loaded);
        if taken.samples() == 0 && matches!(format, Format::Svg) {
            return Ok(None);
        }
        let failed = |e: std::io::Error| ProfileError::Draw(e.to_string());
        Ok::<_, ProfileError>(Some(match format {
            Format::Pprof => ("application/octet-stream", taken.pprof().map_err(failed)?),
            Format::Folded => ("text/plain; charset=utf-8", taken.folded().into_bytes()),
            Format::Svg => ("image/svg+xml", taken.svg()?),
        }))
    });
    match drawn.await {
        Ok(Ok(Some((kind, body)))) => Ok(([(header::CONTENT_TYPE, kind)], body).into_response()),
        Ok(Ok(None)) => {
            let never = match kind {
                Kind::Cpu => "was never on a CPU".to_owned(),
                Kind::OffCpu => format!("was never blocked for {min_us} µs or longer in a system call"),
                Kind::Memory => "never touched a page that was not there".to_owned(),
            };
            let detail = format!("the function {never} in these {seconds} s; call it meanwhile, or ask for longer");
            Err(Problem::new(StatusCode::NOT_FOUND, "no-samples", detail))
        }
        Ok(Err(error)) => Err(error.into()),
        Err(panicked) => Err(internal(panicked)),
    }
}

impl From<ProfileError> for Problem {
    fn from(error: ProfileError) -> Self {
        let detail = error.to_string();
        match error {
            ProfileError::Off(_) => Self::new(StatusCode::CONFLICT, "not-watched", detail),
            ProfileError::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail).retry_after(5),
            ProfileError::Probes(_) | ProfileError::Draw(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "profile", detail)
            }
        }
    }
}
