//! Training: [`Trainer`] holds the settings, [`Trainer::fit`] runs it.
//!
//! Every random number is a function of (seed, epoch, step), and the whole state is saved to one file at intervals. A
//! training that was killed and resumed therefore ends with the same weights, bit for bit on one CPU device, as one that
//! was not interrupted. The fit of the last layer alone ([`Freeze::Backbone`]) has no steps and saves no state: it starts over.

mod clip;
mod ema;
mod fit;
mod freeze;
mod initial;
mod loss;
mod lr_find;
mod precise_bn;
mod precision;
mod probe;
mod schedule;
mod setup;
mod state;
mod tally;
mod teacher;
mod trunk;
mod validate;
mod validation;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use freeze::Freeze;
use initial::InitialModel;
pub use initial::InitialWeights;
pub use lr_find::{RateCurve, RatePoint};
pub use precision::TrainingPrecision;
pub use schedule::Schedule;
pub use teacher::Distillation;

use crate::arch::Architecture;
use crate::augment::Augment;
use crate::checkpoint::{Checkpoint, Precision};
use crate::dataset::Dataset;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::kernel::free_buffers;
use crate::ood::ClassSet;
use crate::preprocess::{Preprocess, Resize};

/// The optimiser.
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

/// The validation metric by which the best model is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Monitor {
    /// Accuracy, higher is better; for multi-label data the mean average precision, which needs no threshold.
    ValAccuracy,
    /// Loss, lower is better.
    ValLoss,
}

/// Epochs at a smaller input size, see [`Trainer::progressive`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resizing {
    /// Side of the network's input, in pixels.
    pub size: u32,
    /// Share of all epochs, 0 to 1.
    pub share: f64,
}

/// The settings of a training.
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
#[serde(default)]
pub struct Trainer {
    /// The network.
    #[serde(rename = "model")]
    pub architecture: Architecture,
    /// The initial weights; a last layer for other classes is left out. `None` takes the bundled model's where the
    /// network is the same, else random numbers.
    pub init: Option<InitialWeights>,
    /// The layers of [`Trainer::init`] that are not trained. With [`Freeze::Backbone`] the last layer is fitted by
    /// logistic regression, and the settings of epochs, steps and augmentation have no effect. `None` trains all layers
    /// of a random network. Of a network with initial weights it trains the last layer on up to 5,000 images, and the
    /// last block and the layers after it on more.
    pub freeze: Option<Freeze>,
    /// Classes of the network in [`Trainer::init`] that contain the data's. Its head is kept as a source head, to detect
    /// out-of-distribution images, see [`OodScore::SourceClasses`](crate::OodScore::SourceClasses).
    pub source_classes: Option<ClassSet>,
    /// Side of the network's input in pixels.
    pub image_size: u32,
    /// The way in which images are resized to the network's input.
    pub resize: Resize,
    /// Smaller input sizes for the first epochs, in order; [`Trainer::image_size`] comes last. Shares that
    /// add to 1 leave that size for validation alone: random crops show objects enlarged, so that a network evaluates
    /// better at a larger input than it was trained at (Touvron et al., "Fixing the train-test resolution discrepancy",
    /// 2019). Each stage ends at a whole epoch, by its rounded share.
    pub progressive: Vec<Resizing>,
    /// Passes over the training images.
    #[serde(rename = "num_epochs")]
    pub epochs: usize,
    /// Images per step.
    pub batch_size: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Learning-rate schedule.
    #[serde(rename = "scheduler")]
    pub schedule: Schedule,
    /// Length of the linear warm-up of the learning rate, in epochs and fractions of them; 0 for none.
    pub warmup_epochs: f64,
    /// The optimiser.
    pub optimizer: Optimizer,
    /// Momentum of [`Optimizer::Sgd`].
    pub momentum: f64,
    /// Weight decay; not applied to batch norms and biases.
    pub weight_decay: f64,
    /// Share of the target that is spread over all classes, 0 to 1; for multi-label data, the share by which each target
    /// is moved towards one half.
    pub label_smoothing: f32,
    /// Knowledge distillation from a teacher; `None` trains on labels alone.
    pub distillation: Option<Distillation>,
    /// True to give rare classes the weight of frequent ones: each image's loss is divided by its class's share of the
    /// training images.
    pub balanced: bool,
    /// Largest L2 norm of all gradients together; 0 for no limit.
    pub grad_clip: f64,
    /// Floating-point type of the convolutions. Without effect where only the last layer is trained.
    pub precision: TrainingPrecision,
    /// Decay per step of the exponential moving average of the weights, which is then evaluated and saved; 0 for none.
    pub ema_decay: f64,
    /// Number of training images, uncropped and at the model's own size, on which the batch-norm statistics are
    /// re-estimated at the end; 0 keeps the running statistics. Not with averaged weights.
    pub precise_bn_images: usize,
    /// True to measure the ranges of feature maps on training images, so that inference runs in int8 where the CPU
    /// supports it, see [`Quantization`](crate::Quantization); frozen blocks on the CPU then run in int8 in training too.
    pub quantize: bool,
    /// Epochs without a better model before training stops; 0 for never.
    pub early_stopping: usize,
    /// The metric by which models are compared.
    pub monitor: Monitor,
    /// Augmentation of training images.
    #[serde(rename = "augmentation")]
    pub augment: Augment,
    /// Seed of initial weights, order and augmentation.
    pub seed: u64,
    /// Threads that decode images.
    #[serde(rename = "num_workers")]
    pub workers: usize,
    /// Most memory for decoded images, in MiB.
    pub cache_mb: usize,
    /// The device that computes.
    #[serde(skip)]
    pub device: Device,
    /// Folder for `best.safetensors`, `last.safetensors` and the state; `None` writes no files.
    #[serde(skip)]
    pub out: Option<PathBuf>,
    /// True to write no `last.safetensors`.
    #[serde(skip)]
    pub save_best_only: bool,
    /// Steps between saved states within an epoch; 0 saves at the end of epochs only.
    #[serde(skip)]
    pub save_every: usize,
    /// True to resume from the state in `out`, where there is one. Without effect where only the last layer is trained: its
    /// fit takes seconds to minutes, saves no state and starts over.
    #[serde(skip)]
    pub resume: bool,
}

impl Default for Trainer {
    fn default() -> Self {
        Self {
            architecture: Architecture::default(),
            init: None,
            freeze: None,
            source_classes: None,
            image_size: 224,
            resize: Resize::Squeeze,
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
            precision: TrainingPrecision::F32,
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

/// Metrics of one epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochReport {
    /// From 1.
    pub epoch: usize,
    /// Learning rate of its last step.
    pub learning_rate: f64,
    /// Mean loss over its steps, with augmentation and label smoothing.
    pub train_loss: f64,
    /// Accuracy over its steps; for multi-label data, the share of images whose classes were all right.
    pub train_accuracy: f64,
    /// Mean cross entropy on the validation images; for multi-label data, mean binary cross entropy over images and classes.
    pub val_loss: f64,
    /// Accuracy on the validation images; for multi-label data, the share of images whose classes were all right at a
    /// threshold of one half.
    pub val_accuracy: f64,
    /// Mean average precision on the validation images, for multi-label data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_map: Option<f64>,
    /// Seconds since training began, interruptions left out.
    pub seconds: f64,
    /// Seconds of this epoch in which training waited for a batch.
    #[serde(default)]
    pub waited: f64,
    /// True for the best epoch so far.
    pub best: bool,
}

/// Metrics of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// From 1.
    pub epoch: usize,
    /// From 1, within the epoch.
    pub step: usize,
    /// Steps of the epoch.
    pub steps: usize,
    /// Images of this step: the last one of an epoch may have fewer than [`Trainer::batch_size`].
    pub images: usize,
    /// Mean loss of the epoch so far; on a GPU it is read every 16 steps.
    pub loss: f64,
    /// Accuracy of the epoch so far; on a GPU it is read every 16 steps.
    pub accuracy: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Images per second, the wait for the batch included; on a GPU those of the last 16 steps. That
    /// of the epoch before in an epoch's first step.
    pub images_per_second: f64,
    /// Seconds of the epoch so far in which training waited for a batch.
    pub waited: f64,
}

/// Callbacks that report the progress of a training and may stop it.
///
/// ```no_run
/// use petnet::train::{EpochReport, Observer};
/// use petnet::{Dataset, Trainer};
///
/// struct AccuracyPrinter;
///
/// impl Observer for AccuracyPrinter {
///     fn epoch(&mut self, report: &EpochReport) {
///         println!("epoch {}: {:.1} %", report.epoch, report.val_accuracy * 100.0);
///     }
/// }
///
/// let (train, valid) = Dataset::open("photos")?.split(0.9)?;
/// Trainer::default().fit_observed(&train, &valid, &mut AccuracyPrinter)?;
/// # Ok::<(), petnet::Error>(())
/// ```
pub trait Observer {
    /// Called before kernels are compiled and tuned on a GPU, which precedes the first step.
    fn compilation_started(&mut self) {}
    /// Called after kernels were compiled and tuned, with the seconds that it took.
    fn compilation_finished(&mut self, _seconds: f64) {}
    /// Called after every step.
    fn step(&mut self, _report: &StepReport) {}
    /// Called for every image whose features are computed, where only the last layer is trained.
    fn features(&mut self, _done: usize, _total: usize) {}
    /// Called after every epoch and its validation.
    fn epoch(&mut self, _report: &EpochReport) {}
    /// Called after every step; `true` saves the state and ends with [`Error::Interrupted`]. Where only the last layer is
    /// trained, it is called after each pass over all images, and nothing is saved.
    fn stop(&self) -> bool {
        false
    }
}

/// An [`Observer`] that does nothing.
impl Observer for () {}

/// The result of a training.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// The model with the best [`Monitor`] metric.
    pub best: Checkpoint,
    /// The model at the end.
    pub last: Checkpoint,
    /// One report per epoch.
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
    /// The size of the network's input and the way in which images are resized to it.
    pub fn preprocess(&self) -> Preprocess {
        Preprocess { size: self.image_size, resize: self.resize }
    }

    /// File in [`Trainer::out`] of the best model.
    pub const BEST: &str = "best.safetensors";
    /// File in [`Trainer::out`] of the model after the last completed epoch.
    pub const LAST: &str = "last.safetensors";
    /// File in [`Trainer::out`] of the state that [`Trainer::resume`] reads.
    pub const STATE: &str = "state.safetensors";

    /// Trains on one data set and evaluates each epoch on the other.
    ///
    /// # Errors
    /// [`Error::Config`] for settings out of range, [`Error::Dataset`] when the classes of the two sets differ or one is
    /// empty, [`Error::Diverged`] when the loss is no longer finite (the best model so far is kept in [`Trainer::out`]),
    /// and the errors of reading images, of the device and of the disk.
    pub fn fit(&self, train: &Dataset, valid: &Dataset) -> Result<Fitted> {
        self.fit_observed(train, valid, &mut ())
    }

    /// [`Trainer::fit`] with an [`Observer`].
    ///
    /// # Errors
    /// As [`Trainer::fit`], and [`Error::Interrupted`] when the observer stops the training.
    pub fn fit_observed(
        &self,
        train: &Dataset,
        valid: &Dataset,
        observer: &mut dyn Observer,
    ) -> Result<Fitted> {
        let fitted = match self.start(train, valid)? {
            (Some(initial), Freeze::Backbone) => probe::fit(self, &initial, train, valid, observer),
            (initial, _) => fit::Fit::new(self, initial, train, valid)?.run(observer),
        };
        free_buffers();
        fitted
    }

    /// Refuses settings and data that cannot be trained. Returns the initial weights and the layers of them that are frozen.
    fn start(&self, train: &Dataset, valid: &Dataset) -> Result<(Option<InitialModel>, Freeze)> {
        self.validate()?;
        if train.classes() != valid.classes() {
            return Err(Error::Dataset("training and validation have different classes".into()));
        }
        if train.is_empty() || valid.is_empty() {
            return Err(Error::Dataset("training and validation need images".into()));
        }
        if train.is_multi_label() != valid.is_multi_label() {
            let reason = "one of training and validation is multi-label";
            return Err(Error::Dataset(reason.into()));
        }
        self.validate_task(train)?;
        let graph = self.architecture.graph(train.classes().len())?;
        let initial = self.initial_weights(&graph, train.classes())?;
        self.precision.loss_scale(&self.device.open()?)?;
        let frozen = match initial {
            Some(_) => self.frozen(&graph, train.len()),
            None => Freeze::Nothing,
        };
        self.validate_frozen(frozen)?;
        Ok((initial, frozen))
    }

    /// The initial weights; `None` for random numbers.
    fn initial_weights(&self, graph: &Graph, classes: &[String]) -> Result<Option<InitialModel>> {
        let initial = InitialModel::read(self.init.as_ref(), graph, classes)?;
        let freeze = self.freeze.unwrap_or(Freeze::Nothing);
        if freeze != Freeze::Nothing && initial.is_none() {
            let range = "must be 0 without init: random layers would stay random";
            return Err(Error::Config(format!("freeze is {freeze}, {range}")));
        }
        Ok(initial)
    }

    /// The layers of initial weights that are frozen for a number of training images.
    fn frozen(&self, graph: &Graph, images: usize) -> Freeze {
        /// Images up to which the last layer alone is trained by default.
        const MAX_PROBE_IMAGES: usize = 5000;
        self.freeze.unwrap_or_else(|| match images {
            0..=MAX_PROBE_IMAGES => Freeze::Backbone,
            _ => Freeze::Blocks(graph.blocks().len().saturating_sub(1)),
        })
    }

    /// Writes the best model where there is a new one, and the last.
    fn save_models(&self, best: Option<&Checkpoint>, last: &Checkpoint) -> Result<()> {
        let Some(out) = &self.out else { return Ok(()) };
        if let Some(best) = best {
            best.save(out.join(Self::BEST), Precision::F32)?;
        }
        if !self.save_best_only {
            last.save(out.join(Self::LAST), Precision::F32)?;
        }
        Ok(())
    }

    /// A model with the ranges of its feature maps on some images, where the settings require them.
    fn quantized(&self, model: Checkpoint, images: &Dataset) -> Result<Checkpoint> {
        if self.quantize { model.quantized_on(images, self.preprocess()) } else { Ok(model) }
    }

    /// Side of the network's input in training, in an epoch counted from 0.
    fn size_in(&self, epoch: usize) -> u32 {
        let mut ends = 0.0;
        let stage = self.progressive.iter().find(|stage| {
            ends += stage.share;
            epoch < (ends * self.epochs as f64).round() as usize
        });
        stage.map_or(self.image_size, |stage| stage.size)
    }

    /// Side of the network's input in the evaluation of an epoch: the model's own for epochs of the last training size.
    fn evaluation_size_in(&self, epoch: usize) -> u32 {
        let size = self.size_in(epoch);
        let last = size == self.size_in(self.epochs.saturating_sub(1));
        if last { self.image_size } else { size }
    }
}
