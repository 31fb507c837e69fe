//! Training of the last layer alone: the features of frozen layers are computed once, and the layer is fitted to them
//! by logistic regression. The model is a good start for fine-tuning (Kumar et al., "Fine-tuning can distort pretrained
//! features and underperform out-of-distribution", 2022).

use std::time::{Instant, SystemTime};

use serde_json::json;

use super::setup::{class_weights, describe};
use super::start::Given;
use super::{EpochReport, Fitted, Observer, Trainer};
use crate::augment::Augment;
use crate::checkpoint::{Checkpoint, Precision};
use crate::classifier::Classifier;
use crate::dataset::Dataset;
use crate::engine::Head;
use crate::error::{Error, Result};
use crate::logistic::{Choice, Linear, Samples};
use crate::metrics::Metrics;
use crate::prediction::softmax;
use crate::weights::Weight;

/// Images whose mirror images are fitted to as well; with more, they hardly change the layer.
const MIRRORED: usize = 5000;
/// Images that are enough to know the training loss.
const ENOUGH: usize = 6000;

/// Features of images and their classes.
struct Features {
    /// `[n, width]`, row by row.
    values: Vec<f32>,
    classes: Vec<usize>,
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
        let mut features = Self { values: Vec::new(), classes: Vec::with_capacity(all) };
        for augment in passes {
            classifier.each_output(dataset, augment, |outputs, class| {
                features.values.extend(head.last_inputs(outputs.features));
                features.classes.push(class);
                observer.features(features.classes.len(), all);
            })?;
            if observer.stop() {
                return Err(Error::Interrupted);
            }
        }
        Ok(features)
    }
}

/// A model whose last layer is fitted by logistic regression to the features of the others, and its figures on training
/// images, from the same features.
fn with_last_layer(
    model: Checkpoint,
    train: &Dataset,
    trainer: &Trainer,
    observer: &mut dyn Observer,
) -> Result<(Checkpoint, Metrics)> {
    let features = Features::of(&model, train, trainer, observer)?;
    let classes = train.classes().len();
    let class_weights = trainer.balanced.then(|| class_weights(train));
    let width = features.values.len() / features.classes.len().max(1);
    let samples = |images: usize| Samples {
        width,
        features: &features.values[..images * width],
        targets: &features.classes[..images],
        classes,
        class_weights: class_weights.as_deref(),
    };
    // An image and its mirror image in different folds would favour a weak penalty.
    let Choice { l2, accuracy } = Linear::choose_penalty(&samples(train.len()), trainer.seed);
    tracing::info!(l2, accuracy, images = train.len(), "last layer by logistic regression");
    let linear = Linear::fit(&samples(features.classes.len()), l2, None);
    let Linear { weights, bias } = linear;
    let shape = [width, classes];
    let model = model.with_last_layer(
        Weight { shape: shape.to_vec(), values: weights },
        Weight { shape: vec![classes], values: bias },
    )?;
    let head = head(&model)?;
    let rows = features.values.chunks_exact(width).zip(&features.classes).take(train.len());
    let rows = rows.step_by(train.len().div_ceil(ENOUGH));
    let answers = rows.map(|(row, class)| (softmax(&head.last_logits(row), 1.0), *class));
    let (probabilities, truth): (Vec<_>, Vec<_>) = answers.unzip();
    let metrics = Metrics::compute(&probabilities, &truth, classes);
    Ok((model, metrics))
}

/// The layers of a model behind its global average pool.
fn head(model: &Checkpoint) -> Result<Head> {
    Head::new(&model.info().graph, model.weights())
        .map_err(|reason| Error::checkpoint("<model>", reason))
}

/// The model that training starts from, with a last layer of zeros for the data's classes.
fn prepared(given: &Given, train: &Dataset, trainer: &Trainer) -> Result<Checkpoint> {
    let model = given.model(describe(trainer, train)?)?;
    if trainer.quantize { model.quantized_on(train, trainer.preprocess) } else { Ok(model) }
}

/// Trains the last layer alone.
pub(super) fn fit(
    trainer: &Trainer,
    given: &Given,
    (train, valid): (&Dataset, &Dataset),
    observer: &mut dyn Observer,
) -> Result<Fitted> {
    let began = Instant::now();
    let model = prepared(given, train, trainer)?;
    let source = given.kept_head(trainer, model.info().graph.pool() + 1)?;
    let (model, seen) = with_last_layer(model, train, trainer, observer)?;
    let classifier = Classifier::new(model.clone(), trainer.device)?;
    let metrics = classifier.evaluate(valid, |_| ())?.metrics();
    let report = EpochReport {
        epoch: 1,
        learning_rate: 0.0,
        train_loss: seen.log_loss,
        train_accuracy: seen.accuracy,
        val_loss: metrics.log_loss,
        val_accuracy: metrics.accuracy,
        seconds: began.elapsed().as_secs_f64(),
        waited: 0.0,
        best: true,
    };
    observer.epoch(&report);
    let figures = serde_json::to_value(&metrics).map_err(|e| Error::Config(e.to_string()))?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok();
    let mut model = model.with_record(|info| {
        info.history = json!([report]);
        info.metrics = json!({ "epoch": 1, "validation": figures });
        info.trained = since.map(|since| since.as_secs());
    })?;
    if let Some((head, weights)) = source {
        model = model.with_source(head, weights)?;
        if trainer.quantize {
            // Feature maps that only the source head has need ranges, too.
            model = model.quantized_on(train, trainer.preprocess)?;
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
