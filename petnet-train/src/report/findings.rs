//! All that is reported of a model on a data set, whether it answers one class an image or any number.

use anyhow::Result;
use petnet::metrics::{Metrics, MultiLabelMetrics};
use petnet::{Classifier, Coverage, Dataset, Evaluation, LabelEvaluation};
use serde_json::{Value, json};

use super::labels::LabelReport;
use super::page::{Mistake, Report};
use crate::files;
use crate::ood::OtherImages;
use crate::tracking::Run;

/// Most mistakes whose thumbnails are kept with a run.
const TRACKED_MISTAKES: usize = 8;

/// Answers on every photo of a data set.
pub(crate) enum Answers {
    SingleLabel(Evaluation),
    MultiLabel(LabelEvaluation),
}

impl Answers {
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

    /// Out-of-distribution scores; none where the model has no such score.
    pub(crate) fn ood_scores(&self) -> &[f32] {
        match self {
            Self::SingleLabel(evaluation) => &evaluation.ood_scores,
            Self::MultiLabel(evaluation) => &evaluation.ood_scores,
        }
    }

    /// The figures as `metrics.json` has them.
    pub(crate) fn figures(&self) -> Result<Value> {
        Ok(match self {
            Self::SingleLabel(evaluation) => serde_json::to_value(evaluation.metrics())?,
            Self::MultiLabel(evaluation) => {
                with_refused(&evaluation.metrics(), evaluation.out_of_distribution())?
            }
        })
    }

    /// The main figures in a line.
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
    /// The data set as people name it.
    pub(crate) source: String,
    /// Evaluations on images of other things.
    pub(crate) others: &'a [OtherImages],
}

/// Figures, page and photos of an evaluation.
pub(crate) struct Findings {
    /// As `metrics.json` has them.
    pub(crate) figures: Value,
    /// The HTML page.
    pub(crate) page: String,
    pub(crate) mistakes: Vec<Mistake>,
    /// Figures of a run by name.
    pub(crate) tracked: Vec<(String, f64)>,
    /// Figures for people.
    pub(crate) lines: Vec<String>,
    /// Counts by class and answer as NumPy's file; absent where an image has several classes.
    pub(crate) confusion_matrix: Option<Vec<u8>>,
}

impl Findings {
    pub(crate) fn of(subject: Subject<'_>, answers: &Answers) -> Result<Self> {
        match answers {
            Answers::SingleLabel(evaluation) => Self::of_classes(subject, evaluation),
            Answers::MultiLabel(evaluation) => Self::of_labels(subject, evaluation),
        }
    }

    fn of_classes(subject: Subject<'_>, evaluation: &Evaluation) -> Result<Self> {
        let (metrics, coverage) = (evaluation.metrics(), evaluation.coverage());
        let Subject { classifier, dataset, source, others } = subject;
        let report = Report {
            info: classifier.info(),
            parameters: classifier.parameters(),
            evaluation,
            metrics: &metrics,
            dataset,
            source,
            others,
        };
        let mistakes = report.worst_mistakes()?;
        let mut figures = serde_json::to_value(&metrics)?;
        figures["coverage"] = json!(coverage);
        Ok(Self {
            page: report.html(&mistakes)?,
            mistakes,
            figures,
            tracked: tracked(&metrics, coverage),
            lines: lines(&metrics, coverage),
            confusion_matrix: Some(files::npy(&metrics.confusion_matrix)),
        })
    }

    fn of_labels(subject: Subject<'_>, evaluation: &LabelEvaluation) -> Result<Self> {
        let metrics = evaluation.metrics();
        let report = LabelReport { subject, evaluation, metrics: &metrics };
        let mistakes = report.worst_mistakes()?;
        let unsure = evaluation.out_of_distribution();
        let labels = report.subject.classifier.labels();
        Ok(Self {
            page: report.html(&mistakes)?,
            mistakes,
            figures: with_refused(&metrics, unsure)?,
            tracked: labels_tracked(&metrics, unsure),
            lines: labels_lines(&metrics, unsure, labels),
            confusion_matrix: None,
        })
    }
}

/// Keeps thumbnails of the worst mistakes with a run, in `folder` of its artifacts, named by the actual and the
/// predicted class.
pub(crate) fn track_mistakes(run: &Run, folder: &str, mistakes: &[Mistake]) -> Result<()> {
    for (rank, mistake) in mistakes.iter().take(TRACKED_MISTAKES).enumerate() {
        let Mistake { actual, predicted, confidence, picture, .. } = mistake;
        let name = format!("{folder}/{:02}-{actual}-as-{predicted}-{confidence:.3}.jpg", rank + 1);
        run.artifact(&name, picture)?;
    }
    Ok(())
}

fn percent(figure: f64) -> String {
    format!("{:.2} %", figure * 100.0)
}

fn lines(metrics: &Metrics, coverage: Coverage) -> Vec<String> {
    let area = metrics.roc_auc.map(|area| format!("ROC AUC    {area:.4}"));
    let first = [
        format!("images     {}", metrics.num_samples),
        format!("accuracy   {}", percent(metrics.accuracy)),
        format!("precision  {}", percent(metrics.precision)),
        format!("recall     {}", percent(metrics.recall)),
        format!("F1         {}", percent(metrics.f1_score)),
    ];
    let (answered, right) = (percent(coverage.share), percent(coverage.accuracy));
    let (low, out) = (percent(coverage.low_confidence), percent(coverage.out_of_distribution));
    let last = [
        format!("log loss   {:.4}", metrics.log_loss),
        format!("ECE        {}", percent(metrics.ece)),
        format!("answered   {answered}, rightly {right}"),
        format!("unsure     {low} low confidence, {out} out of distribution"),
    ];
    first.into_iter().chain(area).chain(last).collect()
}

fn tracked(metrics: &Metrics, coverage: Coverage) -> Vec<(String, f64)> {
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
    values.into_iter().filter_map(|(name, value)| Some((name.into(), value?))).collect()
}

/// Longest list of classes in a terminal.
const LISTED: usize = 40;

fn labels_lines(metrics: &MultiLabelMetrics, unsure: f64, labels: &[String]) -> Vec<String> {
    let area = |area: Option<f64>| area.map_or("-".into(), percent);
    let mut lines = vec![
        format!("images     {}", metrics.num_samples),
        format!("mAP        {}", area(metrics.mean_average_precision)),
        format!("micro F1   {}", percent(metrics.micro_f1)),
        format!("macro F1   {}", percent(metrics.macro_f1)),
        format!("all right  {} of the images", percent(metrics.exact_match)),
        format!("log loss   {:.4}", metrics.log_loss),
        format!("unsure     {} out of distribution", percent(unsure)),
    ];
    let width = labels.iter().map(String::len).max().unwrap_or(0);
    let own = metrics.per_class.iter().zip(labels).take(LISTED);
    lines.extend(own.map(|(own, label)| {
        format!(
            "{label:width$}  AP {}  F1 {} from {:.3} on  ({} images)",
            area(own.average_precision),
            percent(own.f1_score),
            own.threshold,
            own.support
        )
    }));
    if labels.len() > LISTED {
        lines.push(format!("and {} classes more in metrics.json", labels.len() - LISTED));
    }
    lines
}

fn labels_tracked(metrics: &MultiLabelMetrics, unsure: f64) -> Vec<(String, f64)> {
    let values = [
        ("mean_average_precision", metrics.mean_average_precision),
        ("micro_f1", Some(metrics.micro_f1)),
        ("macro_f1", Some(metrics.macro_f1)),
        ("exact_match", Some(metrics.exact_match)),
        ("log_loss", Some(metrics.log_loss)),
        ("out_of_distribution", Some(unsure)),
        ("photos", Some(metrics.num_samples as f64)),
    ];
    values.into_iter().filter_map(|(name, value)| Some((name.into(), value?))).collect()
}

fn with_refused(metrics: &MultiLabelMetrics, unsure: f64) -> Result<Value> {
    let mut figures = serde_json::to_value(metrics)?;
    figures["out_of_distribution"] = json!(unsure);
    Ok(figures)
}
