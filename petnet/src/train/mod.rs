//! Training: settings with one verb, [`Trainer::fit`].
//!
//! Every random number is a function of (seed, epoch, step), and all state is written to one file
//! now and then, so that a training that was killed goes on to the same weights, bit for bit on
//! one CPU device, as one that was not.

mod clip;
mod ema;
mod figures;
mod fit;
mod freeze;
mod loss;
mod lr_find;
mod precise_bn;
mod precision;
mod probe;
mod schedule;
mod setup;
mod start;
mod state;
mod tally;
mod teacher;
mod trunk;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use freeze::Freeze;
pub use lr_find::{RateCurve, RatePoint};
pub use precision::Arithmetic;
pub use schedule::Schedule;
use start::Given;
pub use start::Start;
pub use teacher::Distillation;

use crate::arch::{Architecture, EfficientNetLiteConfig};
use crate::augment::Augment;
use crate::checkpoint::{Checkpoint, Precision};
use crate::dataset::Dataset;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::ood::ClassSet;
use crate::preprocess::{MAX_SIZE, Preprocess, Resize};

/// How gradients become steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Optimizer {
    /// Adam, weight decay added to the gradient (as PyTorch's `Adam`).
    Adam,
    /// Adam with decoupled weight decay.
    AdamW,
    /// Stochastic gradient descent with Nesterov momentum.
    Sgd,
}

/// Which validation figure decides what is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Monitor {
    /// Higher is better. Of multi-label data, the mean average precision takes its place: no threshold decides it.
    ValAccuracy,
    /// Lower is better.
    ValLoss,
}

/// Epochs at a smaller input, see [`Trainer::progressive`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resizing {
    /// Side of the network's input, in pixels.
    pub size: u32,
    /// Share of all epochs, 0 to 1.
    pub share: f64,
}

/// Settings of a training, and the verb.
///
/// ```no_run
/// use petnet::{Dataset, Trainer};
///
/// let (train, valid) = Dataset::open("photos")?.split(0.9)?;
/// let trainer = Trainer { epochs: 20, ..Trainer::default() };
/// trainer.fit(&train, &valid)?.save("mine.safetensors")?;
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trainer {
    /// The network.
    pub architecture: Architecture,
    /// The weights that training starts from; a last layer for other classes is left out. `None` takes the bundled
    /// model's where the network is the same, else random numbers.
    pub init: Option<Start>,
    /// The layers that stay as they were in [`Trainer::init`]. With [`Freeze::Backbone`] the last layer is fitted by
    /// logistic regression, and the settings of epochs, steps and augmentation have no effect. `None` trains everything
    /// from random numbers; from given weights, the last layer of a few thousand images, the last block and what
    /// follows of more.
    pub freeze: Option<Freeze>,
    /// Classes of the network in [`Trainer::init`] that contain the data's: its head is kept as a source head, and tells
    /// images of other things, see [`OodScore::SourceClasses`](crate::OodScore::SourceClasses).
    pub source_classes: Option<ClassSet>,
    /// Its input.
    pub preprocess: Preprocess,
    /// Smaller inputs to begin with, in order; [`Trainer::preprocess`] comes last
    /// (Touvron et al., "Fixing the train-test resolution discrepancy", 2019). Shares that add to 1
    /// leave it for validation alone: crops show what they show enlarged, so a network wants a
    /// larger input afterwards. Epochs are counted, so the rounded shares decide where one ends.
    pub progressive: Vec<Resizing>,
    /// Passes over the training photos.
    pub epochs: usize,
    /// Photos a step.
    pub batch_size: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How it moves.
    pub schedule: Schedule,
    /// Epochs over which it first rises from zero, in parts of epochs; 0 for none.
    pub warmup_epochs: f64,
    /// Which optimiser.
    pub optimizer: Optimizer,
    /// Momentum of [`Optimizer::Sgd`].
    pub momentum: f64,
    /// Pull of the weights towards zero; norms and biases are left alone.
    pub weight_decay: f64,
    /// Share of the target that is spread over all classes, 0 to 1; of multi-label data, the share by which each target is
    /// moved towards one half.
    pub label_smoothing: f32,
    /// A teacher to learn from; `None` for labels alone.
    pub distillation: Option<Distillation>,
    /// Whether rare classes weigh as much as frequent ones: each photo's loss is divided by its
    /// class's share of the training photos.
    pub balanced: bool,
    /// Largest L2 norm of all gradients together; 0 for no limit.
    pub grad_clip: f64,
    /// Floats of the convolutions. Without effect where only the last layer is trained.
    pub precision: Arithmetic,
    /// Decay a step of the averaged weights that are evaluated and saved; 0 for no average.
    pub ema_decay: f64,
    /// Whole training photos at the end, over which batch norms take their final statistics at the
    /// model's own size; 0 keeps those of the last batches. Not with averaged weights.
    pub precise_bn_images: usize,
    /// True to measure the ranges of feature maps on training images, so that inference runs in bytes where the CPU
    /// can, see [`Quantization`](crate::Quantization); frozen blocks on the CPU then run in bytes in training as well.
    pub quantize: bool,
    /// Epochs without a better model before training stops; 0 for never.
    pub early_stopping: usize,
    /// What "better" means.
    pub monitor: Monitor,
    /// Random changes to training photos.
    pub augment: Augment,
    /// Decides weights, order and augmentation.
    pub seed: u64,
    /// Threads that decode photos.
    pub workers: usize,
    /// Most memory for decoded photos, in MiB.
    pub cache_mb: usize,
    /// Where to compute.
    #[serde(skip)]
    pub device: Device,
    /// Folder for `best.safetensors`, `last.safetensors` and the state; `None` keeps all in memory.
    #[serde(skip)]
    pub out: Option<PathBuf>,
    /// Whether `last.safetensors` is left out.
    #[serde(skip)]
    pub save_best_only: bool,
    /// Steps between saved states within an epoch; 0 saves at the end of epochs only.
    #[serde(skip)]
    pub save_every: usize,
    /// Whether to go on from the state in `out`, where there is one.
    #[serde(skip)]
    pub resume: bool,
}

impl Default for Trainer {
    fn default() -> Self {
        Self {
            architecture: Architecture::new(EfficientNetLiteConfig::lite(0)),
            init: None,
            freeze: None,
            source_classes: None,
            preprocess: Preprocess { size: 224, resize: Resize::Squeeze },
            progressive: Vec::new(),
            epochs: 8,
            batch_size: 128,
            learning_rate: 5e-4,
            schedule: Schedule::Cosine,
            warmup_epochs: 1.0,
            optimizer: Optimizer::AdamW,
            momentum: 0.9,
            weight_decay: 0.02,
            label_smoothing: 0.1,
            distillation: None,
            balanced: false,
            grad_clip: 0.0,
            precision: Arithmetic::F32,
            ema_decay: 0.0,
            precise_bn_images: 0,
            quantize: true,
            early_stopping: 0,
            monitor: Monitor::ValAccuracy,
            augment: Augment::default(),
            seed: 42,
            workers: 1,
            cache_mb: 1536,
            device: Device::Cpu,
            out: None,
            save_best_only: false,
            save_every: 200,
            resume: false,
        }
    }
}

/// Figures of one epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// From 1.
    pub epoch: usize,
    /// Learning rate of its last step.
    pub learning_rate: f64,
    /// Mean over its steps, with augmentation and smoothing.
    pub train_loss: f64,
    /// Share of right answers over its steps; of multi-label data, of the images whose classes were all right.
    pub train_accuracy: f64,
    /// Mean cross entropy on the validation photos; of multi-label data, binary and over classes.
    pub val_loss: f64,
    /// Share of right answers on the validation photos; of multi-label data, of the images whose classes were all right at a
    /// threshold of one half.
    pub val_accuracy: f64,
    /// Mean average precision on the validation photos, of multi-label data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_map: Option<f64>,
    /// Seconds since training began, interruptions left out.
    pub seconds: f64,
    /// Seconds of this epoch in which the network waited for a batch.
    #[serde(default)]
    pub waited: f64,
    /// Whether this is the best epoch so far.
    pub best: bool,
}

/// Figures of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// From 1.
    pub epoch: usize,
    /// From 1, within the epoch.
    pub step: usize,
    /// Steps of the epoch.
    pub steps: usize,
    /// Mean loss of the epoch so far; on a GPU it is read every 16 steps.
    pub loss: f64,
    /// Share of right answers of the epoch so far, as the loss.
    pub accuracy: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Photos a second, the wait for the batch included; on a GPU those of the last 16 steps.
    pub images_per_second: f64,
    /// Seconds of the epoch so far in which the network waited for a batch.
    pub waited: f64,
}

/// Someone who watches a training and may end it.
///
/// ```no_run
/// use petnet::train::{EpochReport, Observer};
/// use petnet::{Dataset, Trainer};
///
/// struct Patience;
///
/// impl Observer for Patience {
///     fn epoch(&mut self, report: &EpochReport) {
///         println!("epoch {}: {:.1} %", report.epoch, report.val_accuracy * 100.0);
///     }
/// }
///
/// let (train, valid) = Dataset::open("photos")?.split(0.9)?;
/// Trainer::default().fit_observed(&train, &valid, &mut Patience)?;
/// # Ok::<(), petnet::Error>(())
/// ```
pub trait Observer {
    /// Before the first step on a GPU, whose kernels are compiled and chosen first.
    fn warm_up(&mut self) {}
    /// After that, with the seconds that it took.
    fn warmed_up(&mut self, _seconds: f64) {}
    /// After every step.
    fn step(&mut self, _report: &StepReport) {}
    /// Before the first step, and again and again: features of so many images of all are computed.
    fn features(&mut self, _done: usize, _all: usize) {}
    /// After every epoch and its validation.
    fn epoch(&mut self, _report: &EpochReport) {}
    /// Asked after every step; `true` saves the state and ends with [`Error::Interrupted`].
    fn stop(&self) -> bool {
        false
    }
}

/// An [`Observer`] that does nothing.
impl Observer for () {}

/// What a training leaves behind.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// The model with the best [`Monitor`] figure.
    pub best: Checkpoint,
    /// The model at the end.
    pub last: Checkpoint,
    /// One report an epoch.
    pub history: Vec<EpochReport>,
}

impl Fitted {
    /// Saves the best model.
    ///
    /// # Errors
    /// As [`Checkpoint::save`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.best.save(path, Precision::F32)
    }
}

impl Trainer {
    /// File names in [`Trainer::out`].
    pub const BEST: &str = "best.safetensors";
    /// The model after the last completed epoch.
    pub const LAST: &str = "last.safetensors";
    /// What [`Trainer::resume`] reads.
    pub const STATE: &str = "state.safetensors";

    /// Trains on one data set and judges each epoch on the other.
    ///
    /// # Errors
    /// [`Error::Config`] for settings out of range, [`Error::Dataset`] when the two sets do not
    /// fit each other, [`Error::Diverged`] when the loss is no longer a number (the best model so
    /// far is kept in [`Trainer::out`]), and whatever photos, device and disk refuse.
    pub fn fit(&self, train: &Dataset, valid: &Dataset) -> Result<Fitted> {
        self.fit_observed(train, valid, &mut ())
    }

    /// [`Trainer::fit`] under someone's eyes.
    ///
    /// # Errors
    /// As [`Trainer::fit`], and [`Error::Interrupted`] when the observer says stop.
    pub fn fit_observed(
        &self,
        train: &Dataset,
        valid: &Dataset,
        observer: &mut dyn Observer,
    ) -> Result<Fitted> {
        self.validate()?;
        if train.classes() != valid.classes() {
            return Err(Error::Dataset("training and validation have different classes".into()));
        }
        if train.is_empty() || valid.is_empty() {
            return Err(Error::Dataset("training and validation need photos".into()));
        }
        if train.is_multi_label() != valid.is_multi_label() {
            let reason = "one of training and validation is multi-label";
            return Err(Error::Dataset(reason.into()));
        }
        self.refuse_for_several(train)?;
        let graph = self.architecture.graph(train.classes().len())?;
        let given = self.given(&graph, train.classes())?;
        self.precision.loss_scale(&self.device.open()?)?;
        match given.map(|given| (self.frozen(&graph, train.len()), given)) {
            Some((Freeze::Backbone, given)) => probe::fit(self, &given, (train, valid), observer),
            Some((Freeze::Nothing | Freeze::Blocks(_), given)) => {
                fit::Fit::start(self, Some(given), (train, valid))?.run(observer)
            }
            None => fit::Fit::start(self, None, (train, valid))?.run(observer),
        }
    }

    /// The weights to start from; `None` for random numbers.
    fn given(&self, graph: &Graph, classes: &[String]) -> Result<Option<Given>> {
        let given = Given::read(self.init.as_ref(), graph, classes)?;
        match self.freeze.unwrap_or(Freeze::Nothing) {
            Freeze::Nothing => Ok(given),
            Freeze::Blocks(_) | Freeze::Backbone if given.is_some() => Ok(given),
            freeze @ (Freeze::Blocks(_) | Freeze::Backbone) => {
                let range = "must be 0 without init: random layers would stay random";
                Err(Error::Config(format!("freeze is {freeze}, {range}")))
            }
        }
    }

    /// The layers of given weights to freeze for so many images.
    fn frozen(&self, graph: &Graph, images: usize) -> Freeze {
        /// Images up to which the last layer alone is trained by default.
        const FEW: usize = 5000;
        self.freeze.unwrap_or_else(|| match images {
            0..=FEW => Freeze::Backbone,
            _ => Freeze::Blocks(graph.blocks().len().saturating_sub(1)),
        })
    }

    /// Side of the network's input in an epoch, from 0.
    fn size_in(&self, epoch: usize) -> u32 {
        let mut ends = 0.0;
        let stage = self.progressive.iter().find(|stage| {
            ends += stage.share;
            epoch < (ends * self.epochs as f64).round() as usize
        });
        stage.map_or(self.preprocess.size, |stage| stage.size)
    }

    /// Side of the input that an epoch is judged at: the last size's epochs at the model's own.
    fn judged_in(&self, epoch: usize) -> u32 {
        let size = self.size_in(epoch);
        let last = size == self.size_in(self.epochs.saturating_sub(1));
        if last { self.preprocess.size } else { size }
    }

    /// Settings that are for one class an image alone.
    fn refuse_for_several(&self, train: &Dataset) -> Result<()> {
        let refused = |what| Err(Error::Config(format!("{what} is not for multi-label data")));
        match train.is_multi_label() {
            true if self.distillation.is_some() => refused("distillation"),
            // Each class has a loss of its own already.
            true if self.balanced => refused("balanced"),
            true | false => Ok(()),
        }
    }

    fn validate(&self) -> Result<()> {
        let bad = |key: &str, value: &dyn std::fmt::Display, range: &str| {
            Err(Error::Config(format!("{key} is {value}, must be {range}")))
        };
        // Whatever the classes, settings that make no network are refused.
        let graph = self.architecture.graph(1)?;
        if self.epochs == 0 {
            return bad("num_epochs", &0, "at least 1");
        }
        if self.batch_size < 2 {
            return bad("batch_size", &self.batch_size, "at least 2");
        }
        let sizes = self.progressive.iter().map(|stage| stage.size);
        let smallest = (graph.min_side() as u32).max(8);
        let mut sizes = sizes.chain([self.preprocess.size]);
        if let Some(size) = sizes.find(|size| !(smallest..=MAX_SIZE).contains(size)) {
            return bad("image_size", &size, &format!("between {smallest} and {MAX_SIZE}"));
        }
        let share: f64 = self.progressive.iter().map(|stage| stage.share).sum();
        if !(0.0..=1.0).contains(&share) || self.progressive.iter().any(|s| s.share < 0.0) {
            return bad("the shares of progressive together", &share, "between 0 and 1");
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 10.0) {
            return bad("learning_rate", &self.learning_rate, "above 0 and at most 10");
        }
        let shares = [
            ("label_smoothing", f64::from(self.label_smoothing)),
            ("ema_decay", self.ema_decay),
            ("momentum", self.momentum),
            ("weight_decay", self.weight_decay),
        ];
        if let Some((key, value)) = shares.iter().find(|(_, v)| !(0.0..1.0).contains(v)) {
            return bad(key, value, "at least 0 and below 1");
        }
        if self.precise_bn_images > 0 && self.ema_decay > 0.0 {
            return bad("precise_bn_images", &self.precise_bn_images, "0 where ema_decay is not");
        }
        let freeze = self.freeze.unwrap_or(Freeze::Nothing);
        let blocks = graph.blocks().len();
        if let Freeze::Blocks(frozen) = freeze
            && frozen > blocks
        {
            return bad("freeze", &frozen, &format!("at most {blocks}, the network's blocks"));
        }
        if freeze != Freeze::Nothing && self.precise_bn_images > 0 {
            return bad("precise_bn_images", &self.precise_bn_images, "0 with freeze");
        }
        if !(self.grad_clip >= 0.0 && self.warmup_epochs >= 0.0) {
            return bad("grad_clip or warmup_epochs", &"negative", "at least 0");
        }
        self.distillation.iter().try_for_each(Distillation::validate)?;
        self.augment.validate()
    }
}
