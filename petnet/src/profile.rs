//! Where a pass through a network spends its time.

use std::time::Duration;

use crate::classifier::Classifier;
use crate::error::Result;
use crate::preprocess::Pixels;

/// One convolution of a pass, with all that is done on its output.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerTime {
    /// As its weights are called.
    pub name: String,
    /// Floating-point operations by the definition of a convolution, two for each multiply-add; it
    /// may be computed with fewer.
    pub flops: u64,
    /// Of this one pass.
    pub time: Duration,
}

impl Classifier {
    /// The time of each convolution when a picture goes through the network, once. Empty on devices
    /// other than `cpu`.
    ///
    /// ```
    /// # #[cfg(feature = "pretrained")] {
    /// use petnet::preprocess::Pixels;
    ///
    /// let classifier = petnet::Classifier::pretrained()?;
    /// let side = classifier.info().preprocess.size;
    /// let grey = vec![127; (side * side * 3) as usize];
    /// let picture = Pixels::new(side, side, grey).expect("three bytes a pixel");
    /// for layer in classifier.profile(&picture)? {
    ///     println!("{:30} {:?}", layer.name, layer.time);
    /// }
    /// # }
    /// # Ok::<(), petnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Classifier::classify_pixels`].
    pub fn profile(&self, picture: &Pixels) -> Result<Vec<LayerTime>> {
        self.check_size(picture)?;
        let steps = self.runner().profile(picture.data()).into_iter();
        Ok(steps.map(|(name, flops, time)| LayerTime { name: name.into(), flops, time }).collect())
    }
}
