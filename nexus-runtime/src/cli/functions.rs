//! `nexus functions`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use nexus_core::ids::{FunctionName, FunctionRef};
use reqwest::Method;
use serde_json::Value;

use super::client::{Client, print_json};
use super::style::say;
use super::{Done, Failure, Output, closer, style};

/// Arguments of `nexus functions`.
#[derive(Args)]
pub struct FunctionsArgs {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// All functions
    List,
    /// One function with its configuration
    Get {
        /// Its name
        name: FunctionName,
    },
    /// The versions of a function
    Versions {
        /// Its name
        name: FunctionName,
    },
    /// The component that a version was deployed as, as a file; - is standard output
    Component {
        /// Its name, and which version if it is not the current one: NAME@VERSION
        function: FunctionRef,
        /// The file
        file: PathBuf,
    },
    /// Takes a function away; its events stay
    Delete {
        /// Its name
        name: FunctionName,
    },
}

pub async fn run(args: FunctionsArgs, client: &Client) -> Done {
    match args.command.unwrap_or(Command::List) {
        Command::List => {
            let list = client.get("/v1/functions").await?;
            if client.output == Output::Json {
                print_json(&list);
                return Ok(ExitCode::SUCCESS);
            }
            let items = list["items"].as_array().cloned().unwrap_or_default();
            let rows: Vec<_> = items.iter().map(row).collect();
            style::table(&["NAME", "VERSION", "KIND", "TRIGGERS", "DEPLOYED"], &rows);
        }
        Command::Get { name } => print_json(&client.get(&format!("/v1/functions/{name}")).await?),
        Command::Versions { name } => {
            let list = client.get(&format!("/v1/functions/{name}/versions")).await?;
            if client.output == Output::Json {
                print_json(&list);
                return Ok(ExitCode::SUCCESS);
            }
            let items = list["items"].as_array().cloned().unwrap_or_default();
            let rows: Vec<_> = items
                .iter()
                .map(|v| vec![text(&v["version"]), text(&v["kind"]), text(&v["created_at"]), text(&v["digest"])])
                .collect();
            style::table(&["VERSION", "KIND", "DEPLOYED", "DIGEST"], &rows);
        }
        Command::Component { function: FunctionRef { name, version }, file } => {
            let version = match version {
                Some(version) => version.to_string(),
                None => closer::current(client, &name).await?,
            };
            let component = closer::component(client, &name, &version).await?;
            if file.as_os_str() == "-" {
                std::io::stdout().write_all(&component)?;
                return Ok(ExitCode::SUCCESS);
            }
            let written = std::fs::write(&file, &component);
            written.map_err(|e| Failure::failed(format!("{}: {e}", file.display())))?;
            eprintln!("{} ({name}@{version}, {} bytes)", file.display(), component.len());
        }
        Command::Delete { name } => {
            client.send(client.request(Method::DELETE, &format!("/v1/functions/{name}"))).await?;
            if client.output == Output::Text {
                say!("deleted {name}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn row(function: &Value) -> Vec<String> {
    let triggers = function["config"]["triggers"].as_array().cloned().unwrap_or_default();
    let triggers: Vec<_> = triggers
        .iter()
        .map(|t| {
            t["filters"]
                .as_array()
                .map_or_else(String::new, |f| f.iter().map(Value::to_string).collect::<Vec<_>>().join(" and "))
        })
        .collect();
    vec![
        text(&function["name"]),
        text(&function["version"]),
        text(&function["kind"]),
        if triggers.is_empty() { "by name only".into() } else { style::cut(&triggers.join(" or "), 60) },
        text(&function["created_at"]),
    ]
}
