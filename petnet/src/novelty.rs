//! How far a photo is from all that a model was trained on: the angle between its features and
//! those of each class (Techapanurak et al., "Hyperparameter-free out-of-distribution detection
//! using cosine similarity", 2019).

use serde::{Deserialize, Serialize};

/// Where the features of known photos lie.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Novelty {
    /// Mean features of each class.
    centres: Vec<Vec<f32>>,
    /// Distances beyond this are strange.
    limit: f32,
}

impl Novelty {
    /// One minus the cosine of the angle to the nearest class: 0 for a photo like its mean, 1 for
    /// one that has nothing in common with any class.
    pub fn distance(&self, features: &[f32]) -> f32 {
        let length = dot(features, features).sqrt().max(f32::MIN_POSITIVE);
        let cosine = |centre: &Vec<f32>| {
            dot(features, centre) / (length * dot(centre, centre).sqrt().max(f32::MIN_POSITIVE))
        };
        1.0 - self.centres.iter().map(cosine).fold(-1.0, f32::max)
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
        // Sums point where means do.
        let mut centres = vec![vec![0.0; rows.first().map_or(0, Vec::len)]; classes];
        for (row, &class) in rows.iter().zip(truth) {
            let share = 1.0 / rows.len() as f32;
            centres[class].iter_mut().zip(row).for_each(|(sum, value)| *sum += value * share);
        }
        let mut novelty = Self { centres, limit: f32::INFINITY };
        let mut distances: Vec<f32> = held_out.iter().map(|row| novelty.distance(row)).collect();
        distances.sort_by(f32::total_cmp);
        let place = (distances.len() as f64 * share).ceil() as usize;
        novelty.limit = distances.get(place.saturating_sub(1)).copied().unwrap_or(f32::INFINITY);
        novelty
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(all(test, feature = "train"))]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_the_classes_is_strange_and_the_share_of_known_photos_is_kept() {
        // Each class has features of its own, and a little of the other's.
        let row = |photo: usize, class: usize| -> Vec<f32> {
            let weak = (photo % 10) as f32 / 30.0;
            (0..8).map(|k| if k / 4 == class { 1.0 + weak } else { weak }).collect()
        };
        let rows: Vec<Vec<f32>> = (0..200).map(|i| row(i / 2, i % 2)).collect();
        let truth: Vec<usize> = (0..200).map(|i| i % 2).collect();
        let novelty = Novelty::learn((&rows, &truth), &rows, 2, 0.9);
        let familiar = rows.iter().filter(|row| novelty.is_familiar(novelty.distance(row))).count();
        assert!((180..=200).contains(&familiar), "{familiar}");
        assert!(!novelty.is_familiar(novelty.distance(&[1.0; 8])));
        assert!(!novelty.is_familiar(novelty.distance(&[0.0; 8])), "nothing at all is strange");
        let loud: Vec<f32> = row(5, 0).iter().map(|value| value * 9.0).collect();
        assert!(novelty.is_familiar(novelty.distance(&loud)), "only the direction counts");
    }
}
