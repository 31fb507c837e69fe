//! How far a photo is from all that a model was trained on: a distance in the space of pooled
//! features (Lee et al., "A simple unified framework for detecting out-of-distribution samples",
//! 2018, with one spread a feature instead of a covariance).

use serde::{Deserialize, Serialize};

/// Where the features of known photos lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Novelty {
    /// Mean features of each class.
    centres: Vec<Vec<f32>>,
    /// One over the variance of each feature within its class.
    precisions: Vec<f32>,
    /// Distances beyond this are strange.
    limit: f32,
}

impl Novelty {
    /// The mean squared distance from the nearest class, in units of the features' own spread:
    /// about 1 for photos like the known ones.
    pub fn distance(&self, features: &[f32]) -> f32 {
        let from = |centre: &Vec<f32>| {
            let terms = features.iter().zip(centre).zip(&self.precisions);
            terms.map(|((f, c), p)| (f - c).powi(2) * p).sum::<f32>() / features.len() as f32
        };
        self.centres.iter().map(from).fold(f32::INFINITY, f32::min)
    }

    /// Whether a photo at this distance is like the known ones.
    pub fn is_familiar(&self, distance: f32) -> bool {
        distance <= self.limit
    }

    /// Learns from the features of known photos (a row a photo) and their classes; `share` of the
    /// photos in `held_out` will be familiar.
    #[cfg(feature = "train")]
    pub(crate) fn learn(
        (rows, truth): (&[Vec<f32>], &[usize]),
        held_out: &[Vec<f32>],
        classes: usize,
        share: f64,
    ) -> Self {
        let width = rows.first().map_or(0, Vec::len);
        let mut centres = vec![vec![0.0; width]; classes];
        let mut counts = vec![0.0_f32; classes];
        for (row, &class) in rows.iter().zip(truth) {
            counts[class] += 1.0;
            centres[class].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        for (centre, count) in centres.iter_mut().zip(&counts) {
            centre.iter_mut().for_each(|sum| *sum /= count.max(1.0));
        }
        let mut variances = vec![0.0; width];
        for (row, &class) in rows.iter().zip(truth) {
            for ((sum, value), centre) in variances.iter_mut().zip(row).zip(&centres[class]) {
                *sum += (value - centre).powi(2) / rows.len() as f32;
            }
        }
        // A feature that hardly moves would otherwise outweigh all others.
        let floor = variances.iter().sum::<f32>() / width.max(1) as f32 * 0.01 + f32::MIN_POSITIVE;
        let precisions = variances.iter().map(|variance| 1.0 / variance.max(floor)).collect();
        let mut novelty = Self { centres, precisions, limit: f32::INFINITY };
        let mut distances: Vec<f32> = held_out.iter().map(|row| novelty.distance(row)).collect();
        distances.sort_by(f32::total_cmp);
        let place = (distances.len() as f64 * share).ceil() as usize;
        novelty.limit = distances.get(place.saturating_sub(1)).copied().unwrap_or(f32::INFINITY);
        novelty
    }
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_the_classes_is_strange_and_the_share_of_known_photos_is_kept() {
        let row = |i: usize, centre: f32| -> Vec<f32> {
            (0..8).map(|k| centre + ((i * 7 + k * 13) % 11) as f32 / 11.0).collect()
        };
        let rows: Vec<Vec<f32>> = (0..200).map(|i| row(i, (i % 2 * 10) as f32)).collect();
        let truth: Vec<usize> = (0..200).map(|i| i % 2).collect();
        let novelty = Novelty::learn((&rows, &truth), &rows, 2, 0.9);
        let familiar = rows.iter().filter(|row| novelty.is_familiar(novelty.distance(row))).count();
        assert!((180..=200).contains(&familiar), "{familiar}");
        assert!(!novelty.is_familiar(novelty.distance(&[5.0; 8])));
        assert!(novelty.distance(&row(1, 0.0)) < 3.0);
    }
}
