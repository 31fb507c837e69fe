//! Metrics of multi-label classification.

use serde::{Deserialize, Serialize};

use super::ratio;

/// Precision, recall and F1 of one class at its threshold, each 0 to 1 (0 where the denominator is 0).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LabelMetrics {
    /// Area under the precision-recall curve, see [`average_precision`]; absent where no image has the class.
    pub average_precision: Option<f64>,
    /// Least probability at which the class is predicted.
    pub threshold: f32,
    /// Share of the images for which the class is predicted that have it.
    pub precision: f64,
    /// Share of the images with the class for which it is predicted.
    pub recall: f64,
    /// Harmonic mean of precision and recall.
    pub f1_score: f64,
    /// Number of images with the class.
    pub support: usize,
}

/// Metrics of an evaluation on multi-label data.
///
/// ```
/// use petnet::metrics::MultiLabelMetrics;
///
/// let probabilities = [vec![0.9, 0.8], vec![0.7, 0.1], vec![0.2, 0.6]];
/// let truth = [vec![0, 1], vec![0], vec![]];
/// let metrics = MultiLabelMetrics::compute(&probabilities, &truth, &[0.5, 0.5]);
/// assert_eq!(metrics.mean_average_precision, Some(1.0), "images with a class rank above the others");
/// assert_eq!(metrics.exact_match, 2.0 / 3.0, "the last image has no class, but one is predicted");
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MultiLabelMetrics {
    /// Mean of [`LabelMetrics::average_precision`] over the classes that have one. It does not depend on thresholds.
    pub mean_average_precision: Option<f64>,
    /// F1 over all pairs of image and class.
    pub micro_f1: f64,
    /// Mean of the classes' F1.
    pub macro_f1: f64,
    /// Share of the images whose predicted classes are exactly the true ones (subset accuracy).
    pub exact_match: f64,
    /// Mean binary cross entropy over images and classes, in nats.
    pub log_loss: f64,
    /// Number of images.
    pub num_samples: usize,
    /// Metrics of each class.
    pub per_class: Vec<LabelMetrics>,
}

/// Numbers of images of one class: those that have it (`support`), those for which it is predicted, and those of both.
#[derive(Default, Clone, Copy)]
struct ClassCounts {
    true_positives: usize,
    predicted: usize,
    support: usize,
}

impl MultiLabelMetrics {
    /// Metrics of probabilities (one row per image, one column per class) and true classes, at one threshold per class.
    ///
    /// If the numbers of rows and of `truth` differ, the excess is ignored. Rows have as many columns as there are
    /// thresholds.
    pub fn compute(probabilities: &[Vec<f32>], truth: &[Vec<usize>], thresholds: &[f32]) -> Self {
        let classes = thresholds.len();
        let mut counts = vec![ClassCounts::default(); classes];
        let (mut exact, mut log_loss) = (0, 0.0);
        for (row, truth) in probabilities.iter().zip(truth) {
            let mut all_right = true;
            for (class, (probability, threshold)) in row.iter().zip(thresholds).enumerate() {
                let (actual, predicted) = (truth.contains(&class), probability >= threshold);
                counts[class].true_positives += usize::from(actual && predicted);
                counts[class].predicted += usize::from(predicted);
                counts[class].support += usize::from(actual);
                all_right &= actual == predicted;
                let right = f64::from(if actual { *probability } else { 1.0 - probability });
                log_loss -= right.max(f64::EPSILON).ln();
            }
            exact += usize::from(all_right);
        }
        let images = probabilities.len().min(truth.len());
        let figures = |(class, own): (usize, &ClassCounts)| {
            let (scores, positive) = column(probabilities, truth, class);
            LabelMetrics {
                average_precision: average_precision(&scores, &positive),
                threshold: thresholds[class],
                precision: ratio(own.true_positives, own.predicted),
                recall: ratio(own.true_positives, own.support),
                f1_score: ratio(2 * own.true_positives, own.predicted + own.support),
                support: own.support,
            }
        };
        let per_class: Vec<LabelMetrics> = counts.iter().enumerate().map(figures).collect();
        let sum = |count: fn(&ClassCounts) -> usize| counts.iter().map(count).sum::<usize>();
        let true_positives = sum(|own| own.true_positives);
        let areas: Vec<f64> = per_class.iter().filter_map(|own| own.average_precision).collect();
        let f1_scores = per_class.iter().map(|own| own.f1_score);
        Self {
            mean_average_precision: (!areas.is_empty())
                .then(|| areas.iter().sum::<f64>() / areas.len() as f64),
            micro_f1: ratio(2 * true_positives, sum(|own| own.predicted + own.support)),
            macro_f1: f1_scores.sum::<f64>() / classes.max(1) as f64,
            exact_match: ratio(exact, images),
            log_loss: log_loss / (images * classes).max(1) as f64,
            num_samples: images,
            per_class,
        }
    }
}

/// Probabilities of one class, and true for each image that has it.
pub(crate) fn column(
    probabilities: &[Vec<f32>],
    truth: &[Vec<usize>],
    class: usize,
) -> (Vec<f32>, Vec<bool>) {
    let rows = probabilities.iter().zip(truth);
    let cell = |row: &Vec<f32>| row.get(class).copied().unwrap_or(0.0);
    rows.map(|(row, truth)| (cell(row), truth.contains(&class))).unzip()
}

/// Points (recall, precision), recall rising, for scores of one class; empty where no image has it.
pub fn precision_recall_curve(scores: &[f32], positive: &[bool]) -> Vec<(f64, f64)> {
    let support = positive.iter().filter(|positive| **positive).count();
    if support == 0 {
        return Vec::new();
    }
    let mut ranked: Vec<_> = scores.iter().zip(positive).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(a.0));
    let (mut true_positives, mut predicted) = (0, 0);
    // Images of equal score are one point, as their order is arbitrary.
    let tied = ranked.chunk_by(|a, b| a.0 == b.0);
    let points = tied.map(|tied| {
        true_positives += tied.iter().filter(|(_, positive)| **positive).count();
        predicted += tied.len();
        (ratio(true_positives, support), ratio(true_positives, predicted))
    });
    points.collect()
}

/// Average precision: the sum of the precisions at each threshold, weighted by the increase of recall, as scikit-learn
/// computes it; `None` where no image has the class.
///
/// ```
/// use petnet::metrics::average_precision;
///
/// let found = average_precision(&[0.9, 0.8, 0.7], &[true, false, true]).expect("two images have it");
/// assert!((found - (0.5 + 0.5 * 2.0 / 3.0)).abs() < 1e-12);
/// ```
pub fn average_precision(scores: &[f32], positive: &[bool]) -> Option<f64> {
    let mut before = 0.0;
    let gained = precision_recall_curve(scores, positive).into_iter().map(|(recall, precision)| {
        let gained = (recall - before) * precision;
        before = recall;
        gained
    });
    let gained: Vec<f64> = gained.collect();
    (!gained.is_empty()).then(|| gained.iter().sum())
}
