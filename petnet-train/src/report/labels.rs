//! `report.html` of a multi-label model, as one self-contained page.

use anyhow::Result;
use petnet::LabelEvaluation;
use petnet::metrics::{MultiLabelMetrics, precision_recall_curve};
use serde_json::json;

use super::charts::{self, Curve};
use super::evaluation::Subject;
use super::page::{MAX_GALLERY_IMAGES, Mistake, STYLE, history};
use super::render;
use crate::encode::thumbnail;

const TEMPLATE: &str = include_str!("labels.html");
/// Most curves in a chart.
const MAX_CURVES: usize = 8;

/// Contents of the page.
pub(super) struct LabelReport<'a> {
    pub(super) subject: Subject<'a>,
    pub(super) evaluation: &'a LabelEvaluation,
    pub(super) metrics: &'a MultiLabelMetrics,
}

impl LabelReport<'_> {
    /// The page, with the given [`LabelReport::worst_mistakes`].
    pub(super) fn html(&self, mistakes: &[Mistake]) -> Result<String> {
        let info = self.subject.classifier.info();
        let training = charts::training(&history(info), charts::precision_curve)?;
        let ood_inputs: Vec<_> =
            self.subject.ood_inputs.iter().map(|input| &input.figures).collect();
        let values = json!({
            "style": STYLE,
            "info": info,
            "settings": serde_json::to_string_pretty(&info.settings)?,
            "parameters": self.subject.classifier.parameters(),
            "source": self.subject.dataset_name,
            "metrics": self.metrics,
            "out_of_distribution": self.evaluation.out_of_distribution(),
            "drawn": MAX_CURVES.min(info.labels.len()),
            "training": training,
            "precision_recall": charts::precision_recall(&self.curves())?,
            "ood_inputs": ood_inputs,
            "mistakes": mistakes,
        });
        render(TEMPLATE, values)
    }

    /// Precision-recall curves of the first classes.
    fn curves(&self) -> Vec<Curve> {
        let LabelEvaluation { probabilities, truth, .. } = self.evaluation;
        let labels = self.subject.classifier.labels().iter().enumerate().take(MAX_CURVES);
        let curve = |(class, label): (usize, &String)| {
            let scores: Vec<f32> = probabilities.iter().map(|row| row[class]).collect();
            let positive: Vec<bool> = truth.iter().map(|truth| truth.contains(&class)).collect();
            (label.clone(), precision_recall_curve(&scores, &positive))
        };
        labels.map(curve).collect()
    }

    /// The images with the most confident wrong prediction of one label.
    pub(super) fn worst_mistakes(&self) -> Result<Vec<Mistake>> {
        let LabelEvaluation { probabilities, truth, .. } = self.evaluation;
        let own = &self.metrics.per_class;
        // Of each image, the wrong label with the highest confidence.
        let worst = |(image, row): (usize, &Vec<f32>)| {
            let wrong = row.iter().enumerate().filter_map(|(class, probability)| {
                let actual = truth[image].contains(&class);
                let predicted = *probability >= own[class].threshold;
                let confidence = if actual { 1.0 - probability } else { *probability };
                (actual != predicted).then_some((image, class, confidence))
            });
            wrong.max_by(|a, b| a.2.total_cmp(&b.2))
        };
        let mut wrong: Vec<_> = probabilities.iter().enumerate().filter_map(worst).collect();
        wrong.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
        let mistake = |(image, class, _): (usize, usize, f32)| {
            let row = &probabilities[image];
            let predicted = (0..row.len()).filter(|class| row[*class] >= own[*class].threshold);
            let dataset = self.subject.dataset;
            Ok(Mistake {
                path: dataset.samples()[image].path.display().to_string(),
                actual: self.names(truth[image].iter().copied()),
                predicted: self.names(predicted),
                confidence: row[class],
                thumbnail: thumbnail(&dataset.read(image)?)?,
            })
        };
        wrong.into_iter().take(MAX_GALLERY_IMAGES).map(mistake).collect()
    }

    fn names(&self, classes: impl Iterator<Item = usize>) -> String {
        let labels = self.subject.classifier.labels();
        let names: Vec<&str> = classes.map(|class| labels[class].as_str()).collect();
        if names.is_empty() { "none".into() } else { names.join("+") }
    }
}
