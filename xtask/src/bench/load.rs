//! Load: wrk, and single requests that are timed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use serde_json::Value;

use crate::process::{Running, find, output, root};

/// What one measurement gave.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Requests.
    pub requests: f64,
    /// Requests a second.
    pub per_second: f64,
    /// The median latency in microseconds.
    pub p50_us: f64,
    /// The 99th percentile in microseconds.
    pub p99_us: f64,
}

/// The load generator.
pub struct Wrk {
    program: PathBuf,
    seconds: u32,
}

/// Prints one line that is read back, in the place of wrk's own report.
const REPORT: &str = r#"
done = function(summary, latency, requests)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format("RESULT %d %d %d %d %d\n", summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), bad))
end
"#;

/// Every event has an id of its own. One thread of wrk makes them all, so one counter is enough.
const EVENTS: &str = r#"
local n = 0
request = function()
  if BATCH == 1 then
    n = n + 1
    wrk.headers["ce-id"] = PREFIX .. n
    return wrk.format("POST", nil, nil, BODY)
  end
  local events = {}
  for i = 1, BATCH do
    n = n + 1
    events[i] = '{"specversion":"1.0","id":"' .. PREFIX .. n .. '","source":"/bench","type":"bench","data":' .. BODY .. '}'
  end
  return wrk.format("POST", nil, nil, "[" .. table.concat(events, ",") .. "]")
end
"#;

/// What stands for a prefix that no id had before.
const PREFIX: &str = "@PREFIX@";

const BODY: &str = r#"{"order_id":"o-1","items":[{"sku":"a","quantity":2}],"note":"a payload of an ordinary size, some hundred bytes"}"#;

impl Wrk {
    /// wrk, and how long each measurement takes.
    pub fn find(seconds: u32) -> Result<Self> {
        let program = find("wrk").context("the load generator is missing: apt-get install wrk")?;
        std::fs::create_dir_all(root().join("target/bench"))?;
        Ok(Self { program, seconds })
    }

    /// How long each measurement takes.
    pub fn seconds(&self) -> u32 {
        self.seconds
    }

    /// GET, over and over.
    pub fn get(&self, url: &str) -> Result<Measured> {
        self.run(url, REPORT)
    }

    /// The same after a time of it, with what the server's processor time was before and after.
    pub fn get_and_watch(&self, url: &str, server: &Running) -> Result<(Measured, f64)> {
        self.load(url, REPORT, 1)?;
        let before = server.cpu_us()?;
        let measured = self.measure(url, REPORT)?;
        Ok((measured, (server.cpu_us()? - before) / measured.requests))
    }

    /// Events, one or a batch a request.
    pub fn post_events(&self, url: &str, batch: u32) -> Result<Measured> {
        let headers = if batch == 1 {
            "wrk.headers[\"ce-specversion\"]=\"1.0\"\nwrk.headers[\"ce-source\"]=\"/bench\"\nwrk.headers[\"ce-type\"]=\"bench\"\n\
             wrk.headers[\"content-type\"]=\"application/json\"\n"
        } else {
            "wrk.headers[\"content-type\"]=\"application/cloudevents-batch+json\"\n"
        };
        let script = format!(
            "local BATCH = {batch}\nlocal PREFIX = '{PREFIX}-'\nlocal BODY = '{BODY}'\n{headers}{EVENTS}{REPORT}"
        );
        self.run(&format!("{url}/v1/events"), &script)
    }

    fn run(&self, url: &str, script: &str) -> Result<Measured> {
        // Warm: the peer's caches, the processor's, ours.
        self.load(url, script, 1)?;
        self.measure(url, script)
    }

    fn load(&self, url: &str, script: &str, seconds: u32) -> Result<String> {
        let path = root().join("target/bench/wrk.lua");
        // Ids that were sent before would be duplicates, which cost the log nothing.
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros().to_string();
        std::fs::write(&path, script.replace(PREFIX, &now))?;
        let mut wrk = Command::new(&self.program);
        wrk.args(["-t1", &format!("-c{}", super::CONNECTIONS), &format!("-d{seconds}s"), "-s"]).arg(&path).arg(url);
        output(&mut wrk)
    }

    fn measure(&self, url: &str, script: &str) -> Result<Measured> {
        let text = self.load(url, script, self.seconds)?;
        let line = text.lines().find_map(|l| l.strip_prefix("RESULT ")).with_context(|| text.clone())?;
        let numbers: Vec<f64> = line.split(' ').filter_map(|n| n.parse().ok()).collect();
        ensure!(numbers.len() == 5 && numbers[0] > 0.0, "wrk measured nothing: {text}");
        ensure!(numbers[4] == 0.0, "{} of {} requests failed: {text}", numbers[4], numbers[0]);
        Ok(Measured {
            requests: numbers[0],
            per_second: numbers[0] / numbers[1] * 1e6,
            p50_us: numbers[2],
            p99_us: numbers[3],
        })
    }
}

/// One request's time and its event.
pub struct Once {
    /// From before the connection to the whole response, in microseconds.
    pub us: f64,
    /// The event that stands for the call.
    pub event_id: String,
}

/// GETs once over a new connection.
pub fn once(url: &str) -> Result<Once> {
    let rest = url.strip_prefix("http://").context("http")?;
    let (address, path) = rest.split_once('/').context("a path")?;
    let began = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    write!(stream, "GET /{path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let us = began.elapsed().as_secs_f64() * 1e6;
    let head = String::from_utf8_lossy(&answer);
    let header = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim().to_owned());
    let event_id = header("nexus-event-id:").with_context(|| format!("no event id: {head}"))?;
    Ok(Once { us, event_id })
}

/// A connection to a server, for one request after the other.
pub struct Connection {
    address: String,
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// To the server at this URL.
    pub fn to(url: &str) -> Result<Self> {
        let address = url.strip_prefix("http://").context("http")?.trim_end_matches('/').to_owned();
        let stream = TcpStream::connect(&address)?;
        stream.set_nodelay(true)?;
        Ok(Self { address, stream: BufReader::new(stream) })
    }

    /// GETs; the body.
    pub fn get(&mut self, path: &str) -> Result<String> {
        self.request(&format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.address))
    }

    /// POSTs; the body.
    pub fn post(&mut self, path: &str, media_type: &str, body: &str) -> Result<String> {
        let head = format!("POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: {media_type}\r\n", self.address);
        self.request(&format!("{head}content-length: {}\r\n\r\n{body}", body.len()))
    }

    /// PUTs; the body.
    pub fn put(&mut self, path: &str, media_type: &str, body: &str) -> Result<String> {
        let head = format!("PUT {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: {media_type}\r\n", self.address);
        self.request(&format!("{head}content-length: {}\r\n\r\n{body}", body.len()))
    }

    /// The place of the newest event; 0 if there is none.
    pub fn newest_seq(&mut self) -> Result<f64> {
        let page: Value = serde_json::from_str(&self.get("/v1/events?limit=1")?)?;
        Ok(page["items"][0]["seq"].as_f64().unwrap_or(0.0))
    }

    fn request(&mut self, text: &str) -> Result<String> {
        self.stream.get_mut().write_all(text.as_bytes())?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(self.stream.read_line(&mut head)? > 0, "the server hung up: {head}");
        }
        let length = head.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse().ok());
        let mut body = vec![0; length.with_context(|| format!("no content-length: {head}"))?];
        self.stream.read_exact(&mut body)?;
        let body = String::from_utf8(body)?;
        ensure!(head.starts_with("HTTP/1.1 2"), "{head}{body}");
        Ok(body)
    }
}
