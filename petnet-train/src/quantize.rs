//! `quantize`: static int8 inference for a model, with activation ranges measured on training images.

use std::path::PathBuf;

use anyhow::Result;
use petnet::preprocess::Pixels;
use petnet::{Classifier, Dataset, Device, Precision};
use serde_json::json;

use crate::data;
use crate::model::ModelName;
use crate::report::evaluation::AnyEvaluation;
use crate::terminal::Output;

/// Prepare a model for int8 inference: measure the ranges of its feature maps on training images
///
/// On processors with AVX-512 VNNI, the model then computes in 8-bit integers, two to three times as fast; on others it
/// computes in floats as before. Prints the accuracy of both on the validation images.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  petnet-train quantize --model models/best.safetensors --data data/processed --out int8.safetensors
  petnet-train quantize --model pretrained --data shelter-photos --images 500 --out shelter.safetensors")]
pub(crate) struct Quantize {
    /// Model file, or `pretrained` for the bundled one
    #[arg(long)]
    model: ModelName,
    /// Prepared folder, or a folder or zip with one folder per class, of which one tenth is validation
    #[arg(long, default_value = "data/processed")]
    data: PathBuf,
    /// Model file to write
    #[arg(long)]
    out: PathBuf,
    /// Number of training images on which the ranges are measured, taken at even distances
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    images: u32,
}

impl Quantize {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let checkpoint = self.model.checkpoint()?;
        let multi_label = !checkpoint.info().task.is_single_label();
        let (train, valid) = data::open(&self.data, Some(multi_label))?;
        // A model to fine-tune from may have other classes than the data; its accuracy is then not measured.
        let valid = valid.with_labels(&checkpoint.info().labels).ok();
        let before = Classifier::new(checkpoint.clone(), Device::Cpu)?;
        let images = sample(&train, &before, self.images as usize)?;
        let quantized = checkpoint.quantized(&images)?;
        quantized.save(&self.out, Precision::F16)?;
        let after = Classifier::new(quantized, Device::Cpu)?;
        let measure = |classifier: Classifier| {
            let evaluated =
                valid.as_ref().map(|valid| AnyEvaluation::of(&classifier, valid, |_| ()));
            evaluated.transpose()
        };
        let (before, after) = (measure(before)?, measure(after)?);
        if output.json {
            let figures = json!({
                "file": self.out,
                "images": images.len(),
                "validation": {
                    "before": before.map(|evaluated| evaluated.figures()).transpose()?,
                    "after": after.map(|evaluated| evaluated.figures()).transpose()?,
                },
            });
            say!("{figures}");
            return Ok(());
        }
        say!("measured on  {} training images", images.len());
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

/// Preprocesses at most `count` images, taken at even distances.
fn sample(images: &Dataset, classifier: &Classifier, count: usize) -> Result<Vec<Pixels>> {
    let step = images.len().div_ceil(count.max(1)).max(1);
    let indices = (0..images.len()).step_by(step);
    let pixels = indices.map(|index| Ok(classifier.preprocess(&images.read(index)?)?));
    pixels.collect()
}
