//! Profiling: the time of each step of a network.

use std::time::Duration;

use crate::classifier::Classifier;
use crate::error::Result;
use crate::preprocess::Pixels;

/// Time of one step: a convolution with the operations that are fused into it, or another operation.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerTime {
    /// Name of its layer, as in the names of weights.
    pub name: String,
    /// Floating-point operations of a convolution by its definition, two for each multiply-add. Winograd's algorithm
    /// needs fewer.
    pub flops: u64,
    /// Time in this pass.
    pub time: Duration,
}

impl Classifier {
    /// Runs one image once and returns the time of each step. Empty on devices other than `cpu`.
    ///
    /// ```
    /// # #[cfg(feature = "pretrained")] {
    /// use petnet::preprocess::Pixels;
    ///
    /// let classifier = petnet::Classifier::pretrained()?;
    /// let side = classifier.info().preprocess.size;
    /// let grey = vec![127; (side * side * 3) as usize];
    /// let image = Pixels::new(side, side, grey).expect("three bytes a pixel");
    /// for layer in classifier.profile(&image)? {
    ///     println!("{:30} {:?}", layer.name, layer.time);
    /// }
    /// # }
    /// # Ok::<(), petnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Classifier::classify_pixels`].
    pub fn profile(&self, image: &Pixels) -> Result<Vec<LayerTime>> {
        self.check_size(image)?;
        let steps = self.runner().profile(image.data()).into_iter();
        Ok(steps.map(|(name, flops, time)| LayerTime { name: name.into(), flops, time }).collect())
    }
}
