//! `calibrate`: temperature and thresholds of a model, from images like those that it will classify.

use std::path::PathBuf;

use anyhow::Result;
use petnet::{Calibration, ClassSet, Classifier, Device, Precision};
use serde_json::json;

use crate::data;
use crate::model::ModelName;
use crate::report::evaluation::AnyEvaluation;
use crate::terminal::Output;

/// Choose a model's temperature, its confidence threshold and its out-of-distribution threshold
///
/// `fit` does this at its end. Calibrate again when the images to classify differ from the training images.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train calibrate --model pretrained --data shelter-photos --out shelter.safetensors")]
pub(crate) struct Calibrate {
    /// Model file, or `pretrained` for the bundled one
    #[arg(long)]
    model: ModelName,
    /// Prepared folder, or a folder or zip with one folder per class, of which one tenth is validation
    #[arg(long, default_value = "data/processed")]
    data: PathBuf,
    /// Classes of the source head that contain the model's classes, as numbers and ranges, e.g. 151-268,281-285 for the dogs
    /// and cats of ImageNet [default: as stored in the model, else prototypes of the training images]
    #[arg(long, value_name = "CLASSES")]
    source_classes: Option<ClassSet>,
    /// Model file to write
    #[arg(long)]
    out: PathBuf,
    /// Device to compute on: auto, cpu, ndarray, wgpu or wgpu:N (discrete GPU N, from 0)
    #[arg(long, default_value = "cpu")]
    device: Device,
}

impl Calibrate {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let checkpoint = self.model.checkpoint()?;
        let multi_label = !checkpoint.info().task.is_single_label();
        let (train, valid) = data::open(&self.data, Some(multi_label))?;
        let labels = checkpoint.info().labels.clone();
        let (train, valid) = (train.with_labels(&labels)?, valid.with_labels(&labels)?);
        let calibration = Calibration { device: self.device, source_classes: self.source_classes };
        let calibrated = checkpoint.calibrated(&train, &valid, &calibration)?;
        calibrated.save(&self.out, Precision::F32)?;
        let info = calibrated.info().clone();
        let classifier = Classifier::new(calibrated, self.device)?;
        let evaluated = AnyEvaluation::of(&classifier, &valid, |_| ())?;
        if output.json {
            let validation = match &evaluated {
                AnyEvaluation::SingleLabel(evaluation) => {
                    json!({ "ece": evaluation.metrics().ece, "coverage": evaluation.coverage() })
                }
                AnyEvaluation::MultiLabel(_) => evaluated.figures()?,
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
                say!("OOD score    {:.3} at most, method {}", ood.threshold, ood.score.name());
            }
            match &evaluated {
                AnyEvaluation::SingleLabel(evaluation) => {
                    let coverage = evaluation.coverage();
                    say!("confidence   {:.3} at least", info.threshold);
                    say!("ECE          {:.2} %", evaluation.metrics().ece * 100.0);
                    let (share, accuracy) = (coverage.share * 100.0, coverage.accuracy * 100.0);
                    say!("answered     {share:.2} % of images, with accuracy {accuracy:.2} %");
                }
                AnyEvaluation::MultiLabel(_) => {
                    let thresholds = info.task.thresholds().unwrap_or_default();
                    for (label, threshold) in info.labels.iter().zip(thresholds) {
                        say!("threshold    {threshold:.3} for {label}");
                    }
                    say!("validation   {}", evaluated.summary());
                }
            }
            say!("written to   {}", self.out.display());
        }
        Ok(())
    }
}
