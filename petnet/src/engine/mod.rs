//! Runs a trained network on a CPU: a fixed plan over plain memory. Knows graphs, weights and shapes;
//! nothing of architectures, training, tensors or files.
//!
//! When a plan is made, batch norm is folded into the convolutions and weights are packed in the order in which they
//! are read; 3x3 convolutions of stride 1 on large maps use Winograd's algorithm. Maps lie as NHWC, within a border of
//! zeros as wide as the dense kernels that read them need; depthwise and 1x1 convolutions need none. A map's memory is
//! used again once nothing reads it any more, so that most maps stay in the cache. Each image has a pass of its own: a
//! lone one on all cores, many on one core each, which measured no slower than passes that share weights.
//!
//! Where the ranges of all maps are known and the CPU has AVX-512 VNNI, maps are bytes instead of floats.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::arch::Normalization;
use crate::error::ModelError;
use crate::graph::{Graph, SourceHead};
use crate::passes::Program;
use crate::weights::Weights;

mod compile;
mod conv;
mod head;
#[cfg(target_arch = "x86_64")]
mod int8;
mod plan;
mod shape;
mod simple;
mod winograd;

pub(crate) use head::Head;
use plan::Plan;
#[cfg(any(test, feature = "burn"))]
pub(crate) use plan::SourceOutputs;
pub(crate) use plan::{Heat, Outputs};

#[cfg(all(test, feature = "flex"))]
mod tests;

/// The smallest and the largest value of each feature map, by the name of the node that gives it.
pub(crate) type Ranges = BTreeMap<String, [f32; 2]>;

/// All that a plan is compiled from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Network<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) source: Option<&'a SourceHead>,
    pub(crate) normalization: Normalization,
    /// Of the image, in pixels.
    pub(crate) side: usize,
    pub(crate) weights: &'a Weights,
}

/// A compiled network; share it between threads freely.
#[derive(Debug)]
pub(crate) struct Engine(Plans);

#[derive(Debug)]
enum Plans {
    /// Maps of 32-bit floats.
    F32(Plan),
    /// Maps of bytes.
    #[cfg(target_arch = "x86_64")]
    Int8(Plan<int8::Int8>),
}

/// The same call of either plan.
macro_rules! either {
    ($engine:expr, $plan:ident => $call:expr) => {
        match &$engine.0 {
            Plans::F32($plan) => $call,
            #[cfg(target_arch = "x86_64")]
            Plans::Int8($plan) => $call,
        }
    };
}

impl<'a> Network<'a> {
    fn program(&self) -> Result<Program, ModelError> {
        Ok(Program::new(self.graph, self.source, self.side)?)
    }

    fn heads(&self) -> Result<Vec<Head>, ModelError> {
        let graphs = std::iter::once(self.graph).chain(self.source.map(SourceHead::graph));
        graphs.map(|graph| Head::new(graph, self.weights)).collect()
    }
}

impl Engine {
    /// In floats.
    ///
    /// # Errors
    /// [`ModelError`] for a weight that is missing, or a side that is too small for the network.
    pub(crate) fn new(network: Network<'_>) -> Result<Self, ModelError> {
        Self::compile(&network.program()?, network, network.heads()?, None)
    }

    /// In bytes where this CPU and the network allow it, else in floats.
    ///
    /// # Errors
    /// As [`Engine::new`]; [`ModelError::MissingRange`] for a map without a range.
    pub(crate) fn quantized(network: Network<'_>, ranges: &Ranges) -> Result<Self, ModelError> {
        Self::compile(&network.program()?, network, network.heads()?, Some(ranges))
    }

    /// The first `blocks` blocks alone, for [`Engine::maps`]; in bytes with ranges, where that is possible.
    ///
    /// # Errors
    /// As [`Engine::quantized`].
    #[cfg(feature = "train")]
    pub(crate) fn trunk(
        network: Network<'_>,
        blocks: usize,
        ranges: Option<&Ranges>,
    ) -> Result<Self, ModelError> {
        let program = Program::trunk(network.graph, blocks, network.side)?;
        Self::compile(&program, network, vec![Head::empty()], ranges)
    }

    fn compile(
        program: &Program,
        network: Network<'_>,
        heads: Vec<Head>,
        ranges: Option<&Ranges>,
    ) -> Result<Self, ModelError> {
        let Network { normalization, weights, .. } = network;
        #[cfg(target_arch = "x86_64")]
        if let Some(ranges) = ranges
            && let Some((numbers, maps, steps)) =
                int8::compile(program, normalization, weights, ranges)?
        {
            let ends = compile::ends(program, heads);
            return Ok(Self(Plans::Int8(Plan::new(numbers, maps, steps, ends))));
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = ranges;
        Ok(Self(Plans::F32(compile::compile(program, normalization, weights, heads)?)))
    }

    /// `pixels` are `[count, side, side, 3]`. Many images run side by side, one on all cores.
    pub(crate) fn run(&self, pixels: &[u8]) -> Vec<Outputs> {
        either!(self, plan => plan.run(pixels))
    }

    /// The last feature maps of some images, `[height, width, count, channels]`, and their first two sides.
    #[cfg(feature = "train")]
    pub(crate) fn maps(&self, pixels: &[u8]) -> ([usize; 2], Vec<f32>) {
        either!(self, plan => plan.maps(pixels))
    }

    /// One image's outputs and heat map.
    pub(crate) fn explain(&self, pixels: &[u8]) -> (Outputs, Heat) {
        either!(self, plan => plan.explain(pixels))
    }

    /// Each convolution's name, operations (two for a multiply-add) and time, of one image's pass.
    pub(crate) fn profile(&self, pixels: &[u8]) -> Vec<(&str, u64, Duration)> {
        either!(self, plan => plan.profile(pixels))
    }

    /// Calls `seen` with the node and the values of each pixel of each step's output, for one image. Only plans of
    /// floats are observed: bytes have lost what lies outside of their ranges.
    pub(crate) fn observe(&self, pixels: &[u8], seen: impl FnMut(usize, &[f32]) + Send) {
        match &self.0 {
            Plans::F32(plan) => plan.observe(pixels, seen),
            #[cfg(target_arch = "x86_64")]
            Plans::Int8(_) => {}
        }
    }
}
