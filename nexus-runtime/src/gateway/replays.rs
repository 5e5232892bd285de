//! Replays over the API.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use nexus_core::ids::ReplayId;
use serde_json::json;

use super::extract::Path;
use super::problem::Problem;
use super::{Shared, body};
use crate::replay::ReplayRequest;

/// A replay's request has an event's payload in it at most.
const EXTRA_BYTES: usize = 64 << 10;

pub async fn start(State(gateway): State<Shared>, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    body::check_json(&headers)?;
    let body = body::read(body, gateway.limits.body_bytes_max + EXTRA_BYTES, gateway.patience()).await?;
    let request: ReplayRequest = body::object(&body, "invalid-replay", "the request")?;
    let id = gateway.replays.start(request).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({"replay_id": id}))).into_response())
}

pub async fn list(State(gateway): State<Shared>) -> Response {
    Json(json!({"items": gateway.replays.list(), "next": null})).into_response()
}

pub async fn get(State(gateway): State<Shared>, Path(id): Path<String>) -> Result<Response, Problem> {
    let id: ReplayId = id.parse()?;
    let replay = gateway.replays.get(id).ok_or_else(|| Problem::not_found("replay", id))?;
    Ok(Json(replay).into_response())
}

pub async fn abort(State(gateway): State<Shared>, Path(id): Path<String>) -> Result<Response, Problem> {
    let id: ReplayId = id.parse()?;
    if !gateway.replays.abort(id) {
        return Err(Problem::not_found("replay", id));
    }
    get(State(gateway), Path(id.to_string())).await
}
