//! `evaluate`: figures and a report for a model on a data set.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use petnet::{Dataset, Device, dataset};
use serde_json::json;

use crate::predict::open_model;
use crate::report::{files, page::Report};
use crate::{Output, terminal};

/// Judge a model on a data set and write a report.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train evaluate --model models/best.safetensors --data data/processed
  petnet-train evaluate --data some/folder-per-class --out reports/other")]
pub(crate) struct Evaluate {
    /// Model file, or `pretrained` for the bundled one
    #[arg(long, default_value = "pretrained")]
    model: String,
    /// Prepared folder, or a plain folder or zip with one sub-folder per class
    #[arg(long, default_value = "data/processed")]
    data: PathBuf,
    /// Part of a prepared folder
    #[arg(long, value_enum, default_value_t = Split::Test)]
    split: Split,
    /// Folder for metrics.json and report.html
    #[arg(long, default_value = "reports")]
    out: PathBuf,
    /// auto, cpu, ndarray, wgpu or wgpu:N
    #[arg(long, default_value = "cpu")]
    device: Device,
}

#[derive(Clone, Copy, ValueEnum)]
enum Split {
    Train,
    Val,
    Test,
}

impl Evaluate {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        terminal::start_log(output, "info");
        let classifier = open_model(&self.model, self.device)?;
        let (dataset, source) = self.open_data()?;
        let dataset = dataset.with_labels(classifier.labels())?;
        let bar = terminal::bar(dataset.len() as u64, "evaluating", output);
        let evaluation = classifier.evaluate(&dataset, |photos| bar.inc(photos as u64))?;
        bar.finish_and_clear();
        let metrics = evaluation.metrics();
        let info = classifier.info();
        let mut figures = serde_json::to_value(&metrics)?;
        if let Some(map) = figures.as_object_mut() {
            map.insert("coverage".into(), json!(evaluation.coverage()));
            map.insert("classes".into(), json!(info.labels));
            map.insert(
                "model".into(),
                json!({
                    "file": self.model,
                    "architecture": info.architecture,
                    "petnet_version": info.petnet_version,
                    "training_data": info.data_digest,
                }),
            );
            map.insert("data".into(), json!({ "source": source, "digest": dataset.digest() }));
        }
        files::write_json(&self.out.join("metrics.json"), &figures)?;
        let report = Report {
            info,
            parameters: classifier.parameters(),
            evaluation: &evaluation,
            metrics: &metrics,
            dataset: &dataset,
            source,
        };
        let page = self.out.join("report.html");
        files::write(&page, report.html()?.as_bytes())?;
        if output.json {
            println!("{}", serde_json::to_string(&figures)?);
            return Ok(());
        }
        let percent = |figure: f64| format!("{:.2} %", figure * 100.0);
        println!("photos     {}", metrics.num_samples);
        println!("accuracy   {}", percent(metrics.accuracy));
        println!("precision  {}", percent(metrics.precision));
        println!("recall     {}", percent(metrics.recall));
        println!("F1         {}", percent(metrics.f1_score));
        if let Some(area) = metrics.roc_auc {
            println!("ROC AUC    {area:.4}");
        }
        println!("log loss   {:.4}", metrics.log_loss);
        println!("ECE        {}", percent(metrics.ece));
        let coverage = evaluation.coverage();
        println!("answered   {}, rightly {}", percent(coverage.share), percent(coverage.accuracy));
        println!("report     {}", page.display());
        Ok(())
    }

    fn open_data(&self) -> Result<(Dataset, String)> {
        let dataset = Dataset::open(&self.data)?;
        let name = self.data.display();
        if dataset.samples().iter().all(|sample| sample.split.is_none()) {
            return Ok((dataset, name.to_string()));
        }
        let split = match self.split {
            Split::Train => dataset::Split::Train,
            Split::Val => dataset::Split::Val,
            Split::Test => dataset::Split::Test,
        };
        Ok((dataset.part(split)?, format!("{name} ({})", split.name())))
    }
}
