//! A loaded model: read from its source, validated and run once.

use std::collections::HashMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use md5::{Digest as _, Md5};
use metrics::{counter, gauge};
use petnet::disk::sha256;
use petnet::preprocess::Pixels;
use petnet::{Checkpoint, Classifier};
use serde::Deserialize;

use crate::model_source::{ModelAddress, ModelSource};
use crate::registry;
use crate::settings::Settings;
use crate::telemetry::names;

/// Number of classes with a label value of their own in metrics; further classes share `other`.
pub(crate) const MAX_METRIC_CLASSES: usize = 32;

/// A loaded model that has run once.
pub(crate) struct Model {
    pub(crate) classifier: Classifier,
    /// The name that clients use.
    pub(crate) name: String,
    /// The first 12 digits of the SHA-256.
    pub(crate) version: String,
    /// SHA-256 of the file, in hex.
    pub(crate) sha256: String,
    /// Version number in the MLflow registry, for a registered model.
    pub(crate) registry_version: Option<String>,
    pub(crate) loaded_at: SystemTime,
}

impl Model {
    /// Loads the model and runs it once.
    /// Errors: when it does not exist, is invalid, or its outputs are not finite.
    pub(super) fn load(source: &ModelSource, settings: &Settings) -> Result<Self> {
        let mut registry_version = None;
        let address = || source.address.to_string();
        let bytes = match &source.address {
            ModelAddress::Bundled => Checkpoint::pretrained_bytes().to_vec(),
            ModelAddress::Registered(model) => {
                let fetched = registry::fetch(settings, model)?;
                registry_version = Some(fetched.version);
                fetched.bytes
            }
            ModelAddress::File(path) => std::fs::read(path).with_context(address)?,
        };
        let sha256 = sha256(&bytes);
        let is_pulled =
            settings.dvc_lock.as_deref().map(|lock| is_dvc_output(lock, &bytes)).transpose()?;
        let checkpoint = Checkpoint::from_bytes(&bytes).with_context(address)?;
        let classifier =
            Classifier::new(checkpoint, settings.device)?.with_limits(settings.limits());
        let classifier = classifier.with_mirrors(settings.tta);
        let model = Self {
            classifier,
            name: source.name.clone(),
            version: sha256.chars().take(12).collect(),
            sha256,
            registry_version,
            loaded_at: SystemTime::now(),
        };
        model.warm_up()?;
        if is_pulled == Some(true) {
            counter!(names::DVC_PULLS_TOTAL).increment(1);
        }
        Ok(model)
    }

    /// A class's name as a label value of metrics, whose number is limited.
    pub(crate) fn class(&self, index: usize) -> String {
        let name = self.classifier.labels().get(index).filter(|_| index < MAX_METRIC_CLASSES);
        name.map_or("other".into(), Clone::clone)
    }

    /// Sets the gauges that describe this model.
    pub(crate) fn set_gauges(&self) {
        let info = self.classifier.info();
        gauge!(
            names::MODEL_INFO,
            "name" => self.name.clone(),
            "version" => self.version.clone(),
            "architecture" => info.graph.name().to_string()
        )
        .set(1.0);
        let loaded_at = self.loaded_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        gauge!(names::MODEL_LOADED_TIMESTAMP_SECONDS, "model" => self.name.clone())
            .set(loaded_at.as_secs_f64());
        if let Some(trained) = info.trained {
            gauge!(names::MODEL_LAST_TRAINED_TIMESTAMP, "model" => self.name.clone())
                .set(trained as f64);
        }
        if let Some(changed) = info.data_time {
            gauge!(names::DATA_VERSION_TIMESTAMP, "model" => self.name.clone()).set(changed as f64);
        }
    }

    /// Runs the network once: buffers are allocated before the first request, and a model that fails is never used.
    fn warm_up(&self) -> Result<()> {
        let size = self.classifier.info().preprocess.size;
        let grey = Pixels::new(size, size, vec![128; (size * size * 3) as usize]);
        let grey = grey.context("the model's input size is 0")?;
        // One image per core, so that every thread allocates its buffers.
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let outputs = self.classifier.classify_and_embed(&vec![grey; count])?;
        let finite = outputs.iter().all(|(prediction, features)| {
            let probabilities = prediction.probabilities().iter();
            probabilities.chain(features).all(|value| value.is_finite())
        });
        ensure!(finite, "{}: the model's outputs are not finite", self.name);
        Ok(())
    }
}

/// True when a `dvc.lock` names a file of these bytes among its outputs.
fn is_dvc_output(lock: &Path, bytes: &[u8]) -> Result<bool> {
    #[derive(Deserialize)]
    struct Lock {
        #[serde(default)]
        stages: HashMap<String, Stage>,
    }
    #[derive(Deserialize)]
    struct Stage {
        #[serde(default)]
        outs: Vec<Out>,
    }
    #[derive(Deserialize)]
    struct Out {
        md5: Option<String>,
    }
    let context = || lock.display().to_string();
    let text = std::fs::read_to_string(lock).with_context(context)?;
    let lock: Lock = serde_yaml::from_str(&text).with_context(context)?;
    let digest = hex::encode(Md5::digest(bytes));
    Ok(lock
        .stages
        .values()
        .flat_map(|stage| &stage.outs)
        .any(|out| out.md5.as_deref() == Some(&digest)))
}
