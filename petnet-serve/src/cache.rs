//! The prediction cache: outputs by the SHA-256 of the image's bytes and of the model file. Disabled by default.

use std::sync::Arc;

use metrics::{counter, gauge};
use petnet::disk::sha256;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::models::Model;
use crate::outputs::{Classified, ImageFacts};
use crate::settings::Settings;
use crate::telemetry::names;

/// An image and the model that classified it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// SHA-256 of the image's bytes, in hex.
    image: String,
    /// SHA-256 of the model's file, in hex.
    model: String,
}

/// A cached output, and the facts about its image.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) classified: Classified,
    pub(crate) facts: ImageFacts,
}

/// The cache, bounded in bytes; entries that are rarely hit are evicted first (`quick_cache`).
pub(crate) struct Answers(Option<Cache<Key, Arc<Known>, Weight>>);

/// Size of an entry in bytes.
#[derive(Clone)]
struct Weight;

impl Weighter<Key, Arc<Known>> for Weight {
    fn weight(&self, key: &Key, known: &Arc<Known>) -> u64 {
        /// Overhead of an entry in bytes: the map's slot, pointers and allocations.
        const ENTRY: usize = 256;
        let Known { classified: Classified { prediction, embedding }, facts } = known.as_ref();
        let numbers = prediction.probabilities().len() + embedding.len();
        /// Bytes of a class that a multi-label output names.
        const CLASS: usize = 64;
        let classes = prediction.indices().map_or(0, <[usize]>::len) * CLASS;
        let names = prediction.label().len()
            + prediction.label_text().len()
            + classes
            + facts.sha256.as_ref().map_or(0, String::len);
        let fixed = ENTRY + size_of::<Key>() + size_of::<Known>();
        (fixed + key.image.len() + key.model.len() + 4 * numbers + names) as u64
    }
}

impl Answers {
    pub(crate) fn new(settings: &Settings) -> Self {
        /// Approximate size of an entry of the bundled model in bytes, by which the table's initial capacity is estimated.
        const USUAL: u64 = 6 << 10;
        let bytes = settings.cache_bytes();
        let entries = usize::try_from(bytes / USUAL).unwrap_or(usize::MAX);
        Self((bytes > 0).then(|| Cache::with_weighter(entries, bytes, Weight)))
    }

    /// The key of an image; `None` while the cache is disabled.
    pub(crate) async fn key(&self, model: &Model, image: &bytes::Bytes) -> Option<Key> {
        /// Larger images are hashed on a blocking thread: hashing would delay the runtime's other tasks.
        const SMALL: usize = 64 << 10;
        self.0.as_ref()?;
        let digest = match image.len() {
            ..=SMALL => sha256(image),
            _ => {
                let image = image.clone();
                tokio::task::spawn_blocking(move || sha256(&image)).await.ok()?
            }
        };
        Some(Key { image: digest, model: model.sha256.clone() })
    }

    /// Looks a key up, and counts a hit or a miss.
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

    /// Sets the gauges, unless the cache is disabled.
    pub(crate) fn observe(&self) {
        let Some(answers) = &self.0 else { return };
        gauge!(names::PREDICTION_CACHE_ENTRIES).set(answers.len() as f64);
        gauge!(names::PREDICTION_CACHE_BYTES).set(answers.weight() as f64);
        gauge!(names::PREDICTION_CACHE_CAPACITY_BYTES).set(answers.capacity() as f64);
    }
}
