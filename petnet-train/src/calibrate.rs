//! `calibrate`: honest confidence for a model, on photos like those that it will see.

use std::path::PathBuf;

use anyhow::Result;
use petnet::{Calibration, ClassSet, Classifier, Device, ModelInfo, Precision, Task};
use serde_json::json;

use crate::model::ModelName;
use crate::report::findings::Answers;
use crate::{Output, fit, terminal};

/// Choose a model's temperature, its confidence threshold and its out-of-distribution threshold.
///
/// `fit` ends with this; use it when the images to come differ from those of the training.
#[derive(clap::Args)]
#[command(after_help = "Example:
  petnet-train calibrate --model pretrained --data shelter-photos --out shelter.safetensors")]
pub(crate) struct Calibrate {
    /// Model file, or `pretrained` for the bundled one
    #[arg(long)]
    model: ModelName,
    /// Prepared folder, or a plain folder or zip per class (split 9 to 1)
    #[arg(long, default_value = "data/processed")]
    data: PathBuf,
    /// The source head's classes that contain the model's, as numbers and ranges, e.g. 151-268,281-285 for ImageNet's
    /// dogs and cats [default: those of the model, else prototypes of the training images]
    #[arg(long, value_name = "CLASSES")]
    source_classes: Option<ClassSet>,
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
        let checkpoint = self.model.checkpoint()?;
        let multi_label = !checkpoint.info().task.is_single_label();
        let (train, valid) = fit::open(&self.data, Some(multi_label))?;
        let labels = checkpoint.info().labels.clone();
        let (train, valid) = (train.with_labels(&labels)?, valid.with_labels(&labels)?);
        let calibration = Calibration { device: self.device, source_classes: self.source_classes };
        let calibrated = checkpoint.calibrated(&train, &valid, &calibration)?;
        calibrated.save(&self.out, Precision::F32)?;
        let info = calibrated.info().clone();
        let answers = Answers::of(&Classifier::new(calibrated, self.device)?, &valid, |_| ())?;
        if output.json {
            let validation = match &answers {
                Answers::SingleLabel(evaluation) => {
                    json!({ "ece": evaluation.metrics().ece, "coverage": evaluation.coverage() })
                }
                Answers::MultiLabel(_) => answers.figures()?,
            };
            let figures = json!({
                "file": self.out,
                "task": info.task,
                "temperature": info.temperature,
                "threshold": info.threshold,
                "ood": info.ood,
                "validation": validation,
            });
            say!("{figures}");
        } else {
            say!("temperature  {:.3}", info.temperature);
            if let Some(ood) = &info.ood {
                say!("OOD score    {:.3} at most, by {}", ood.threshold, ood.score.name());
            }
            match &answers {
                Answers::SingleLabel(evaluation) => {
                    let coverage = evaluation.coverage();
                    say!("confidence   {:.3} at least", info.threshold);
                    say!("ECE          {:.2} %", evaluation.metrics().ece * 100.0);
                    let (share, right) = (coverage.share * 100.0, coverage.accuracy * 100.0);
                    say!("answered     {share:.2} % of images, {right:.2} % of them rightly");
                }
                Answers::MultiLabel(_) => {
                    print_thresholds(&info);
                    say!("validation   {}", answers.summary());
                }
            }
            say!("written to   {}", self.out.display());
        }
        Ok(())
    }
}

/// The threshold of each class of a multi-label model.
fn print_thresholds(info: &ModelInfo) {
    if let Task::MultiLabel { thresholds } = &info.task {
        for (label, threshold) in info.labels.iter().zip(thresholds) {
            say!("threshold    {threshold:.3} for {label}");
        }
    }
}
