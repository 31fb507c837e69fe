//! Losses and numbers of correct predictions of the last steps. On a GPU those of several steps are read together: a read
//! waits for all work that was queued before it, and leaves the GPU idle until more is queued.

use burn::tensor::{Device, Tensor};

use super::Trainer;
use super::loss::Outcome;
use crate::device::is_on_host;
use crate::error::{Error, Result};
use crate::nn::run::values;

/// Steps whose values are read together on a GPU.
const STEPS_PER_READ: usize = 16;

/// Metrics of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct StepMetrics {
    /// Counted from 0, as is the step.
    pub(super) epoch: usize,
    pub(super) step: usize,
    pub(super) images: usize,
    pub(super) loss: f32,
    /// Number of images that were classified correctly.
    pub(super) correct: usize,
}

/// Metrics that were not read yet.
pub(super) struct Tally {
    steps_per_read: usize,
    /// Loss and correct predictions are zero until they are read.
    steps: Vec<StepMetrics>,
    /// `[2]` per step: loss and number of correct predictions.
    values: Vec<Tensor<1>>,
}

impl Tally {
    pub(super) fn new(device: &Device) -> Self {
        let steps_per_read = if is_on_host(device) { 1 } else { STEPS_PER_READ };
        Self { steps_per_read, steps: Vec::new(), values: Vec::new() }
    }

    /// Adds the loss and the number of correct predictions of a step, on a device without autodiff.
    pub(super) fn add(
        &mut self,
        epoch: usize,
        step: usize,
        images: usize,
        Outcome { loss, correct }: Outcome,
    ) {
        self.steps.push(StepMetrics { epoch, step, images, loss: 0.0, correct: 0 });
        self.values.push(Tensor::cat(vec![loss, correct], 0));
    }

    /// True when enough steps were added for a read.
    pub(super) fn is_full(&self) -> bool {
        self.steps.len() >= self.steps_per_read
    }

    /// The metrics of all steps since the last read.
    /// Errors: [`Error::Device`] when the device fails, [`Error::Diverged`] for the first loss that is not finite.
    pub(super) fn read(&mut self) -> Result<Vec<StepMetrics>> {
        let mut steps = std::mem::take(&mut self.steps);
        if steps.is_empty() {
            return Ok(steps);
        }
        let values = values(Tensor::cat(std::mem::take(&mut self.values), 0))?; // [2 steps]
        for (metrics, pair) in steps.iter_mut().zip(values.as_chunks::<2>().0) {
            (metrics.loss, metrics.correct) = (pair[0], pair[1] as usize);
        }
        match steps.iter().find(|metrics| !metrics.loss.is_finite()) {
            Some(StepMetrics { epoch, step, loss, .. }) => {
                Err(Error::Diverged { epoch: epoch + 1, step: step + 1, loss: *loss })
            }
            None => Ok(steps),
        }
    }
}

/// A device's error with a remedy, for images of `size` pixels a side.
pub(super) fn with_remedy(error: Error, trainer: &Trainer, size: usize) -> Error {
    let Error::Device(reason) = error else { return error };
    let batch = trainer.batch_size;
    let memory = format!("batch_size is {batch}; where memory was short, {} may fit", batch / 2);
    let resume = match &trainer.out {
        Some(_) => "; a resumed training goes on from the last saved state",
        None => "",
    };
    Error::Device(format!("{reason} ({size} px, {memory}{resume})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_read_in_order_and_a_loss_that_is_not_finite_names_its_step() {
        let device = Device::flex();
        let one = |value: f32| Tensor::<1>::from_floats([value], &device);
        let outcome = |loss, correct| Outcome { loss: one(loss), correct: one(correct) };
        let mut tally = Tally { steps_per_read: 3, ..Tally::new(&device) };
        assert_eq!(tally.read().unwrap(), []);
        for step in 0..3 {
            assert!(!tally.is_full());
            tally.add(1, step, 8, outcome(0.5 + step as f32, step as f32));
        }
        assert!(tally.is_full());
        let read = tally.read().unwrap();
        assert_eq!(read[2], StepMetrics { epoch: 1, step: 2, images: 8, loss: 2.5, correct: 2 });
        tally.add(1, 3, 8, outcome(1.0, 0.0));
        tally.add(1, 4, 8, outcome(f32::NAN, 0.0));
        let error = tally.read().unwrap_err();
        assert!(matches!(error, Error::Diverged { epoch: 2, step: 5, .. }), "{error}");
        assert_eq!(tally.read().unwrap(), [], "read once");
    }

    #[test]
    fn an_error_of_the_device_names_a_remedy() {
        let trainer = Trainer { batch_size: 64, ..Trainer::default() };
        let error = with_remedy(Error::Device("lost".into()), &trainer, 160).to_string();
        assert!(
            error.contains("lost")
                && error.contains("batch_size is 64")
                && error.contains("32 may fit")
        );
        assert!(matches!(with_remedy(Error::Interrupted, &trainer, 160), Error::Interrupted));
    }
}
