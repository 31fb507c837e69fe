//! Linear probing: training of the last layer alone. The features of the frozen layers are computed once, and the layer is
//! fitted to them by logistic regression. The model is also a good initialisation for fine-tuning (Kumar et al.,
//! "Fine-tuning can distort pretrained features and underperform out-of-distribution", 2022).

use std::time::{Instant, SystemTime};

use serde_json::json;

use super::setup::{class_weights, describe};
use super::start::InitialWeights;
use super::validation::ValidationMetrics;
use super::{EpochReport, Fitted, Observer, Trainer};
use crate::augment::Augment;
use crate::checkpoint::{Checkpoint, Precision};
use crate::classifier::Classifier;
use crate::dataset::{Dataset, Target};
use crate::engine::Head;
use crate::error::{Error, Result};
use crate::logistic::{Choice, Linear, Samples};
use crate::weights::Weight;

/// Largest number of images for which their mirror images are used too; for more they hardly change the layer.
const MIRRORED: usize = 5000;
/// Number of images on which the training loss is measured.
const ENOUGH: usize = 6000;

/// Features of images and their classes.
struct Features {
    /// `[n, width]`, row by row.
    values: Vec<f32>,
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
            0..=MIRRORED if trainer.augment.horizontal_flip > 0.0 => {
                vec![Augment::none(), mirrored]
            }
            _ => vec![Augment::none()],
        };
        let all = passes.len() * dataset.len();
        let mut features = Self { values: Vec::new(), targets: Vec::with_capacity(all) };
        for augment in passes {
            classifier.each_output(dataset, augment, |outputs, target| {
                features.values.extend(head.last_inputs(outputs.features));
                features.targets.push(target.clone());
                observer.features(features.targets.len(), all);
            })?;
            if observer.stop() {
                return Err(Error::Interrupted);
            }
        }
        Ok(features)
    }
}

impl Features {
    /// A layer for single-label data. The penalty is chosen on the first `images`, without their mirror images: an image
    /// and its mirror image in different folds would favour a penalty that is too weak.
    fn one_layer(
        &self,
        (width, classes): (usize, usize),
        images: usize,
        seed: u64,
        class_weights: Option<&[f32]>,
    ) -> Linear {
        let targets: Vec<usize> = self.targets.iter().filter_map(Target::class).collect();
        let samples = |images: usize| Samples {
            width,
            features: &self.values[..images * width],
            targets: &targets[..images],
            classes,
            class_weights,
        };
        let Choice { l2, accuracy } = Linear::choose_penalty(&samples(images), seed);
        tracing::info!(l2, accuracy, images, "last layer by logistic regression");
        Linear::fit(&samples(targets.len()), l2, None)
    }

    /// A layer for multi-label data, with one binary classifier per class in its columns. The penalty is chosen for the
    /// class whose share of the first `images` is closest to one half.
    fn one_column_per_class(
        &self,
        (width, classes): (usize, usize),
        images: usize,
        seed: u64,
    ) -> Linear {
        let has = |class: usize| {
            let targets = self.targets.iter();
            targets.map(|target| usize::from(target.classes().contains(&class))).collect::<Vec<_>>()
        };
        let uneven = |class: &usize| {
            let own = self.targets.iter().take(images);
            (2 * own.filter(|target| target.classes().contains(class)).count()).abs_diff(images)
        };
        let targets = has((0..classes).min_by_key(uneven).unwrap_or(0));
        let choice = Linear::choose_penalty(&self.binary(width, &targets[..images]), seed);
        tracing::info!(l2 = choice.l2, images, "last layer by logistic regression, class by class");
        let mut layer = Linear { weights: vec![0.0; width * classes], bias: vec![0.0; classes] };
        for class in 0..classes {
            let targets = has(class);
            let Linear { weights, bias } =
                Linear::fit(&self.binary(width, &targets), choice.l2, None);
            // The sigmoid of the difference is the softmax of the two.
            layer.bias[class] = bias[1] - bias[0];
            for (row, pair) in weights.as_chunks::<2>().0.iter().enumerate() {
                layer.weights[row * classes + class] = pair[1] - pair[0];
            }
        }
        layer
    }

    /// The first images as samples of two classes: those that have a class (1) and those that do not (0).
    fn binary<'a>(&'a self, width: usize, targets: &'a [usize]) -> Samples<'a> {
        let features = &self.values[..targets.len() * width];
        Samples { width, features, targets, classes: 2, class_weights: None }
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
    let width = features.values.len() / features.targets.len().max(1);
    let weights = class_weights.as_deref();
    let Linear { weights, bias } = match train.is_multi_label() {
        false => features.one_layer((width, classes), train.len(), trainer.seed, weights),
        true => features.one_column_per_class((width, classes), train.len(), trainer.seed),
    };
    let shape = [width, classes];
    let model = model.with_last_layer(
        Weight { shape: shape.to_vec(), values: weights },
        Weight { shape: vec![classes], values: bias },
    )?;
    let head = head(&model)?;
    let rows = features.values.chunks_exact(width).zip(&features.targets).take(train.len());
    let rows = rows.step_by(train.len().div_ceil(ENOUGH));
    let task = &model.info().task;
    let probabilities_of = |row: &[f32]| task.probabilities(&head.last_logits(row), 1.0);
    let (probabilities, truth): (Vec<_>, Vec<Target>) =
        rows.map(|(row, target)| (probabilities_of(row), target.clone())).unzip();
    let metrics = ValidationMetrics::compute(task, &probabilities, &truth);
    Ok((model, metrics))
}

/// The layers of a model after its global average pool.
fn head(model: &Checkpoint) -> Result<Head> {
    Head::new(&model.info().graph, model.weights())
        .map_err(|reason| Error::checkpoint("<model>", reason))
}

/// The model with the initial weights, and with a last layer of zeros for the data's classes.
fn prepared(initial: &InitialWeights, train: &Dataset, trainer: &Trainer) -> Result<Checkpoint> {
    let model = initial.model(describe(trainer, train)?)?;
    if trainer.quantize { model.quantized_on(train, trainer.preprocess()) } else { Ok(model) }
}

/// Trains the last layer alone.
pub(super) fn fit(
    trainer: &Trainer,
    initial: &InitialWeights,
    (train, valid): (&Dataset, &Dataset),
    observer: &mut dyn Observer,
) -> Result<Fitted> {
    let began = Instant::now();
    let model = prepared(initial, train, trainer)?;
    let source = initial.required_source_head(trainer, model.info().graph.pool() + 1)?;
    let (model, seen) = with_last_layer(model, train, trainer, observer)?;
    let classifier = Classifier::new(model.clone(), trainer.device)?;
    let metrics = match valid.is_multi_label() {
        false => ValidationMetrics::SingleLabel(classifier.evaluate(valid, |_| ())?.metrics()),
        true => ValidationMetrics::MultiLabel(classifier.evaluate_labels(valid, |_| ())?.metrics()),
    };
    let report = EpochReport {
        epoch: 1,
        learning_rate: 0.0,
        train_loss: seen.log_loss(),
        train_accuracy: seen.accuracy(),
        val_loss: metrics.log_loss(),
        val_accuracy: metrics.accuracy(),
        val_map: metrics.mean_average_precision(),
        seconds: began.elapsed().as_secs_f64(),
        waited: 0.0,
        best: true,
    };
    observer.epoch(&report);
    let record = metrics.record(1)?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok();
    let mut model = model.with_info(|info| {
        info.history = json!([report]);
        info.metrics = record;
        info.trained = since.map(|since| since.as_secs());
    })?;
    if let Some((head, weights)) = source {
        model = model.with_source(head, weights)?;
        if trainer.quantize {
            // The feature maps of the source head need ranges too.
            model = model.quantized_on(train, trainer.preprocess())?;
        }
    }
    if let Some(out) = &trainer.out {
        std::fs::create_dir_all(out).map_err(Error::io(out))?;
        model.save(out.join(Trainer::BEST), Precision::F32)?;
        if !trainer.save_best_only {
            model.save(out.join(Trainer::LAST), Precision::F32)?;
        }
    }
    Ok(Fitted { best: model.clone(), last: model, history: vec![report] })
}
