//! The embedded store: MLflow's file layout (`mlruns/`), which `mlflow migrate-filestore` turns
//! into a database and `mlflow ui` opens.
//!
//! Every record is written to disk before it is sent: small files atomically, metrics as appended lines. A line that a
//! crash cut short is dropped.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use petnet::mlflow::DIGEST_TAG;
use uuid::Uuid;

use super::layout::{META_FILE, address, file_name, folders, now, read_yaml, write_yaml};
use super::run::{ExperimentMeta, Run};

/// Folders in an experiment's folder that are not runs.
const NON_RUN_FOLDERS: [&str; 4] = ["datasets", "models", "tags", "traces"];

/// A folder of experiments.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    pub(crate) fn open(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| root.display().to_string())?;
        let root = root.canonicalize().with_context(|| root.display().to_string())?;
        let store = Self { root };
        if !store.root.join("0").join(META_FILE).is_file() {
            store.write_experiment("0", "Default")?;
        }
        Ok(store)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn write_experiment(&self, id: &str, name: &str) -> Result<PathBuf> {
        let folder = self.root.join(id);
        let meta = ExperimentMeta {
            artifact_location: address(&folder),
            creation_time: now(),
            experiment_id: id.into(),
            last_update_time: now(),
            lifecycle_stage: "active".into(),
            name: name.into(),
        };
        write_yaml(&folder, &meta)?;
        Ok(folder)
    }

    /// Folder and name of each experiment.
    fn experiments(&self) -> Result<Vec<(PathBuf, String)>> {
        let numbered = |folder: &PathBuf| file_name(folder).parse::<i64>().is_ok();
        folders(&self.root)?
            .into_iter()
            .filter(numbered)
            .map(|folder| {
                let ExperimentMeta { name, .. } = read_yaml(&folder)?;
                Ok((folder, name))
            })
            .collect()
    }

    fn experiment(&self, name: &str) -> Result<PathBuf> {
        let found = self.experiments()?.into_iter().find(|(_, other)| other == name);
        match found {
            Some((folder, _)) => Ok(folder),
            None => {
                // A random integer as in MLflow's file store: 62 bits of a UUID, whose variant is in the two before them.
                let id = Uuid::new_v4().as_u128() & (u128::MAX >> 66);
                self.write_experiment(&id.to_string(), name)
            }
        }
    }

    /// Creates a run and locks it.
    pub(crate) fn start(&self, experiment: &str, name: &str, user: &str) -> Result<Run> {
        Run::create(&self.experiment(experiment)?, name, user)
    }

    /// All runs, the newest first. Running ones whose process has ended are marked as killed.
    pub(crate) fn runs(&self) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for (experiment, _) in self.experiments()? {
            for folder in folders(&experiment)? {
                let name = file_name(&folder);
                if !NON_RUN_FOLDERS.contains(&&*name) && folder.join(META_FILE).is_file() {
                    runs.push(Run::open(folder)?);
                }
            }
        }
        runs.sort_by_key(|run| std::cmp::Reverse(run.meta().start_time));
        Ok(runs)
    }

    /// The run whose identifier begins with `id`.
    pub(crate) fn run(&self, id: &str) -> Result<Run> {
        let mut found = self.runs()?;
        found.retain(|run| run.id().starts_with(id));
        match (found.pop(), found.is_empty()) {
            (Some(run), true) if !id.is_empty() => Ok(run),
            (None, _) => bail!("no run {id} in {}", self.root.display()),
            _ => bail!("more than one run begins with {id}"),
        }
    }

    /// The run that made the model with this digest.
    pub(crate) fn run_of_model(&self, sha256: &str) -> Result<Option<Run>> {
        let runs = self.runs()?;
        Ok(runs.into_iter().find(|run| {
            let models = run.models().unwrap_or_default();
            models.iter().any(|model| model.tag(DIGEST_TAG).as_deref() == Some(sha256))
        }))
    }
}
