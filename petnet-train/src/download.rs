//! `download`: the archive of a data set, resumed after interruptions and verified by size and SHA-256.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use base64::Engine as _;
use indicatif::ProgressBar;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use ureq::Agent;
use ureq::http::StatusCode;
use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, ETAG, IF_RANGE, RANGE};

use crate::disk::{self, Space};
use crate::error::UsageError;
use crate::terminal::{self, Output};

/// Attempts in a row without a new byte after which the next address is used.
const MAX_ATTEMPTS: u32 = 4;
/// Bytes that must stay free on the disk.
const MIN_FREE_BYTES: u64 = 64 << 20;

/// Download the archive of a data set; resumes after interruptions and verifies the SHA-256
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train download
  petnet-train download --from ~/Downloads/cats-vs-dogs.zip
  petnet-train download --from https://mirror.example/cats-vs-dogs.zip
  KAGGLE_USERNAME=ann KAGGLE_KEY=... petnet-train download")]
pub(crate) struct Download {
    /// Description of the data set: addresses, size and SHA-256
    #[arg(long, default_value = "datasets/cats-vs-dogs.yaml")]
    dataset: PathBuf,
    /// File or URL to take the archive from, instead of the addresses in the description
    #[arg(long, value_name = "FILE|URL")]
    from: Option<String>,
    /// Folder to write the archive to
    #[arg(long, default_value = "data/raw")]
    out: PathBuf,
    /// Longest wait for the next bytes, in seconds, before the connection is given up
    #[arg(long, default_value_t = 30)]
    stall: u64,
}

/// The keys of `datasets/*.yaml` that a download needs.
#[derive(Deserialize)]
struct Manifest {
    name: String,
    file: String,
    #[serde(default)]
    urls: Vec<String>,
    size: u64,
    sha256: String,
}

impl Download {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let manifest = self.manifest()?;
        let target = self.out.join(&manifest.file);
        if target.is_file() && check(&target, &manifest).is_ok() {
            say!("{} is complete already", target.display());
            return Ok(());
        }
        fs::create_dir_all(&self.out).with_context(|| self.out.display().to_string())?;
        let partial = self.out.join(format!(".{}.partial", manifest.file));
        let have = fs::metadata(&partial).map_or(0, |meta| meta.len());
        require_space(&self.out, manifest.size.saturating_sub(have))?;
        let sources = match &self.from {
            Some(from) => vec![from.clone()],
            None => manifest.urls.clone(),
        };
        if sources.is_empty() {
            let text = format!("{} has no address: give one with --from", self.dataset.display());
            return Err(UsageError(text).into());
        }
        let bar = terminal::bytes(manifest.size, &manifest.name, output);
        let fetch = Fetch { manifest: &manifest, partial: &partial, bar, stall: self.stall };
        let mut failures = Vec::new();
        for source in &sources {
            let outcome = fetch.fetch(source).and_then(|()| check(&partial, &manifest));
            match outcome {
                Ok(()) => {
                    fetch.bar.finish_and_clear();
                    fs::rename(&partial, &target)?;
                    let _ = fs::remove_file(fetch.etag_file());
                    say!("{} ({} bytes, verified)", target.display(), manifest.size);
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(source, error = format!("{error:#}"), "download failed");
                    failures.push(format!("{source}: {error:#}"));
                }
            }
        }
        bail!("{} could not be downloaded: {}", manifest.name, failures.join("; "))
    }

    fn manifest(&self) -> Result<Manifest> {
        let path = self.dataset.display();
        let invalid = |e: &dyn std::fmt::Display| UsageError(format!("{path}: {e}"));
        let text = fs::read_to_string(&self.dataset).map_err(|e| invalid(&e))?;
        let manifest: Manifest = serde_yaml::from_str(&text).map_err(|e| invalid(&e))?;
        if Path::new(&manifest.file).components().count() != 1 || manifest.file.starts_with('.') {
            return Err(invalid(&"`file` must be a plain name").into());
        }
        Ok(manifest)
    }
}

/// Verifies size and SHA-256. A wrong partial file is removed: it cannot be resumed.
fn check(file: &Path, manifest: &Manifest) -> Result<()> {
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    let mut reader = File::open(file)?;
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        size += read as u64;
    }
    let digest = hex::encode(hash.finalize());
    if size == manifest.size && digest.eq_ignore_ascii_case(&manifest.sha256) {
        return Ok(());
    }
    if file.extension().is_some_and(|extension| extension == "partial") {
        fs::remove_file(file)?;
    }
    bail!(
        "wrong content: {size} bytes with SHA-256 {digest}, expected {} bytes with {}",
        manifest.size,
        manifest.sha256
    )
}

fn require_space(folder: &Path, needed: u64) -> Result<()> {
    let folder = folder.canonicalize()?;
    let Some(Space { free, .. }) = disk::space(&folder) else { return Ok(()) };
    if free < needed.saturating_add(MIN_FREE_BYTES) {
        bail!("{}: {needed} bytes are needed, {free} are free", folder.display());
    }
    Ok(())
}

/// The download of one archive.
struct Fetch<'a> {
    manifest: &'a Manifest,
    partial: &'a Path,
    bar: ProgressBar,
    stall: u64,
}

impl Fetch<'_> {
    /// Holds the ETag of the version that the partial file is the beginning of.
    fn etag_file(&self) -> PathBuf {
        self.partial.with_extension("etag")
    }

    fn fetch(&self, source: &str) -> Result<()> {
        if !source.contains("://") {
            return self.copy(Path::new(source));
        }
        let stall = Some(Duration::from_secs(self.stall));
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(stall)
            .timeout_recv_response(stall)
            .timeout_per_read(stall)
            .user_agent(concat!("petnet/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        let mut failed_attempts = 0;
        loop {
            let before = self.have();
            let outcome = self.request(&agent, source);
            if self.have() >= self.manifest.size && !matches!(outcome, Err(Failure::Permanent(_))) {
                return Ok(());
            }
            match outcome {
                Ok(()) => tracing::warn!(
                    source,
                    bytes = self.have(),
                    "the server ended the response early"
                ),
                Err(Failure::Permanent(error)) => return Err(error),
                Err(Failure::Transient(error)) => {
                    tracing::warn!(source, error = format!("{error:#}"), "interrupted");
                }
            }
            failed_attempts = if self.have() > before { 0 } else { failed_attempts + 1 };
            if failed_attempts == MAX_ATTEMPTS {
                bail!("no new byte in {MAX_ATTEMPTS} attempts, after {} bytes", self.have());
            }
            std::thread::sleep(Duration::from_millis(250 << failed_attempts));
        }
    }

    fn have(&self) -> u64 {
        fs::metadata(self.partial).map_or(0, |meta| meta.len())
    }

    fn copy(&self, file: &Path) -> Result<()> {
        let reader = File::open(file).with_context(|| file.display().to_string())?;
        let target = File::create(self.partial)?;
        std::io::copy(&mut self.bar.wrap_read(reader), &mut &target)?;
        Ok(target.sync_all()?)
    }

    /// Requests the missing bytes. With `If-Range`, a server sends the whole file if it has changed since the partial one was
    /// written; a server without range requests always does.
    fn request(&self, agent: &Agent, url: &str) -> Result<(), Failure> {
        let have = self.have();
        // Compressed bytes could not be appended to the partial file.
        let mut request = agent.get(url).header(ACCEPT_ENCODING, "identity");
        if have > 0 {
            request = request.header(RANGE, format!("bytes={have}-"));
            if let Ok(etag) = fs::read_to_string(self.etag_file()) {
                request = request.header(IF_RANGE, etag);
            }
        }
        if let Some(credentials) = kaggle_credentials(url)? {
            request = request.header(AUTHORIZATION, credentials);
        }
        let response = request.call().map_err(|e| Failure::Transient(e.into()))?;
        let from = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => have,
            StatusCode::RANGE_NOT_SATISFIABLE => {
                fs::remove_file(self.partial)?;
                return Err(Failure::Transient(anyhow!("the file on the server has changed")));
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                return Err(Failure::Transient(anyhow!("the server answered {status}")));
            }
            status => return Err(Failure::Permanent(anyhow!("the server answered {status}"))),
        };
        if let Some(etag) = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok()) {
            fs::write(self.etag_file(), etag)?;
        }
        let body = response.into_body().into_with_config().limit(u64::MAX).reader();
        self.append(body, from)
    }

    fn append(&self, mut body: impl std::io::Read, from: u64) -> Result<(), Failure> {
        let mut file =
            File::options().create(true).truncate(false).write(true).open(self.partial)?;
        file.set_len(from)?;
        file.seek(SeekFrom::Start(from))?;
        self.bar.set_position(from);
        let mut buffer = vec![0; 1 << 16];
        let mut at = from;
        loop {
            let read = body.read(&mut buffer).map_err(|e| Failure::Transient(e.into()))?;
            if read == 0 {
                file.sync_all()?;
                return Ok(());
            }
            at += read as u64;
            if at > self.manifest.size {
                let expected = self.manifest.size;
                fs::remove_file(self.partial)?;
                return Err(Failure::Permanent(anyhow!("more than the expected {expected} bytes")));
            }
            file.write_all(&buffer[..read])?;
            self.bar.set_position(at);
        }
    }
}

/// Reason why a request did not complete the file.
enum Failure {
    /// Another attempt may succeed.
    Transient(anyhow::Error),
    /// Another attempt would fail too.
    Permanent(anyhow::Error),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Permanent(error.into())
    }
}

/// Credentials for addresses of Kaggle, from the places that Kaggle's own client reads: `KAGGLE_USERNAME` and
/// `KAGGLE_KEY`, or `~/.kaggle/kaggle.json`.
fn kaggle_credentials(url: &str) -> Result<Option<String>, Failure> {
    #[derive(Deserialize)]
    struct Token {
        username: String,
        key: String,
    }
    let host = url.split('/').nth(2).unwrap_or_default();
    if host != "kaggle.com" && !host.ends_with(".kaggle.com") {
        return Ok(None);
    }
    let variable = |name: &str| std::env::var(name).ok();
    let given = variable("KAGGLE_USERNAME").zip(variable("KAGGLE_KEY"));
    let stored = || {
        let folder = variable("KAGGLE_CONFIG_DIR").map(PathBuf::from);
        let folder = folder.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".kaggle")))?;
        let text = fs::read_to_string(folder.join("kaggle.json")).ok()?;
        let Token { username, key } = serde_json::from_str(&text).ok()?;
        Some((username, key))
    };
    let Some((user, key)) = given.or_else(stored) else {
        return Err(Failure::Permanent(anyhow!(
            "Kaggle requires a token: set KAGGLE_USERNAME and KAGGLE_KEY, or store ~/.kaggle/kaggle.json"
        )));
    };
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{key}"));
    Ok(Some(format!("Basic {pair}")))
}
