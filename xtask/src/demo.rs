//! `cargo xtask demo`: an order goes through the example functions, and is told of.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::process::{Running, cargo, must, nexus_ready, output, root};

/// How long one step may take; on a laptop each takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs the demo. With `keep` everything is left running until the terminal ends it.
pub fn run(keep: bool) -> Result<()> {
    step("Building Nexus (the first time this takes some minutes)");
    must(&mut cargo(&["build", "--bins"]))?;

    step("Starting a small chat server of the demo's own, and Nexus on loopback with the embedded log");
    let (chat, messages) = chat_server()?;
    let data = std::env::temp_dir().join(format!("nexus-demo-{}", std::process::id()));
    let mut serve = Command::new(program());
    serve.args(["serve", "--listen", "127.0.0.1:0", "--log-format", "text"]).arg("--data-dir").arg(&data);
    serve.env("RUST_LOG", "warn");
    let (server, url) = Running::start(&mut serve, nexus_ready)?;
    println!("chat at http://{chat}/message, Nexus at {url}");
    let nexus = Nexus { url: url.clone() };

    let told = tell(&nexus, chat, &messages);
    if keep && told.is_ok() {
        println!("\nstill running: {url} (trace view), {url}/metrics; process {}", server.pid());
        println!("stop it with Ctrl-C");
        loop {
            // The chat goes on to answer as well; the terminal's signal ends both.
            std::thread::park();
        }
    }
    told?;
    step("Stopping");
    server.stop().context("Nexus did not end well")?;
    std::fs::remove_dir_all(&data).with_context(|| data.display().to_string())?;
    println!("done");
    Ok(())
}

fn tell(nexus: &Nexus, chat: std::net::SocketAddr, messages: &mpsc::Receiver<String>) -> Result<()> {
    step("Deploying the example functions");
    let example = |name: &str| root().join("examples").join(name);
    nexus.show(&["deploy".into(), path(example("order-check"))])?;
    let forward_to = format!("FORWARD_URL=http://{chat}/message");
    nexus.show(&["deploy".into(), path(example("webhook-forward"))])?;
    let wasm = path(example("webhook-forward").join("webhook-forward.wasm"));
    nexus.json(&["deploy".into(), wasm, "--env".into(), forward_to])?;
    nexus.show(&["deploy".into(), path(example("thumbnail"))])?;

    step("Sending an order");
    let order = path(example("order-check").join("order.json"));
    let sent = nexus.json(&["send".into(), "--type".into(), "order.created".into(), "--file".into(), order])?;
    let receipt = &sent["events"][0];
    let id = text(&receipt["id"])?;
    println!("event {id}, durable at place {} of the log", receipt["seq"]);

    step("The order is checked, accepted, and told to the chat by an outgoing HTTP call");
    let event = nexus.until_done(&id)?;
    let emitted = text(&event["invocations"][0]["emitted"][0])?;
    nexus.until_done(&emitted)?;
    let message = messages.recv_timeout(PATIENCE).context("the chat got no message")?;
    println!("the chat got: {message}");

    step("One event's trace, with the kernel's part in it");
    nexus.show(&["trace".into(), id.clone()])?;
    let kernel = &event["invocations"][0]["kernel"];
    if kernel["mode"] == "off" {
        println!("\nthe kernel's part is missing: {}", kernel["reason"].as_str().unwrap_or("unknown"));
    }

    step("A picture becomes a thumbnail, by a call over HTTP");
    let picture = path(example("thumbnail").join("picture.png"));
    let thumbnail = nexus.raw(&["invoke".into(), "thumbnail".into(), "--file".into(), picture])?;
    ensure!(thumbnail.starts_with(b"\x89PNG"), "the thumbnail is no PNG");
    println!("{} bytes of PNG", thumbnail.len());

    step("The same order again, live, compared with what came of it before");
    nexus.show(&["replay".into(), id.clone(), "--mode".into(), "live".into()])?;
    let message = messages.recv_timeout(PATIENCE).context("the replayed order was not told to the chat")?;
    println!("the chat got it again, as live replay means: {message}");

    step("The same from its journal: exactly, and without a side effect");
    nexus.show(&["replay".into(), id.clone()])?;
    ensure!(messages.try_recv().is_err(), "a deterministic replay told the chat");

    step("Everything that happened to the event");
    nexus.show(&["events".into(), "get".into(), id])?;
    fix(nexus)
}

/// A function with a bug, its fix, and what the fix does to the events that failed.
fn fix(nexus: &Nexus) -> Result<()> {
    step("Yesterday: a function with a bug. The last of three orders has no items");
    let flawed = path(root().join("tests/guests/order-check-flawed"));
    nexus.show(&["deploy".into(), flawed, "--name".into(), "checkout".into()])?;
    let mug = r#"[{"sku": "mug-blue", "quantity": 2, "unit_price_cents": 1450}]"#;
    let coffee = r#"[{"sku": "coffee-1kg", "quantity": 200, "unit_price_cents": 2390}]"#;
    let mut last = String::new();
    for (number, items) in [(1, mug), (2, coffee), (3, "[]")] {
        let data = format!(r#"{{"order_id": "o-{number}", "customer": "ada@example.com", "items": {items}}}"#);
        let sent = nexus.json(&["send".into(), "--type".into(), "order.placed".into(), "--data".into(), data])?;
        last = text(&sent["events"][0]["id"])?;
    }
    let dead = nexus.until_settled(&last)?;
    println!("the last: {}", dead["invocations"][0]["error"].as_str().unwrap_or("no error"));
    ensure!(dead["status"] == "dead", "it did not fail: {dead:#}");

    step("Today: the same three from their journals. What failed fails in the same way");
    let all = ["replay", "--type", "order.placed"].map(str::to_owned);
    nexus.show(&all)?;

    step("The fix, on yesterday's events, before any of them is delivered to it");
    let fixed = path(root().join("examples/order-check/order-check.wasm"));
    nexus.show(&["deploy".into(), fixed, "--name".into(), "checkout".into()])?;
    nexus.show(&[&all[..], &["--function".into(), "checkout@2".into()]].concat())?;

    step("What had failed, delivered again");
    nexus.show(&["dlq".into(), "retry".into(), "--function".into(), "checkout".into(), "--yes".into()])?;
    nexus.until_done(&last)?;
    nexus.show(&["events".into(), "get".into(), last])
}

fn step(what: &str) {
    println!("\n== {what}");
}

fn path(path: PathBuf) -> String {
    path.display().to_string()
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("expected text, not {value}"))
}

fn program() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("debug/nexus")
}

/// The command line, as a user has it.
struct Nexus {
    url: String,
}

impl Nexus {
    fn command(&self, args: &[String]) -> Command {
        let mut command = Command::new(program());
        command.args(args).env("NEXUS_URL", &self.url);
        command
    }

    /// Shows a command and what it prints.
    fn show(&self, args: &[String]) -> Result<()> {
        println!("$ nexus {}", args.join(" ").replace(&format!("{}/", root().display()), ""));
        must(&mut self.command(args))
    }

    fn json(&self, args: &[String]) -> Result<Value> {
        let mut command = self.command(args);
        command.args(["--output", "json"]);
        Ok(serde_json::from_str(&output(&mut command)?)?)
    }

    fn raw(&self, args: &[String]) -> Result<Vec<u8>> {
        let out = self.command(args).output()?;
        ensure!(out.status.success(), "nexus {} failed: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
        Ok(out.stdout)
    }

    /// Waits until nothing more becomes of an event by itself, and returns it.
    fn until_settled(&self, id: &str) -> Result<Value> {
        let began = Instant::now();
        loop {
            let event = self.json(&["events".into(), "get".into(), id.into()])?;
            if matches!(event["status"].as_str(), Some("done" | "dead")) {
                return Ok(event);
            }
            ensure!(began.elapsed() < PATIENCE, "event {id} is still {}", event["status"]);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until an event is done, and returns it.
    fn until_done(&self, id: &str) -> Result<Value> {
        let began = Instant::now();
        loop {
            let event = self.json(&["events".into(), "get".into(), id.into()])?;
            match event["status"].as_str() {
                Some("done") => return Ok(event),
                Some("failed" | "dead") => bail!("event {id} failed: {event:#}"),
                _ => ensure!(began.elapsed() < PATIENCE, "event {id} is still {}", event["status"]),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Answers every POST with 200, and hands on what it said.
fn chat_server() -> Result<(std::net::SocketAddr, mpsc::Receiver<String>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (sender, messages) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            match answer(stream) {
                Ok(message) => {
                    if sender.send(message).is_err() {
                        return;
                    }
                }
                Err(error) => eprintln!("chat: {error}"),
            }
        }
    });
    Ok((address, messages))
}

fn answer(mut stream: TcpStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut length, mut chunked) = (String::new(), 0, false);
    while reader.read_line(&mut line)? > 2 {
        let header = line.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0).min(1 << 20);
        }
        chunked |= header.starts_with("transfer-encoding:") && header.contains("chunked");
        line.clear();
    }
    let mut body = vec![0; length];
    if chunked {
        body = read_chunks(&mut reader)?;
    } else {
        reader.read_exact(&mut body)?;
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

fn read_chunks(reader: &mut BufReader<TcpStream>) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut size = String::new();
        reader.read_line(&mut size)?;
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0).min(1 << 20);
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk)?;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(&chunk[..size]);
    }
}
