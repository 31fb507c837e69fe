//! User feedback: predictions and the labels that users give them, on disk, and quality metrics from them.

mod quality;
mod store;
mod table;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use anyhow::{Result, anyhow};
use metrics::{counter, gauge};
use uuid::Uuid;

use crate::models::Model;
use crate::problem::Problem;
use crate::settings::Settings;
use crate::telemetry::names;
use quality::Evaluations;
use store::{Recovery, Retention, Store, is_damage};

pub(crate) use store::{LabelledPrediction, StoredPrediction};

/// The store, and the feedback of the last days in memory.
pub(crate) struct Feedback {
    /// `None` while a store that failed is closed and not yet open again.
    store: RwLock<Option<Store>>,
    pub(crate) path: PathBuf,
    retention: Retention,
    /// True from a failure of the store until it is open again.
    failed: AtomicBool,
    /// True where the failure was caused by damaged files.
    damaged: AtomicBool,
    evaluations: Mutex<Evaluations>,
}

/// Result of submitting one label.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// The label is stored: its prediction, the label in the model's spelling, and `right` if both are equal.
    Stored { predicted: StoredPrediction, actual: String, right: bool },
    /// The prediction does not exist, or is too old.
    UnknownPrediction,
    /// The model of the prediction has no such label, or is not loaded.
    Refused(Problem),
}

impl Feedback {
    /// `None` where feedback is off, or its default folder cannot be used.
    /// Errors: when the folder of `--feedback` cannot be used.
    pub(crate) fn open(settings: &Settings) -> Result<Option<Self>> {
        let (path, explicit) = match settings.feedback.as_deref() {
            Some("off") => return Ok(None),
            Some(path) => (path, true),
            None => (Settings::FEEDBACK, false),
        };
        let (max_age, max_bytes) = (settings.feedback_keep, settings.feedback_max_bytes);
        match Self::open_store(Path::new(path), Retention { max_age, max_bytes }) {
            Ok(feedback) => Ok(Some(feedback)),
            Err(error) if !explicit => {
                tracing::warn!(error = format!("{error:#}"), "feedback is off");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn open_store(path: &Path, retention: Retention) -> Result<Self> {
        let (store, recovery) = Store::open(path, retention)?;
        report_recovery(&recovery);
        let mut evaluations = Evaluations::default();
        for labelled in store.labels_after(None) {
            let (id, labelled) = labelled?;
            evaluations.insert(id, &labelled);
        }
        evaluations.expire(now());
        Ok(Self {
            store: RwLock::new(Some(store)),
            path: path.into(),
            retention,
            failed: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            evaluations: Mutex::new(evaluations),
        })
    }

    /// Calls `work` with the store. Every failure is counted; only the first is logged until the store works again.
    fn with_store<T>(&self, work: impl FnOnce(&Store) -> Result<T>) -> Result<T> {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        let outcome = match store.as_ref() {
            Some(store) => work(store),
            None => Err(anyhow!("the feedback store is closed after a failure")),
        };
        if let Err(error) = &outcome {
            counter!(names::FEEDBACK_STORE_ERRORS_TOTAL).increment(1);
            self.damaged.fetch_or(is_damage(error), Ordering::Relaxed);
            if !self.failed.swap(true, Ordering::Relaxed) {
                tracing::error!(error = format!("{error:#}"), "the feedback store failed");
            }
        }
        outcome
    }

    /// Reopens a store that has failed: the database accepts no writes after a failed one, even if the disk has space again.
    pub(crate) fn reopen(&self) {
        if !self.failed.load(Ordering::Relaxed) {
            return;
        }
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        // The previous store must be dropped first: it holds the folder's lock.
        let is_first_attempt = store.take().is_some();
        let damaged = self.damaged.load(Ordering::Relaxed);
        let open = if damaged { Store::replace } else { Store::open };
        match open(&self.path, self.retention) {
            Ok((opened, recovery)) => {
                report_recovery(&recovery);
                self.damaged.store(false, Ordering::Relaxed);
                *store = Some(opened);
                self.failed.store(false, Ordering::Relaxed);
                tracing::info!("the feedback store is open again");
            }
            Err(error) if is_first_attempt => tracing::error!(
                error = format!("{error:#}"),
                "the feedback store cannot be opened again yet"
            ),
            Err(_) => (),
        }
    }

    /// Stores a prediction for later feedback. A failure of the store does not fail the request.
    pub(crate) fn store_prediction(&self, id: Uuid, predicted: &StoredPrediction) {
        // `with_store` has counted and logged a failure.
        let _ = self.with_store(|store| store.insert_prediction(id, predicted));
    }

    /// Stores labels; they are on disk when this returns. `canonical_label` returns a label in the spelling of the
    /// prediction's model, or the problem for which it is refused.
    /// Errors: when the store fails; then no label is stored.
    pub(crate) fn store_labels(
        &self,
        labels: &[(Uuid, String)],
        authenticated: bool,
        canonical_label: impl Fn(&StoredPrediction, &str) -> Result<String, Problem>,
    ) -> Result<Vec<Outcome>> {
        let at = now();
        let mut stored = Vec::new();
        let outcomes = self.with_store(|store| {
            let mut outcomes = Vec::new();
            for (id, submitted) in labels {
                let Some(predicted) = store.find(*id)? else {
                    outcomes.push(Outcome::UnknownPrediction);
                    continue;
                };
                let actual = match canonical_label(&predicted, submitted) {
                    Ok(actual) => actual,
                    Err(problem) => {
                        outcomes.push(Outcome::Refused(problem));
                        continue;
                    }
                };
                let right = predicted.label == actual;
                let labelled = LabelledPrediction { predicted, actual, at, authenticated };
                let LabelledPrediction { predicted, actual, .. } = labelled.clone();
                stored.push((*id, labelled));
                outcomes.push(Outcome::Stored { predicted, actual, right });
            }
            store.insert_labels(&stored)?;
            Ok(outcomes)
        })?;
        let mut evaluations = self.evaluations.lock().unwrap_or_else(PoisonError::into_inner);
        stored.iter().for_each(|(id, labelled)| evaluations.insert(*id, labelled));
        Ok(outcomes)
    }

    /// At most `limit` labels after an id, in the order of their predictions.
    pub(crate) fn export(
        &self,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<(Uuid, LabelledPrediction)>> {
        self.with_store(|store| store.labels_after(after).take(limit).collect())
    }

    /// Sets the gauges: of the store, and of the models that serve.
    pub(crate) fn set_gauges(&self, models: &[Arc<Model>]) {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(bytes)) = store.as_ref().map(Store::bytes) {
            gauge!(names::FEEDBACK_STORE_BYTES).set(bytes as f64);
        }
        drop(store);
        let mut evaluations = self.evaluations.lock().unwrap_or_else(PoisonError::into_inner);
        evaluations.expire(now());
        models.iter().for_each(|model| evaluations.set_gauges(model, now()));
    }

    /// Removes entries that are too old, or exceed the maximum size.
    pub(crate) fn retain(&self) {
        // `with_store` has counted and logged a failure.
        let _ = self.with_store(Store::retain);
    }
}

/// Logs and counts the damage that was found.
fn report_recovery(recovery: &Recovery) {
    let Recovery { set_aside, lost } = recovery;
    if let Some(folder) = set_aside {
        counter!(names::FEEDBACK_STORES_SET_ASIDE_TOTAL).increment(1);
        let folder = folder.display().to_string();
        tracing::error!(
            folder,
            "the feedback store is damaged; it was set aside, a new one takes its place"
        );
    }
    if *lost > 0 {
        counter!(names::FEEDBACK_LABELS_LOST_TOTAL).increment(*lost);
        tracing::error!(labels = lost, "labels were lost");
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}
