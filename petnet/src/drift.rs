//! Drift detection without labels: recent images are compared with those that a model was calibrated on, by the population
//! stability index (PSI) of a few statistics (Siddiqi, "Credit risk scorecards", 2006).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::prediction::{Decision, Prediction};
use crate::preprocess::Pixels;

/// Number of bins of about equal size.
const QUANTILE_BINS: usize = 10;
/// Every `PIXEL_STRIDE`-th pixel is read, for speed. Where the width is a multiple of it, the same columns are read in every row;
/// the references that model files hold were measured with it.
const PIXEL_STRIDE: usize = 7;

/// A statistic of an image or of its prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Statistic {
    /// Probability of the predicted class.
    Confidence,
    /// Index of the predicted class.
    PredictedClass,
    /// Out-of-distribution score, where the model has one.
    OodScore,
    /// The decision: answered, low confidence or out of distribution.
    Decision,
    /// Mean luma, 0 to 255.
    Brightness,
    /// Standard deviation of luma.
    Contrast,
    /// Width over height.
    Aspect,
    /// Width times height.
    Pixels,
}

impl Statistic {
    /// All statistics.
    pub const ALL: [Self; 8] = [
        Self::Confidence,
        Self::PredictedClass,
        Self::OodScore,
        Self::Decision,
        Self::Brightness,
        Self::Contrast,
        Self::Aspect,
        Self::Pixels,
    ];

    /// Its name in snake case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Confidence => "confidence",
            Self::PredictedClass => "predicted_class",
            Self::OodScore => "ood_score",
            Self::Decision => "decision",
            Self::Brightness => "brightness",
            Self::Contrast => "contrast",
            Self::Aspect => "aspect",
            Self::Pixels => "pixels",
        }
    }
}

impl fmt::Display for Statistic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Statistics of an image's pixels and size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ImageStatistics {
    brightness: f32,
    contrast: f32,
    size: (u32, u32),
}

impl ImageStatistics {
    /// From the network's input, and the image's own width and height in pixels.
    pub fn of(square: &Pixels, size: (u32, u32)) -> Self {
        let (mut sum, mut squares, mut count) = (0u64, 0u64, 0f64);
        for pixel in square.data().as_chunks::<3>().0.iter().step_by(PIXEL_STRIDE) {
            let [r, g, b] = pixel.map(u32::from);
            // Luma of BT.601 in 256ths.
            let luma = u64::from((77 * r + 150 * g + 29 * b) >> 8);
            sum += luma;
            squares += luma * luma;
            count += 1.0;
        }
        let mean = sum as f64 / count;
        let variance = (squares as f64 / count - mean * mean).max(0.0);
        Self { brightness: mean as f32, contrast: variance.sqrt() as f32, size }
    }

    /// The same with another width and height.
    #[cfg(feature = "train")]
    pub(crate) fn with_size(self, size: (u32, u32)) -> Self {
        Self { size, ..self }
    }
}

/// The statistics of an image and of its prediction, one value per [`Statistic`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DriftSample([Option<f32>; Statistic::ALL.len()]);

impl DriftSample {
    /// From an image's prediction and statistics.
    pub fn of(prediction: &Prediction, image: &ImageStatistics) -> Self {
        let (width, height) = (image.size.0 as f32, image.size.1 as f32);
        Self(Statistic::ALL.map(|statistic| match statistic {
            Statistic::Confidence => Some(prediction.confidence()),
            Statistic::PredictedClass => Some(prediction.index() as f32),
            Statistic::OodScore => prediction.ood_score(),
            Statistic::Decision => Some(prediction.decision() as u8 as f32),
            Statistic::Brightness => Some(image.brightness),
            Statistic::Contrast => Some(image.contrast),
            Statistic::Aspect => Some(width / height),
            Statistic::Pixels => Some(width * height),
        }))
    }

    /// `None` where the model has no such statistic.
    fn get(&self, statistic: Statistic) -> Option<f32> {
        self.0[statistic as usize]
    }
}

/// The distribution of one statistic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Distribution {
    /// Edges of the bins, rising; a value's bin is the number of edges below it.
    edges: Vec<f32>,
    /// Number of values in each bin; there is one bin more than edges.
    counts: Vec<u32>,
}

impl Distribution {
    /// One bin for each decision, even for rare ones; bins of about equal size for other statistics. `None` without values.
    fn of(statistic: Statistic, values: Vec<f32>) -> Option<Self> {
        if statistic != Statistic::Decision {
            return Self::learn(values);
        }
        let edges = (0..Decision::ALL.len() - 1).map(|decision| decision as f32).collect();
        (!values.is_empty()).then(|| Self::counted(edges, &values))
    }

    /// Bins of about equal size, and one at each end for values outside of the range; `None` where all values are equal.
    fn learn(mut values: Vec<f32>) -> Option<Self> {
        values.sort_by(f32::total_cmp);
        let (least, most) = (values.first()?, values.last()?);
        if least == most {
            return None;
        }
        let mut edges = vec![least.next_down()];
        edges.extend((1..QUANTILE_BINS).map(|bin| values[values.len() * bin / QUANTILE_BINS]));
        edges.push(*most);
        edges.dedup();
        Some(Self::counted(edges, &values))
    }

    /// The distribution of values in the bins between some edges.
    fn counted(edges: Vec<f32>, values: &[f32]) -> Self {
        let mut distribution = Self { counts: vec![0; edges.len() + 1], edges };
        for value in values {
            let bin = distribution.bin(*value);
            distribution.counts[bin] += 1;
        }
        distribution
    }

    fn bin(&self, value: f32) -> usize {
        self.edges.partition_point(|edge| *edge < value)
    }

    /// The population stability index against counts of the same bins, in nats.
    fn psi(&self, counts: &[u32]) -> f64 {
        let share = |counts: &[u32]| -> Vec<f64> {
            // Half an image is added to each bin, as an empty bin would make the index infinite.
            let total = counts.iter().sum::<u32>() as f64 + counts.len() as f64 / 2.0;
            counts.iter().map(|count| (f64::from(*count) + 0.5) / total).collect()
        };
        let pairs = share(&self.counts).into_iter().zip(share(counts));
        pairs.map(|(expected, seen)| (seen - expected) * (seen / expected).ln()).sum()
    }
}

/// The distributions of the statistics on the images that a model was calibrated on; stored with the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference(BTreeMap<Statistic, Distribution>);

impl Reference {
    /// True where each distribution has finite, rising edges and one count more than edges.
    pub(crate) fn is_valid(&self) -> bool {
        self.0.values().all(|Distribution { edges, counts }| {
            let rising = edges.is_sorted() && edges.iter().all(|edge| edge.is_finite());
            rising && counts.len() == edges.len() + 1
        })
    }

    /// The reference of images like those that the model is meant for; a thousand are enough. Statistics that the model
    /// does not have are left out, and so are those with one value for all images, such as the size of images that were
    /// resized. The decision is always kept.
    pub fn learn(samples: &[DriftSample]) -> Self {
        let values =
            |statistic| samples.iter().filter_map(move |sample| sample.get(statistic)).collect();
        let learned = Statistic::ALL.into_iter().filter_map(|statistic| {
            Some((statistic, Distribution::of(statistic, values(statistic))?))
        });
        Self(learned.collect())
    }
}

/// A window of recent images, compared with a reference.
///
/// A PSI of a few hundredths is chance, above 0.1 it means a moderate change of the distribution, above 0.25 a large one.
///
/// ```
/// # #[cfg(feature = "pretrained")] {
/// use petnet::drift::{DriftSample, Reference, Window};
/// # let draw = |light: u8| image::RgbImage::from_fn(64, 48, |x, y| image::Rgb([light / 2 + (x + y) as u8; 3]));
/// # let png = |light| { let mut file = std::io::Cursor::new(Vec::new()); draw(light).write_to(&mut file, image::ImageFormat::Png).unwrap(); file.into_inner() };
///
/// let classifier = petnet::Classifier::pretrained()?;
/// let sample = |image: &[u8]| -> petnet::Result<DriftSample> {
///     let (pixels, statistics) = classifier.inspect(image)?;
///     Ok(DriftSample::of(&classifier.classify_pixels(&[pixels])?[0], &statistics))
/// };
/// let day: Vec<DriftSample> = (0..40).map(|n| sample(&png(200 + n))).collect::<Result<_, _>>()?;
/// let mut window = Window::new(Reference::learn(&day), 100);
/// for night in 0..40 {
///     window.push(sample(&png(night))?);
/// }
/// assert!(window.stability().iter().any(|(s, psi)| s.name() == "brightness" && *psi > 0.25));
/// # }
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Window {
    reference: Reference,
    size: usize,
    /// The bin of each image in each distribution; `None` where it lacks the statistic.
    recent: VecDeque<Vec<Option<usize>>>,
    counts: Vec<Vec<u32>>,
}

impl Window {
    /// An empty window of `size` images.
    pub fn new(reference: Reference, size: usize) -> Self {
        let counts = reference.0.values().map(|d| vec![0; d.counts.len()]).collect();
        Self { reference, size: size.max(1), recent: VecDeque::new(), counts }
    }

    /// Adds an image; a full window drops the oldest one.
    pub fn push(&mut self, sample: DriftSample) {
        if self.recent.len() == self.size
            && let Some(old) = self.recent.pop_front()
        {
            pairs(&old, &mut self.counts).for_each(|(bin, counts)| counts[bin] -= 1);
        }
        let distributions = self.reference.0.iter();
        let bins: Vec<Option<usize>> = distributions
            .map(|(statistic, distribution)| Some(distribution.bin(sample.get(*statistic)?)))
            .collect();
        pairs(&bins, &mut self.counts).for_each(|(bin, counts)| counts[bin] += 1);
        self.recent.push_back(bins);
    }

    /// Number of images in the window.
    pub fn len(&self) -> usize {
        self.recent.len()
    }

    /// True before the first image.
    pub fn is_empty(&self) -> bool {
        self.recent.is_empty()
    }

    /// The population stability index of each statistic, in nats, from 0. With fewer than about 200 images it is mostly
    /// chance.
    pub fn stability(&self) -> Vec<(Statistic, f64)> {
        let pairs = self.reference.0.iter().zip(&self.counts);
        pairs
            .map(|((statistic, distribution), seen)| (*statistic, distribution.psi(seen)))
            .collect()
    }
}

/// The bins that an image has, each with the counts of its distribution.
fn pairs<'a>(
    bins: &[Option<usize>],
    counts: &'a mut [Vec<u32>],
) -> impl Iterator<Item = (usize, &'a mut Vec<u32>)> {
    bins.iter().zip(counts).filter_map(|(bin, counts)| Some(((*bin)?, counts)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A synthetic image by its number, with statistics and predictions that are distributed like real ones.
    fn sample(number: u32, light: f32, dogs: u32, clear: bool) -> DriftSample {
        let spread = |salt: u32| {
            (number.wrapping_mul(2_654_435_761).rotate_left(salt) >> 8) as f32 / (1 << 24) as f32
        };
        let class = usize::from(spread(3) * 100.0 < dogs as f32);
        let confidence = 0.6 + 0.4 * spread(7).sqrt();
        let mut probabilities = vec![1.0 - confidence; 2];
        probabilities[class] = confidence;
        let prediction = Prediction::new("x".into(), class, probabilities);
        let contrast = if clear { 30.0 + 40.0 * spread(11) } else { 2.0 };
        let size = [(640, 480), (500, 375), (375, 500), (1024, 768)][number as usize % 4];
        let brightness = light * (80.0 + 90.0 * spread(5));
        DriftSample::of(&prediction, &ImageStatistics { brightness, contrast, size })
    }

    fn drift(samples: impl Iterator<Item = DriftSample>) -> BTreeMap<&'static str, f64> {
        let day: Vec<DriftSample> = (0..2000).map(|n| sample(n, 1.0, 50, true)).collect();
        let mut window = Window::new(Reference::learn(&day), 500);
        samples.for_each(|sample| window.push(sample));
        assert_eq!(window.len(), 500);
        window.stability().into_iter().map(|(s, psi)| (s.name(), psi)).collect()
    }

    #[test]
    fn images_like_the_reference_are_no_drift() {
        // More images than the window holds: the first ones must have no effect.
        let night = (0..500).map(|n| sample(n, 0.2, 50, true));
        let psi = drift(night.chain((5000..5500).map(|n| sample(n, 1.0, 50, true))));
        assert!(psi.values().all(|psi| (0.0..0.1).contains(psi)), "{psi:?}");
    }

    #[test]
    fn darkness_another_class_balance_and_a_broken_camera_show_in_their_statistics() {
        let night = drift((5000..5500).map(|n| sample(n, 0.3, 50, true)));
        let flipped = drift((5000..5500).map(|n| sample(n, 1.0, 90, true)));
        let broken = drift((5000..5500).map(|n| sample(n, 1.0, 50, false)));
        for (psi, name) in
            [(night, "brightness"), (flipped, "predicted_class"), (broken, "contrast")]
        {
            for (other, value) in psi {
                assert_eq!(value > 0.25, other == name, "{name}: {other} {value}");
            }
        }
    }

    #[test]
    fn scores_and_decisions_of_other_things_are_drift_and_a_model_without_a_score_has_no_such_statistic()
     {
        let of = |decision, ood_score| {
            let mut prediction = Prediction::new("x".into(), 0, vec![0.9, 0.1]);
            (prediction.decision, prediction.ood_score) = (decision, ood_score);
            let image = ImageStatistics { brightness: 90.0, contrast: 40.0, size: (8, 8) };
            DriftSample::of(&prediction, &image)
        };
        let own = |n: usize| of(Decision::Answered, Some(n as f32 / 1000.0));
        let other = |n: usize| of(Decision::OutOfDistribution, Some(2.0 + n as f32 / 1000.0));
        let reference = Reference::learn(&(0..1000).map(own).collect::<Vec<_>>());
        let psi = |samples: Vec<DriftSample>| -> BTreeMap<_, _> {
            let mut window = Window::new(reference.clone(), 200);
            samples.into_iter().for_each(|sample| window.push(sample));
            window.stability().into_iter().collect()
        };
        let same = psi((0..200).map(|n| own(n * 5)).collect());
        assert_eq!(same.len(), 2, "{same:?}");
        assert!(same.values().all(|psi| *psi < 0.1), "{same:?}");
        let others =
            psi((0..200).map(|n| if n % 2 == 0 { own(n * 5) } else { other(n) }).collect());
        assert!(others.values().all(|psi| *psi > 0.25), "{others:?}");

        let plain: Vec<_> = (0..100).map(|_| of(Decision::LowConfidence, None)).collect();
        // Images without a score leave the window's counts of it as they are.
        assert!(
            psi([plain.clone(), plain.clone(), plain.clone()].concat())[&Statistic::OodScore]
                .is_finite()
        );
        let reference = Reference::learn(&plain);
        assert_eq!(reference.0.keys().collect::<Vec<_>>(), [&Statistic::Decision]);
    }

    #[test]
    fn values_out_of_range_are_drift_and_constant_statistics_are_left_out() {
        let distribution =
            Distribution::learn((0..1000).map(|n| (n % 2) as f32).collect()).unwrap();
        assert_eq!([-1.0, 0.0, 0.5, 1.0, 1.5].map(|v| distribution.bin(v)), [0, 1, 2, 2, 3]);
        assert!(distribution.psi(&[0, 150, 150, 0]) < 0.01, "{distribution:?}");
        assert!(distribution.psi(&[0, 150, 140, 10]) > 0.1);
        assert_eq!(Distribution::learn(vec![1.0; 1000]), None);
        assert_eq!(Distribution::learn(Vec::new()), None);
    }

    #[test]
    fn brightness_and_contrast_are_those_of_luma() {
        let half = |pixel: usize| if pixel < 98 * 49 { 0 } else { 200 };
        let data = (0..98 * 98 * 3).map(|byte| half(byte / 3)).collect();
        let image = ImageStatistics::of(&Pixels::new(98, 98, data).unwrap(), (98, 98));
        assert_eq!((image.brightness, image.contrast), (100.0, 100.0));
    }
}
