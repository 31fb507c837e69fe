//! The loss, and which answers are right: for one class an image, or any number of them.

use burn::nn::loss::{
    BinaryCrossEntropyLoss, BinaryCrossEntropyLossConfig, CrossEntropyLoss, CrossEntropyLossConfig,
};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use super::Trainer;
use super::setup::class_weights;
use crate::dataset::{Dataset, Target};

/// Cross entropy over classes that exclude each other, or binary cross entropy of each class.
pub(super) enum Loss {
    SingleLabel(CrossEntropyLoss),
    /// Every target is moved towards one half by half of the smoothing.
    MultiLabel {
        loss: BinaryCrossEntropyLoss,
        smoothing: f32,
    },
}

/// Loss and right answers of a batch, on the device: `[1]` each.
pub(super) struct Outcome {
    /// Mean loss of an image.
    pub(super) loss: Tensor<1>,
    /// Number of images whose logits name the class, or exactly the classes: those whose sigmoid is at least one half.
    pub(super) right: Tensor<1>,
}

impl Loss {
    pub(super) fn new(trainer: &Trainer, train: &Dataset, device: &Device) -> Self {
        let smoothing = trainer.label_smoothing;
        if train.is_multi_label() {
            let loss = BinaryCrossEntropyLossConfig::new().with_logits(true).init(device);
            return Self::MultiLabel { loss, smoothing };
        }
        let weights = trainer.balanced.then(|| class_weights(train));
        let loss = CrossEntropyLossConfig::new().with_weights(weights);
        let smoothing = (smoothing > 0.0).then_some(smoothing);
        Self::SingleLabel(loss.with_smoothing(smoothing).init(device))
    }

    /// Judges logits `[n, classes]`. Of mixed pictures, each photo's loss counts by its share, see
    /// [`Batch::kept`](crate::loader::Batch::kept), and the answer is right that names the larger one's classes.
    pub(super) fn forward(&self, logits: Tensor<2>, targets: &[Target], kept: f32) -> Outcome {
        let (device, [count, classes]) = (logits.device(), logits.dims());
        match self {
            Self::SingleLabel(loss) => {
                let targets: Vec<i32> =
                    targets.iter().flat_map(Target::class).map(|class| class as i32).collect();
                let targets = Tensor::<1, Int>::from_ints(targets.as_slice(), &device); // [n]
                let of = |targets| loss.forward(logits.clone(), targets);
                let mean = mixed(of(targets.clone()), kept, || of(targets.clone().flip([0])));
                let said = logits.clone().inner().argmax(1).squeeze_dim::<1>(1); // [n]
                Outcome { loss: mean, right: count_of(said.equal(targets.inner())) }
            }
            Self::MultiLabel { loss, smoothing } => {
                let mut values = vec![0_i32; count * classes];
                for (row, target) in values.chunks_exact_mut(classes).zip(targets) {
                    target.classes().iter().for_each(|class| row[*class] = 1);
                }
                let targets = TensorData::new(values, [count, classes]);
                let targets = Tensor::<2, Int>::from_data(targets, &device); // [n, classes]
                let of = |targets: Tensor<2, Int>| smoothed(loss, &logits, targets, *smoothing);
                let mean = mixed(of(targets.clone()), kept, || of(targets.clone().flip([0])));
                let said = logits.clone().inner().greater_equal_elem(0.0).int(); // [n, classes]
                let wrong = said.not_equal(targets.inner()).int().sum_dim(1); // [n, 1]
                let right = wrong.squeeze_dim::<1>(1).equal_elem(0); // [n]
                Outcome { loss: mean, right: count_of(right) }
            }
        }
    }
}

/// Binary cross entropy of targets that are moved towards one half: it is linear in the target.
fn smoothed(
    loss: &BinaryCrossEntropyLoss,
    logits: &Tensor<2>,
    targets: Tensor<2, Int>,
    smoothing: f32,
) -> Tensor<1> {
    let of = |targets| loss.forward(logits.clone(), targets);
    if smoothing == 0.0 {
        return of(targets);
    }
    let ends = of(targets.ones_like()) + of(targets.zeros_like()); // [1]
    of(targets) * (1.0 - smoothing) + ends * (smoothing / 2.0)
}

/// The losses of both photos of mixed pictures, by their shares.
fn mixed(own: Tensor<1>, kept: f32, other: impl FnOnce() -> Tensor<1>) -> Tensor<1> {
    if kept >= 1.0 { own } else { own * kept + other() * (1.0 - kept) }
}

/// `[n]` -> `[1]`
fn count_of(right: Tensor<1, Bool>) -> Tensor<1> {
    right.int().sum().float()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothed_targets_go_towards_one_half_and_exact_answers_are_counted() {
        let device = Device::flex();
        let loss = BinaryCrossEntropyLossConfig::new().with_logits(true).init(&device);
        let loss = Loss::MultiLabel { loss, smoothing: 0.2 };
        let logits =
            Tensor::<2>::from_floats([[3.0, -3.0], [3.0, 3.0]], &device.clone().autodiff());
        let targets = [Target::Classes(vec![0]), Target::Classes(vec![0])];
        let Outcome { loss: mean, right } = loss.forward(logits, &targets, 1.0);
        // A target of 0.9 or 0.1 where a class is or is not.
        let cost = |logit: f32, target: f32| {
            let p = 1.0 / (1.0 + (-logit).exp());
            -target * p.ln() - (1.0 - target) * (1.0 - p).ln()
        };
        let expected = (3.0 * cost(3.0, 0.9) + cost(3.0, 0.1)) / 4.0;
        let mean = mean.into_scalar::<f32>();
        assert!((mean - expected).abs() < 1e-5, "{mean} {expected}");
        assert_eq!(right.into_scalar::<f32>(), 1.0);
    }

    #[test]
    fn mixed_pictures_cost_their_shares() {
        let device = Device::flex();
        let loss = Loss::SingleLabel(CrossEntropyLossConfig::new().init(&device));
        let logits = Tensor::<2>::from_floats([[2.0, 0.0], [2.0, 0.0]], &device.autodiff());
        let targets = [Target::Class(0), Target::Class(1)];
        let Outcome { loss: own, right } = loss.forward(logits.clone(), &targets, 1.0);
        let Outcome { loss: mixed, .. } = loss.forward(logits, &targets, 0.7);
        // The other photo of each has the other class, and the mean over both is the same.
        assert!((own.into_scalar::<f32>() - mixed.into_scalar::<f32>()).abs() < 1e-6);
        assert_eq!(right.into_scalar::<f32>(), 1.0);
    }
}
