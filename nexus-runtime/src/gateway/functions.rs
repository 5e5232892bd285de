//! Functions: deployed, configured, listed, taken away.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use nexus_core::function::FunctionConfig;
use nexus_core::ids::{FunctionName, FunctionRef};
use serde_json::json;

use super::extract::Path;
use super::problem::Problem;
use super::views::FunctionView;
use super::{Shared, body};

/// A configuration has no business being larger.
const CONFIG_BYTES_MAX: usize = 1 << 20;

fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

pub async fn deploy(
    State(gateway): State<Shared>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let name: FunctionName = name.parse()?;
    if media_type(&headers) != "application/wasm" {
        let detail = "a function is put as application/wasm; set the Content-Type header";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-wasm", detail));
    }
    let bytes = body::read(body, gateway.limits.component_bytes_max, gateway.patience()).await?;
    let deployed = gateway.line.catalog.deploy(&name, bytes).await?;
    let status = if deployed.created { StatusCode::CREATED } else { StatusCode::OK };
    let version = deployed.version;
    let answer = json!({
        "name": name, "version": version.version, "digest": version.digest, "kind": version.kind.as_str()
    });
    Ok((status, Json(answer)).into_response())
}

pub async fn configure(
    State(gateway): State<Shared>,
    Path(name): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    let name: FunctionName = name.parse()?;
    let body = body::read(body, CONFIG_BYTES_MAX, gateway.patience()).await?;
    let config: FunctionConfig = body::object(&body, "invalid-config", "the configuration")?;
    gateway.line.catalog.configure(&name, config).await?;
    get(State(gateway), Path(name.to_string())).await
}

pub async fn list(State(gateway): State<Shared>) -> Response {
    let view = gateway.line.catalog.view();
    let now = gateway.line.clock.now();
    let items: Vec<_> = view.iter().filter_map(|entry| FunctionView::of(entry, now)).collect();
    Json(json!({"items": items, "next": null})).into_response()
}

pub async fn get(State(gateway): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    let name: FunctionName = name.parse()?;
    let view = gateway.line.catalog.view();
    let entry = view.get(&name).ok_or_else(|| Problem::not_found("function", &name))?;
    Ok(Json(FunctionView::of(entry, gateway.line.clock.now())).into_response())
}

pub async fn versions(State(gateway): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    let name: FunctionName = name.parse()?;
    let view = gateway.line.catalog.view();
    let entry = view.get(&name).ok_or_else(|| Problem::not_found("function", &name))?;
    Ok(Json(json!({"items": entry.function.versions, "next": null})).into_response())
}

pub async fn component(
    State(gateway): State<Shared>,
    Path((name, version)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let function: FunctionRef = format!("{name}@{version}").parse()?;
    let view = gateway.line.catalog.view();
    let entry = view.get(&function.name).ok_or_else(|| Problem::not_found("function", &function.name))?;
    let version = entry.version(&function).ok_or_else(|| Problem::not_found("version", &function))?;
    let bytes = gateway.line.catalog.artifact(version.digest).await.map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", format!("the component: {error}"))
    })?;
    Ok(([(header::CONTENT_TYPE, "application/wasm")], bytes).into_response())
}

pub async fn delete(State(gateway): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    gateway.line.catalog.delete(&name.parse()?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
