//! Which layers run in which order over which buffers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
    /// What the first layer's weights and bias have taken in; the pictures' bytes go in as they are.
    normalization: Normalization,
    /// Of each buffer, for one photo.
    shapes: Vec<Shape>,
    steps: Vec<Step>,
    head: Vec<Dense>,
    arenas: Mutex<Vec<Arena>>,
}

/// One layer between two buffers; buffer 0 is the picture, buffer `n` the output of step `n - 1`.
#[derive(Debug)]
struct Step {
    name: String,
    layer: Layer,
    from: usize,
    shortcut: Option<usize>,
}

/// The buffers of one pass. Borders are zero, in pictures what becomes zero.
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
    /// For pictures of `side` pixels.
    pub(crate) fn new(normalization: Normalization, side: usize) -> Self {
        let shapes = vec![Shape { height: side, width: side, batch: 1, channels: 3 }];
        let (steps, head) = (Vec::new(), Vec::new());
        Self { normalization, shapes, steps, head, arenas: Mutex::default() }
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
        if from == 0 {
            self.take_in_bytes(&mut folded, &mut bias);
        }
        let form = Form { inputs, outputs, kernel, stride, relu, pool };
        let input = self.shapes[from];
        let layer = Layer::new(form, &folded, bias, (input, from == 0));
        self.shapes.push(layer.shape(input));
        self.steps.push(Step { name: prefix.into(), layer, from, shortcut });
        Ok(self.steps.len())
    }

    /// A convolution of normalised channels, as one of bytes.
    fn take_in_bytes(&self, weights: &mut [f32], bias: &mut [f32]) {
        let Normalization { mean, std } = self.normalization;
        let output = weights.len() / bias.len();
        for (weights, bias) in weights.chunks_exact_mut(output).zip(bias) {
            for (channel, weights) in weights.chunks_exact_mut(output / 3).enumerate() {
                for weight in weights {
                    *bias -= *weight * mean[channel] / std[channel];
                    *weight /= 255.0 * std[channel];
                }
            }
        }
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
    pub(crate) fn run(&self, pixels: &[u8], count: usize) -> Vec<Outputs> {
        let group = count.div_ceil(rayon::current_num_threads()).clamp(1, GROUP);
        let size = self.picture();
        let groups: Vec<_> = pixels.par_chunks(group * size).collect::<Vec<_>>();
        let outputs = groups.into_par_iter().map(|pixels| {
            let arena = self.pass(pixels, pixels.len() / size, |_, _, _| {});
            let outputs = self.answers(&arena);
            self.keep(arena);
            outputs
        });
        outputs.collect::<Vec<_>>().concat()
    }

    /// One photo's answer and how much each place of its last maps spoke for the likeliest class:
    /// height, width and values of 0 or more.
    pub(crate) fn explain(&self, pixels: &[u8]) -> Option<(Outputs, [usize; 2], Vec<f32>)> {
        let arena = self.pass(pixels, 1, |_, _, _| {});
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

    /// Each convolution's name, operations (two for a multiply-add) and time, of one pass of all
    /// photos together.
    pub(crate) fn profile(&self, pixels: &[u8], count: usize) -> Vec<(&str, u64, Duration)> {
        let mut layers = Vec::new();
        let arena = self.pass(pixels, count, |step, input, time| {
            layers.push((step.name.as_str(), step.layer.flops(input), time));
        });
        self.keep(arena);
        layers
    }

    /// `done` hears of each step, its input and its time.
    fn pass<'a>(
        &'a self,
        pixels: &[u8],
        batch: usize,
        done: impl FnMut(&'a Step, Shape, Duration) + Send,
    ) -> Arena {
        // One way into the pool, not one for each layer: threads are slow to wake.
        rayon::scope(|_| {
            let _awake = (batch == 1).then(Awake::keep);
            self.pass_here(pixels, batch, done)
        })
    }

    fn pass_here<'a>(
        &'a self,
        pixels: &[u8],
        batch: usize,
        mut done: impl FnMut(&'a Step, Shape, Duration),
    ) -> Arena {
        let mut arena = self.arena(batch);
        self.load(pixels, &mut arena);
        for (place, step) in self.steps.iter().enumerate() {
            // An output comes after all that it is made from.
            let began = Instant::now();
            let (earlier, rest) = arena.buffers.split_at_mut(place + 1);
            let shortcut = step.shortcut.map(|from| earlier[from].as_slice());
            let input = Input { values: &earlier[step.from], shape: arena.shapes[step.from] };
            step.layer.run(input, shortcut, &mut rest[0]);
            done(step, input.shape, began.elapsed());
        }
        arena
    }

    /// Values of a picture.
    fn picture(&self) -> usize {
        self.shapes[0].height * self.shapes[0].width * 3
    }

    /// Puts the pictures into buffer 0, one after the other.
    fn load(&self, pixels: &[u8], arena: &mut Arena) {
        let shape = self.shapes[0];
        let maps = arena.buffers[0].chunks_exact_mut(shape.len());
        for (pixels, map) in pixels.chunks_exact(self.picture()).zip(maps) {
            let rows = map.chunks_exact_mut(shape.row()).skip(BORDER);
            for (line, to) in pixels.chunks_exact(shape.width * 3).zip(rows) {
                let to = to[BORDER * 3..].iter_mut();
                line.iter().zip(to).for_each(|(from, to)| *to = f32::from(*from));
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

    fn arena(&self, batch: usize) -> Arena {
        let mut free = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = free.iter().position(|arena| arena.shapes[0].batch == batch) {
            return free.swap_remove(place);
        }
        drop(free);
        let shapes: Vec<Shape> =
            self.shapes.iter().map(|shape| Shape { batch, ..*shape }).collect();
        let mut buffers: Vec<_> = shapes.iter().map(|shape| vec![0.0; shape.len()]).collect();
        // Zero is what the mean becomes.
        let mean = self.normalization.mean.map(|mean| mean * 255.0);
        buffers[0].chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&mean));
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

/// The pixels of a map, its border left out.
fn inside(maps: &[f32], shape: Shape) -> impl Iterator<Item = &[f32]> {
    let rows = maps.chunks_exact(shape.row()).skip(BORDER).take(shape.height);
    rows.flat_map(move |row| row.chunks_exact(shape.pixel()).skip(BORDER).take(shape.width))
}
