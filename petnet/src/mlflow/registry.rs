//! Registered models.

use std::str::FromStr;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Failure, Server};
use crate::error::Error;

/// Largest model file in bytes.
const MAX_MODEL: u64 = 1 << 30;
/// Tag of a version or a logged model with the SHA-256 of its model file, in hex.
pub const DIGEST_TAG: &str = "petnet.sha256";

/// Address of a registered model: `models:/NAME@ALIAS`, `models:/NAME/STAGE`, `models:/NAME/VERSION` or
/// `models:/NAME/latest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelUri {
    /// Name of the registered model.
    pub name: String,
    /// The version.
    pub which: Which,
}

/// Reference to a version of a registered model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
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
        let parts = text.strip_prefix("models:/").and_then(|rest| {
            rest.split_once('@').map(|(name, alias)| (name, Which::Alias(alias.into()))).or_else(
                || {
                    let (name, which) = rest.rsplit_once('/')?;
                    let which = match (which.parse(), which) {
                        (Ok(number), _) => Which::Version(number),
                        (_, "latest") => Which::Latest,
                        (_, stage) => Which::Stage(stage.into()),
                    };
                    Some((name, which))
                },
            )
        });
        let empty =
            |which: &Which| matches!(which, Which::Alias(s) | Which::Stage(s) if s.is_empty());
        match parts {
            Some((name, which)) if !name.is_empty() && !empty(&which) => {
                Ok(Self { name: name.into(), which })
            }
            _ => Err(Error::Config(format!(
                "{text}: a registered model is models:/NAME@ALIAS, models:/NAME/STAGE or models:/NAME/VERSION"
            ))),
        }
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
struct One {
    model_version: ModelVersion,
}

#[derive(Deserialize)]
struct Many {
    #[serde(default)]
    model_versions: Vec<ModelVersion>,
}

impl Server {
    /// The version that an address refers to now.
    ///
    /// # Errors
    /// [`Failure`]; code `RESOURCE_DOES_NOT_EXIST` when there is no such model, alias or stage.
    pub fn version(&self, uri: &ModelUri) -> Result<ModelVersion, Failure> {
        let name = ("name", uri.name.as_str());
        match &uri.which {
            Which::Alias(alias) => {
                let query = [name, ("alias", alias.as_str())];
                Ok(self.get::<One>("registered-models/alias", &query)?.model_version)
            }
            Which::Version(number) => {
                let query = [name, ("version", &number.to_string())];
                Ok(self.get::<One>("model-versions/get", &query)?.model_version)
            }
            Which::Stage(stage) => self.newest(&json!({ "name": uri.name, "stages": [stage] })),
            Which::Latest => self.newest(&json!({ "name": uri.name })),
        }
    }

    fn newest(&self, query: &Value) -> Result<ModelVersion, Failure> {
        let response = self.post("registered-models/get-latest-versions", query)?;
        let Many { model_versions } =
            serde_json::from_value(response).map_err(|e| self.invalid(&e))?;
        let number = |version: &ModelVersion| version.version.parse::<u64>().unwrap_or_default();
        model_versions.into_iter().max_by_key(number).ok_or_else(|| Failure::Refused {
            server: self.uri().into(),
            status: 404,
            code: "RESOURCE_DOES_NOT_EXIST".into(),
            message: format!("no version for {query}"),
        })
    }

    /// Downloads a version's model file and verifies its digest.
    ///
    /// # Errors
    /// [`Failure`]; [`Failure::Invalid`] when the version does not have exactly one `.safetensors` file, the server does
    /// not proxy its artifacts, or the digest differs.
    pub fn weights(&self, version: &ModelVersion) -> Result<Vec<u8>, Failure> {
        let ModelVersion { name, version: number, .. } = version;
        let query = [("name", name.as_str()), ("version", number.as_str())];
        let response: Value = self.get("model-versions/get-download-uri", &query)?;
        let folder = self.place(response["artifact_uri"].as_str().unwrap_or_default())?;
        let files = self.list(folder)?;
        let mut models = files.iter().filter(|file| file.ends_with(".safetensors"));
        let (Some(file), None) = (models.next(), models.next()) else {
            return Err(Failure::Invalid(format!(
                "{name} version {number} is not a petnet model: its files are {files:?}"
            )));
        };
        let bytes = self.download(&format!("{folder}/{file}"), MAX_MODEL)?;
        match version.sha256() {
            Some(expected) if crate::disk::sha256(&bytes) != expected => {
                Err(Failure::Invalid(format!(
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
        let read = |text: &str| text.parse::<ModelUri>().map(|uri| (uri.name, uri.which));
        let named = |which| ("Pets".to_string(), which);
        assert_eq!(read("models:/Pets@champion").unwrap(), named(Which::Alias("champion".into())));
        assert_eq!(
            read("models:/Pets/Production").unwrap(),
            named(Which::Stage("Production".into()))
        );
        assert_eq!(read("models:/Pets/3").unwrap(), named(Which::Version(3)));
        assert_eq!(read("models:/Pets/latest").unwrap(), named(Which::Latest));
        for wrong in ["models:/", "models:/Pets", "models:/Pets@", "models:/Pets/", "pets.bin"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
