//! Settings of a training, as in `configs/train.yaml`. The keys include those of the Python reference implementation
//! (SimpleCNN, PyTorch and FastAPI), so that its files can be read.

use std::path::{Path, PathBuf};

use anyhow::Result;
use petnet::train::Monitor;
use petnet::{Device, Trainer};
use serde::{Deserialize, Serialize};

use crate::error::UsageError;

/// All settings of `fit`: those of the library's [`Trainer`], whose keys stand beside the program's own.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Config {
    pub(crate) trainer: Trainer,
    pub(crate) program: Program,
}

/// The keys of the file that the program adds; `configs/train.yaml` says what each means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Program {
    pub(crate) data_dir: PathBuf,
    num_classes: Option<usize>,
    pub(crate) multi_label: Option<bool>,
    pub(crate) checkpoint: CheckpointConfig,
    pub(crate) logging: LoggingConfig,
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
pub(crate) struct LoggingConfig {
    pub(crate) level: String,
    pub(crate) log_every_n_steps: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MlflowConfig {
    pub(crate) experiment_name: String,
    pub(crate) tracking_uri: Option<String>,
}

impl Default for Program {
    fn default() -> Self {
        Self {
            data_dir: "data/processed".into(),
            num_classes: None,
            multi_label: None,
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

impl Config {
    /// The settings of a YAML file, or the defaults without a file, with some keys set: `learning_rate=0.001`,
    /// `scheduler.patience=2`; values are YAML. Keys that are left out keep their defaults.
    pub(crate) fn load(path: Option<&Path>, sets: &[String]) -> Result<Self> {
        let (mut config, mut settings) = (Self::default(), serde_yaml::Value::Null);
        if let Some(path) = path {
            let invalid = |e: String| UsageError(format!("{}: {e}", path.display()));
            let text = std::fs::read_to_string(path).map_err(|e| invalid(e.to_string()))?;
            let text = text.trim_start_matches('\u{feff}');
            config = Self::parse(text).map_err(invalid)?;
            settings = serde_yaml::from_str(text)?;
        }
        for set in sets {
            let wrong = |e: String| UsageError(format!("--set {set}: {e}"));
            let (keys, value) = set.split_once('=').ok_or_else(|| wrong("KEY=VALUE".into()))?;
            let value = serde_yaml::from_str(value).map_err(|e| wrong(e.to_string()))?;
            set_at_path(&mut settings, keys, value).map_err(wrong)?;
            // Parsed after each, so that an error names the setting that caused it.
            config = Self::parse(&serde_yaml::to_string(&settings)?).map_err(wrong)?;
        }
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let given: serde_yaml::Value = serde_yaml::from_str(text).map_err(|e| e.to_string())?;
        if given.is_null() {
            return Ok(Self::default());
        }
        let config = Self {
            trainer: serde_yaml::from_str(text).map_err(|e| e.to_string())?,
            program: serde_yaml::from_str(text).map_err(|e| e.to_string())?,
        };
        // A key that serde ignored is missing from the serialised settings.
        let known = config.to_value().map_err(|e| e.to_string())?;
        refuse_unknown(&given, &known, "")?;
        Ok(config)
    }

    /// All keys with their values, as in the file.
    pub(crate) fn to_value(&self) -> Result<serde_yaml::Value> {
        let mut trainer = serde_yaml::to_value(&self.trainer)?;
        let program = serde_yaml::to_value(&self.program)?;
        if let (Some(all), serde_yaml::Value::Mapping(program)) =
            (trainer.as_mapping_mut(), program)
        {
            // The file has it below `checkpoint`.
            all.remove("monitor");
            all.extend(program);
        }
        Ok(trainer)
    }

    /// Default name of a run with these settings.
    pub(crate) fn run_name(&self) -> String {
        format!("{}-{}px", self.trainer.architecture.name(), self.trainer.image_size)
    }

    /// The trainer with these settings, for data with this number of classes.
    pub(crate) fn trainer(&self, classes: usize, device: Device) -> Result<Trainer> {
        if let Some(expected) = self.program.num_classes.filter(|n| *n != classes) {
            let found = format!("num_classes is {expected}, the data has {classes}");
            return Err(UsageError(found).into());
        }
        let checkpoint = &self.program.checkpoint;
        Ok(Trainer {
            monitor: checkpoint.monitor,
            device,
            out: Some(checkpoint.save_dir.clone()),
            save_best_only: checkpoint.save_best_only,
            save_every: checkpoint.every_n_steps,
            ..self.trainer.clone()
        })
    }
}

/// Sets the value at a dotted path and creates the mappings on the way.
fn set_at_path(
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
        Some(rest) => set_at_path(entry, rest, value)?,
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
        let all = Config::default().to_value().expect("serialisable");
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
    fn every_committed_file_is_valid() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
        let entries = std::fs::read_dir(folder).expect("the folder of the repository");
        let files = entries.map(|entry| entry.expect("readable").path());
        let files: Vec<PathBuf> =
            files.filter(|file| file.extension() == Some("yaml".as_ref())).collect();
        assert!(files.len() >= 5, "{files:?}");
        for file in files {
            let config = Config::load(Some(&file), &[]).expect("known keys");
            config.trainer(2, Device::Cpu).expect("two classes");
        }
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
