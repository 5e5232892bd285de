//! `nexus events`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::client::{Client, encoded, indented};
use super::style::say;
use super::{Done, Output, style};

/// How often `tail` asks.
const TAIL_PERIOD: Duration = Duration::from_millis(500);

/// Arguments of `nexus events`.
#[derive(Args)]
pub struct EventsArgs {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: ListArgs,
}

#[derive(Subcommand)]
enum Command {
    /// The latest events
    List(ListArgs),
    /// One event, with everything that happened to it
    Get {
        /// Its id
        id: String,
        /// Its source, where several use the id
        #[arg(long)]
        source: Option<String>,
    },
    /// Prints an event with its journals, to be replayed elsewhere: `nexus replay FILE --component f.wasm`
    Export {
        /// Its id; or that of an invocation, which otherwise is the last attempt at each function
        id: String,
        /// Its source, where several use the id
        #[arg(long)]
        source: Option<String>,
    },
    /// Events as they come, until interrupted
    Tail(ListArgs),
}

#[derive(Clone, Copy, ValueEnum)]
enum Status {
    Pending,
    Running,
    Done,
    Failed,
    Dead,
}

#[derive(Args, Clone)]
struct ListArgs {
    /// Only of this type
    #[arg(long = "type")]
    ty: Option<String>,
    /// Only from this source
    #[arg(long)]
    source: Option<String>,
    /// Only those that went to this function
    #[arg(long)]
    function: Option<String>,
    /// Only with this status
    #[arg(long, value_enum)]
    status: Option<Status>,
    /// Only of this trace
    #[arg(long = "trace")]
    trace_id: Option<String>,
    /// Received at or after (RFC 3339)
    #[arg(long)]
    from: Option<String>,
    /// Received before (RFC 3339)
    #[arg(long)]
    to: Option<String>,
    /// At most so many: 1 to 1000
    #[arg(long, default_value_t = 20)]
    limit: u32,
}

impl ListArgs {
    fn path(&self) -> String {
        let status = self.status.and_then(|s| s.to_possible_value()).map(|v| v.get_name().to_owned());
        let mut path = format!("/v1/events?limit={}", self.limit);
        for (name, value) in [
            ("type", &self.ty),
            ("source", &self.source),
            ("function", &self.function),
            ("status", &status),
            ("trace_id", &self.trace_id),
            ("from", &self.from),
            ("to", &self.to),
        ] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", encoded(value)));
            }
        }
        path
    }
}

pub async fn run(args: EventsArgs, client: &Client) -> Done {
    match args.command.unwrap_or(Command::List(args.list)) {
        Command::List(list) => {
            if client.output == Output::Json {
                say!("{}", indented(&client.text(&list.path()).await?));
            } else {
                let page = client.get(&list.path()).await?;
                let rows: Vec<_> = page["items"].as_array().into_iter().flatten().map(row).collect();
                style::table(&["SEQ", "RECEIVED", "STATUS", "TYPE", "ID", "FUNCTIONS"], &rows);
                if !page["next"].is_null() {
                    eprintln!("there are more; narrow the search, or raise --limit");
                }
            }
        }
        Command::Get { id, source } => {
            let source = source.map(|s| format!("?source={}", encoded(&s))).unwrap_or_default();
            let path = format!("/v1/events/{}{source}", encoded(&id));
            match client.output {
                Output::Json => say!("{}", indented(&client.text(&path).await?)),
                Output::Text => show(&client.get(&path).await?),
            }
        }
        Command::Export { id, source } => {
            say!("{}", client.export(&id, source.as_deref()).await?);
        }
        Command::Tail(list) => tail(&list, client).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn tail(list: &ListArgs, client: &Client) -> Result<(), super::Failure> {
    let mut last = None;
    loop {
        let page = client.get(&list.path()).await?;
        let items = page["items"].as_array().cloned().unwrap_or_default();
        let newest = items.iter().filter_map(|e| e["seq"].as_u64()).max().unwrap_or(0);
        // What was there before is not news.
        let seen = *last.get_or_insert(newest);
        for event in items.iter().rev().filter(|e| e["seq"].as_u64() > Some(seen)) {
            match client.output {
                Output::Json => say!("{event}"),
                Output::Text => say!("{}", row(event).join("  ")),
            }
        }
        last = Some(newest.max(seen));
        tokio::time::sleep(TAIL_PERIOD).await;
    }
}

fn text(value: &Value) -> String {
    style::safe(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

fn row(event: &Value) -> Vec<String> {
    let functions: Vec<_> =
        event["invocations"].as_array().into_iter().flatten().map(|i| text(&i["function"])).collect();
    let mut unique = functions.clone();
    unique.dedup();
    vec![
        text(&event["seq"]),
        text(&event["received_at"]),
        style::status(&text(&event["status"])),
        style::cut(&text(&event["event"]["type"]), 40),
        style::cut(&text(&event["event"]["id"]), 40),
        style::cut(&unique.join(", "), 40),
    ]
}

/// Where the event went and why, and where not.
fn show_routing(event: &Value) {
    for routing in event["routing"].as_array().into_iter().flatten() {
        let doubt =
            if routing["certain"] == true { "" } else { "  (as configured now, which is later than the event)" };
        let function = text(&routing["function"]);
        if routing["matched"] == true {
            say!("goes to    {function}  trigger {}{doubt}", routing["trigger"]);
            continue;
        }
        let whys: Vec<_> = routing["why"].as_array().into_iter().flatten().map(text).collect();
        say!("not to     {function}  {}{doubt}", style::cut(&whys.join("; "), 200));
    }
    let shown = event["routing"].as_array().into_iter().flatten().filter(|routing| routing["matched"] == false).count();
    if let Some(more) =
        event["not_matched"].as_u64().and_then(|all| all.checked_sub(shown as u64)).filter(|more| *more > 0)
    {
        say!("not to     {more} more functions");
    }
}

/// The story of one event.
fn show(event: &Value) {
    let e = &event["event"];
    say!("event      {}  {}", text(&e["id"]), style::status(&text(&event["status"])));
    for (name, value) in [
        ("type", &e["type"]),
        ("source", &e["source"]),
        ("subject", &e["subject"]),
        ("received", &event["received_at"]),
        ("trace", &event["trace_id"]),
        ("seq", &event["seq"]),
    ] {
        if !value.is_null() {
            say!("{name:<10} {}", text(value));
        }
    }
    if !event["cause"].is_null() {
        say!("caused by  invocation {} of event seq {}", text(&event["cause"]["invocation_id"]), event["cause"]["seq"]);
    }
    if !e["data"].is_null() {
        say!("data       {}", style::cut(&style::safe(&e["data"].to_string()), 400));
    }
    show_routing(event);
    let invocations = event["invocations"].as_array().cloned().unwrap_or_default();
    if invocations.is_empty() {
        say!(
            "\nno invocation{}",
            if event["status"] == "done" { ": no function has a trigger that matches it" } else { " yet" }
        );
    }
    for i in &invocations {
        let replay =
            if i["replay_of"].is_null() { String::new() } else { format!("  replay of {}", text(&i["replay_of"])) };
        say!(
            "\n{} version {} attempt {}  {}  {}{replay}",
            style::paint(&text(&i["function"]), 1),
            i["version"],
            i["attempt"],
            style::status(&text(&i["status"])),
            style::duration(i["duration_ns"].as_u64().unwrap_or(0)),
        );
        say!("  invocation {}  started {}", text(&i["invocation_id"]), text(&i["started_at"]));
        if let Some(bytes) = i["memory_bytes"].as_u64() {
            say!("  memory     {} KiB", bytes >> 10);
        }
        if !i["error"].is_null() {
            say!("  error      {}", text(&i["error"]));
        }
        if !i["retry_at"].is_null() {
            say!("  next try   {}", text(&i["retry_at"]));
        }
        for call in i["host_calls"].as_array().into_iter().flatten() {
            let answer = if call["error"].is_null() { text(&call["status"]) } else { text(&call["error"]) };
            say!("  called     {} {}  {answer}", text(&call["method"]), text(&call["url"]));
        }
        if let Some(dropped) = i["host_calls_dropped"].as_u64() {
            say!("  refused    {dropped} more calls: it had made as many as it may");
        }
        for id in i["emitted"].as_array().into_iter().flatten() {
            say!("  emitted    {}", text(id));
        }
        if !i["output"].is_null() {
            let output = &i["output"];
            let data = if output["data"].is_null() {
                format!("{} bytes", output["bytes"])
            } else {
                output["data"].to_string()
            };
            say!("  output     {}", style::cut(&style::safe(&data), 400));
        }
        for line in i["logs"].as_array().into_iter().flatten() {
            say!("  {:<10} {}", text(&line["stream"]), text(&line["line"]));
        }
        super::trace::print_kernel(&i["kernel"], "  ");
    }
}
