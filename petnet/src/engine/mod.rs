//! Runs a trained network on a CPU: a fixed plan over plain memory. Knows weights and shapes;
//! nothing of training, tensors or files.
//!
//! When a plan is made, batch norm is folded into the convolutions and weights are packed in the
//! order in which they are read. Maps lie as `[height, width, photo, channel]` within a border of
//! zeros, one pixel wide, so that every 3x3 convolution reads the same nine taps everywhere.

mod compile;
mod head;
mod layer;
mod plan;

pub(crate) use compile::compile;
pub(crate) use plan::{Outputs, Plan};

#[cfg(all(test, feature = "flex"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use burn::tensor::Device;

    use super::*;
    use crate::model::run;
    use crate::model::weights;
    use crate::model::{Architecture, Normalization, PetNetConfig, SimpleCnnConfig};
    use crate::weights::Weights;

    /// Weights of a network whose norms have seen something.
    fn weights(architecture: &Architecture, device: &Device) -> Weights {
        let network = architecture.build(3, Normalization::default(), device);
        let mut weights = weights::read(&network);
        for (name, weight) in &mut weights {
            let shift =
                if name.ends_with("running_var") || name.ends_with("gamma") { 0.6 } else { -0.4 };
            if name.contains("norm") || name.ends_with("bias") {
                for (place, value) in weight.values.iter_mut().enumerate() {
                    *value = (place * 37 % 11) as f32 / 11.0 + shift;
                }
            }
        }
        weights
    }

    #[test]
    fn the_engine_says_what_burn_says() {
        let device = Device::flex();
        let simple = |channels: &[usize], hidden| {
            let channels = channels.to_vec();
            Architecture::SimpleCnn(SimpleCnnConfig { channels, hidden, dropout: 0.0 })
        };
        let petnet = |stem, widths: &[usize], depths: &[usize]| {
            let (widths, depths) = (widths.to_vec(), depths.to_vec());
            Architecture::PetNet(PetNetConfig { stem, widths, depths, dropout: 0.0 })
        };
        let cases = [
            (simple(&[5, 16, 33], 7), 24),
            (simple(&[32, 64], 128), 21),
            (petnet(6, &[10, 20, 50], &[1, 2, 1]), 32),
            (petnet(32, &[48, 96], &[2, 1]), 45),
            (petnet(7, &[16], &[1]), 9),
        ];
        for (number, (architecture, side)) in cases.into_iter().enumerate() {
            device.seed(number as u64);
            let weights = weights(&architecture, &device);
            let network = architecture.build(3, Normalization::default(), &device);
            let network = weights::write(network, weights.clone()).unwrap();
            let plan = compile(&architecture, Normalization::default(), &weights).unwrap();
            for count in [1, 2, 3, 9, 20] {
                let pixels: Vec<u8> = (0..count * side * side * 3)
                    .map(|i| ((i * 7919 + i / 13 * 31) % 256) as u8)
                    .collect();
                let images = run::to_tensor(pixels.clone(), count, side, &device);
                let theirs = run::outputs(&network, images).unwrap();
                // Twice: the second pass finds buffers that were used.
                for _ in 0..2 {
                    let ours = plan.run(&pixels, count, side);
                    assert_eq!(ours.len(), count);
                    for (ours, theirs) in ours.iter().zip(&theirs) {
                        close(&ours.logits, &theirs.logits);
                        close(&ours.features, &theirs.features);
                    }
                }
            }
            let pixels: Vec<u8> = (0..side * side * 3).map(|i| (i * 31 % 251) as u8).collect();
            let image = run::to_tensor(pixels.clone(), 1, side, &device);
            let (_, heat) = network.explain(image);
            let [_, height, width] = heat.dims();
            let (_, size, ours) = plan.explain(&pixels, side).unwrap();
            assert_eq!(size, [height, width]);
            close(&ours, &heat.into_data().try_into_vec_as::<f32>().unwrap());
        }
    }

    fn close(ours: &[f32], theirs: &[f32]) {
        let scale = theirs.iter().fold(1.0_f32, |top, value| top.max(value.abs()));
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert!((ours - theirs).abs() < 2e-5 * scale, "{ours} is not {theirs}");
        }
    }

    #[test]
    fn a_missing_weight_is_named() {
        let architecture = Architecture::PetNet(PetNetConfig::default());
        let mut weights = weights(&architecture, &Device::flex());
        weights.remove("PetNet.blocks.2.first.norm.beta");
        let error = compile(&architecture, Normalization::default(), &weights).unwrap_err();
        assert!(error.contains("PetNet.blocks.2.first.norm.beta"), "{error}");
    }
}
