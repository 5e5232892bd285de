//! `nexus deploy`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use nexus_core::filter::Filter;
use nexus_core::function::FunctionConfig;
use nexus_core::ids::FunctionName;
use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Client, json as body_json, print_json};
use super::style::say;
use super::{Done, Failure, Output};
use crate::manifest::{FILE, Manifest};

/// Arguments of `nexus deploy`.
#[derive(Args)]
pub struct DeployArgs {
    /// A component or preview-1 module, or a folder with a nexus.toml
    path: PathBuf,
    /// The function's name; the file's name without one
    #[arg(long)]
    name: Option<FunctionName>,
    /// A trigger: type=order.created, type=order.* (prefix), source=*/eu (suffix), several with commas, or a filter's JSON
    #[arg(long = "on", value_parser = parse_on)]
    on: Vec<Filter>,
    /// An environment variable, NAME=VALUE
    #[arg(long = "env", value_parser = parse_env)]
    env: Vec<(String, String)>,
}

fn parse_env(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn parse_on(text: &str) -> Result<Filter, String> {
    if text.trim_start().starts_with('{') {
        let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        return Filter::parse(&value).map_err(|e| e.to_string());
    }
    let mut all = Vec::new();
    for part in text.split(',') {
        let (name, value) = part.split_once('=').ok_or_else(|| format!("{part:?} must be attribute=value"))?;
        let (dialect, value) = match (value.strip_suffix('*'), value.strip_prefix('*')) {
            (Some(prefix), _) => ("prefix", prefix),
            (None, Some(suffix)) => ("suffix", suffix),
            (None, None) => ("exact", value),
        };
        all.push(Filter::parse(&json!({dialect: {name.trim(): value}})).map_err(|e| e.to_string())?);
    }
    Ok(if all.len() == 1 { all.remove(0) } else { Filter::All(all) })
}

pub async fn run(args: DeployArgs, client: &Client) -> Done {
    let (name, wasm, mut config) = target(&args)?;
    let bytes = match tokio::fs::read(&wasm).await {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && wasm != args.path => {
            return Err(Failure::not_found(format!("{} is not there; `nexus build` makes it", wasm.display())));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Failure::not_found(format!("there is no file {}", wasm.display())));
        }
        Err(e) => return Err(Failure::failed(format!("{}: {e}", wasm.display()))),
    };
    if bytes.len() > 1 << 20 {
        eprintln!("deploying {} ({} MB): the server compiles it", name, bytes.len() >> 20);
    }
    let put = client.request(Method::PUT, &format!("/v1/functions/{name}"));
    let response = client.send(put.header("content-type", "application/wasm").body(bytes)).await?;
    let created = response.status() == http::StatusCode::CREATED;
    let deployed = body_json(response).await?;
    if config.is_none() && !(args.on.is_empty() && args.env.is_empty()) {
        // Flags change what they name, and leave the rest of the function's configuration as it is.
        let function = client.get(&format!("/v1/functions/{name}")).await?;
        let current = function.get("config").cloned().unwrap_or_default();
        config =
            Some(serde_json::from_value(current).map_err(|e| Failure::failed(format!("the server's answer: {e}")))?);
    }
    if let Some(mut config) = config {
        if !args.on.is_empty() {
            config.triggers = args
                .on
                .iter()
                .map(|f| nexus_core::function::Trigger { filters: vec![f.clone()], ..Default::default() })
                .collect();
        }
        config.env.extend(args.env.iter().cloned().collect::<BTreeMap<_, _>>());
        let put = client.request(Method::PUT, &format!("/v1/functions/{name}/config"));
        client.send(put.json(&config)).await?;
    }
    match client.output {
        Output::Json => print_json(&deployed),
        Output::Text => {
            let text = |key: &str| {
                deployed.get(key).map_or_else(String::new, |v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            };
            let what = if created { "deployed" } else { "unchanged" };
            say!("{what} {} version {} ({})", text("name"), text("version"), text("kind"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn target(args: &DeployArgs) -> Result<(FunctionName, PathBuf, Option<FunctionConfig>), Failure> {
    if args.path.is_dir() {
        let path = args.path.join(FILE);
        if !path.is_file() {
            let dir = args.path.display();
            return Err(Failure::not_found(format!(
                "{dir} has no {FILE}; name a component, or write one (`nexus new`)"
            )));
        }
        let manifest = Manifest::read(&path)?;
        return Ok((args.name.clone().unwrap_or(manifest.name), manifest.wasm, Some(manifest.config)));
    }
    let name = match &args.name {
        Some(name) => name.clone(),
        None => {
            let stem = args.path.file_stem().map(Path::new).map(|p| p.display().to_string()).unwrap_or_default();
            stem.replace('_', "-").parse().map_err(|e| Failure::usage(format!("{e}; name the function with --name")))?
        }
    };
    Ok((name, args.path.clone(), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_the_command_line() {
        let check = |text: &str, expected: Value| {
            assert_eq!(Value::from(parse_on(text).expect(text)), expected, "{text}");
        };
        check("type=order.created", json!({"exact": {"type": "order.created"}}));
        check("type=order.*", json!({"prefix": {"type": "order."}}));
        check("source=*/eu", json!({"suffix": {"source": "/eu"}}));
        check("type=a,source=/b", json!({"all": [{"exact": {"type": "a"}}, {"exact": {"source": "/b"}}]}));
        check(r#"{"not":{"exact":{"type":"a"}}}"#, json!({"not": {"exact": {"type": "a"}}}));
        for bad in ["type", "type=", "Type=a", "{", r#"{"exact":{}}"#] {
            assert!(parse_on(bad).is_err(), "{bad}");
        }
    }
}
