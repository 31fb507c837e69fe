//! `lr-find`: a short training with a rising learning rate, and its picture.

use std::path::PathBuf;

use anyhow::Result;
use petnet::Device;
use serde_json::json;

use crate::config::Config;
use crate::fit::{self, Watcher};
use crate::report::{charts, files};
use crate::{Output, terminal};

/// Find a learning rate: train briefly while it rises, and see where the loss is lowest
///
/// The suggestion is a peak for schedules that decay. Nothing is saved but the picture.
#[derive(clap::Args)]
#[command(after_help = "Example:
  petnet-train lr-find --config configs/petnet.yaml --steps 200 --out reports/lr.png")]
pub(crate) struct LrFind {
    /// Settings, as for `fit`
    #[arg(long)]
    config: Option<PathBuf>,
    /// Prepared folder, or a plain folder or zip per class [default: data_dir]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Lowest rate
    #[arg(long, default_value_t = 1e-5)]
    from: f64,
    /// Highest rate
    #[arg(long, default_value_t = 3.0)]
    to: f64,
    /// Steps from the lowest to the highest
    #[arg(long, default_value_t = 200)]
    steps: usize,
    /// Picture to write
    #[arg(long, default_value = "reports/lr.png")]
    out: PathBuf,
    /// auto, cpu, ndarray, wgpu or wgpu:N
    #[arg(long, default_value = "cpu")]
    device: Device,
}

impl LrFind {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let mut config = self.config.as_deref().map(Config::load).transpose()?.unwrap_or_default();
        terminal::start_log(output, config.log_level());
        config.data_dir = self.data.unwrap_or(config.data_dir);
        let (train, _) = fit::open(&config.data_dir, config.multi_label)?;
        let trainer = config.trainer(train.classes().len(), self.device)?;
        let mut watcher = Watcher::new(1, 0, output, None)?;
        let curve = trainer.find_rate(&train, self.from..self.to, self.steps, &mut watcher)?;
        watcher.finish();
        let suggestion = curve.suggestion();
        files::write(&self.out, &charts::rate_curve_png(&curve, suggestion)?)?;
        if output.json {
            let points: Vec<_> = curve.points.iter().map(|p| [p.rate, p.loss]).collect();
            say!("{}", json!({ "suggestion": suggestion, "points": points }));
        } else {
            match suggestion {
                Some(rate) => say!("suggested peak learning rate {rate:.2e}"),
                None => say!("the loss never fell: try other settings or a wider range"),
            }
            say!("curve written to {}", self.out.display());
        }
        Ok(())
    }
}
