//! Decoding on threads of its own, each image within a budget of memory and of time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::StatusCode;
use metrics::{counter, histogram};
use petnet::drift::ImageStatistics;
use petnet::preprocess::{Limits, Pixels};
use tokio::sync::oneshot;

use crate::disk::sha256;
use crate::memory::Memory;
use crate::models::Model;
use crate::outputs::{Photo, Stage};
use crate::problem::Problem;
use crate::settings::Settings;
use crate::telemetry::names;

/// An image that the network can take, and what is kept of its file.
pub(crate) struct Decoded {
    pub(crate) pixels: Pixels,
    pub(crate) photo: Photo,
    pub(crate) stage: Stage,
}

/// Work for a decoding thread.
type Job = Box<dyn FnOnce() + Send>;

/// Jobs in the order in which they came. Threads that wait for one sleep: those of channels and of pools for parallel work
/// look for it for a while, and take the network's time.
#[derive(Default)]
struct Jobs {
    waiting: Mutex<VecDeque<Job>>,
    come: Condvar,
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) {
        self.lock().push_back(job);
        self.come.notify_one();
    }

    fn next(&self) -> Job {
        let mut waiting = self.lock();
        loop {
            match waiting.pop_front() {
                Some(job) => return job,
                None => waiting = self.come.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// The decoding threads, which last as long as the process.
pub(crate) struct Decoders {
    jobs: Arc<Jobs>,
    memory: Arc<Memory>,
    limits: Limits,
    /// Longest wait for memory.
    patience: Duration,
    /// Longest time on a thread.
    longest: Duration,
    /// Set where photos are known by their digest afterwards.
    digests: bool,
}

impl Decoders {
    /// # Errors
    /// When the system gives no threads.
    pub(crate) fn start(
        settings: &Settings,
        memory: Arc<Memory>,
        digests: bool,
        after: impl Fn() + Clone + Send + 'static,
    ) -> anyhow::Result<Self> {
        let jobs = Arc::new(Jobs::default());
        // One of them runs the network.
        for number in 0..=settings.decoders() {
            let (jobs, after) = (Arc::clone(&jobs), after.clone());
            std::thread::Builder::new().name(format!("decode-{number}")).spawn(move || {
                loop {
                    jobs.next()();
                    after();
                }
            })?;
        }
        let (patience, longest) = (settings.request_timeout, settings.decode_timeout);
        Ok(Self { jobs, memory, limits: settings.limits(), patience, longest, digests })
    }

    /// Makes a thread run what comes after a job.
    pub(crate) fn wake(&self) {
        self.jobs.push(Box::new(|| ()));
    }

    /// Decodes and resizes an image to the model's size, and hands it on to `next` on the decoding thread; `next` sees to
    /// it that `answer` comes.
    ///
    /// # Errors
    /// The reason for which the image is refused; 503 when there is no memory, or no answer, in time.
    pub(crate) async fn decode<T>(
        &self,
        model: &Model,
        bytes: Bytes,
        next: impl FnOnce(&dyn Fn() -> Result<Decoded, Problem>) + Send + 'static,
        answer: oneshot::Receiver<Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let preprocess = model.classifier.info().preprocess;
        let needed = preprocess.memory(&bytes, &self.limits).inspect_err(|_| count("refused"))?;
        // No decoder may take another way that needs more.
        let (limits, digests) = (Limits { max_alloc: needed, ..self.limits }, self.digests);
        let decode = move || {
            let began = Instant::now();
            let outcome = preprocess.run_measured(&bytes, &limits);
            let stage = Stage::since(began);
            histogram!(names::PREPROCESSING_DURATION_SECONDS).record(stage.took);
            count(if outcome.is_ok() { "ok" } else { "refused" });
            let (pixels, own) = outcome?;
            let statistics = ImageStatistics::of(&pixels, own);
            let sha256 = digests.then(|| sha256(&bytes));
            Ok(Decoded { pixels, photo: Photo { statistics, sha256 }, stage })
        };
        self.supervise(needed, move || next(&decode), answer).await
    }

    /// Runs work that takes so many bytes of memory at most.
    ///
    /// # Errors
    /// Those of the work; 413, 422 or 503 for the memory or time that it takes.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        memory: u64,
        work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        let work = move || {
            // Nobody waits any more for what took too long.
            let _ = reply.send(work());
        };
        self.supervise(memory, work, answer).await
    }

    /// Runs work that leads to an answer, and waits for that: for the work no longer than it may take, in all no longer
    /// than an answer may.
    async fn supervise<T>(
        &self,
        memory: u64,
        work: impl FnOnce() + Send + 'static,
        mut answer: oneshot::Receiver<Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let claim = self.memory.decoding(memory, self.patience).await?;
        let times = Arc::new(Times::default());
        let noted = Arc::clone(&times);
        let job = move || {
            let _ = noted.started.set(Instant::now());
            // A panic drops the sender of the answer.
            let _ = catch_unwind(AssertUnwindSafe(work));
            drop(claim);
            let _ = noted.ended.set(());
        };
        self.jobs.push(Box::new(job));
        let last = Instant::now() + self.patience;
        let mut until = Instant::now() + self.longest;
        loop {
            let outcome = tokio::time::timeout_at(until.min(last).into(), &mut answer).await;
            if let Ok(outcome) = outcome {
                return outcome.unwrap_or_else(|_| Err(Problem::internal()));
            }
            let now = Instant::now();
            until = match (times.started.get(), times.ended.get()) {
                _ if now >= last => return Err(Problem::overloaded(1)),
                (_, Some(())) => last,
                (None, None) => now + self.longest,
                (Some(started), None) if *started + self.longest <= now => {
                    return Err(self.too_slow());
                }
                (Some(started), None) => *started + self.longest,
            };
        }
    }

    fn too_slow(&self) -> Problem {
        counter!(names::DECODE_TIMEOUTS_TOTAL).increment(1);
        let detail = format!("decoding takes longer than {:?}", self.longest);
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "decode_timeout", detail)
    }
}

/// Start of a thread's work, and its end.
#[derive(Default)]
struct Times {
    started: OnceLock<Instant>,
    ended: OnceLock<()>,
}

fn count(result: &'static str) {
    counter!(names::PREPROCESSING_IMAGES_TOTAL, "result" => result).increment(1);
}
