//! The model that answers, and how another one takes its place.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use arc_swap::ArcSwapOption;
use md5::{Digest as _, Md5};
use metrics::{counter, gauge};
use petnet::preprocess::Pixels;
use petnet::{Checkpoint, Classifier, sha256};
use serde::Deserialize;

use crate::registry::{self, Registered};
use crate::settings::{ModelAddress, Settings};

/// Classes that metrics tell apart; the rest are `other`.
pub(crate) const CLASSES: usize = 32;

/// A loaded, warm model.
pub(crate) struct Model {
    pub(crate) classifier: Classifier,
    pub(crate) name: String,
    /// The first digits of the digest.
    pub(crate) version: String,
    /// SHA-256 of the file, in hex.
    pub(crate) sha256: String,
    /// Its number in the registry it came from.
    pub(crate) registered: Option<String>,
    pub(crate) loaded: SystemTime,
}

impl Model {
    fn load(settings: &Settings) -> Result<Self> {
        let mut registered = None;
        let address = || settings.model.to_string();
        let (name, bytes) = match &settings.model {
            ModelAddress::Bundled => {
                ("cats-vs-dogs".into(), Checkpoint::pretrained_bytes().to_vec())
            }
            ModelAddress::Registered(model) => {
                let Registered { name, version, bytes } = registry::fetch(settings, model)?;
                registered = Some(version);
                (name, bytes)
            }
            ModelAddress::File(path) => {
                let bytes = std::fs::read(path).with_context(address)?;
                (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), bytes)
            }
        };
        let sha256 = sha256(&bytes);
        let pulled = settings.dvc_lock.as_deref().map(|lock| names(lock, &bytes)).transpose()?;
        let checkpoint = Checkpoint::from_bytes(&bytes).with_context(address)?;
        let classifier =
            Classifier::new(checkpoint, settings.device)?.with_limits(settings.limits());
        let classifier = classifier.with_mirrors(settings.tta);
        let model = Self {
            classifier,
            name,
            version: sha256.chars().take(12).collect(),
            sha256,
            registered,
            loaded: SystemTime::now(),
        };
        model.warm_up()?;
        if pulled == Some(true) {
            counter!("dvc_pulls_total").increment(1);
        }
        Ok(model)
    }

    /// A class's name as a label of metrics, of which there must not be many.
    pub(crate) fn class(&self, index: usize) -> String {
        let name = self.classifier.labels().get(index).filter(|_| index < CLASSES);
        name.map_or("other".into(), Clone::clone)
    }

    /// Sets the gauges that say which model this is.
    pub(crate) fn observe(&self) {
        let info = self.classifier.info();
        gauge!(
            "model_info",
            "name" => self.name.clone(),
            "version" => self.version.clone(),
            "architecture" => info.graph.name().to_string()
        )
        .set(1.0);
        let loaded = self.loaded.duration_since(UNIX_EPOCH).unwrap_or_default();
        gauge!("model_loaded_timestamp_seconds").set(loaded.as_secs_f64());
        if let Some(trained) = info.trained {
            gauge!("model_last_trained_timestamp").set(trained as f64);
        }
        if let Some(changed) = info.data_time {
            gauge!("data_version_timestamp").set(changed as f64);
        }
    }

    /// A first pass pays for what later ones find ready; and a model that fails on it never serves.
    fn warm_up(&self) -> Result<()> {
        let size = self.classifier.info().preprocess.size;
        let blank = Pixels::new(size, size, vec![128; (size * size * 3) as usize]);
        let blank = blank.context("the model takes pictures of no size")?;
        // As many as there are threads, so that all of them have what they need.
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let outputs = self.classifier.classify_and_embed(&vec![blank; count])?;
        let finite = outputs.iter().all(|(prediction, features)| {
            let probabilities = prediction.probabilities().iter();
            probabilities.chain(features).all(|value| value.is_finite())
        });
        ensure!(finite, "{}: the model's outputs are not finite", self.name);
        Ok(())
    }
}

/// True when a `dvc.lock` names a file of these bytes among its outputs.
fn names(lock: &Path, bytes: &[u8]) -> Result<bool> {
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
    let digest: String = Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(lock
        .stages
        .values()
        .flat_map(|stage| &stage.outs)
        .any(|out| out.md5.as_deref() == Some(&digest)))
}

/// The place where the model stands; readers never wait.
#[derive(Default)]
pub(crate) struct Slot(ArcSwapOption<Model>);

impl Slot {
    pub(crate) fn get(&self) -> Option<Arc<Model>> {
        self.0.load_full()
    }

    /// Takes the model away; requests are refused until another one is loaded.
    pub(crate) fn empty(&self) {
        tracing::warn!("model unloaded");
        self.0.store(None);
    }

    /// Loads the model that the settings name and puts it in place; on failure the old one stays.
    pub(crate) fn reload(&self, settings: &Settings) -> Result<Arc<Model>> {
        let model = Arc::new(Model::load(settings)?);
        tracing::info!(name = model.name, version = model.version, "model loaded");
        counter!("model_reloads_total", "result" => "loaded").increment(1);
        self.0.store(Some(Arc::clone(&model)));
        Ok(model)
    }
}
