//! The shadow model: it classifies a sample of the default model's images after their responses are handed to hyper, and
//! the predictions of both models are compared.
//!
//! The shadow model never delays a response. Its images wait in a short queue of their own, which claims memory from the
//! budget of requests; they are classified one at a time, with the priority of bulk work, while the service is idle, or skipped.

mod comparison;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use metrics::{counter, histogram};
use petnet::Prediction;
use serde_json::Value;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::authorization::Priority;
use crate::batcher::Batcher;
use crate::memory::{Claim, Memory};
use crate::models::{Model, Models, RequestModel, ServedModel};
use crate::settings::Settings;
use crate::telemetry::names;
use comparison::{Comparison, Pair};

/// Capacity of the shadow model's queue, in images.
const QUEUE_CAPACITY: usize = 16;
/// Maximum time that an image waits for the service to be idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between two checks if the service is idle.
const IDLE_POLL: Duration = Duration::from_millis(5);

/// An image that the default model has classified.
pub(crate) struct Sample {
    id: Uuid,
    champion: Arc<Model>,
    prediction: Prediction,
    image: Bytes,
    _memory: Claim,
}

/// The sampled images of a request, which its response carries until hyper has taken its body.
#[derive(Clone, Default)]
pub(crate) struct Samples(Arc<Mutex<Vec<Sample>>>);

impl Samples {
    /// Adds an image of the default model, if there is a shadow model, the image is sampled and memory is free.
    pub(crate) fn offer(
        &mut self,
        shadow: Option<&Arc<Shadow>>,
        target: &RequestModel,
        (id, prediction): (Uuid, &Prediction),
        image: &Bytes,
    ) {
        let Some(shadow) = shadow else { return };
        if !Arc::ptr_eq(&target.served, &shadow.champion) || !shadow.is_sampled(id) {
            return;
        }
        let Ok(memory) = shadow.memory.claim_buffer(image.len()) else {
            return shadow.count("skipped");
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Sample {
            id,
            champion: Arc::clone(&target.model),
            prediction: prediction.clone(),
            image: image.clone(),
            _memory: memory,
        });
    }

    /// Submits the images to the shadow model; those that its queue has no space for are skipped.
    pub(crate) fn submit(&self, shadow: &Shadow) {
        for sample in self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if shadow.sender.try_send(sample).is_err() {
                shadow.count("skipped");
            }
        }
    }
}

/// The shadow model, and its comparison with the default model.
pub(crate) struct Shadow {
    served: Arc<ServedModel>,
    champion: Arc<ServedModel>,
    memory: Arc<Memory>,
    share: f64,
    sender: mpsc::Sender<Sample>,
    /// The receiver, which the task of [`Shadow::run`] takes.
    receiver: Mutex<Option<mpsc::Receiver<Sample>>>,
    comparison: Mutex<Comparison>,
}

impl Shadow {
    /// `None` without `--shadow`, whose name [`Models::new`] has validated.
    pub(crate) fn new(settings: &Settings, models: &Models, memory: Arc<Memory>) -> Option<Self> {
        let served = Arc::clone(models.find(Some(settings.shadow.as_deref()?)).ok()?);
        let (sender, receiver) = mpsc::channel(QUEUE_CAPACITY);
        let shadow = Self {
            served,
            champion: Arc::clone(models.default()),
            memory,
            share: settings.shadow_share,
            sender,
            receiver: Mutex::new(Some(receiver)),
            comparison: Mutex::default(),
        };
        for result in ["agreed", "disagreed", "failed", "skipped"] {
            counter!(names::SHADOW_PHOTOS_TOTAL, "model" => shadow.name(), "result" => result)
                .increment(0);
        }
        Some(shadow)
    }

    fn name(&self) -> String {
        self.served.name().to_string()
    }

    /// True for a sampled image. The random bits of the prediction's id decide, so that the result is the same each time.
    fn is_sampled(&self, id: Uuid) -> bool {
        let random = id.as_u128() as u32;
        f64::from(random) < self.share * (f64::from(u32::MAX) + 1.0)
    }

    fn count(&self, result: &'static str) {
        counter!(names::SHADOW_PHOTOS_TOTAL, "model" => self.name(), "result" => result)
            .increment(1);
        self.lock().count(result);
    }

    fn lock(&self) -> MutexGuard<'_, Comparison> {
        self.comparison.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the user feedback on an image, if the shadow model has classified it.
    pub(crate) fn evaluate(&self, id: Uuid, actual: &str) {
        for (model, right) in self.lock().evaluate(id, actual).into_iter().flatten() {
            let result = if right { "right" } else { "wrong" };
            counter!(names::SHADOW_FEEDBACK_TOTAL, "model" => model, "result" => result)
                .increment(1);
        }
    }

    /// The comparison of both models, for `/shadow`.
    pub(crate) fn json(&self) -> Value {
        self.lock().json(self.champion.name(), (self.served.name(), self.share))
    }

    /// Classifies the sampled images until the service ends.
    pub(crate) async fn run(&self, models: &Models, batcher: &Batcher) {
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut receiver) = receiver else { return };
        while let Some(sample) = receiver.recv().await {
            self.classify(models, batcher, sample).await;
        }
    }

    async fn classify(&self, models: &Models, batcher: &Batcher, sample: Sample) {
        let idle = async {
            while !models.is_idle() {
                tokio::time::sleep(IDLE_POLL).await;
            }
        };
        let idle = tokio::time::timeout(IDLE_TIMEOUT, idle).await.is_ok();
        let Ok(target) = self.served.target(Priority::Bulk) else { return self.count("skipped") };
        if !idle {
            return self.count("skipped");
        }
        match batcher.classify(&target, sample.image.clone()).await {
            Ok(output) => self.compare(&sample, &target.model, &output.value.prediction),
            Err(problem) => {
                self.count("failed");
                tracing::warn!(problem = problem.detail, "the shadow model failed");
            }
        }
    }

    /// Compares the predictions of both models for an image.
    fn compare(&self, sample: &Sample, model: &Model, prediction: &Prediction) {
        let Sample { id, champion, prediction: first, .. } = sample;
        let pair = Pair::new((champion, first), (model, prediction));
        self.count(if pair.agree() { "agreed" } else { "disagreed" });
        let [class, other] = pair.classes();
        counter!(names::SHADOW_CLASSES_TOTAL, "champion" => class, "shadow" => other).increment(1);
        let [decision, other] = [first, prediction].map(|p| p.decision().name());
        counter!(names::SHADOW_DECISIONS_TOTAL, "champion" => decision, "shadow" => other)
            .increment(1);
        histogram!(names::SHADOW_DIFFERENCE, "model" => self.name()).record(pair.difference);
        self.lock().insert(*id, pair);
    }
}
