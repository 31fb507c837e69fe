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

/// A network ready to run; share it between threads freely.
#[derive(Debug)]
pub(crate) struct Plan {
    load: Load,
    /// The feature map that each node gives; `None` for what stays in registers, and for features.
    maps: Vec<Option<Map>>,
    steps: Vec<Step>,
    head: Head,
    /// Values of each piece of memory.
    slots: Vec<usize>,
    arenas: Mutex<Vec<Arena>>,
}

/// How an image's bytes become the first feature map.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) scale: [f32; 3],
    pub(super) shift: [f32; 3],
    /// What its border holds: what becomes zero.
    pub(super) border: [f32; 3],
}

impl Load {
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

/// A feature map: how it lies, and in which memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Map {
    pub(super) shape: Shape,
    pub(super) slot: usize,
}

/// A kernel between two maps; both are known by their nodes.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) name: String,
    pub(super) kernel: Kernel,
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
type Arena = Vec<Vec<f32>>;

/// What the network says of one image.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outputs {
    pub(crate) logits: Vec<f32>,
    /// The means of the last feature maps.
    pub(crate) features: Vec<f32>,
}

/// How much each place of the last feature maps contributed to the likeliest class: 0 or more.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Heat {
    pub(crate) height: usize,
    pub(crate) width: usize,
    /// Row by row.
    pub(crate) values: Vec<f32>,
}

impl Plan {
    pub(super) fn new(load: Load, maps: Vec<Option<Map>>, steps: Vec<Step>, head: Head) -> Self {
        let count = maps.iter().flatten().map(|map| map.slot + 1).max().unwrap_or_default();
        let mut slots = vec![0; count];
        for map in maps.iter().flatten() {
            slots[map.slot] = map.shape.len().max(slots[map.slot]);
        }
        Self { load, maps, steps, head, slots, arenas: Mutex::default() }
    }

    /// `pixels` are `[count, side, side, 3]`. Many images run side by side, one on all cores.
    pub(crate) fn run(&self, pixels: &[u8]) -> Vec<Outputs> {
        let image = self.map(0).shape;
        let size = image.height * image.width * image.channels;
        if pixels.len() == size {
            return vec![self.alone(pixels, || (), |arena| self.outputs(arena))];
        }
        let images = pixels.par_chunks_exact(size);
        let one = |pixels| self.pass((pixels, false), || (), |arena| self.outputs(arena));
        images.map(one).collect()
    }

    /// One image's outputs and heat map (Selvaraju et al., "Grad-CAM", 2017).
    pub(crate) fn explain(&self, pixels: &[u8]) -> (Outputs, Heat) {
        let read = |arena: &Arena| {
            let outputs = self.outputs(arena);
            let class = crate::metrics::argmax(&outputs.logits);
            let gradient = self.head.gradient(&outputs.features, class);
            let (Shape { height, width, .. }, pixels) = self.last(arena);
            let dot = |pixel: &[f32]| pixel.iter().zip(&gradient).map(|(x, g)| x * g).sum::<f32>();
            let values = pixels.map(|pixel| dot(pixel).max(0.0)).collect();
            (outputs, Heat { height, width, values })
        };
        self.alone(pixels, || (), read)
    }

    /// Each convolution's name, operations (two for a multiply-add) and time, of one image's pass.
    pub(crate) fn profile(&self, pixels: &[u8]) -> Vec<(&str, u64, Duration)> {
        let mut instants = Vec::new();
        self.alone(pixels, || instants.push(Instant::now()), |_| ());
        let times = instants.array_windows().map(|[began, over]| *over - *began);
        let steps = self.steps.iter().zip(times);
        steps.map(|(step, time)| (step.name.as_str(), step.flops, time)).collect()
    }

    /// [`Plan::pass`] on all cores.
    fn alone<T: Send>(
        &self,
        pixels: &[u8],
        between: impl FnMut() + Send,
        read: impl FnOnce(&Arena) -> T + Send,
    ) -> T {
        // One way into the pool, not one for each step: threads are slow to wake.
        rayon::scope(|_| {
            let _awake = Awake::keep();
            self.pass((pixels, true), between, read)
        })
    }

    /// One image through the network, each step on all cores where it is `shared`. `between` is called
    /// before each step and after the last; then `read` sees the last feature map.
    fn pass<T>(
        &self,
        (pixels, shared): (&[u8], bool),
        mut between: impl FnMut(),
        read: impl FnOnce(&Arena) -> T,
    ) -> T {
        let mut arena = self.arena();
        self.load(pixels, &mut arena);
        for step in &self.steps {
            between();
            let output = self.map(step.output);
            // An output's memory is nobody's who is still read.
            let mut out = std::mem::take(&mut arena[output.slot]);
            let input = self.map(step.input);
            let values = &arena[input.slot][..input.shape.len()];
            let residual = step.residual.map(|node| self.map(node));
            let residual = residual.map(|map| &arena[map.slot][..map.shape.len()]);
            let input = Input { values, shape: input.shape, shared };
            let written = &mut out[..output.shape.len()];
            match &step.kernel {
                Kernel::Conv(conv) => conv.run(input, residual, written),
                Kernel::Depthwise(conv) => conv.run(input, residual, written),
                Kernel::MaxPool(pool) => pool.run(input, written),
                Kernel::Elementwise(step) => step.run(input, residual, written),
            }
            arena[output.slot] = out;
        }
        between();
        let value = read(&arena);
        self.keep(arena);
        value
    }

    /// The feature map of a node that a step reads or gives.
    fn map(&self, node: usize) -> Map {
        self.maps[node].expect("a plan's steps read and give maps alone")
    }

    /// Puts an image into its memory.
    fn load(&self, pixels: &[u8], arena: &mut Arena) {
        let shape = self.map(0).shape;
        let rows = arena[0][shape.rows()].chunks_exact_mut(shape.row());
        for (line, to) in pixels.chunks_exact(shape.width * shape.channels).zip(rows) {
            let pixels = to[shape.inside()].as_chunks_mut::<3>().0.iter_mut();
            for (to, from) in pixels.zip(line.as_chunks::<3>().0) {
                let Load { scale, shift, .. } = self.load;
                *to = [0, 1, 2].map(|c| f32::from(from[c]) * scale[c] + shift[c]);
            }
        }
    }

    fn outputs(&self, arena: &Arena) -> Outputs {
        let (shape, pixels) = self.last(arena);
        let mut features = vec![0.0; shape.channels];
        for pixel in pixels {
            features.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
        }
        let places = (shape.height * shape.width) as f32;
        features.iter_mut().for_each(|sum| *sum /= places);
        Outputs { logits: self.head.run(&features), features }
    }

    /// Shape and pixels of the last feature map.
    fn last<'a>(&self, arena: &'a Arena) -> (Shape, impl Iterator<Item = &'a [f32]>) {
        let Map { shape, slot } = self.map(self.steps.last().map_or(0, |step| step.output));
        (shape, shape.pixels(&arena[slot]))
    }

    fn arena(&self) -> Arena {
        let kept = self.arenas.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| {
            let mut arena: Arena = self.slots.iter().map(|len| vec![0.0; *len]).collect();
            let pixels = arena[0].as_chunks_mut::<3>().0.iter_mut();
            pixels.for_each(|pixel| *pixel = self.load.border);
            arena
        })
    }

    /// For the next pass; no more than there are threads.
    fn keep(&self, arena: Arena) {
        let mut kept = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < rayon::current_num_threads() {
            kept.push(arena);
        }
    }
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
