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

/// Counts of one class.
#[derive(Default, Clone, Copy)]
struct Counts {
    true_positives: usize,
    predicted: usize,
    support: usize,
}

impl Counts {
    fn f1_score(self) -> f64 {
        ratio(2 * self.true_positives, self.predicted + self.support)
    }
}

impl MultiLabelMetrics {
    /// Metrics of probabilities (one row per image, one column per class) and true classes, at one threshold per class.
    ///
    /// If the numbers of rows and of `truth` differ, the excess is ignored. Rows have as many columns as there are
    /// thresholds.
    pub fn compute(probabilities: &[Vec<f32>], truth: &[Vec<usize>], thresholds: &[f32]) -> Self {
        let classes = thresholds.len();
        let mut counts = vec![Counts::default(); classes];
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
        let figures = |(class, own): (usize, &Counts)| {
            let (scores, positive) = column(probabilities, truth, class);
            LabelMetrics {
                average_precision: average_precision(&scores, &positive),
                threshold: thresholds[class],
                precision: ratio(own.true_positives, own.predicted),
                recall: ratio(own.true_positives, own.support),
                f1_score: own.f1_score(),
                support: own.support,
            }
        };
        let per_class: Vec<LabelMetrics> = counts.iter().enumerate().map(figures).collect();
        let all = counts.iter().fold(Counts::default(), |sum, own| Counts {
            true_positives: sum.true_positives + own.true_positives,
            predicted: sum.predicted + own.predicted,
            support: sum.support + own.support,
        });
        let areas: Vec<f64> = per_class.iter().filter_map(|own| own.average_precision).collect();
        let f1_scores = per_class.iter().map(|own| own.f1_score);
        Self {
            mean_average_precision: (!areas.is_empty())
                .then(|| areas.iter().sum::<f64>() / areas.len() as f64),
            micro_f1: all.f1_score(),
            macro_f1: f1_scores.sum::<f64>() / classes.max(1) as f64,
            exact_match: ratio(exact, images),
            log_loss: log_loss / (images * classes).max(1) as f64,
            num_samples: images,
            per_class,
        }
    }
}

/// Probabilities of one class, and true for each image that has it.
fn column(probabilities: &[Vec<f32>], truth: &[Vec<usize>], class: usize) -> (Vec<f32>, Vec<bool>) {
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

/// The threshold of each class with the highest F1 on these images, midway between two probabilities; `unchosen` for a
/// class that no image has.
pub fn thresholds_for(
    probabilities: &[Vec<f32>],
    truth: &[Vec<usize>],
    classes: usize,
    unchosen: f32,
) -> Vec<f32> {
    let threshold = |class: usize| {
        let (scores, positive) = column(probabilities, truth, class);
        let mut ranked: Vec<(f32, bool)> = scores.into_iter().zip(positive).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        let support = ranked.iter().filter(|(_, positive)| *positive).count();
        let (mut true_positives, mut best) = (0, (0.0, unchosen));
        for (place, (score, positive)) in ranked.iter().enumerate() {
            true_positives += usize::from(*positive);
            let next = ranked.get(place + 1).map_or(0.0, |next| next.0);
            let f1_score = ratio(2 * true_positives, place + 1 + support);
            // Images of equal score are accepted together.
            if next < *score && f1_score > best.0 {
                best = (f1_score, f32::midpoint(*score, next));
            }
        }
        best.1
    };
    (0..classes).map(threshold).collect()
}

/// [`temperature_for`](super::temperature_for) for sigmoids: the temperature by which logits must be divided for the
/// lowest mean binary cross entropy.
#[cfg(any(test, feature = "train"))]
pub(crate) fn temperature_of_sigmoids(logits: &[&[f32]], truth: &[Vec<usize>]) -> f32 {
    super::lowest_temperature(|scale| {
        let of = |(row, truth): (&&[f32], &Vec<usize>)| -> f64 {
            let one = |(class, logit): (usize, &f32)| {
                let sign = if truth.contains(&class) { -1.0 } else { 1.0 };
                // ln(1 + exp(x)), in a form that does not overflow.
                let x = sign * f64::from(*logit) * scale;
                x.max(0.0) + (-x.abs()).exp().ln_1p()
            };
            row.iter().enumerate().map(one).sum()
        };
        logits.iter().zip(truth).map(of).sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_take_the_highest_f1_and_equal_scores_together() {
        let rows = [[0.9], [0.4], [0.4], [0.1]].map(|row| row.to_vec());
        let truth = [vec![0], vec![0], vec![], vec![]];
        // Accepting the first image gives an F1 of 2/3, the first three 4/5; the two of 0.4 are accepted together.
        assert_eq!(thresholds_for(&rows, &truth, 1, 0.5), [0.25]);
        assert_eq!(thresholds_for(&rows, &[vec![], vec![], vec![], vec![]], 1, 0.5), [0.5]);
        let all = MultiLabelMetrics::compute(&rows, &truth, &[0.25]);
        assert!((all.micro_f1 - 0.8).abs() < 1e-9, "{all:?}");
        assert_eq!((all.per_class[0].recall, all.exact_match), (1.0, 0.75));
    }

    #[test]
    fn logits_that_are_too_large_get_a_temperature_above_one() {
        let rows: Vec<Vec<f32>> = (0..10).map(|_| vec![4.0, -4.0]).collect();
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let mut truth = vec![vec![0]; 8];
        truth.extend([vec![1], vec![1]]);
        // Eight of ten: the logit should be ln(4).
        let temperature = temperature_of_sigmoids(&rows, &truth);
        assert!((temperature - 4.0 / 4.0_f32.ln()).abs() < 1e-2, "{temperature}");
    }
}
