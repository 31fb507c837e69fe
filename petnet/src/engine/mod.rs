//! Inference on CPUs: a graph and its weights are compiled to a plan, which runs over preallocated memory. Independent of
//! architectures, training, tensors and files.
//!
//! Compilation folds batch norm into the convolutions and packs the weights. Maps are NHWC, within a border of zeros as
//! wide as the dense convolutions that read them need; depthwise and 1x1 convolutions need none. The memory of a map is
//! reused after its last reader, so that most maps stay in the cache. Each image has a pass of its own: a single image
//! uses all cores, several use one core each, which measured no slower than passes that share weights. Where the ranges
//! of all maps are known and the CPU has AVX-512 VNNI, maps are int8 instead of f32.
//!
//! The arithmetic is that of [`crate::kernel`], whose documentation has the table of functions for inference and training.
//! Training and inference on other devices run graphs by `nn` instead; only frozen blocks and a frozen teacher run on the
//! engine in training as well (`train::trunk`, `train::teacher`).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::arch::Normalization;
use crate::error::ModelError;
use crate::graph::{Graph, SourceHead};
use crate::passes::Program;
use crate::weights::Weights;

mod compile;
mod dense;
mod depthwise;
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

/// The smallest and the largest value of each feature map, by the name of its node.
pub(crate) type Ranges = BTreeMap<String, [f32; 2]>;

/// Inputs of compilation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NetworkSpec<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) source: Option<&'a SourceHead>,
    pub(crate) normalization: Normalization,
    /// Height and width of images, in pixels.
    pub(crate) side: usize,
    pub(crate) weights: &'a Weights,
    /// Given for int8 feature maps.
    pub(crate) ranges: Option<&'a Ranges>,
}

#[cfg(test)]
impl<'a> NetworkSpec<'a> {
    /// A network without a source head and ranges.
    pub(crate) fn new(graph: &'a Graph, side: usize, weights: &'a Weights) -> Self {
        let normalization = Normalization::default();
        Self { graph, source: None, normalization, side, weights, ranges: None }
    }
}

/// A compiled network.
#[derive(Debug)]
pub(crate) struct Engine(Plans);

#[derive(Debug)]
enum Plans {
    F32(Plan),
    #[cfg(target_arch = "x86_64")]
    Int8(Plan<int8::Int8>),
}

/// Calls the same method of either plan.
macro_rules! with_plan {
    ($engine:expr, $plan:ident => $call:expr) => {
        match &$engine.0 {
            Plans::F32($plan) => $call,
            #[cfg(target_arch = "x86_64")]
            Plans::Int8($plan) => $call,
        }
    };
}

impl Engine {
    /// Compiles a network: with ranges to int8 where this CPU and the network support it, otherwise to f32.
    /// Errors: [`ModelError`] for a weight or a range that is missing, or a side that is too small for the network.
    pub(crate) fn new(network: NetworkSpec<'_>) -> Result<Self, ModelError> {
        let NetworkSpec { graph, source, side, weights, .. } = network;
        let program = Program::new(graph, source, side)?;
        let graphs = std::iter::once(graph).chain(source.map(SourceHead::graph));
        let heads = graphs.map(|graph| Head::new(graph, weights)).collect::<Result<_, _>>()?;
        Self::compile(&program, network, heads)
    }

    /// Compiles only the first `blocks` blocks, for [`Engine::maps`]. Errors are those of [`Engine::new`].
    #[cfg(feature = "train")]
    pub(crate) fn trunk(network: NetworkSpec<'_>, blocks: usize) -> Result<Self, ModelError> {
        let program = Program::trunk(network.graph, blocks, network.side)?;
        Self::compile(&program, network, vec![Head::default()])
    }

    fn compile(
        program: &Program,
        network: NetworkSpec<'_>,
        heads: Vec<Head>,
    ) -> Result<Self, ModelError> {
        let NetworkSpec { normalization, weights, ranges, .. } = network;
        #[cfg(target_arch = "x86_64")]
        if let Some(ranges) = ranges
            && let Some((format, maps, steps)) =
                int8::compile(program, normalization, weights, ranges)?
        {
            let heads = compile::plan_heads(program, heads);
            return Ok(Self(Plans::Int8(Plan::new(format, maps, steps, heads))));
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = ranges;
        Ok(Self(Plans::F32(compile::compile(program, normalization, weights, heads)?)))
    }

    /// `pixels` are `[count, side, side, 3]`. Several images run in parallel, a single one on all cores.
    pub(crate) fn run(&self, pixels: &[u8]) -> Vec<Outputs> {
        with_plan!(self, plan => plan.run(pixels))
    }

    /// Height and width of the last feature maps, and their values `[height, width, count, channels]`.
    #[cfg(feature = "train")]
    pub(crate) fn maps(&self, pixels: &[u8]) -> ([usize; 2], Vec<f32>) {
        with_plan!(self, plan => plan.maps(pixels))
    }

    /// Outputs and Grad-CAM heat map of one image.
    pub(crate) fn explain(&self, pixels: &[u8]) -> (Outputs, Heat) {
        with_plan!(self, plan => plan.explain(pixels))
    }

    /// Name, floating-point operations and time of each step, for one image.
    pub(crate) fn profile(&self, pixels: &[u8]) -> Vec<(&str, u64, Duration)> {
        with_plan!(self, plan => plan.profile(pixels))
    }

    /// Runs one image and calls `on_pixel` with the node and the values of each pixel of each step's output. Int8 plans are
    /// not observed, since their values are clipped to their ranges.
    pub(crate) fn observe(&self, pixels: &[u8], on_pixel: impl FnMut(usize, &[f32]) + Send) {
        match &self.0 {
            Plans::F32(plan) => plan.observe(pixels, on_pixel),
            #[cfg(target_arch = "x86_64")]
            Plans::Int8(_) => {}
        }
    }
}
