//! The configuration: defaults, then the file, then the environment and the flags; checked once, at start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// How the kernel's account is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KernelWanted {
    /// Where it can be had.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// Without it, do not start.
    Required,
}

/// How much the kernel's account tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KernelDetail {
    /// System calls, and where the time went.
    #[default]
    Full,
    /// System calls only, which costs a little less.
    Counts,
}

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum OtlpProtocol {
    /// gRPC, usually on port 4317.
    #[default]
    #[serde(rename = "grpc")]
    Grpc,
    /// HTTP with protobuf, usually on port 4318.
    #[serde(rename = "http/protobuf")]
    #[value(name = "http/protobuf")]
    HttpProtobuf,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// Everything that can be set. Unknown keys in the file are errors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen. A port of 0 takes a free one.
    pub listen: SocketAddr,
    /// Where everything durable is.
    pub data_dir: PathBuf,
    /// The kernel's account.
    pub kernel: KernelWanted,
    /// How much it tells.
    pub kernel_detail: KernelDetail,
    /// The socket of a `nexus-collector`, which loads the probes where this process may not. None: it loads them itself.
    pub collector: Option<PathBuf>,
    /// What the probes may cost, as a part of the processor time without them: measured now and then, they tell as much as
    /// that pays for. None: they tell all they can.
    pub kernel_overhead_max: Option<f64>,
    /// A system call that takes longer than this becomes a span event of its own.
    pub slow_syscall_us: u64,
    /// How logs are written.
    pub log_format: LogFormat,
    /// Where traces go.
    pub otlp: Otlp,
    /// Bounds on what comes in.
    pub limits: ServerLimits,
    /// How long events are kept.
    pub retention: Retention,
    /// NATS, where the log is to be there. None: it is in the data directory.
    pub nats: Option<Nats>,
    /// Names under which the API may be reached, beside addresses, `localhost` and names below it.
    pub hosts_allowed: Vec<String>,
    /// Folders below which functions may have mounts; none by default.
    pub mounts_allowed: Vec<PathBuf>,
}

/// Where traces go.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Otlp {
    /// `http://host:port`; none: nowhere but the local trace view.
    pub endpoint: Option<String>,
    /// gRPC or HTTP.
    pub protocol: OtlpProtocol,
}

/// Bounds on what comes in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerLimits {
    /// The largest body of an event, a batch or a call, in bytes.
    pub body_bytes_max: usize,
    /// The largest component, in bytes.
    pub component_bytes_max: usize,
    /// The most events in one batch.
    pub batch_events_max: usize,
    /// Requests that are worked on at once; more are answered with 503.
    pub requests_max: usize,
    /// HTTP calls that may wait for one function beside those that run; more are answered with 429.
    pub calls_waiting_max: usize,
    /// Open connections; more wait to be accepted.
    pub connections_max: usize,
    /// How long a client may take to send its request, in seconds.
    pub read_timeout_s: u64,
    /// How long running work may take to end after a signal to stop, in seconds.
    pub drain_timeout_s: u64,
    /// Instances of functions that may live at once.
    pub instances_max: u32,
    /// What deliveries in flight may hold in memory, in KiB.
    pub in_flight_kib_max: u32,
    /// The free disk space that is kept to finish work with, in MiB.
    pub disk_reserve_mib: u64,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            body_bytes_max: 6 << 20,
            component_bytes_max: 64 << 20,
            batch_events_max: 10_000,
            requests_max: 4096,
            calls_waiting_max: 500,
            connections_max: 8192,
            read_timeout_s: 30,
            drain_timeout_s: 30,
            instances_max: 1000,
            in_flight_kib_max: 256 << 10,
            disk_reserve_mib: 256,
        }
    }
}

/// NATS JetStream, and the log in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nats {
    /// Addresses of servers of one cluster with commas between them, as `nats://host:4222` or `tls://host:4222`; or `managed`:
    /// a server of our own.
    pub servers: String,
    /// Copies of each message in the cluster: 1, 3 or 5.
    pub replicas: u8,
    /// The name of the stream.
    pub stream: String,
    /// A file of credentials, as `nsc` makes it.
    pub credentials: Option<PathBuf>,
    /// A file with a token.
    pub token_file: Option<PathBuf>,
    /// Certificates to trust beside the system's, in PEM.
    pub ca: Option<PathBuf>,
    /// A certificate to show to the server, in PEM.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// The cluster that the stream is to be in.
    pub placement_cluster: Option<String>,
    /// Tags that the stream's servers must have.
    pub placement_tags: Vec<String>,
    /// The program that is started for `managed`.
    pub program: PathBuf,
}

impl Default for Nats {
    fn default() -> Self {
        Self {
            servers: String::new(),
            replicas: 1,
            stream: "NEXUS".into(),
            credentials: None,
            token_file: None,
            ca: None,
            certificate: None,
            key: None,
            placement_cluster: None,
            placement_tags: Vec::new(),
            program: "nats-server".into(),
        }
    }
}

impl Nats {
    fn validate(&self) -> anyhow::Result<()> {
        let managed = self.servers == crate::storage::MANAGED;
        if self.servers.trim().is_empty() {
            bail!("config: `nats.servers` is empty; it must be nats://host:port, several with commas, or managed");
        }
        for server in self.servers.split(',').filter(|_| !managed) {
            let url = url::Url::parse(server.trim());
            if !url.is_ok_and(|url| matches!(url.scheme(), "nats" | "tls") && url.host().is_some()) {
                // Not repeated: a password may be in it.
                bail!("config: `nats.servers` has an address that is not nats://host:port or tls://host:port");
            }
        }
        if !matches!(self.replicas, 1 | 3 | 5) || (managed && self.replicas != 1) {
            bail!("config: `nats.replicas` is {}; it must be 1, 3 or 5, and 1 for a managed server", self.replicas);
        }
        if self.certificate.is_some() != self.key.is_some() {
            bail!("config: `nats.certificate` and `nats.key` belong together");
        }
        Ok(())
    }
}

/// How long events are kept; what is not yet delivered is kept in any case.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// In hours; none: for ever.
    pub age_hours_max: Option<u64>,
    /// In MiB; none: without bound.
    pub size_mib_max: Option<u64>,
    /// The time in which the same `source` and `id` is a duplicate, in hours.
    pub dedup_hours: u64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { age_hours_max: Some(7 * 24), size_mib_max: Some(10 << 10), dedup_hours: 24 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7070)),
            data_dir: PathBuf::from("nexus-data"),
            kernel: KernelWanted::default(),
            kernel_detail: KernelDetail::default(),
            collector: None,
            kernel_overhead_max: None,
            slow_syscall_us: 50,
            log_format: LogFormat::default(),
            otlp: Otlp::default(),
            limits: ServerLimits::default(),
            retention: Retention::default(),
            nats: None,
            hosts_allowed: Vec::new(),
            mounts_allowed: Vec::new(),
        }
    }
}

impl Config {
    /// Reads the file over the defaults.
    pub fn from_file(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        // The library's error has a drawing over several lines; the first says what, the span says where.
        toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            anyhow::anyhow!("{}, line {line}: {}", path.display(), e.message().trim())
        })
    }

    /// Takes what the standard `OTEL_EXPORTER_OTLP_*` variables say where nothing else was said.
    pub fn with_otel_environment(mut self, get: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let either = |name: &str| {
            get(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}"))
                .or_else(|| get(&format!("OTEL_EXPORTER_OTLP_{name}")))
                .filter(|v| !v.is_empty())
        };
        if self.otlp.endpoint.is_none() {
            self.otlp.endpoint = either("ENDPOINT");
            match either("PROTOCOL").as_deref() {
                None => {}
                Some("grpc") => self.otlp.protocol = OtlpProtocol::Grpc,
                Some("http/protobuf") => self.otlp.protocol = OtlpProtocol::HttpProtobuf,
                Some(other) => bail!("OTEL_EXPORTER_OTLP_PROTOCOL is {other:?}; use grpc or http/protobuf"),
            }
        }
        Ok(self)
    }

    /// Checks every bound; names the key.
    pub fn validate(&self) -> anyhow::Result<()> {
        let range = |key: &str, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            bail!("config: `{key}` is {value}; it must be {min} to {max}")
        };
        let limits = &self.limits;
        range("slow_syscall_us", self.slow_syscall_us, 0, 60_000_000)?;
        range("limits.body_bytes_max", limits.body_bytes_max as u64, 1 << 10, 1 << 30)?;
        range("limits.component_bytes_max", limits.component_bytes_max as u64, 1 << 10, 1 << 30)?;
        range("limits.batch_events_max", limits.batch_events_max as u64, 1, 1_000_000)?;
        range("limits.requests_max", limits.requests_max as u64, 1, 1_000_000)?;
        range("limits.calls_waiting_max", limits.calls_waiting_max as u64, 0, 1_000_000)?;
        range("limits.connections_max", limits.connections_max as u64, 1, 1_000_000)?;
        range("limits.read_timeout_s", limits.read_timeout_s, 1, 3600)?;
        range("limits.drain_timeout_s", limits.drain_timeout_s, 0, 3600)?;
        range("limits.instances_max", u64::from(limits.instances_max), 1, 10_000)?;
        range("limits.in_flight_kib_max", u64::from(limits.in_flight_kib_max), 1 << 10, 64 << 20)?;
        range("limits.disk_reserve_mib", limits.disk_reserve_mib, 0, 1 << 20)?;
        range("retention.dedup_hours", self.retention.dedup_hours, 0, 24 * 365)?;
        if let Some(max) = self.kernel_overhead_max
            && !(0.0..=1.0).contains(&max)
        {
            bail!("config: `kernel_overhead_max` is {max}; it must be 0 to 1, as 0.03 is three in a hundred")
        }
        for host in &self.hosts_allowed {
            // A name as it stands in the Host header: without scheme, port or path.
            let plain = host.to_ascii_lowercase();
            if host.contains(['*', ':', '/']) || !url::Host::parse(host).is_ok_and(|parsed| parsed.to_string() == plain)
            {
                bail!(
                    "config: `hosts_allowed` has {host:?}; it must be a name as browsers send it, as `nexus.example` or \
                     `xn--mnchen-3ya.example` is, without a port"
                );
            }
        }
        if let Some(nats) = &self.nats {
            nats.validate()?;
        }
        if let Some(endpoint) = &self.otlp.endpoint {
            let url = url::Url::parse(endpoint).with_context(|| format!("config: `otlp.endpoint` {endpoint:?}"))?;
            if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
                bail!("config: `otlp.endpoint` is {endpoint:?}; it must be http://host:port or https://host:port");
            }
        }
        Ok(())
    }

    /// How long running work may take to end.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.limits.drain_timeout_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_text(text: &str) -> anyhow::Result<Config> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        let config = Config::from_file(file.path())?;
        config.validate()?;
        Ok(config)
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, expected: &str| {
            let error = format!("{:#}", from_text(text).expect_err(text));
            assert!(error.contains(expected), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        };
        check("listne = 1", "listne");
        check("\n\nlisten = \"x\"", "line 3");
        check("[limits]\nrequests_max = 0", "limits.requests_max");
        check("[limits]\nrequest_max = 1", "request_max");
        check("[otlp]\nendpoint = \"localhost\"", "otlp.endpoint");
        check("kernel = \"maybe\"", "maybe");
        check("hosts_allowed = [\"http://a.example\"]", "hosts_allowed");
        check("hosts_allowed = [\"a.example:80\"]", "hosts_allowed");
        check("hosts_allowed = [\"*.example\"]", "hosts_allowed");
        check("hosts_allowed = [\"münchen.example\"]", "hosts_allowed");
        check("kernel_overhead_max = 2.0", "kernel_overhead_max");
        check("[nats]\nreplicas = 3", "nats.servers");
        check("[nats]\nservers = \"http://a\"", "nats.servers");
        check("[nats]\nservers = \"nats://a,b:c@d\"", "nats.servers");
        check("[nats]\nservers = \"managed\"\nreplicas = 3", "nats.replicas");
        check("[nats]\nservers = \"nats://a\"\nreplicas = 2", "nats.replicas");
        check("[nats]\nservers = \"nats://a\"\nkey = \"k\"", "nats.certificate");
    }

    #[test]
    fn the_defaults_are_valid_and_loopback() {
        let config = Config::default();
        config.validate().expect("valid");
        assert!(config.listen.ip().is_loopback());
        assert!(from_text("").is_ok());
    }

    #[test]
    fn the_standard_variables_count_where_nothing_else_was_said() {
        let env = |name: &str| match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("http://127.0.0.1:4318".to_owned()),
            "OTEL_EXPORTER_OTLP_PROTOCOL" => Some("http/protobuf".to_owned()),
            _ => None,
        };
        let config = Config::default().with_otel_environment(env).expect("config");
        assert_eq!(config.otlp.protocol, OtlpProtocol::HttpProtobuf);
        let mut config = Config::default();
        config.otlp.endpoint = Some("http://127.0.0.1:1".into());
        let config = config.with_otel_environment(env).expect("config");
        assert_eq!(config.otlp.endpoint.as_deref(), Some("http://127.0.0.1:1"));
        assert_eq!(config.otlp.protocol, OtlpProtocol::Grpc);
    }
}
