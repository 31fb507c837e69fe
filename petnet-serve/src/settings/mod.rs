//! Every setting, as a flag and as an environment variable.

mod memory_limit;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use petnet::Device;
use petnet::preprocess::Limits;
use serde::{Serialize, Serializer};

use crate::address::ModelSource;
use crate::hosts::AllowedHosts;

const EXAMPLES: &str = "\
Examples:
  petnet-serve
  petnet-serve --model models/best.safetensors --port 9000
  petnet-serve --model pets=models/best.safetensors --model breeds=models/breeds.safetensors
  petnet-serve --model pretrained --model new=models/best.safetensors --shadow new --shadow-share 0.2
  MLFLOW_TRACKING_URI=http://mlflow:5001 petnet-serve --model models:/CatsDogsClassifier@champion --follow
  PETNET_MODEL=model.safetensors PETNET_LOG_FORMAT=json petnet-serve
  curl -F file=@rex.jpg localhost:8000/predict";

/// Serve an image classifier over HTTP.
#[derive(Parser, Clone, Debug, Serialize)]
#[command(version, about, after_help = EXAMPLES)]
pub struct Settings {
    /// Model file, `pretrained` for the bundled one, or a registered model: models:/NAME@ALIAS,
    /// models:/NAME/STAGE or models:/NAME/VERSION; NAME=.. gives it another name. Several, given again or separated by
    /// commas, are served side by side; requests that name none go to the first [env: also MODEL_PATH]
    #[arg(
        long = "model",
        env = "PETNET_MODEL",
        value_name = "[NAME=]MODEL",
        value_delimiter = ',',
        default_values_os_t = [ModelSource::fallback()],
        hide_default_value = true,
        help_heading = "Model"
    )]
    pub models: Vec<ModelSource>,
    /// Name of one of the models that is tried on a share of the images of the first one, after their answers have
    /// left: agreement in metrics and on /shadow
    #[arg(long, env = "PETNET_SHADOW", value_name = "NAME", help_heading = "Model")]
    pub shadow: Option<String>,
    /// Share of the images that the shadow model gets, from 0 to 1
    #[arg(long, env = "PETNET_SHADOW_SHARE", default_value_t = 0.1, value_parser = share, help_heading = "Model")]
    pub shadow_share: f64,
    /// auto, cpu, ndarray, wgpu or wgpu:N
    #[arg(long, env = "PETNET_DEVICE", default_value = "cpu", help_heading = "Model")]
    #[serde(serialize_with = "as_text")]
    pub device: Device,
    /// How often to look whether the model file has changed; 0s never looks
    #[arg(long, env = "PETNET_WATCH", value_parser = duration, default_value = "2s", help_heading = "Model")]
    #[serde(serialize_with = "as_text")]
    pub watch: Duration,

    /// MLflow server that `models:/` names are looked up on
    #[arg(long, env = "MLFLOW_TRACKING_URI", hide_env_values = true, help_heading = "Model")]
    #[serde(skip)]
    pub tracking_uri: Option<String>,
    /// Look every so often what a `models:/` name stands for, and serve that
    #[arg(long, env = "PETNET_FOLLOW", value_name = "EVERY", value_parser = duration, num_args = 0..=1, default_missing_value = "10s", help_heading = "Model")]
    pub follow: Option<Duration>,
    /// Folder that keeps downloaded models [default: petnet in the user's cache folder]
    #[arg(long, env = "PETNET_MODEL_CACHE", help_heading = "Model")]
    pub model_cache: Option<PathBuf>,
    /// A dvc.lock; a model that it names counts as pulled
    #[arg(long, env = "PETNET_DVC_LOCK", help_heading = "Model")]
    pub dvc_lock: Option<PathBuf>,
    /// SHA-256 of the model file that should be running, for /artifacts/compare
    #[arg(long, env = "PETNET_EXPECT_MODEL_SHA256", help_heading = "Model")]
    pub expect_model_sha256: Option<String>,
    /// Version of petnet-serve that should be running, for /artifacts/compare
    #[arg(long, env = "PETNET_EXPECT_VERSION", help_heading = "Model")]
    pub expect_version: Option<String>,

    /// Address to listen on
    #[arg(long, env = "PETNET_HOST", default_value = "0.0.0.0", value_parser = host, help_heading = "Network")]
    pub host: std::net::IpAddr,
    /// Port to listen on; 0 takes a free one [env: also PORT]
    #[arg(long, env = "PETNET_PORT", default_value_t = fallback("PORT", "8000"), help_heading = "Network")]
    pub port: String,
    /// Address that serves /metrics alone, or `off`
    #[arg(
        long,
        env = "PETNET_METRICS_ADDR",
        default_value = "0.0.0.0:8081",
        help_heading = "Network"
    )]
    #[serde(serialize_with = "as_text")]
    pub metrics_addr: MetricsAddr,
    /// Certificate chain in PEM; with --tls-key the service speaks https
    #[arg(long, env = "PETNET_TLS_CERT", requires = "tls_key", help_heading = "Network")]
    pub tls_cert: Option<PathBuf>,
    /// Private key in PEM
    #[arg(long, env = "PETNET_TLS_KEY", requires = "tls_cert", help_heading = "Network")]
    pub tls_key: Option<PathBuf>,
    /// Origin that browsers on other sites may call from, or `*`
    #[arg(long, env = "PETNET_CORS_ORIGIN", help_heading = "Network")]
    pub cors_origin: Option<String>,

    /// Largest request body in bytes
    #[arg(long, env = "PETNET_MAX_BODY", default_value_t = 16 << 20, value_parser = positive, help_heading = "Limits")]
    pub max_body: usize,
    /// Memory of the whole process in MB, from which requests take what they need before they use it
    /// [default: the limit of the control group, else 512]
    #[arg(long, env = "PETNET_MEMORY", value_name = "MB", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub memory: Option<u64>,
    /// Memory in MB, a part of --memory, for answers of photos that come again, byte for byte; 0 keeps none
    #[arg(
        long,
        env = "PETNET_CACHE",
        value_name = "MB",
        default_value_t = 0,
        help_heading = "Limits"
    )]
    pub cache: u32,
    /// Largest photo in pixels
    #[arg(long, env = "PETNET_MAX_PIXELS", default_value_t = 50_000_000, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub max_pixels: u64,
    /// Most photos in one request
    #[arg(long, env = "PETNET_MAX_PARTS", default_value_t = 32, value_parser = positive, help_heading = "Limits")]
    pub max_parts: usize,
    /// Most bytes of request headers
    #[arg(long, env = "PETNET_MAX_HEADER", default_value_t = 16 << 10, value_parser = positive, help_heading = "Limits")]
    pub max_header: usize,
    /// Most open connections; more wait [default: two for each MB of memory, 1024 at most]
    #[arg(long, env = "PETNET_MAX_CONNECTIONS", value_name = "N", value_parser = connections, help_heading = "Limits")]
    pub max_connections: Option<usize>,
    /// Most open connections of one address; more are closed [default: half of all]
    #[arg(long, env = "PETNET_MAX_CONNECTIONS_PER_ADDRESS", value_name = "N", value_parser = connections, help_heading = "Limits")]
    pub max_connections_per_address: Option<usize>,
    /// Longest wait for a request's headers, also on an idle connection
    #[arg(long, env = "PETNET_HEADER_TIMEOUT", value_parser = some_time, default_value = "20s", help_heading = "Limits")]
    #[serde(serialize_with = "as_text")]
    pub header_timeout: Duration,
    /// Longest pause while a body arrives or an answer is read
    #[arg(long, env = "PETNET_TRANSFER_TIMEOUT", value_parser = some_time, default_value = "20s", help_heading = "Limits")]
    #[serde(serialize_with = "as_text")]
    pub transfer_timeout: Duration,
    /// Lowest rate at which a body arrives and answers are read, in bytes a second, beyond that pause
    #[arg(long, env = "PETNET_MIN_RATE", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub min_rate: u64,
    /// Longest time on a core that decoding a photo may take
    #[arg(long, env = "PETNET_DECODE_TIMEOUT", value_parser = some_time, default_value = "2s", help_heading = "Limits")]
    #[serde(serialize_with = "as_text")]
    pub decode_timeout: Duration,
    /// Longest wait for an answer of the model
    #[arg(long, env = "PETNET_REQUEST_TIMEOUT", value_parser = some_time, default_value = "10s", help_heading = "Limits")]
    #[serde(serialize_with = "as_text")]
    pub request_timeout: Duration,

    /// Hosts that clients may have images fetched from by `url`, separated by commas: a.example, *.b.example,
    /// cdn.c.example:8443, http://10.0.0.5:9000. https without http://; names must resolve to public addresses,
    /// an IP address is permitted as it is [default: none, `url` is refused]
    #[arg(
        long,
        env = "PETNET_IMAGE_HOSTS",
        value_name = "HOST,...",
        help_heading = "Images by URL"
    )]
    pub image_hosts: Option<AllowedHosts>,
    /// Longest time to fetch an image, with the wait for a turn
    #[arg(long, env = "PETNET_FETCH_TIMEOUT", value_parser = some_time, default_value = "15s", help_heading = "Images by URL")]
    #[serde(serialize_with = "as_text")]
    pub fetch_timeout: Duration,
    /// Longest wait for a turn, and then for an image's headers: name resolution, connection, TLS and redirects together
    #[arg(long, env = "PETNET_FETCH_HEADER_TIMEOUT", value_parser = some_time, default_value = "5s", help_heading = "Images by URL")]
    #[serde(serialize_with = "as_text")]
    pub fetch_header_timeout: Duration,
    /// Most images that are fetched at a time; more wait in turn
    #[arg(long, env = "PETNET_MAX_FETCHES", default_value_t = 8, value_parser = positive, help_heading = "Images by URL")]
    pub max_fetches: usize,

    /// Most photos in one pass through the network
    #[arg(long, env = "PETNET_MAX_BATCH", default_value_t = 16, value_parser = positive, help_heading = "Batching")]
    pub max_batch: usize,
    /// Average each image's outputs with those of its mirror image (test-time augmentation), for twice the network's
    /// time
    #[arg(long, env = "PETNET_TTA", help_heading = "Batching")]
    pub tta: bool,
    /// Most photos from decoding to answer; more wait in turn
    #[arg(long, env = "PETNET_QUEUE", default_value_t = 32, value_parser = positive, help_heading = "Batching")]
    pub queue: usize,
    /// Longest wait for a turn; who would wait longer is refused
    #[arg(long, env = "PETNET_QUEUE_TIMEOUT", value_parser = some_time, default_value = "2s", help_heading = "Batching")]
    #[serde(serialize_with = "as_text")]
    pub queue_timeout: Duration,
    /// Threads that decode photos; 0 takes one a core
    #[arg(long, env = "PETNET_DECODE_THREADS", default_value_t = 0, help_heading = "Batching")]
    pub decode_threads: usize,

    /// After SIGTERM, how long to serve on while /readyz says no
    #[arg(long, env = "PETNET_DRAIN_DELAY", value_parser = duration, default_value = "5s", help_heading = "Shutdown")]
    #[serde(serialize_with = "as_text")]
    pub drain_delay: Duration,
    /// How long open requests may take to finish then
    #[arg(long, env = "PETNET_GRACE", value_parser = duration, default_value = "20s", help_heading = "Shutdown")]
    #[serde(serialize_with = "as_text")]
    pub grace: Duration,

    /// Folder that keeps predictions for the labels that may come (no photos), or `off`
    /// [default: feedback, where it can be written]
    #[arg(long, env = "PETNET_FEEDBACK", help_heading = "Feedback and drift")]
    pub feedback: Option<String>,
    /// How long predictions and labels are kept
    #[arg(long, env = "PETNET_FEEDBACK_KEEP", value_parser = duration, default_value = "30d", help_heading = "Feedback and drift")]
    #[serde(serialize_with = "as_text")]
    pub feedback_keep: Duration,
    /// Most bytes of them on disk, besides a journal of 64 MiB
    #[arg(
        long,
        env = "PETNET_FEEDBACK_MAX_BYTES",
        default_value_t = 256 << 20,
        help_heading = "Feedback and drift"
    )]
    pub feedback_max_bytes: u64,
    /// Recent photos that are compared with those that the model was judged on
    #[arg(
        long,
        env = "PETNET_DRIFT_WINDOW",
        default_value_t = 1000,
        value_parser = positive,
        help_heading = "Feedback and drift"
    )]
    pub drift_window: usize,
    /// Time without a request that ends a client's session
    #[arg(long, env = "PETNET_SESSION_IDLE", value_parser = duration, default_value = "15m", help_heading = "Feedback and drift")]
    #[serde(serialize_with = "as_text")]
    pub session_idle: Duration,

    /// SHA-256 of each accepted API key in hex, separated by commas (`printf %s KEY | sha256sum`);
    /// without one, everything is open but reloading the model
    #[arg(
        long,
        env = "PETNET_API_KEYS_SHA256",
        value_delimiter = ',',
        hide_env_values = true,
        help_heading = "Access"
    )]
    #[serde(skip)]
    pub api_keys_sha256: Vec<String>,

    /// YAML file of named keys: a list of {name, sha256, scopes: [predict, feedback, export, metrics, admin],
    /// requests_per_second, requests_per_day}; read anew on SIGHUP
    #[arg(long, env = "PETNET_API_KEYS", value_name = "FILE", help_heading = "Access")]
    pub api_keys: Option<PathBuf>,

    /// OpenTelemetry collector that takes traces and metrics over HTTP; OTEL_METRICS_EXPORTER=none leaves metrics out,
    /// OTEL_METRIC_EXPORT_INTERVAL, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER and others are read too
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        value_name = "http://HOST:4318",
        help_heading = "Logs and traces"
    )]
    pub otlp_endpoint: Option<String>,
    /// How to log
    #[arg(
        long,
        env = "PETNET_LOG_FORMAT",
        value_enum,
        default_value = "auto",
        help_heading = "Logs and traces"
    )]
    #[serde(serialize_with = "as_text")]
    pub log_format: LogFormat,
    /// error, warn, info, debug or trace
    #[arg(
        long = "log",
        env = "PETNET_LOG",
        default_value = "info",
        help_heading = "Logs and traces"
    )]
    pub log_level: String,
}

impl Default for Settings {
    /// The defaults of `--help`, without the environment's.
    fn default() -> Self {
        Self::parse_from(["petnet-serve"])
    }
}

impl Settings {
    /// Where feedback is kept unless told otherwise.
    pub(crate) const FEEDBACK: &str = "feedback";

    /// What is decoded at most.
    pub(crate) fn limits(&self) -> Limits {
        let max_bytes = self.max_body as u64;
        Limits { max_bytes, max_pixels: self.max_pixels, ..Limits::default() }
    }

    /// Limits of an image that is fetched by its URL.
    /// Memory of the whole process in bytes.
    pub(crate) fn memory_limit(&self) -> u64 {
        self.memory.map_or_else(memory_limit::default_limit, |megabytes| megabytes << 20)
    }

    /// Memory of answers that are kept, in bytes.
    pub(crate) fn cache_bytes(&self) -> u64 {
        u64::from(self.cache) << 20
    }

    /// Number of decoding threads.
    pub(crate) fn decoders(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        if self.decode_threads == 0 { cores() } else { self.decode_threads }
    }

    /// Most open connections of a listener.
    pub(crate) fn connections(&self) -> usize {
        let by_memory = || ((self.memory_limit() >> 19) as usize).clamp(16, 1024);
        self.max_connections.unwrap_or_else(by_memory)
    }

    /// Most open connections of one address.
    pub(crate) fn connections_of_one(&self) -> usize {
        self.max_connections_per_address.unwrap_or_else(|| self.connections().div_ceil(2))
    }

    /// Where to listen.
    ///
    /// # Errors
    /// When the port is no number from 0 to 65535.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        let port = self.port.parse().with_context(|| format!("--port {}", self.port))?;
        Ok(SocketAddr::new(self.host, port))
    }
}

/// An address, or `localhost`.
fn host(text: &str) -> Result<std::net::IpAddr, String> {
    match text {
        "localhost" => Ok(std::net::Ipv4Addr::LOCALHOST.into()),
        _ => text.parse().map_err(|_| "must be an IP address of this machine or localhost".into()),
    }
}

/// Where metrics are served alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAddr {
    /// Nowhere; `/metrics` on the service's own port stays.
    Off,
    /// On this address.
    At(SocketAddr),
}

impl std::str::FromStr for MetricsAddr {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" { Ok(Self::Off) } else { text.parse().map(Self::At) }
    }
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Pretty on a terminal, else JSON.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

fn some_time(text: &str) -> Result<Duration, String> {
    let time = duration(text).map_err(|error| error.to_string())?;
    if time.is_zero() { Err("must be longer than 0".into()) } else { Ok(time) }
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("must be from 0 to 1".into()) }
}

fn positive(text: &str) -> Result<usize, String> {
    number(text, usize::MAX)
}

fn connections(text: &str) -> Result<usize, String> {
    number(text, 1 << 20)
}

fn number(text: &str, most: usize) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|error| format!("{error}"))?;
    if (1..=most).contains(&number) { Ok(number) } else { Err(format!("must be from 1 to {most}")) }
}

fn as_text<T: std::fmt::Debug, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{value:?}"))
}

fn fallback(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default.into())
}
