//! Temperatures and thresholds that suit predictions on validation images.

use crate::metrics::{argmax, column, ratio};

/// The lowest confidence threshold at which at least this share of the predictions that reach it is correct; `None` where there
/// is none.
pub(super) fn confidence_threshold(
    accuracy: f64,
    probabilities: &[Vec<f32>],
    truth: &[usize],
) -> Option<f32> {
    let mut predictions: Vec<(f32, bool)> = probabilities
        .iter()
        .zip(truth)
        .map(|(row, class)| (row[argmax(row)], argmax(row) == *class))
        .collect();
    predictions.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut correct, mut lowest) = (0, None);
    for (rank, (confidence, is_correct)) in predictions.iter().enumerate() {
        correct += usize::from(*is_correct);
        // Predictions of equal confidence are accepted together.
        let last = predictions.get(rank + 1).is_none_or(|next| next.0 < *confidence);
        if last && correct as f64 >= accuracy * (rank + 1) as f64 {
            lowest = Some(*confidence);
        }
    }
    lowest
}

/// The temperature by which logits must be divided for the lowest log loss: above 1 for an overconfident model.
/// `probabilities` are those at temperature 1.
pub(super) fn temperature(probabilities: &[Vec<f32>], truth: &[usize]) -> f32 {
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

/// The temperature of the lowest loss; `loss` is a function of the inverse temperature.
fn lowest_temperature(loss: impl Fn(f64) -> f64) -> f32 {
    let loss = |logarithm: f64| loss((-logarithm).exp());
    // The loss has one minimum, which a golden-section search finds between 1/20 and 20.
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (-3.0, 3.0);
    while high - low > 1e-4 {
        let (a, b) = (high - golden * (high - low), low + golden * (high - low));
        if loss(a) < loss(b) { high = b } else { low = a }
    }
    ((low + high) / 2.0).exp() as f32
}

/// The threshold of each class with the highest F1 on these images, midway between two probabilities; `unchosen` for a
/// class that no image has.
pub(super) fn best_f1_thresholds(
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
        for (rank, (score, positive)) in ranked.iter().enumerate() {
            true_positives += usize::from(*positive);
            let next = ranked.get(rank + 1).map_or(0.0, |next| next.0);
            let f1_score = ratio(2 * true_positives, rank + 1 + support);
            // Images of equal score are accepted together.
            if next < *score && f1_score > best.0 {
                best = (f1_score, f32::midpoint(*score, next));
            }
        }
        best.1
    };
    (0..classes).map(threshold).collect()
}

/// [`temperature`] for sigmoids: the temperature by which logits must be divided for the
/// lowest mean binary cross entropy.
pub(super) fn sigmoid_temperature(logits: &[&[f32]], truth: &[Vec<usize>]) -> f32 {
    lowest_temperature(|scale| {
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
    use crate::metrics::MultiLabelMetrics;

    #[test]
    fn thresholds_take_the_highest_f1_and_equal_scores_together() {
        let rows = [[0.9], [0.4], [0.4], [0.1]].map(|row| row.to_vec());
        let truth = [vec![0], vec![0], vec![], vec![]];
        // Accepting the first image gives an F1 of 2/3, the first three 4/5; the two of 0.4 are accepted together.
        assert_eq!(best_f1_thresholds(&rows, &truth, 1, 0.5), [0.25]);
        assert_eq!(best_f1_thresholds(&rows, &[vec![], vec![], vec![], vec![]], 1, 0.5), [0.5]);
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
        let temperature = sigmoid_temperature(&rows, &truth);
        assert!((temperature - 4.0 / 4.0_f32.ln()).abs() < 1e-2, "{temperature}");
    }

    #[test]
    fn a_threshold_keeps_the_promise_with_the_most_answers() {
        let rows = [0.99, 0.95, 0.9, 0.9, 0.8, 0.7].map(|p| vec![1.0 - p, p]);
        let truth = [1, 1, 1, 0, 1, 0];
        // From 0.8 up four of five are right, from 0.9 up three of four, from 0.95 up all.
        assert_eq!(confidence_threshold(1.0, &rows, &truth), Some(0.95));
        assert_eq!(confidence_threshold(0.8, &rows, &truth), Some(0.8));
        assert_eq!(confidence_threshold(0.5, &rows, &truth), Some(0.7));
        assert_eq!(confidence_threshold(1.0, &rows, &[0; 6]), None);
    }

    #[test]
    fn the_temperature_undoes_what_made_a_model_too_sure() {
        // Of answers at confidence p, a share p is right; then confidence is doubled in the logits.
        let (mut probabilities, mut truth) = (Vec::new(), Vec::new());
        for percent in (50..100).step_by(5) {
            let odds = percent as f32 / (100 - percent) as f32;
            let sure = odds.powi(2) / (1.0 + odds.powi(2));
            for photo in 0..100 {
                probabilities.push(vec![sure, 1.0 - sure]);
                truth.push(usize::from(photo >= percent));
            }
        }
        let temperature = temperature(&probabilities, &truth);
        assert!((temperature - 2.0).abs() < 0.01, "{temperature}");
    }
}
