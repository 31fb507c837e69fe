//! `fit`: train a network on a prepared data set.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use indicatif::ProgressBar;
use petnet::train::{EpochReport, Observer, StepReport};
use petnet::{Calibration, Classifier, Dataset, Device, Error, Precision, Trainer};

use crate::config::Config;
use crate::data;
use crate::files;
use crate::metrics::Metrics;
use crate::report::charts;
use crate::report::evaluation::{AnyEvaluation, EvaluationReport, Subject, track_mistakes};
use crate::terminal::{self, Output};
use crate::tracking::{self, Run, Status, Tracker, Tracking};

/// Train a network and write the model, its curves and a report
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train fit --config configs/quickstart.yaml
  petnet-train fit --config configs/train.yaml --epochs 5 --out models/short
  petnet-train fit --config configs/train.yaml --resume
  petnet-train fit --config configs/train.yaml --set learning_rate=0.004 --set scheduler.patience=2")]
pub(crate) struct Fit {
    /// Settings file; every key has the default of configs/train.yaml
    #[arg(long)]
    config: Option<PathBuf>,
    /// Prepared folder, or a folder or zip with one folder per class, of which one tenth is validation [default: data_dir]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder to write models, curves and the report to [default: checkpoint.save_dir]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Set one key, over the settings file; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Number of passes over the training images [default: num_epochs]
    #[arg(long)]
    epochs: Option<usize>,
    /// Device to compute on: auto, cpu, ndarray, wgpu or wgpu:N (discrete GPU N, from 0)
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Serve metrics of the training for Prometheus on this address, e.g. 127.0.0.1:9464
    #[arg(long, value_name = "HOST:PORT")]
    metrics_addr: Option<SocketAddr>,
    /// Name of the run in the tracking store [default: the network and its input size]
    #[arg(long)]
    run_name: Option<String>,
    /// Continue a killed or interrupted run with the same settings; the weights end the same to the bit on one CPU device
    #[arg(long)]
    resume: bool,
}

impl Fit {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let mut config = Config::load(self.config.as_deref(), &self.sets)?;
        terminal::start_log(output, &config.program.logging.level);
        config.trainer.epochs = self.epochs.unwrap_or(config.trainer.epochs);
        config.program.data_dir = self.data.unwrap_or(config.program.data_dir);
        config.program.checkpoint.save_dir = self.out.unwrap_or(config.program.checkpoint.save_dir);
        let (train, valid) = data::open(&config.program.data_dir, config.program.multi_label)?;
        let mut trainer = config.trainer(train.classes().len(), self.device)?;
        trainer.resume = self.resume;
        if self.device == Device::NdArray {
            tracing::warn!("ndarray trains about 30 times slower than cpu");
        }
        tracing::info!(settings = %serde_json::to_string(&config.to_value()?)?, "training");
        let name = self.run_name.unwrap_or_else(|| config.run_name());
        let mut tracker = None;
        if let Some(tracking) = Tracking::open(&config.program.mlflow)? {
            let out = &config.program.checkpoint.save_dir;
            tracker
                .insert(Tracker::begin(&tracking, &name, out, self.resume)?)
                .record(|run| describe(run, &config, &train, &valid));
        }
        let log_every = config.program.logging.log_every_n_steps;
        let mut watcher = Watcher::new(trainer.epochs, log_every, output, tracker)?;
        watcher.metrics =
            self.metrics_addr.map(|address| Metrics::serve(address, trainer.epochs)).transpose()?;
        let outcome = fit(&config, &trainer, &train, &valid, &mut watcher);
        if let Some(tracker) = watcher.tracker.take() {
            tracing::info!(run = tracker.run_id(), "tracked");
            tracker.finish(match &outcome {
                Ok(()) => Status::Finished,
                Err(e) if matches!(e.downcast_ref(), Some(Error::Interrupted)) => Status::Killed,
                Err(_) => Status::Failed,
            });
        }
        outcome
    }
}

/// Trains, calibrates and evaluates, then writes the results to the folder and the tracked run.
fn fit(
    config: &Config,
    trainer: &Trainer,
    train: &Dataset,
    valid: &Dataset,
    watcher: &mut Watcher,
) -> Result<()> {
    let fitted = trainer.fit_observed(train, valid, watcher)?;
    watcher.finish();
    let out = &config.program.checkpoint.save_dir;
    let source_classes = trainer.source_classes.clone();
    let calibration = Calibration { device: trainer.device, source_classes };
    let best = fitted.best.calibrated(train, valid, &calibration)?;
    let file = out.join(Trainer::BEST);
    best.save(&file, Precision::F32)?;
    if !trainer.save_best_only {
        let last = fitted.last.calibrated(train, valid, &calibration)?;
        last.save(out.join(Trainer::LAST), Precision::F32)?;
    }
    let classifier = Classifier::new(best, trainer.device)?;
    let evaluation = AnyEvaluation::of(&classifier, valid, |_| ())?;
    let dataset_name = format!("{} (val)", config.program.data_dir.display());
    let subject =
        Subject { classifier: &classifier, dataset: valid, dataset_name, ood_inputs: &[] };
    let report = EvaluationReport::of(subject, &evaluation)?;
    let mut results = vec![
        ("loss_curves.png", charts::loss_curves_png(&fitted.history)?),
        ("metrics.json", files::json(&report.figures)?),
        ("history.json", files::json(&fitted.history)?),
        ("report.html", report.page.into_bytes()),
    ];
    results.extend(report.confusion_matrix.map(|matrix| ("confusion_matrix.npy", matrix)));
    for (name, bytes) in &results {
        files::write(&out.join(name), bytes)?;
    }
    if let Some(tracker) = &mut watcher.tracker {
        tracker.record(|run| {
            results.iter().try_for_each(|(name, bytes)| run.artifact(name, bytes))?;
            run.artifact("config.yaml", serde_yaml::to_string(&config.to_value()?)?.as_bytes())?;
            track_mistakes(run, "mistakes", &report.mistakes)?;
            tracking::log_model(run, &std::fs::read(&file)?, classifier.info())
        });
    }
    if watcher.output.json {
        say!("{}", report.figures);
    } else {
        say!("best validation {}; wrote {}", evaluation.summary(), file.display());
    }
    Ok(())
}

/// Records settings and data sets of a run.
fn describe(run: &Run, config: &Config, train: &Dataset, valid: &Dataset) -> Result<()> {
    for (key, value) in tracking::flatten(&serde_json::to_value(config.to_value()?)?) {
        run.param(&key, &value)?;
    }
    let (path, name) = (&config.program.data_dir, config.program.data_dir.display().to_string());
    run.input(&tracking::input(train, &name, path), "training")?;
    run.input(&tracking::input(valid, &name, path), "validation")
}

/// Observes a training: draws the progress bar, prints a line per epoch, records metrics, handles Ctrl-C.
pub(crate) struct Watcher {
    bar: ProgressBar,
    epochs: usize,
    log_every: usize,
    stop: Arc<AtomicBool>,
    output: Output,
    tracker: Option<Tracker>,
    metrics: Option<Metrics>,
}

impl Watcher {
    pub(crate) fn new(
        epochs: usize,
        log_every: usize,
        output: Output,
        tracker: Option<Tracker>,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let requested = Arc::clone(&stop);
        // The first Ctrl-C stops after the current step with the state saved; the second one exits immediately.
        ctrlc::set_handler(move || {
            if requested.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        })?;
        let bar = terminal::bar(0, "", output);
        Ok(Self { bar, epochs, log_every, stop, output, tracker, metrics: None })
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Watcher {
    fn compilation_started(&mut self) {
        self.bar.set_prefix("compiling and choosing GPU kernels");
        tracing::info!("compiling and choosing GPU kernels; they are cached for the next training");
    }

    fn compilation_finished(&mut self, seconds: f64) {
        tracing::info!(seconds, "GPU kernels are ready");
    }

    fn step(&mut self, report: &StepReport) {
        if let Some(tracker) = &mut self.tracker {
            tracker.step(report);
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.step(report);
        }
        self.bar.set_length(report.steps as u64);
        self.bar.set_position(report.step as u64);
        self.bar.set_prefix(format!("epoch {}/{}", report.epoch, self.epochs));
        self.bar.set_message(format!(
            "loss {:.3} acc {:.3} {:.0} images/s",
            report.loss, report.accuracy, report.images_per_second
        ));
        if self.log_every > 0 && report.step.is_multiple_of(self.log_every) {
            tracing::info!(
                epoch = report.epoch,
                step = report.step,
                loss = report.loss,
                accuracy = report.accuracy,
                learning_rate = report.learning_rate,
                images_per_second = report.images_per_second
            );
        }
    }

    fn features(&mut self, done: usize, total: usize) {
        self.bar.set_prefix("features");
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
    }

    fn epoch(&mut self, report: &EpochReport) {
        if let Some(tracker) = &mut self.tracker {
            tracker.epoch(report);
        }
        if let Some(metrics) = &mut self.metrics {
            metrics.epoch(report);
        }
        if self.output.quiet || self.output.json {
            return;
        }
        let line = format!(
            "epoch {:3}  train loss {:.4} acc {:.2} %  val loss {:.4} acc {:.2} %{}  lr {:.2e}  {:.0} s{}",
            report.epoch,
            report.train_loss,
            report.train_accuracy * 100.0,
            report.val_loss,
            report.val_accuracy * 100.0,
            report.val_map.map_or(String::new(), |map| format!(" mAP {:.2} %", map * 100.0)),
            report.learning_rate,
            report.seconds,
            if report.best { "  best" } else { "" }
        );
        self.bar.suspend(|| say!("{line}"));
    }

    fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
