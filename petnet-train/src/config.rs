//! Settings of a training, as in `configs/train.yaml`. The keys include those of the Python reference implementation
//! (SimpleCNN, PyTorch and FastAPI), so that its files can be read.

use std::path::{Path, PathBuf};

use anyhow::Result;
use petnet::arch::Architecture;
use petnet::augment::Augment;
use petnet::preprocess::{Preprocess, Resize};
use petnet::train::{
    Arithmetic, Distillation, Freeze, Monitor, Optimizer, Resizing, Schedule, Start,
};
use petnet::{ClassSet, Device, Trainer};
use serde::{Deserialize, Serialize};

use crate::error::UsageError;

/// See `configs/train.yaml` for what each key means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    model: Architecture,
    num_classes: Option<usize>,
    pub(crate) multi_label: Option<bool>,
    init: Option<Start>,
    freeze: Option<Freeze>,
    source_classes: Option<ClassSet>,
    image_size: u32,
    progressive: Vec<Resizing>,
    resize: Resize,
    pub(crate) num_epochs: usize,
    batch_size: usize,
    learning_rate: f64,
    warmup_epochs: f64,
    scheduler: Schedule,
    optimizer: Optimizer,
    momentum: f64,
    weight_decay: f64,
    label_smoothing: f32,
    distillation: Option<Distillation>,
    balanced: bool,
    grad_clip: f64,
    precision: Arithmetic,
    ema_decay: f64,
    precise_bn_images: usize,
    quantize: bool,
    early_stopping: usize,
    seed: u64,
    num_workers: usize,
    cache_mb: usize,
    augmentation: Augment,
    pub(crate) checkpoint: CheckpointConfig,
    logging: LoggingConfig,
    pub(crate) mlflow: MlflowConfig,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct CheckpointConfig {
    pub(crate) save_dir: PathBuf,
    save_best_only: bool,
    monitor: Monitor,
    every_n_steps: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct LoggingConfig {
    level: String,
    log_every_n_steps: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MlflowConfig {
    pub(crate) experiment_name: String,
    pub(crate) tracking_uri: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        let trainer = Trainer::default();
        Self {
            data_dir: "data/processed".into(),
            model: trainer.architecture,
            num_classes: None,
            multi_label: None,
            init: trainer.init,
            freeze: trainer.freeze,
            source_classes: trainer.source_classes,
            image_size: trainer.preprocess.size,
            progressive: trainer.progressive,
            resize: trainer.preprocess.resize,
            num_epochs: trainer.epochs,
            batch_size: trainer.batch_size,
            learning_rate: trainer.learning_rate,
            warmup_epochs: trainer.warmup_epochs,
            scheduler: trainer.schedule,
            optimizer: trainer.optimizer,
            momentum: trainer.momentum,
            weight_decay: trainer.weight_decay,
            label_smoothing: trainer.label_smoothing,
            distillation: trainer.distillation,
            balanced: trainer.balanced,
            grad_clip: trainer.grad_clip,
            precision: trainer.precision,
            ema_decay: trainer.ema_decay,
            precise_bn_images: trainer.precise_bn_images,
            quantize: trainer.quantize,
            early_stopping: trainer.early_stopping,
            seed: trainer.seed,
            num_workers: trainer.workers,
            cache_mb: trainer.cache_mb,
            augmentation: trainer.augment,
            checkpoint: CheckpointConfig::default(),
            logging: LoggingConfig::default(),
            mlflow: MlflowConfig::default(),
        }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        let Trainer { monitor, save_every, save_best_only, .. } = Trainer::default();
        Self { save_dir: "models".into(), save_best_only, monitor, every_n_steps: save_every }
    }
}

impl Default for LoggingConfig {
    fn default() -> Self {
        Self { level: "info".into(), log_every_n_steps: 100 }
    }
}

impl Default for MlflowConfig {
    fn default() -> Self {
        Self { experiment_name: "cats-dogs-classifier".into(), tracking_uri: None }
    }
}

/// Reads a file as text, without a byte order mark.
fn read(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| UsageError(format!("{}: {e}", path.display())))?;
    Ok(text.trim_start_matches('\u{feff}').into())
}

impl Config {
    /// Reads a YAML file; keys that are left out keep their defaults.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = read(path)?;
        Self::parse(&text).map_err(|e| UsageError(format!("{}: {e}", path.display())).into())
    }

    /// [`Config::load`], or the defaults without a file, with some keys set: `learning_rate=0.001`,
    /// `scheduler.patience=2`; values are YAML.
    pub(crate) fn load_with(path: Option<&Path>, sets: &[String]) -> Result<Self> {
        let config = path.map(Self::load).transpose()?.unwrap_or_default();
        if sets.is_empty() {
            return Ok(config);
        }
        let mut settings = match path {
            Some(path) => serde_yaml::from_str(&read(path)?)?,
            None => serde_yaml::Value::Null,
        };
        for set in sets {
            let wrong = |e: String| UsageError(format!("--set {set}: {e}"));
            let (keys, value) = set.split_once('=').ok_or_else(|| wrong("KEY=VALUE".into()))?;
            let value = serde_yaml::from_str(value).map_err(|e| wrong(e.to_string()))?;
            put(&mut settings, keys, value).map_err(wrong)?;
            let text = serde_yaml::to_string(&settings)?;
            Self::parse(&text).map_err(wrong)?;
        }
        Self::parse(&serde_yaml::to_string(&settings)?).map_err(|e| UsageError(e).into())
    }

    fn parse(text: &str) -> Result<Self, String> {
        let given: serde_yaml::Value = serde_yaml::from_str(text).map_err(|e| e.to_string())?;
        if given.is_null() {
            return Ok(Self::default());
        }
        let config: Self = serde_yaml::from_str(text).map_err(|e| e.to_string())?;
        // A key that serde ignored is missing from the serialised settings.
        let known = serde_yaml::to_value(&config).map_err(|e| e.to_string())?;
        refuse_unknown(&given, &known, "")?;
        Ok(config)
    }

    /// Default name of a run with these settings.
    pub(crate) fn run_name(&self) -> String {
        format!("{}-{}px", self.model.name(), self.image_size)
    }

    pub(crate) fn log_level(&self) -> &str {
        &self.logging.level
    }

    pub(crate) fn log_every(&self) -> usize {
        self.logging.log_every_n_steps
    }

    /// The trainer with these settings, for data with this number of classes.
    pub(crate) fn trainer(&self, classes: usize, device: Device) -> Result<Trainer> {
        if let Some(expected) = self.num_classes.filter(|n| *n != classes) {
            let found = format!("num_classes is {expected}, the data has {classes}");
            return Err(UsageError(found).into());
        }
        Ok(Trainer {
            architecture: self.model.clone(),
            init: self.init.clone(),
            freeze: self.freeze,
            source_classes: self.source_classes.clone(),
            preprocess: Preprocess { size: self.image_size, resize: self.resize },
            progressive: self.progressive.clone(),
            epochs: self.num_epochs,
            batch_size: self.batch_size,
            learning_rate: self.learning_rate,
            schedule: self.scheduler,
            warmup_epochs: self.warmup_epochs,
            optimizer: self.optimizer,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            label_smoothing: self.label_smoothing,
            distillation: self.distillation.clone(),
            balanced: self.balanced,
            grad_clip: self.grad_clip,
            precision: self.precision,
            ema_decay: self.ema_decay,
            precise_bn_images: self.precise_bn_images,
            quantize: self.quantize,
            early_stopping: self.early_stopping,
            monitor: self.checkpoint.monitor,
            augment: self.augmentation,
            seed: self.seed,
            workers: self.num_workers,
            cache_mb: self.cache_mb,
            device,
            out: Some(self.checkpoint.save_dir.clone()),
            save_best_only: self.checkpoint.save_best_only,
            save_every: self.checkpoint.every_n_steps,
            resume: false,
        })
    }
}

/// Sets the value at a dotted path and creates the mappings on the way.
fn put(
    settings: &mut serde_yaml::Value,
    keys: &str,
    value: serde_yaml::Value,
) -> Result<(), String> {
    let (key, rest) = keys.split_once('.').map_or((keys, None), |(key, rest)| (key, Some(rest)));
    if settings.is_null() {
        *settings = serde_yaml::Value::Mapping(serde_yaml::Mapping::new());
    }
    let map = settings.as_mapping_mut().ok_or_else(|| format!("`{key}` is below a plain value"))?;
    let entry = map.entry(key.into()).or_insert(serde_yaml::Value::Null);
    match rest {
        Some(rest) => put(entry, rest, value)?,
        None => *entry = value,
    }
    Ok(())
}

fn refuse_unknown(
    given: &serde_yaml::Value,
    known: &serde_yaml::Value,
    prefix: &str,
) -> Result<(), String> {
    let (Some(given), Some(known)) = (given.as_mapping(), known.as_mapping()) else {
        return Ok(());
    };
    for (key, value) in given {
        let name = key.as_str().unwrap_or_default();
        if let Some(inner) = known.get(key) {
            refuse_unknown(value, inner, &format!("{prefix}{name}."))?;
            continue;
        }
        let names = known.keys().filter_map(|key| key.as_str());
        let nearest = names
            .map(|other| (strsim::jaro_winkler(name, other), other))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map_or("", |(_, other)| other);
        return Err(format!("unknown key `{prefix}{name}`, did you mean `{prefix}{nearest}`?"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_file_lists_every_key_with_its_default() {
        let text = include_str!("../../configs/train.yaml");
        assert_eq!(Config::parse(text), Ok(Config::default()));
        let given: serde_yaml::Value = serde_yaml::from_str(text).expect("valid YAML");
        let all = serde_yaml::to_value(Config::default()).expect("serialisable");
        assert_same_keys(&given, &all);
    }

    fn assert_same_keys(given: &serde_yaml::Value, all: &serde_yaml::Value) {
        let (Some(given), Some(all)) = (given.as_mapping(), all.as_mapping()) else { return };
        for (key, value) in all {
            let found = given.get(key).unwrap_or_else(|| panic!("{key:?} is missing"));
            assert_same_keys(found, value);
        }
    }

    #[test]
    fn the_quickstart_file_is_valid() {
        let text = include_str!("../../configs/quickstart.yaml");
        assert!(Config::parse(text).is_ok());
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_name() {
        let error = Config::parse("learning_rat: 0.1").expect_err("unknown key");
        assert!(error.contains("did you mean `learning_rate`"), "{error}");
        let error = Config::parse("augmentation: {horizontal_flop: 1}").expect_err("unknown key");
        assert!(error.contains("`augmentation.horizontal_flip`"), "{error}");
        assert!(Config::parse("scheduler: {name: cosine, patience: 3}").is_err());
    }
}
