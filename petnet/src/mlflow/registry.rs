//! Registered models.

use std::str::FromStr;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{RequestError, Result, Server};
use crate::error::Error;

/// Largest model file in bytes.
const MAX_MODEL_BYTES: u64 = 1 << 30;
/// Tag of a version or a logged model with the SHA-256 of its model file, in hex.
pub const DIGEST_TAG: &str = "petnet.sha256";

/// Address of a registered model: `models:/NAME@ALIAS`, `models:/NAME/STAGE`, `models:/NAME/VERSION` or
/// `models:/NAME/latest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelUri {
    /// Name of the registered model.
    pub name: String,
    /// The version.
    pub version: VersionRef,
}

/// Reference to a version of a registered model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionRef {
    /// The version with an alias.
    Alias(String),
    /// The newest version in a stage, e.g. `Production`.
    Stage(String),
    /// The version with a number.
    Version(u64),
    /// The newest version.
    Latest,
}

impl FromStr for ModelUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let rest = text.strip_prefix("models:/").unwrap_or_default();
        let (name, version) = match (rest.split_once('@'), rest.rsplit_once('/')) {
            (Some((name, alias)), _) => (name, VersionRef::Alias(alias.into())),
            (None, Some((name, "latest"))) => (name, VersionRef::Latest),
            (None, Some((name, version))) => match version.parse() {
                Ok(number) => (name, VersionRef::Version(number)),
                Err(_) => (name, VersionRef::Stage(version.into())),
            },
            (None, None) => ("", VersionRef::Latest),
        };
        if name.is_empty()
            || matches!(&version, VersionRef::Alias(text) | VersionRef::Stage(text) if text.is_empty())
        {
            return Err(Error::Config(format!(
                "{text}: a registered model is models:/NAME@ALIAS, models:/NAME/STAGE or models:/NAME/VERSION"
            )));
        }
        Ok(Self { name: name.into(), version })
    }
}

/// A version of a registered model.
#[derive(Debug, Clone, Deserialize)]
pub struct ModelVersion {
    /// Name of the registered model.
    pub name: String,
    /// Number of the version.
    pub version: String,
    /// Run that made the version; empty where it is unknown.
    #[serde(default)]
    pub run_id: String,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Debug, Clone, Deserialize)]
struct Tag {
    key: String,
    #[serde(default)]
    value: String,
}

impl ModelVersion {
    /// A tag's value.
    pub fn tag(&self, key: &str) -> Option<&str> {
        self.tags.iter().find(|tag| tag.key == key).map(|tag| tag.value.as_str())
    }

    /// SHA-256 of the model file in hex, where petnet registered it.
    pub fn sha256(&self) -> Option<&str> {
        self.tag(DIGEST_TAG)
    }
}

#[derive(Deserialize)]
struct SingleVersion {
    model_version: ModelVersion,
}

#[derive(Deserialize)]
struct VersionList {
    #[serde(default)]
    model_versions: Vec<ModelVersion>,
}

impl Server {
    /// The version that an address refers to now.
    ///
    /// # Errors
    /// [`RequestError`]; code `RESOURCE_DOES_NOT_EXIST` when there is no such model, alias or stage.
    pub fn version(&self, uri: &ModelUri) -> Result<ModelVersion> {
        let name = ("name", uri.name.as_str());
        match &uri.version {
            VersionRef::Alias(alias) => {
                let query = [name, ("alias", alias.as_str())];
                Ok(self.get::<SingleVersion>("registered-models/alias", &query)?.model_version)
            }
            VersionRef::Version(number) => {
                let query = [name, ("version", &number.to_string())];
                Ok(self.get::<SingleVersion>("model-versions/get", &query)?.model_version)
            }
            VersionRef::Stage(stage) => {
                self.newest(&json!({ "name": uri.name, "stages": [stage] }))
            }
            VersionRef::Latest => self.newest(&json!({ "name": uri.name })),
        }
    }

    /// The version of a registered model whose model file has this SHA-256, in hex.
    pub fn version_by_digest(&self, name: &str, sha256: &str) -> Result<Option<ModelVersion>> {
        // MLflow's filters have no escapes, but two kinds of quotes.
        let quote = if name.contains('\'') { '"' } else { '\'' };
        let filter = format!("name = {quote}{name}{quote} AND tags.`{DIGEST_TAG}` = '{sha256}'");
        let query = [("filter", filter.as_str()), ("max_results", "1")];
        let found: VersionList = self.get("model-versions/search", &query)?;
        Ok(found.model_versions.into_iter().next())
    }

    /// Registers a logged model of a run as a new version, and returns the version's number. The registered model is created
    /// where there is none.
    pub fn register(
        &self,
        name: &str,
        run_id: &str,
        model_id: &str,
        sha256: &str,
    ) -> Result<String> {
        match self.post("registered-models/create", &json!({ "name": name })) {
            Err(error) if !error.is("RESOURCE_ALREADY_EXISTS") => return Err(error),
            _ => (),
        }
        let body = json!({
            "name": name,
            "source": format!("models:/{model_id}"),
            "run_id": run_id,
            "model_id": model_id,
            "tags": [{ "key": DIGEST_TAG, "value": sha256 }],
        });
        let created = self.post("model-versions/create", &body)?;
        let version = created["model_version"]["version"].as_str().map(str::to_string);
        let missing = || "the server registered a version without a number".to_string();
        version.ok_or_else(|| RequestError::Invalid(missing()))
    }

    /// Sets a tag of a version.
    pub fn set_version_tag(&self, name: &str, version: &str, key: &str, value: &str) -> Result<()> {
        let tag = json!({ "name": name, "version": version, "key": key, "value": value });
        self.post("model-versions/set-tag", &tag).map(drop)
    }

    /// Moves a version to a stage; other versions in the stage are archived.
    pub fn set_stage(&self, name: &str, version: &str, stage: &str) -> Result<()> {
        let body = json!({
            "name": name,
            "version": version,
            "stage": stage,
            "archive_existing_versions": stage != "Archived",
        });
        self.post("model-versions/transition-stage", &body).map(drop)
    }

    /// Points an alias of a registered model to a version.
    pub fn set_alias(&self, name: &str, version: &str, alias: &str) -> Result<()> {
        let body = json!({ "name": name, "alias": alias, "version": version });
        self.post("registered-models/alias", &body).map(drop)
    }

    fn newest(&self, query: &Value) -> Result<ModelVersion> {
        let response = self.post("registered-models/get-latest-versions", query)?;
        let VersionList { model_versions } =
            serde_json::from_value(response).map_err(|e| self.invalid(&e))?;
        let number = |version: &ModelVersion| version.version.parse::<u64>().unwrap_or_default();
        model_versions.into_iter().max_by_key(number).ok_or_else(|| RequestError::Refused {
            server: self.uri().into(),
            status: 404,
            code: "RESOURCE_DOES_NOT_EXIST".into(),
            message: format!("no version for {query}"),
        })
    }

    /// Downloads a version's model file and verifies its digest.
    ///
    /// # Errors
    /// [`RequestError`]; [`RequestError::Invalid`] when the version does not have exactly one `.safetensors` file, the server does
    /// not proxy its artifacts, or the digest differs.
    pub fn weights(&self, version: &ModelVersion) -> Result<Vec<u8>> {
        let ModelVersion { name, version: number, .. } = version;
        let query = [("name", name.as_str()), ("version", number.as_str())];
        let response: Value = self.get("model-versions/get-download-uri", &query)?;
        let folder = self.artifact_path(response["artifact_uri"].as_str().unwrap_or_default())?;
        let files = self.list(folder)?;
        let mut models = files.iter().filter(|file| file.ends_with(".safetensors"));
        let (Some(file), None) = (models.next(), models.next()) else {
            return Err(RequestError::Invalid(format!(
                "{name} version {number} is not a petnet model: its files are {files:?}"
            )));
        };
        let bytes = self.download(&format!("{folder}/{file}"), MAX_MODEL_BYTES)?;
        match version.sha256() {
            Some(expected) if crate::disk::sha256(&bytes) != expected => {
                Err(RequestError::Invalid(format!(
                    "{name} version {number}: the downloaded file is not the one that was registered"
                )))
            }
            _ => Ok(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_name_is_read() {
        for (text, version) in [
            ("models:/Pets@champion", VersionRef::Alias("champion".into())),
            ("models:/Pets/Production", VersionRef::Stage("Production".into())),
            ("models:/Pets/3", VersionRef::Version(3)),
            ("models:/Pets/latest", VersionRef::Latest),
        ] {
            let expected = ModelUri { name: "Pets".into(), version };
            assert_eq!(text.parse::<ModelUri>().unwrap(), expected);
        }
        for wrong in ["models:/", "models:/Pets", "models:/Pets@", "models:/Pets/", "pets.bin"] {
            assert!(wrong.parse::<ModelUri>().is_err(), "{wrong}");
        }
    }
}
