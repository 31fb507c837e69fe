//! The saved state of a training: a safetensors file with the records of model, optimiser and averaged weights as bytes,
//! and progress and checksum in its metadata. A resumed training continues exactly, but for the loss scale of mixed
//! precision, which starts over.

use std::collections::HashMap;
use std::path::Path;

use burn::module::Module;
use burn::optim::ModuleOptimizer;
use burn::store::ModuleRecord;
use burn::tensor::Bytes;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::EpochReport;
use super::schedule::Plateau;
use crate::checkpoint::digest;
use crate::disk::write_atomically;
use crate::error::{Error, ModelError, Result};
use crate::nn::Network;

const PROGRESS_KEY: &str = "progress";
const DIGEST_KEY: &str = "sha256";

/// Counters, sums and history. Together with weights and optimiser they are the whole state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Epochs completed.
    pub(super) epoch: usize,
    /// Steps completed in the current one.
    pub(super) step: usize,
    /// Steps completed in all.
    pub(super) updates: usize,
    /// Sum of the losses of the current epoch's images.
    pub(super) loss_sum: f64,
    /// Number of images of the current epoch that were classified correctly.
    pub(super) correct: usize,
    /// Number of images of the current epoch.
    pub(super) images: usize,
    pub(super) plateau: Plateau,
    pub(super) best_score: Option<f64>,
    pub(super) epochs_since_best: usize,
    pub(super) seconds: f64,
    /// Seconds of this epoch in which training waited for a batch.
    #[serde(default)]
    pub(super) waited: f64,
    pub(super) history: Vec<EpochReport>,
    /// Metrics of the last validation, as in the model file.
    pub(super) metrics: serde_json::Value,
    /// Settings and digests of data that a resumed training must share.
    pub(super) fixed_settings: serde_json::Value,
}

/// Weights, optimiser and progress: all that a step changes.
pub(super) struct State {
    /// On the autodiff device.
    pub(super) model: Network,
    /// Moving average of the weights, on the inner device without autodiff.
    pub(super) average: Option<Network>,
    pub(super) optimizer: ModuleOptimizer,
    pub(super) progress: Progress,
}

impl State {
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let failed = |e: &dyn std::fmt::Display| damaged(path, e);
        let record = |network: Network| network.into_record().into_bytes();
        let mut parts = vec![
            ("model", record(self.model.valid()).map_err(|e| failed(&e))?),
            ("optimizer", self.optimizer.to_record().into_bytes().map_err(|e| failed(&e))?),
        ];
        if let Some(average) = &self.average {
            parts.push(("average", record(average.clone()).map_err(|e| failed(&e))?));
        }
        let views = parts
            .iter()
            .map(|(name, bytes)| {
                TensorView::new(Dtype::U8, vec![bytes.len()], bytes).map(|view| (*name, view))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| failed(&e))?;
        let progress = serde_json::to_string(&self.progress).map_err(|e| failed(&e))?;
        let digest = digest(&progress, views.iter().map(|(name, view)| (*name, view.data())));
        let metadata =
            HashMap::from([(PROGRESS_KEY.into(), progress), (DIGEST_KEY.into(), digest)]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| failed(&e))?;
        write_atomically(path, &bytes)
    }

    /// Loads a saved state into `self`, which was built from the same settings.
    pub(super) fn load(self, path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let failed = |e: &dyn std::fmt::Display| damaged(path, e);
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| failed(&e))?;
        let parts = SafeTensors::deserialize(&bytes).map_err(|e| failed(&e))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let text = metadata.get(PROGRESS_KEY).ok_or_else(|| failed(&"no training state"))?;
        let tensors = parts.tensors();
        let expected =
            digest(text, tensors.iter().map(|(name, view)| (name.as_str(), view.data())));
        if metadata.get(DIGEST_KEY) != Some(&expected) {
            return Err(failed(&"the content does not match its checksum"));
        }
        let progress: Progress = serde_json::from_str(text).map_err(|e| failed(&e))?;
        if let Some(key) = difference(&progress.fixed_settings, &self.progress.fixed_settings) {
            return Err(Error::Config(format!(
                "cannot resume {}: `{key}` differs from the run that wrote it",
                path.display()
            )));
        }
        let part = |name: &str| {
            let view = parts.tensor(name).map_err(|e| failed(&e))?;
            Ok::<_, Error>(Bytes::from_bytes_vec(view.data().to_vec()))
        };
        let network = |name: &str, network: Network| {
            let record = ModuleRecord::from_bytes(part(name)?).map_err(|e| failed(&e))?;
            network.try_load_record(record).map_err(|e| failed(&e))
        };
        let optimizer =
            burn::optim::OptimizerRecord::from_bytes(part("optimizer")?).map_err(|e| failed(&e))?;
        Ok(Self {
            model: network("model", self.model)?,
            average: self.average.map(|average| network("average", average)).transpose()?,
            optimizer: self.optimizer.load_record(optimizer),
            progress,
        })
    }
}

fn damaged(path: &Path, reason: &dyn std::fmt::Display) -> Error {
    let (format, reason) = ("training state", reason.to_string());
    Error::checkpoint(path, ModelError::Damaged { format, reason })
}

/// First key for which the values differ.
fn difference(a: &serde_json::Value, b: &serde_json::Value) -> Option<String> {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
        return (a != b).then(|| "settings".to_string());
    };
    a.keys().chain(b.keys()).find(|key| a.get(*key) != b.get(*key)).cloned()
}
