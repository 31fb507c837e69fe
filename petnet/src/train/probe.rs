//! Linear probing: training of the last layer alone. The features of the frozen layers are computed once, and the layer is
//! fitted to them by logistic regression. The model is also a good initialisation for fine-tuning (Kumar et al.,
//! "Fine-tuning can distort pretrained features and underperform out-of-distribution", 2022).

use std::time::Instant;

use serde_json::json;

use super::initial::InitialModel;
use super::setup::{class_weights, model_info, unix_time};
use super::validation::ValidationMetrics;
use super::{EpochReport, Fitted, Observer, Trainer};
use crate::augment::Augment;
use crate::checkpoint::Checkpoint;
use crate::classifier::Classifier;
use crate::dataset::{Dataset, Target};
use crate::engine::Head;
use crate::error::{Error, Result};
use crate::logistic::{ChosenPenalty, Linear, Samples};
use crate::weights::Weight;

/// Largest number of images for which their mirror images are used too; for more they hardly change the layer.
const MAX_MIRRORED_IMAGES: usize = 5000;
/// Largest number of images on which the training loss is measured.
const MAX_TRAIN_LOSS_IMAGES: usize = 6000;

/// Features of images and their classes.
struct Features {
    /// `[n, width]`, row by row.
    values: Vec<f32>,
    width: usize,
    targets: Vec<Target>,
}

impl Features {
    /// The inputs of a model's last layer.
    fn of(
        model: &Checkpoint,
        dataset: &Dataset,
        trainer: &Trainer,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let head = head(model)?;
        let classifier = Classifier::new(model.clone(), trainer.device)?;
        let mirrored = Augment { horizontal_flip: 1.0, ..Augment::none() };
        let passes = match dataset.len() {
            0..=MAX_MIRRORED_IMAGES if trainer.augment.horizontal_flip > 0.0 => {
                vec![Augment::none(), mirrored]
            }
            _ => vec![Augment::none()],
        };
        let total = passes.len() * dataset.len();
        let (values, targets) = (Vec::new(), Vec::with_capacity(total));
        let mut features = Self { values, width: 0, targets };
        for augment in passes {
            classifier.each_output(dataset, augment, |outputs, target| {
                features.values.extend(head.last_inputs(outputs.features));
                features.targets.push(target.clone());
                observer.features(features.targets.len(), total);
            })?;
            if observer.stop() {
                return Err(Error::Interrupted);
            }
        }
        features.width = features.values.len() / features.targets.len().max(1);
        Ok(features)
    }

    /// A layer for single-label data. The penalty is chosen on the first `images`, without their mirror images: an image
    /// and its mirror image in different folds would favour a penalty that is too weak.
    fn fit_single_label(
        &self,
        classes: usize,
        images: usize,
        seed: u64,
        class_weights: Option<&[f32]>,
    ) -> Linear {
        let targets: Vec<usize> = self.targets.iter().filter_map(Target::class).collect();
        let samples = |images: usize| self.samples(&targets[..images], classes, class_weights);
        let ChosenPenalty { l2, accuracy } = Linear::choose_penalty(&samples(images), seed);
        tracing::info!(l2, accuracy, images, "last layer by logistic regression");
        Linear::fit(&samples(targets.len()), l2, None)
    }

    /// A layer for multi-label data, with one binary classifier per class in its columns. The penalty is chosen for the
    /// class whose share of the first `images` is closest to one half.
    fn fit_multi_label(&self, classes: usize, images: usize, seed: u64) -> Linear {
        // 1 for the images that have a class, 0 for the others.
        let binary_targets = |class: usize| {
            let targets = self.targets.iter();
            targets.map(|target| usize::from(target.classes().contains(&class))).collect::<Vec<_>>()
        };
        let imbalance = |class: &usize| {
            let first = self.targets.iter().take(images);
            (2 * first.filter(|target| target.classes().contains(class)).count()).abs_diff(images)
        };
        let targets = binary_targets((0..classes).min_by_key(imbalance).unwrap_or(0));
        let choice = Linear::choose_penalty(&self.samples(&targets[..images], 2, None), seed);
        tracing::info!(l2 = choice.l2, images, "last layer by logistic regression, class by class");
        let mut layer =
            Linear { weights: vec![0.0; self.width * classes], bias: vec![0.0; classes] };
        for class in 0..classes {
            let targets = binary_targets(class);
            let samples = self.samples(&targets, 2, None);
            let Linear { weights, bias } = Linear::fit(&samples, choice.l2, None);
            // The sigmoid of the difference is the softmax of the two.
            layer.bias[class] = bias[1] - bias[0];
            for (row, pair) in weights.as_chunks::<2>().0.iter().enumerate() {
                layer.weights[row * classes + class] = pair[1] - pair[0];
            }
        }
        layer
    }

    /// The first images, as many as there are `targets`, as samples of these classes.
    fn samples<'a>(
        &'a self,
        targets: &'a [usize],
        classes: usize,
        class_weights: Option<&'a [f32]>,
    ) -> Samples<'a> {
        let features = &self.values[..targets.len() * self.width];
        Samples { features, width: self.width, targets, classes, class_weights }
    }
}

/// A model whose last layer is fitted by logistic regression to the features of the layers before it, and its metrics on
/// training images, from the same features.
fn with_last_layer(
    model: Checkpoint,
    train: &Dataset,
    trainer: &Trainer,
    observer: &mut dyn Observer,
) -> Result<(Checkpoint, ValidationMetrics)> {
    let features = Features::of(&model, train, trainer, observer)?;
    let classes = train.classes().len();
    let class_weights = trainer.balanced.then(|| class_weights(train));
    let Linear { weights, bias } = match train.is_multi_label() {
        false => {
            features.fit_single_label(classes, train.len(), trainer.seed, class_weights.as_deref())
        }
        true => features.fit_multi_label(classes, train.len(), trainer.seed),
    };
    let model = model.with_last_layer(
        Weight { shape: vec![features.width, classes], values: weights },
        Weight { shape: vec![classes], values: bias },
    )?;
    let head = head(&model)?;
    let rows =
        features.values.chunks_exact(features.width).zip(&features.targets).take(train.len());
    let rows = rows.step_by(train.len().div_ceil(MAX_TRAIN_LOSS_IMAGES));
    let task = &model.info().task;
    let probabilities_of = |row: &[f32]| task.probabilities(&head.last_logits(row), 1.0);
    let (probabilities, truth): (Vec<_>, Vec<Target>) =
        rows.map(|(row, target)| (probabilities_of(row), target.clone())).unzip();
    let metrics = ValidationMetrics::compute(task, &probabilities, &truth)?;
    Ok((model, metrics))
}

/// The layers of a model after its global average pool.
fn head(model: &Checkpoint) -> Result<Head> {
    Head::new(&model.info().graph, model.weights())
        .map_err(|reason| Error::checkpoint("<model>", reason))
}

/// Trains the last layer alone. No state is saved on the way, and none is resumed.
pub(super) fn fit(
    trainer: &Trainer,
    initial: &InitialModel,
    train: &Dataset,
    valid: &Dataset,
    observer: &mut dyn Observer,
) -> Result<Fitted> {
    let began = Instant::now();
    let model = trainer.quantized(initial.model(model_info(trainer, train)?)?, train)?;
    let source = initial.required_source_head(trainer, model.info().graph.global_pool() + 1)?;
    let (model, train_metrics) = with_last_layer(model, train, trainer, observer)?;
    let classifier = Classifier::new(model.clone(), trainer.device)?;
    let metrics = match valid.is_multi_label() {
        false => ValidationMetrics::single_label(&classifier.evaluate(valid, |_| ())?.metrics())?,
        true => {
            let evaluation = classifier.evaluate_labels(valid, |_| ())?;
            ValidationMetrics::multi_label(&evaluation.metrics())?
        }
    };
    let report = EpochReport {
        epoch: 1,
        learning_rate: 0.0,
        train_loss: train_metrics.log_loss,
        train_accuracy: train_metrics.accuracy,
        val_loss: metrics.log_loss,
        val_accuracy: metrics.accuracy,
        val_map: metrics.mean_average_precision,
        seconds: began.elapsed().as_secs_f64(),
        waited: 0.0,
        best: true,
    };
    observer.epoch(&report);
    let record = metrics.record(1);
    let mut model = model.with_info(|info| {
        info.history = json!([report]);
        info.metrics = record;
        info.trained = unix_time();
    })?;
    if let Some((head, weights)) = source {
        // The feature maps of the source head need ranges too.
        model = trainer.quantized(model.with_source(head, weights)?, train)?;
    }
    if let Some(out) = &trainer.out {
        std::fs::create_dir_all(out).map_err(Error::io(out))?;
        trainer.save_models(Some(&model), &model)?;
    }
    Ok(Fitted { best: model.clone(), last: model, history: vec![report] })
}
