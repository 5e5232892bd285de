//! `nexus doctor`: what works here, and how to get the rest.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::client::{Client, print_json};
use super::style::say;
use super::{Done, Output, style};

/// Arguments of `nexus doctor`.
#[derive(Args)]
pub struct DoctorArgs {
    /// The data directory whose disk is looked at
    #[arg(long, default_value = ".")]
    data_dir: PathBuf,
    /// The socket of a `nexus-collector`: whether it loads the probes for this user, instead of whether this program can
    #[arg(long, value_name = "SOCKET", env = "NEXUS_COLLECTOR")]
    collector: Option<PathBuf>,
    /// The nats-server that `nexus serve --nats managed` would start
    #[arg(long, value_name = "PROGRAM", default_value = "nats-server")]
    nats_server: PathBuf,
    /// Measures what the probes cost the server, while it works: they are taken away and put back, in turn
    #[arg(long)]
    overhead: bool,
    /// For how long, in seconds
    #[arg(long, default_value_t = 15, requires = "overhead", value_parser = clap::value_parser!(u64).range(3..=300))]
    seconds: u64,
}

/// One thing that was looked at: its name, whether all is well, and what is to be said about it.
struct Finding {
    name: &'static str,
    ok: bool,
    says: String,
}

pub async fn run(args: DoctorArgs, client: &Client) -> Done {
    if args.overhead {
        return overhead(args.seconds, client).await;
    }
    let probes = match &args.collector {
        Some(socket) => nexus_collector::collector_status(socket),
        None => nexus_collector::probe_status(),
    };
    let mut findings: Vec<Finding> = probes
        .into_iter()
        .map(|(name, status)| Finding {
            name,
            ok: status.is_ok(),
            says: status.err().unwrap_or_else(|| "works".into()),
        })
        .collect();
    findings.push(disk(&args.data_dir));
    findings.push(open_files());
    findings.push(swap());
    findings.push(nats_server(&args.nats_server).await);
    findings.push(server(client).await);
    let all_well = findings.iter().all(|f| f.ok);
    match client.output {
        Output::Json => {
            let items: Vec<_> = findings.iter().map(|f| json!({"name": f.name, "ok": f.ok, "says": f.says})).collect();
            print_json(&json!({"ok": all_well, "items": items}));
        }
        Output::Text => {
            for finding in &findings {
                let mark = if finding.ok { style::paint("ok     ", 32) } else { style::paint("missing", 33) };
                say!("{mark}  {:<40} {}", finding.name, finding.says);
            }
            if !all_well {
                say!("\nWhat is missing costs only what is named; everything else works.");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the probes cost the server.
async fn overhead(seconds: u64, client: &Client) -> Done {
    eprintln!("measuring for {seconds} s, while the server works");
    let request = client.request(reqwest::Method::POST, &format!("/v1/kernel/overhead?seconds={seconds}"));
    let measured = super::client::json(client.send(request).await?).await?;
    if client.output == Output::Json {
        print_json(&measured);
        return Ok(ExitCode::SUCCESS);
    }
    let us = |ns: &serde_json::Value| format!("{:.1} µs", ns.as_f64().unwrap_or(f64::NAN) / 1000.0);
    say!("processor time of a piece of work (an event taken in, an invocation), {} of them:", measured["work"]);
    say!("  off      {}", us(&measured["off_cpu_ns"]));
    for cost in measured["costs"].as_array().into_iter().flatten() {
        let more = cost["ratio"].as_f64().unwrap_or(f64::NAN) * 100.0;
        say!("  {:<8} {}  {more:+.1} %", cost["mode"].as_str().unwrap_or("?"), us(&cost["cpu_ns"]));
    }
    Ok(ExitCode::SUCCESS)
}

fn disk(dir: &std::path::Path) -> Finding {
    let name = "disk space";
    match rustix::fs::statvfs(dir) {
        Ok(fs) => {
            let free_mib = (fs.f_bavail * fs.f_frsize) >> 20;
            let says = format!("{free_mib} MiB free at {}; below 256 MiB events are refused", dir.display());
            Finding { name, ok: free_mib >= 256, says }
        }
        Err(e) => Finding { name, ok: false, says: format!("{}: {e}", dir.display()) },
    }
}

fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let ok = limit.is_none_or(|n| n >= 4096);
    let limit = limit.map_or_else(|| "no limit".into(), |n| n.to_string());
    let advice = if ok { "" } else { "; raise it with `ulimit -n 65536` or LimitNOFILE= for many connections" };
    Finding { name: "open files", ok, says: format!("{limit}{advice}") }
}

fn swap() -> Finding {
    let on = std::fs::read_to_string("/proc/swaps").is_ok_and(|s| s.lines().count() > 1);
    let says = if on {
        "on: instances are reset by clearing more than was written, which costs some microseconds each; `swapoff -a` avoids it"
    } else {
        "off: instances are reset by what they wrote"
    };
    Finding { name: "swap", ok: !on, says: says.into() }
}

async fn nats_server(program: &std::path::Path) -> Finding {
    let (ok, says) = match crate::nats::version(program).await {
        Ok(version) => (true, format!("version {version}, for `--nats managed`")),
        Err(error) => (false, format!("{error:#}; nothing else needs it")),
    };
    Finding { name: "nats-server", ok, says }
}

async fn server(client: &Client) -> Finding {
    let answer = client.send(client.request(reqwest::Method::GET, "/readyz")).await;
    match answer {
        Ok(_) => Finding { name: "server", ok: true, says: format!("ready at {}", client.url()) },
        Err(failure) => Finding { name: "server", ok: false, says: failure.message },
    }
}
