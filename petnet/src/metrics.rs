//! Figures that judge a classifier: plain numbers in, plain numbers out.

mod multi_label;

use serde::{Deserialize, Serialize};

#[cfg(feature = "train")]
pub(crate) use multi_label::temperature_of_sigmoids;
pub use multi_label::{
    LabelMetrics, MultiLabelMetrics, average_precision, precision_recall_curve, thresholds_for,
};

/// Bins of the reliability diagram and of [`Metrics::ece`].
pub const CALIBRATION_BINS: usize = 15;

/// Precision, recall and F1 of one class, each 0 to 1 (0 where nothing was counted).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// Of the images that were called this class, the share that is.
    pub precision: f64,
    /// Of the images of this class, the share that was called so.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1_score: f64,
    /// Images of this class.
    pub support: usize,
}

/// Figures of a whole evaluation. For two classes, precision, recall and F1 are those of class 1
/// (dog), as the reference system reports them; for more they are means over classes.
///
/// ```
/// let answers = [vec![0.9, 0.1], vec![0.2, 0.8], vec![0.6, 0.4]];
/// let metrics = petnet::metrics::Metrics::compute(&answers, &[0, 1, 1], 2);
/// assert_eq!(metrics.confusion_matrix, [[1, 0], [1, 1]]); // a row a true class
/// assert_eq!((metrics.precision, metrics.recall), (1.0, 0.5));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Share of right answers.
    pub accuracy: f64,
    /// See above.
    pub precision: f64,
    /// See above.
    pub recall: f64,
    /// See above.
    pub f1_score: f64,
    /// Area under the ROC curve; for more than two classes the mean of one against the rest.
    /// Absent where a class has no image.
    pub roc_auc: Option<f64>,
    /// Mean negative log likelihood of the right class, in nats.
    pub log_loss: f64,
    /// Expected calibration error over [`CALIBRATION_BINS`] equal bins of confidence
    /// (Guo et al., "On calibration of modern neural networks", 2017).
    pub ece: f64,
    /// Images.
    pub num_samples: usize,
    /// `[truth][answer]` counts.
    pub confusion_matrix: Vec<Vec<usize>>,
    /// The same per class.
    pub per_class: Vec<ClassMetrics>,
}

/// One bin of the reliability diagram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CalibrationBin {
    /// Mean confidence of the answers in the bin.
    pub confidence: f64,
    /// Share of them that is right.
    pub accuracy: f64,
    /// Number of answers.
    pub count: usize,
}

impl Metrics {
    /// Judges probabilities (a row an image) by the true classes.
    ///
    /// Rows and `truth` must pair up; what is left over on either side is not counted.
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
            ece: ece(&calibration(probabilities, truth)),
            num_samples: count,
            confusion_matrix: confusion,
            per_class,
        }
    }
}

/// The lowest confidence at which the answers that reach it are right in at least `share` of all
/// cases; `None` where no confidence is enough.
pub fn confidence_for(share: f64, probabilities: &[Vec<f32>], truth: &[usize]) -> Option<f32> {
    let mut answers: Vec<(f32, bool)> = probabilities
        .iter()
        .zip(truth)
        .map(|(row, class)| (row[argmax(row)], argmax(row) == *class))
        .collect();
    answers.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut right, mut lowest) = (0, None);
    for (rank, (confidence, is_right)) in answers.iter().enumerate() {
        right += usize::from(*is_right);
        // Equal confidences stand or fall together.
        let last = answers.get(rank + 1).is_none_or(|next| next.0 < *confidence);
        if last && right as f64 >= share * (rank + 1) as f64 {
            lowest = Some(*confidence);
        }
    }
    lowest
}

/// The temperature by which logits must be divided for the lowest log loss: above 1 where a model
/// is too sure of itself. `probabilities` are those at temperature 1.
///
/// ```
/// // Nine of ten are right, and it says 99 % of each.
/// let answers: Vec<_> = (0..10).map(|_| vec![0.99, 0.01]).collect();
/// let truth = [0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// assert!(petnet::metrics::temperature_for(&answers, &truth) > 1.5);
/// ```
pub fn temperature_for(probabilities: &[Vec<f32>], truth: &[usize]) -> f32 {
    let logits: Vec<Vec<f64>> = probabilities
        .iter()
        .map(|row| row.iter().map(|p| f64::from(*p).max(1e-30).ln()).collect())
        .collect();
    lowest_temperature(|scale| {
        let of = |row: &Vec<f64>, class: usize| {
            let sum: f64 = row.iter().map(|other| ((other - row[class]) * scale).exp()).sum();
            sum.ln()
        };
        logits.iter().zip(truth).map(|(row, class)| of(row, *class)).sum()
    })
}

/// The temperature of the lowest loss, which is a function of one over the temperature.
fn lowest_temperature(loss: impl Fn(f64) -> f64) -> f32 {
    let loss = |logarithm: f64| loss((-logarithm).exp());
    // The loss has one valley: golden-section search, between 1/20 and 20.
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (-3.0, 3.0);
    while high - low > 1e-4 {
        let (a, b) = (high - golden * (high - low), low + golden * (high - low));
        if loss(a) < loss(b) { high = b } else { low = a }
    }
    ((low + high) / 2.0).exp() as f32
}

/// Index of the largest value, the first of equals; 0 for an empty row.
pub fn argmax(row: &[f32]) -> usize {
    let best = row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (index, &value)| {
        if value > best.1 { (index, value) } else { best }
    });
    best.0
}

/// Confidence against accuracy in equal bins of confidence, from 0 to 1.
pub fn calibration(probabilities: &[Vec<f32>], truth: &[usize]) -> Vec<CalibrationBin> {
    let answers = probabilities.iter().zip(truth).map(|(row, class)| {
        let best = argmax(row);
        (row[best], best == *class)
    });
    reliability(answers)
}

/// [`calibration`] of answers that are known by their confidence and by whether they were right.
pub fn reliability(answers: impl Iterator<Item = (f32, bool)>) -> Vec<CalibrationBin> {
    let mut sums = [(0.0, 0, 0); CALIBRATION_BINS];
    for (confidence, correct) in answers {
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
/// against the rest. Empty where one side has no image.
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
    let (mut hits, mut alarms) = (0, 0);
    // Images of equal score enter together: their order says nothing.
    for tied in ranked.chunk_by(|a, b| a.0 == b.0) {
        hits += tied.iter().filter(|(_, positive)| **positive).count();
        alarms += tied.iter().filter(|(_, positive)| !**positive).count();
        points.push((ratio(alarms, negatives), ratio(hits, positives)));
    }
    points
}

/// Area under the ROC curve; `None` where one side is empty.
fn auroc(scores: &[f32], positive: &[bool]) -> Option<f64> {
    let curve = roc_curve(scores, positive);
    let strips = curve.windows(2).map(|w| (w[1].0 - w[0].0) * (w[1].1 + w[0].1) / 2.0);
    (!curve.is_empty()).then(|| strips.sum::<f64>())
}

fn roc_auc(probabilities: &[Vec<f32>], truth: &[usize], classes: usize) -> Option<f64> {
    let area = |class: usize| {
        let scores: Vec<f32> = probabilities.iter().map(|row| row[class]).collect();
        let positive: Vec<bool> = truth.iter().map(|t| *t == class).collect();
        auroc(&scores, &positive)
    };
    match classes {
        2 => area(1),
        _ => {
            let areas: Option<Vec<f64>> = (0..classes).map(area).collect();
            areas.map(|areas| areas.iter().sum::<f64>() / areas.len().max(1) as f64)
        }
    }
}

/// Figures of an out-of-distribution score on a model's own images and on images of other things (Hendrycks and Gimpel,
/// "A baseline for detecting misclassified and out-of-distribution examples in neural networks", 2017).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OodMetrics {
    /// Images of other things.
    pub images: usize,
    /// Area under the ROC curve: the probability that an image of another thing has a higher score than one of the
    /// model's own. 1 is a perfect score, 0.5 is chance.
    pub auroc: f64,
    /// False positive rate at 95 % true positives: the share of the other images that are accepted at the threshold that
    /// accepts 95 % of the model's own images.
    pub fpr95: f64,
}

impl OodMetrics {
    /// From the scores of a model's own images and of others, higher for images that are further away. `None` where there
    /// is no score of one of the two.
    ///
    /// ```
    /// use petnet::metrics::OodMetrics;
    ///
    /// let metrics = OodMetrics::compute(&[0.1, 0.2, 0.3, 0.4], &[0.35, 0.9]).expect("both have scores");
    /// assert_eq!((metrics.auroc, metrics.fpr95), (0.875, 0.5));
    /// assert_eq!(OodMetrics::compute(&[0.1], &[]), None);
    /// ```
    pub fn compute(known: &[f32], other: &[f32]) -> Option<Self> {
        /// Share of the model's own images that are accepted.
        const ACCEPTED: f64 = 0.95;
        let scores = [known, other].concat();
        let is_other: Vec<bool> = (0..scores.len()).map(|place| place >= known.len()).collect();
        let auroc = auroc(&scores, &is_other)?;
        let mut sorted = known.to_vec();
        sorted.sort_by(f32::total_cmp);
        let place = (known.len() as f64 * ACCEPTED).ceil() as usize;
        let threshold = *sorted.get(place.saturating_sub(1))?;
        let accepted = other.iter().filter(|score| **score <= threshold).count();
        Some(Self { images: other.len(), auroc, fpr95: ratio(accepted, other.len()) })
    }
}

/// Expected calibration error, see [`Metrics::ece`].
pub fn ece(bins: &[CalibrationBin]) -> f64 {
    let total: usize = bins.iter().map(|bin| bin.count).sum();
    bins.iter().map(|bin| ratio(bin.count, total) * (bin.confidence - bin.accuracy).abs()).sum()
}

/// Figures of one class from `[truth][answer]` counts.
pub fn class_metrics(confusion: &[Vec<usize>], class: usize) -> ClassMetrics {
    let hits = confusion[class][class];
    let called: usize = confusion.iter().map(|row| row[class]).sum();
    let support: usize = confusion[class].iter().sum();
    ClassMetrics {
        precision: ratio(hits, called),
        recall: ratio(hits, support),
        f1_score: ratio(2 * hits, called + support),
        support,
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
