//! Answers and what they should have been: from it, how right the model is.

mod figures;
mod store;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::Result;
use metrics::{counter, gauge};
use uuid::Uuid;

use crate::model::Model;
use crate::settings::Settings;
use figures::Judgements;
use store::Store;

pub(crate) use store::{Labelled, Predicted};

/// The store, and the labels of the last days in memory.
pub(crate) struct Feedback {
    store: Store,
    judgements: Mutex<Judgements>,
}

/// What became of one label.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// The prediction that it was given to, and whether it was right.
    Taken { predicted: Predicted, right: bool },
    /// There is no such prediction, or it is too old.
    Unknown,
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
        let opened =
            Store::open(Path::new(path), settings.feedback_keep, settings.feedback_max_bytes);
        match opened {
            Ok(store) => Self::of(store).map(Some),
            Err(error) if !asked => {
                tracing::warn!(error = format!("{error:#}"), "feedback is off");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn of(store: Store) -> Result<Self> {
        let mut judgements = Judgements::default();
        for labelled in store.labelled(None) {
            let (id, labelled) = labelled?;
            judgements.insert(id, &labelled);
        }
        judgements.forget(now());
        Ok(Self { store, judgements: Mutex::new(judgements) })
    }

    /// Keeps an answer for the label that may come. A store that fails costs no answer.
    pub(crate) fn predicted(&self, id: Uuid, predicted: &Predicted) {
        if let Err(error) = self.store.predicted(id, predicted) {
            counter!("feedback_store_errors_total").increment(1);
            tracing::error!(error = format!("{error:#}"), "a prediction was not kept");
        }
    }

    /// Takes labels in; they are on disk when this returns.
    ///
    /// # Errors
    /// When the store fails; then none was taken.
    pub(crate) fn label(&self, labels: Vec<(Uuid, String)>) -> Result<Vec<Outcome>> {
        let at = now();
        let mut taken = Vec::new();
        let mut outcomes = Vec::new();
        for (id, actual) in labels {
            outcomes.push(match self.store.find(id)? {
                Some(predicted) => {
                    let right = predicted.label == actual;
                    taken.push((id, Labelled { predicted: predicted.clone(), actual, at }));
                    Outcome::Taken { predicted, right }
                }
                None => Outcome::Unknown,
            });
        }
        self.store.label(&taken).inspect_err(|_| {
            counter!("feedback_store_errors_total").increment(1);
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
        self.store.labelled(after).take(limit).collect()
    }

    /// Sets the gauges: of the store, and of the model that serves.
    pub(crate) fn observe(&self, model: Option<&Model>) {
        if let Ok(bytes) = self.store.bytes() {
            gauge!("feedback_store_bytes").set(bytes as f64);
        }
        let Some(model) = model else { return };
        let mut judgements = self.judgements.lock().unwrap_or_else(PoisonError::into_inner);
        judgements.forget(now());
        judgements.observe(&model.version, model.classifier.labels(), now());
    }

    pub(crate) fn folder(&self) -> &Path {
        self.store.path()
    }

    /// Forgets what is too old or too much.
    pub(crate) fn retain(&self) {
        if let Err(error) = self.store.retain() {
            tracing::error!(error = format!("{error:#}"), "old feedback was not removed");
        }
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

/// Names as small numbers.
#[derive(Default)]
struct Names(HashMap<String, u32>);

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.0.get(name) {
            return *number;
        }
        let number = self.0.len() as u32;
        self.0.insert(name.into(), number);
        number
    }

    fn find(&self, name: &str) -> Option<u32> {
        self.0.get(name).copied()
    }
}
