//! What a journal costs, and how fast events are replayed.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::json;

use super::delivery::until_delivered;
use super::load::{self, Connection, Measured, Wrk};
use super::report::{self, Table, median};
use super::{Nexus, guest};

/// The body of the large answer, and how often it is asked for.
const LARGE_BYTES: usize = 1 << 20;
const LARGE_CALLS: usize = 60;

/// Calls with a journal and without, in turn; and a backlog, delivered and then replayed.
pub fn run(wrk: &Wrk, rounds: u32) -> Result<()> {
    let small = serve(b"hello".to_vec())?;
    let large: Vec<u8> = (0..LARGE_BYTES as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let large = serve(large)?;
    let small_path = format!("probe/fetch?n=1&url=http%3a%2f%2f{small}%2f");
    let large_path = format!("probe/fetch?n=1&url=http%3a%2f%2f{large}%2f");
    let cases = [
        ("a no-op of nexus:function", "noop/"),
        ("a no-op of wasi:http", "hello/"),
        ("one outgoing call", &small_path),
    ];
    let mut rates: Vec<[Vec<Measured>; 2]> = vec![Default::default(); cases.len()];
    let mut one: [Vec<f64>; 2] = Default::default();
    let (mut delivered, mut replayed) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (at, sample) in [(0, 0), (1, 1)] {
            let nexus = Nexus::start("journal", &[])?;
            let mut connection = Connection::to(&nexus.url)?;
            for (name, wasm) in [("noop", "noop"), ("hello", "hello-http"), ("probe", "probe")] {
                nexus.deploy(name, &guest(wasm), &[])?;
                let config = json!({"egress": ["127.0.0.1:*"], "journal": {"sample": sample, "bytes_max": 4 << 20}});
                let path = format!("/v1/functions/{name}/config");
                connection.put(&path, "application/json", &config.to_string())?;
            }
            for (case, (_, path)) in cases.iter().enumerate() {
                rates[case][at].push(wrk.get(&format!("{}/fn/{path}", nexus.url))?);
            }
            for _ in 0..LARGE_CALLS {
                one[at].push(load::once(&format!("{}/fn/{large_path}", nexus.url))?.us);
            }
            nexus.stop()?;
        }
        let nexus = Nexus::start("replay", &[])?;
        nexus.deploy("noop", &guest("noop"), &["type=bench"])?;
        delivered.push(until_delivered(wrk, &nexus, 100)?);
        let began = Instant::now();
        let replay = nexus.json(&["replay", "--type", "bench"])?;
        let done = replay["done"].as_f64().unwrap_or(0.0);
        ensure!(replay["identical"] == replay["done"], "not all are identical: {:#}", replay["kinds"]);
        replayed.push(done / began.elapsed().as_secs_f64());
        nexus.stop()?;
    }
    let mut table = Table::new("Calls of /fn, 64 connections", &["what", "without a journal", "with one", "ratio"]);
    for ((name, _), [off, on]) in cases.iter().zip(&rates) {
        let [off, on] = [off, on].map(|all| median(all.iter().map(|m| m.per_second)));
        table.row(&[(*name).into(), format!("{off:.0}/s"), format!("{on:.0}/s"), format!("{:.2}", on / off)]);
    }
    let [off, on] = [&one[0], &one[1]].map(|all| median(all.iter().copied()));
    table.row(&[
        "an answer of 1 MiB, one at a time".into(),
        report::us(off),
        report::us(on),
        format!("{} more", report::us(on - off)),
    ]);
    table.print();
    let mut table = Table::new("A backlog for a no-op", &["what", "events/s"]);
    table.row(&["sent in batches, delivered".into(), format!("{:.0}", median(delivered.iter().copied()))]);
    table.row(&["replayed from their journals".into(), format!("{:.0}", median(replayed.iter().copied()))]);
    table.print();
    Ok(())
}

/// Answers every request on loopback with these bytes; its address.
fn serve(body: Vec<u8>) -> Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let answer = [format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes(), body].concat();
    let answer: &'static [u8] = answer.leak();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                // Whoever asked may be gone.
                let _ = stream.read(&mut request).and_then(|_| stream.write_all(answer));
            });
        }
    });
    Ok(address)
}
