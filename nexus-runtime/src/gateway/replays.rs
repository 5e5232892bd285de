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
use crate::replay::{Order, ReplayRequest};

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
    let replay = gateway.replays.get(id).await?.ok_or_else(|| Problem::not_found("replay", id))?;
    Ok(Json(replay).into_response())
}

pub async fn abort(gateway: State<Shared>, id: Path<String>) -> Result<Response, Problem> {
    tell(gateway, id, Order::Abort).await
}

pub async fn pause(gateway: State<Shared>, id: Path<String>) -> Result<Response, Problem> {
    tell(gateway, id, Order::Pause).await
}

pub async fn resume(gateway: State<Shared>, id: Path<String>) -> Result<Response, Problem> {
    tell(gateway, id, Order::Resume).await
}

async fn tell(State(gateway): State<Shared>, Path(id): Path<String>, order: Order) -> Result<Response, Problem> {
    let id: ReplayId = id.parse()?;
    if gateway.replays.tell(id, order).await? {
        return get(State(gateway), Path(id.to_string())).await;
    }
    match gateway.replays.get(id).await? {
        None => Err(Problem::not_found("replay", id)),
        Some(replay) if replay.status.is_over() => Ok(Json(replay).into_response()),
        Some(_) => {
            let detail = format!("replay {id} runs at another runtime of this log; tell that one");
            Err(Problem::new(StatusCode::CONFLICT, "elsewhere", detail))
        }
    }
}
