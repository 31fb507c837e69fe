//! The model that answers, and how another one takes its place.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use arc_swap::ArcSwapOption;
use petnet::preprocess::Pixels;
use petnet::{Checkpoint, Classifier, sha256};

use crate::registry::{self, Registered};
use crate::settings::Settings;

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
        let (name, bytes) = if settings.model == "pretrained" {
            ("cats-vs-dogs".into(), Checkpoint::PRETRAINED.to_vec())
        } else if registry::is_registered(&settings.model) {
            let Registered { name, version, bytes } = registry::fetch(settings)?;
            registered = Some(version);
            (name, bytes)
        } else {
            let path = Path::new(&settings.model);
            let bytes = std::fs::read(path).with_context(|| settings.model.clone())?;
            (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), bytes)
        };
        let sha256 = sha256(&bytes);
        let checkpoint = Checkpoint::from_bytes(&bytes).with_context(|| settings.model.clone())?;
        let classifier =
            Classifier::new(checkpoint, settings.device)?.with_limits(settings.limits());
        let model = Self {
            classifier,
            name,
            version: sha256.chars().take(12).collect(),
            sha256,
            registered,
            loaded: SystemTime::now(),
        };
        model.warm_up()?;
        Ok(model)
    }

    /// A first pass pays for what later ones find ready; and a model that fails on it never serves.
    fn warm_up(&self) -> Result<()> {
        let size = self.classifier.info().preprocess.size;
        let blank = Pixels::new(size, size, vec![128; (size * size * 3) as usize]);
        let blank = blank.context("the model takes pictures of no size")?;
        self.classifier.classify_pixels(std::slice::from_ref(&blank))?;
        Ok(())
    }
}

/// The place where the model stands; readers never wait.
#[derive(Default)]
pub(crate) struct Slot(ArcSwapOption<Model>);

impl Slot {
    pub(crate) fn get(&self) -> Option<Arc<Model>> {
        self.0.load_full()
    }

    /// Loads the model that the settings name and puts it in place; on failure the old one stays.
    pub(crate) fn reload(&self, settings: &Settings) -> Result<Arc<Model>> {
        let model = Arc::new(Model::load(settings)?);
        tracing::info!(name = model.name, version = model.version, "model loaded");
        metrics::counter!("model_reloads_total", "result" => "loaded").increment(1);
        self.0.store(Some(Arc::clone(&model)));
        Ok(model)
    }
}
