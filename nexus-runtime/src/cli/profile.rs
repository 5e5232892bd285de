//! `nexus profile`: where a function is on a CPU, where it is blocked, or where it touches new memory.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use nexus_core::ids::FunctionName;
use reqwest::Method;

use super::client::Client;
use super::{Done, Failure};

/// Arguments of `nexus profile`.
#[derive(Args)]
pub struct ProfileArgs {
    /// The function
    name: FunctionName,
    /// What it is of
    #[arg(long, value_enum, default_value_t = Kind::Cpu)]
    kind: Kind,
    /// How long, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    seconds: u64,
    /// Samples a second on each CPU, of kind cpu
    #[arg(long, default_value_t = 99, value_parser = clap::value_parser!(u32).range(1..=1000))]
    hz: u32,
    /// Waits of so many microseconds or longer, of kind off-cpu
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000_000))]
    min_us: u64,
    /// What is written [default: by the file's name: .svg, .folded, else pprof]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The file; - is standard output [default: NAME.svg]
    #[arg(short, long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Where it is on a CPU, by the clock
    Cpu,
    /// Where a system call blocks it, and for how long
    OffCpu,
    /// Where it touches memory that it did not have
    Memory,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For `go tool pprof`, Pyroscope and the like
    Pprof,
    /// A line for each stack
    Folded,
    /// A flame graph
    Svg,
}

impl ProfileArgs {
    fn format(&self, out: &std::path::Path) -> Format {
        let by_name = || match out.extension().and_then(|e| e.to_str()) {
            Some("svg") => Format::Svg,
            Some("folded" | "txt") => Format::Folded,
            _ => Format::Pprof,
        };
        self.format.unwrap_or_else(by_name)
    }
}

pub async fn run(args: ProfileArgs, client: &Client) -> Done {
    let out = args.out.clone().unwrap_or_else(|| format!("{}.svg", args.name).into());
    let format = match args.format(&out) {
        Format::Pprof => "pprof",
        Format::Folded => "folded",
        Format::Svg => "svg",
    };
    eprintln!("taking a profile of {} for {} s", args.name, args.seconds);
    let kind = match args.kind {
        Kind::Cpu => format!("kind=cpu&hz={}", args.hz),
        Kind::OffCpu => format!("kind=off_cpu&min_us={}", args.min_us),
        Kind::Memory => "kind=memory".to_owned(),
    };
    let (name, seconds) = (&args.name, args.seconds);
    let path = format!("/v1/functions/{name}/profile?seconds={seconds}&{kind}&format={format}");
    let response = client.send(client.request(Method::GET, &path)).await?;
    let body = response.bytes().await.map_err(|e| Failure::failed(format!("the server's answer: {e}")))?;
    if out.as_os_str() == "-" {
        std::io::stdout().write_all(&body)?;
        return Ok(ExitCode::SUCCESS);
    }
    std::fs::write(&out, &body).map_err(|e| Failure::failed(format!("{}: {e}", out.display())))?;
    eprintln!("{} ({format}, {} bytes)", out.display(), body.len());
    Ok(ExitCode::SUCCESS)
}
