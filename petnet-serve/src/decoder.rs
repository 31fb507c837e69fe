//! Decoding on threads of its own, each image within a budget of memory and of time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::StatusCode;
use metrics::{counter, histogram};
use petnet::drift::ImageStatistics;
use petnet::preprocess::{Limits, Pixels};
use petnet::sha256;
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::oneshot;

use crate::batcher::Stage;
use crate::memory::Memory;
use crate::model::Model;
use crate::problem::Problem;
use crate::settings::Settings;

/// An image that the network can take, and what is kept of its file.
pub(crate) struct Decoded {
    pub(crate) pixels: Pixels,
    pub(crate) photo: Photo,
    pub(crate) stage: Stage,
}

/// What is remembered of a photo.
pub(crate) struct Photo {
    pub(crate) statistics: ImageStatistics,
    /// Of its bytes, in hex; where it is kept.
    pub(crate) sha256: Option<String>,
}

/// The decoding threads.
pub(crate) struct Decoders {
    pool: ThreadPool,
    memory: Arc<Memory>,
    limits: Limits,
    /// Longest wait for memory.
    patience: Duration,
    /// Longest time on a thread.
    longest: Duration,
    /// Whether photos are known by their digest afterwards.
    digests: bool,
}

impl Decoders {
    /// # Errors
    /// When the system gives no threads.
    pub(crate) fn start(
        settings: &Settings,
        memory: Arc<Memory>,
        digests: bool,
    ) -> anyhow::Result<Self> {
        let pool = ThreadPoolBuilder::new()
            .num_threads(settings.decode_threads)
            .thread_name(|number| format!("decode-{number}"))
            .build()?;
        let (patience, longest) = (settings.request_timeout, settings.decode_timeout);
        Ok(Self { pool, memory, limits: settings.limits(), patience, longest, digests })
    }

    /// Decodes and resizes an image to the model's size.
    ///
    /// # Errors
    /// What the image is refused for; 503 when there is no memory in time.
    pub(crate) async fn decode(
        &self,
        model: &Arc<Model>,
        bytes: Bytes,
    ) -> Result<Decoded, Problem> {
        let preprocess = model.classifier.info().preprocess;
        let needed = preprocess.memory(&bytes, &self.limits).inspect_err(|_| refused())?;
        // No decoder may take another way that needs more.
        let (limits, digests) = (Limits { max_alloc: needed, ..self.limits }, self.digests);
        let work = move || {
            let began = Instant::now();
            let outcome = preprocess.run_measured(&bytes, &limits);
            let stage = Stage::since(began);
            histogram!("preprocessing_duration_seconds").record(stage.took);
            let (pixels, own) = outcome?;
            let statistics = ImageStatistics::of(&pixels, own);
            let sha256 = digests.then(|| sha256(&bytes));
            Ok(Decoded { pixels, photo: Photo { statistics, sha256 }, stage })
        };
        let decoded = self.run(needed, work).await.inspect_err(|_| refused())?;
        counter!("preprocessing_images_total", "result" => "ok").increment(1);
        Ok(decoded)
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
        let claim = self.memory.decoding(memory, self.patience).await?;
        let (reply, mut answer) = oneshot::channel();
        let started = Arc::new(OnceLock::new());
        let begin = Arc::clone(&started);
        self.pool.spawn(move || {
            if reply.is_closed() {
                counter!("predictions_abandoned_total").increment(1);
                return;
            }
            let _ = begin.set(Instant::now());
            let outcome = catch_unwind(AssertUnwindSafe(work));
            drop(claim);
            // Nobody waits any more for what took too long.
            let _ = reply.send(outcome.unwrap_or_else(|_| Err(Problem::internal())));
        });
        let mut until = Instant::now() + self.longest;
        loop {
            match tokio::time::timeout_at(until.into(), &mut answer).await {
                Ok(outcome) => return outcome.unwrap_or_else(|_| Err(Problem::internal())),
                Err(_) => match started.get() {
                    None => until = Instant::now() + self.longest,
                    Some(began) if *began + self.longest > Instant::now() => {
                        until = *began + self.longest;
                    }
                    Some(_) => return Err(self.too_slow()),
                },
            }
        }
    }

    fn too_slow(&self) -> Problem {
        counter!("decode_timeouts_total").increment(1);
        let detail = format!("decoding takes longer than {:?}", self.longest);
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "decode_timeout", detail)
    }
}

fn refused() {
    counter!("preprocessing_images_total", "result" => "refused").increment(1);
}
