//! Photos in, answers out: one thread owns the network's time.
//!
//! Work-conserving: whenever the network is free it takes what waits, up to a batch, and never waits for more. A photo
//! needs a place from decoding to answer. Who finds none waits in turn, photo by photo, so that batches and single photos
//! share the places; who waits longer than a limit is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use metrics::{counter, gauge, histogram};
use petnet::drift::ImageStatistics;
use petnet::preprocess::Pixels;
use petnet::{Explanation, Prediction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::cache::{Answers, Known};
use crate::decoder::{Decoded, Decoders, Photo};
use crate::memory::Memory;
use crate::model::Model;
use crate::problem::Problem;
use crate::settings::Settings;
use crate::telemetry::Rates;

/// Photos in their places that make no progress for so long are stuck.
const STUCK: Duration = Duration::from_secs(5);

/// Number of photos in their places, and when one of them last made progress.
struct Progress {
    start: Instant,
    active: AtomicUsize,
    /// Milliseconds from the start.
    last: AtomicU64,
}

impl Progress {
    fn note(&self) {
        self.last.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn is_stuck(&self) -> bool {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.active.load(Ordering::Relaxed) > 0 && self.start.elapsed().saturating_sub(last) > STUCK
    }
}

/// The right of one photo to be decoded and classified.
struct Place {
    _permit: OwnedSemaphorePermit,
    progress: Arc<Progress>,
}

impl Place {
    fn new(permit: OwnedSemaphorePermit, progress: &Arc<Progress>) -> Self {
        if progress.active.fetch_add(1, Ordering::Relaxed) == 0 {
            progress.note();
        }
        Self { _permit: permit, progress: Arc::clone(progress) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.progress.note();
        self.progress.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One photo more in the line, for as long as it waits.
struct Waiting<'a> {
    line: &'a AtomicUsize,
    ended: bool,
}

impl<'a> Waiting<'a> {
    fn new(line: &'a AtomicUsize) -> Self {
        line.fetch_add(1, Ordering::Relaxed);
        Self { line, ended: false }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.line.fetch_sub(1, Ordering::Relaxed);
        if !self.ended {
            // Its client has left.
            counter!("predictions_abandoned_total").increment(1);
        }
    }
}

/// The time that a photo spent in each stage.
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

/// An output of the network, and its photo.
pub(crate) struct Answer<T> {
    pub(crate) value: T,
    /// `None` of an answer that was known.
    pub(crate) timings: Option<Timings>,
    pub(crate) photo: Photo,
}

/// Outputs of one pass through the network.
#[derive(Clone)]
pub(crate) struct Classified {
    pub(crate) prediction: Prediction,
    /// The features, of norm 1: a by-product of the prediction.
    pub(crate) embedding: Vec<f32>,
}

type Reply<T> = oneshot::Sender<Result<Answer<T>, Problem>>;

enum Work {
    Classify(Reply<Classified>),
    Explain(Reply<Explanation>),
}

impl Work {
    /// True while a client waits for the answer; counts it where none does.
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
    place: Place,
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

/// Handle to the thread, which ends when it is dropped.
pub(crate) struct Batcher {
    decoders: Decoders,
    known: Answers,
    places: Arc<Semaphore>,
    capacity: usize,
    /// Photos that wait for a place.
    line: AtomicUsize,
    progress: Arc<Progress>,
    /// Longest wait for a place.
    turn: Duration,
    /// Longest wait for an answer.
    patience: Duration,
    jobs: Sender<Job>,
    /// Moving mean of the time a photo takes, in nanoseconds.
    pace: Arc<AtomicU64>,
}

impl Batcher {
    pub(crate) fn start(
        settings: &Settings,
        memory: Arc<Memory>,
        rates: Arc<Rates>,
        digests: bool,
    ) -> anyhow::Result<Self> {
        let (jobs, waiting) = channel();
        let pace = Arc::new(AtomicU64::new(0));
        let (max_batch, measured) = (settings.max_batch, Arc::clone(&pace));
        std::thread::Builder::new()
            .name("network".into())
            .spawn(move || serve(&waiting, max_batch, &measured, &rates))?;
        let start = Instant::now();
        let progress = Progress { start, active: AtomicUsize::new(0), last: AtomicU64::new(0) };
        Ok(Self {
            decoders: Decoders::start(settings, memory, digests)?,
            known: Answers::new(settings),
            places: Arc::new(Semaphore::new(settings.queue)),
            capacity: settings.queue,
            line: AtomicUsize::new(0),
            progress: Arc::new(progress),
            turn: settings.queue_timeout,
            patience: settings.request_timeout,
            jobs,
            pace,
        })
    }

    /// Refuses a request before its body is read, when its turn would come too late.
    ///
    /// # Errors
    /// 503 with the seconds until there should be room.
    pub(crate) fn check_line(&self) -> Result<(), Problem> {
        if self.wait() > self.turn { Err(self.overloaded()) } else { Ok(()) }
    }

    /// Time until those who wait now have their places.
    fn wait(&self) -> Duration {
        let ahead = self.line.load(Ordering::Relaxed) as u32;
        Duration::from_nanos(self.pace.load(Ordering::Relaxed)) * ahead
    }

    fn overloaded(&self) -> Problem {
        Problem::overloaded(self.wait().as_secs_f64().ceil().clamp(1.0, 60.0) as u64)
    }

    async fn place(&self, patience: Duration) -> Result<Place, Problem> {
        let mut waiting = Waiting::new(&self.line);
        let place = tokio::time::timeout(patience, Arc::clone(&self.places).acquire_owned()).await;
        waiting.ended = true;
        drop(waiting);
        match place {
            Ok(Ok(permit)) => Ok(Place::new(permit, &self.progress)),
            Ok(Err(_)) | Err(_) => Err(self.overloaded()),
        }
    }

    /// True while photos are in their places and have made no progress for some seconds.
    pub(crate) fn is_stuck(&self) -> bool {
        self.progress.is_stuck()
    }

    pub(crate) fn decoders(&self) -> &Decoders {
        &self.decoders
    }

    /// Sets the gauges of the queue.
    pub(crate) fn observe(&self) {
        let depth = self.capacity - self.places.available_permits().min(self.capacity);
        gauge!("batch_queue_depth").set(depth as f64);
        gauge!("batch_queue_capacity").set(self.capacity as f64);
        gauge!("batch_queue_waiting").set(self.line.load(Ordering::Relaxed) as f64);
        self.known.observe();
    }

    /// # Errors
    /// The reason for which the photo is refused; 503 when its turn or its answer did not come in time.
    pub(crate) async fn classify(
        &self,
        model: Arc<Model>,
        photo: impl Into<Picture>,
    ) -> Result<Answer<Classified>, Problem> {
        self.known_or_new(model, photo.into(), self.place(self.turn)).await
    }

    /// The answer that is kept for a photo, or else a new one.
    async fn known_or_new(
        &self,
        model: Arc<Model>,
        photo: Picture,
        place: impl Future<Output = Result<Place, Problem>>,
    ) -> Result<Answer<Classified>, Problem> {
        let key = match &photo {
            Picture::Encoded(bytes) => self.known.key(&model, bytes).await,
            Picture::Ready(_) => None,
        };
        if let Some(Known { classified, photo }) = key.as_ref().and_then(|key| self.known.get(key))
        {
            return Ok(Answer { value: classified, timings: None, photo });
        }
        let answer = self.ask(Work::Classify, model, photo, place.await?).await?;
        if let Some(key) = key {
            let (classified, photo) = (answer.value.clone(), answer.photo.clone());
            self.known.insert(key, Known { classified, photo });
        }
        Ok(answer)
    }

    /// Classifies some pictures side by side, each with an outcome of its own, in their order.
    ///
    /// # Errors
    /// 503 when the turn of the first one did not come in time; the others come after it.
    pub(crate) async fn classify_all<P: Into<Picture>>(
        &self,
        model: &Arc<Model>,
        pictures: Vec<Result<P, Problem>>,
    ) -> Result<Vec<Result<Answer<Classified>, Problem>>, Problem> {
        let mut first = Some(self.place(self.turn).await?);
        let answers = pictures.into_iter().map(|picture| {
            let (model, first) = (Arc::clone(model), first.take());
            async move {
                let place = async {
                    match first {
                        Some(place) => Ok(place),
                        None => self.place(self.patience).await,
                    }
                };
                self.known_or_new(model, picture?.into(), place).await
            }
        });
        Ok(join_all(answers).await)
    }

    /// # Errors
    /// As [`Batcher::classify`].
    pub(crate) async fn explain(
        &self,
        model: Arc<Model>,
        photo: Bytes,
    ) -> Result<Answer<Explanation>, Problem> {
        let place = self.place(self.turn).await?;
        self.ask(Work::Explain, model, photo.into(), place).await
    }

    async fn ask<T>(
        &self,
        work: fn(Reply<T>) -> Work,
        model: Arc<Model>,
        photo: Picture,
        place: Place,
    ) -> Result<Answer<T>, Problem> {
        let (reply, answer) = oneshot::channel();
        let work = work(reply);
        let next = Next { jobs: self.jobs.clone(), model: Arc::clone(&model), place };
        match photo {
            Picture::Encoded(bytes) => {
                let next = move |decode: &dyn Fn() -> Result<Decoded, Problem>| {
                    if work.wanted() {
                        match decode() {
                            Ok(decoded) => next.queue(work, decoded),
                            Err(problem) => work.fail(problem),
                        }
                    }
                };
                self.decoders.decode(&model, bytes, next, answer).await
            }
            Picture::Ready(pixels) => {
                let size = (pixels.width(), pixels.height());
                let statistics = ImageStatistics::of(&pixels, size);
                let photo = Photo { statistics, sha256: None };
                let stage = Stage { began: Instant::now(), took: Duration::ZERO };
                next.queue(work, Decoded { pixels, photo, stage });
                match tokio::time::timeout(self.patience, answer).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(_)) => Err(Problem::internal()),
                    Err(_) => Err(self.overloaded()),
                }
            }
        }
    }
}

/// The way from a decoded image to the network.
struct Next {
    jobs: Sender<Job>,
    model: Arc<Model>,
    place: Place,
}

impl Next {
    fn queue(self, work: Work, decoded: Decoded) {
        let Self { jobs, model, place } = self;
        place.progress.note();
        let Decoded { pixels, photo, stage: decode } = decoded;
        let queued = Instant::now();
        // The receiver lives as long as the process.
        let _ = jobs.send(Job { work, model, pixels, photo, decode, queued, place });
    }
}

fn serve(waiting: &Receiver<Job>, max_batch: usize, pace: &AtomicU64, rates: &Rates) {
    let mut ended = Instant::now();
    while let Ok(first) = waiting.recv() {
        let mut jobs = vec![first];
        jobs.extend(waiting.try_iter().take(max_batch - 1));
        jobs.retain(|job| job.work.wanted());
        let photos = jobs.len();
        if photos == 0 {
            continue;
        }
        let began = Instant::now();
        // While photos wait, from the end of the last batch: decoding may be what takes the time.
        let since = ended.max(jobs.iter().map(|job| job.decode.began).min().unwrap_or(began));
        while let Some(job) = jobs.first() {
            // After a reload, photos decoded for the old model are still answered by it.
            let model = Arc::clone(&job.model);
            let (same, others): (Vec<_>, Vec<_>) =
                jobs.into_iter().partition(|job| Arc::ptr_eq(&job.model, &model));
            answer(&model, same, began, rates);
            jobs = others;
        }
        ended = Instant::now();
        let each = (ended - since).as_nanos() as u64 / photos as u64;
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
        Some(Timings { decode, queue, batch: Stage::since(batch), model, photos })
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
