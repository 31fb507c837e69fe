//! Models as the command line names them: `pretrained`, or a file.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use petnet::{Checkpoint, Classifier, Device};

/// A model's name on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ModelName {
    /// `pretrained`: the model that is compiled into the program.
    Bundled,
    /// A file; its name need not be UTF-8.
    File(PathBuf),
}

impl From<OsString> for ModelName {
    fn from(name: OsString) -> Self {
        if name == "pretrained" { Self::Bundled } else { Self::File(name.into()) }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundled => f.write_str("pretrained"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl ModelName {
    /// Reads the model.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint> {
        Ok(match self {
            Self::Bundled => Checkpoint::pretrained()?,
            Self::File(path) => Checkpoint::load(path)?,
        })
    }

    /// Reads the model and loads it onto a device.
    pub(crate) fn open(&self, device: Device) -> Result<Classifier> {
        Ok(Classifier::new(self.checkpoint()?, device)?)
    }

    /// The bytes of the model's file.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>> {
        match self {
            Self::Bundled => Ok(Checkpoint::pretrained_bytes().to_vec()),
            Self::File(path) => std::fs::read(path).with_context(|| path.display().to_string()),
        }
    }
}
