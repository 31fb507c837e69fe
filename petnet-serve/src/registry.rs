//! Models of an MLflow registry: resolved by name, downloaded, validated and cached on disk.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use petnet::disk::{sha256, write_atomically};
use petnet::mlflow::{ModelVersion, RequestError, Server};
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// A registered model's file.
pub(crate) struct RegisteredModel {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) bytes: Vec<u8>,
}

/// The version that a name resolved to last.
#[derive(Serialize, Deserialize)]
struct CachedVersion {
    name: String,
    version: String,
    sha256: String,
}

/// The version that the name resolves to now.
pub(crate) fn resolve(settings: &Settings, model: &str) -> Result<ModelVersion> {
    version(model, &server(settings, model)?)
}

fn version(model: &str, server: &Server) -> Result<ModelVersion> {
    Ok(server.version(&model.parse()?)?)
}

/// The model's file, from the cache if it is there. When the server cannot be reached, the version that the name
/// resolved to last is used.
pub(crate) fn fetch(settings: &Settings, model: &str) -> Result<RegisteredModel> {
    let server = server(settings, model)?;
    let cache = Cache::of(settings, &server, model);
    match version(model, &server) {
        Ok(version) => cache.load(&server, version),
        Err(error) if is_transient(&error) => {
            let Some(registered) = cache.last_version() else { return Err(error) };
            let error = format!("{error:#}");
            tracing::warn!(
                error,
                version = registered.version,
                "the registry cannot be reached; the cached model is used"
            );
            Ok(registered)
        }
        Err(error) => Err(error),
    }
}

fn is_transient(error: &anyhow::Error) -> bool {
    let request = error.chain().find_map(|cause| cause.downcast_ref::<RequestError>());
    request.is_some_and(RequestError::is_transient)
}

fn server(settings: &Settings, model: &str) -> Result<Server> {
    let uri = settings.tracking_uri.as_deref().with_context(|| {
        format!("{model} needs a server: set MLFLOW_TRACKING_URI or --tracking-uri")
    })?;
    Ok(Server::from_variables(uri, |name| std::env::var(name).ok())?)
}

struct Cache {
    folder: PathBuf,
    /// File with the version that the name resolved to last.
    version_file: PathBuf,
}

impl Cache {
    fn of(settings: &Settings, server: &Server, model: &str) -> Self {
        let folder = settings.model_cache.clone().unwrap_or_else(default_folder);
        let name = sha256(format!("{} {model}", server.uri()).as_bytes());
        let version_file = folder.join(format!("{name}.json"));
        Self { folder, version_file }
    }

    fn load(&self, server: &Server, version: ModelVersion) -> Result<RegisteredModel> {
        let cached = version.sha256().and_then(|digest| self.read(digest));
        let bytes = match cached {
            Some(bytes) => bytes,
            None => {
                let bytes = server.weights(&version)?;
                tracing::info!(name = version.name, version = version.version, "downloaded");
                bytes
            }
        };
        let registered = RegisteredModel { name: version.name, version: version.version, bytes };
        if let Err(error) = self.store(&registered) {
            let folder = self.folder.display().to_string();
            tracing::warn!(folder, error = format!("{error:#}"), "the model cannot be cached");
        }
        Ok(registered)
    }

    fn store(&self, registered: &RegisteredModel) -> Result<()> {
        std::fs::create_dir_all(&self.folder)?;
        let RegisteredModel { name, version, bytes } = registered;
        let cached =
            CachedVersion { name: name.clone(), version: version.clone(), sha256: sha256(bytes) };
        let file = self.file(&cached.sha256);
        if !file.is_file() {
            write_atomically(&file, bytes)?;
        }
        Ok(write_atomically(&self.version_file, &serde_json::to_vec(&cached)?)?)
    }

    fn last_version(&self) -> Option<RegisteredModel> {
        let text = std::fs::read(&self.version_file).ok()?;
        let cached: CachedVersion = serde_json::from_slice(&text).ok()?;
        let bytes = self.read(&cached.sha256)?;
        Some(RegisteredModel { name: cached.name, version: cached.version, bytes })
    }

    /// A file of the cache, if its content still has the digest that it is named by.
    fn read(&self, digest: &str) -> Option<Vec<u8>> {
        std::fs::read(self.file(digest)).ok().filter(|bytes| sha256(bytes) == digest)
    }

    fn file(&self, digest: &str) -> PathBuf {
        // The digest comes from a server: it is untrusted, and must not leave the folder.
        let plain: String = digest.chars().filter(char::is_ascii_hexdigit).take(64).collect();
        self.folder.join(format!("{plain}.safetensors"))
    }
}

fn default_folder() -> PathBuf {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let home = || variable("HOME").map(|home| Path::new(&home).join(".cache"));
    let base = variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    base.unwrap_or_else(std::env::temp_dir).join("petnet")
}
