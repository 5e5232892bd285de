//! Every developer command: `cargo xtask demo`, `test`, `ci`, `tidy`, `build-ebpf`, `guests`, `vm-test`, `bench`, `faults`.

mod bench;
mod build_ebpf;
mod ci;
mod demo;
mod faults;
mod guests;
mod languages;
mod process;
mod tidy;
mod vm_test;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The developer's commands of Nexus")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds Nexus, starts it on loopback, sends the examples an order, prints its trace, and replays it
    Demo {
        /// Leave it running, and print its addresses
        #[arg(long)]
        keep: bool,
    },
    /// The whole test suite
    Test {
        /// Passed on to `cargo test`, as in `cargo xtask test -- --test events`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// What has to pass before a change lands: formatting, lints, tidy, tests, documentation
    Ci,
    /// Rules that no compiler checks: who may use what, sizes, artifacts that are not stale
    Tidy,
    /// Builds the probes into collector/probes/
    BuildEbpf {
        /// Build elsewhere, and fail where the committed object differs
        #[arg(long)]
        check: bool,
    },
    /// Builds the example functions and the tests' guests
    Guests {
        /// Build elsewhere, and fail where the committed components differ
        #[arg(long)]
        check: bool,
    },
    /// The tests' functions in JavaScript and Python, got from npm and PyPI; prints their folder, which NEXUS_LANGUAGES is to name
    Languages,
    /// The probes on other kernels: Debian's packages, in qemu. Takes some minutes
    VmTest {
        /// Beginnings of package names, as `linux-image-6.12.` [default: Debian 12's 6.1 and 6.12]
        kernels: Vec<String>,
    },
    /// The seeded tests of kills and damage, for many seeds in a row
    Faults {
        /// How many
        #[arg(long, default_value_t = 200)]
        seeds: u64,
        /// The first
        #[arg(long, default_value_t = 1)]
        first: u64,
    },
    /// The benchmarks, beside their peers, as tables
    Bench {
        /// Seconds of each measurement
        #[arg(long, default_value_t = 5)]
        seconds: u32,
        /// Rounds; the peers take turns within each
        #[arg(long, default_value_t = 3)]
        rounds: u32,
        /// Only these: call, cold, ingest, latency, jetstream, probes, replay, large
        only: Vec<String>,
    },
}

fn main() -> std::process::ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo { keep } => demo::run(keep),
        Command::Test { args } => ci::test(&args),
        Command::Ci => ci::run(),
        Command::Tidy => tidy::run(),
        Command::VmTest { kernels } => vm_test::run(&kernels),
        Command::BuildEbpf { check } => build_ebpf::run(check),
        Command::Guests { check } => guests::run(check),
        Command::Languages => {
            println!("{}", languages::run()?.display());
            Ok(())
        }
        Command::Faults { seeds, first } => faults::run(first, seeds),
        Command::Bench { seconds, rounds, only } => bench::run(seconds, rounds, &only),
    }
}
