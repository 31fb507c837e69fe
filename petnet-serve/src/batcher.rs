//! Dynamic batching: decoded images wait in a queue, and one thread at a time runs the network on a batch of them.
//!
//! That thread is a decoding thread that finds the network free, so that a single image needs no hand-over to another thread,
//! which would have to wake up. A batch is formed from the images that wait, up to its maximum size; the network never waits
//! for more. An image holds a place of its model's [`Queue`](crate::queue::Queue) from decoding to output. Places are assigned
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

use crate::cache::{Answers, Known};
use crate::decoder::{Decoded, Decoders};
use crate::memory::Memory;
use crate::models::{Model, Target};
use crate::outputs::{Answer, Classified, ImageFacts, Stage, Timings};
use crate::problem::Problem;
use crate::queue::Place;
use crate::settings::Settings;
use crate::telemetry::Rates;
use crate::telemetry::names;

type Reply<T> = oneshot::Sender<Result<Answer<T>, Problem>>;

enum Work {
    Classify(Reply<Classified>),
    Explain(Reply<Explanation>),
}

impl Work {
    /// True while a client waits for the answer; counts an abandoned prediction otherwise.
    fn wanted(&self) -> bool {
        let gone = match self {
            Self::Classify(reply) => reply.is_closed(),
            Self::Explain(reply) => reply.is_closed(),
        };
        if gone {
            counter!(names::PREDICTIONS_ABANDONED_TOTAL).increment(1);
        }
        !gone
    }

    fn fail(self, problem: Problem) {
        match self {
            Self::Classify(reply) => drop(reply.send(Err(problem))),
            Self::Explain(reply) => drop(reply.send(Err(problem))),
        }
    }
}

struct Job {
    work: Work,
    model: Arc<Model>,
    pixels: Pixels,
    facts: ImageFacts,
    decode: Stage,
    queued: Instant,
    place: Place,
}

/// An image, encoded or as the network's input.
pub(crate) enum ImageInput {
    Encoded(Bytes),
    Ready(Pixels),
}

impl From<Bytes> for ImageInput {
    fn from(image: Bytes) -> Self {
        Self::Encoded(image)
    }
}

/// Takes images through decoding and the network.
pub(crate) struct Batcher {
    decoders: Decoders,
    known: Answers,
    /// Maximum wait for an answer.
    patience: Duration,
    queue: Arc<BatchQueue>,
}

impl Batcher {
    pub(crate) fn start(
        settings: &Settings,
        memory: Arc<Memory>,
        rates: Arc<Rates>,
        digests: bool,
    ) -> anyhow::Result<Self> {
        let queue = Arc::new(BatchQueue {
            waiting: Mutex::default(),
            network: Mutex::default(),
            max_batch: settings.max_batch,
            rates,
        });
        let next = Arc::clone(&queue);
        Ok(Self {
            decoders: Decoders::start(settings, memory, digests, move || next.run())?,
            known: Answers::new(settings),
            patience: settings.request_timeout,
            queue,
        })
    }

    pub(crate) fn decoders(&self) -> &Decoders {
        &self.decoders
    }

    /// Sets the gauges of the prediction cache.
    pub(crate) fn observe(&self) {
        self.known.observe();
    }

    /// # Errors
    /// The reason for which the image is refused; 503 when a place or the answer is not available in time.
    pub(crate) async fn classify(
        &self,
        target: &Target,
        image: impl Into<ImageInput>,
    ) -> Result<Answer<Classified>, Problem> {
        self.known_or_new(target, image.into(), target.place(None)).await
    }

    /// The cached answer for an image, or else a new one.
    async fn known_or_new(
        &self,
        target: &Target,
        image: ImageInput,
        place: impl Future<Output = Result<Place, Problem>>,
    ) -> Result<Answer<Classified>, Problem> {
        let key = match &image {
            ImageInput::Encoded(bytes) => self.known.key(&target.model, bytes).await,
            ImageInput::Ready(_) => None,
        };
        if let Some(Known { classified, facts }) = key.as_ref().and_then(|key| self.known.get(key))
        {
            return Ok(Answer { value: classified, timings: None, facts });
        }
        let answer = self.submit(Work::Classify, target, image, place.await?).await?;
        if let Some(key) = key {
            let (classified, facts) = (answer.value.clone(), answer.facts.clone());
            self.known.insert(key, Known { classified, facts });
        }
        Ok(answer)
    }

    /// Classifies several images concurrently; the outcomes are in the order of the images.
    ///
    /// # Errors
    /// 503 when the first image gets no place in time; the others then wait for theirs.
    pub(crate) async fn classify_all<P: Into<ImageInput>>(
        &self,
        target: &Target,
        images: Vec<Result<P, Problem>>,
    ) -> Result<Vec<Result<Answer<Classified>, Problem>>, Problem> {
        let mut first = Some(target.place(None).await?);
        let answers = images.into_iter().map(|image| {
            let first = first.take();
            async move {
                let place = async {
                    match first {
                        Some(place) => Ok(place),
                        None => target.place(Some(self.patience)).await,
                    }
                };
                self.known_or_new(target, image?.into(), place).await
            }
        });
        Ok(join_all(answers).await)
    }

    /// # Errors
    /// As [`Batcher::classify`].
    pub(crate) async fn explain(
        &self,
        target: &Target,
        image: Bytes,
    ) -> Result<Answer<Explanation>, Problem> {
        let place = target.place(None).await?;
        self.submit(Work::Explain, target, image.into(), place).await
    }

    async fn submit<T>(
        &self,
        work: fn(Reply<T>) -> Work,
        target: &Target,
        image: ImageInput,
        place: Place,
    ) -> Result<Answer<T>, Problem> {
        let (reply, answer) = oneshot::channel();
        let work = work(reply);
        let next = Next { queue: Arc::clone(&self.queue), model: Arc::clone(&target.model), place };
        match image {
            ImageInput::Encoded(bytes) => {
                let next = move |decode: &dyn Fn() -> Result<Decoded, Problem>| {
                    if work.wanted() {
                        match decode() {
                            Ok(decoded) => next.queue(work, decoded),
                            Err(problem) => work.fail(problem),
                        }
                    }
                };
                self.decoders.decode(&target.model, bytes, next, answer).await
            }
            ImageInput::Ready(pixels) => {
                let size = (pixels.width(), pixels.height());
                let statistics = ImageStatistics::of(&pixels, size);
                let facts = ImageFacts { statistics, sha256: None };
                let stage = Stage { began: Instant::now(), took: Duration::ZERO };
                next.queue(work, Decoded { pixels, facts, stage });
                self.decoders.wake();
                match tokio::time::timeout(self.patience, answer).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(_)) => Err(Problem::internal()),
                    Err(_) => Err(target.overloaded()),
                }
            }
        }
    }
}

/// Queues a decoded image for the network.
struct Next {
    queue: Arc<BatchQueue>,
    model: Arc<Model>,
    place: Place,
}

impl Next {
    fn queue(self, work: Work, decoded: Decoded) {
        let Self { queue, model, place } = self;
        place.note_progress();
        let Decoded { pixels, facts, stage: decode } = decoded;
        let queued = Instant::now();
        queue.push(Job { work, model, pixels, facts, decode, queued, place });
    }
}

/// Decoded images that wait for the network, and the lock that its thread holds.
struct BatchQueue {
    waiting: Mutex<VecDeque<Job>>,
    /// Held by the thread that runs the network.
    network: Mutex<()>,
    max_batch: usize,
    rates: Arc<Rates>,
}

impl BatchQueue {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) {
        self.waiting().push_back(job);
    }

    /// Runs the network on the waiting images, unless another thread does. That thread checks the queue again after it has
    /// released the lock, so that no image is left waiting.
    fn run(&self) {
        while !self.waiting().is_empty() {
            let _network = match self.network.try_lock() {
                Ok(network) => network,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let mut waiting = self.waiting();
            let most = self.max_batch.min(waiting.len());
            let jobs = waiting.drain(..most).filter(|job| job.work.wanted()).collect();
            drop(waiting);
            self.serve(jobs);
        }
    }

    fn serve(&self, mut jobs: Vec<Job>) {
        let batch = Instant::now();
        while let Some(job) = jobs.first() {
            // After a reload, images decoded for the old model are still answered by it.
            let (model, queue) = (Arc::clone(&job.model), Arc::clone(job.place.queue()));
            let (same, others): (Vec<_>, Vec<_>) =
                jobs.into_iter().partition(|job| Arc::ptr_eq(&job.model, &model));
            let began = same.iter().map(|job| job.decode.began).min().unwrap_or(batch);
            let photos = same.len();
            answer(&model, same, batch, &self.rates);
            queue.note_batch(began, photos);
            jobs = others;
        }
    }
}

/// Runs the network once on all images to classify, and on each image to explain by itself.
fn answer(model: &Model, jobs: Vec<Job>, batch: Instant, rates: &Rates) {
    let (mut images, mut replies) = (Vec::new(), Vec::new());
    let photos = jobs.len();
    let timings = |decode, queued: Instant, model: Stage| {
        let queue = Stage { began: queued, took: batch.saturating_duration_since(queued) };
        Some(Timings { decode, queue, batch: Stage::since(batch), model, photos })
    };
    for Job { work, pixels, facts, decode, queued, place, .. } in jobs {
        match work {
            Work::Classify(reply) => {
                images.push(pixels);
                replies.push((reply, facts, (decode, queued), place));
            }
            Work::Explain(reply) => {
                let began = Instant::now();
                let outcome = contain(|| model.classifier.explain_pixels(&pixels));
                let timings = timings(decode, queued, Stage::since(began));
                let _ = reply.send(outcome.map(|value| Answer { value, timings, facts }));
            }
        }
    }
    if images.is_empty() {
        return;
    }
    histogram!(names::BATCH_SIZE, "model" => model.name.clone()).record(images.len() as f64);
    rates.batch(images.len());
    let began = Instant::now();
    let outcome = contain(|| model.classifier.classify_and_embed(&images));
    let pass = Stage::since(began);
    histogram!(names::INFERENCE_DURATION_SECONDS, "model" => model.name.clone()).record(pass.took);
    match outcome {
        Ok(predictions) => {
            let replies = replies.into_iter().zip(predictions);
            for ((reply, facts, (decode, queued), _place), (prediction, embedding)) in replies {
                let timings = timings(decode, queued, pass);
                let value = Classified { prediction, embedding };
                let _ = reply.send(Ok(Answer { value, timings, facts }));
            }
        }
        Err(problem) => {
            replies.into_iter().for_each(|(reply, ..)| drop(reply.send(Err(problem.clone()))));
        }
    }
}

/// Turns a panic into an error, so that it fails one batch and not the thread.
fn contain<T>(work: impl FnOnce() -> petnet::Result<T>) -> Result<T, Problem> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(Problem::from),
        Err(_) => {
            counter!(names::INFERENCE_PANICS_TOTAL).increment(1);
            tracing::error!("the network panicked");
            Err(Problem::internal())
        }
    }
}
