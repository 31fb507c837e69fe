//! Answers of photos that were classified before, by SHA-256 of the photo and of the model file. Off unless it is given memory.

use std::sync::Arc;

use metrics::{counter, gauge};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::disk::sha256;
use crate::models::Model;
use crate::outputs::{Classified, Photo};
use crate::settings::Settings;
use crate::telemetry::names;

/// A photo under a model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// SHA-256 of its bytes, in hex.
    photo: String,
    /// SHA-256 of the model's file, in hex.
    model: String,
}

/// An answer that may be given again.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) classified: Classified,
    pub(crate) photo: Photo,
}

/// The answers, up to a number of bytes; those that are asked for least are given up first.
pub(crate) struct Answers(Option<Cache<Key, Arc<Known>, Weight>>);

/// Counts the bytes of an entry.
#[derive(Clone)]
struct Weight;

impl Weighter<Key, Arc<Known>> for Weight {
    fn weight(&self, key: &Key, known: &Arc<Known>) -> u64 {
        /// Of the map, of pointers and of allocations.
        const ENTRY: usize = 256;
        let Known { classified: Classified { prediction, embedding }, photo } = known.as_ref();
        let numbers = prediction.probabilities().len() + embedding.len();
        /// Of a class that a multi-label answer names.
        const CLASS: usize = 64;
        let classes = prediction.indices().map_or(0, <[usize]>::len) * CLASS;
        let names = prediction.label().len()
            + prediction.label_text().len()
            + classes
            + photo.sha256.as_ref().map_or(0, String::len);
        let fixed = ENTRY + size_of::<Key>() + size_of::<Known>();
        (fixed + key.photo.len() + key.model.len() + 4 * numbers + names) as u64
    }
}

impl Answers {
    pub(crate) fn new(settings: &Settings) -> Self {
        /// Bytes of an answer of the bundled model, about: what the table is first made for.
        const USUAL: u64 = 6 << 10;
        let bytes = settings.cache_bytes();
        let entries = usize::try_from(bytes / USUAL).unwrap_or(usize::MAX);
        Self((bytes > 0).then(|| Cache::with_weighter(entries, bytes, Weight)))
    }

    /// The key of a photo; `None` while nothing is kept.
    pub(crate) async fn key(&self, model: &Model, photo: &bytes::Bytes) -> Option<Key> {
        /// More bytes are not hashed on the threads that wait for sockets.
        const SMALL: usize = 64 << 10;
        self.0.as_ref()?;
        let digest = match photo.len() {
            ..=SMALL => sha256(photo),
            _ => {
                let photo = photo.clone();
                tokio::task::spawn_blocking(move || sha256(&photo)).await.ok()?
            }
        };
        Some(Key { photo: digest, model: model.sha256.clone() })
    }

    /// Counts whether it was there.
    pub(crate) fn get(&self, key: &Key) -> Option<Known> {
        let known = self.0.as_ref()?.get(key);
        let result = if known.is_some() { "hit" } else { "miss" };
        counter!(names::PREDICTION_CACHE_REQUESTS_TOTAL, "result" => result).increment(1);
        known.map(|known| Known::clone(&known))
    }

    pub(crate) fn insert(&self, key: Key, known: Known) {
        if let Some(answers) = &self.0 {
            answers.insert(key, Arc::new(known));
        }
    }

    /// Sets the gauges, where answers are kept.
    pub(crate) fn observe(&self) {
        let Some(answers) = &self.0 else { return };
        gauge!(names::PREDICTION_CACHE_ENTRIES).set(answers.len() as f64);
        gauge!(names::PREDICTION_CACHE_BYTES).set(answers.weight() as f64);
        gauge!(names::PREDICTION_CACHE_CAPACITY_BYTES).set(answers.capacity() as f64);
    }
}
