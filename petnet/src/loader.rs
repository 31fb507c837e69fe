//! Batches of images in a fixed order, decoded and augmented on worker threads. Bounded queues limit how far the workers
//! run ahead of the network.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;

use rand::seq::SliceRandom;

use crate::augment::{Augment, Key};
use crate::dataset::{Dataset, Target};
use crate::error::{Error, ImageError, Result};
use crate::preprocess::{
    Limits, Pixels, Preprocess, Resize, decode_at_least, lanczos, resize, resize_with,
};

/// Capacity of each worker's queue, in batches.
const QUEUE_CAPACITY: usize = 2;

/// Images of one step, in a fixed order.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// `[n, size, size, 3]`.
    pub images: Vec<u8>,
    /// Classes of each image.
    pub targets: Vec<Target>,
    /// Share of the original image in each mixed one; the rest is of the image at the same position from the end of the
    /// batch. 1 unless [`Augment::mixup`] or [`Augment::cutmix`] are on.
    pub own_share: f32,
    /// Index of each image in the data set.
    pub indices: Vec<usize>,
}

/// Settings of a [`Loader`].
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderSettings {
    /// Images per batch; the last of an epoch may have fewer.
    pub batch_size: usize,
    /// Number of worker threads; at least 1 is used.
    pub workers: usize,
    /// Size of the cache of decoded images, in bytes; others are decoded again in each epoch.
    pub cache_bytes: usize,
    /// Input of the network.
    pub preprocess: Preprocess,
    /// Augmentation; [`Augment::none`] for evaluation.
    pub augment: Augment,
    /// Seed of order and augmentation.
    pub seed: u64,
    /// True to shuffle the images of each epoch.
    pub shuffle: bool,
}

impl LoaderSettings {
    /// Reduces a decoded image for the cache, to about the network's input size.
    fn shrink(&self, image: Pixels) -> Result<Pixels, ImageError> {
        let Preprocess { size, resize: mode } = self.preprocess;
        if self.augment == Augment::none() {
            return resize(&image, size, mode);
        }
        // A quarter larger, so that most random crops need not be enlarged.
        let size = size + size / 4;
        let shorter = image.width().min(image.height());
        let (width, height) = match mode {
            Resize::Squeeze => (size, size),
            Resize::CenterCrop => {
                let scaled =
                    |side: u32| (u64::from(side) * u64::from(size)).div_ceil(shorter.into());
                (scaled(image.width()) as u32, scaled(image.height()) as u32)
            }
        };
        if width >= image.width() && height >= image.height() {
            return Ok(image);
        }
        resize_with(&image, width, height, &lanczos())
    }
}

/// Makes the batches of any epoch of a data set.
///
/// ```
#[doc = include_str!("doc_images.txt")]
/// use petnet::Dataset;
/// use petnet::augment::Augment;
/// use petnet::loader::{Loader, LoaderSettings};
/// use petnet::preprocess::{Preprocess, Resize};
///
/// let loader = Loader::new(&Dataset::open(images)?, LoaderSettings {
///     batch_size: 4,
///     workers: 2,
///     cache_bytes: 1 << 20,
///     preprocess: Preprocess { size: 24, resize: Resize::Squeeze },
///     augment: Augment::default(),
///     seed: 1,
///     shuffle: true,
/// });
/// for batch in loader.epoch(0, 0) {
///     let batch = batch?;
///     assert_eq!(batch.images.len(), batch.targets.len() * 24 * 24 * 3); // [n, size, size, 3]
/// }
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Loader {
    dataset: Arc<Dataset>,
    settings: Arc<LoaderSettings>,
    cache: Arc<Cache>,
}

impl Loader {
    /// A loader without running threads; [`Loader::epoch`] starts them.
    pub fn new(dataset: &Dataset, settings: LoaderSettings) -> Self {
        let cache = Cache::new(dataset.len(), settings.cache_bytes);
        let dataset = Arc::new(dataset.clone());
        Self { dataset, settings: Arc::new(settings), cache: Arc::new(cache) }
    }

    /// A loader of the same images with other settings and a new cache.
    pub(crate) fn with_settings(&self, settings: LoaderSettings) -> Self {
        let cache = Cache::new(self.dataset.len(), settings.cache_bytes);
        let dataset = Arc::clone(&self.dataset);
        Self { dataset, settings: Arc::new(settings), cache: Arc::new(cache) }
    }

    /// The images of all batches.
    pub(crate) fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// Number of batches per epoch.
    pub fn steps(&self) -> usize {
        self.dataset.len().div_ceil(self.settings.batch_size)
    }

    /// Side of the images in [`Batch::images`].
    pub fn size(&self) -> usize {
        self.settings.preprocess.size as usize
    }

    /// The batches of one epoch (from 0) without the first `skip`, which a resumed training has already used. The same
    /// arguments give the same bytes for any number of workers.
    pub fn epoch(&self, epoch: usize, skip: usize) -> Batches {
        let mut order: Vec<usize> = (0..self.dataset.len()).collect();
        if self.settings.shuffle {
            order.shuffle(&mut Key::of_order(self.settings.seed, epoch).rng());
        }
        let order = Arc::new(order);
        let (workers, total) = (self.settings.workers.max(1), self.steps());
        let queues = (0..workers)
            .map(|worker| {
                let (sender, receiver) = sync_channel(QUEUE_CAPACITY);
                let (loader, order) = (self.clone(), Arc::clone(&order));
                // Worker w makes batches w, w + workers, ...; the reader takes them from the queues in turn.
                thread::spawn(move || loader.work(&order, epoch, skip + worker, &sender));
                receiver
            })
            .collect();
        Batches { queues, taken: 0, total: total.saturating_sub(skip) }
    }

    /// Sends batch `first` and every batch after it that is this worker's.
    fn work(
        &self,
        order: &[usize],
        epoch: usize,
        first: usize,
        sender: &SyncSender<Result<Batch>>,
    ) {
        let workers = self.settings.workers.max(1);
        let chunks = order.chunks(self.settings.batch_size).skip(first).step_by(workers);
        for indices in chunks {
            let batch = self.batch(indices, epoch);
            let failed = batch.is_err();
            // Sending fails where the reader has stopped early and dropped the receiver.
            if sender.send(batch).is_err() || failed {
                return;
            }
        }
    }

    fn batch(&self, indices: &[usize], epoch: usize) -> Result<Batch> {
        let settings = &self.settings;
        let side = settings.preprocess.size as usize;
        let mut images = Vec::with_capacity(indices.len() * side * side * 3);
        for &index in indices {
            let refused = |source| Error::ImageFile {
                path: self.dataset.samples()[index].path.clone(),
                source,
            };
            let image = self.cache.get(index, || {
                let bytes = self.dataset.read(index)?;
                let limits = Limits::default();
                decode_at_least(&bytes, &limits, settings.preprocess.size)
                    .and_then(|image| settings.shrink(image))
                    .map_err(refused)
            })?;
            let key = Key { seed: settings.seed, epoch, index };
            let input =
                settings.augment.apply(&image, settings.preprocess, key).map_err(refused)?;
            images.extend_from_slice(input.data());
        }
        let targets = indices.iter().map(|i| self.dataset.samples()[*i].target.clone()).collect();
        let key = Key::of_batch(settings.seed, epoch, indices.first().copied().unwrap_or_default());
        let own_share = settings.augment.mix(&mut images, indices.len(), side, key);
        Ok(Batch { images, targets, own_share, indices: indices.to_vec() })
    }
}

/// The batches of one epoch, in order. Dropping it stops the workers.
#[derive(Debug)]
pub struct Batches {
    queues: Vec<Receiver<Result<Batch>>>,
    /// Number of batches taken from the queues.
    taken: usize,
    /// Number of batches until the end of the epoch.
    total: usize,
}

impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.taken == self.total {
            return None;
        }
        let queue = &self.queues[self.taken % self.queues.len()];
        self.taken += 1;
        // A worker that sends less than its part has sent an error, or has panicked.
        let batch = queue.recv().unwrap_or_else(|_| {
            Err(Error::Dataset("a thread that reads and decodes images panicked".into()))
        });
        if batch.is_err() {
            self.taken = self.total;
        }
        Some(batch)
    }
}

/// Decoded images up to a number of bytes, without eviction.
#[derive(Debug)]
struct Cache {
    slots: Vec<OnceLock<Arc<Pixels>>>,
    /// Bytes that are still free.
    free: AtomicUsize,
}

impl Cache {
    fn new(images: usize, bytes: usize) -> Self {
        let slots = if bytes == 0 { 0 } else { images };
        Self { slots: (0..slots).map(|_| OnceLock::new()).collect(), free: AtomicUsize::new(bytes) }
    }

    fn get(&self, index: usize, decode: impl FnOnce() -> Result<Pixels>) -> Result<Arc<Pixels>> {
        if let Some(kept) = self.slots.get(index).and_then(OnceLock::get) {
            return Ok(Arc::clone(kept));
        }
        let image = Arc::new(decode()?);
        let size = image.data().len();
        let taken = self
            .free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(size));
        if let (Ok(_), Some(slot)) = (taken, self.slots.get(index)) {
            // Another worker that was faster has stored the same pixels.
            if slot.set(Arc::clone(&image)).is_err() {
                self.free.fetch_add(size, Ordering::Relaxed);
            }
        }
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_ends_early_ends_the_epoch_with_an_error() {
        let (sender, queue) = sync_channel(1);
        drop(sender);
        let mut batches = Batches { queues: vec![queue], taken: 0, total: 3 };
        assert!(batches.next().unwrap().is_err());
        assert!(batches.next().is_none());
    }
}
