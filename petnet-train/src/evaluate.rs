//! `evaluate`: figures and a report for a model on a data set, and on images of other things.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use petnet::metrics::Metrics;
use petnet::{Classifier, Coverage, Dataset, Device, dataset};
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::MlflowConfig;
use crate::ood::{OtherFigures, OtherImages};
use crate::predict::{model_bytes, open_model};
use crate::report::files;
use crate::report::page::{Mistake, Report};
use crate::tracking::{self, Run, Tracker, Tracking};
use crate::{Output, terminal};

/// Share of right answers that the reference system's network reaches.
const REFERENCE: f64 = 0.92;

/// Evaluate a model on a data set and write a report.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train evaluate --model models/best.safetensors --data data/processed
  petnet-train evaluate --data some/folder-per-class --out reports/other
  petnet-train evaluate --ood clothing/ --ood 'imagenet/*.JPEG'    # images of other things: is the model unsure?")]
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
    /// Images of other things, for AUROC, FPR95 and the most confident answers: what `predict` takes; repeatable
    #[arg(long, value_name = "INPUT")]
    ood: Vec<PathBuf>,
    /// Average each image's outputs with those of its mirror image (test-time augmentation), for twice the time
    #[arg(long)]
    tta: bool,
    /// Folder for metrics.json and report.html
    #[arg(long, default_value = "reports")]
    out: PathBuf,
    /// auto, cpu, ndarray, wgpu or wgpu:N
    #[arg(long, default_value = "cpu")]
    device: Device,
}

fn print(metrics: &Metrics, coverage: Coverage) {
    let percent = |figure: f64| format!("{:.2} %", figure * 100.0);
    say!("images     {}", metrics.num_samples);
    say!("accuracy   {}", percent(metrics.accuracy));
    say!("precision  {}", percent(metrics.precision));
    say!("recall     {}", percent(metrics.recall));
    say!("F1         {}", percent(metrics.f1_score));
    if let Some(area) = metrics.roc_auc {
        say!("ROC AUC    {area:.4}");
    }
    say!("log loss   {:.4}", metrics.log_loss);
    say!("ECE        {}", percent(metrics.ece));
    say!("answered   {}, rightly {}", percent(coverage.share), percent(coverage.accuracy));
    say!(
        "unsure     {} low confidence, {} out of distribution",
        percent(coverage.low_confidence),
        percent(coverage.out_of_distribution)
    );
}

/// What a model takes: to keep, to run and to train.
#[derive(Serialize)]
struct Cost {
    /// Weights and statistics of norms.
    values: usize,
    file_bytes: u64,
    /// A photo, a multiply-add counted as two.
    flops: u64,
    epochs: usize,
    minutes: Option<f64>,
    minutes_to_reference: Option<f64>,
}

impl Cost {
    fn print(&self) {
        let Self { values, file_bytes, flops, epochs, minutes, minutes_to_reference } = self;
        say!("size       {values} values, {:.2} MB", *file_bytes as f64 * 1e-6);
        say!("operations {:.3} GFLOP a photo", *flops as f64 * 1e-9);
        if let Some(minutes) = minutes {
            say!("training   {epochs} epochs in {minutes:.1} minutes");
        }
        if let Some(minutes) = minutes_to_reference {
            say!("           {} % of validation photos after {minutes:.1}", REFERENCE * 100.0);
        }
    }
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
        let classifier = open_model(&self.model, self.device)?.with_mirrors(self.tta);
        let (dataset, source) = self.open_data()?;
        let dataset = dataset.with_labels(classifier.labels())?;
        let bar = terminal::bar(dataset.len() as u64, "evaluating", output);
        let evaluation = classifier.evaluate(&dataset, |photos| bar.inc(photos as u64))?;
        bar.finish_and_clear();
        let metrics = evaluation.metrics();
        let others = self.others(&classifier, &evaluation.ood_scores, output)?;
        let report = Report {
            info: classifier.info(),
            parameters: classifier.parameters(),
            evaluation: &evaluation,
            metrics: &metrics,
            dataset: &dataset,
            source,
            others: &others,
        };
        let file = model_bytes(&self.model)?;
        let cost = cost(&classifier, file.len());
        let figures = self.figures(&report, &cost)?;
        files::write_json(&self.out.join("metrics.json"), &figures)?;
        let page = self.out.join("report.html");
        let mistakes = report.worst_mistakes()?;
        let html = report.html(&mistakes)?;
        files::write(&page, html.as_bytes())?;
        let artifacts = [
            ("metrics.json", files::json(&figures)?),
            ("report.html", html.into_bytes()),
            ("confusion_matrix.npy", files::npy(&metrics.confusion_matrix)),
        ];
        if output.json {
            say!("{}", serde_json::to_string(&figures)?);
        } else {
            print(&metrics, evaluation.coverage());
            others.iter().for_each(|other| other.figures.print());
            cost.print();
            say!("report     {}", page.display());
        }
        self.record(&file, &report, &artifacts, &mistakes)
    }

    /// The model on each input of `--ood`.
    fn others(
        &self,
        classifier: &Classifier,
        own_scores: &[f32],
        output: Output,
    ) -> Result<Vec<OtherImages>> {
        let bar = terminal::counter("other images", output);
        let inputs = self.ood.iter();
        let others =
            inputs.map(|input| OtherImages::of(classifier, input, own_scores, || bar.inc(1)));
        let others = others.collect();
        bar.finish_and_clear();
        others
    }

    /// All figures as JSON.
    fn figures(&self, report: &Report<'_>, cost: &Cost) -> Result<Value> {
        let info = report.info;
        let mut figures = serde_json::to_value(report.metrics)?;
        if let Some(map) = figures.as_object_mut() {
            map.insert("coverage".into(), json!(report.evaluation.coverage()));
            map.insert("classes".into(), json!(info.labels));
            map.insert(
                "model".into(),
                json!({
                    "file": self.model,
                    "architecture": info.graph.name(),
                    "petnet_version": info.petnet_version,
                    "training_data": info.data_digest,
                    "cost": cost,
                }),
            );
            let data = json!({ "source": report.source, "digest": report.dataset.digest() });
            map.insert("data".into(), data);
            let others: Vec<&OtherFigures> =
                report.others.iter().map(|other| &other.figures).collect();
            map.insert("ood".into(), json!(others));
        }
        Ok(figures)
    }

    /// Adds the figures to the run that made the model; a model from elsewhere gets a run.
    fn record(
        &self,
        model: &[u8],
        report: &Report<'_>,
        artifacts: &[(&str, Vec<u8>)],
        mistakes: &[Mistake],
    ) -> Result<()> {
        let Some(tracking) = Tracking::open(&MlflowConfig::default())? else { return Ok(()) };
        let name = format!("evaluate {}", self.model);
        let run = tracking.run_with_model(model, report.info, &name)?;
        let mut tracker = Tracker::append(run, tracking.server.clone())?;
        let (dataset, metrics) = (report.dataset, report.metrics);
        let split = dataset.samples().first().and_then(|sample| sample.split);
        let part = split.map_or("other", dataset::Split::name);
        let digest = dataset.digest();
        tracker.record(|run| {
            let context = if part == "test" { "testing" } else { part };
            let source = self.data.display().to_string();
            run.input(&tracking::input(dataset, &source, &self.data), context)?;
            run.tag(&format!("petnet.{part}_digest"), &digest)?;
            let coverage = report.evaluation.coverage();
            let values = [
                ("accuracy", Some(metrics.accuracy)),
                ("precision", Some(metrics.precision)),
                ("recall", Some(metrics.recall)),
                ("f1_score", Some(metrics.f1_score)),
                ("roc_auc", metrics.roc_auc),
                ("log_loss", Some(metrics.log_loss)),
                ("ece", Some(metrics.ece)),
                ("answered", Some(coverage.share)),
                ("answered_accuracy", Some(coverage.accuracy)),
                ("low_confidence", Some(coverage.low_confidence)),
                ("out_of_distribution", Some(coverage.out_of_distribution)),
                ("photos", Some(metrics.num_samples as f64)),
            ];
            for (name, value) in values {
                if let Some(value) = value {
                    run.metric(&format!("{part}_{name}"), value, 0)?;
                }
            }
            track_others(run, part, report.others)?;
            for (name, bytes) in artifacts {
                run.artifact(&format!("{part}/{name}"), bytes)?;
            }
            tracking::log_mistakes(run, &format!("{part}/mistakes"), mistakes)
        });
        tracker.close();
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

/// Metrics `PART_oodN_NAME` of the N-th input of `--ood`, from 1, and a tag with its name.
fn track_others(run: &Run, part: &str, others: &[OtherImages]) -> Result<()> {
    for (place, OtherImages { figures, .. }) in others.iter().enumerate() {
        let prefix = format!("{part}_ood{}", place + 1);
        run.tag(&format!("petnet.{prefix}"), &figures.input)?;
        for (name, value) in figures.tracked() {
            if let Some(value) = value {
                run.metric(&format!("{prefix}_{name}"), value, 0)?;
            }
        }
    }
    Ok(())
}

fn cost(classifier: &Classifier, file_bytes: usize) -> Cost {
    let info = classifier.info();
    let epochs = info.history.as_array().map(Vec::as_slice).unwrap_or_default();
    let minutes = |epoch: &Value| epoch["seconds"].as_f64().map(|seconds| seconds / 60.0);
    let good = |epoch: &&Value| epoch["val_accuracy"].as_f64() >= Some(REFERENCE);
    Cost {
        values: classifier.parameters(),
        file_bytes: file_bytes as u64,
        flops: info.flops(),
        epochs: epochs.len(),
        minutes: epochs.last().and_then(minutes),
        minutes_to_reference: epochs.iter().find(good).and_then(minutes),
    }
}
