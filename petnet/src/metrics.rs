//! Metrics of classification, computed from probabilities and true classes.

mod multi_label;

use serde::{Deserialize, Serialize};

#[cfg(feature = "train")]
pub(crate) use multi_label::column;
pub use multi_label::{LabelMetrics, MultiLabelMetrics, average_precision, precision_recall_curve};

/// Bins of the reliability diagram and of [`Metrics::ece`].
pub const CALIBRATION_BINS: usize = 15;

/// Precision, recall and F1 of one class, each 0 to 1 (0 where the denominator is 0).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// Share of the images predicted as this class that are of it.
    pub precision: f64,
    /// Share of the images of this class that are predicted as it.
    pub recall: f64,
    /// Harmonic mean of precision and recall.
    pub f1_score: f64,
    /// Number of images of this class.
    pub support: usize,
}

/// Metrics of an evaluation. For two classes, precision, recall and F1 are those of class 1 (dog), as in the Python
/// reference implementation; for more classes they are means over classes (macro averages).
///
/// ```
/// let probabilities = [vec![0.9, 0.1], vec![0.2, 0.8], vec![0.6, 0.4]];
/// let metrics = petnet::metrics::Metrics::compute(&probabilities, &[0, 1, 1], 2);
/// assert_eq!(metrics.confusion_matrix, [[1, 0], [1, 1]]); // one row per actual class
/// assert_eq!((metrics.precision, metrics.recall), (1.0, 0.5));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Share of images whose predicted class is right.
    pub accuracy: f64,
    /// Precision of class 1 of two, otherwise its mean over classes.
    pub precision: f64,
    /// Recall of class 1 of two, otherwise its mean over classes.
    pub recall: f64,
    /// F1 of class 1 of two, otherwise its mean over classes.
    pub f1_score: f64,
    /// Area under the ROC curve; for more than two classes the mean over each class against the rest. Absent where a class
    /// has no images.
    pub roc_auc: Option<f64>,
    /// Mean negative log likelihood of the right class, in nats.
    pub log_loss: f64,
    /// Expected calibration error over [`CALIBRATION_BINS`] bins of equal width
    /// (Guo et al., "On calibration of modern neural networks", 2017).
    pub ece: f64,
    /// Number of images.
    pub num_samples: usize,
    /// Number of images by `[actual][predicted]` class.
    pub confusion_matrix: Vec<Vec<usize>>,
    /// Precision, recall and F1 of each class.
    pub per_class: Vec<ClassMetrics>,
}

/// One bin of the reliability diagram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CalibrationBin {
    /// Mean confidence of the predictions in the bin.
    pub confidence: f64,
    /// Share of them that are right.
    pub accuracy: f64,
    /// Number of predictions.
    pub count: usize,
}

impl Metrics {
    /// Metrics of probabilities (one row per image) and true classes. If their lengths differ, the excess is ignored.
    pub fn compute(probabilities: &[Vec<f32>], truth: &[usize], classes: usize) -> Self {
        let mut confusion = vec![vec![0; classes]; classes];
        let mut log_loss = 0.0;
        for (row, &class) in probabilities.iter().zip(truth) {
            confusion[class][argmax(row)] += 1;
            log_loss -= f64::from(row[class]).max(f64::EPSILON).ln();
        }
        let count = probabilities.len().min(truth.len());
        let per_class: Vec<_> =
            (0..classes).map(|class| class_metrics(&confusion, class)).collect();
        let overall = |figure: fn(&ClassMetrics) -> f64| match per_class.as_slice() {
            [_, positive] => figure(positive),
            all => all.iter().map(figure).sum::<f64>() / all.len() as f64,
        };
        let right: usize = (0..classes).map(|class| confusion[class][class]).sum();
        Self {
            accuracy: ratio(right, count),
            precision: overall(|c| c.precision),
            recall: overall(|c| c.recall),
            f1_score: overall(|c| c.f1_score),
            roc_auc: roc_auc(probabilities, truth, classes),
            log_loss: log_loss / count.max(1) as f64,
            ece: ece(&calibration_bins(probabilities, truth)),
            num_samples: count,
            confusion_matrix: confusion,
            per_class,
        }
    }
}

/// Index of the largest value, the first one of equal values; 0 for an empty row.
pub fn argmax(row: &[f32]) -> usize {
    let best = row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (index, &value)| {
        if value > best.1 { (index, value) } else { best }
    });
    best.0
}

/// [`reliability`] of probabilities (one row per image) and true classes.
pub(crate) fn calibration_bins(probabilities: &[Vec<f32>], truth: &[usize]) -> Vec<CalibrationBin> {
    let predictions = probabilities.iter().zip(truth).map(|(row, class)| {
        let best = argmax(row);
        (row[best], best == *class)
    });
    reliability(predictions)
}

/// Confidence and accuracy in bins of equal width of confidence, from 0 to 1, of predictions given as pairs of confidence
/// and correctness.
pub fn reliability(predictions: impl Iterator<Item = (f32, bool)>) -> Vec<CalibrationBin> {
    let mut sums = [(0.0, 0, 0); CALIBRATION_BINS];
    for (confidence, correct) in predictions {
        let confidence = f64::from(confidence);
        let bin =
            ((confidence * CALIBRATION_BINS as f64).ceil() as usize).clamp(1, CALIBRATION_BINS) - 1;
        let (sum, right, count) = &mut sums[bin];
        *sum += confidence;
        *right += usize::from(correct);
        *count += 1;
    }
    sums.iter()
        .map(|&(sum, right, count)| CalibrationBin {
            confidence: sum / count.max(1) as f64,
            accuracy: ratio(right, count),
            count,
        })
        .collect()
}

/// Points (false positive rate, true positive rate) from (0, 0) to (1, 1), for scores of one class
/// against the rest. Empty where one of the two has no images.
///
/// ```
/// let curve = petnet::metrics::roc_curve(&[0.9, 0.6, 0.3], &[true, false, false]);
/// assert!(curve.contains(&(0.0, 1.0)), "the positive comes first");
/// ```
pub fn roc_curve(scores: &[f32], positive: &[bool]) -> Vec<(f64, f64)> {
    let positives = positive.iter().filter(|p| **p).count();
    let negatives = positive.len() - positives;
    if positives == 0 || negatives == 0 {
        return Vec::new();
    }
    let mut ranked: Vec<_> = scores.iter().zip(positive).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(a.0));
    let mut points = vec![(0.0, 0.0)];
    let (mut true_positives, mut false_positives) = (0, 0);
    // Images of equal score are one point, as their order is arbitrary.
    for tied in ranked.chunk_by(|a, b| a.0 == b.0) {
        true_positives += tied.iter().filter(|(_, positive)| **positive).count();
        false_positives += tied.iter().filter(|(_, positive)| !**positive).count();
        points.push((ratio(false_positives, negatives), ratio(true_positives, positives)));
    }
    points
}

/// Area under the ROC curve by the trapezoidal rule; `None` where there are no positives or no negatives.
fn auroc(scores: &[f32], positive: &[bool]) -> Option<f64> {
    let curve = roc_curve(scores, positive);
    let trapezoids = curve.windows(2).map(|w| (w[1].0 - w[0].0) * (w[1].1 + w[0].1) / 2.0);
    (!curve.is_empty()).then(|| trapezoids.sum::<f64>())
}

fn roc_auc(probabilities: &[Vec<f32>], truth: &[usize], classes: usize) -> Option<f64> {
    let area = |class: usize| {
        let scores: Vec<f32> = probabilities.iter().map(|row| row[class]).collect();
        let positive: Vec<bool> = truth.iter().map(|t| *t == class).collect();
        auroc(&scores, &positive)
    };
    if classes == 2 {
        return area(1);
    }
    let areas: Option<Vec<f64>> = (0..classes).map(area).collect();
    areas.map(|areas| areas.iter().sum::<f64>() / areas.len().max(1) as f64)
}

/// Metrics of an out-of-distribution score on in-distribution and out-of-distribution images (Hendrycks and Gimpel,
/// "A baseline for detecting misclassified and out-of-distribution examples in neural networks", 2017).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OodMetrics {
    /// Number of out-of-distribution images.
    pub images: usize,
    /// Area under the ROC curve: the probability that an out-of-distribution image has a higher score than an
    /// in-distribution one. 1 is perfect, 0.5 is chance.
    pub auroc: f64,
    /// False positive rate at 95 % true positives: the share of out-of-distribution images that are accepted at the
    /// threshold that accepts 95 % of the in-distribution images.
    pub fpr95: f64,
}

impl OodMetrics {
    /// From the scores of in-distribution images (`known`) and of others, higher for images further from the training
    /// images. `None` where either has no scores.
    ///
    /// ```
    /// use petnet::metrics::OodMetrics;
    ///
    /// let metrics = OodMetrics::compute(&[0.1, 0.2, 0.3, 0.4], &[0.35, 0.9]).expect("both have scores");
    /// assert_eq!((metrics.auroc, metrics.fpr95), (0.875, 0.5));
    /// assert_eq!(OodMetrics::compute(&[0.1], &[]), None);
    /// ```
    pub fn compute(known: &[f32], other: &[f32]) -> Option<Self> {
        /// Share of the in-distribution images that are accepted.
        const ACCEPTED_SHARE: f64 = 0.95;
        let scores = [known, other].concat();
        let is_other: Vec<bool> = (0..scores.len()).map(|index| index >= known.len()).collect();
        let auroc = auroc(&scores, &is_other)?;
        let mut sorted = known.to_vec();
        sorted.sort_by(f32::total_cmp);
        let accepted_count = (known.len() as f64 * ACCEPTED_SHARE).ceil() as usize;
        let threshold = *sorted.get(accepted_count.saturating_sub(1))?;
        let accepted = other.iter().filter(|score| **score <= threshold).count();
        Some(Self { images: other.len(), auroc, fpr95: ratio(accepted, other.len()) })
    }
}

/// Expected calibration error, see [`Metrics::ece`].
pub fn ece(bins: &[CalibrationBin]) -> f64 {
    let total: usize = bins.iter().map(|bin| bin.count).sum();
    bins.iter().map(|bin| ratio(bin.count, total) * (bin.confidence - bin.accuracy).abs()).sum()
}

/// Metrics of one class from the counts of a confusion matrix, `[actual][predicted]`.
pub fn class_metrics(confusion: &[Vec<usize>], class: usize) -> ClassMetrics {
    let true_positives = confusion[class][class];
    let predicted: usize = confusion.iter().map(|row| row[class]).sum();
    let support: usize = confusion[class].iter().sum();
    ClassMetrics {
        precision: ratio(true_positives, predicted),
        recall: ratio(true_positives, support),
        f1_score: ratio(2 * true_positives, predicted + support),
        support,
    }
}

pub(crate) fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
