//! Evaluation of a model on a data set, single-label or multi-label: metrics, text, HTML page.

use anyhow::Result;
use petnet::metrics::{Metrics, MultiLabelMetrics};
use petnet::{Classifier, Coverage, Dataset, Evaluation, LabelEvaluation};
use serde_json::{Value, json};

use super::labels::LabelReport;
use super::page::{Mistake, Report};
use crate::files;
use crate::ood::OodEvaluation;
use crate::tracking::Run;

/// Most mistakes whose thumbnails are kept with a run.
const MAX_TRACKED_MISTAKES: usize = 8;

/// Predictions of a model of either task on every image of a data set.
pub(crate) enum AnyEvaluation {
    SingleLabel(Evaluation),
    MultiLabel(LabelEvaluation),
}

impl AnyEvaluation {
    pub(crate) fn of(
        classifier: &Classifier,
        dataset: &Dataset,
        progress: impl Fn(usize),
    ) -> petnet::Result<Self> {
        Ok(match classifier.info().task.is_single_label() {
            true => Self::SingleLabel(classifier.evaluate(dataset, progress)?),
            false => Self::MultiLabel(classifier.evaluate_labels(dataset, progress)?),
        })
    }

    /// Out-of-distribution score of each image; empty where the model has none.
    pub(crate) fn ood_scores(&self) -> &[f32] {
        match self {
            Self::SingleLabel(evaluation) => &evaluation.ood_scores,
            Self::MultiLabel(evaluation) => &evaluation.ood_scores,
        }
    }

    /// The metrics as in `metrics.json`.
    pub(crate) fn figures(&self) -> Result<Value> {
        Ok(match self {
            Self::SingleLabel(evaluation) => serde_json::to_value(evaluation.metrics())?,
            Self::MultiLabel(evaluation) => {
                label_figures(&evaluation.metrics(), evaluation.out_of_distribution())?
            }
        })
    }

    /// The main metrics in one line.
    pub(crate) fn summary(&self) -> String {
        match self {
            Self::SingleLabel(evaluation) => {
                let Metrics { accuracy, log_loss, .. } = evaluation.metrics();
                format!("accuracy {:.2} % (log loss {log_loss:.4})", accuracy * 100.0)
            }
            Self::MultiLabel(evaluation) => {
                let metrics = evaluation.metrics();
                let precision = metrics.mean_average_precision.unwrap_or_default() * 100.0;
                let f1_score = metrics.macro_f1 * 100.0;
                format!("mean average precision {precision:.2} % (macro F1 {f1_score:.2} %)")
            }
        }
    }
}

/// A model, and the data set that it was evaluated on.
pub(crate) struct Subject<'a> {
    pub(crate) classifier: &'a Classifier,
    pub(crate) dataset: &'a Dataset,
    /// Name of the data set in the report.
    pub(crate) dataset_name: String,
    /// Evaluations on out-of-distribution images.
    pub(crate) ood_inputs: &'a [OodEvaluation],
}

/// Results of an evaluation.
pub(crate) struct EvaluationReport {
    /// The metrics as in `metrics.json`.
    pub(crate) figures: Value,
    /// The HTML page.
    pub(crate) page: String,
    pub(crate) mistakes: Vec<Mistake>,
    /// Metrics for a tracked run, by name.
    pub(crate) tracked: Vec<(String, f64)>,
    /// Metrics as lines of text.
    pub(crate) lines: Vec<String>,
    /// Confusion matrix as a `.npy` file, rows actual, columns predicted; `None` for a multi-label model.
    pub(crate) confusion_matrix: Option<Vec<u8>>,
}

impl EvaluationReport {
    pub(crate) fn of(subject: Subject<'_>, evaluation: &AnyEvaluation) -> Result<Self> {
        match evaluation {
            AnyEvaluation::SingleLabel(evaluation) => Self::of_classes(subject, evaluation),
            AnyEvaluation::MultiLabel(evaluation) => Self::of_labels(subject, evaluation),
        }
    }

    fn of_classes(subject: Subject<'_>, evaluation: &Evaluation) -> Result<Self> {
        let (metrics, coverage) = (evaluation.metrics(), evaluation.coverage());
        let report = Report { subject, evaluation, metrics: &metrics };
        let mistakes = report.worst_mistakes()?;
        let mut figures = serde_json::to_value(&metrics)?;
        let mut tracked = tracked(&figures);
        tracked.extend([
            ("answered".into(), coverage.share),
            ("answered_accuracy".into(), coverage.accuracy),
            ("low_confidence".into(), coverage.low_confidence),
            ("out_of_distribution".into(), coverage.out_of_distribution),
        ]);
        figures["coverage"] = json!(coverage);
        Ok(Self {
            page: report.html(&mistakes)?,
            mistakes,
            figures,
            tracked,
            lines: lines(&metrics, coverage),
            confusion_matrix: Some(files::npy(&metrics.confusion_matrix)),
        })
    }

    fn of_labels(subject: Subject<'_>, evaluation: &LabelEvaluation) -> Result<Self> {
        let metrics = evaluation.metrics();
        let report = LabelReport { subject, evaluation, metrics: &metrics };
        let mistakes = report.worst_mistakes()?;
        let out_of_distribution = evaluation.out_of_distribution();
        let labels = report.subject.classifier.labels();
        let figures = label_figures(&metrics, out_of_distribution)?;
        Ok(Self {
            page: report.html(&mistakes)?,
            mistakes,
            tracked: tracked(&figures),
            figures,
            lines: labels_lines(&metrics, out_of_distribution, labels),
            confusion_matrix: None,
        })
    }
}

/// Keeps thumbnails of the worst mistakes with a run, in `folder` of its artifacts, named by the actual and the
/// predicted class.
pub(crate) fn track_mistakes(run: &Run, folder: &str, mistakes: &[Mistake]) -> Result<()> {
    for (rank, mistake) in mistakes.iter().take(MAX_TRACKED_MISTAKES).enumerate() {
        let Mistake { actual, predicted, confidence, thumbnail, .. } = mistake;
        let name = format!("{folder}/{:02}-{actual}-as-{predicted}-{confidence:.3}.jpg", rank + 1);
        run.artifact(&name, thumbnail)?;
    }
    Ok(())
}

fn percent(figure: f64) -> String {
    format!("{:.2} %", figure * 100.0)
}

fn lines(metrics: &Metrics, coverage: Coverage) -> Vec<String> {
    let roc_auc = metrics.roc_auc.map(|area| format!("ROC AUC    {area:.4}"));
    let first = [
        format!("images     {}", metrics.num_samples),
        format!("accuracy   {}", percent(metrics.accuracy)),
        format!("precision  {}", percent(metrics.precision)),
        format!("recall     {}", percent(metrics.recall)),
        format!("F1         {}", percent(metrics.f1_score)),
    ];
    let (answered, accuracy) = (percent(coverage.share), percent(coverage.accuracy));
    let (low, out) = (percent(coverage.low_confidence), percent(coverage.out_of_distribution));
    let last = [
        format!("log loss   {:.4}", metrics.log_loss),
        format!("ECE        {}", percent(metrics.ece)),
        format!("answered   {answered}, with accuracy {accuracy}"),
        format!("unsure     {low} low confidence, {out} out of distribution"),
    ];
    first.into_iter().chain(roc_auc).chain(last).collect()
}

/// Names and values of the numbers among figures, for a tracked run.
pub(crate) fn tracked(figures: &Value) -> Vec<(String, f64)> {
    let name = |name: &str| if name == "num_samples" { "photos".into() } else { name.to_string() };
    let figures = figures.as_object().into_iter().flatten();
    figures.filter_map(|(key, value)| Some((name(key), value.as_f64()?))).collect()
}

/// Most classes that are listed in the terminal.
const MAX_LISTED_CLASSES: usize = 40;

fn labels_lines(
    metrics: &MultiLabelMetrics,
    out_of_distribution: f64,
    labels: &[String],
) -> Vec<String> {
    let optional = |metric: Option<f64>| metric.map_or("-".into(), percent);
    let mut lines = vec![
        format!("images     {}", metrics.num_samples),
        format!("mAP        {}", optional(metrics.mean_average_precision)),
        format!("micro F1   {}", percent(metrics.micro_f1)),
        format!("macro F1   {}", percent(metrics.macro_f1)),
        format!("exact      {} of the images have all labels right", percent(metrics.exact_match)),
        format!("log loss   {:.4}", metrics.log_loss),
        format!("unsure     {} out of distribution", percent(out_of_distribution)),
    ];
    let width = labels.iter().map(String::len).max().unwrap_or(0);
    let own = metrics.per_class.iter().zip(labels).take(MAX_LISTED_CLASSES);
    lines.extend(own.map(|(own, label)| {
        format!(
            "{label:width$}  AP {}  F1 {} at threshold {:.3}  ({} images)",
            optional(own.average_precision),
            percent(own.f1_score),
            own.threshold,
            own.support
        )
    }));
    let unlisted = labels.len().saturating_sub(MAX_LISTED_CLASSES);
    if unlisted > 0 {
        lines.push(format!("{unlisted} more classes are in metrics.json"));
    }
    lines
}

fn label_figures(metrics: &MultiLabelMetrics, out_of_distribution: f64) -> Result<Value> {
    let mut figures = serde_json::to_value(metrics)?;
    figures["out_of_distribution"] = json!(out_of_distribution);
    Ok(figures)
}
