//! A compiled network: steps in the order in which they run, and the memory of their feature maps.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::dense::DenseConv;
use super::depthwise::DepthwiseConv;
use super::head::Head;
use super::shape::{Input, Shape};
use super::simple::{Elementwise, MaxPool};

/// The number format of feature maps, and the kernels for it: f32 or int8.
pub(super) trait MapFormat: std::fmt::Debug + Send + Sync {
    /// A value of a map.
    type Value: std::fmt::Debug + Default + Copy + Send + Sync;
    /// A step between two maps.
    type Kernel: std::fmt::Debug + Send + Sync;
    /// Number of values after the end of a map that kernels may read; results do not depend on them.
    const SLACK: usize;

    /// A pixel of the border of the image's map, if it has a border.
    fn border(&self) -> [Self::Value; 3] {
        Default::default()
    }
    /// Writes an image's bytes into its map.
    fn load(&self, pixels: &[u8], shape: Shape, map: &mut [Self::Value]);
    /// Runs a kernel, which writes the inside of `out`; the residual has the layout of `out`.
    fn run(
        kernel: &Self::Kernel,
        input: Input<'_, Self::Value>,
        residual: Option<&[Self::Value]>,
        out: &mut [Self::Value],
    );
    /// The mean of each channel of the map that head number `head` reads.
    fn means(&self, head: usize, shape: Shape, map: &[Self::Value]) -> Vec<f32>;
    /// A value of the map that head number `head` reads, as f32.
    fn dequantize(&self, head: usize, value: Self::Value) -> f32;
}

/// A network that is ready to run.
#[derive(Debug)]
pub(super) struct Plan<F: MapFormat = F32> {
    format: F,
    /// The feature map of each node; `None` where the output is not written to memory, or has no map (features).
    maps: Vec<Option<Map>>,
    steps: Vec<Step<F::Kernel>>,
    /// The network's own head, then the source head if there is one.
    heads: Vec<PlanHead>,
    /// Length of each slot, in values. Maps with disjoint lifetimes share a slot.
    slots: Vec<usize>,
    /// Memory for the next passes.
    arenas: Mutex<Vec<Arena<F::Value>>>,
}

/// A head, and the node whose feature map it reads.
#[derive(Debug)]
pub(super) struct PlanHead {
    pub(super) node: usize,
    pub(super) head: Head,
}

/// Feature maps of f32, and the affine map from an image's bytes to the first of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct F32 {
    pub(super) scale: [f32; 3],
    pub(super) shift: [f32; 3],
    /// A pixel of the border of the image's map: the values that represent zero.
    pub(super) border: [f32; 3],
}

impl MapFormat for F32 {
    type Value = f32;
    type Kernel = Kernel;
    const SLACK: usize = 0;

    fn border(&self) -> [f32; 3] {
        self.border
    }

    fn load(&self, pixels: &[u8], shape: Shape, map: &mut [f32]) {
        let rows = map[shape.inner_rows()].chunks_exact_mut(shape.row_len());
        for (line, to) in pixels.chunks_exact(shape.width * shape.channels).zip(rows) {
            let pixels = to[shape.inner_columns()].as_chunks_mut::<3>().0.iter_mut();
            for (to, from) in pixels.zip(line.as_chunks::<3>().0) {
                let Self { scale, shift, .. } = self;
                *to = [0, 1, 2].map(|c| f32::from(from[c]) * scale[c] + shift[c]);
            }
        }
    }

    fn run(kernel: &Kernel, input: Input<'_>, residual: Option<&[f32]>, out: &mut [f32]) {
        match kernel {
            Kernel::Dense(conv) => conv.run(input, residual, out),
            Kernel::Depthwise(conv) => conv.run(input, residual, out),
            Kernel::MaxPool(pool) => pool.run(input, f32::NEG_INFINITY, out),
            Kernel::Elementwise(step) => step.run(input, residual, out),
        }
    }

    fn means(&self, _: usize, shape: Shape, map: &[f32]) -> Vec<f32> {
        let mut means = vec![0.0; shape.channels];
        for pixel in shape.pixels(map) {
            means.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
        }
        let pixels = (shape.height * shape.width) as f32;
        means.iter_mut().for_each(|sum| *sum /= pixels);
        means
    }

    fn dequantize(&self, _: usize, value: f32) -> f32 {
        value
    }
}

/// A feature map: its layout and its memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Map {
    pub(super) shape: Shape,
    pub(super) slot: usize,
}

/// A kernel with the nodes whose maps it reads and writes.
#[derive(Debug)]
pub(super) struct Step<K = Kernel> {
    pub(super) name: String,
    pub(super) kernel: K,
    pub(super) input: usize,
    pub(super) residual: Option<usize>,
    pub(super) output: usize,
    /// Floating-point operations, two for each multiply-add.
    pub(super) flops: u64,
}

#[derive(Debug)]
pub(super) enum Kernel {
    Dense(DenseConv),
    Depthwise(DepthwiseConv),
    MaxPool(MaxPool),
    Elementwise(Elementwise),
}

/// The memory of one pass: its slots. Borders are written once, when it is allocated: zeros, and
/// [`MapFormat::border`] in the image's map, which has slot 0.
type Arena<T> = Vec<Vec<T>>;

/// Logits and features of one image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outputs {
    pub(crate) logits: Vec<f32>,
    /// The means of the last feature maps.
    pub(crate) features: Vec<f32>,
    /// Those of the source head.
    pub(crate) source: Option<SourceOutputs>,
}

impl Outputs {
    /// The mean of two images' outputs.
    pub(crate) fn mean(mut self, other: &Self) -> Self {
        let halve = |own: &mut Vec<f32>, other: &[f32]| {
            own.iter_mut().zip(other).for_each(|(own, other)| *own = f32::midpoint(*own, *other));
        };
        halve(&mut self.logits, &other.logits);
        halve(&mut self.features, &other.features);
        if let (Some(own), Some(other)) = (&mut self.source, &other.source) {
            halve(&mut own.logits, &other.logits);
            halve(&mut own.features, &other.features);
        }
        self
    }
}

/// Logits and features of one image by the source head.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SourceOutputs {
    pub(crate) logits: Vec<f32>,
    pub(crate) features: Vec<f32>,
}

/// Grad-CAM heat map: contribution of each pixel of the last feature maps to the predicted class, 0 or more.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Heat {
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Row by row.
    pub(crate) values: Vec<f32>,
}

/// The methods without a comment are called by those of the same name of [`super::Engine`], which describe them.
impl<F: MapFormat> Plan<F> {
    pub(super) fn new(
        format: F,
        maps: Vec<Option<Map>>,
        steps: Vec<Step<F::Kernel>>,
        heads: Vec<PlanHead>,
    ) -> Self {
        let count = maps.iter().flatten().map(|map| map.slot + 1).max().unwrap_or_default();
        let mut slots = vec![0; count];
        for map in maps.iter().flatten() {
            slots[map.slot] = (map.shape.len() + F::SLACK).max(slots[map.slot]);
        }
        Self { format, maps, steps, heads, slots, arenas: Mutex::default() }
    }

    pub(super) fn run(&self, pixels: &[u8]) -> Vec<Outputs> {
        let image = self.map(0).shape;
        let size = image.height * image.width * image.channels;
        if pixels.len() == size {
            return vec![self.run_single(pixels, |_| (), |arena| self.outputs(arena))];
        }
        let images = pixels.par_chunks_exact(size);
        let one = |pixels| self.pass(pixels, false, |_| (), |arena| self.outputs(arena));
        images.map(one).collect()
    }

    /// One image's outputs and heat map (Selvaraju et al., "Grad-CAM", 2017).
    pub(super) fn explain(&self, pixels: &[u8]) -> (Outputs, Heat) {
        let read = |arena: &Arena<F::Value>| {
            let outputs = self.outputs(arena);
            let class = crate::metrics::argmax(&outputs.logits);
            let own = &self.heads[0];
            let gradient = own.head.gradient(&outputs.features, class);
            let (shape, map) = self.head_map(own, arena);
            let dot = |pixel: &[F::Value]| {
                let values = pixel.iter().map(|value| self.format.dequantize(0, *value));
                values.zip(&gradient).map(|(x, g)| x * g).sum::<f32>()
            };
            let values = shape.pixels(map).map(|pixel| dot(pixel).max(0.0)).collect();
            (outputs, Heat { height: shape.height, width: shape.width, values })
        };
        self.run_single(pixels, |_| (), read)
    }

    #[cfg(feature = "train")]
    pub(super) fn maps(&self, pixels: &[u8]) -> ([usize; 2], Vec<f32>) {
        let image = self.map(0).shape;
        let size = image.height * image.width * image.channels;
        let own = &self.heads[0];
        let read = |arena: &Arena<F::Value>| {
            let (shape, map) = self.head_map(own, arena);
            let pixels = shape.pixels(map).flatten();
            pixels.map(|value| self.format.dequantize(0, *value)).collect::<Vec<f32>>()
        };
        let images = pixels.par_chunks_exact(size);
        let maps: Vec<Vec<f32>> =
            images.map(|pixels| self.pass(pixels, false, |_| (), read)).collect();
        let Shape { height, width, channels, .. } = self.map(own.node).shape;
        let mut values = vec![0.0; height * width * maps.len() * channels];
        let rows = values.par_chunks_exact_mut((maps.len() * channels).max(1)).enumerate();
        rows.for_each(|(pixel, row)| {
            for (to, map) in row.chunks_exact_mut(channels).zip(&maps) {
                to.copy_from_slice(&map[pixel * channels..][..channels]);
            }
        });
        ([height, width], values)
    }

    pub(super) fn profile(&self, pixels: &[u8]) -> Vec<(&str, u64, Duration)> {
        let mut instants = Vec::new();
        self.run_single(pixels, |_| instants.push(Instant::now()), |_| ());
        let times = instants.windows(2).map(|pair| pair[1] - pair[0]);
        let steps = self.steps.iter().zip(times);
        steps.map(|(step, time)| (step.name.as_str(), step.flops, time)).collect()
    }

    pub(super) fn observe(
        &self,
        pixels: &[u8],
        mut on_pixel: impl FnMut(usize, &[F::Value]) + Send,
    ) {
        let on_step = |output: Option<StepOutput<'_, F::Value>>| {
            if let Some(StepOutput { node, shape, map }) = output {
                shape.pixels(map).for_each(|pixel| on_pixel(node, pixel));
            }
        };
        self.run_single(pixels, on_step, |_| ());
    }

    /// [`Plan::pass`] on all cores.
    fn run_single<T: Send>(
        &self,
        pixels: &[u8],
        on_step: impl FnMut(Option<StepOutput<'_, F::Value>>) + Send,
        read: impl FnOnce(&Arena<F::Value>) -> T + Send,
    ) -> T {
        // The pool is entered once and not for each step, since waking threads takes long.
        rayon::scope(|_| {
            let _workers = SpinningWorkers::start();
            self.pass(pixels, true, on_step, read)
        })
    }

    /// Runs one image, with each step on all cores where `parallel`. `on_step` is called before the first step, and after
    /// each step with its output; `read` is called at the end.
    fn pass<T>(
        &self,
        pixels: &[u8],
        parallel: bool,
        mut on_step: impl FnMut(Option<StepOutput<'_, F::Value>>),
        read: impl FnOnce(&Arena<F::Value>) -> T,
    ) -> T {
        let mut arena = self.acquire_arena();
        self.format.load(pixels, self.map(0).shape, &mut arena[0]);
        on_step(None);
        for step in &self.steps {
            let output = self.map(step.output);
            // The output's slot differs from those of the inputs.
            let mut out = std::mem::take(&mut arena[output.slot]);
            let input = self.map(step.input);
            let values = &arena[input.slot][..input.shape.len() + F::SLACK];
            let residual = step.residual.map(|node| self.map(node));
            let residual = residual.map(|map| &arena[map.slot][..map.shape.len()]);
            let input = Input { values, shape: input.shape, parallel };
            F::run(&step.kernel, input, residual, &mut out[..output.shape.len()]);
            on_step(Some(StepOutput { node: step.output, shape: output.shape, map: &out }));
            arena[output.slot] = out;
        }
        let value = read(&arena);
        self.release_arena(arena);
        value
    }

    /// The feature map of a node that a step reads or writes.
    fn map(&self, node: usize) -> Map {
        self.maps[node].expect("a plan's steps read and write maps only")
    }

    fn outputs(&self, arena: &Arena<F::Value>) -> Outputs {
        let mut outputs = self.heads.iter().enumerate().map(|(number, plan_head)| {
            let (shape, map) = self.head_map(plan_head, arena);
            let features = self.format.means(number, shape, map);
            (plan_head.head.run(&features), features)
        });
        let (logits, features) = outputs.next().unwrap_or_default();
        let source = outputs.next().map(|(logits, features)| SourceOutputs { logits, features });
        Outputs { logits, features, source }
    }

    /// The feature map that a head reads.
    fn head_map<'a>(&self, head: &PlanHead, arena: &'a Arena<F::Value>) -> (Shape, &'a [F::Value]) {
        let Map { shape, slot } = self.map(head.node);
        (shape, &arena[slot])
    }

    fn acquire_arena(&self) -> Arena<F::Value> {
        let kept = self.arenas.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| {
            let zeros = |len: &usize| vec![F::Value::default(); *len];
            let mut arena: Arena<F::Value> = self.slots.iter().map(zeros).collect();
            let pixels = arena[0].as_chunks_mut::<3>().0.iter_mut();
            pixels.for_each(|pixel| *pixel = self.format.border());
            arena
        })
    }

    /// Keeps memory for a later pass, at most as many arenas as threads.
    fn release_arena(&self, arena: Arena<F::Value>) {
        let mut kept = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < rayon::current_num_threads() {
            kept.push(arena);
        }
    }
}

/// Output of a step: its node, layout and values.
struct StepOutput<'a, T> {
    node: usize,
    shape: Shape,
    map: &'a [T],
}

/// While it lives, idle threads of the pool poll for work instead of sleeping: waking one takes longer than many steps of
/// a single image.
///
/// A polling thread runs any job that it finds, whole passes too, and nothing waits until it stops polling. Other work is
/// delayed only where its thread waits for a part that another thread took, and meanwhile takes a polling job: it goes on
/// once that pass has ended. A pass cannot wait for itself in this way, nor can passes wait for each other in a circle:
/// polling jobs are older than the parts of steps, and rayon takes the oldest job of another thread first, so that they are
/// gone by then. (This does not hold in pools with `breadth_first`.)
struct SpinningWorkers(Arc<AtomicBool>);

impl SpinningWorkers {
    fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        for _ in 1..rayon::current_num_threads() {
            let over = Arc::clone(&over);
            rayon::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    if rayon::yield_now() != Some(rayon::Yield::Executed) {
                        std::thread::yield_now();
                    }
                }
            });
        }
        Self(over)
    }
}

impl Drop for SpinningWorkers {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
