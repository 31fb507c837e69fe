//! `calibrate`: honest confidence for a model, on photos like those that it will see.

use std::path::PathBuf;

use anyhow::Result;
use petnet::{Classifier, Device, Precision};
use serde_json::json;

use crate::predict::open_checkpoint;
use crate::{Output, fit, terminal};

/// Choose a model's temperature, its threshold for "unsure" and what is familiar to it.
///
/// `fit` ends with this; use it when the photos to come differ from those of the training.
#[derive(clap::Args)]
#[command(after_help = "Example:
  petnet-train calibrate --model pretrained --data shelter-photos --out shelter.safetensors")]
pub(crate) struct Calibrate {
    /// Model file, or `pretrained` for the bundled one
    #[arg(long)]
    model: String,
    /// Prepared folder, or a plain folder or zip per class (split 9 to 1)
    #[arg(long, default_value = "data/processed")]
    data: PathBuf,
    /// File to write
    #[arg(long)]
    out: PathBuf,
    /// auto, cpu, ndarray, wgpu or wgpu:N
    #[arg(long, default_value = "cpu")]
    device: Device,
}

impl Calibrate {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        terminal::start_log(output, "info");
        let (train, valid) = fit::open(&self.data)?;
        let checkpoint = open_checkpoint(&self.model)?;
        let labels = checkpoint.info().labels.clone();
        let (train, valid) = (train.with_labels(&labels)?, valid.with_labels(&labels)?);
        let calibrated = checkpoint.calibrated(&train, &valid, self.device)?;
        calibrated.save(&self.out, Precision::F32)?;
        let info = calibrated.info().clone();
        let evaluation = Classifier::new(calibrated, self.device)?.evaluate(&valid, |_| ())?;
        let (metrics, coverage) = (evaluation.metrics(), evaluation.coverage());
        if output.json {
            let figures = json!({
                "file": self.out,
                "temperature": info.temperature,
                "threshold": info.threshold,
                "validation": { "ece": metrics.ece, "coverage": coverage },
            });
            println!("{figures}");
        } else {
            println!("temperature  {:.3}", info.temperature);
            println!("threshold    {:.3}", info.threshold);
            println!("ECE          {:.2} %", metrics.ece * 100.0);
            let (share, right) = (coverage.share * 100.0, coverage.accuracy * 100.0);
            println!("answered     {share:.2} % of photos, {right:.2} % of them rightly");
            println!("written to   {}", self.out.display());
        }
        Ok(())
    }
}
