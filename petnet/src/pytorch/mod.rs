//! Models from PyTorch: what `torch.save` or safetensors wrote of a network that petnet has too, the
//! reference system's checkpoints, torchvision's residual networks and EfficientNet-Lite among them. Knows names and
//! shapes; runs nothing, and nothing of a file's pickled code.
//!
//! Each architecture knows how its files are recognised (a line in its table). Weights may lie at any depth, and
//! prefixes that all of them share are taken off: `state_dict.model.net.`, `module.` and their like.

mod keys;
mod tensors;
#[cfg(all(test, feature = "train"))]
mod tests;

use std::path::Path;

use crate::arch::Normalization;
use crate::checkpoint::{Checkpoint, ModelInfo};
use crate::error::{Error, ModelError, Result};
use crate::preprocess::{Preprocess, Resize};

/// An import of a file of weights: the facts about the model that the file lacks.
///
/// ```no_run
/// use petnet::pytorch::Import;
///
/// let import = Import { labels: vec!["cat".into(), "dog".into()], ..Default::default() };
/// let model = import.read("best_model.pt")?;
/// model.save("best.safetensors", petnet::Precision::F32)?;
/// println!("{}", petnet::Classifier::new(model, petnet::Device::Cpu)?.classify_path("rex.jpg")?);
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Import {
    /// Class names in the order of the logits; empty takes the file's own, `class_names` of its `config`.
    pub labels: Vec<String>,
    /// Side of the network's input, in pixels; `None` takes that of the network's published weights, as below.
    pub image_size: Option<u32>,
    /// The way in which images are resized to a square.
    pub resize: Option<Resize>,
    /// Normalisation of the network's input.
    pub normalization: Option<Normalization>,
}

impl Import {
    /// Reads a `.pt`, `.pth` or `.safetensors` file. A `config` beside the weights is kept as
    /// [`ModelInfo::settings`].
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Checkpoint`] when it is damaged or holds no
    /// network of petnet's, [`Error::Config`] when it has another number of classes than labels.
    pub fn read(&self, path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        let file = tensors::read(path)?;
        let labels = match &self.labels[..] {
            [] => {
                let named = class_names(&file.config).map_err(|e| Error::checkpoint(path, e))?;
                named.unwrap_or_default()
            }
            given => given.to_vec(),
        };
        self.checkpoint(file, path, |_| labels)
    }

    /// A file's contents as a checkpoint; `labels` names so many classes.
    fn checkpoint(
        &self,
        file: tensors::Contents,
        path: &Path,
        labels: impl FnOnce(usize) -> Vec<String>,
    ) -> Result<Checkpoint> {
        let refused = |reason: ModelError| Error::checkpoint(path, reason);
        let (found, weights) = keys::convert(file.tensors).map_err(refused)?;
        let labels = labels(found.classes);
        if labels.len() != found.classes {
            let (classes, named) = (found.classes, labels.len());
            let reason = format!("{} has {classes} classes, {named} are named", path.display());
            return Err(Error::Config(reason));
        }
        let rate = file.config.get("dropout_rate").and_then(serde_json::Value::as_f64);
        let architecture = match rate {
            Some(rate) => found.architecture.with("dropout", rate)?,
            None => found.architecture,
        };
        let Preprocess { size, resize } = architecture.preprocess();
        let size = self.image_size.unwrap_or(size);
        let preprocess = Preprocess { size, resize: self.resize.unwrap_or(resize) };
        let mut info = ModelInfo::new(architecture.graph(labels.len())?, labels, preprocess);
        info.normalization = self.normalization.unwrap_or(architecture.normalization());
        info.settings = file.config;
        Checkpoint::new(info, weights).map_err(refused)
    }

    /// The class names that a file has beside its weights, if it has any: `class_names` of its `config`.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Checkpoint`] when it is damaged or its names are
    /// no list of texts.
    pub fn class_names(path: impl AsRef<Path>) -> Result<Option<Vec<String>>> {
        let path = path.as_ref();
        class_names(&tensors::config(path)?).map_err(|reason| Error::checkpoint(path, reason))
    }
}

fn class_names(config: &serde_json::Value) -> Result<Option<Vec<String>>, ModelError> {
    let Some(names) = config.get("class_names") else { return Ok(None) };
    let names = serde_json::from_value(names.clone());
    names.map(Some).map_err(|e| ModelError::ClassNames(e.to_string()))
}

/// The model of a file, with classes named by their numbers.
#[cfg(feature = "train")]
pub(crate) fn with_numbered_classes(path: &Path) -> Result<Checkpoint> {
    let numbered = |classes| (0..classes).map(|class: usize| class.to_string()).collect();
    Import::default().checkpoint(tensors::read(path)?, path, numbered)
}
