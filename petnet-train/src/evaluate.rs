//! `evaluate`: metrics and a report of a model on a data set, and on out-of-distribution images.

use std::path::PathBuf;

use anyhow::Result;
use petnet::{Classifier, Dataset, Device, ModelInfo, dataset};
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::MlflowConfig;
use crate::data;
use crate::files;
use crate::model::ModelName;
use crate::ood::{OodEvaluation, OodFigures};
use crate::report::evaluation::{
    AnyEvaluation, EvaluationReport, Subject, track_mistakes, tracked,
};
use crate::terminal::{self, Output};
use crate::tracking::{self, Run, Tracker, Tracking};

/// Accuracy of the Python reference implementation (SimpleCNN in PyTorch).
const REFERENCE_ACCURACY: f64 = 0.92;

/// Evaluate a model on a data set and write a report
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train evaluate --model models/best.safetensors --data data/processed
  petnet-train evaluate --data some/folder-per-class --out reports/other
  petnet-train evaluate --ood clothing/ --ood 'imagenet/*.JPEG'    # out-of-distribution images")]
pub(crate) struct Evaluate {
    /// Model file, or `pretrained` for the bundled one
    #[arg(long, default_value = "pretrained")]
    model: ModelName,
    /// Prepared folder, or a plain folder or zip with one sub-folder per class
    #[arg(long, default_value = "data/processed")]
    data: PathBuf,
    /// Split of a prepared folder
    #[arg(long, value_parser = ["train", "val", "test"], default_value = "test")]
    split: String,
    /// Out-of-distribution images, for AUROC, FPR95 and the most confident answers; any input of `predict`; repeatable
    #[arg(long, value_name = "INPUT")]
    ood: Vec<PathBuf>,
    /// Average each image's outputs with those of its mirror image (test-time augmentation); takes twice the time
    #[arg(long)]
    tta: bool,
    /// Folder to write metrics.json and report.html to
    #[arg(long, default_value = "reports")]
    out: PathBuf,
    /// Device to compute on: auto, cpu, ndarray, wgpu or wgpu:N (discrete GPU N, from 0)
    #[arg(long, default_value = "cpu")]
    device: Device,
}

/// Cost of a model: storage, arithmetic, training time.
#[derive(Serialize)]
struct Cost {
    /// Number of weights and of batch-norm statistics.
    values: usize,
    file_bytes: u64,
    /// Per image; a multiply-add counts as two.
    flops: u64,
    epochs: usize,
    minutes: Option<f64>,
    minutes_to_reference: Option<f64>,
}

impl Cost {
    fn print(&self) {
        let Self { values, file_bytes, flops, epochs, minutes, minutes_to_reference } = self;
        say!("size       {values} values, {:.2} MB", *file_bytes as f64 * 1e-6);
        say!("operations {:.3} GFLOP per image", *flops as f64 * 1e-9);
        if let Some(minutes) = minutes {
            say!("training   {epochs} epochs in {minutes:.1} minutes");
        }
        if let Some(minutes) = minutes_to_reference {
            let percent = REFERENCE_ACCURACY * 100.0;
            say!("           {percent} % validation accuracy after {minutes:.1}");
        }
    }
}

impl Evaluate {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let classifier = self.model.open(self.device)?.with_mirrors(self.tta);
        let (dataset, dataset_name) = self.open_data(!classifier.info().task.is_single_label())?;
        let dataset = dataset.with_labels(classifier.labels())?;
        let bar = terminal::bar(dataset.len() as u64, "evaluating", output);
        let evaluation = AnyEvaluation::of(&classifier, &dataset, |images| bar.inc(images as u64))?;
        bar.finish_and_clear();
        let ood_inputs = self.ood_inputs(&classifier, evaluation.ood_scores(), output)?;
        let subject = Subject {
            classifier: &classifier,
            dataset: &dataset,
            dataset_name,
            ood_inputs: &ood_inputs,
        };
        let dataset_name = subject.dataset_name.clone();
        let report = EvaluationReport::of(subject, &evaluation)?;
        let file = self.model.bytes()?;
        let cost = cost(&classifier, file.len());
        let mut figures = self.figures(classifier.info(), &report, &cost);
        figures["data"] = json!({ "source": dataset_name, "digest": dataset.digest() });
        let ood_figures: Vec<&OodFigures> = ood_inputs.iter().map(|input| &input.figures).collect();
        figures["ood"] = json!(ood_figures);
        files::write_json(&self.out.join("metrics.json"), &figures)?;
        let page = self.out.join("report.html");
        files::write(&page, report.page.as_bytes())?;
        if output.json {
            say!("{}", serde_json::to_string(&figures)?);
        } else {
            report.lines.iter().for_each(|line| say!("{line}"));
            ood_inputs.iter().for_each(|input| input.figures.print());
            cost.print();
            say!("report     {}", page.display());
        }
        self.record(&file, classifier.info(), (&dataset, &ood_inputs), (&report, &figures))
    }

    /// Evaluates the model on each input of `--ood`.
    fn ood_inputs(
        &self,
        classifier: &Classifier,
        own_scores: &[f32],
        output: Output,
    ) -> Result<Vec<OodEvaluation>> {
        let bar = terminal::counter("out-of-distribution images", output);
        let of = |input| OodEvaluation::of(classifier, input, own_scores, || bar.inc(1));
        let ood_inputs = self.ood.iter().map(PathBuf::as_path).map(of).collect();
        bar.finish_and_clear();
        ood_inputs
    }

    /// The metrics, the model and its cost as JSON.
    fn figures(&self, info: &ModelInfo, report: &EvaluationReport, cost: &Cost) -> Value {
        let mut figures = report.figures.clone();
        figures["classes"] = json!(info.labels);
        figures["model"] = json!({
            "file": self.model.to_string(),
            "architecture": info.graph.name(),
            "petnet_version": info.petnet_version,
            "training_data": info.data_digest,
            "cost": cost,
        });
        figures
    }

    /// Adds the metrics to the run that trained the model; a model without one gets a new run.
    fn record(
        &self,
        model: &[u8],
        info: &ModelInfo,
        (dataset, ood_inputs): (&Dataset, &[OodEvaluation]),
        (report, figures): (&EvaluationReport, &Value),
    ) -> Result<()> {
        let Some(tracking) = Tracking::open(&MlflowConfig::default())? else { return Ok(()) };
        let name = format!("evaluate {}", self.model);
        let run = tracking.run_with_model(model, info, &name)?;
        let mut tracker = Tracker::append(run, tracking.server.clone())?;
        let split = dataset.samples().first().and_then(|sample| sample.split);
        let part = split.map_or("other", dataset::Split::name);
        let digest = dataset.digest();
        tracker.record(|run| {
            let context = if part == "test" { "testing" } else { part };
            let source = self.data.display().to_string();
            run.input(&tracking::input(dataset, &source, &self.data), context)?;
            run.tag(&format!("petnet.{part}_digest"), &digest)?;
            for (name, value) in &report.tracked {
                run.metric(&format!("{part}_{name}"), *value, 0)?;
            }
            track_ood(run, part, ood_inputs)?;
            run.artifact(&format!("{part}/metrics.json"), &files::json(figures)?)?;
            run.artifact(&format!("{part}/report.html"), report.page.as_bytes())?;
            if let Some(matrix) = &report.confusion_matrix {
                run.artifact(&format!("{part}/confusion_matrix.npy"), matrix)?;
            }
            track_mistakes(run, &format!("{part}/mistakes"), &report.mistakes)
        });
        tracker.close();
        Ok(())
    }

    fn open_data(&self, multi_label: bool) -> Result<(Dataset, String)> {
        let dataset = data::read(&self.data, Some(multi_label))?;
        let name = self.data.display();
        if dataset.samples().iter().all(|sample| sample.split.is_none()) {
            return Ok((dataset, name.to_string()));
        }
        let split = &self.split;
        let part = dataset.part(serde_json::from_value(split.as_str().into())?)?;
        Ok((part, format!("{name} ({split})")))
    }
}

/// Adds metrics `PART_oodN_NAME` for the N-th input of `--ood`, counted from 1, and a tag with the input's name.
fn track_ood(run: &Run, part: &str, ood_inputs: &[OodEvaluation]) -> Result<()> {
    for (index, OodEvaluation { figures, .. }) in ood_inputs.iter().enumerate() {
        let prefix = format!("{part}_ood{}", index + 1);
        run.tag(&format!("petnet.{prefix}"), &figures.input)?;
        for (name, value) in tracked(&json!(figures)) {
            run.metric(&format!("{prefix}_{name}"), value, 0)?;
        }
    }
    Ok(())
}

fn cost(classifier: &Classifier, file_bytes: usize) -> Cost {
    let info = classifier.info();
    let epochs = info.history.as_array().map(Vec::as_slice).unwrap_or_default();
    let minutes = |epoch: &Value| epoch["seconds"].as_f64().map(|seconds| seconds / 60.0);
    let reached = |epoch: &&Value| epoch["val_accuracy"].as_f64() >= Some(REFERENCE_ACCURACY);
    Cost {
        values: classifier.parameters(),
        file_bytes: file_bytes as u64,
        flops: info.flops(),
        epochs: epochs.len(),
        minutes: epochs.last().and_then(minutes),
        // Of a multi-label model, `val_accuracy` is another metric.
        minutes_to_reference: epochs
            .iter()
            .find(reached)
            .filter(|_| info.task.is_single_label())
            .and_then(minutes),
    }
}
