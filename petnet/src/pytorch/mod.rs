//! Models from PyTorch: what `torch.save` or safetensors wrote of a network that petnet has too, the
//! reference system's checkpoints and torchvision's residual networks among them. Knows names and
//! shapes; runs nothing, and nothing of a file's pickled code.
//!
//! A network is known by its layers' shapes, so that names may differ: torchvision's `layer1.0.conv1` make
//! a residual network, convolutions in a row with two linear layers after them `simple_cnn`. Weights may
//! lie at the top of the file or under `model_state_dict`, `state_dict` or `model`, and those of
//! `DataParallel` and `torch.compile` lose their prefix.

mod layers;
mod tensors;
#[cfg(all(test, feature = "train"))]
mod tests;

use std::path::Path;

use crate::architecture::Normalization;
use crate::checkpoint::{Checkpoint, ModelInfo};
use crate::error::{Error, Result};
use crate::preprocess::{Preprocess, Resize};

/// What a file of weights does not say of its model, and the verb.
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
#[derive(Debug, Clone, PartialEq)]
pub struct Import {
    /// Class names in the order of the logits; empty takes the file's own, `class_names` of its `config`.
    pub labels: Vec<String>,
    /// How a photo becomes the network's input. The default is the reference system's: 224 pixels,
    /// squeezed.
    pub preprocess: Preprocess,
    /// What the network expects of its input's values, by default the figures of ImageNet.
    pub normalization: Normalization,
}

impl Default for Import {
    fn default() -> Self {
        Self {
            labels: Vec::new(),
            preprocess: Preprocess { size: 224, resize: Resize::Squeeze },
            normalization: Normalization::default(),
        }
    }
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
            [] => names(&file.config).map_err(|reason| Error::checkpoint(path, reason))?,
            given => Some(given.to_vec()),
        };
        let (mut architecture, weights, classes) =
            layers::arrange(file.tensors).map_err(|reason| Error::checkpoint(path, reason))?;
        let labels = labels.unwrap_or_default();
        if labels.len() != classes {
            let found =
                format!("{} has {classes} classes, {} are named", path.display(), labels.len());
            return Err(Error::Config(found));
        }
        if let Some(dropout) = file.config.get("dropout_rate").and_then(serde_json::Value::as_f64) {
            architecture.set_dropout(dropout);
        }
        let mut info = ModelInfo::new(architecture, labels, self.preprocess);
        info.normalization = self.normalization;
        info.settings = file.config;
        let checkpoint = Checkpoint::new(info, weights);
        checkpoint.sound().map_err(|reason| Error::checkpoint(path, reason))?;
        Ok(checkpoint)
    }

    /// The class names that a file has beside its weights, if it has any: `class_names` of its `config`.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Checkpoint`] when it is damaged or its names are
    /// no list of texts.
    pub fn class_names(path: impl AsRef<Path>) -> Result<Option<Vec<String>>> {
        let path = path.as_ref();
        names(&tensors::config(path)?).map_err(|reason| Error::checkpoint(path, reason))
    }
}

fn names(config: &serde_json::Value) -> Result<Option<Vec<String>>, String> {
    let Some(names) = config.get("class_names") else { return Ok(None) };
    let names = serde_json::from_value(names.clone());
    names.map(Some).map_err(|e| format!("`class_names` is no list of texts: {e}"))
}

/// A file's weights, whatever its classes are called.
#[cfg(feature = "train")]
pub(crate) fn weights(path: &Path) -> Result<crate::weights::Weights> {
    let file = tensors::read(path)?;
    let arranged = layers::arrange(file.tensors);
    Ok(arranged.map_err(|reason| Error::checkpoint(path, reason))?.1)
}
