//! `import`: a model that PyTorch saved.

use std::path::PathBuf;

use anyhow::Result;
use petnet::Precision;
use petnet::preprocess::{Preprocess, Resize};
use petnet::pytorch::Import as Reader;

use crate::{Output, terminal};

/// Make a model of petnet's from a PyTorch checkpoint, or from bare weights.
#[derive(clap::Args)]
#[command(after_help = "\
Known are simple_cnn, improved_cnn, resnet18 and their like of other widths, by their layers' shapes: a
state dict (.pt, .pth, .safetensors), or a dict with `model_state_dict` and `config`. No code of the file is run.

Examples:
  petnet-train import best_model.pt --out models/best.safetensors
  petnet-train import resnet18.pth --labels labels.txt --resize center_crop --out resnet18.safetensors")]
pub(crate) struct Import {
    /// The file to read
    file: PathBuf,
    /// Model file to write
    #[arg(long, default_value = "models/best.safetensors")]
    out: PathBuf,
    /// Classes in the order of the logits, between commas, or a file with one a line [default: the
    /// file's `class_names`, else cat,dog]
    #[arg(long)]
    labels: Option<String>,
    /// Side of the network's input, in pixels
    #[arg(long, default_value_t = 224)]
    image_size: u32,
    /// How photos become squares: squeeze, as the reference system, or center_crop
    #[arg(long, value_parser = resize, default_value = "squeeze")]
    resize: Resize,
}

fn resize(name: &str) -> Result<Resize, String> {
    serde_json::from_value(name.into()).map_err(|e| e.to_string())
}

impl Import {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        terminal::start_log(output, "info");
        let preprocess = Preprocess { size: self.image_size, resize: self.resize };
        let reader = Reader { labels: self.labels()?, preprocess, ..Reader::default() };
        let model = match reader.read(&self.file) {
            // A reference checkpoint need not say what its classes are.
            Err(error @ petnet::Error::Config(_)) if self.labels.is_none() => {
                let labels = ["cat", "dog"].map(String::from).into();
                Reader { labels, ..reader }.read(&self.file).map_err(|_| error)?
            }
            read => read?,
        };
        model.save(&self.out, Precision::F32)?;
        let info = model.info();
        if output.json {
            let (name, labels) = (info.architecture.name(), &info.labels);
            let about =
                serde_json::json!({ "file": self.out, "architecture": name, "labels": labels });
            println!("{about}");
        } else {
            println!(
                "{}: {}, {} values, {} classes",
                self.out.display(),
                info.architecture.name(),
                model.parameters(),
                info.labels.len()
            );
        }
        Ok(())
    }

    fn labels(&self) -> Result<Vec<String>> {
        let Some(given) = &self.labels else { return Ok(Vec::new()) };
        let text = match std::fs::read_to_string(given) {
            Ok(lines) => lines.lines().collect::<Vec<_>>().join(","),
            Err(_) => given.clone(),
        };
        Ok(text.split(',').map(|name| name.trim().to_string()).collect())
    }
}
