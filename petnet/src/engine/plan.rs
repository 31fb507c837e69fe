//! Which layers run in which order over which buffers.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::head::{self, Dense};
use super::layer::{BORDER, Form, Input, Layer, Shape};
use crate::architecture::Normalization;
use crate::weights::Weights;

/// Most photos that share a pass: deep layers read their weights once for all of them.
const GROUP: usize = 8;
/// What batch norm adds to a variance.
const EPSILON: f32 = 1e-5;

/// A network ready to run; share it between threads freely.
#[derive(Debug)]
pub(crate) struct Plan {
    /// A byte times the first plus the second, per channel.
    normalization: [(f32, f32); 3],
    steps: Vec<Step>,
    head: Vec<Dense>,
    arenas: Mutex<Vec<Arena>>,
}

/// One layer between two buffers; buffer 0 is the picture, buffer `n` the output of step `n - 1`.
#[derive(Debug)]
struct Step {
    layer: Layer,
    from: usize,
    shortcut: Option<usize>,
}

/// The buffers of one pass, their borders zero.
#[derive(Debug)]
struct Arena {
    shapes: Vec<Shape>,
    buffers: Vec<Vec<f32>>,
}

/// What the network says of one photo.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outputs {
    pub(crate) logits: Vec<f32>,
    /// The means of the last maps.
    pub(crate) features: Vec<f32>,
}

impl Plan {
    pub(crate) fn new(normalization: Normalization) -> Self {
        let Normalization { mean, std } = normalization;
        let normalization = [0, 1, 2].map(|c| (1.0 / (255.0 * std[c]), -mean[c] / std[c]));
        Self { normalization, steps: Vec::new(), head: Vec::new(), arenas: Mutex::default() }
    }

    /// Adds a convolution with its batch norm, by the names under `prefix`; returns the number of
    /// its output buffer.
    pub(crate) fn conv(
        &mut self,
        weights: &Weights,
        prefix: &str,
        (stride, relu, pool): (usize, bool, bool),
        (from, shortcut): (usize, Option<usize>),
    ) -> Result<usize, String> {
        let get = |name: &str| {
            let name = format!("{prefix}.{name}");
            weights.get(&name).ok_or_else(|| format!("weight `{name}` is missing"))
        };
        let conv = get("conv.weight")?;
        let [outputs, inputs, kernel, _] = conv.shape[..] else {
            return Err(format!("`{prefix}.conv.weight` has shape {:?}", conv.shape));
        };
        if kernel != 1 && kernel != 3 {
            return Err(format!("`{prefix}` has a kernel of {kernel}, not 1 or 3"));
        }
        let [gamma, beta, mean, variance] = ["gamma", "beta", "running_mean", "running_var"]
            .map(|name| get(&format!("norm.{name}")));
        let [gamma, beta, mean, variance] = [gamma?, beta?, mean?, variance?];
        let own = get("conv.bias").ok();
        let (mut folded, mut bias) = (conv.values.clone(), beta.values.clone());
        for (output, folded) in folded.chunks_exact_mut(inputs * kernel * kernel).enumerate() {
            let scale = gamma.values[output] / (variance.values[output] + EPSILON).sqrt();
            folded.iter_mut().for_each(|weight| *weight *= scale);
            let own = own.map_or(0.0, |own| own.values[output]);
            bias[output] += (own - mean.values[output]) * scale;
        }
        let form = Form { inputs, outputs, kernel, stride, relu, pool };
        self.steps.push(Step { layer: Layer::new(form, &folded, bias), from, shortcut });
        Ok(self.steps.len())
    }

    /// Adds a dense layer to the head.
    pub(crate) fn dense(
        &mut self,
        weights: &Weights,
        prefix: &str,
        relu: bool,
    ) -> Result<(), String> {
        let get = |name: &str| {
            let name = format!("{prefix}.{name}");
            weights.get(&name).ok_or_else(|| format!("weight `{name}` is missing"))
        };
        let (weights, bias) = (get("weight")?.values.clone(), get("bias")?.values.clone());
        self.head.push(Dense { weights, bias, relu });
        Ok(())
    }

    /// `pixels` are `[count, side, side, 3]`. Many photos run side by side, one on all cores.
    pub(crate) fn run(&self, pixels: &[u8], count: usize, side: usize) -> Vec<Outputs> {
        let group = count.div_ceil(rayon::current_num_threads()).clamp(1, GROUP);
        let size = side * side * 3;
        let groups: Vec<_> = pixels.par_chunks(group * size).collect::<Vec<_>>();
        let outputs = groups.into_par_iter().map(|pixels| {
            let arena = self.pass(pixels, pixels.len() / size, side);
            let outputs = self.answers(&arena);
            self.keep(arena);
            outputs
        });
        outputs.collect::<Vec<_>>().concat()
    }

    /// One photo's answer and how much each place of its last maps spoke for the likeliest class:
    /// height, width and values of 0 or more.
    pub(crate) fn explain(
        &self,
        pixels: &[u8],
        side: usize,
    ) -> Option<(Outputs, [usize; 2], Vec<f32>)> {
        let arena = self.pass(pixels, 1, side);
        let outputs = self.answers(&arena).pop()?;
        let class = crate::metrics::argmax(&outputs.logits);
        let slope = head::slope(&self.head, &outputs.features, class);
        let (shape, maps) = arena.last()?;
        let heat = inside(maps, shape)
            .map(|pixel| pixel.iter().zip(&slope).map(|(x, s)| x * s).sum::<f32>().max(0.0))
            .collect();
        self.keep(arena);
        Some((outputs, [shape.height, shape.width], heat))
    }

    fn pass(&self, pixels: &[u8], batch: usize, side: usize) -> Arena {
        let mut arena = self.arena(batch, side);
        self.load(pixels, &mut arena);
        for (place, step) in self.steps.iter().enumerate() {
            // An output comes after all that it is made from.
            let (done, rest) = arena.buffers.split_at_mut(place + 1);
            let shortcut = step.shortcut.map(|from| done[from].as_slice());
            let input = Input { values: &done[step.from], shape: arena.shapes[step.from] };
            step.layer.run(input, shortcut, &mut rest[0]);
        }
        arena
    }

    /// Normalises the pictures into buffer 0.
    fn load(&self, pixels: &[u8], arena: &mut Arena) {
        let shape = arena.shapes[0];
        let row = shape.width * 3;
        for (photo, pixels) in pixels.chunks_exact(shape.height * row).enumerate() {
            let rows = arena.buffers[0].chunks_exact_mut(shape.row()).skip(BORDER);
            for (line, to) in pixels.chunks_exact(row).zip(rows) {
                let places = to[BORDER * shape.pixel()..].chunks_exact_mut(shape.pixel());
                for (from, to) in line.chunks_exact(3).zip(places) {
                    for c in 0..3 {
                        let (scale, shift) = self.normalization[c];
                        to[photo * 3 + c] = f32::from(from[c]) * scale + shift;
                    }
                }
            }
        }
    }

    fn answers(&self, arena: &Arena) -> Vec<Outputs> {
        let Some((shape, maps)) = arena.last() else { return Vec::new() };
        let mut sums = vec![0.0; shape.pixel()];
        for pixel in inside(maps, shape) {
            sums.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
        }
        let places = (shape.height * shape.width) as f32;
        let photos = sums.chunks_exact(shape.channels).map(|sums| {
            let features: Vec<f32> = sums.iter().map(|sum| sum / places).collect();
            Outputs { logits: head::run(&self.head, &features), features }
        });
        photos.collect()
    }

    fn arena(&self, batch: usize, side: usize) -> Arena {
        let shape = Shape { height: side, width: side, batch, channels: 3 };
        let mut free = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = free.iter().position(|arena| arena.shapes[0] == shape) {
            return free.swap_remove(place);
        }
        drop(free);
        let mut shapes = vec![shape];
        for step in &self.steps {
            shapes.push(step.layer.shape(shapes[step.from]));
        }
        let buffers = shapes.iter().map(|shape| vec![0.0; shape.len()]).collect();
        Arena { shapes, buffers }
    }

    /// For the next pass of this shape; no more than there are threads.
    fn keep(&self, arena: Arena) {
        let mut free = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() >= 2 * rayon::current_num_threads() {
            free.remove(0);
        }
        free.push(arena);
    }
}

impl Arena {
    fn last(&self) -> Option<(Shape, &[f32])> {
        Some((*self.shapes.last()?, self.buffers.last()?))
    }
}

/// The pixels of a map, its border left out.
fn inside(maps: &[f32], shape: Shape) -> impl Iterator<Item = &[f32]> {
    let rows = maps.chunks_exact(shape.row()).skip(BORDER).take(shape.height);
    rows.flat_map(move |row| row.chunks_exact(shape.pixel()).skip(BORDER).take(shape.width))
}
