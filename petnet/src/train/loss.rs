//! Loss and number of correct predictions, for single-label and multi-label data.

use burn::nn::loss::{
    BinaryCrossEntropyLoss, BinaryCrossEntropyLossConfig, CrossEntropyLoss, CrossEntropyLossConfig,
};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use super::Trainer;
use super::setup::class_weights;
use crate::dataset::{Dataset, Target};

/// Cross entropy for single-label data, binary cross entropy of each class for multi-label data.
pub(super) enum Loss {
    SingleLabel(CrossEntropyLoss),
    /// With smoothing s, a target t becomes t (1 - s) + s / 2.
    MultiLabel {
        loss: BinaryCrossEntropyLoss,
        smoothing: f32,
    },
}

/// Loss and number of correct predictions of a batch, on the device: `[1]` each.
pub(super) struct Outcome {
    /// Mean loss over images.
    pub(super) loss: Tensor<1>,
    /// Number of images whose predicted class is correct; for multi-label data, of images whose predicted classes, those
    /// with a sigmoid of at least one half, are exactly the true ones.
    pub(super) correct: Tensor<1>,
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

    /// Loss and correct predictions of logits `[n, classes]`. For mixed images the loss is the mean over both targets,
    /// weighted by their shares, see [`Batch::own_share`](crate::loader::Batch::own_share); the image's own target is the one that counts as correct.
    pub(super) fn forward(&self, logits: Tensor<2>, targets: &[Target], own_share: f32) -> Outcome {
        let (device, [count, classes]) = (logits.device(), logits.dims());
        match self {
            Self::SingleLabel(loss) => {
                let targets: Vec<i32> =
                    targets.iter().flat_map(Target::class).map(|class| class as i32).collect();
                let targets = Tensor::<1, Int>::from_ints(targets.as_slice(), &device); // [n]
                let of = |targets| loss.forward(logits.clone(), targets);
                let mean = mixed(of(targets.clone()), own_share, || of(targets.clone().flip([0])));
                let predicted = logits.clone().inner().argmax(1).squeeze_dim::<1>(1); // [n]
                Outcome { loss: mean, correct: count_of(predicted.equal(targets.inner())) }
            }
            Self::MultiLabel { loss, smoothing } => {
                let mut values = vec![0_i32; count * classes];
                for (row, target) in values.chunks_exact_mut(classes).zip(targets) {
                    target.classes().iter().for_each(|class| row[*class] = 1);
                }
                let targets = TensorData::new(values, [count, classes]);
                let targets = Tensor::<2, Int>::from_data(targets, &device); // [n, classes]
                let of = |targets: Tensor<2, Int>| smoothed(loss, &logits, targets, *smoothing);
                let mean = mixed(of(targets.clone()), own_share, || of(targets.clone().flip([0])));
                let predicted = logits.clone().inner().greater_equal_elem(0.0).int(); // [n, classes]
                let wrong = predicted.not_equal(targets.inner()).int().sum_dim(1); // [n, 1]
                let correct = wrong.squeeze_dim::<1>(1).equal_elem(0); // [n]
                Outcome { loss: mean, correct: count_of(correct) }
            }
        }
    }
}

/// Binary cross entropy of smoothed targets. It is linear in the target, and therefore a weighted sum of the losses of
/// hard targets.
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

/// The losses on both targets of mixed images, weighted by their shares.
fn mixed(own: Tensor<1>, own_share: f32, other: impl FnOnce() -> Tensor<1>) -> Tensor<1> {
    if own_share >= 1.0 { own } else { own * own_share + other() * (1.0 - own_share) }
}

/// `[n]` -> `[1]`
fn count_of(correct: Tensor<1, Bool>) -> Tensor<1> {
    correct.int().sum().float()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothed_targets_move_towards_one_half_and_exact_matches_are_counted() {
        let device = Device::flex();
        let loss = BinaryCrossEntropyLossConfig::new().with_logits(true).init(&device);
        let loss = Loss::MultiLabel { loss, smoothing: 0.2 };
        let logits =
            Tensor::<2>::from_floats([[3.0, -3.0], [3.0, 3.0]], &device.clone().autodiff());
        let targets = [Target::Classes(vec![0]), Target::Classes(vec![0])];
        let Outcome { loss: mean, correct } = loss.forward(logits, &targets, 1.0);
        // The smoothed targets are 0.9 and 0.1.
        let cost = |logit: f32, target: f32| {
            let p = 1.0 / (1.0 + (-logit).exp());
            -target * p.ln() - (1.0 - target) * (1.0 - p).ln()
        };
        let expected = (3.0 * cost(3.0, 0.9) + cost(3.0, 0.1)) / 4.0;
        let mean = mean.into_scalar::<f32>();
        assert!((mean - expected).abs() < 1e-5, "{mean} {expected}");
        assert_eq!(correct.into_scalar::<f32>(), 1.0);
    }

    #[test]
    fn losses_of_mixed_images_are_weighted_by_their_shares() {
        let device = Device::flex();
        let loss = Loss::SingleLabel(CrossEntropyLossConfig::new().init(&device));
        let logits = Tensor::<2>::from_floats([[2.0, 0.0], [2.0, 0.0]], &device.autodiff());
        let targets = [Target::Class(0), Target::Class(1)];
        let Outcome { loss: own, correct } = loss.forward(logits.clone(), &targets, 1.0);
        let Outcome { loss: mixed, .. } = loss.forward(logits, &targets, 0.7);
        // Each image is mixed with one of the other class: the mean over both is the same.
        assert!((own.into_scalar::<f32>() - mixed.into_scalar::<f32>()).abs() < 1e-6);
        assert_eq!(correct.into_scalar::<f32>(), 1.0);
    }
}
