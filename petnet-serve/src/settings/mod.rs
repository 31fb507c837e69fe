//! Settings of the service; each is a flag and an environment variable.

mod memory_limit;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use petnet::Device;
use petnet::preprocess::Limits;
use serde::{Serialize, Serializer};

use crate::hosts::AllowedHosts;
use crate::model_source::ModelSource;

const EXAMPLES: &str = "\
Examples:
  Serve the bundled model on port 8000, and classify an image
    petnet-serve
    curl -F file=@rex.jpg localhost:8000/predict
  Serve one model file on another port
    petnet-serve --model models/best.safetensors --port 9000
  Serve two models under names
    petnet-serve --model pets=models/best.safetensors --model breeds=models/breeds.safetensors
  Try a second model on a fifth of the images
    petnet-serve --model pretrained --model new=models/best.safetensors --shadow new --shadow-share 0.2
  Follow an alias of an MLflow registry
    MLFLOW_TRACKING_URI=http://mlflow:5001 petnet-serve --model models:/CatsDogsClassifier@champion --follow
  Set flags by environment variables
    PETNET_MODEL=model.safetensors PETNET_LOG_FORMAT=json petnet-serve";

/// Serve an image classifier over HTTP.
#[derive(Parser, Clone, Debug, Serialize)]
#[command(version, about, after_help = EXAMPLES)]
pub struct Settings {
    /// Model to serve: a file, `pretrained` for the bundled model, or a registered model as models:/NAME@ALIAS,
    /// models:/NAME/STAGE or models:/NAME/VERSION. NAME= in front sets the name that clients use. The flag may be
    /// repeated, or several models separated by commas; requests that name no model use the first
    /// [default: pretrained] [env: also MODEL_PATH]
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
    /// Name of the model to run as a shadow: it classifies a share of the first model's images after their responses
    /// are sent, and its agreement with the first model is in the metrics and on /shadow
    #[arg(long, env = "PETNET_SHADOW", value_name = "NAME", help_heading = "Model")]
    pub shadow: Option<String>,
    /// Share of the first model's images that the shadow model classifies, from 0 to 1
    #[arg(long, env = "PETNET_SHADOW_SHARE", default_value_t = 0.1, value_parser = share, help_heading = "Model")]
    pub shadow_share: f64,
    /// Device that runs the models: auto, cpu, ndarray, wgpu or wgpu:N
    #[arg(long, env = "PETNET_DEVICE", default_value = "cpu", help_heading = "Model")]
    #[serde(serialize_with = "as_text")]
    pub device: Device,
    /// Interval between two checks for a changed model file, which is then reloaded; 0s disables the check
    #[arg(long, env = "PETNET_WATCH", value_parser = duration, default_value = "2s", help_heading = "Model")]
    #[serde(serialize_with = "as_text")]
    pub watch: Duration,

    /// URL of the MLflow server that resolves `models:/` names
    #[arg(long, env = "MLFLOW_TRACKING_URI", hide_env_values = true, help_heading = "Model")]
    #[serde(skip)]
    pub tracking_uri: Option<String>,
    /// Resolve `models:/` names again at this interval, 10s where none is given, and reload a model whose version has
    /// changed
    #[arg(long, env = "PETNET_FOLLOW", value_name = "EVERY", value_parser = duration, num_args = 0..=1, default_missing_value = "10s", help_heading = "Model")]
    pub follow: Option<Duration>,
    /// Folder for downloaded models [default: petnet in the user's cache folder]
    #[arg(long, env = "PETNET_MODEL_CACHE", help_heading = "Model")]
    pub model_cache: Option<PathBuf>,
    /// Path of a dvc.lock; loading a model file that it lists increments the metric dvc_pulls_total
    #[arg(long, env = "PETNET_DVC_LOCK", help_heading = "Model")]
    pub dvc_lock: Option<PathBuf>,
    /// Expected SHA-256 of the model file, in hex, for /artifacts/compare
    #[arg(long, env = "PETNET_EXPECT_MODEL_SHA256", help_heading = "Model")]
    pub expect_model_sha256: Option<String>,
    /// Expected version of petnet-serve, for /artifacts/compare
    #[arg(long, env = "PETNET_EXPECT_VERSION", help_heading = "Model")]
    pub expect_version: Option<String>,

    /// IP address to listen on, or `localhost`
    #[arg(long, env = "PETNET_HOST", default_value = "0.0.0.0", value_parser = host, help_heading = "Network")]
    pub host: std::net::IpAddr,
    /// Port to listen on, from 0 to 65535; 0 selects a free one [env: also PORT]
    #[arg(long, env = "PETNET_PORT", default_value_t = std::env::var("PORT").unwrap_or_else(|_| "8000".into()), help_heading = "Network")]
    pub port: String,
    /// Address and port of a second listener that serves /metrics only, or `off`
    #[arg(
        long,
        env = "PETNET_METRICS_ADDR",
        default_value = "0.0.0.0:8081",
        help_heading = "Network"
    )]
    #[serde(serialize_with = "as_text")]
    pub metrics_addr: MetricsAddr,
    /// PEM file with the certificate chain; enables TLS together with --tls-key
    #[arg(long, env = "PETNET_TLS_CERT", requires = "tls_key", help_heading = "Network")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key
    #[arg(long, env = "PETNET_TLS_KEY", requires = "tls_cert", help_heading = "Network")]
    pub tls_key: Option<PathBuf>,
    /// Origin that browsers may call the service from (CORS), or `*` for all
    #[arg(long, env = "PETNET_CORS_ORIGIN", help_heading = "Network")]
    pub cors_origin: Option<String>,

    /// Maximum size of a request body, in bytes
    #[arg(long, env = "PETNET_MAX_BODY", default_value_t = 16 << 20, value_parser = positive, help_heading = "Limits")]
    pub max_body: usize,
    /// Memory limit of the process in MB, from which each request reserves what it needs
    /// [default: the limit of the control group, else 512]
    #[arg(long, env = "PETNET_MEMORY", value_name = "MB", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub memory: Option<u64>,
    /// Size of the prediction cache in MB, a part of --memory; an image with the same bytes as a cached one is not
    /// classified again; 0 disables the cache
    #[arg(
        long,
        env = "PETNET_CACHE",
        value_name = "MB",
        default_value_t = 0,
        help_heading = "Limits"
    )]
    pub cache: u32,
    /// Maximum size of an image, in pixels
    #[arg(long, env = "PETNET_MAX_PIXELS", default_value_t = 50_000_000, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub max_pixels: u64,
    /// Maximum number of images in a request, and of parts in a multipart form
    #[arg(long, env = "PETNET_MAX_PARTS", default_value_t = 32, value_parser = positive, help_heading = "Limits")]
    pub max_parts: usize,
    /// Maximum size of the request headers, in bytes
    #[arg(long, env = "PETNET_MAX_HEADER", default_value_t = 16 << 10, value_parser = positive, help_heading = "Limits")]
    pub max_header: usize,
    /// Maximum number of open connections; further ones wait to be accepted
    /// [default: two for each MB of memory, from 16 to 1024]
    #[arg(long, env = "PETNET_MAX_CONNECTIONS", value_name = "N", value_parser = connections, help_heading = "Limits")]
    pub max_connections: Option<usize>,
    /// Maximum number of open connections from one IP address; further ones are closed
    /// [default: half of --max-connections]
    #[arg(long, env = "PETNET_MAX_CONNECTIONS_PER_ADDRESS", value_name = "N", value_parser = connections, help_heading = "Limits")]
    pub max_connections_per_address: Option<usize>,
    /// Maximum time until the headers of a request have arrived, also on an idle connection
    #[arg(long, env = "PETNET_HEADER_TIMEOUT", value_parser = nonzero_duration, default_value = "20s", help_heading = "Limits")]
    #[serde(serialize_with = "as_text")]
    pub header_timeout: Duration,
    /// Maximum pause while a request body is received or a response is sent
    #[arg(long, env = "PETNET_TRANSFER_TIMEOUT", value_parser = nonzero_duration, default_value = "20s", help_heading = "Limits")]
    #[serde(serialize_with = "as_text")]
    pub transfer_timeout: Duration,
    /// Minimum rate at which a request body is received and a response is sent, in bytes per second, after an allowance
    /// of --transfer-timeout
    #[arg(long, env = "PETNET_MIN_RATE", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub min_rate: u64,
    /// Maximum time to decode an image on its thread
    #[arg(long, env = "PETNET_DECODE_TIMEOUT", value_parser = nonzero_duration, default_value = "2s", help_heading = "Limits")]
    #[serde(serialize_with = "as_text")]
    pub decode_timeout: Duration,
    /// Maximum time to decode and classify an image
    #[arg(long, env = "PETNET_REQUEST_TIMEOUT", value_parser = nonzero_duration, default_value = "10s", help_heading = "Limits")]
    #[serde(serialize_with = "as_text")]
    pub request_timeout: Duration,

    /// Hosts that images may be fetched from by `url`, separated by commas: a.example, *.b.example,
    /// cdn.c.example:8443, http://10.0.0.5:9000. The scheme is https unless given. Names must resolve to public
    /// addresses; an IP address may be private [default: none, requests with `url` get 400]
    #[arg(
        long,
        env = "PETNET_IMAGE_HOSTS",
        value_name = "HOST,...",
        help_heading = "Images by URL"
    )]
    pub image_hosts: Option<AllowedHosts>,
    /// Maximum time to fetch an image, including the wait for one of --max-fetches
    #[arg(long, env = "PETNET_FETCH_TIMEOUT", value_parser = nonzero_duration, default_value = "15s", help_heading = "Images by URL")]
    #[serde(serialize_with = "as_text")]
    pub fetch_timeout: Duration,
    /// Maximum wait for one of --max-fetches, and again until the response headers have arrived: name resolution,
    /// connection, TLS and redirects together
    #[arg(long, env = "PETNET_FETCH_HEADER_TIMEOUT", value_parser = nonzero_duration, default_value = "5s", help_heading = "Images by URL")]
    #[serde(serialize_with = "as_text")]
    pub fetch_header_timeout: Duration,
    /// Maximum number of images that are fetched concurrently; further ones wait in order of arrival
    #[arg(long, env = "PETNET_MAX_FETCHES", default_value_t = 8, value_parser = positive, help_heading = "Images by URL")]
    pub max_fetches: usize,

    /// Maximum number of images in a batch
    #[arg(long, env = "PETNET_MAX_BATCH", default_value_t = 16, value_parser = positive, help_heading = "Batching")]
    pub max_batch: usize,
    /// Average each image's outputs with those of its mirror image (test-time augmentation); doubles the inference time
    #[arg(long, env = "PETNET_TTA", help_heading = "Batching")]
    pub tta: bool,
    /// Maximum number of images in flight, from decoding to output, divided equally among the models; further ones wait
    /// in order of arrival
    #[arg(long, env = "PETNET_QUEUE", default_value_t = 32, value_parser = positive, help_heading = "Batching")]
    pub queue: usize,
    /// Maximum wait to be in flight; requests that would wait longer get 503
    #[arg(long, env = "PETNET_QUEUE_TIMEOUT", value_parser = nonzero_duration, default_value = "2s", help_heading = "Batching")]
    #[serde(serialize_with = "as_text")]
    pub queue_timeout: Duration,
    /// Number of threads that decode images; 0 starts one per core
    #[arg(long, env = "PETNET_DECODE_THREADS", default_value_t = 0, help_heading = "Batching")]
    pub decode_threads: usize,

    /// Time after SIGTERM in which requests are still served while /readyz returns 503
    #[arg(long, env = "PETNET_DRAIN_DELAY", value_parser = duration, default_value = "5s", help_heading = "Shutdown")]
    #[serde(serialize_with = "as_text")]
    pub drain_delay: Duration,
    /// Maximum time for open requests to finish after the drain delay
    #[arg(long, env = "PETNET_GRACE", value_parser = duration, default_value = "20s", help_heading = "Shutdown")]
    #[serde(serialize_with = "as_text")]
    pub grace: Duration,

    /// Folder for predictions and user feedback, without the images, or `off`
    /// [default: feedback, if it is writable]
    #[arg(long, env = "PETNET_FEEDBACK", help_heading = "Feedback and drift")]
    pub feedback: Option<String>,
    /// Retention of predictions and labels
    #[arg(long, env = "PETNET_FEEDBACK_KEEP", value_parser = duration, default_value = "30d", help_heading = "Feedback and drift")]
    #[serde(serialize_with = "as_text")]
    pub feedback_keep: Duration,
    /// Maximum size of predictions and labels on disk in bytes, without the journal of 64 MiB
    #[arg(
        long,
        env = "PETNET_FEEDBACK_MAX_BYTES",
        default_value_t = 256 << 20,
        help_heading = "Feedback and drift"
    )]
    pub feedback_max_bytes: u64,
    /// Number of recent images whose distribution is compared with that of the images the model was calibrated on
    #[arg(
        long,
        env = "PETNET_DRIFT_WINDOW",
        default_value_t = 1000,
        value_parser = positive,
        help_heading = "Feedback and drift"
    )]
    pub drift_window: usize,
    /// Time without a request after which a client's session ends
    #[arg(long, env = "PETNET_SESSION_IDLE", value_parser = duration, default_value = "15m", help_heading = "Feedback and drift")]
    #[serde(serialize_with = "as_text")]
    pub session_idle: Duration,

    /// SHA-256 in hex of each API key that may use every path, separated by commas (`printf %s KEY | sha256sum`).
    /// Without any key, all paths are open except those that always need one, such as reloading a model
    #[arg(
        long,
        env = "PETNET_API_KEYS_SHA256",
        value_delimiter = ',',
        hide_env_values = true,
        help_heading = "Access"
    )]
    #[serde(skip)]
    pub api_keys_sha256: Vec<String>,

    /// YAML file of named API keys: a list of {name, sha256, scopes: [predict, feedback, export, metrics, admin],
    /// requests_per_second, requests_per_day, priority: interactive or batch}; SIGHUP reloads it
    #[arg(long, env = "PETNET_API_KEYS", value_name = "FILE", help_heading = "Access")]
    pub api_keys: Option<PathBuf>,

    /// URL of an OpenTelemetry collector that receives traces and metrics by OTLP over HTTP.
    /// OTEL_METRICS_EXPORTER=none disables metrics; OTEL_METRIC_EXPORT_INTERVAL, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER
    /// and other variables of the specification apply
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        value_name = "http://HOST:4318",
        help_heading = "Logs and traces"
    )]
    pub otlp_endpoint: Option<String>,
    /// Format of the log on standard error
    #[arg(
        long,
        env = "PETNET_LOG_FORMAT",
        value_enum,
        default_value = "auto",
        help_heading = "Logs and traces"
    )]
    #[serde(serialize_with = "as_text")]
    pub log_format: LogFormat,
    /// Minimum severity of log lines: error, warn, info, debug or trace
    #[arg(
        long = "log",
        env = "PETNET_LOG",
        default_value = "info",
        help_heading = "Logs and traces"
    )]
    pub log_level: String,
}

impl Default for Settings {
    /// The defaults of `--help`; environment variables override them.
    fn default() -> Self {
        Self::parse_from(["petnet-serve"])
    }
}

impl Settings {
    /// Default folder for predictions and user feedback.
    pub(crate) const FEEDBACK: &str = "feedback";

    /// Limits of image decoding.
    pub(crate) fn limits(&self) -> Limits {
        let max_bytes = self.max_body as u64;
        Limits { max_bytes, max_pixels: self.max_pixels, ..Limits::default() }
    }

    /// Memory limit of the process, in bytes.
    pub(crate) fn memory_limit(&self) -> u64 {
        self.memory.map_or_else(memory_limit::default_limit, |megabytes| megabytes << 20)
    }

    /// Size of the prediction cache, in bytes.
    pub(crate) fn cache_bytes(&self) -> u64 {
        u64::from(self.cache) << 20
    }

    /// Number of decoding threads.
    pub(crate) fn decoders(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        if self.decode_threads == 0 { cores() } else { self.decode_threads }
    }

    /// Maximum number of open connections of a listener.
    pub(crate) fn connections(&self) -> usize {
        let by_memory = || ((self.memory_limit() >> 19) as usize).clamp(16, 1024);
        self.max_connections.unwrap_or_else(by_memory)
    }

    /// Maximum number of open connections from one IP address.
    pub(crate) fn connections_of_one(&self) -> usize {
        self.max_connections_per_address.unwrap_or_else(|| self.connections().div_ceil(2))
    }

    /// The address and port to listen on.
    ///
    /// # Errors
    /// When the port is not a number from 0 to 65535.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        let port = self.port.parse().with_context(|| format!("--port {}", self.port))?;
        Ok(SocketAddr::new(self.host, port))
    }
}

/// Parses an IP address, or `localhost`.
fn host(text: &str) -> Result<std::net::IpAddr, String> {
    match text {
        "localhost" => Ok(std::net::Ipv4Addr::LOCALHOST.into()),
        _ => text.parse().map_err(|_| "must be an IP address of this machine or localhost".into()),
    }
}

/// The listener that serves metrics only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAddr {
    /// No such listener; `/metrics` on the service's own port remains.
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

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// One JSON object per line.
    Json,
    /// Coloured text.
    Pretty,
}

fn duration(text: &str) -> Result<Duration, humantime::DurationError> {
    humantime::parse_duration(text)
}

fn nonzero_duration(text: &str) -> Result<Duration, String> {
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

fn number(text: &str, max: usize) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|error| format!("{error}"))?;
    if (1..=max).contains(&number) { Ok(number) } else { Err(format!("must be from 1 to {max}")) }
}

fn as_text<T: std::fmt::Debug, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("{value:?}"))
}
