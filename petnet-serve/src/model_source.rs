//! Sources of models on the command line: a name and an address.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

/// A model's address on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelAddress {
    /// `pretrained`: the model in the program's binary.
    Bundled,
    /// A file; its path need not be UTF-8.
    File(PathBuf),
    /// A model of an MLflow registry, such as `models:/NAME@ALIAS`.
    Registered(String),
}

impl From<OsString> for ModelAddress {
    fn from(address: OsString) -> Self {
        match address.to_str() {
            Some("pretrained") => Self::Bundled,
            Some(name) if name.starts_with("models:/") => Self::Registered(name.into()),
            Some(_) | None => Self::File(address.into()),
        }
    }
}

impl fmt::Display for ModelAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundled => f.write_str("pretrained"),
            Self::File(path) => path.display().fmt(f),
            Self::Registered(name) => f.write_str(name),
        }
    }
}

/// A model to serve: its name and its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSource {
    /// Name in paths, metrics and responses.
    pub name: String,
    /// The file or registered model.
    pub address: ModelAddress,
}

impl ModelSource {
    /// The model that `MODEL_PATH` names, as in the Python service (PyTorch + FastAPI), or else the bundled model.
    pub(crate) fn fallback() -> Self {
        std::env::var_os("MODEL_PATH").unwrap_or_else(|| "pretrained".into()).into()
    }
}

impl From<ModelAddress> for ModelSource {
    /// The name is that of the file without its extension, or of the registered model.
    fn from(address: ModelAddress) -> Self {
        let name = match &address {
            ModelAddress::Bundled => "cats-vs-dogs".into(),
            ModelAddress::File(path) => {
                path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
            }
            ModelAddress::Registered(model) => {
                let name = model.trim_start_matches("models:/");
                name.split(['@', '/']).next().unwrap_or_default().into()
            }
        };
        Self { name, address }
    }
}

impl From<OsString> for ModelSource {
    /// Parses `NAME=ADDRESS` or an address alone; a file name with an equals sign needs `./` in front.
    fn from(text: OsString) -> Self {
        let bytes = text.as_bytes();
        let is_name = |name: &[u8]| {
            let fit = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
            !name.is_empty() && name.iter().all(fit) && name[0] != b'.'
        };
        match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) if is_name(&bytes[..at]) => {
                let (name, address) = bytes.split_at(at);
                let address = OsStr::from_bytes(&address[1..]).to_os_string();
                Self { name: String::from_utf8_lossy(name).into_owned(), address: address.into() }
            }
            Some(_) | None => ModelAddress::from(text).into(),
        }
    }
}

impl From<&ModelSource> for OsString {
    fn from(source: &ModelSource) -> Self {
        let mut text = Self::from(&source.name);
        text.push("=");
        match &source.address {
            // A path need not be UTF-8.
            ModelAddress::File(path) => text.push(path),
            other => text.push(other.to_string()),
        }
        text
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.address)
    }
}

impl Serialize for ModelSource {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (String, ModelAddress) {
        let ModelSource { name, address } = OsString::from(text).into();
        (name, address)
    }

    #[test]
    fn the_name_is_the_given_one_or_that_of_the_file() {
        let file = |path: &str| ModelAddress::File(path.into());
        assert_eq!(parse("pretrained"), ("cats-vs-dogs".into(), ModelAddress::Bundled));
        assert_eq!(parse("m/a.b.safetensors"), ("a.b".into(), file("m/a.b.safetensors")));
        assert_eq!(parse("pets=m/x.safetensors"), ("pets".into(), file("m/x.safetensors")));
        assert_eq!(parse("./a=b.safetensors"), ("a=b".into(), file("./a=b.safetensors")));
        let registered = ModelAddress::Registered("models:/Pets@champion".into());
        assert_eq!(parse("models:/Pets@champion"), ("Pets".into(), registered.clone()));
        assert_eq!(parse("new=models:/Pets@champion"), ("new".into(), registered));
    }

    #[test]
    fn a_path_need_not_be_utf_8() {
        use std::os::unix::ffi::OsStringExt as _;
        let source = ModelSource::from(OsString::from_vec(b"pets=m/\xff.safetensors".to_vec()));
        assert_eq!(source.name, "pets");
        let path = OsString::from_vec(b"m/\xff.safetensors".to_vec());
        assert_eq!(source.address, ModelAddress::File(path.into()));
    }
}
