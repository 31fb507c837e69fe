//! `export`: a model in another form.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use petnet::Precision;

use crate::predict::open_checkpoint;
use crate::{Output, terminal};

/// Write a model in another precision, e.g. to ship it at half the size.
#[derive(clap::Args)]
#[command(after_help = "Example:
  petnet-train export --model models/best.safetensors --precision f16 --out small.safetensors")]
pub(crate) struct Export {
    /// Model file, or `pretrained` for the bundled one
    #[arg(long)]
    model: String,
    /// File to write
    #[arg(long)]
    out: PathBuf,
    /// How weights are stored
    #[arg(long, value_enum, default_value_t = Stored::F16)]
    precision: Stored,
}

#[derive(Clone, Copy, ValueEnum)]
enum Stored {
    F16,
    F32,
}

impl Export {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        terminal::start_log(output, "info");
        let checkpoint = open_checkpoint(&self.model)?;
        let precision = match self.precision {
            Stored::F16 => Precision::F16,
            Stored::F32 => Precision::F32,
        };
        checkpoint.save(&self.out, precision)?;
        let bytes = std::fs::metadata(&self.out)?.len();
        if output.json {
            println!("{}", serde_json::json!({ "file": self.out, "bytes": bytes }));
        } else {
            println!("{} ({:.2} MB)", self.out.display(), bytes as f64 / 1e6);
        }
        Ok(())
    }
}
