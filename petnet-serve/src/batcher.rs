//! Dynamic batching: decoded images wait in a queue, and one thread at a time runs the network on a batch of them.
//!
//! That thread is a decoding thread that finds the network free, so that a single image needs no hand-over to another thread,
//! which would have to wake up. A batch is formed from the images that wait, up to its maximum size; the network never waits
//! for more. An image holds a permit of its model's [`Queue`](crate::queue::Queue) from decoding to output. Permits are assigned
//! image by image in order of arrival, so that a request with many images does not block others; an image that waits longer
//! than a limit is refused.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use metrics::{counter, histogram};
use petnet::Explanation;
use petnet::drift::ImageStatistics;
use petnet::preprocess::Pixels;
use tokio::sync::oneshot;

use crate::cache::{CacheEntry, PredictionCache};
use crate::decoder::{Decoded, Decoders};
use crate::memory::Memory;
use crate::models::{Model, RequestModel};
use crate::outputs::{Classification, ImageMetadata, ModelOutput, Stage, Timings};
use crate::problem::Problem;
use crate::queue::Permit;
use crate::settings::Settings;
use crate::telemetry::{Rates, names};

type OutputSender<T> = oneshot::Sender<Result<ModelOutput<T>, Problem>>;

/// The operation that a client requests on an image, with the channel that its output is sent on.
enum Operation {
    Classify(OutputSender<Classification>),
    Explain(OutputSender<Explanation>),
}

impl Operation {
    /// True while a client waits for the output; counts an abandoned prediction otherwise.
    fn is_awaited(&self) -> bool {
        let abandoned = match self {
            Self::Classify(sender) => sender.is_closed(),
            Self::Explain(sender) => sender.is_closed(),
        };
        if abandoned {
            counter!(names::PREDICTIONS_ABANDONED_TOTAL).increment(1);
        }
        !abandoned
    }

    fn fail(self, problem: Problem) {
        match self {
            Self::Classify(sender) => drop(sender.send(Err(problem))),
            Self::Explain(sender) => drop(sender.send(Err(problem))),
        }
    }
}

/// A decoded image that waits for the network.
struct NetworkJob {
    operation: Operation,
    model: Arc<Model>,
    decoded: Decoded,
    queued: Instant,
    permit: Permit,
}

/// An image, encoded or as the network's input.
pub(crate) enum ImageInput {
    Encoded(Bytes),
    Pixels(Pixels),
}

impl From<Bytes> for ImageInput {
    fn from(image: Bytes) -> Self {
        Self::Encoded(image)
    }
}

/// Decodes images, and runs the network on batches of them.
pub(crate) struct Batcher {
    pub(crate) decoders: Decoders,
    pub(crate) cache: PredictionCache,
    /// Maximum wait for an output.
    request_timeout: Duration,
    queue: Arc<BatchQueue>,
}

impl Batcher {
    pub(crate) fn start(
        settings: &Settings,
        memory: Arc<Memory>,
        rates: Arc<Rates>,
        needs_sha256: bool,
    ) -> anyhow::Result<Self> {
        let queue = Arc::new(BatchQueue {
            waiting: Mutex::default(),
            network: Mutex::default(),
            max_batch: settings.max_batch,
            rates,
        });
        let batches = Arc::clone(&queue);
        Ok(Self {
            decoders: Decoders::start(settings, memory, needs_sha256, move || batches.run())?,
            cache: PredictionCache::new(settings),
            request_timeout: settings.request_timeout,
            queue,
        })
    }

    /// Classifies an image.
    /// Errors: the reason for which the image is refused; 503 when a permit or the output is not available in time.
    pub(crate) async fn classify(
        &self,
        target: &RequestModel,
        image: impl Into<ImageInput>,
    ) -> Result<ModelOutput<Classification>, Problem> {
        self.classify_cached(target, image.into(), target.acquire(None)).await
    }

    /// The cached output for an image; where there is none, the image is classified with `permit` and its output is cached.
    async fn classify_cached(
        &self,
        target: &RequestModel,
        image: ImageInput,
        permit: impl Future<Output = Result<Permit, Problem>>,
    ) -> Result<ModelOutput<Classification>, Problem> {
        let key = match &image {
            ImageInput::Encoded(bytes) => self.cache.key(&target.model, bytes).await,
            ImageInput::Pixels(_) => None,
        };
        let hit = key.as_ref().and_then(|key| self.cache.get(key));
        if let Some(CacheEntry { classification, metadata }) = hit {
            return Ok(ModelOutput { value: classification, timings: None, metadata });
        }
        let output = self.submit(Operation::Classify, target, image, permit.await?).await?;
        if let Some(key) = key {
            let (classification, metadata) = (output.value.clone(), output.metadata.clone());
            self.cache.insert(key, CacheEntry { classification, metadata });
        }
        Ok(output)
    }

    /// Classifies several images concurrently; the outcomes are in the order of the images.
    /// Errors: 503 when the first image gets no permit in time; the others then wait for theirs.
    pub(crate) async fn classify_all(
        &self,
        target: &RequestModel,
        images: Vec<ImageInput>,
    ) -> Result<Vec<Result<ModelOutput<Classification>, Problem>>, Problem> {
        let mut first = Some(target.acquire(None).await?);
        let outputs = images.into_iter().map(|image| {
            let first = first.take();
            async move {
                let permit = async {
                    match first {
                        Some(permit) => Ok(permit),
                        None => target.acquire(Some(self.request_timeout)).await,
                    }
                };
                self.classify_cached(target, image, permit).await
            }
        });
        Ok(join_all(outputs).await)
    }

    /// Explains the classification of an image by Grad-CAM.
    /// Errors: as [`Batcher::classify`].
    pub(crate) async fn explain(
        &self,
        target: &RequestModel,
        image: Bytes,
    ) -> Result<ModelOutput<Explanation>, Problem> {
        let permit = target.acquire(None).await?;
        self.submit(Operation::Explain, target, image.into(), permit).await
    }

    /// Decodes an image, queues it for the network, and waits for the output.
    async fn submit<T>(
        &self,
        operation: fn(OutputSender<T>) -> Operation,
        target: &RequestModel,
        image: ImageInput,
        permit: Permit,
    ) -> Result<ModelOutput<T>, Problem> {
        let (sender, output) = oneshot::channel();
        let operation = operation(sender);
        let (queue, model) = (Arc::clone(&self.queue), Arc::clone(&target.model));
        let enqueue = move |operation: Operation, decoded: Decoded| {
            permit.record_progress();
            let queued = Instant::now();
            queue.lock().push_back(NetworkJob { operation, model, decoded, queued, permit });
        };
        match image {
            ImageInput::Encoded(bytes) => {
                let (memory, decode) = self.decoders.prepare(&target.model, bytes)?;
                let work = move || {
                    if operation.is_awaited() {
                        match decode() {
                            Ok(decoded) => enqueue(operation, decoded),
                            Err(problem) => operation.fail(problem),
                        }
                    }
                };
                self.decoders.supervise(memory, work, output).await
            }
            ImageInput::Pixels(pixels) => {
                let size = (pixels.width(), pixels.height());
                let statistics = ImageStatistics::of(&pixels, size);
                let metadata = ImageMetadata { statistics, sha256: None };
                let decode_stage = Stage { began: Instant::now(), duration: Duration::ZERO };
                enqueue(operation, Decoded { pixels, metadata, decode_stage });
                self.decoders.wake();
                match tokio::time::timeout(self.request_timeout, output).await {
                    Ok(Ok(output)) => output,
                    Ok(Err(_)) => Err(Problem::internal()),
                    Err(_) => Err(target.overloaded()),
                }
            }
        }
    }
}

/// Decoded images that wait for the network, and the lock that its thread holds.
struct BatchQueue {
    waiting: Mutex<VecDeque<NetworkJob>>,
    /// Held by the thread that runs the network.
    network: Mutex<()>,
    max_batch: usize,
    rates: Arc<Rates>,
}

impl BatchQueue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<NetworkJob>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the network on batches of the waiting images, unless another thread does. That thread checks the queue again after
    /// it has released the lock, so that no image is left waiting.
    fn run(&self) {
        while !self.lock().is_empty() {
            let _network = match self.network.try_lock() {
                Ok(network) => network,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let mut waiting = self.lock();
            let batch_size = self.max_batch.min(waiting.len());
            let jobs =
                waiting.drain(..batch_size).filter(|job| job.operation.is_awaited()).collect();
            drop(waiting);
            self.run_batch(jobs);
        }
    }

    /// Runs the network on a batch, once for each model of its jobs: after a reload, images that were decoded for the previous
    /// model are still classified by it.
    fn run_batch(&self, mut jobs: Vec<NetworkJob>) {
        let batch_began = Instant::now();
        while let Some(job) = jobs.first() {
            let (model, queue) = (Arc::clone(&job.model), Arc::clone(&job.permit.queue));
            let (same, others): (Vec<_>, Vec<_>) =
                jobs.into_iter().partition(|job| Arc::ptr_eq(&job.model, &model));
            let decode_began = same.iter().map(|job| job.decoded.decode_stage.began).min();
            let images = same.len();
            run_model(&model, same, batch_began, &self.rates);
            queue.service_time.record(decode_began.unwrap_or(batch_began), images);
            jobs = others;
        }
    }
}

/// Runs the network once on all images to classify, and on each image to explain by itself.
fn run_model(model: &Model, jobs: Vec<NetworkJob>, batch_began: Instant, rates: &Rates) {
    let (mut images, mut pending) = (Vec::new(), Vec::new());
    let timings = |decode, queued: Instant, model: Stage, batch_size: usize| {
        let queue =
            Stage { began: queued, duration: batch_began.saturating_duration_since(queued) };
        Some(Timings { decode, queue, batch: Stage::since(batch_began), model, batch_size })
    };
    for NetworkJob { operation, decoded, queued, permit, .. } in jobs {
        let Decoded { pixels, metadata, decode_stage } = decoded;
        match operation {
            Operation::Classify(sender) => {
                images.push(pixels);
                pending.push((sender, metadata, (decode_stage, queued), permit));
            }
            Operation::Explain(sender) => {
                let began = Instant::now();
                let outcome = catch_panic(|| model.classifier.explain_pixels(&pixels));
                let timings = timings(decode_stage, queued, Stage::since(began), 1);
                let _ = sender.send(outcome.map(|value| ModelOutput { value, timings, metadata }));
            }
        }
    }
    if images.is_empty() {
        return;
    }
    histogram!(names::BATCH_SIZE, "model" => model.name.clone()).record(images.len() as f64);
    rates.record_batch(images.len());
    let began = Instant::now();
    let outcome = catch_panic(|| model.classifier.classify_and_embed(&images));
    let pass = Stage::since(began);
    histogram!(names::INFERENCE_DURATION_SECONDS, "model" => model.name.clone())
        .record(pass.duration);
    match outcome {
        Ok(predictions) => {
            let pending = pending.into_iter().zip(predictions);
            for ((sender, metadata, (decode_stage, queued), _permit), (prediction, embedding)) in
                pending
            {
                let timings = timings(decode_stage, queued, pass, images.len());
                let value = Classification { prediction, embedding };
                let _ = sender.send(Ok(ModelOutput { value, timings, metadata }));
            }
        }
        Err(problem) => {
            pending.into_iter().for_each(|(sender, ..)| drop(sender.send(Err(problem.clone()))));
        }
    }
}

/// Turns a panic into an error, so that it fails one batch and not the thread.
fn catch_panic<T>(work: impl FnOnce() -> petnet::Result<T>) -> Result<T, Problem> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(Problem::from),
        Err(_) => {
            counter!(names::INFERENCE_PANICS_TOTAL).increment(1);
            tracing::error!("the network panicked");
            Err(Problem::internal())
        }
    }
}
