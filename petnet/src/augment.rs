//! Augmentation of training images: pixels -> pixels, as a pure function of (seed, epoch, index), so that neither the
//! order nor the number of threads changes a batch.

use std::f32::consts::PI;

use fast_image_resize as fir;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ImageError, Result};
use crate::preprocess::{Pixels, Preprocess, Resize, resize, resize_with};

/// Settings of augmentation: probabilities and ranges of random changes. Zero switches a change off.
///
/// ```
/// use petnet::augment::{Augment, Key};
/// use petnet::preprocess::{Pixels, Preprocess, Resize};
///
/// let image = Pixels::new(40, 30, vec![120; 40 * 30 * 3]).expect("three bytes a pixel");
/// let augment = Augment { rotation: 30.0, affine: 1.0, ..Augment::none() };
/// let preprocess = Preprocess { size: 24, resize: Resize::Squeeze };
/// let key = Key { seed: 1, epoch: 0, index: 7 };
/// let rotated = augment.apply(&image, preprocess, key)?;
/// assert_eq!((rotated.width(), rotated.height()), (24, 24));
/// assert_eq!(rotated, augment.apply(&image, preprocess, key)?, "a function of its key");
/// # Ok::<(), petnet::ImageError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Augment {
    /// Probability of a mirror image.
    pub horizontal_flip: f32,
    /// Smallest share of the area that a random crop keeps, 0 to 1; 1 keeps the whole image.
    pub crop_scale: f32,
    /// Widest aspect ratio of a random crop, at least 1 (4:3 is 1.33).
    pub crop_ratio: f32,
    /// Largest rotation in degrees, either way, 0 to 255.
    pub rotation: f32,
    /// Largest shift as a share of the side, either way.
    pub shift: f32,
    /// Largest change of the scale as a share, either way.
    pub scale: f32,
    /// Probability that rotation, shift and scale are applied.
    pub affine: f32,
    /// Largest change of brightness as a share of full scale, either way.
    pub brightness: f32,
    /// Largest change of contrast as a share, either way.
    pub contrast: f32,
    /// Largest change of saturation as a share, either way.
    pub saturation: f32,
    /// Largest rotation of the hue in degrees, either way, 0 to 255.
    pub hue: f32,
    /// Probability of a slight blur (3 x 3 binomial).
    pub blur: f32,
    /// Probability of sensor noise.
    pub noise: f32,
    /// Standard deviation of that noise, on the scale of 0 to 255.
    pub noise_std: f32,
    /// Probability that a rectangle (2 % to 20 % of the area) is replaced by noise
    /// (Zhong et al., "Random erasing data augmentation", 2017).
    pub erasing: f32,
    /// Parameter of mixup: two images of a batch are blended, by a share drawn from Beta(mixup, mixup)
    /// (Zhang et al., "mixup: beyond empirical risk minimization", 2017).
    pub mixup: f32,
    /// Parameter of CutMix: a rectangle of one image of a batch is pasted over another, its area drawn from
    /// Beta(cutmix, cutmix) (Yun et al., "CutMix", 2019). With both, each batch uses one of the two, drawn at random.
    pub cutmix: f32,
}

impl Default for Augment {
    /// Settings for fine-tuning: random crop, mirror image, small rotations, light changes of colour, and erasing.
    fn default() -> Self {
        Self {
            horizontal_flip: 0.5,
            crop_scale: 0.3,
            crop_ratio: 1.33,
            rotation: 10.0,
            affine: 0.5,
            brightness: 0.15,
            contrast: 0.15,
            saturation: 0.15,
            noise_std: 8.0,
            erasing: 0.25,
            ..Self::none()
        }
    }
}

/// Key of the random numbers for one image, or for another purpose, by an index that no image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Seed of the whole training.
    pub seed: u64,
    /// Epoch, from 0.
    pub epoch: usize,
    /// Index of the image in the data set; from half of `usize::MAX` on, another purpose.
    pub index: usize,
}

impl Key {
    /// For the order of the images in an epoch.
    pub(crate) fn of_order(seed: u64, epoch: usize) -> Self {
        Self { seed, epoch, index: usize::MAX }
    }

    /// For dropout in a step of an epoch.
    pub(crate) fn of_step(seed: u64, epoch: usize, step: usize) -> Self {
        Self { seed, epoch, index: usize::MAX - 1 - step }
    }

    /// For mixing the images of the batch whose first image has this index.
    pub(crate) fn of_batch(seed: u64, epoch: usize, first: usize) -> Self {
        Self { seed, epoch, index: usize::MAX / 2 + first }
    }

    pub(crate) fn rng(self) -> ChaCha8Rng {
        let mut seed = [0; 32];
        let words = [self.seed, self.epoch as u64, self.index as u64];
        for (bytes, word) in seed.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        ChaCha8Rng::from_seed(seed)
    }
}

impl Augment {
    /// No changes, for evaluation.
    pub fn none() -> Self {
        Self {
            horizontal_flip: 0.0,
            crop_scale: 1.0,
            crop_ratio: 1.0,
            rotation: 0.0,
            shift: 0.0,
            scale: 0.0,
            affine: 0.0,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.0,
            blur: 0.0,
            noise: 0.0,
            noise_std: 0.0,
            erasing: 0.0,
            mixup: 0.0,
            cutmix: 0.0,
        }
    }

    /// Validates probabilities and ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first value out of range.
    pub fn validate(&self) -> Result<()> {
        let shares = [
            ("horizontal_flip", self.horizontal_flip),
            ("crop_scale", self.crop_scale),
            ("affine", self.affine),
            ("shift", self.shift),
            ("scale", self.scale),
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
            ("blur", self.blur),
            ("noise", self.noise),
            ("erasing", self.erasing),
            ("mixup", self.mixup),
            ("cutmix", self.cutmix),
        ];
        if let Some((key, value)) = shares.iter().find(|(_, v)| !(0.0..=1.0).contains(v)) {
            return Err(Error::Config(format!(
                "augmentation.{key} is {value}, must lie between 0 and 1"
            )));
        }
        let amounts =
            [("rotation", self.rotation), ("hue", self.hue), ("noise_std", self.noise_std)];
        let in_range = |value: f32| (0.0..=255.0).contains(&value);
        if let Some((key, value)) = amounts.iter().find(|(_, value)| !in_range(*value)) {
            return Err(Error::Config(format!(
                "augmentation.{key} is {value}, must lie between 0 and 255"
            )));
        }
        if self.crop_scale < 0.05 || !(1.0..=4.0).contains(&self.crop_ratio) {
            return Err(Error::Config(
                "augmentation.crop_scale must be at least 0.05 and crop_ratio between 1 and 4"
                    .into(),
            ));
        }
        Ok(())
    }

    /// An augmented copy at the network's input size.
    ///
    /// # Errors
    /// [`ImageError::Unsupported`] when the size is zero.
    pub fn apply(&self, image: &Pixels, to: Preprocess, key: Key) -> Result<Pixels, ImageError> {
        let mut rng = key.rng();
        let mut pixels = self.crop(image, to, &mut rng)?;
        if bernoulli(&mut rng, self.horizontal_flip) {
            flip(&mut pixels);
        }
        if bernoulli(&mut rng, self.affine) {
            pixels = self.affine_transform(&pixels, &mut rng);
        }
        self.jitter_colour(&mut pixels, &mut rng);
        if bernoulli(&mut rng, self.blur) {
            pixels = blur(&pixels);
        }
        if bernoulli(&mut rng, self.noise) {
            add_noise(&mut pixels, self.noise_std, &mut rng);
        }
        if bernoulli(&mut rng, self.erasing) {
            erase(&mut pixels, &mut rng);
        }
        Ok(pixels)
    }

    /// Mixes each of `count` images with the one at the same position from the end. Returns the share of the image itself
    /// in the result, 1 where nothing was mixed.
    pub(crate) fn mix(&self, images: &mut [u8], count: usize, side: usize, key: Key) -> f32 {
        let mut rng = key.rng();
        let cut = match (self.mixup > 0.0, self.cutmix > 0.0) {
            (false, false) => return 1.0,
            (true, true) => bernoulli(&mut rng, 0.5),
            (_, cut) => cut,
        };
        let share = beta(&mut rng, if cut { self.cutmix } else { self.mixup });
        let size = images.len() / count.max(1);
        let (mut columns, mut rows, mut own_share) = (0..side, 0..side, share);
        if cut {
            let span = ((1.0 - share).sqrt() * side as f32) as usize;
            let mut start = || (rng.random::<f32>() * (side - span + 1) as f32) as usize;
            let (left, top) = (start(), start());
            (columns, rows) = (left..left + span, top..top + span);
            own_share = 1.0 - (span * span) as f32 / (side * side) as f32;
        }
        let share = if cut { 0.0 } else { share };
        let (front, back) = images.split_at_mut(count / 2 * size);
        // The middle one of an odd number stays as it is.
        let back = &mut back[count % 2 * size..];
        for (a, b) in front.chunks_exact_mut(size).zip(back.chunks_exact_mut(size).rev()) {
            for row in rows.clone() {
                let line = (row * side + columns.start) * 3..(row * side + columns.end) * 3;
                for (a, b) in a[line.clone()].iter_mut().zip(&mut b[line]) {
                    let (own, other) = (f32::from(*a), f32::from(*b));
                    *a = (own * share + other * (1.0 - share) + 0.5) as u8;
                    *b = (other * share + own * (1.0 - share) + 0.5) as u8;
                }
            }
        }
        own_share
    }

    /// Random resized crop (Szegedy et al., "Going deeper with convolutions", 2014).
    fn crop(
        &self,
        image: &Pixels,
        to: Preprocess,
        rng: &mut ChaCha8Rng,
    ) -> Result<Pixels, ImageError> {
        if self.crop_scale >= 1.0 {
            return resize(image, to.size, to.resize);
        }
        let (width, height) = (f64::from(image.width()), f64::from(image.height()));
        // Area and aspect ratio are relative to what is resized without a crop: the image, or its largest square.
        let (whole_width, whole_height) = match to.resize {
            Resize::Squeeze => (width, height),
            Resize::CenterCrop => (width.min(height), width.min(height)),
        };
        let area = f64::from(uniform(rng, self.crop_scale, 1.0)).sqrt();
        let ratio = f64::from(uniform_symmetric(rng, self.crop_ratio.ln()).exp()).sqrt();
        let crop_width = (whole_width * area * ratio).clamp(1.0, width);
        let crop_height = (whole_height * area / ratio).clamp(1.0, height);
        let left = rng.random::<f64>() * (width - crop_width);
        let top = rng.random::<f64>() * (height - crop_height);
        let options = fir::ResizeOptions::new()
            .resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::Bilinear))
            .crop(left, top, crop_width, crop_height);
        resize_with(image, to.size, to.size, &options)
    }

    /// Rotation, shift and scale about the centre; pixels from outside repeat the edge.
    fn affine_transform(&self, from: &Pixels, rng: &mut ChaCha8Rng) -> Pixels {
        let (sin, cos) = (uniform_symmetric(rng, self.rotation) * PI / 180.0).sin_cos();
        let zoom = 1.0 + uniform_symmetric(rng, self.scale);
        let (width, height) = (from.width() as f32, from.height() as f32);
        let (dx, dy) = (
            uniform_symmetric(rng, self.shift) * width,
            uniform_symmetric(rng, self.shift) * height,
        );
        let (cx, cy) = ((width - 1.0) / 2.0, (height - 1.0) / 2.0);
        let mut to = from.clone();
        for (y, row) in to.data_mut().chunks_exact_mut(from.width() as usize * 3).enumerate() {
            let v = (y as f32 - cy - dy) / zoom;
            for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
                let u = (x as f32 - cx - dx) / zoom;
                pixel.copy_from_slice(&bilinear(
                    from,
                    u * cos + v * sin + cx,
                    v * cos - u * sin + cy,
                ));
            }
        }
        to
    }

    /// Changes brightness, contrast, saturation and hue by one affine map of the colour.
    fn jitter_colour(&self, pixels: &mut Pixels, rng: &mut ChaCha8Rng) {
        let offset = uniform_symmetric(rng, self.brightness) * 255.0;
        let gain = 1.0 + uniform_symmetric(rng, self.contrast);
        let saturation = 1.0 + uniform_symmetric(rng, self.saturation);
        let hue = uniform_symmetric(rng, self.hue) * PI / 180.0;
        let amounts = [self.brightness, self.contrast, self.saturation, self.hue];
        if amounts.iter().all(|amount| *amount == 0.0) {
            return;
        }
        let matrix = colour_matrix(saturation, hue);
        let mean = mean(pixels);
        for pixel in pixels.data_mut().as_chunks_mut::<3>().0 {
            let colour = pixel.map(|c| (f32::from(c) - mean) * gain + mean + offset);
            *pixel = matrix.map(|row| {
                (row[0] * colour[0] + row[1] * colour[1] + row[2] * colour[2]).round() as u8
            });
        }
    }
}

/// The matrix that rotates the hue and scales the saturation, and keeps the luma (BT.601): in YIQ, a rotation and a scale
/// of the (I, Q) plane.
fn colour_matrix(saturation: f32, hue: f32) -> [[f32; 3]; 3] {
    const TO: [[f32; 3]; 3] =
        [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]];
    const FROM: [[f32; 3]; 3] = [[1.0, 0.956, 0.621], [1.0, -0.272, -0.647], [1.0, -1.106, 1.703]];
    let (sin, cos) = hue.sin_cos();
    let hue_saturation = [
        [1.0, 0.0, 0.0],
        [0.0, cos * saturation, -sin * saturation],
        [0.0, sin * saturation, cos * saturation],
    ];
    multiply(FROM, multiply(hue_saturation, TO))
}

fn multiply(a: [[f32; 3]; 3], b: [[f32; 3]; 3]) -> [[f32; 3]; 3] {
    a.map(|row| [0, 1, 2].map(|c| (0..3).map(|k| row[k] * b[k][c]).sum()))
}

fn mean(pixels: &Pixels) -> f32 {
    let sum: u64 = pixels.data().iter().map(|c| u64::from(*c)).sum();
    sum as f32 / pixels.data().len() as f32
}

fn bernoulli(rng: &mut ChaCha8Rng, probability: f32) -> bool {
    rng.random::<f32>() < probability
}

fn uniform(rng: &mut ChaCha8Rng, low: f32, high: f32) -> f32 {
    low + (high - low) * rng.random::<f32>()
}

fn uniform_symmetric(rng: &mut ChaCha8Rng, bound: f32) -> f32 {
    uniform(rng, -bound, bound)
}

/// A sample of Beta(alpha, alpha), for alpha of at most 1, by Jöhnk's method (1964).
fn beta(rng: &mut ChaCha8Rng, alpha: f32) -> f32 {
    loop {
        let [x, y] = [0, 1].map(|_| rng.random::<f32>().powf(1.0 / alpha));
        if x + y <= 1.0 && x + y > 0.0 {
            return x / (x + y);
        }
    }
}

fn flip(pixels: &mut Pixels) {
    let row = pixels.width() as usize * 3;
    for row in pixels.data_mut().chunks_exact_mut(row) {
        row.as_chunks_mut::<3>().0.reverse();
    }
}

/// The colour at a position, by bilinear interpolation; the edge is repeated.
fn bilinear(from: &Pixels, x: f32, y: f32) -> [u8; 3] {
    let (right, bottom) = (from.width() as usize - 1, from.height() as usize - 1);
    let (x, y) = (x.clamp(0.0, right as f32), y.clamp(0.0, bottom as f32));
    let (x0, y0) = (x as usize, y as usize);
    let (x1, y1) = ((x0 + 1).min(right), (y0 + 1).min(bottom));
    let (fx, fy) = (x - x0 as f32, y - y0 as f32);
    let pixels = from.data().as_chunks::<3>().0;
    let at = |x: usize, y: usize| pixels[y * (right + 1) + x];
    let (a, b, c, d) = (at(x0, y0), at(x1, y0), at(x0, y1), at(x1, y1));
    [0, 1, 2].map(|i| {
        let top = f32::from(a[i]) + (f32::from(b[i]) - f32::from(a[i])) * fx;
        let low = f32::from(c[i]) + (f32::from(d[i]) - f32::from(c[i])) * fx;
        (top + (low - top) * fy).round() as u8
    })
}

fn blur(from: &Pixels) -> Pixels {
    let mut to = from.clone();
    let (width, height) = (from.width() as usize, from.height() as usize);
    let near =
        |at: usize, end: usize| [(at.saturating_sub(1), 1u32), (at, 2), ((at + 1).min(end - 1), 1)];
    for y in 0..height {
        for x in 0..width {
            for c in 0..3 {
                let sum: u32 = near(y, height)
                    .iter()
                    .flat_map(|(y, wy)| near(x, width).map(|(x, wx)| (y * width + x, wx * wy)))
                    .map(|(at, weight)| u32::from(from.data()[at * 3 + c]) * weight)
                    .sum();
                to.data_mut()[(y * width + x) * 3 + c] = ((sum + 8) / 16) as u8;
            }
        }
    }
    to
}

fn add_noise(pixels: &mut Pixels, std: f32, rng: &mut ChaCha8Rng) {
    for value in pixels.data_mut() {
        // The sum of three uniform numbers approximates a normal distribution well enough.
        let normal = (0..3).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 2.0;
        *value = (f32::from(*value) + normal * std).round() as u8;
    }
}

fn erase(pixels: &mut Pixels, rng: &mut ChaCha8Rng) {
    let (width, height) = (pixels.width() as f32, pixels.height() as f32);
    let area = uniform(rng, 0.02, 0.2).sqrt();
    let ratio = uniform_symmetric(rng, 1.0).exp().sqrt();
    let (w, h) = ((width * area * ratio).min(width), (height * area / ratio).min(height));
    let left = (rng.random::<f32>() * (width - w)) as usize;
    let top = (rng.random::<f32>() * (height - h)) as usize;
    let row = pixels.width() as usize * 3;
    for line in pixels.data_mut().chunks_exact_mut(row).skip(top).take(h as usize) {
        line[left * 3..(left + w as usize) * 3].fill_with(|| rng.random());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixing_keeps_the_share_that_it_returns() {
        let (count, side) = (6, 32);
        let pixels = side * side * 3;
        for (mixup, cutmix) in [(0.4, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)] {
            let augment = Augment { mixup, cutmix, ..Augment::none() };
            for epoch in 0..20 {
                let key = Key { seed: 1, epoch, index: 2 };
                // The first half is black, the second white.
                let mut images = vec![0; count / 2 * pixels];
                images.resize(count * pixels, 255);
                let own_share = augment.mix(&mut images, count, side, key);
                assert!(
                    (0.0..=1.0).contains(&own_share) && (own_share == 1.0 || mixup + cutmix > 0.0)
                );
                for (index, image) in images.chunks_exact(pixels).enumerate() {
                    let light: u64 = image.iter().map(|value| u64::from(*value)).sum();
                    let white = light as f32 / (255 * pixels) as f32;
                    let own = if index < count / 2 { 1.0 - white } else { white };
                    assert!(
                        (own - own_share).abs() < 0.01,
                        "{augment:?} {index}: {own} {own_share}"
                    );
                }
            }
        }
    }
}
