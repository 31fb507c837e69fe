//! `export`: a model in another file format or precision.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use petnet::{Checkpoint, Precision};

use crate::error::UsageError;
use crate::model::ModelName;
use crate::terminal::Output;

/// Write a model in another precision or file format
#[derive(clap::Args)]
#[command(after_help = "\
Formats:
  safetensors  petnet's format; --precision f16 halves the size, int8 quarters it
  onnx         for ONNX Runtime and others; input `images`, [n, 3, size, size], RGB from 0 to 255
  burnpack     burn's format for weights, without labels and preprocessing

Examples:
  petnet-train export --model models/best.safetensors --out small.safetensors --precision int8
  petnet-train export --model pretrained --out cats-vs-dogs.onnx")]
pub(crate) struct Export {
    /// Model file, or `pretrained` for the bundled one
    #[arg(long)]
    model: ModelName,
    /// File to write
    #[arg(long)]
    out: PathBuf,
    /// File format [default: by the extension of --out: .onnx, .bpk, else safetensors]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Number format of the weights, for safetensors only [default: f16]
    #[arg(long, value_parser = ["f32", "f16", "int8"])]
    precision: Option<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Safetensors,
    Onnx,
    Burnpack,
}

impl Export {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let format = self.format.unwrap_or_else(|| by_extension(&self.out));
        if format != Format::Safetensors && self.precision.is_some() {
            return Err(UsageError("--precision needs the format safetensors".into()).into());
        }
        let checkpoint = self.model.checkpoint()?;
        self.write(&checkpoint, format)?;
        let bytes = std::fs::metadata(&self.out)?.len();
        if output.json {
            say!("{}", serde_json::json!({ "file": self.out, "bytes": bytes }));
        } else {
            say!("{} ({:.2} MB)", self.out.display(), bytes as f64 / 1e6);
        }
        Ok(())
    }

    fn write(&self, checkpoint: &Checkpoint, format: Format) -> petnet::Result<()> {
        let precision = match self.precision.as_deref() {
            Some("f32") => Precision::F32,
            Some("int8") => Precision::Int8,
            Some(_) | None => Precision::F16,
        };
        match format {
            Format::Safetensors => checkpoint.save(&self.out, precision),
            Format::Onnx => checkpoint.save_onnx(&self.out),
            Format::Burnpack => checkpoint.save_burnpack(&self.out),
        }
    }
}

fn by_extension(path: &Path) -> Format {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("onnx") => Format::Onnx,
        Some("bpk") => Format::Burnpack,
        _ => Format::Safetensors,
    }
}
