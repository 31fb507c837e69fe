//! The training loop.

use std::time::Instant;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use serde_json::json;

use super::initial::{InitialModel, InitialNetwork, initial_network};
use super::loss::{Loss, Outcome};
use super::precise_bn::precise_bn;
use super::precision::LossScale;
use super::setup::{
    EVALUATION_BATCH, fixed_settings, model_info, optimizer, training_settings, unix_time,
    validation_settings,
};
use super::state::{Progress, State};
use super::tally::{Tally, with_remedy};
use super::teacher::Teacher;
use super::trunk::FrozenTrunk;
use super::validation::ValidationMetrics;
use super::{EpochReport, Fitted, Observer, StepReport, Trainer, clip, ema};
use crate::augment::Key;
use crate::checkpoint::{Checkpoint, ModelInfo};
use crate::dataset::Dataset;
use crate::device::is_on_host;
use crate::error::{Error, Result};
use crate::loader::{Batch, Loader, LoaderSettings};
use crate::nn::run::{rows, to_tensor};
use crate::nn::{Network, weights};
use crate::weights::Weights;

/// A training in progress.
pub(super) struct Fit<'a> {
    trainer: &'a Trainer,
    info: ModelInfo,
    device: Device,
    train: Loader,
    valid: Loader,
    loss: Loss,
    /// Present in mixed precision.
    loss_scale: Option<LossScale>,
    tally: Tally,
    /// Speed between the last two reads of the tally.
    images_per_second: f64,
    /// Time of the last read of the tally.
    last_read: Instant,
    /// Loss of the last step that was read.
    last_loss: f32,
    state: State,
    best: Option<Checkpoint>,
    saved_at: Instant,
    trunk: FrozenTrunk,
    teacher: Option<Teacher>,
    /// Weights of the source head.
    source_head_weights: Weights,
}

impl<'a> Fit<'a> {
    pub(super) fn new(
        trainer: &'a Trainer,
        initial: Option<InitialModel>,
        train: &Dataset,
        valid: &Dataset,
    ) -> Result<Self> {
        let inner_device = trainer.device.open()?;
        let device = inner_device.clone().autodiff();
        let loss_scale = trainer.precision.loss_scale(&inner_device)?;
        let mut info = model_info(trainer, train)?;
        let teacher = trainer.distillation.as_ref();
        let teacher = teacher.map(|teacher| Teacher::load(teacher, &info.labels)).transpose()?;
        let fixed_settings = fixed_settings(&info, valid, initial.as_ref(), teacher.as_ref())?;
        // The initial weights depend on the seed alone.
        device.seed(trainer.seed);
        let InitialNetwork { mut model, trunk, source } =
            initial_network(trainer, initial, &mut info, train, &device)?;
        model.set_mixed_precision(loss_scale.is_some());
        let average = (trainer.ema_decay > 0.0).then(|| model.valid());
        let progress = Progress { fixed_settings, ..Default::default() };
        let optimizer = optimizer(trainer, &model);
        let mut fit = Self {
            trainer,
            info,
            train: Loader::new(train, training_settings(trainer, trainer.size_in(0))),
            valid: Loader::new(valid, validation_settings(trainer, trainer.evaluation_size_in(0))),
            loss: Loss::new(trainer, train, &device),
            loss_scale,
            tally: Tally::new(&inner_device),
            images_per_second: 0.0,
            last_read: Instant::now(),
            last_loss: 0.0,
            device,
            state: State { model, average, optimizer, progress },
            best: None,
            saved_at: Instant::now(),
            trunk,
            teacher,
            source_head_weights: source,
        };
        if let Some(out) = &trainer.out {
            std::fs::create_dir_all(out).map_err(Error::io(out))?;
            let saved = out.join(Trainer::STATE);
            if trainer.resume && saved.is_file() {
                fit.state = fit.state.load(&saved)?;
                let best = out.join(Trainer::BEST);
                fit.best = best.is_file().then(|| Checkpoint::load(&best)).transpose()?;
                let Progress { epoch, step, .. } = fit.state.progress;
                tracing::info!(epoch, step, "resumed");
            }
        }
        Ok(fit)
    }

    pub(super) fn run(mut self, observer: &mut dyn Observer) -> Result<Fitted> {
        self.compile_kernels(observer)?;
        while self.state.progress.epoch < self.trainer.epochs && !self.stops_early() {
            self.resize()?;
            self.train_epoch(observer)?;
            let report = self.finish_epoch()?;
            observer.epoch(&report);
            if observer.stop() && self.state.progress.epoch < self.trainer.epochs {
                return Err(Error::Interrupted);
            }
        }
        let mut last = match self.trainer.precise_bn_images {
            0 => self.checkpoint()?,
            images => self.with_precise_bn(images)?,
        };
        let mut best = self.best.take().unwrap_or_else(|| last.clone());
        if self.trainer.quantize {
            let (images, preprocess) = (self.train.dataset(), self.trainer.preprocess());
            best = best.quantized_on(images, preprocess)?;
            last = last.quantized_on(images, preprocess)?;
            // The files of the epochs have no ranges.
            self.trainer.save_models(Some(&best), &last)?;
        }
        Ok(Fitted { best, last, history: self.state.progress.history })
    }

    /// On a GPU, runs a step and a validation of the first and of the last batch, which may be smaller, and discards the
    /// results, so that kernels are compiled and tuned before the clock starts.
    fn compile_kernels(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let Progress { epoch, step, .. } = self.state.progress;
        if is_on_host(&self.device) || epoch >= self.trainer.epochs {
            return Ok(());
        }
        let began = Instant::now();
        self.resize()?;
        observer.compilation_started();
        // A step changes the running statistics of batch norms, and the loss scale.
        let (weights, loss_scale) = (weights::read(&self.state.model), self.loss_scale.clone());
        let mut optimizer = self.state.optimizer.clone();
        for step in [step, self.train.steps().saturating_sub(1)] {
            let Some(batch) = self.train.epoch(epoch, step).next() else { continue };
            let gradients = self.gradients(batch?)?;
            drop(optimizer.step(0.0, self.state.model.clone(), gradients));
        }
        self.tally.read().map_err(|error| with_remedy(error, self.trainer, self.train.size()))?;
        let network = self.evaluation_network();
        for step in [0, self.valid.steps().saturating_sub(1)] {
            if let Some(batch) = self.valid.epoch(0, step).next() {
                self.logits(&network, batch?.images)?;
            }
        }
        self.loss_scale = loss_scale;
        self.state.model = weights::write(self.state.model.clone(), &weights)
            .map_err(|reason| Error::checkpoint("<network>", reason))?;
        observer.compilation_finished(began.elapsed().as_secs_f64());
        (self.saved_at, self.last_read) = (Instant::now(), Instant::now());
        Ok(())
    }

    /// The last weights with batch-norm statistics re-estimated on whole images. They become the best model where their
    /// metric is the best.
    fn with_precise_bn(&mut self, images: usize) -> Result<Checkpoint> {
        let size = self.trainer.image_size;
        let settings = validation_settings(self.trainer, size);
        self.valid = self.valid.with_settings(settings.clone());
        let uncropped = self.train.with_settings(LoaderSettings { shuffle: true, ..settings });
        let batches = images.div_ceil(EVALUATION_BATCH);
        let model = self.state.model.clone();
        self.state.model = precise_bn(model, &uncropped, batches, &self.device)?;
        let metrics = self.validate()?;
        let (accuracy, log_loss) = (metrics.accuracy, metrics.log_loss);
        tracing::info!(accuracy, log_loss, "batch-norm statistics re-estimated");
        let score = metrics.score(self.trainer.monitor);
        let best = self.state.progress.best_score.is_none_or(|best| score > best);
        self.save(&metrics, self.state.progress.epoch, best)
    }

    /// The model after an epoch, saved; it becomes the best one where its metric is the best.
    fn save(
        &mut self,
        metrics: &ValidationMetrics,
        epoch: usize,
        best: bool,
    ) -> Result<Checkpoint> {
        self.state.progress.metrics = metrics.record(epoch);
        let checkpoint = self.checkpoint()?;
        self.trainer.save_models(best.then_some(&checkpoint), &checkpoint)?;
        if best {
            self.best = Some(checkpoint.clone());
        }
        Ok(checkpoint)
    }

    /// Makes loaders of this epoch's sizes, which decode images anew where these change. Metrics at another size are not
    /// comparable: the best model starts over.
    fn resize(&mut self) -> Result<()> {
        let Progress { epoch, step, .. } = self.state.progress;
        let size = self.trainer.size_in(epoch);
        let evaluation_size = self.trainer.evaluation_size_in(epoch);
        if size as usize != self.train.size() {
            self.train = self.train.with_settings(training_settings(self.trainer, size));
        }
        if evaluation_size as usize != self.valid.size() {
            self.valid =
                self.valid.with_settings(validation_settings(self.trainer, evaluation_size));
        }
        self.trunk.prepare(size as usize)?;
        self.trunk.prepare(evaluation_size as usize)?;
        if epoch > 0 && step == 0 && size != self.trainer.size_in(epoch - 1) {
            self.best = None;
            (self.state.progress.best_score, self.state.progress.epochs_since_best) = (None, 0);
        }
        Ok(())
    }

    /// True where early stopping applies: at the last of several training sizes, as the models of the others are not kept.
    fn stops_early(&self) -> bool {
        let Progress { epoch, .. } = self.state.progress;
        let (patience, last) = (self.trainer.early_stopping, self.trainer.epochs - 1);
        // The count belongs to the epoch that has ended.
        let was_last_size =
            self.trainer.size_in(epoch.saturating_sub(1)) == self.trainer.size_in(last);
        patience > 0 && was_last_size && self.state.progress.epochs_since_best >= patience
    }

    fn train_epoch(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let steps = self.train.steps();
        let Progress { epoch, step, .. } = self.state.progress;
        let mut batches = self.train.epoch(epoch, step);
        loop {
            let began = Instant::now();
            let Some(batch) = batches.next() else { return Ok(()) };
            self.state.progress.waited += began.elapsed().as_secs_f64();
            let rate = self.learning_rate(self.state.progress.updates);
            let batch = batch?;
            let images = batch.targets.len();
            // Entering the thread pool once per step, not once per operation, saves waking its threads each time.
            rayon::scope(|_| self.step(batch, rate))?;
            observer.step(&self.report(rate, images));
            let step = self.state.progress.step;
            let due = self.trainer.save_every > 0 && step.is_multiple_of(self.trainer.save_every);
            let stop = observer.stop() && step < steps;
            if due || stop {
                self.save_state()?;
            }
            if stop {
                return Err(Error::Interrupted);
            }
        }
    }

    /// Runs steps at the given learning rates, until they end or `after_step`, which gets each step's loss, returns
    /// false.
    pub(super) fn steps_at(
        &mut self,
        mut rates: impl Iterator<Item = f64>,
        mut after_step: impl FnMut(f32, &StepReport) -> bool,
    ) -> Result<()> {
        self.resize()?;
        loop {
            for batch in self.train.epoch(self.state.progress.epoch, 0) {
                let Some(rate) = rates.next() else { return Ok(()) };
                let batch = batch?;
                let images = batch.targets.len();
                self.step(batch, rate)?;
                self.read_tally()?;
                if !after_step(self.last_loss, &self.report(rate, images)) {
                    return Ok(());
                }
            }
            self.state.progress.epoch += 1;
        }
    }

    /// Metrics after a step at this learning rate on this number of images.
    fn report(&self, learning_rate: f64, images: usize) -> StepReport {
        let progress = &self.state.progress;
        StepReport {
            epoch: progress.epoch + 1,
            step: progress.step,
            steps: self.train.steps(),
            images,
            loss: progress.loss_sum / progress.images.max(1) as f64,
            accuracy: progress.correct as f64 / progress.images.max(1) as f64,
            learning_rate,
            images_per_second: self.images_per_second,
            waited: progress.waited,
        }
    }

    fn step(&mut self, batch: Batch, rate: f64) -> Result<()> {
        let Progress { epoch, step, updates, .. } = self.state.progress;
        // Dropout draws from the device's generator, which is seeded in each step: no generator state need be saved.
        let key = Key::of_step(self.trainer.seed, epoch, step);
        self.device.seed(rand::Rng::next_u64(&mut key.rng()));
        let gradients = self.gradients(batch)?;
        let model = self.state.model.clone();
        self.state.model = self.state.optimizer.step(rate, model, gradients);
        if let Some(average) = self.state.average.take() {
            let model = self.state.model.valid();
            self.state.average =
                Some(ema::update(average, &model, self.trainer.ema_decay, updates));
        }
        let progress = &mut self.state.progress;
        progress.step += 1;
        progress.updates += 1;
        let first = progress.images == 0;
        if first || self.tally.is_full() {
            self.read_tally()?;
        }
        Ok(())
    }

    /// Gradients of a batch, clipped; its loss and accuracy are added to the tally.
    fn gradients(&mut self, batch: Batch) -> Result<GradientsParams> {
        let Progress { epoch, step, .. } = self.state.progress;
        let (images, size) = (batch.targets.len(), self.train.size());
        let inner_device = self.device.clone().inner();
        let teacher = self.teacher.as_ref();
        let teacher_outputs =
            teacher.map(|teacher| teacher.outputs(&batch.images, size, &inner_device));
        let teacher_outputs = teacher_outputs.transpose()?;
        let features = self.features(batch.images, size); // [n, width]
        let logits = self.state.model.classify(features.clone()); // [n, classes]
        let mut outcome = self.loss.forward(logits.clone(), &batch.targets, batch.own_share);
        if let Some((teacher, outputs)) = teacher.zip(teacher_outputs) {
            let outputs = outputs.map(Tensor::from_inner);
            outcome.loss = teacher.loss(outcome.loss, [logits, features], outputs);
        }
        let loss = outcome.loss.clone();
        self.tally.add(epoch, step, images, Outcome { loss: outcome.loss.inner(), ..outcome });
        let gradients = match &mut self.loss_scale {
            Some(scale) => {
                let gradients = scale.scaled(loss).backward();
                let gradients = GradientsParams::from_grads(gradients, &self.state.model);
                scale.unscaled(gradients, &self.state.model)
            }
            None => GradientsParams::from_grads(loss.backward(), &self.state.model),
        };
        Ok(match self.trainer.grad_clip > 0.0 {
            true => clip::clip(gradients, &self.state.model, self.trainer.grad_clip),
            false => gradients,
        })
    }

    /// Reads the metrics of all steps since the last read.
    fn read_tally(&mut self) -> Result<()> {
        let size = self.train.size();
        let steps = self.tally.read().map_err(|error| with_remedy(error, self.trainer, size))?;
        let progress = &mut self.state.progress;
        let first = progress.images == 0;
        for metrics in &steps {
            progress.loss_sum += f64::from(metrics.loss) * metrics.images as f64;
            progress.correct += metrics.correct;
            progress.images += metrics.images;
        }
        let Some(last) = steps.last() else { return Ok(()) };
        let images: usize = steps.iter().map(|metrics| metrics.images).sum();
        // The time before an epoch's first read includes the validation of the epoch before.
        if !first {
            self.images_per_second = images as f64 / self.last_read.elapsed().as_secs_f64();
        }
        self.last_read = Instant::now();
        self.last_loss = last.loss;
        Ok(())
    }

    /// `[n, size, size, 3]` bytes -> the means of the last feature maps, `[n, width]`. Frozen layers run as in
    /// inference, without gradients.
    fn features(&self, images: Vec<u8>, size: usize) -> Tensor<2> {
        let (model, blocks) = (&self.state.model, self.trunk.blocks());
        if blocks == 0 {
            return model.features(to_tensor(images, size, &self.device));
        }
        let inner_device = self.device.clone().inner();
        let maps = self.trunk.maps(&model.valid(), images, size, &inner_device).lifted();
        model.features_after(maps, blocks) // [n, width]
    }

    /// Learning rate of the step that follows a number of completed ones.
    fn learning_rate(&self, updates: usize) -> f64 {
        let scheduled = self.trainer.scheduled_learning_rate(updates, self.train.steps());
        scheduled * self.state.progress.plateau.factor
    }

    fn finish_epoch(&mut self) -> Result<EpochReport> {
        self.read_tally()?;
        let metrics = self.validate()?;
        // The epoch's last step is already counted.
        let learning_rate = self.learning_rate(self.state.progress.updates.saturating_sub(1));
        let score = metrics.score(self.trainer.monitor);
        let seconds = self.seconds();
        let progress = &mut self.state.progress;
        let best = progress.best_score.is_none_or(|best| score > best);
        progress.plateau.update(self.trainer.schedule, metrics.log_loss);
        if best {
            (progress.best_score, progress.epochs_since_best) = (Some(score), 0);
        } else {
            progress.epochs_since_best += 1;
        }
        let report = EpochReport {
            epoch: progress.epoch + 1,
            learning_rate,
            train_loss: progress.loss_sum / progress.images.max(1) as f64,
            train_accuracy: progress.correct as f64 / progress.images.max(1) as f64,
            val_loss: metrics.log_loss,
            val_accuracy: metrics.accuracy,
            val_map: metrics.mean_average_precision,
            seconds,
            waited: progress.waited,
            best,
        };
        progress.history.push(report.clone());
        progress.epoch += 1;
        (progress.step, progress.loss_sum, progress.waited) = (0, 0.0, 0.0);
        (progress.correct, progress.images) = (0, 0);
        self.save(&metrics, report.epoch, best)?;
        // The state is saved last: a run that is killed before this repeats the end of the epoch when it resumes.
        self.save_state()?;
        Ok(report)
    }

    /// The network that is evaluated and saved: the averaged one where there is one.
    fn evaluation_network(&self) -> Network {
        self.state.average.clone().unwrap_or_else(|| self.state.model.valid())
    }

    /// `[n, size, size, 3]` bytes of validation images -> logits of each image.
    fn logits(&self, network: &Network, images: Vec<u8>) -> Result<Vec<Vec<f32>>> {
        let device = self.device.clone().inner();
        let size = self.valid.size();
        let maps = self.trunk.maps(network, images, size, &device);
        let features = network.features_after(maps, self.trunk.blocks()); // [n, width]
        rows(network.classify(features)).map_err(|error| with_remedy(error, self.trainer, size))
    }

    fn validate(&self) -> Result<ValidationMetrics> {
        let network = self.evaluation_network();
        let (mut probabilities, mut truth) = (Vec::new(), Vec::new());
        for batch in self.valid.epoch(0, 0) {
            let batch = batch?;
            let logits = self.logits(&network, batch.images)?;
            let task = &self.info.task;
            probabilities.extend(logits.iter().map(|logits| task.probabilities(logits, 1.0)));
            truth.extend(batch.targets);
        }
        ValidationMetrics::compute(&self.info.task, &probabilities, &truth)
    }

    /// The network as it is, with the metrics of its last validation.
    fn checkpoint(&self) -> Result<Checkpoint> {
        let network = self.evaluation_network();
        let mut info = self.info.clone();
        info.history = json!(self.state.progress.history);
        info.trained = unix_time();
        info.metrics = self.state.progress.metrics.clone();
        let mut all = weights::read(&network);
        all.extend(self.source_head_weights.clone());
        Checkpoint::new(info, all).map_err(|reason| Error::checkpoint("<network>", reason))
    }

    fn save_state(&mut self) -> Result<()> {
        // Fails where a loss was not finite: such a state must not be saved.
        self.read_tally()?;
        self.state.progress.seconds = self.seconds();
        self.saved_at = Instant::now();
        match &self.trainer.out {
            Some(out) => self.state.save(&out.join(Trainer::STATE)),
            None => Ok(()),
        }
    }

    fn seconds(&self) -> f64 {
        self.state.progress.seconds + self.saved_at.elapsed().as_secs_f64()
    }
}
