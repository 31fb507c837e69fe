//! Knowledge distillation: the student is trained to reproduce the outputs of a teacher, a trained model of the same
//! classes (Hinton et al., "Distilling the knowledge in a neural network", 2015). Both get the same augmented image (Beyer
//! et al., "Knowledge distillation: a good teacher is patient and consistent", 2022). The teacher gets it at the size that
//! it was trained for, as it is wrong more often at another one. It runs on the inference engine, on the CPU.

use std::path::PathBuf;

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Precision};
use crate::disk::sha256;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::preprocess::{Pixels, Resize, resize};

/// Settings of a distillation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distillation {
    /// Model file of the teacher, whose classes are the student's.
    pub teacher: PathBuf,
    /// Temperature by which the logits of both models are divided.
    #[serde(default = "temperature")]
    pub temperature: f64,
    /// Weight of the teacher in the loss, 0 to 1; the rest is the loss on the labels.
    #[serde(default = "weight")]
    pub weight: f64,
    /// Weight of feature matching (Tung and Mori, "Similarity-preserving knowledge distillation", 2019); 0 for none.
    #[serde(default)]
    pub features: f64,
}

fn temperature() -> f64 {
    2.0
}

fn weight() -> f64 {
    0.9
}

impl Distillation {
    /// Refuses numbers out of range; names the key.
    /// Errors: [`Error::Config`].
    pub(super) fn validate(&self) -> Result<()> {
        let Self { temperature, weight, features, .. } = self;
        if !(0.0..=1.0).contains(weight) {
            return Err(Error::Config(format!("distillation.weight is {weight}, must be 0 to 1")));
        }
        if !(*temperature > 0.0 && temperature.is_finite() && *features >= 0.0) {
            let reason =
                "distillation.temperature must be above 0, distillation.features at least 0";
            return Err(Error::Config(reason.into()));
        }
        Ok(())
    }
}

/// A teacher ready to run.
pub(super) struct Teacher {
    pub(super) settings: Distillation,
    engine: Engine,
    /// Side of the images that the engine takes, in pixels.
    side: u32,
    /// SHA-256 of the model.
    pub(super) digest: String,
}

impl Teacher {
    /// Loads the teacher's model file and compiles it for inference at its own image size.
    /// Errors: as [`Checkpoint::load`]; [`Error::Config`] for a model of other classes.
    pub(super) fn load(settings: &Distillation, classes: &[String]) -> Result<Self> {
        let path = &settings.teacher;
        let model = Checkpoint::load(path)?.without_source()?;
        let info = model.info();
        if !info.task.is_single_label() {
            let path = path.display();
            return Err(Error::Config(format!("teacher {path} is a multi-label model")));
        }
        if info.labels != classes {
            let path = path.display();
            return Err(Error::Config(format!("teacher {path} has other classes than the data")));
        }
        let side = info.preprocess.size;
        let engine = Engine::new(model.network());
        let engine = engine.map_err(|reason| Error::checkpoint(path, reason))?;
        let digest = sha256(&model.to_bytes(Precision::F32)?);
        Ok(Self { settings: settings.clone(), engine, side, digest })
    }

    /// `[n, side, side, 3]` bytes -> logits `[n, classes]` and features `[n, width]`, without gradients.
    /// Errors: none for images of at least one pixel.
    pub(super) fn outputs(
        &self,
        images: &[u8],
        side: usize,
        device: &Device,
    ) -> Result<[Tensor<2>; 2]> {
        let scaled = |image: &[u8]| -> Result<Vec<u8>> {
            let image = Pixels::new(side as u32, side as u32, image.to_vec());
            let image = image.ok_or_else(|| Error::Config("an empty image".into()))?;
            Ok(resize(&image, self.side, Resize::Squeeze)?.into_data())
        };
        let outputs = if side == self.side as usize {
            self.engine.run(images)
        } else {
            let images = images.par_chunks_exact(side * side * 3).map(scaled);
            self.engine.run(&images.collect::<Result<Vec<_>>>()?.concat())
        };
        let rows = |row: fn(&crate::engine::Outputs) -> &Vec<f32>| {
            let width = outputs.first().map_or(0, |outputs| row(outputs).len());
            let values: Vec<f32> = outputs.iter().flat_map(row).copied().collect();
            Tensor::<2>::from_data(TensorData::new(values, [outputs.len(), width]), device)
        };
        Ok([rows(|outputs| &outputs.logits), rows(|outputs| &outputs.features)])
    }

    /// The total loss `[1]`, from the loss on the labels. Logits are `[n, classes]`, features `[n, width]` of any width.
    pub(super) fn loss(
        &self,
        labels: Tensor<1>,
        [logits, features]: [Tensor<2>; 2],
        [their_logits, their_features]: [Tensor<2>; 2],
    ) -> Tensor<1> {
        let Distillation { temperature, weight, features: matching, .. } = self.settings;
        let divergence = divergence(logits, their_logits, temperature);
        let loss = labels * (1.0 - weight) + divergence * weight; // [1]
        match matching > 0.0 {
            true => loss + similarity_loss(features, their_features) * matching,
            false => loss,
        }
    }
}

/// Mean Kullback-Leibler divergence of the student's probabilities from the teacher's, both at a temperature, times the
/// square of the temperature, which keeps the magnitude of gradients independent of it: `[1]`.
fn divergence(student: Tensor<2>, teacher: Tensor<2>, temperature: f64) -> Tensor<1> {
    let count = student.dims()[0].max(1) as f64;
    let target = softmax(teacher.clone() / temperature, 1); // [n, classes]
    let difference = log_softmax(teacher / temperature, 1) - log_softmax(student / temperature, 1);
    (target * difference).sum() * (temperature * temperature / count) // [1]
}

/// Similarity-preserving feature matching, which needs no common width (Tung and Mori, 2019). The matrix of dot products
/// between all images of a batch, each row divided by its norm, should be the teacher's: the mean over images of the
/// squared distance of their rows, `[1]`.
fn similarity_loss(student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
    let count = student.dims()[0].max(1) as f64;
    let similarities = |features: Tensor<2>| {
        let products = features.clone().matmul(features.transpose()); // [n, n]
        let lengths = products.clone().powf_scalar(2.0).sum_dim(1).sqrt().clamp_min(1e-12); // [n, 1]
        products / lengths
    };
    (similarities(student) - similarities(teacher)).powf_scalar(2.0).sum() / count // [1]
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn equal_outputs_have_no_loss_and_others_that_of_the_formula() {
        let device = Device::flex();
        let rows = |rows: [[f32; 2]; 2]| Tensor::<2>::from_floats(rows, &device);
        let same = rows([[2.0, -1.0], [0.5, 0.5]]);
        assert!(divergence(same.clone(), same.clone(), 2.0).into_scalar::<f32>().abs() < 1e-6);
        let value =
            divergence(rows([[0.0, 0.0], [0.5, 0.5]]), same.clone(), 1.0).into_scalar::<f32>();
        let p = 1.0 / (1.0 + (-3.0_f32).exp());
        let expected = (p * (p / 0.5).ln() + (1.0 - p) * ((1.0 - p) / 0.5).ln()) / 2.0;
        assert!((value - expected).abs() < 1e-5, "{value} {expected}");
        let wide = Tensor::<2>::from_floats([[4.0, -2.0, 0.0], [1.0, 1.0, 0.0]], &device);
        let matching = similarity_loss(wide, same.clone()).into_scalar::<f32>();
        assert!(matching.abs() < 1e-6, "only directions count: {matching}");
        assert!(similarity_loss(rows([[1.0, 0.0], [1.0, 0.0]]), same).into_scalar::<f32>() > 0.1);
    }
}
