//! The parts that a training is made of, from its settings: the model's description, loaders, class weights, the optimiser; and the
//! settings that must not change where it is resumed.

use std::time::SystemTime;

use burn::module::ParamGroup;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, AdamWConfig, ModuleOptimizer, SgdConfig};

use serde_json::json;

use super::initial::InitialModel;
use super::teacher::Teacher;
use super::{Optimizer, Trainer};
use crate::augment::Augment;
use crate::checkpoint::ModelInfo;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::loader::LoaderSettings;
use crate::nn::Network;
use crate::preprocess::Preprocess;
use crate::task::Task;

/// Images per pass in evaluation.
pub(super) const EVALUATION_BATCH: usize = 64;

/// The description of a model before it is trained.
pub(super) fn model_info(trainer: &Trainer, train: &Dataset) -> Result<ModelInfo> {
    let classes = train.classes().to_vec();
    let graph = trainer.architecture.graph(classes.len())?;
    let mut info = ModelInfo::new(graph, classes, trainer.preprocess());
    if train.is_multi_label() {
        info.task = Task::multi_label(train.classes().len());
    }
    info.settings = serde_json::to_value(trainer).map_err(|e| Error::Config(e.to_string()))?;
    info.data_digest = train.digest();
    info.data_time = train.modified();
    info.normalization = trainer.architecture.normalization();
    Ok(info)
}

/// Class weights: the inverse of each class's share of the images, so that all classes weigh the same and the mean weight
/// of an image is 1.
pub(super) fn class_weights(images: &Dataset) -> Vec<f32> {
    let counts = images.counts();
    let mean = images.len() as f32 / counts.len() as f32;
    counts.iter().map(|count| mean / (*count).max(1) as f32).collect()
}

/// Settings of the loader of training images, at an input size in pixels.
pub(super) fn training_settings(trainer: &Trainer, size: u32) -> LoaderSettings {
    LoaderSettings {
        batch_size: trainer.batch_size,
        // Validation images are read as often and are about a tenth of all: they get a tenth of the cache.
        cache_bytes: (trainer.cache_mb << 20) / 10 * 9,
        augment: trainer.augment,
        shuffle: true,
        ..validation_settings(trainer, size)
    }
}

/// Settings of the loader of validation images, at an input size in pixels.
pub(super) fn validation_settings(trainer: &Trainer, size: u32) -> LoaderSettings {
    LoaderSettings {
        batch_size: EVALUATION_BATCH,
        workers: trainer.workers,
        cache_bytes: (trainer.cache_mb << 20) / 10,
        preprocess: Preprocess { size, ..trainer.preprocess() },
        augment: Augment::none(),
        seed: trainer.seed,
        shuffle: false,
    }
}

/// The optimiser of the settings; batch norms and biases are a group without weight decay.
pub(super) fn optimizer(trainer: &Trainer, model: &Network) -> ModuleOptimizer {
    let undecayed = ParamGroup::from_paths(model.without_weight_decay());
    let weight_decay = trainer.weight_decay as f32;
    let decay = (weight_decay > 0.0).then(|| WeightDecayConfig::new(weight_decay));
    match trainer.optimizer {
        Optimizer::Adam => {
            let adam = AdamConfig::new().with_epsilon(1e-8);
            let all = adam.clone().with_weight_decay(decay).init();
            all.with_group(undecayed, adam.with_weight_decay(None).build(), None)
        }
        Optimizer::AdamW => {
            let adam = AdamWConfig::new().with_epsilon(1e-8);
            let all = adam.clone().with_weight_decay(weight_decay).init();
            all.with_group(undecayed, adam.with_weight_decay(0.0).build(), None)
        }
        Optimizer::Sgd => {
            let momentum = MomentumConfig::new()
                .with_momentum(trainer.momentum)
                .with_dampening(0.0)
                .with_nesterov(trainer.momentum > 0.0);
            let sgd = SgdConfig::new().with_momentum(Some(momentum));
            let all = sgd.clone().with_weight_decay(decay).init();
            all.with_group(undecayed, sgd.with_weight_decay(None).build(), None)
        }
    }
}

/// The current time in seconds since 1970.
pub(super) fn unix_time() -> Option<u64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(since.as_secs())
}

/// The settings that a resumed training must share with the one that was stopped.
pub(super) fn fixed_settings(
    info: &ModelInfo,
    valid: &Dataset,
    initial: Option<&InitialModel>,
    teacher: Option<&Teacher>,
) -> Result<serde_json::Value> {
    let mut settings = info.settings.clone();
    if let Some(map) = settings.as_object_mut() {
        // Threads and cache do not change the result.
        map.remove("num_workers");
        map.remove("cache_mb");
        // Batch-norm statistics are re-estimated after the last epoch.
        map.remove("precise_bn_images");
        map.insert("multi label".into(), json!(valid.is_multi_label()));
        map.insert("training data".into(), json!(info.data_digest));
        map.insert("validation data".into(), json!(valid.digest()));
        // Frozen layers and the teacher are read from their files again, not from the state.
        map.insert("initial weights".into(), json!(initial.map(InitialModel::digest).transpose()?));
        map.insert("teacher".into(), json!(teacher.map(|teacher| &teacher.digest)));
    }
    Ok(settings)
}
