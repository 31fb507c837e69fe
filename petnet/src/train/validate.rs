//! Validation of the settings of a training.

use super::{Distillation, Freeze, Schedule, Trainer};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::preprocess::MAX_SIZE;

/// An error that names a key, its value, and the values that are allowed.
fn out_of_range(key: &str, value: &dyn std::fmt::Display, range: &str) -> Result<()> {
    Err(Error::Config(format!("{key} is {value}, must be {range}")))
}

impl Trainer {
    /// Refuses settings that do not apply to multi-label data.
    pub(super) fn validate_task(&self, train: &Dataset) -> Result<()> {
        let refused = |what| Err(Error::Config(format!("{what} is not for multi-label data")));
        if !train.is_multi_label() {
            return Ok(());
        }
        if self.distillation.is_some() {
            return refused("distillation");
        }
        if self.balanced { refused("balanced") } else { Ok(()) }
    }

    /// Refuses values out of range, and settings that contradict each other; names the key.
    pub(super) fn validate(&self) -> Result<()> {
        // The number of classes does not matter here.
        let graph = self.architecture.graph(1)?;
        if self.epochs == 0 {
            return out_of_range("num_epochs", &0, "at least 1");
        }
        if self.batch_size < 2 {
            return out_of_range("batch_size", &self.batch_size, "at least 2");
        }
        self.validate_sizes(graph.min_side())?;
        if !(self.learning_rate > 0.0 && self.learning_rate <= 10.0) {
            return out_of_range("learning_rate", &self.learning_rate, "above 0 and at most 10");
        }
        let shares = [
            ("label_smoothing", f64::from(self.label_smoothing)),
            ("ema_decay", self.ema_decay),
            ("momentum", self.momentum),
            ("weight_decay", self.weight_decay),
        ];
        if let Some((key, value)) = shares.iter().find(|(_, v)| !(0.0..1.0).contains(v)) {
            return out_of_range(key, value, "at least 0 and below 1");
        }
        if let Schedule::ReduceLrOnPlateau { factor, .. } = self.schedule
            && !(factor > 0.0 && factor < 1.0)
        {
            return out_of_range("scheduler.factor", &factor, "above 0 and below 1");
        }
        if self.precise_bn_images > 0 && self.ema_decay > 0.0 {
            let images = &self.precise_bn_images;
            return out_of_range("precise_bn_images", images, "0 where ema_decay is not");
        }
        let freeze = self.freeze.unwrap_or(Freeze::Nothing);
        let blocks = graph.blocks().len();
        if let Freeze::Blocks(frozen) = freeze
            && frozen > blocks
        {
            let range = format!("at most {blocks}, the network's blocks");
            return out_of_range("freeze", &frozen, &range);
        }
        self.validate_frozen(freeze)?;
        let amounts = [("grad_clip", self.grad_clip), ("warmup_epochs", self.warmup_epochs)];
        if let Some((key, value)) =
            amounts.iter().find(|(_, value)| !(0.0..=f64::MAX).contains(value))
        {
            return out_of_range(key, value, "at least 0 and finite");
        }
        self.distillation.iter().try_for_each(Distillation::validate)?;
        self.augment.validate()
    }

    /// Refuses input sizes below the smallest side of the network, and shares of progressive resizing that are none.
    fn validate_sizes(&self, min_side: usize) -> Result<()> {
        let sizes = self.progressive.iter().map(|stage| stage.size);
        let smallest = (min_side as u32).max(8);
        let mut sizes = sizes.chain([self.image_size]);
        if let Some(size) = sizes.find(|size| !(smallest..=MAX_SIZE).contains(size)) {
            let range = format!("between {smallest} and {MAX_SIZE}");
            return out_of_range("image_size", &size, &range);
        }
        let share: f64 = self.progressive.iter().map(|stage| stage.share).sum();
        // Shares of decimal fractions sum to 1 but for rounding.
        if !(0.0..=1.0 + 1e-6).contains(&share) || self.progressive.iter().any(|s| s.share < 0.0) {
            return out_of_range("the shares of progressive together", &share, "between 0 and 1");
        }
        Ok(())
    }

    /// Refuses settings that have no effect on frozen layers; also for layers that are frozen by default.
    pub(super) fn validate_frozen(&self, freeze: Freeze) -> Result<()> {
        if freeze != Freeze::Nothing && self.precise_bn_images > 0 {
            return out_of_range("precise_bn_images", &self.precise_bn_images, "0 with freeze");
        }
        Ok(())
    }
}
