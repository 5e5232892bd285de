//! The log in JetStream against `async-nats` alone: the same nats-server, the same durability.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::load::Wrk;
use super::report::{Table, median};
use super::{CONNECTIONS, Nexus};
use crate::ci::nats_server;
use crate::process::{Running, cargo, must, output, root};

/// Events of one and of a hundred in a request, and the same as messages of a publisher that does nothing else.
pub fn run(wrk: &Wrk, rounds: u32) -> Result<()> {
    must(&mut cargo(&["build", "--release", "-p", "nexus-log", "--example", "publish"]))?;
    let publish = super::program().with_file_name("examples").join("publish");
    let mut rates: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..rounds {
        for (at, batch) in [1, 100].into_iter().enumerate() {
            let nats = Nats::start()?;
            let mut alone = Command::new(&publish);
            alone.args([&nats.url, &CONNECTIONS.to_string(), &batch.to_string(), &wrk.seconds().to_string()]);
            rates[at][0].push(output(&mut alone)?.trim().parse()?);
            nats.stop()?;
            let nats = Nats::start()?;
            let nexus = Nexus::start("jetstream", &["--nats", &nats.url])?;
            rates[at][1].push(wrk.post_events(&nexus.url, batch)?.per_second * f64::from(batch));
            nexus.stop()?;
            nats.stop()?;
        }
    }
    let head = ["what", "async-nats alone, events/s", "Nexus, events/s", "ratio"];
    let mut table = Table::new("One nats-server with `sync_interval: always`, 64 clients", &head);
    for (name, [alone, ours]) in ["single events", "batches of 100"].iter().zip(&rates) {
        let ratio = median(ours.iter().zip(alone).map(|(ours, alone)| ours / alone));
        let (alone, ours) = (median(alone.iter().copied()), median(ours.iter().copied()));
        table.row(&[(*name).into(), format!("{alone:.0}"), format!("{ours:.0}"), format!("{ratio:.2}")]);
    }
    table.print();
    Ok(())
}

/// A nats-server on a free port, its data on the disk that the build is on.
struct Nats {
    url: String,
    _server: Running,
}

impl Nats {
    fn start() -> Result<Self> {
        let folder = root().join("target/bench/nats");
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir_all(&folder)?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = folder.join("nats.conf");
        let data = folder.join("data");
        std::fs::write(
            &config,
            format!(
                "listen: \"127.0.0.1:{port}\"\nmax_payload: 8MB\njetstream {{ store_dir: {data:?}, sync_interval: always }}\n"
            ),
        )?;
        Self::run(&config, port)
    }

    fn run(config: &Path, port: u16) -> Result<Self> {
        let mut command = Command::new(nats_server()?);
        command.arg("-c").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Running::of(command.spawn().context("nats-server")?);
        let until = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            ensure!(Instant::now() < until, "nats-server did not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { url: format!("nats://127.0.0.1:{port}"), _server: server })
    }

    /// Its process ends as this is dropped; its data goes then.
    fn stop(self) -> Result<()> {
        drop(self);
        Ok(std::fs::remove_dir_all(root().join("target/bench/nats"))?)
    }
}
