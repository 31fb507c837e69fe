//! `predict`: classify photos on disk.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use petnet::{Checkpoint, Classifier, Device, Prediction};

use crate::{Output, terminal};

/// Classify photos, or all photos of a folder.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train predict rex.jpg tom.jpg
  petnet-train predict --model models/best.safetensors --format csv photos/ > labels.csv")]
pub(crate) struct Predict {
    /// Model file, or `pretrained` for the bundled one
    #[arg(long, default_value = "pretrained")]
    model: String,
    /// Photos or folders of photos
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// auto, cpu, ndarray, wgpu or wgpu:N
    #[arg(long, default_value = "cpu")]
    device: Device,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Text,
    Jsonl,
    Csv,
}

impl Predict {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        terminal::start_log(output, "info");
        let classifier = open_model(&self.model, self.device)?;
        let format = if output.json { Format::Jsonl } else { self.format };
        if format == Format::Csv {
            println!("path,label,confidence,{},error", classifier.labels().join(","));
        }
        let mut photos = Vec::new();
        for path in &self.paths {
            collect(path, &mut photos)?;
        }
        let bar = terminal::bar(photos.len() as u64, "classifying", output);
        let mut failed = 0;
        for path in &photos {
            let outcome = classifier.classify_path(path);
            failed += usize::from(outcome.is_err());
            bar.inc(1);
            bar.suspend(|| print(path, &outcome, &classifier, format));
        }
        bar.finish_and_clear();
        if failed > 0 {
            bail!("{failed} of {} photos could not be classified", photos.len());
        }
        Ok(())
    }
}

/// Opens a model file, or the bundled model by the name `pretrained`.
pub(crate) fn open_model(name: &str, device: Device) -> Result<Classifier> {
    Ok(Classifier::new(open_checkpoint(name)?, device)?)
}

/// Reads a model file, or the bundled model by the name `pretrained`.
pub(crate) fn open_checkpoint(name: &str) -> Result<Checkpoint> {
    match name {
        "pretrained" => Ok(Checkpoint::pretrained()?),
        path => Ok(Checkpoint::load(path)?),
    }
}

/// A model's file as it lies there.
pub(crate) fn model_bytes(name: &str) -> Result<Vec<u8>> {
    match name {
        "pretrained" => Ok(Checkpoint::PRETRAINED.to_vec()),
        path => std::fs::read(path).with_context(|| path.to_string()),
    }
}

fn collect(path: &Path, photos: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        photos.push(path.into());
        return Ok(());
    }
    let mut inside: Vec<PathBuf> =
        std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    inside.sort();
    for path in inside {
        let picture = path.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| {
            petnet::preprocess::PICTURE_ENDINGS.contains(&ending.to_ascii_lowercase().as_str())
        });
        if path.is_dir() || picture {
            collect(&path, photos)?;
        }
    }
    Ok(())
}

fn print(
    path: &Path,
    outcome: &petnet::Result<Prediction>,
    classifier: &Classifier,
    format: Format,
) {
    let name = path.display().to_string();
    match (format, outcome) {
        (Format::Text, Ok(guess)) => println!("{name}: {guess}"),
        (Format::Text, Err(error)) => eprintln!("{error}"),
        (Format::Jsonl, Ok(guess)) => {
            let pairs = classifier.labels().iter().cloned().zip(guess.probabilities());
            let probabilities: serde_json::Map<_, _> =
                pairs.map(|(l, p)| (l, (*p).into())).collect();
            println!(
                "{}",
                serde_json::json!({
                    "path": name,
                    "label": guess.label(),
                    "confidence": guess.confidence(),
                    "probabilities": probabilities,
                })
            );
        }
        (Format::Jsonl, Err(error)) => {
            println!("{}", serde_json::json!({ "path": name, "error": error.to_string() }));
        }
        (Format::Csv, Ok(guess)) => {
            let all: Vec<String> = guess.probabilities().iter().map(f32::to_string).collect();
            println!(
                "{},{},{},{},",
                quoted(&name),
                guess.label(),
                guess.confidence(),
                all.join(",")
            );
        }
        (Format::Csv, Err(error)) => {
            let empty = ",".repeat(classifier.labels().len());
            println!("{},,,{empty}{}", quoted(&name), quoted(&error.to_string()));
        }
    }
}

/// A CSV field (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_string()
    }
}
