//! `lr-find`: a learning-rate range test (Smith, 2017), and its chart.

use std::path::PathBuf;

use anyhow::Result;
use petnet::Device;
use serde_json::json;

use crate::config::Config;
use crate::data;
use crate::files;
use crate::fit::Watcher;
use crate::report::charts;
use crate::terminal::{self, Output};

/// Suggest a learning rate with a range test: a short training in which the rate rises
///
/// The suggestion is a peak for schedules that decay. Only the chart is saved.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train lr-find --config configs/petnet.yaml --steps 200 --out reports/lr.png")]
pub(crate) struct LrFind {
    /// Settings file, as for `fit`
    #[arg(long)]
    config: Option<PathBuf>,
    /// Prepared folder, or a folder or zip with one folder per class [default: data_dir]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Learning rate of the first step
    #[arg(long, default_value_t = 1e-5)]
    from: f64,
    /// Learning rate of the last step
    #[arg(long, default_value_t = 3.0)]
    to: f64,
    /// Number of training steps
    #[arg(long, default_value_t = 200)]
    steps: usize,
    /// PNG file to write the chart to
    #[arg(long, default_value = "reports/lr.png")]
    out: PathBuf,
    /// Device to compute on: auto, cpu, ndarray, wgpu or wgpu:N (discrete GPU N, from 0)
    #[arg(long, default_value = "cpu")]
    device: Device,
}

impl LrFind {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let mut config = Config::load(self.config.as_deref(), &[])?;
        terminal::start_log(output, &config.program.logging.level);
        config.program.data_dir = self.data.unwrap_or(config.program.data_dir);
        let (train, _) = data::open(&config.program.data_dir, config.program.multi_label)?;
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
                None => {
                    say!("no suggestion: the loss never fell; try other settings or a wider range")
                }
            }
            say!("curve written to {}", self.out.display());
        }
        Ok(())
    }
}
