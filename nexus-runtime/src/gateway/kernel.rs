//! `/v1/kernel`: how much is watched, and what that costs.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use nexus_core::kernel::Syscalls;
use serde::Deserialize;
use serde_json::json;

use super::Shared;
use super::extract::Query;
use super::problem::Problem;
use crate::overhead::{self, OverheadError};

/// The longest measurement.
const SECONDS_MAX: u64 = 300;

/// How much is watched now, why it is not more, and what the probes have to say of themselves.
pub async fn get(State(gateway): State<Shared>) -> Response {
    let kernel = &gateway.line.kernel;
    let (mode, reason) = kernel.mode();
    let families: Vec<_> = kernel
        .probes()
        .map(|probes| probes.families())
        .into_iter()
        .flatten()
        .map(|(name, found)| json!({"name": name, "ok": found.is_ok(), "reason": found.err()}))
        .collect();
    let part = |syscalls: &Syscalls| syscalls.values().map(|stats| stats.count).sum::<u64>();
    let parts: BTreeMap<_, u64> = kernel.runtime_totals().iter().map(|(name, calls)| (*name, part(calls))).collect();
    let ledger = kernel.ledger().map(|l| {
        json!({
            "process": l.process, "invocations": l.accounts, "runtime": l.runtime, "parts": parts, "other": l.other,
            "unattributed": l.unattributed
        })
    });
    let answer = json!({
        "mode": mode, "reason": reason, "families": families, "syscalls": ledger, "failures": kernel.failures(),
        "overhead": kernel.overhead()
    });
    Json(answer).into_response()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    #[serde(default = "default_seconds")]
    seconds: u64,
}

fn default_seconds() -> u64 {
    15
}

/// Measures what the probes cost.
pub async fn measure(State(gateway): State<Shared>, Query(wanted): Query<Wanted>) -> Result<Response, Problem> {
    let Wanted { seconds } = wanted;
    if !(3..=SECONDS_MAX).contains(&seconds) {
        let detail = format!("`seconds` must be 3 to {SECONDS_MAX}, not {seconds}");
        return Err(Problem::bad_request("invalid-query", detail));
    }
    // Many short rounds: what drifts slowly is the same in all windows of one.
    let rounds = u32::try_from(seconds).unwrap_or(3).min(60);
    let (line, stop) = (gateway.line.clone(), gateway.stop.clone());
    // In a task of its own: a client that goes away must not leave the probes as they are in some window.
    let measuring = tokio::spawn(async move {
        let work = &line.telemetry.metrics.work;
        overhead::measure(&line.kernel, work, Duration::from_secs(seconds), rounds, &stop).await
    });
    match measuring.await {
        Ok(measured) => Ok(Json(measured?).into_response()),
        Err(panicked) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", panicked.to_string())),
    }
}

impl From<OverheadError> for Problem {
    fn from(error: OverheadError) -> Self {
        let detail = error.to_string();
        match error {
            OverheadError::Off(_) => Self::new(StatusCode::CONFLICT, "not-watched", detail),
            OverheadError::Idle(_) => Self::new(StatusCode::CONFLICT, "idle", detail),
            OverheadError::Busy => Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail).retry_after(5),
            OverheadError::Stopped => Self::new(StatusCode::SERVICE_UNAVAILABLE, "closing", detail),
            OverheadError::Probes(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "probes", detail),
        }
    }
}
