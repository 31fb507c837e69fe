//! An exponential moving average of the weights (Polyak and Juditsky, 1992), batch-norm
//! statistics included.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

use crate::nn::Network;

/// Moves `average` towards `model`, both on a plain device. The decay is smaller in the first updates, so that the initial
/// weights soon lose their influence.
pub(super) fn update(average: Network, model: &Network, decay: f64, updates: usize) -> Network {
    let warm = (1.0 + updates as f64) / (10.0 + updates as f64);
    let mut reader = Reader::default();
    model.visit(&mut reader);
    average.map(&mut Mixer { path: Vec::new(), current: reader.flat, decay: decay.min(warm) })
}

#[derive(Default)]
struct Reader {
    path: Vec<String>,
    flat: HashMap<String, Tensor<1>>,
}

impl ModuleVisitor for Reader {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.flat.insert(self.path.join("."), param.val().reshape([-1]));
    }
}

struct Mixer {
    path: Vec<String>,
    current: HashMap<String, Tensor<1>>,
    decay: f64,
}

impl ModuleMapper for Mixer {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(current) = self.current.remove(&self.path.join(".")) else { return param };
        let shape = param.shape();
        // In this form, a value that is equal to its average stays the same, bit for bit.
        let rate = 1.0 - self.decay;
        param.map(|old| old.clone() + (current.reshape(shape) - old) * rate)
    }
}
