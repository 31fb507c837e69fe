//! Whether the photos that come in are still like those that a model was judged on, without a label:
//! the population stability index of a few plain statistics (Siddiqi, "Credit risk scorecards", 2006).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::prediction::Prediction;
use crate::preprocess::Pixels;

/// Parts of equal size that a distribution is cut into.
const PARTS: usize = 10;
/// Every so many pixels are looked at, for speed; a prime does not fall into step with rows.
const STRIDE: usize = 7;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Statistic {
    /// Probability of the predicted class.
    Confidence,
    /// Index of the predicted class.
    PredictedClass,
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
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Confidence,
        Self::PredictedClass,
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

/// What a photo is like, apart from what it shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traits {
    brightness: f32,
    contrast: f32,
    size: (u32, u32),
}

impl Traits {
    /// From the square that the network sees, and the photo's own width and height in pixels.
    pub fn of(square: &Pixels, size: (u32, u32)) -> Self {
        let (mut sum, mut squares, mut count) = (0u64, 0u64, 0f64);
        for pixel in square.data().as_chunks::<3>().0.iter().step_by(STRIDE) {
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
    #[must_use]
    pub fn with_size(self, size: (u32, u32)) -> Self {
        Self { size, ..self }
    }
}

/// A photo and its answer, in numbers: one a [`Statistic`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Look([f32; Statistic::ALL.len()]);

impl Look {
    /// A photo as it came, and what was made of it.
    pub fn of(prediction: &Prediction, traits: &Traits) -> Self {
        let (width, height) = (traits.size.0 as f32, traits.size.1 as f32);
        Self(Statistic::ALL.map(|statistic| match statistic {
            Statistic::Confidence => prediction.confidence(),
            Statistic::PredictedClass => prediction.index() as f32,
            Statistic::Brightness => traits.brightness,
            Statistic::Contrast => traits.contrast,
            Statistic::Aspect => width / height,
            Statistic::Pixels => width * height,
        }))
    }
}

/// How one statistic is distributed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Distribution {
    /// Rising; a value's bin is the number of edges below it.
    edges: Vec<f32>,
    /// Values in each bin, one more than edges.
    counts: Vec<u32>,
}

impl Distribution {
    /// Bins of about equal size, and one at each end for what was never seen; `None` where all
    /// values are equal.
    fn learn(mut values: Vec<f32>) -> Option<Self> {
        values.sort_by(f32::total_cmp);
        let (least, most) = (values.first()?, values.last()?);
        if least == most {
            return None;
        }
        let mut edges = vec![least.next_down()];
        edges.extend((1..PARTS).map(|part| values[values.len() * part / PARTS]));
        edges.push(*most);
        edges.dedup();
        let mut distribution = Self { counts: vec![0; edges.len() + 1], edges };
        for value in values {
            let bin = distribution.bin(value);
            distribution.counts[bin] += 1;
        }
        Some(distribution)
    }

    fn bin(&self, value: f32) -> usize {
        self.edges.partition_point(|edge| *edge < value)
    }

    /// The population stability index against counts of the same bins, in nats.
    fn psi(&self, counts: &[u32]) -> f64 {
        let share = |counts: &[u32]| -> Vec<f64> {
            // Half a photo more in each bin: one that was never seen must not weigh infinitely.
            let total = counts.iter().sum::<u32>() as f64 + counts.len() as f64 / 2.0;
            counts.iter().map(|count| (f64::from(*count) + 0.5) / total).collect()
        };
        let pairs = share(&self.counts).into_iter().zip(share(counts));
        pairs.map(|(expected, seen)| (seen - expected) * (seen / expected).ln()).sum()
    }
}

/// What photos were like when a model was judged; stored with the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference(BTreeMap<Statistic, Distribution>);

impl Reference {
    /// Learns from photos that are as they should be; a thousand are enough. A statistic in which
    /// they are all alike is left out: photos that were cut to one size say nothing of those to come.
    pub fn learn(looks: &[Look]) -> Self {
        let values =
            |statistic: Statistic| looks.iter().map(move |look| look.0[statistic as usize]);
        let learned = Statistic::ALL.into_iter().filter_map(|statistic| {
            Some((statistic, Distribution::learn(values(statistic).collect())?))
        });
        Self(learned.collect())
    }
}

/// The latest photos beside a reference.
///
/// An index of a few hundredths is chance, above 0.1 something moves, above 0.25 the photos are
/// others.
///
/// ```
/// # #[cfg(feature = "pretrained")] {
/// use petnet::drift::{Look, Reference, Window};
/// # let draw = |light: u8| image::RgbImage::from_fn(64, 48, |x, y| image::Rgb([light / 2 + (x + y) as u8; 3]));
/// # let png = |light| { let mut file = std::io::Cursor::new(Vec::new()); draw(light).write_to(&mut file, image::ImageFormat::Png).unwrap(); file.into_inner() };
///
/// let classifier = petnet::Classifier::pretrained()?;
/// let look = |photo: &[u8]| -> petnet::Result<Look> {
///     let (pixels, traits) = classifier.inspect(photo)?;
///     Ok(Look::of(&classifier.classify_pixels(&[pixels])?[0], &traits))
/// };
/// let day: Vec<Look> = (0..40).map(|n| look(&png(200 + n))).collect::<Result<_, _>>()?;
/// let mut window = Window::new(Reference::learn(&day), 100);
/// for night in 0..40 {
///     window.push(look(&png(night))?);
/// }
/// assert!(window.stability().iter().any(|(s, psi)| s.name() == "brightness" && *psi > 0.25));
/// # }
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Window {
    reference: Reference,
    size: usize,
    recent: VecDeque<Vec<usize>>,
    counts: Vec<Vec<u32>>,
}

impl Window {
    /// An empty window of `size` photos.
    pub fn new(reference: Reference, size: usize) -> Self {
        let counts = reference.0.values().map(|d| vec![0; d.counts.len()]).collect();
        Self { reference, size: size.max(1), recent: VecDeque::new(), counts }
    }

    /// Takes in a photo; the oldest leaves a full window.
    pub fn push(&mut self, look: Look) {
        if self.recent.len() == self.size
            && let Some(old) = self.recent.pop_front()
        {
            old.iter().zip(&mut self.counts).for_each(|(bin, counts)| counts[*bin] -= 1);
        }
        let distributions = self.reference.0.iter();
        let bins: Vec<usize> =
            distributions.map(|(s, distribution)| distribution.bin(look.0[*s as usize])).collect();
        bins.iter().zip(&mut self.counts).for_each(|(bin, counts)| counts[*bin] += 1);
        self.recent.push_back(bins);
    }

    /// Photos in the window.
    pub fn len(&self) -> usize {
        self.recent.len()
    }

    /// Whether no photo has come yet.
    pub fn is_empty(&self) -> bool {
        self.recent.is_empty()
    }

    /// The population stability index of each statistic, in nats, from 0. Of few photos (below some
    /// 200) it is mostly chance.
    pub fn stability(&self) -> Vec<(Statistic, f64)> {
        let pairs = self.reference.0.iter().zip(&self.counts);
        pairs
            .map(|((statistic, distribution), seen)| (*statistic, distribution.psi(seen)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A photo of daylight by its number: traits and answers spread like real ones.
    fn look(number: u32, light: f32, dogs: u32, clear: bool) -> Look {
        let spread = |salt: u32| {
            (number.wrapping_mul(2_654_435_761).rotate_left(salt) >> 8) as f32 / (1 << 24) as f32
        };
        let class = usize::from(spread(3) * 100.0 < dogs as f32);
        let sure = 0.6 + 0.4 * spread(7).sqrt();
        let mut probabilities = vec![1.0 - sure; 2];
        probabilities[class] = sure;
        let prediction = Prediction::new("x".into(), class, probabilities);
        let contrast = if clear { 30.0 + 40.0 * spread(11) } else { 2.0 };
        let size = [(640, 480), (500, 375), (375, 500), (1024, 768)][number as usize % 4];
        Look::of(
            &prediction,
            &Traits { brightness: light * (80.0 + 90.0 * spread(5)), contrast, size },
        )
    }

    fn drift(looks: impl Iterator<Item = Look>) -> BTreeMap<&'static str, f64> {
        let day: Vec<Look> = (0..2000).map(|n| look(n, 1.0, 50, true)).collect();
        let mut window = Window::new(Reference::learn(&day), 500);
        looks.for_each(|look| window.push(look));
        assert_eq!(window.len(), 500);
        window.stability().into_iter().map(|(s, psi)| (s.name(), psi)).collect()
    }

    #[test]
    fn normal_traffic_is_still() {
        // More than the window holds: what was there before must leave no trace.
        let night = (0..500).map(|n| look(n, 0.2, 50, true));
        let psi = drift(night.chain((5000..5500).map(|n| look(n, 1.0, 50, true))));
        assert!(psi.values().all(|psi| (0.0..0.1).contains(psi)), "{psi:?}");
    }

    #[test]
    fn night_a_flipped_mix_and_a_broken_camera_are_seen_where_they_are() {
        let night = drift((5000..5500).map(|n| look(n, 0.3, 50, true)));
        let flipped = drift((5000..5500).map(|n| look(n, 1.0, 90, true)));
        let broken = drift((5000..5500).map(|n| look(n, 1.0, 50, false)));
        for (psi, name) in
            [(night, "brightness"), (flipped, "predicted_class"), (broken, "contrast")]
        {
            for (other, value) in psi {
                assert_eq!(value > 0.25, other == name, "{name}: {other} {value}");
            }
        }
    }

    #[test]
    fn what_was_never_seen_is_noticed_and_what_never_varied_is_not_watched() {
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
        let traits = Traits::of(&Pixels::new(98, 98, data).unwrap(), (98, 98));
        assert_eq!((traits.brightness, traits.contrast), (100.0, 100.0));
    }
}
