//! Prototypes: centres of the features of each class's training images.

use rayon::prelude::*;

use super::{OodScore, PROTOTYPES};
use crate::vector::{dot, normalize};
use crate::weights::Weight;

/// Largest number of prototypes of a model.
const MAX_PROTOTYPES: usize = 256;
/// Iterations of k-means, after which centres hardly move.
const KMEANS_ITERATIONS: usize = 8;

/// Spherical k-means (Dhillon and Modha, "Concept decompositions for large sparse text data using clustering", 2001)
/// over the features of each class, one row per image: the score, and the prototypes as a weight with its name.
pub(crate) fn prototypes(
    rows: &[&[f32]],
    truth: &[usize],
    classes: usize,
) -> (OodScore, (String, Weight)) {
    let width = rows.first().map_or(1, |row| row.len());
    let of_class = |class: usize| {
        let own = rows.iter().zip(truth).filter(|(_, truth)| **truth == class);
        let own = own.map(|(row, _)| {
            let mut row = row.to_vec();
            normalize(&mut row);
            row
        });
        let own: Vec<Vec<f32>> = own.collect();
        centres(&own, (MAX_PROTOTYPES / classes.max(1)).max(1))
    };
    let values: Vec<f32> = (0..classes).flat_map(of_class).flatten().collect();
    let count = values.len() / width;
    let weight = Weight { shape: vec![count, width], values };
    (OodScore::Prototypes { count }, (PROTOTYPES.to_string(), weight))
}

/// At most `count` unit vectors, the centres of clusters of unit vectors.
fn centres(rows: &[Vec<f32>], count: usize) -> Vec<Vec<f32>> {
    let step = rows.len().div_ceil(count).max(1);
    let mut centres: Vec<Vec<f32>> = rows.iter().step_by(step).cloned().collect();
    if step == 1 {
        return centres;
    }
    for _ in 0..KMEANS_ITERATIONS {
        let nearest = rows.par_iter().map(|row| nearest(row, &centres));
        let nearest: Vec<usize> = nearest.collect();
        let mut sums = vec![vec![0.0; rows[0].len()]; centres.len()];
        for (row, centre) in rows.iter().zip(&nearest) {
            sums[*centre].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        // A centre that no row is nearest to stays where it was.
        for (centre, mut sum) in centres.iter_mut().zip(sums) {
            if sum.iter().any(|value| *value != 0.0) {
                normalize(&mut sum);
                *centre = sum;
            }
        }
    }
    centres
}

fn nearest(row: &[f32], centres: &[Vec<f32>]) -> usize {
    let products = centres.iter().map(|centre| dot(row, centre)).enumerate();
    products.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))).map_or(0, |(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cluster_gets_a_centre_and_few_images_are_their_own_prototypes() {
        // Two classes of three directions each, and noise.
        let row = |image: usize| -> Vec<f32> {
            (0..8)
                .map(|k| f32::from(u8::from(k == image % 6)) + (image * 7 % 11) as f32 / 100.0)
                .collect()
        };
        let rows: Vec<Vec<f32>> = (0..1200).map(row).collect();
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let truth: Vec<usize> = (0..1200).map(|image| image % 2).collect();
        let (score, (_, weight)) = prototypes(&rows, &truth, 2);
        assert_eq!(score, OodScore::Prototypes { count: weight.shape[0] });
        assert!(weight.shape[0] <= MAX_PROTOTYPES && weight.shape[1] == 8);
        for row in rows {
            let closest =
                weight.values.chunks(8).map(|centre| dot(row, centre)).fold(-1.0, f32::max);
            assert!(closest / dot(row, row).sqrt() > 0.999, "{row:?}");
        }
        let few: Vec<&[f32]> = vec![&[3.0, 4.0], &[1.0, 0.0]];
        let (_, (_, weight)) = prototypes(&few, &[0, 1], 2);
        assert_eq!((weight.shape, weight.values), (vec![2, 2], vec![0.6, 0.8, 1.0, 0.0]));
    }
}
