//! `nexus replays`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value;

use super::client::{Client, encoded, json as body_json, print_json};
use super::{Done, Output, replay, style};

/// Arguments of `nexus replays`.
#[derive(Args)]
pub struct ReplaysArgs {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Those that run or ran on this server
    List,
    /// One, with its results
    Get {
        /// The replay
        id: String,
    },
    /// What it is at comes to its end; nothing more begins
    Pause {
        /// The replay
        id: String,
    },
    /// It goes on
    Resume {
        /// The replay
        id: String,
    },
    /// It ends after what it is at
    Abort {
        /// The replay
        id: String,
    },
}

pub async fn run(args: ReplaysArgs, client: &Client) -> Done {
    let path = |id: &str, what: &str| format!("/v1/replays/{}{what}", encoded(id));
    let told = match args.command.unwrap_or(Command::List) {
        Command::List => return list(client).await,
        Command::Get { id } => client.get(&path(&id, "")).await?,
        Command::Pause { id } => tell(client, Method::POST, &path(&id, "/pause")).await?,
        Command::Resume { id } => tell(client, Method::POST, &path(&id, "/resume")).await?,
        Command::Abort { id } => tell(client, Method::DELETE, &path(&id, "")).await?,
    };
    match client.output {
        Output::Json => print_json(&told),
        Output::Text => replay::show(&told),
    }
    Ok(ExitCode::SUCCESS)
}

async fn tell(client: &Client, method: Method, path: &str) -> Result<Value, super::Failure> {
    body_json(client.send(client.request(method, path)).await?).await
}

async fn list(client: &Client) -> Done {
    let page = client.get("/v1/replays").await?;
    if client.output == Output::Json {
        print_json(&page);
        return Ok(ExitCode::SUCCESS);
    }
    let row = |replay: &Value| {
        let text =
            |key: &str| style::safe(&replay[key].as_str().map_or_else(|| replay[key].to_string(), str::to_owned));
        vec![text("replay_id"), text("status"), text("mode"), replay::counts(replay)]
    };
    let rows: Vec<_> = page["items"].as_array().into_iter().flatten().map(row).collect();
    style::table(&["REPLAY", "STATUS", "MODE", "FOUND"], &rows);
    Ok(ExitCode::SUCCESS)
}
