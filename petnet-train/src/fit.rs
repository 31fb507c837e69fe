//! `fit`: train a network on a prepared data set.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use indicatif::ProgressBar;
use petnet::dataset::Split;
use petnet::train::{EpochReport, Observer, StepReport};
use petnet::{Classifier, Dataset, Device, Precision, Trainer};

use crate::config::Config;
use crate::report::{charts, files};
use crate::{Output, terminal};

/// Train a network.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train fit --config configs/quickstart.yaml
  petnet-train fit --config configs/train.yaml --epochs 5 --out models/short
  petnet-train fit --config configs/train.yaml --resume")]
pub(crate) struct Fit {
    /// Settings; every key of configs/train.yaml may be left out
    #[arg(long)]
    config: Option<PathBuf>,
    /// Prepared folder, or a plain folder or zip per class (split 9 to 1) [default: data_dir]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder for models and curves [default: checkpoint.save_dir]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Passes over the photos [default: num_epochs]
    #[arg(long)]
    epochs: Option<usize>,
    /// auto, cpu, ndarray, wgpu or wgpu:N
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Go on from where a killed or interrupted run with the same settings stopped
    #[arg(long)]
    resume: bool,
}

impl Fit {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let mut config = self.config.as_deref().map(Config::load).transpose()?.unwrap_or_default();
        terminal::start_log(output, config.log_level());
        config.num_epochs = self.epochs.unwrap_or(config.num_epochs);
        config.data_dir = self.data.unwrap_or(config.data_dir);
        config.checkpoint.save_dir = self.out.unwrap_or(config.checkpoint.save_dir);
        let (train, valid) = open(&config.data_dir)?;
        let mut trainer = config.trainer(train.classes().len(), self.device)?;
        trainer.resume = self.resume;
        if self.device == Device::NdArray {
            tracing::warn!("ndarray trains some 30 times slower than cpu");
        }
        tracing::info!(settings = %serde_json::to_string(&config)?, "training");
        let mut watcher = Watcher::new(trainer.epochs, config.log_every(), output)?;
        let fitted = trainer.fit_observed(&train, &valid, &mut watcher)?;
        watcher.finish();
        let out = &config.checkpoint.save_dir;
        let best = fitted.best.calibrated(&train, &valid, self.device)?;
        best.save(out.join(Trainer::BEST), Precision::F32)?;
        if !trainer.save_best_only {
            let last = fitted.last.calibrated(&train, &valid, self.device)?;
            last.save(out.join(Trainer::LAST), Precision::F32)?;
        }
        let metrics = Classifier::new(best, self.device)?.evaluate(&valid, |_| ())?.metrics();
        files::write(&out.join("loss_curves.png"), &charts::loss_curves_png(&fitted.history)?)?;
        files::write(&out.join("confusion_matrix.npy"), &files::npy(&metrics.confusion_matrix))?;
        files::write_json(&out.join("metrics.json"), &metrics)?;
        if output.json {
            println!("{}", serde_json::to_string(&metrics)?);
        } else {
            println!(
                "best validation accuracy {:.2} % (log loss {:.4}); wrote {}",
                metrics.accuracy * 100.0,
                metrics.log_loss,
                out.join(Trainer::BEST).display()
            );
        }
        Ok(())
    }
}

/// Training and validation photos.
pub(crate) fn open(path: &Path) -> Result<(Dataset, Dataset)> {
    let dataset = Dataset::open(path)?;
    if dataset.samples().iter().any(|sample| sample.split.is_some()) {
        return Ok((dataset.part(Split::Train)?, dataset.part(Split::Val)?));
    }
    Ok(dataset.split(0.9)?)
}

/// Draws the bar, prints a line an epoch, and hears Ctrl-C.
pub(crate) struct Watcher {
    bar: ProgressBar,
    epochs: usize,
    log_every: usize,
    stop: Arc<AtomicBool>,
    output: Output,
}

impl Watcher {
    pub(crate) fn new(epochs: usize, log_every: usize, output: Output) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let heard = Arc::clone(&stop);
        // The first Ctrl-C ends at the next step with the state saved; a second one ends at once.
        ctrlc::set_handler(move || {
            if heard.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        })?;
        Ok(Self { bar: terminal::bar(0, "", output), epochs, log_every, stop, output })
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Watcher {
    fn step(&mut self, report: &StepReport) {
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

    fn epoch(&mut self, report: &EpochReport) {
        if self.output.quiet || self.output.json {
            return;
        }
        let line = format!(
            "epoch {:3}  train loss {:.4} acc {:.2} %  val loss {:.4} acc {:.2} %  lr {:.2e}  {:.0} s{}",
            report.epoch,
            report.train_loss,
            report.train_accuracy * 100.0,
            report.val_loss,
            report.val_accuracy * 100.0,
            report.learning_rate,
            report.seconds,
            if report.best { "  best" } else { "" }
        );
        self.bar.suspend(|| println!("{line}"));
    }

    fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
