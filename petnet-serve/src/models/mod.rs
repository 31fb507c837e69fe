//! The served models, each with a queue, a drift window, and the file or registered name that it is loaded from.

mod follow;
mod model;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use arc_swap::ArcSwapOption;
use hyper::StatusCode;
use metrics::counter;
use petnet::Decision;

use crate::authorization::Priority;
use crate::drift::Drift;
use crate::model_source::{ModelAddress, ModelSource};
use crate::problem::{Kind, Problem};
use crate::queue::{Permit, Queue};
use crate::settings::Settings;
use crate::telemetry::names;

pub(crate) use follow::follow;
pub(crate) use model::{MAX_METRIC_CLASSES, Model};

/// Maximum number of models: each is a label value of metrics.
const MAX_MODELS: usize = 16;
/// Suffix of the name under which a model takes tensors of pixels.
pub(crate) const PIXELS_SUFFIX: &str = "-pixels";

/// All models, of which the first is the default.
pub(crate) struct Models {
    default: Arc<ServedModel>,
    others: Vec<Arc<ServedModel>>,
}

/// A name that clients use, and the model that it currently refers to.
pub(crate) struct ServedModel {
    source: ModelSource,
    current: ArcSwapOption<Model>,
    /// Held while the model is loaded: of two reloads, the later one reads the file later, and its model remains in use.
    loading: Mutex<()>,
    queue: Arc<Queue>,
    pub(crate) drift: Drift,
    /// The stamp of the file at the last attempt to load it, whether it was loaded or refused. It is taken before the file is
    /// read, so that a change during the read is noticed.
    attempt_stamp: Mutex<Option<FileStamp>>,
}

/// Modification time and length of a model's file, by which a change is noticed.
type FileStamp = (SystemTime, u64);

/// The model for a request's images, and their priority.
#[derive(Clone)]
pub(crate) struct RequestModel {
    pub(crate) model: Arc<Model>,
    pub(crate) served: Arc<ServedModel>,
    priority: Priority,
}

impl RequestModel {
    /// See [`Queue::check_wait`].
    pub(crate) fn check_wait(&self) -> Result<(), Problem> {
        self.served.queue.check_wait(self.priority)
    }

    /// See [`Queue::acquire`].
    pub(crate) async fn acquire(&self, timeout: Option<Duration>) -> Result<Permit, Problem> {
        self.served.queue.acquire(self.priority, timeout).await
    }

    pub(crate) fn overloaded(&self) -> Problem {
        self.served.queue.overloaded(self.priority)
    }
}

impl ServedModel {
    fn new(source: ModelSource, permits: usize, settings: &Settings) -> Self {
        // Counters start at zero, so that Prometheus' `increase` includes the first event.
        let name = || source.name.clone();
        for result in ["loaded", "refused"] {
            counter!(names::MODEL_RELOADS_TOTAL, "model" => name(), "result" => result)
                .increment(0);
        }
        for decision in Decision::ALL {
            let decision = decision.name();
            counter!(names::PREDICTION_DECISIONS_TOTAL, "decision" => decision, "model" => name())
                .increment(0);
        }
        Self {
            queue: Arc::new(Queue::new(&source.name, permits, settings.queue_timeout)),
            source,
            current: ArcSwapOption::empty(),
            loading: Mutex::default(),
            drift: Drift::new(settings.drift_window),
            attempt_stamp: Mutex::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.source.name
    }

    /// The model in use; `None` before the first is loaded and after it was unloaded.
    pub(crate) fn get(&self) -> Option<Arc<Model>> {
        self.current.load_full()
    }

    /// The model in use, for images of a priority.
    /// Errors: 503 while no model is loaded.
    pub(crate) fn target(self: &Arc<Self>, priority: Priority) -> Result<RequestModel, Problem> {
        let model = self.get().ok_or_else(Problem::not_ready)?;
        Ok(RequestModel { model, served: Arc::clone(self), priority })
    }

    /// Unloads the model; requests are refused until another one is loaded.
    pub(crate) fn unload(&self) {
        tracing::warn!(name = self.name(), "model unloaded");
        self.current.store(None);
    }

    /// Reloads the model, after a reload that is in progress; on failure the previous one remains in use.
    /// Errors: when it cannot be loaded; the failure is counted and logged here.
    pub(crate) fn reload(&self, settings: &Settings) -> Result<Arc<Model>> {
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        *self.attempt_stamp.lock().unwrap_or_else(PoisonError::into_inner) = self.file_stamp();
        let loaded = Model::load(&self.source, settings);
        let count = |result: &'static str| {
            let name = self.source.name.clone();
            counter!(names::MODEL_RELOADS_TOTAL, "model" => name, "result" => result).increment(1);
        };
        match loaded {
            Ok(model) => {
                let model = Arc::new(model);
                tracing::info!(name = model.name, version = model.version, "model loaded");
                count("loaded");
                self.current.store(Some(Arc::clone(&model)));
                Ok(model)
            }
            Err(error) => {
                count("refused");
                let text = format!("{error:#}");
                tracing::error!(name = self.name(), error = text, "the new model was refused");
                Err(error)
            }
        }
    }

    fn file_stamp(&self) -> Option<FileStamp> {
        let ModelAddress::File(path) = &self.source.address else { return None };
        let file = std::fs::metadata(path).ok()?;
        Some((file.modified().ok()?, file.len()))
    }

    pub(crate) fn set_gauges(&self) {
        self.queue.set_gauges();
        self.drift.set_gauges(self.name());
        if let Some(model) = self.get() {
            model.set_gauges();
        }
    }
}

impl Models {
    /// The models of the settings, none of which is loaded yet.
    /// Errors: when there are too many models, or two of one name.
    pub(crate) fn new(settings: &Settings) -> Result<Self> {
        let sources = &settings.models;
        ensure!(
            sources.len() <= MAX_MODELS,
            "--model: {} models, of {MAX_MODELS} at most",
            sources.len()
        );
        for (index, ModelSource { name, address }) in sources.iter().enumerate() {
            let repeated = sources[..index].iter().any(|other| other.name == *name);
            ensure!(
                !repeated,
                "--model: two models are called `{name}`: name them, NAME={address}"
            );
            ensure!(
                !name.ends_with(PIXELS_SUFFIX) && !name.is_empty(),
                "--model: `{name}` cannot be a model's name: name it, NAME={address}"
            );
        }
        let permits = settings.queue.div_ceil(sources.len().max(1));
        let mut served = sources.iter().map(|source| {
            let served = ServedModel::new(source.clone(), permits, settings);
            Arc::new(served)
        });
        let default = served.next().ok_or_else(|| anyhow::anyhow!("--model: no model is named"))?;
        let others = served.collect();
        let models = Self { default, others };
        if let Some(shadow) = &settings.shadow {
            let exists = models.others.iter().any(|served| served.name() == shadow);
            ensure!(exists, "--shadow {shadow}: no --model but the first is called so");
        }
        Ok(models)
    }

    /// The model of requests that name none.
    pub(crate) fn default(&self) -> &Arc<ServedModel> {
        &self.default
    }

    /// All of them, the default first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<ServedModel>> {
        std::iter::once(&self.default).chain(&self.others)
    }

    /// The model of that name, or the default model.
    /// Errors: 404 for an unknown name.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<&Arc<ServedModel>, Problem> {
        let Some(name) = name else { return Ok(&self.default) };
        let found = self.iter().find(|served| served.name() == name);
        found
            .ok_or_else(|| unknown_model(name, self.iter().map(|served| served.name().to_string())))
    }

    /// The model whose labels an earlier prediction may get: the loaded one of its version, or else the one that now serves under
    /// its name, or where none has that name any more, the default model. `None` while that model is not loaded.
    pub(crate) fn of_prediction(&self, name: &str, version: &str) -> Option<Arc<Model>> {
        let mut loaded = self.iter().filter_map(|served| served.get());
        let of_version = loaded.find(|model| model.version == version);
        of_version.or_else(|| self.find(Some(name)).unwrap_or(&self.default).get())
    }

    /// True while images of any model are in flight and none of them has made progress for some seconds.
    pub(crate) fn is_stuck(&self) -> bool {
        self.iter().any(|served| served.queue.is_stuck())
    }

    /// True while no image is in flight, and none of an interactive caller waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.iter().all(|served| served.queue.is_idle())
    }
}

/// The refusal of an unknown model, with the names of those that exist.
pub(crate) fn unknown_model(name: &str, names: impl Iterator<Item = String>) -> Problem {
    let names = names.collect::<Vec<_>>().join(", ");
    let detail = format!("there is no model `{name}`: there is {names}");
    Problem::new(StatusCode::NOT_FOUND, Kind::UnknownModel, detail)
}
