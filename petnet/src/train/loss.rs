//! The loss, and when an answer is right: for one class an image, or any number of them.

use burn::nn::loss::{
    BinaryCrossEntropyLoss, BinaryCrossEntropyLossConfig, CrossEntropyLoss, CrossEntropyLossConfig,
};
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::Trainer;
use super::setup::class_weights;
use crate::dataset::{Dataset, Target};
use crate::metrics::argmax;

/// Cross entropy over classes that exclude each other, or binary cross entropy of each class.
pub(super) enum Loss {
    SingleLabel(CrossEntropyLoss),
    MultiLabel(BinaryCrossEntropyLoss),
}

impl Loss {
    pub(super) fn new(trainer: &Trainer, train: &Dataset, device: &Device) -> Self {
        let weights = trainer.balanced.then(|| class_weights(train));
        let smoothing = (trainer.label_smoothing > 0.0).then_some(trainer.label_smoothing);
        if train.is_multi_label() {
            let loss = BinaryCrossEntropyLossConfig::new().with_logits(true);
            Self::MultiLabel(loss.with_weights(weights).with_smoothing(smoothing).init(device))
        } else {
            let loss = CrossEntropyLossConfig::new();
            Self::SingleLabel(loss.with_weights(weights).with_smoothing(smoothing).init(device))
        }
    }

    /// Mean loss `[1]` of logits `[n, classes]`; of mixed pictures, each photo's by its share, see
    /// [`Batch::kept`](crate::loader::Batch::kept).
    pub(super) fn forward(&self, logits: Tensor<2>, targets: &[Target], kept: f32) -> Tensor<1> {
        let own = self.unmixed(logits.clone(), targets.iter());
        if kept >= 1.0 {
            return own;
        }
        let other = self.unmixed(logits, targets.iter().rev());
        own * kept + other * (1.0 - kept)
    }

    fn unmixed<'a>(
        &self,
        logits: Tensor<2>,
        targets: impl Iterator<Item = &'a Target>,
    ) -> Tensor<1> {
        let (device, [_, classes]) = (logits.device(), logits.dims());
        match self {
            Self::SingleLabel(loss) => {
                let targets: Vec<i32> =
                    targets.flat_map(|target| target.class()).map(|class| class as i32).collect();
                let targets = Tensor::<1, Int>::from_ints(targets.as_slice(), &device);
                loss.forward(logits, targets)
            }
            Self::MultiLabel(loss) => {
                let row = |target: &Target| {
                    let mut row = vec![0_i32; classes];
                    target.classes().iter().for_each(|class| row[*class] = 1);
                    row
                };
                let rows: Vec<Vec<i32>> = targets.map(row).collect();
                let data = TensorData::new(rows.concat(), [rows.len(), classes]);
                loss.forward(logits, Tensor::<2, Int>::from_data(data, &device)) // [1]
            }
        }
    }
}

/// True where logits name the class, or exactly the classes: those whose sigmoid is at least one half.
pub(super) fn is_right(logits: &[f32], target: &Target) -> bool {
    match target {
        Target::Class(class) => argmax(logits) == *class,
        Target::Classes(classes) => {
            let mut said = logits.iter().enumerate().map(|(class, logit)| (class, *logit >= 0.0));
            said.all(|(class, said)| said == classes.contains(&class))
        }
    }
}
