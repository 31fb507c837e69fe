//! Measurement of the ranges of a network's feature maps on images, for int8 inference.

use std::collections::BTreeMap;

use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, NetworkSpec};
use crate::error::{Error, ModelError, Result};
use crate::passes::Program;
use crate::preprocess::Pixels;
use crate::quantization::Quantization;

/// Bins of a histogram, half of which are for negative values.
const BINS: usize = 4096;
/// Number of training images on which ranges are measured.
#[cfg(feature = "train")]
const MEASURED_IMAGES: usize = 256;
/// Candidates for the end of a range, in percent of the largest value.
const RANGE_PERCENT: std::ops::RangeInclusive<usize> = 30..=100;

impl Checkpoint {
    /// The same model with the ranges of its feature maps on some images, for int8 inference; see [`Quantization`]. A
    /// hundred images like those in service are enough.
    ///
    /// The range of a map is the one with the smallest mean squared error: a narrower range has smaller rounding errors,
    /// but clips the values outside.
    ///
    /// ```
    /// # #[cfg(feature = "pretrained")] {
    /// use petnet::Checkpoint;
    /// use petnet::preprocess::Pixels;
    ///
    /// let model = Checkpoint::pretrained()?;
    /// let side = model.info().preprocess.size;
    /// let grey = vec![127; (side * side * 3) as usize];
    /// let images = [Pixels::new(side, side, grey).expect("three bytes a pixel")];
    /// let quantized = model.quantized(&images)?;
    /// assert!(quantized.info().quantization.is_some());
    /// # }
    /// # Ok::<(), petnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for no images, images of another size than the model's, and values that are not finite.
    pub fn quantized(self, images: &[Pixels]) -> Result<Self> {
        let ranges = self.ranges(images).map_err(|reason| Error::checkpoint("<model>", reason))?;
        self.with_quantization(Some(Quantization { ranges }))
    }

    /// [`Checkpoint::quantized`] on images drawn from a data set, for a preprocessing that replaces the model's.
    #[cfg(feature = "train")]
    pub(crate) fn quantized_on(
        self,
        dataset: &crate::Dataset,
        preprocess: crate::preprocess::Preprocess,
    ) -> Result<Self> {
        let model = self.with_info(|info| info.preprocess = preprocess)?;
        model.quantized(&dataset.preprocessed(preprocess, MEASURED_IMAGES)?)
    }

    fn ranges(&self, images: &[Pixels]) -> Result<BTreeMap<String, [f32; 2]>, ModelError> {
        let size = self.info().preprocess.size;
        if images.is_empty() {
            return Err(ModelError::NoImages);
        }
        let network = NetworkSpec { ranges: None, ..self.network() };
        let nodes = Program::new(network.graph, network.source, network.side)?.nodes;
        let engine = Engine::new(network)?;
        let mut histograms = BTreeMap::<usize, Histogram>::new();
        for image in images {
            let [width, height] = [image.width(), image.height()];
            if [width, height] != [size; 2] {
                return Err(ModelError::OtherSize { width, height, size });
            }
            engine.observe(image.data(), |node, pixel| {
                histograms.entry(node).or_default().add(pixel)
            });
        }
        let named =
            |(node, histogram): (usize, Histogram)| (nodes[node].name.clone(), histogram.range());
        Ok(histograms.into_iter().map(named).collect())
    }
}

/// Histogram of a map's values. Its range doubles as larger values are added, so that its memory is constant.
#[derive(Debug, Clone)]
struct Histogram {
    /// The bins divide the values from `-limit` to `limit` evenly.
    limit: f32,
    bins: Vec<u64>,
    low: f32,
    high: f32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { limit: f32::MIN_POSITIVE, bins: vec![0; BINS], low: 0.0, high: 0.0 }
    }
}

impl Histogram {
    fn add(&mut self, values: &[f32]) {
        for &value in values {
            // Zero is represented exactly in any range.
            if value == 0.0 {
                continue;
            }
            (self.low, self.high) = (self.low.min(value), self.high.max(value));
            // A range that is not finite is refused when it is validated.
            while value.abs() > self.limit && value.is_finite() {
                self.widen();
            }
            let place = (value / self.limit + 1.0) * (BINS / 2) as f32;
            self.bins[(place as usize).min(BINS - 1)] += 1;
        }
    }

    /// Doubles the range: pairs of bins become one.
    fn widen(&mut self) {
        let pairs: Vec<u64> = self.bins.as_chunks::<2>().0.iter().map(|[a, b]| a + b).collect();
        self.bins.fill(0);
        self.bins[BINS / 4..][..BINS / 2].copy_from_slice(&pairs);
        self.limit *= 2.0;
    }

    /// The range with the smallest squared error, by coordinate descent: each end is chosen twice, the other one fixed.
    fn range(&self) -> [f32; 2] {
        let mut range = [self.low, self.high];
        for end in [1, 0, 1, 0] {
            let whole = [self.low, self.high][end];
            let mut least = f64::INFINITY;
            for share in RANGE_PERCENT.rev() {
                let mut tried = range;
                tried[end] = whole * share as f32 / 100.0;
                let error = self.error(tried);
                if error < least {
                    (least, range) = (error, tried);
                }
            }
        }
        range
    }

    /// Sum of the squared errors of rounding to 256 levels within a range, and of clipping to it.
    fn error(&self, [low, high]: [f32; 2]) -> f64 {
        let (low, high) = (f64::from(low), f64::from(high));
        let rounding = ((high - low) / 255.0).powi(2) / 12.0;
        let width = f64::from(self.limit) / (BINS / 2) as f64;
        let occupied = self.bins.iter().enumerate().filter(|(_, count)| **count > 0);
        let errors = occupied.map(|(bin, count)| {
            let value = (bin as f64 + 0.5) * width - f64::from(self.limit);
            let beyond = (value - high).max(low - value).max(0.0);
            *count as f64 * (beyond * beyond).max(rounding)
        });
        errors.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::tests::small;
    use crate::checkpoint::tests::patterned;

    fn checkpoint() -> Checkpoint {
        patterned(small()[1].graph(2).unwrap(), 32, |value| value / 400.0 + 0.01)
    }

    fn image(side: u32, seed: u32) -> Pixels {
        let data = (0..side * side * 3).map(|i| ((i * 31 + seed * 57) % 251) as u8).collect();
        Pixels::new(side, side, data).unwrap()
    }

    #[test]
    fn ranges_survive_a_file_and_old_files_have_none() {
        let plain = checkpoint();
        let bytes = plain.to_bytes(crate::Precision::F32).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("quantization"));
        let quantized = plain.clone().quantized(&[image(32, 1), image(32, 2)]).unwrap();
        let bytes = quantized.to_bytes(crate::Precision::F32).unwrap();
        assert_eq!(Checkpoint::from_bytes(&bytes).unwrap(), quantized);
        let steps = crate::passes::fuse(&quantized.info().graph);
        assert_eq!(quantized.info().quantization.as_ref().unwrap().ranges.len(), steps.len());
    }

    #[test]
    fn images_and_ranges_are_validated() {
        let reason = |result: Result<Checkpoint>| match result.unwrap_err() {
            Error::Checkpoint { reason, .. } => reason,
            other => panic!("{other}"),
        };
        assert_eq!(reason(checkpoint().quantized(&[])), ModelError::NoImages);
        let other = ModelError::OtherSize { width: 31, height: 31, size: 32 };
        assert_eq!(reason(checkpoint().quantized(&[image(32, 1), image(31, 1)])), other);
        let quantized = checkpoint().quantized(&[image(32, 1)]).unwrap();
        let Quantization { ranges } = quantized.info().quantization.clone().unwrap();
        let name = ranges.keys().next().unwrap().clone();
        let with = |ranges| checkpoint().with_quantization(Some(Quantization { ranges }));
        for range in [[1.0, 0.0], [0.0, f32::NAN], [f32::NEG_INFINITY, 1.0]] {
            let mut ranges = ranges.clone();
            ranges.insert(name.clone(), range);
            assert!(
                matches!(reason(with(ranges)), ModelError::Range { name: at, .. } if at == name)
            );
        }
        let mut ranges = ranges.clone();
        ranges.remove(&name);
        assert_eq!(reason(with(ranges)), ModelError::MissingRange(name));
    }

    #[test]
    fn a_range_has_all_of_uniform_values_and_clips_an_outlier() {
        let mut histogram = Histogram::default();
        let uniform: Vec<f32> = (0..10_000).map(|i| i as f32 / 2500.0 - 1.0).collect();
        histogram.add(&uniform);
        let [low, high] = histogram.range();
        assert!((low + 1.0).abs() < 0.05 && (high - 3.0).abs() < 0.05, "{low} {high}");
        histogram.add(&[5.0]);
        assert!(
            histogram.range()[1] > 4.5,
            "clipping it costs more than larger rounding errors: {:?}",
            histogram.range()
        );
        (0..99).for_each(|_| histogram.add(&uniform));
        assert!(histogram.range()[1] < 4.0, "{:?}", histogram.range());
        assert_eq!(histogram.bins.iter().sum::<u64>(), 999_901, "all but the zeros");
    }
}
