//! An exponential moving average of the weights (Polyak and Juditsky, 1992), batch-norm statistics included.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;

use crate::nn::Network;

/// Moves `average` towards `model`, both on a plain device. The decay is smaller in the first updates, so that the initial
/// weights soon lose their influence.
pub(super) fn update(average: Network, model: &Network, decay: f64, updates: usize) -> Network {
    let early_decay = (1.0 + updates as f64) / (10.0 + updates as f64);
    let mut collector = Collector(Vec::new());
    model.visit(&mut collector);
    let current = collector.0.into_iter();
    average.map(&mut Average { current, decay: decay.min(early_decay) })
}

/// All parameters of a network, each flat, in the order in which burn visits and maps them.
struct Collector(Vec<Tensor<1>>);

impl ModuleVisitor for Collector {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.push(param.val().reshape([-1]));
    }
}

struct Average {
    current: std::vec::IntoIter<Tensor<1>>,
    decay: f64,
}

impl ModuleMapper for Average {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(current) = self.current.next() else { return param };
        let shape = param.shape();
        // In this form, a value that is equal to its average stays the same, bit for bit.
        let rate = 1.0 - self.decay;
        param.map(|old| old.clone() + (current.reshape(shape) - old) * rate)
    }
}
