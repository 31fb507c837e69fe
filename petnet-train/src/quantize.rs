//! `quantize`: static int8 inference for a model, with the ranges of its feature maps measured on training photos.

use std::path::PathBuf;

use anyhow::Result;
use petnet::preprocess::Pixels;
use petnet::{Classifier, Dataset, Device, Precision};
use serde_json::json;

use crate::model::ModelName;
use crate::report::findings::Answers;
use crate::{Output, fit, terminal};

/// Measure the ranges of a model's feature maps on training photos, for inference in bytes.
///
/// Where the processor has AVX-512 VNNI, the model then computes in 8-bit integers, two to three times as fast; elsewhere
/// the same file runs as before. Compares both on the validation photos.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  petnet-train quantize --model models/best.safetensors --data data/processed --out int8.safetensors
  petnet-train quantize --model pretrained --data shelter-photos --images 500 --out shelter.safetensors")]
pub(crate) struct Quantize {
    /// Model file, or `pretrained` for the bundled one
    #[arg(long)]
    model: ModelName,
    /// Prepared folder, or a plain folder or zip per class (split 9 to 1)
    #[arg(long, default_value = "data/processed")]
    data: PathBuf,
    /// File to write
    #[arg(long)]
    out: PathBuf,
    /// Training photos on which ranges are measured, evenly drawn
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    images: u32,
}

impl Quantize {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        terminal::start_log(output, "info");
        let checkpoint = self.model.checkpoint()?;
        let multi_label = !checkpoint.info().task.is_single_label();
        let (train, valid) = fit::open(&self.data, Some(multi_label))?;
        // A network that others start from has other classes: its accuracy is not measured.
        let valid = valid.with_labels(&checkpoint.info().labels).ok();
        let before = Classifier::new(checkpoint.clone(), Device::Cpu)?;
        let images = drawn(&train, &before, self.images as usize)?;
        let quantized = checkpoint.quantized(&images)?;
        quantized.save(&self.out, Precision::F16)?;
        let after = Classifier::new(quantized, Device::Cpu)?;
        let measure = |classifier: Classifier| {
            let answers = valid.as_ref().map(|valid| Answers::of(&classifier, valid, |_| ()));
            answers.transpose()
        };
        let (before, after) = (measure(before)?, measure(after)?);
        if output.json {
            let figures = json!({
                "file": self.out,
                "images": images.len(),
                "validation": {
                    "before": before.map(|answers| answers.figures()).transpose()?,
                    "after": after.map(|answers| answers.figures()).transpose()?,
                },
            });
            say!("{figures}");
            return Ok(());
        }
        say!("measured on  {} training photos", images.len());
        match before.zip(after) {
            Some((before, after)) => {
                say!("before       {}", before.summary());
                say!("after        {}", after.summary());
            }
            None => {
                say!("accuracy     not measured: the model has other classes than the data")
            }
        }
        say!("written to   {}", self.out.display());
        Ok(())
    }
}

/// Some photos as the network sees them, one in so many.
fn drawn(photos: &Dataset, classifier: &Classifier, count: usize) -> Result<Vec<Pixels>> {
    let step = photos.len().div_ceil(count.max(1)).max(1);
    let places = (0..photos.len()).step_by(step);
    let pixels = places.map(|place| Ok(classifier.preprocess(&photos.read(place)?)?));
    pixels.collect()
}
