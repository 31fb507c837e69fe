//! Which steps run in which order over which memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::conv::Conv;
use super::head::Head;
use super::shape::{Input, Shape};
use super::simple::{Depthwise, Elementwise, MaxPool};
use crate::arch::Normalization;

/// The numbers that feature maps consist of, and the kernels that compute them.
pub(super) trait Numbers: std::fmt::Debug + Send + Sync {
    /// One number of a map.
    type Value: std::fmt::Debug + Default + Copy + Send + Sync;
    /// A step between two maps.
    type Kernel: std::fmt::Debug + Send + Sync;
    /// Numbers behind a map that kernels may read, whatever they are.
    const SLACK: usize;

    /// What the border of the image's map holds.
    fn border(&self) -> [Self::Value; 3];
    /// Writes an image's bytes into its map.
    fn load(&self, pixels: &[u8], shape: Shape, map: &mut [Self::Value]);
    /// Fills the inside of `out`; the residual lies as `out` does.
    fn run(
        kernel: &Self::Kernel,
        input: Input<'_, Self::Value>,
        residual: Option<&[Self::Value]>,
        out: &mut [Self::Value],
    );
    /// The mean of each channel of the map that head number `end` reads.
    fn means(&self, end: usize, shape: Shape, map: &[Self::Value]) -> Vec<f32>;
    /// A number of the map that head number `end` reads, as a float.
    fn float(&self, end: usize, value: Self::Value) -> f32;
}

/// A network ready to run; share it between threads freely.
#[derive(Debug)]
pub(super) struct Plan<N: Numbers = Float> {
    numbers: N,
    /// The feature map that each node gives; `None` for what stays in registers, and for features.
    maps: Vec<Option<Map>>,
    steps: Vec<Step<N::Kernel>>,
    /// The network's own head, then the source head if there is one.
    ends: Vec<End>,
    /// Values of each piece of memory.
    slots: Vec<usize>,
    arenas: Mutex<Vec<Arena<N::Value>>>,
}

/// A head, and the node whose feature map it reads.
#[derive(Debug)]
pub(super) struct End {
    pub(super) node: usize,
    pub(super) head: Head,
}

/// Maps of 32-bit floats, and how an image's bytes become the first of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Float {
    pub(super) scale: [f32; 3],
    pub(super) shift: [f32; 3],
    /// What its border holds: what becomes zero.
    pub(super) border: [f32; 3],
}

impl Float {
    /// As they are, for convolutions that have taken in the normalisation.
    pub(super) fn bytes(normalization: Normalization) -> Self {
        let border = normalization.mean.map(|mean| mean * 255.0);
        Self { scale: [1.0; 3], shift: [0.0; 3], border }
    }

    /// Normalised, for anything else.
    pub(super) fn normalized(Normalization { mean, std }: Normalization) -> Self {
        let shift = [0, 1, 2].map(|c| -mean[c] / std[c]);
        Self { scale: std.map(|std| 1.0 / (255.0 * std)), shift, border: [0.0; 3] }
    }
}

impl Numbers for Float {
    type Value = f32;
    type Kernel = Kernel;
    const SLACK: usize = 0;

    fn border(&self) -> [f32; 3] {
        self.border
    }

    fn load(&self, pixels: &[u8], shape: Shape, map: &mut [f32]) {
        let rows = map[shape.rows()].chunks_exact_mut(shape.row());
        for (line, to) in pixels.chunks_exact(shape.width * shape.channels).zip(rows) {
            let pixels = to[shape.inside()].as_chunks_mut::<3>().0.iter_mut();
            for (to, from) in pixels.zip(line.as_chunks::<3>().0) {
                let Self { scale, shift, .. } = self;
                *to = [0, 1, 2].map(|c| f32::from(from[c]) * scale[c] + shift[c]);
            }
        }
    }

    fn run(kernel: &Kernel, input: Input<'_>, residual: Option<&[f32]>, out: &mut [f32]) {
        match kernel {
            Kernel::Conv(conv) => conv.run(input, residual, out),
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
        let places = (shape.height * shape.width) as f32;
        means.iter_mut().for_each(|sum| *sum /= places);
        means
    }

    fn float(&self, _: usize, value: f32) -> f32 {
        value
    }
}

/// A feature map: how it lies, and in which memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Map {
    pub(super) shape: Shape,
    pub(super) slot: usize,
}

/// A kernel between two maps; both are known by their nodes.
#[derive(Debug)]
pub(super) struct Step<K = Kernel> {
    pub(super) name: String,
    pub(super) kernel: K,
    pub(super) input: usize,
    pub(super) residual: Option<usize>,
    pub(super) output: usize,
    /// Two for each multiply-add.
    pub(super) flops: u64,
}

#[derive(Debug)]
pub(super) enum Kernel {
    Conv(Conv),
    Depthwise(Depthwise),
    MaxPool(MaxPool),
    Elementwise(Elementwise),
}

/// The memory of one pass. Borders are zero, in images what becomes zero.
type Arena<T> = Vec<Vec<T>>;

/// Logits and features of one image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outputs {
    pub(crate) logits: Vec<f32>,
    /// The means of the last feature maps.
    pub(crate) features: Vec<f32>,
    /// Those of the source head, if there is one.
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

/// Contribution of each place of the last feature maps to the likeliest class: 0 or more.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Heat {
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Row by row.
    pub(crate) values: Vec<f32>,
}

impl<N: Numbers> Plan<N> {
    pub(super) fn new(
        numbers: N,
        maps: Vec<Option<Map>>,
        steps: Vec<Step<N::Kernel>>,
        ends: Vec<End>,
    ) -> Self {
        let count = maps.iter().flatten().map(|map| map.slot + 1).max().unwrap_or_default();
        let mut slots = vec![0; count];
        for map in maps.iter().flatten() {
            slots[map.slot] = (map.shape.len() + N::SLACK).max(slots[map.slot]);
        }
        Self { numbers, maps, steps, ends, slots, arenas: Mutex::default() }
    }

    /// `pixels` are `[count, side, side, 3]`. Many images run side by side, one on all cores.
    pub(super) fn run(&self, pixels: &[u8]) -> Vec<Outputs> {
        let image = self.map(0).shape;
        let size = image.height * image.width * image.channels;
        if pixels.len() == size {
            return vec![self.alone(pixels, |_| (), |arena| self.outputs(arena))];
        }
        let images = pixels.par_chunks_exact(size);
        let one = |pixels| self.pass((pixels, false), |_| (), |arena| self.outputs(arena));
        images.map(one).collect()
    }

    /// One image's outputs and heat map (Selvaraju et al., "Grad-CAM", 2017).
    pub(super) fn explain(&self, pixels: &[u8]) -> (Outputs, Heat) {
        let read = |arena: &Arena<N::Value>| {
            let outputs = self.outputs(arena);
            let class = crate::metrics::argmax(&outputs.logits);
            let end = &self.ends[0];
            let gradient = end.head.gradient(&outputs.features, class);
            let (shape, map) = self.values(end, arena);
            let dot = |pixel: &[N::Value]| {
                let values = pixel.iter().map(|value| self.numbers.float(0, *value));
                values.zip(&gradient).map(|(x, g)| x * g).sum::<f32>()
            };
            let values = shape.pixels(map).map(|pixel| dot(pixel).max(0.0)).collect();
            (outputs, Heat { height: shape.height, width: shape.width, values })
        };
        self.alone(pixels, |_| (), read)
    }

    /// The last feature maps of some images, `[height, width, count, channels]`, and their first two sides.
    #[cfg(feature = "train")]
    pub(super) fn maps(&self, pixels: &[u8]) -> ([usize; 2], Vec<f32>) {
        let image = self.map(0).shape;
        let size = image.height * image.width * image.channels;
        let end = &self.ends[0];
        let read = |arena: &Arena<N::Value>| {
            let (shape, map) = self.values(end, arena);
            let pixels = shape.pixels(map).flatten();
            pixels.map(|value| self.numbers.float(0, *value)).collect::<Vec<f32>>()
        };
        let images = pixels.par_chunks_exact(size);
        let maps: Vec<Vec<f32>> =
            images.map(|pixels| self.pass((pixels, false), |_| (), read)).collect();
        let Shape { height, width, channels, .. } = self.map(end.node).shape;
        let mut values = vec![0.0; height * width * maps.len() * channels];
        let rows = values.par_chunks_exact_mut((maps.len() * channels).max(1)).enumerate();
        rows.for_each(|(place, row)| {
            for (to, map) in row.chunks_exact_mut(channels).zip(&maps) {
                to.copy_from_slice(&map[place * channels..][..channels]);
            }
        });
        ([height, width], values)
    }

    /// Each convolution's name, operations (two for a multiply-add) and time, of one image's pass.
    pub(super) fn profile(&self, pixels: &[u8]) -> Vec<(&str, u64, Duration)> {
        let mut instants = Vec::new();
        self.alone(pixels, |_| instants.push(Instant::now()), |_| ());
        let times = instants.array_windows().map(|[began, over]| *over - *began);
        let steps = self.steps.iter().zip(times);
        steps.map(|(step, time)| (step.name.as_str(), step.flops, time)).collect()
    }

    /// One image through the network; `seen` is called with each step's output and its node.
    pub(super) fn observe(&self, pixels: &[u8], mut seen: impl FnMut(usize, &[N::Value]) + Send) {
        let given = |output: Option<Given<'_, N::Value>>| {
            if let Some(Given { node, shape, map }) = output {
                shape.pixels(map).for_each(|pixel| seen(node, pixel));
            }
        };
        self.alone(pixels, given, |_| ());
    }

    /// [`Plan::pass`] on all cores.
    fn alone<T: Send>(
        &self,
        pixels: &[u8],
        between: impl FnMut(Option<Given<'_, N::Value>>) + Send,
        read: impl FnOnce(&Arena<N::Value>) -> T + Send,
    ) -> T {
        // One way into the pool, not one for each step: threads are slow to wake.
        rayon::scope(|_| {
            let _awake = Awake::keep();
            self.pass((pixels, true), between, read)
        })
    }

    /// One image through the network, each step on all cores where it is `shared`. `between` is called
    /// before the first step, and after each with its output; then `read` sees the last feature map.
    fn pass<T>(
        &self,
        (pixels, shared): (&[u8], bool),
        mut between: impl FnMut(Option<Given<'_, N::Value>>),
        read: impl FnOnce(&Arena<N::Value>) -> T,
    ) -> T {
        let mut arena = self.arena();
        self.numbers.load(pixels, self.map(0).shape, &mut arena[0]);
        between(None);
        for step in &self.steps {
            let output = self.map(step.output);
            // An output's memory is nobody's who is still read.
            let mut out = std::mem::take(&mut arena[output.slot]);
            let input = self.map(step.input);
            let values = &arena[input.slot][..input.shape.len() + N::SLACK];
            let residual = step.residual.map(|node| self.map(node));
            let residual = residual.map(|map| &arena[map.slot][..map.shape.len()]);
            let input = Input { values, shape: input.shape, shared };
            N::run(&step.kernel, input, residual, &mut out[..output.shape.len()]);
            between(Some(Given { node: step.output, shape: output.shape, map: &out }));
            arena[output.slot] = out;
        }
        let value = read(&arena);
        self.keep(arena);
        value
    }

    /// The feature map of a node that a step reads or gives.
    fn map(&self, node: usize) -> Map {
        self.maps[node].expect("a plan's steps read and give maps alone")
    }

    fn outputs(&self, arena: &Arena<N::Value>) -> Outputs {
        let mut answers = self.ends.iter().enumerate().map(|(place, end)| {
            let (shape, map) = self.values(end, arena);
            let features = self.numbers.means(place, shape, map);
            (end.head.run(&features), features)
        });
        let (logits, features) = answers.next().unwrap_or_default();
        let source = answers.next().map(|(logits, features)| SourceOutputs { logits, features });
        Outputs { logits, features, source }
    }

    /// The feature map that a head reads.
    fn values<'a>(&self, end: &End, arena: &'a Arena<N::Value>) -> (Shape, &'a [N::Value]) {
        let Map { shape, slot } = self.map(end.node);
        (shape, &arena[slot])
    }

    fn arena(&self) -> Arena<N::Value> {
        let kept = self.arenas.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| {
            let zeros = |len: &usize| vec![N::Value::default(); *len];
            let mut arena: Arena<N::Value> = self.slots.iter().map(zeros).collect();
            let pixels = arena[0].as_chunks_mut::<3>().0.iter_mut();
            pixels.for_each(|pixel| *pixel = self.numbers.border());
            arena
        })
    }

    /// For the next pass; no more than there are threads.
    fn keep(&self, arena: Arena<N::Value>) {
        let mut kept = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < rayon::current_num_threads() {
            kept.push(arena);
        }
    }
}

/// A step's output: its node, how it lies, and its memory, which later steps use again.
struct Given<'a, T> {
    node: usize,
    shape: Shape,
    map: &'a [T],
}

/// While it lives, no thread of the pool sleeps: between the layers of a lone photo there is no
/// time to wake one.
struct Awake(Arc<AtomicBool>);

impl Awake {
    fn keep() -> Self {
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

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
