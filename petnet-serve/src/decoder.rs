//! Threads that decode images, each image within a budget of memory and of time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::StatusCode;
use metrics::{counter, histogram};
use petnet::disk::sha256;
use petnet::drift::ImageStatistics;
use petnet::preprocess::{Limits, Pixels};
use tokio::sync::oneshot;

use crate::memory::Memory;
use crate::models::Model;
use crate::outputs::{ImageMetadata, Stage};
use crate::problem::{Kind, Problem};
use crate::settings::Settings;
use crate::telemetry::names;

/// An image as input of the network, with its metadata and the duration of decoding.
pub(crate) struct Decoded {
    pub(crate) pixels: Pixels,
    pub(crate) metadata: ImageMetadata,
    pub(crate) decode_stage: Stage,
}

/// A job for a decoding thread.
type DecodeJob = Box<dyn FnOnce() + Send>;

/// A FIFO queue of jobs. Threads that wait for a job sleep on a condition variable at once: the receivers of channels and
/// the workers of thread pools spin first, which takes CPU time from the network.
#[derive(Default)]
struct JobQueue {
    waiting: Mutex<VecDeque<DecodeJob>>,
    available: Condvar,
}

impl JobQueue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<DecodeJob>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: DecodeJob) {
        self.lock().push_back(job);
        self.available.notify_one();
    }

    fn pop(&self) -> DecodeJob {
        let mut waiting = self.lock();
        loop {
            match waiting.pop_front() {
                Some(job) => return job,
                None => {
                    waiting = self.available.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// The decoding threads, which last as long as the process.
pub(crate) struct Decoders {
    jobs: Arc<JobQueue>,
    memory: Arc<Memory>,
    limits: Limits,
    /// Maximum wait for memory, and again for the output.
    request_timeout: Duration,
    /// Maximum time on a decoding thread.
    decode_timeout: Duration,
    /// True where the SHA-256 of each image is needed, for feedback.
    needs_sha256: bool,
}

impl Decoders {
    /// Starts the threads; each calls `after_each_job` after every job.
    /// Errors: when a thread cannot be started.
    pub(crate) fn start(
        settings: &Settings,
        memory: Arc<Memory>,
        needs_sha256: bool,
        after_each_job: impl Fn() + Clone + Send + 'static,
    ) -> anyhow::Result<Self> {
        let jobs = Arc::new(JobQueue::default());
        // One more than the setting, because one of them runs the network.
        for number in 0..=settings.decoders() {
            let (jobs, after_each_job) = (Arc::clone(&jobs), after_each_job.clone());
            std::thread::Builder::new().name(format!("decode-{number}")).spawn(move || {
                loop {
                    jobs.pop()();
                    after_each_job();
                }
            })?;
        }
        let (request_timeout, decode_timeout) = (settings.request_timeout, settings.decode_timeout);
        let limits = settings.limits();
        Ok(Self { jobs, memory, limits, request_timeout, decode_timeout, needs_sha256 })
    }

    /// Makes a thread call `after_each_job`, by an empty job.
    pub(crate) fn wake(&self) {
        self.jobs.push(Box::new(|| ()));
    }

    /// The memory in bytes that decoding an image takes, and a function that decodes it and resizes it to the model's input
    /// size, to be run on a decoding thread.
    /// Errors: the reason for which the image is refused without decoding.
    pub(crate) fn prepare(
        &self,
        model: &Model,
        bytes: Bytes,
    ) -> Result<(u64, impl FnOnce() -> Result<Decoded, Problem> + Send + use<>), Problem> {
        let preprocess = model.classifier.info().preprocess;
        let memory = preprocess.memory(&bytes, &self.limits).inspect_err(|_| count("refused"))?;
        // The decoder must not allocate more than was estimated and claimed.
        let limits = Limits { max_alloc: memory, ..self.limits };
        let needs_sha256 = self.needs_sha256;
        let decode = move || {
            let began = Instant::now();
            let outcome = preprocess.run_measured(&bytes, &limits);
            let decode_stage = Stage::since(began);
            histogram!(names::PREPROCESSING_DURATION_SECONDS).record(decode_stage.duration);
            count(if outcome.is_ok() { "ok" } else { "refused" });
            let (pixels, original_size) = outcome?;
            let statistics = ImageStatistics::of(&pixels, original_size);
            let sha256 = needs_sha256.then(|| sha256(&bytes));
            Ok(Decoded { pixels, metadata: ImageMetadata { statistics, sha256 }, decode_stage })
        };
        Ok((memory, decode))
    }

    /// Runs work on a decoding thread with a claim on `memory` bytes, and returns its result.
    /// Errors: those of the work and of [`Decoders::supervise`].
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        memory: u64,
        work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let (sender, output) = oneshot::channel();
        let work = move || {
            // The receiver is gone if the work took too long.
            let _ = sender.send(work());
        };
        self.supervise(memory, work, output).await
    }

    /// Runs work on a decoding thread with a claim on `memory` bytes, and waits for the output, which the work sends itself or
    /// queues an image for. The work may take `decode_timeout` from its start. The wait for memory is limited by
    /// `request_timeout`, and so is that for the output, which begins once the memory is claimed.
    /// Errors: 413 or 503 for the memory, 422 or 503 for the time; 500 where no output is sent.
    pub(crate) async fn supervise<T>(
        &self,
        memory: u64,
        work: impl FnOnce() + Send + 'static,
        mut output: oneshot::Receiver<Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let claim = self.memory.claim_decoding(memory, self.request_timeout).await?;
        let times = Arc::new(JobTimes::default());
        let job_times = Arc::clone(&times);
        let job = move || {
            let _ = job_times.started.set(Instant::now());
            // A panic drops the sender of the output, which ends the wait below.
            let _ = catch_unwind(AssertUnwindSafe(work));
            drop(claim);
            let _ = job_times.ended.set(());
        };
        self.jobs.push(Box::new(job));
        let request_end = Instant::now() + self.request_timeout;
        let mut next_check = Instant::now() + self.decode_timeout;
        loop {
            let outcome =
                tokio::time::timeout_at(next_check.min(request_end).into(), &mut output).await;
            if let Ok(outcome) = outcome {
                return outcome.unwrap_or_else(|_| Err(Problem::internal()));
            }
            let now = Instant::now();
            next_check = match (times.started.get(), times.ended.get()) {
                _ if now >= request_end => return Err(Problem::overloaded(1)),
                (_, Some(())) => request_end,
                (None, None) => now + self.decode_timeout,
                (Some(started), None) if *started + self.decode_timeout <= now => {
                    return Err(self.too_slow());
                }
                (Some(started), None) => *started + self.decode_timeout,
            };
        }
    }

    fn too_slow(&self) -> Problem {
        counter!(names::DECODE_TIMEOUTS_TOTAL).increment(1);
        let detail = format!("decoding takes longer than {:?}", self.decode_timeout);
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, Kind::DecodeTimeout, detail)
    }
}

/// Start and end of a job; unset before they are reached.
#[derive(Default)]
struct JobTimes {
    started: OnceLock<Instant>,
    ended: OnceLock<()>,
}

fn count(result: &'static str) {
    counter!(names::PREPROCESSING_IMAGES_TOTAL, "result" => result).increment(1);
}
