//! The prediction cache: outputs by the SHA-256 of the image's bytes and of the model file. Disabled by default.

use std::sync::Arc;

use metrics::{counter, gauge};
use petnet::disk::sha256;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::models::Model;
use crate::outputs::{Classification, ImageMetadata};
use crate::settings::Settings;
use crate::telemetry::names;

/// An image and the model that classified it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CacheKey {
    /// SHA-256 of the image's bytes, in hex.
    image: String,
    /// SHA-256 of the model's file, in hex.
    model: String,
}

/// A cached output, and the metadata of its image.
#[derive(Clone)]
pub(crate) struct CacheEntry {
    pub(crate) classification: Classification,
    pub(crate) metadata: ImageMetadata,
}

/// The cache, bounded in bytes; entries that are rarely hit are evicted first (`quick_cache`).
pub(crate) struct PredictionCache(Option<Cache<CacheKey, Arc<CacheEntry>, EntrySize>>);

/// Size of an entry in bytes.
#[derive(Clone)]
struct EntrySize;

impl Weighter<CacheKey, Arc<CacheEntry>> for EntrySize {
    fn weight(&self, key: &CacheKey, entry: &Arc<CacheEntry>) -> u64 {
        /// Overhead of an entry in bytes: the map's slot, pointers and allocations.
        const OVERHEAD_BYTES: usize = 256;
        let CacheEntry { classification: Classification { prediction, embedding }, metadata } =
            entry.as_ref();
        let numbers = prediction.probabilities().len() + embedding.len();
        /// Bytes of a class that a multi-label output names.
        const CLASS_BYTES: usize = 64;
        let classes = prediction.indices().map_or(0, <[usize]>::len) * CLASS_BYTES;
        let names = prediction.label().len()
            + prediction.label_text().len()
            + classes
            + metadata.sha256.as_ref().map_or(0, String::len);
        let fixed = OVERHEAD_BYTES + size_of::<CacheKey>() + size_of::<CacheEntry>();
        (fixed + key.image.len() + key.model.len() + 4 * numbers + names) as u64
    }
}

impl PredictionCache {
    pub(crate) fn new(settings: &Settings) -> Self {
        /// Approximate size of an entry of the bundled model in bytes, by which the table's initial capacity is estimated.
        const TYPICAL_ENTRY_BYTES: u64 = 6 << 10;
        let bytes = settings.cache_bytes();
        let entries = usize::try_from(bytes / TYPICAL_ENTRY_BYTES).unwrap_or(usize::MAX);
        Self((bytes > 0).then(|| Cache::with_weighter(entries, bytes, EntrySize)))
    }

    /// The key of an image; `None` while the cache is disabled.
    pub(crate) async fn key(&self, model: &Model, image: &bytes::Bytes) -> Option<CacheKey> {
        /// Larger images are hashed on a blocking thread: hashing would delay the runtime's other tasks.
        const MAX_INLINE_HASH_BYTES: usize = 64 << 10;
        self.0.as_ref()?;
        let digest = match image.len() {
            ..=MAX_INLINE_HASH_BYTES => sha256(image),
            _ => {
                let image = image.clone();
                tokio::task::spawn_blocking(move || sha256(&image)).await.ok()?
            }
        };
        Some(CacheKey { image: digest, model: model.sha256.clone() })
    }

    /// Looks a key up, and counts a hit or a miss.
    pub(crate) fn get(&self, key: &CacheKey) -> Option<CacheEntry> {
        let entry = self.0.as_ref()?.get(key);
        let result = if entry.is_some() { "hit" } else { "miss" };
        counter!(names::PREDICTION_CACHE_REQUESTS_TOTAL, "result" => result).increment(1);
        entry.map(|entry| CacheEntry::clone(&entry))
    }

    pub(crate) fn insert(&self, key: CacheKey, entry: CacheEntry) {
        if let Some(cache) = &self.0 {
            cache.insert(key, Arc::new(entry));
        }
    }

    /// Sets the gauges, unless the cache is disabled.
    pub(crate) fn set_gauges(&self) {
        let Some(cache) = &self.0 else { return };
        gauge!(names::PREDICTION_CACHE_ENTRIES).set(cache.len() as f64);
        gauge!(names::PREDICTION_CACHE_BYTES).set(cache.weight() as f64);
        gauge!(names::PREDICTION_CACHE_CAPACITY_BYTES).set(cache.capacity() as f64);
    }
}
