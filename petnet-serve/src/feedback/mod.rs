//! Answers and what they should have been: from it, how right the model is.

mod figures;
mod store;
mod table;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use anyhow::{Result, anyhow};
use metrics::{counter, gauge};
use uuid::Uuid;

use crate::models::Model;
use crate::settings::Settings;
use crate::telemetry::names;
use figures::Judgements;
use store::{Recovery, Store, is_damage};

pub(crate) use store::{Labelled, Predicted};

/// The store, and the labels of the last days in memory.
pub(crate) struct Feedback {
    /// `None` between the end of a store that failed and its next opening.
    store: RwLock<Option<Store>>,
    path: PathBuf,
    keep: Duration,
    most: u64,
    /// Set once the store has failed, until it is opened anew.
    failed: AtomicBool,
    /// Set when it failed because its files are damaged.
    damaged: AtomicBool,
    judgements: Mutex<Judgements>,
}

/// What became of one label.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// The prediction that it was given to, the label as the model has it, and whether both are the same.
    Taken { predicted: Predicted, actual: String, right: bool },
    /// There is no such prediction, or it is too old.
    Unknown,
    /// The model of the prediction has no such label.
    UnknownLabel,
}

impl Feedback {
    /// `None` where feedback is switched off, or its default folder cannot be used.
    ///
    /// # Errors
    /// When the folder that was asked for cannot be used.
    pub(crate) fn open(settings: &Settings) -> Result<Option<Self>> {
        let (path, asked) = match settings.feedback.as_deref() {
            Some("off") => return Ok(None),
            Some(path) => (path, true),
            None => (Settings::FEEDBACK, false),
        };
        let (keep, most) = (settings.feedback_keep, settings.feedback_max_bytes);
        match Self::start(Path::new(path), keep, most) {
            Ok(feedback) => Ok(Some(feedback)),
            Err(error) if !asked => {
                tracing::warn!(error = format!("{error:#}"), "feedback is off");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn start(path: &Path, keep: Duration, most: u64) -> Result<Self> {
        let (store, recovery) = Store::open(path, keep, most)?;
        report(&recovery);
        let mut judgements = Judgements::default();
        for labelled in store.labelled(None) {
            let (id, labelled) = labelled?;
            judgements.insert(id, &labelled);
        }
        judgements.forget(now());
        Ok(Self {
            store: RwLock::new(Some(store)),
            path: path.into(),
            keep,
            most,
            failed: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            judgements: Mutex::new(judgements),
        })
    }

    /// Works on the store. A failure is counted, and logged once until the store works again.
    fn with<T>(&self, work: impl FnOnce(&Store) -> Result<T>) -> Result<T> {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        let outcome = match store.as_ref() {
            Some(store) => work(store),
            None => Err(anyhow!("the feedback store could not be opened again yet")),
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

    /// Opens a store that has failed anew: the database takes no writes after a failed one, even if there is room again.
    pub(crate) fn revive(&self) {
        if !self.failed.load(Ordering::Relaxed) {
            return;
        }
        let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
        // The old one must be gone: it holds the folder's lock.
        *store = None;
        let damaged = self.damaged.load(Ordering::Relaxed);
        let open = if damaged { Store::replace } else { Store::open };
        match open(&self.path, self.keep, self.most) {
            Ok((opened, recovery)) => {
                report(&recovery);
                self.damaged.store(false, Ordering::Relaxed);
                *store = Some(opened);
                self.failed.store(false, Ordering::Relaxed);
                tracing::info!("the feedback store is open again");
            }
            Err(error) => tracing::debug!(error = format!("{error:#}"), "no feedback store yet"),
        }
    }

    /// Keeps an answer for the label that may come. A store that fails costs no answer.
    pub(crate) fn predicted(&self, id: Uuid, predicted: &Predicted) {
        // Counted and logged where it happens.
        let _ = self.with(|store| store.predicted(id, predicted));
    }

    /// Takes labels in, in the form that `known` gives them, which is `None` for those that the prediction's model does not
    /// have; they are on disk when this returns.
    ///
    /// # Errors
    /// When the store fails; then none was taken.
    pub(crate) fn label(
        &self,
        labels: &[(Uuid, String)],
        authenticated: bool,
        known: impl Fn(&Predicted, &str) -> Option<String>,
    ) -> Result<Vec<Outcome>> {
        let at = now();
        let mut taken = Vec::new();
        let outcomes = self.with(|store| {
            let mut outcomes = Vec::new();
            for (id, given) in labels {
                let Some(predicted) = store.find(*id)? else {
                    outcomes.push(Outcome::Unknown);
                    continue;
                };
                let Some(actual) = known(&predicted, given) else {
                    outcomes.push(Outcome::UnknownLabel);
                    continue;
                };
                let right = predicted.label == actual;
                let labelled = Labelled { predicted, actual, at, authenticated };
                let Labelled { predicted, actual, .. } = labelled.clone();
                taken.push((*id, labelled));
                outcomes.push(Outcome::Taken { predicted, actual, right });
            }
            store.label(&taken)?;
            Ok(outcomes)
        })?;
        let mut judgements = self.judgements.lock().unwrap_or_else(PoisonError::into_inner);
        taken.iter().for_each(|(id, labelled)| judgements.insert(*id, labelled));
        Ok(outcomes)
    }

    /// At most `limit` labels after an id, by the time of their predictions.
    pub(crate) fn export(
        &self,
        after: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<(Uuid, Labelled)>> {
        self.with(|store| store.labelled(after).take(limit).collect())
    }

    /// Sets the gauges: of the store, and of the models that serve.
    pub(crate) fn observe(&self, models: &[Arc<Model>]) {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(bytes)) = store.as_ref().map(Store::bytes) {
            gauge!(names::FEEDBACK_STORE_BYTES).set(bytes as f64);
        }
        drop(store);
        let mut judgements = self.judgements.lock().unwrap_or_else(PoisonError::into_inner);
        judgements.forget(now());
        models.iter().for_each(|model| judgements.observe(model, now()));
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.path
    }

    /// Forgets what is too old or too much.
    pub(crate) fn retain(&self) {
        // Counted and logged where it happens.
        let _ = self.with(Store::retain);
    }
}

/// Says what was damaged.
fn report(recovery: &Recovery) {
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
        tracing::error!(labels = lost, "labels that were kept are not there any more");
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}
