//! Heat maps of the image regions that a prediction depends on (Selvaraju et al., "Grad-CAM", 2017).
//!
//! All networks end in a global average pool, so that the gradient that Grad-CAM needs is a product of weights: no
//! backward pass is needed.

use crate::classifier::Classifier;
use crate::engine::Heat;
use crate::error::Result;
use crate::prediction::Prediction;
use crate::preprocess::Pixels;

/// A prediction with its heat map.
///
/// ```
/// # #[cfg(feature = "pretrained")] {
#[doc = include_str!("doc_image.txt")]
/// let classifier = petnet::Classifier::pretrained()?;
/// let explanation = classifier.explain_bytes(&image)?;
/// let (columns, rows) = explanation.size();
/// assert_eq!(explanation.heat().len(), columns * rows);
/// println!("{}", explanation.prediction());
/// # }
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    prediction: Prediction,
    width: usize,
    height: usize,
    heat: Vec<f32>,
}

impl Explanation {
    /// The prediction that the heat map explains.
    pub fn prediction(&self) -> &Prediction {
        &self.prediction
    }

    /// Columns and rows of [`Explanation::heat`], those of the last convolution.
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// Contribution of each cell to the predicted class, 0 to 1, rows from the top.
    pub fn heat(&self) -> &[f32] {
        &self.heat
    }

    /// The image with the heat map over it, at the image's size: blue is 0, red is 1.
    pub fn overlay(&self, image: &Pixels) -> Pixels {
        const OPACITY: f32 = 0.5;
        let mut overlay = image.clone();
        let (width, height) = (image.width() as usize, image.height() as usize);
        for (place, pixel) in overlay.data_mut().as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let (x, y) = (place % width, place / width);
            let heat = self.at(centre(x, width, self.width), centre(y, height, self.height));
            let colour = colour(heat);
            for (value, tint) in pixel.iter_mut().zip(colour) {
                *value = (f32::from(*value) * (1.0 - OPACITY) + tint * OPACITY).round() as u8;
            }
        }
        overlay
    }

    /// The heat at a position, by bilinear interpolation between cells.
    fn at(&self, x: f32, y: f32) -> f32 {
        let (x0, y0) = (x as usize, y as usize);
        let (x1, y1) = ((x0 + 1).min(self.width - 1), (y0 + 1).min(self.height - 1));
        let cell = |x: usize, y: usize| self.heat[y * self.width + x];
        let (fx, fy) = (x - x0 as f32, y - y0 as f32);
        let top = cell(x0, y0) + (cell(x1, y0) - cell(x0, y0)) * fx;
        let low = cell(x0, y1) + (cell(x1, y1) - cell(x0, y1)) * fx;
        top + (low - top) * fy
    }
}

/// Position of the centre of pixel `at` of `pixels`, in units of `cells`.
fn centre(at: usize, pixels: usize, cells: usize) -> f32 {
    let place = (at as f32 + 0.5) / pixels as f32 * cells as f32 - 0.5;
    place.clamp(0.0, (cells - 1) as f32)
}

/// Colour of a heat from 0 to 1: blue, cyan, green, yellow, red.
fn colour(heat: f32) -> [f32; 3] {
    const STOPS: [[f32; 3]; 5] = [
        [30.0, 40.0, 160.0],
        [20.0, 150.0, 210.0],
        [120.0, 210.0, 120.0],
        [250.0, 210.0, 50.0],
        [220.0, 40.0, 30.0],
    ];
    let place = heat.clamp(0.0, 1.0) * (STOPS.len() - 1) as f32;
    let low = (place as usize).min(STOPS.len() - 2);
    let part = place - low as f32;
    [0, 1, 2].map(|c| STOPS[low][c] + (STOPS[low + 1][c] - STOPS[low][c]) * part)
}

impl Classifier {
    /// Classifies an encoded image and computes the heat map of the predicted class.
    ///
    /// # Errors
    /// As [`Classifier::classify_bytes`].
    pub fn explain_bytes(&self, bytes: &[u8]) -> Result<Explanation> {
        self.explain_pixels(&self.preprocess(bytes)?)
    }

    /// Classifies an image that [`Classifier::preprocess`] made and computes the heat map of the predicted class.
    ///
    /// # Errors
    /// As [`Classifier::classify_pixels`].
    pub fn explain_pixels(&self, image: &Pixels) -> Result<Explanation> {
        self.check_size(image)?;
        let pixels = image.data().to_vec();
        let (outputs, Heat { height, width, values: mut heat }) = self.runner().explain(pixels)?;
        let top = heat.iter().copied().fold(0.0, f32::max);
        if top > 0.0 {
            heat.iter_mut().for_each(|value| *value /= top);
        }
        let prediction = self.prediction(&outputs);
        Ok(Explanation { prediction, width, height, heat })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overlay_is_hot_where_the_heat_is() {
        let prediction = Prediction::new("cat".into(), 0, vec![1.0]);
        let explanation =
            Explanation { prediction, width: 2, height: 2, heat: vec![0.0, 0.0, 0.0, 1.0] };
        let image = Pixels::new(8, 6, vec![128; 8 * 6 * 3]).unwrap();
        let overlay = explanation.overlay(&image);
        let at = |x: usize, y: usize| overlay.data().as_chunks::<3>().0[y * 8 + x];
        let (cold, hot) = (at(0, 0), at(7, 5));
        assert!(cold[2] > cold[0] && hot[0] > hot[2], "{cold:?} {hot:?}");
    }
}
