//! Photos in, answers out: decoding on its own threads, one thread that owns the network's time.
//!
//! Work-conserving: whenever the network is free it takes what waits, up to a batch, and never
//! waits for more. Bounded: a photo needs a place from decoding to answer; without a free one the
//! caller hears so at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use metrics::{counter, gauge, histogram};
use petnet::drift::ImageStatistics;
use petnet::preprocess::Pixels;
use petnet::{Explanation, Prediction, sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::model::Model;
use crate::problem::Problem;
use crate::settings::Settings;
use crate::telemetry::Rates;

/// The right to have some photos in the house.
pub(crate) struct Ticket(OwnedSemaphorePermit);

impl Ticket {
    /// One photo's share.
    pub(crate) fn split(&mut self) -> Option<Self> {
        self.0.split(1).map(Self)
    }
}

/// Where the time of a photo went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timings {
    pub(crate) decode: Stage,
    pub(crate) queue: Stage,
    /// From the batch's beginning to this answer.
    pub(crate) batch: Stage,
    pub(crate) model: Stage,
    /// Photos in the batch.
    pub(crate) photos: usize,
}

/// A part of a photo's way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage {
    pub(crate) began: Instant,
    pub(crate) took: Duration,
}

impl Stage {
    pub(crate) fn since(began: Instant) -> Self {
        Self { began, took: began.elapsed() }
    }
}

/// What the network said, and of which photo.
pub(crate) struct Answer<T> {
    pub(crate) value: T,
    pub(crate) timings: Timings,
    pub(crate) photo: Photo,
}

/// Outputs of one pass through the network.
pub(crate) struct Classified {
    pub(crate) prediction: Prediction,
    /// The features, of norm 1: a by-product of the prediction.
    pub(crate) embedding: Vec<f32>,
}

/// What is remembered of a photo.
pub(crate) struct Photo {
    pub(crate) statistics: ImageStatistics,
    /// Of its bytes, in hex; where it is kept.
    pub(crate) sha256: Option<String>,
}

type Reply<T> = oneshot::Sender<Result<Answer<T>, Problem>>;

enum Work {
    Classify(Reply<Classified>),
    Explain(Reply<Explanation>),
}

impl Work {
    /// Whether somebody still waits for the answer; counts it where nobody does.
    fn wanted(&self) -> bool {
        let gone = match self {
            Self::Classify(reply) => reply.is_closed(),
            Self::Explain(reply) => reply.is_closed(),
        };
        if gone {
            counter!("predictions_abandoned_total").increment(1);
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
    photo: Photo,
    decode: Stage,
    queued: Instant,
    place: Ticket,
}

/// A photo, encoded or ready for the network.
pub(crate) enum Picture {
    Encoded(Bytes),
    Ready(Pixels),
}

impl From<Bytes> for Picture {
    fn from(photo: Bytes) -> Self {
        Self::Encoded(photo)
    }
}

/// Handle to the threads; they end when it is dropped.
pub(crate) struct Batcher {
    places: Arc<Semaphore>,
    capacity: usize,
    /// Longest wait for an answer.
    patience: Duration,
    jobs: Sender<Job>,
    /// Moving mean of the time a photo takes, in nanoseconds.
    pace: Arc<AtomicU64>,
    /// Whether photos are known by their digest afterwards.
    digests: bool,
}

impl Batcher {
    pub(crate) fn start(
        settings: &Settings,
        rates: Arc<Rates>,
        digests: bool,
    ) -> std::io::Result<Self> {
        let (capacity, max_batch) = (settings.queue, settings.max_batch.max(1));
        let (jobs, waiting) = channel();
        let pace = Arc::new(AtomicU64::new(0));
        let measured = Arc::clone(&pace);
        std::thread::Builder::new()
            .name("network".into())
            .spawn(move || serve(&waiting, max_batch, &measured, &rates))?;
        let places = Arc::new(Semaphore::new(capacity));
        Ok(Self { places, capacity, patience: settings.request_timeout, jobs, pace, digests })
    }

    /// Places for `photos` photos.
    ///
    /// # Errors
    /// 503 with the seconds until there should be room, 413 when there can never be.
    pub(crate) fn admit(&self, photos: usize) -> Result<Ticket, Problem> {
        let wanted = u32::try_from(photos).unwrap_or(u32::MAX);
        if photos > self.capacity {
            let detail =
                format!("{photos} photos, more than the {} there is room for", self.capacity);
            return Err(Problem::too_large(detail));
        }
        match Arc::clone(&self.places).try_acquire_many_owned(wanted) {
            Ok(permit) => Ok(Ticket(permit)),
            Err(_) => Err(Problem::overloaded(self.seconds_to_wait(photos))),
        }
    }

    fn seconds_to_wait(&self, photos: usize) -> u64 {
        let ahead = (self.depth() + photos) as u32;
        let wait = Duration::from_nanos(self.pace.load(Ordering::Relaxed)) * ahead;
        wait.as_secs_f64().ceil().clamp(1.0, 60.0) as u64
    }

    /// Photos in the house.
    pub(crate) fn depth(&self) -> usize {
        self.capacity - self.places.available_permits()
    }

    /// Sets the gauges of the queue.
    pub(crate) fn observe(&self) {
        gauge!("batch_queue_depth").set(self.depth() as f64);
        gauge!("batch_queue_capacity").set(self.capacity as f64);
    }

    /// # Errors
    /// What the photo is refused for; 503 when no answer came in time.
    pub(crate) async fn classify(
        &self,
        model: Arc<Model>,
        photo: impl Into<Picture>,
        place: Ticket,
    ) -> Result<Answer<Classified>, Problem> {
        self.ask(Work::Classify, model, photo.into(), place).await
    }

    /// Classifies some pictures side by side, each with an outcome of its own, in their order.
    ///
    /// # Errors
    /// As [`Batcher::admit`], for all of them.
    pub(crate) async fn classify_all<P: Into<Picture>>(
        &self,
        model: &Arc<Model>,
        pictures: Vec<Result<P, Problem>>,
    ) -> Result<Vec<Result<Answer<Classified>, Problem>>, Problem> {
        let mut places = self.admit(pictures.len())?;
        let answers = pictures.into_iter().map(|picture| {
            let place = places.split().ok_or_else(Problem::internal);
            let model = Arc::clone(model);
            async move { self.classify(model, picture?, place?).await }
        });
        // Collected first: every photo has its place before the first one is waited for.
        let answers: Vec<_> = answers.collect();
        Ok(join_all(answers).await)
    }

    /// # Errors
    /// As [`Batcher::classify`].
    pub(crate) async fn explain(
        &self,
        model: Arc<Model>,
        photo: Bytes,
        place: Ticket,
    ) -> Result<Answer<Explanation>, Problem> {
        self.ask(Work::Explain, model, photo.into(), place).await
    }

    async fn ask<T>(
        &self,
        work: fn(Reply<T>) -> Work,
        model: Arc<Model>,
        photo: Picture,
        place: Ticket,
    ) -> Result<Answer<T>, Problem> {
        let (reply, answer) = oneshot::channel();
        match photo {
            Picture::Encoded(photo) => self.decode(work(reply), model, photo, place),
            Picture::Ready(pixels) => {
                let size = (pixels.width(), pixels.height());
                let statistics = ImageStatistics::of(&pixels, size);
                let photo = Photo { statistics, sha256: None };
                let queued = Instant::now();
                let decode = Stage { began: queued, took: Duration::ZERO };
                let work = work(reply);
                // The receiver lives as long as the process.
                let _ = self.jobs.send(Job { work, model, pixels, photo, decode, queued, place });
            }
        }
        match tokio::time::timeout(self.patience, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Problem::internal()),
            Err(_) => Err(Problem::overloaded(1)),
        }
    }

    fn decode(&self, work: Work, model: Arc<Model>, photo: Bytes, place: Ticket) {
        let (jobs, digests) = (self.jobs.clone(), self.digests);
        // The runtime's blocking threads are the decoding pool; `main` bounds their number.
        tokio::task::spawn_blocking(move || {
            if !work.wanted() {
                return;
            }
            let began = Instant::now();
            let inspected = model.classifier.inspect(&photo);
            let decode = Stage::since(began);
            histogram!("preprocessing_duration_seconds").record(decode.took);
            let result = if inspected.is_ok() { "ok" } else { "refused" };
            counter!("preprocessing_images_total", "result" => result).increment(1);
            match inspected {
                Ok((pixels, statistics)) => {
                    let sha256 = digests.then(|| sha256(&photo));
                    let photo = Photo { statistics, sha256 };
                    let queued = Instant::now();
                    // The receiver lives as long as the process.
                    let _ = jobs.send(Job { work, model, pixels, photo, decode, queued, place });
                }
                Err(error) => work.fail(error.into()),
            }
        });
    }
}

fn serve(waiting: &Receiver<Job>, max_batch: usize, pace: &AtomicU64, rates: &Rates) {
    while let Ok(first) = waiting.recv() {
        let mut jobs = vec![first];
        jobs.extend(waiting.try_iter().take(max_batch - 1));
        jobs.retain(|job| job.work.wanted());
        let photos = jobs.len();
        if photos == 0 {
            continue;
        }
        let began = Instant::now();
        while let Some(job) = jobs.first() {
            // After a reload, photos decoded for the old model are still answered by it.
            let model = Arc::clone(&job.model);
            let (same, others): (Vec<_>, Vec<_>) =
                jobs.into_iter().partition(|job| Arc::ptr_eq(&job.model, &model));
            answer(&model, same, began, rates);
            jobs = others;
        }
        let each = began.elapsed().as_nanos() as u64 / photos as u64;
        let old = pace.load(Ordering::Relaxed);
        pace.store(if old == 0 { each } else { (old * 7 + each) / 8 }, Ordering::Relaxed);
    }
}

/// One pass for all that want an answer, then one each for those who want to know why.
fn answer(model: &Model, jobs: Vec<Job>, batch: Instant, rates: &Rates) {
    let (mut pictures, mut replies) = (Vec::new(), Vec::new());
    let photos = jobs.len();
    let timings = |decode, queued: Instant, model: Stage| {
        let queue = Stage { began: queued, took: batch.saturating_duration_since(queued) };
        Timings { decode, queue, batch: Stage::since(batch), model, photos }
    };
    for Job { work, pixels, photo, decode, queued, place, .. } in jobs {
        match work {
            Work::Classify(reply) => {
                pictures.push(pixels);
                replies.push((reply, photo, (decode, queued), place));
            }
            Work::Explain(reply) => {
                let began = Instant::now();
                let outcome = contain(|| model.classifier.explain_pixels(&pixels));
                let timings = timings(decode, queued, Stage::since(began));
                let _ = reply.send(outcome.map(|value| Answer { value, timings, photo }));
            }
        }
    }
    if pictures.is_empty() {
        return;
    }
    histogram!("batch_size").record(pictures.len() as f64);
    rates.batch(pictures.len());
    let began = Instant::now();
    let outcome = contain(|| model.classifier.classify_and_embed(&pictures));
    let pass = Stage::since(began);
    histogram!("inference_duration_seconds").record(pass.took);
    match outcome {
        Ok(predictions) => {
            let replies = replies.into_iter().zip(predictions);
            for ((reply, photo, (decode, queued), _place), (prediction, embedding)) in replies {
                let timings = timings(decode, queued, pass);
                let value = Classified { prediction, embedding };
                let _ = reply.send(Ok(Answer { value, timings, photo }));
            }
        }
        Err(problem) => {
            replies.into_iter().for_each(|(reply, ..)| drop(reply.send(Err(problem.clone()))));
        }
    }
}

/// A panic below must cost one batch, not the thread that serves them all.
fn contain<T>(work: impl FnOnce() -> petnet::Result<T>) -> Result<T, Problem> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(Problem::from),
        Err(_) => {
            counter!("inference_panics_total").increment(1);
            tracing::error!("the network panicked");
            Err(Problem::internal())
        }
    }
}
