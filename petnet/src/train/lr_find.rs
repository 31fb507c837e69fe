//! The learning-rate range test (Smith, "Cyclical learning rates for training neural networks", 2015): a short training
//! whose learning rate rises from far too low to far too high.

use super::fit::Fit;
use super::{Freeze, Observer, StepReport, Trainer};
use crate::dataset::Dataset;
use crate::error::{Error, Result};

/// Weight of earlier steps in the smoothed loss.
const SMOOTHING: f64 = 0.95;
/// A loss of this many times the lowest one ends the test.
const DIVERGENCE_FACTOR: f64 = 3.0;

/// One step of the test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RatePoint {
    /// Learning rate of the step.
    pub rate: f64,
    /// Loss, smoothed over steps.
    pub loss: f64,
}

/// The result of the test.
#[derive(Debug, Clone, PartialEq)]
pub struct RateCurve {
    /// One point per step, at rising rates.
    pub points: Vec<RatePoint>,
}

impl RateCurve {
    /// Half the rate at which the loss was lowest. It is close to the highest rate that still trains, and therefore suits
    /// as the peak of a schedule with warm-up and decay. `None` where the loss never fell.
    pub fn suggestion(&self) -> Option<f64> {
        let lowest = self.points.iter().min_by(|a, b| a.loss.total_cmp(&b.loss))?;
        let first = self.points.first()?;
        (lowest.loss < first.loss).then_some(lowest.rate / 2.0)
    }
}

impl Trainer {
    /// Trains for `steps` steps at rates that rise by a constant factor, or until the loss diverges. Nothing is saved.
    ///
    /// ```no_run
    /// let images = petnet::Dataset::open("photos")?;
    /// let curve = petnet::Trainer::default().find_rate(&images, 1e-5..1.0, 100, &mut ())?;
    /// println!("{:?}", curve.suggestion());
    /// # Ok::<(), petnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Trainer::fit`]; [`Error::Config`] when the range is empty, there are too few steps, or only the last layer
    /// would be trained, which has no learning rate.
    pub fn find_rate(
        &self,
        train: &Dataset,
        range: std::ops::Range<f64>,
        steps: usize,
        observer: &mut dyn Observer,
    ) -> Result<RateCurve> {
        if !(range.start > 0.0 && range.start < range.end) || steps < 20 {
            return Err(Error::Config(
                "a rate test needs 0 < lowest < highest and at least 20 steps".into(),
            ));
        }
        let trainer = Self { out: None, ..self.clone() };
        let (initial, frozen) = trainer.start(train, train)?;
        if frozen == Freeze::Backbone {
            return Err(Error::Config(
                "a rate test trains more than the last layer: set freeze to a number of blocks, 0 for none".into(),
            ));
        }
        let mut fit = Fit::new(&trainer, initial, train, train)?;
        let growth = (range.end / range.start).powf(1.0 / (steps - 1) as f64);
        let rates = (0..steps).map(|step| range.start * growth.powi(step as i32));
        let (mut points, mut average, mut weight) = (Vec::new(), 0.0, 0.0);
        let (mut lowest, mut interrupted) = (f64::INFINITY, false);
        let outcome = fit.steps_at(rates, |loss, report| {
            average = average * SMOOTHING + f64::from(loss) * (1.0 - SMOOTHING);
            weight = weight * SMOOTHING + 1.0 - SMOOTHING;
            let loss = average / weight;
            points.push(RatePoint { rate: report.learning_rate, loss });
            lowest = loss.min(lowest);
            let report = StepReport { step: points.len(), steps, loss, ..*report };
            observer.step(&report);
            interrupted = observer.stop();
            !interrupted && loss <= lowest * DIVERGENCE_FACTOR
        });
        match outcome {
            // A loss that is not finite ends the test and is no failure.
            Ok(()) | Err(Error::Diverged { .. }) if !interrupted => {}
            Ok(()) => return Err(Error::Interrupted),
            Err(error) => return Err(error),
        }
        Ok(RateCurve { points })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suggestion_is_below_the_rate_at_which_the_loss_rises() {
        let loss = |step: f64| {
            0.7 - 0.5 / (1.0 + (-(step - 40.0) / 3.0).exp())
                + 4.0 / (1.0 + (-(step - 80.0) / 2.0).exp())
        };
        let points: Vec<RatePoint> = (0..90)
            .map(|i| RatePoint { rate: 1e-5 * 1.1f64.powi(i), loss: loss(f64::from(i)) })
            .collect();
        let rate = RateCurve { points }.suggestion().unwrap();
        let step = (rate / 1e-5).ln() / 1.1f64.ln();
        assert!((45.0..65.0).contains(&step), "{step}");
        let rising = (0..30).map(|i| RatePoint { rate: f64::from(i + 1), loss: f64::from(i) });
        assert_eq!(RateCurve { points: rising.collect() }.suggestion(), None);
    }
}
