//! Which layers run in which order over which buffers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::head::{self, Dense};
use super::layer::{Form, Input, Layer, Shape};
use super::pool;
use crate::architecture::Normalization;
use crate::layers::{Conv, EPSILON};
use crate::weights::Weights;

/// A network ready to run; share it between threads freely.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What the first layer's weights and bias have taken in; the pictures' bytes go in as they are.
    normalization: Normalization,
    /// Of each buffer.
    shapes: Vec<Shape>,
    steps: Vec<Step>,
    head: Vec<Dense>,
    arenas: Mutex<Vec<Arena>>,
}

/// One layer between two buffers; buffer 0 is the picture, buffer `n` the output of step `n - 1`.
#[derive(Debug)]
struct Step {
    name: String,
    /// A pooling where there is none.
    layer: Option<Layer>,
    from: usize,
    shortcut: Option<usize>,
}

/// The buffers of one pass. Borders are zero, in pictures what becomes zero.
type Arena = Vec<Vec<f32>>;

/// What the network says of one photo.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Outputs {
    pub(crate) logits: Vec<f32>,
    /// The means of the last maps.
    pub(crate) features: Vec<f32>,
}

impl Plan {
    /// For pictures of `side` pixels and a first convolution of `kernel` by `kernel`.
    pub(crate) fn new(normalization: Normalization, side: usize, kernel: usize) -> Self {
        let shapes = vec![Shape { height: side, width: side, channels: 3, border: kernel / 2 }];
        let (steps, head) = (Vec::new(), Vec::new());
        Self { normalization, shapes, steps, head, arenas: Mutex::default() }
    }

    /// Adds a convolution with its batch norm, by the names under `prefix`; returns the number of
    /// its output buffer.
    pub(crate) fn conv(
        &mut self,
        weights: &Weights,
        prefix: &str,
        Conv { from, shortcut, inputs, outputs, kernel, stride, relu, pool, .. }: Conv,
    ) -> Result<usize, String> {
        let get = |name: &str| {
            let name = format!("{prefix}.{name}");
            weights.get(&name).ok_or_else(|| format!("weight `{name}` is missing"))
        };
        let conv = get("conv.weight")?;
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
        let layer = Layer::new(form, &folded, bias, input);
        self.shapes.push(layer.shape(input));
        self.steps.push(Step { name: prefix.into(), layer: Some(layer), from, shortcut });
        Ok(self.steps.len())
    }

    /// Adds a pooling of what a ReLU gave; returns the number of its output buffer.
    pub(crate) fn pool(&mut self, name: &str, from: usize) -> usize {
        self.shapes.push(pool::shape(self.shapes[from]));
        self.steps.push(Step { name: name.into(), layer: None, from, shortcut: None });
        self.steps.len()
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
    pub(crate) fn run(&self, pixels: &[u8]) -> Vec<Outputs> {
        let size = self.shapes[0].height * self.shapes[0].width * 3;
        if pixels.len() == size {
            return vec![self.alone(pixels, || (), |arena| self.answer(arena))];
        }
        let photos = pixels.par_chunks_exact(size);
        let one = |pixels| self.pass((pixels, false), || (), |arena| self.answer(arena));
        photos.map(one).collect()
    }

    /// One photo's answer and how much each place of its last maps spoke for the likeliest class:
    /// height, width and values of 0 or more.
    pub(crate) fn explain(&self, pixels: &[u8]) -> (Outputs, [usize; 2], Vec<f32>) {
        let read = |arena: &Arena| {
            let outputs = self.answer(arena);
            let class = crate::metrics::argmax(&outputs.logits);
            let slope = head::slope(&self.head, &outputs.features, class);
            let speaks = |pixel: &[f32]| pixel.iter().zip(&slope).map(|(x, s)| x * s).sum::<f32>();
            let (Shape { height, width, .. }, pixels) = self.last(arena);
            (outputs, [height, width], pixels.map(|pixel| speaks(pixel).max(0.0)).collect())
        };
        self.alone(pixels, || (), read)
    }

    /// Each convolution's name, operations (two for a multiply-add) and time, of one photo's pass.
    pub(crate) fn profile(&self, pixels: &[u8]) -> Vec<(&str, u64, Duration)> {
        let mut instants = Vec::new();
        self.alone(pixels, || instants.push(Instant::now()), |_| ());
        let times = instants.array_windows().map(|[began, over]| *over - *began);
        let layers = self.steps.iter().zip(times).filter_map(|(step, time)| {
            let flops = step.layer.as_ref()?.flops(self.shapes[step.from]);
            Some((step.name.as_str(), flops, time))
        });
        layers.collect()
    }

    /// [`Plan::pass`] on all cores.
    fn alone<T: Send>(
        &self,
        pixels: &[u8],
        between: impl FnMut() + Send,
        read: impl FnOnce(&Arena) -> T + Send,
    ) -> T {
        // One way into the pool, not one for each layer: threads are slow to wake.
        rayon::scope(|_| {
            let _awake = Awake::keep();
            self.pass((pixels, true), between, read)
        })
    }

    /// One photo through the network, each layer on all cores where it is `shared`. `between` is called
    /// before each step and after the last; then `read` sees all that was computed.
    fn pass<T>(
        &self,
        (pixels, shared): (&[u8], bool),
        mut between: impl FnMut(),
        read: impl FnOnce(&Arena) -> T,
    ) -> T {
        let mut arena = self.arena();
        self.load(pixels, &mut arena);
        for (place, step) in self.steps.iter().enumerate() {
            between();
            // An output comes after all that it is made from.
            let (earlier, rest) = arena.split_at_mut(place + 1);
            let shortcut = step.shortcut.map(|from| earlier[from].as_slice());
            let input =
                Input { values: &earlier[step.from], shape: self.shapes[step.from], shared };
            match &step.layer {
                Some(layer) => layer.run(input, shortcut, &mut rest[0]),
                None => pool::run(input, &mut rest[0]),
            }
        }
        between();
        let value = read(&arena);
        self.keep(arena);
        value
    }

    /// Puts a picture into buffer 0.
    fn load(&self, pixels: &[u8], arena: &mut Arena) {
        let shape = self.shapes[0];
        let rows = arena[0].chunks_exact_mut(shape.row()).skip(shape.border);
        for (line, to) in pixels.chunks_exact(shape.width * 3).zip(rows) {
            let to = to[shape.inside()].iter_mut();
            line.iter().zip(to).for_each(|(from, to)| *to = f32::from(*from));
        }
    }

    fn answer(&self, arena: &Arena) -> Outputs {
        let (shape, pixels) = self.last(arena);
        let mut features = vec![0.0; shape.channels];
        for pixel in pixels {
            features.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
        }
        let places = (shape.height * shape.width) as f32;
        features.iter_mut().for_each(|sum| *sum /= places);
        Outputs { logits: head::run(&self.head, &features), features }
    }

    /// Shape and pixels of the last maps, their border left out.
    fn last<'a>(&self, arena: &'a Arena) -> (Shape, impl Iterator<Item = &'a [f32]>) {
        let place = self.steps.len();
        let shape = self.shapes[place];
        let rows = arena[place].chunks_exact(shape.row()).skip(shape.border).take(shape.height);
        let inside = move |row: &'a [f32]| row[shape.inside()].chunks_exact(shape.channels);
        (shape, rows.flat_map(inside))
    }

    fn arena(&self) -> Arena {
        let kept = self.arenas.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.unwrap_or_else(|| {
            let mut arena: Arena = self.shapes.iter().map(|s| vec![0.0; s.len()]).collect();
            // Zero is what the mean becomes.
            let mean = self.normalization.mean.map(|mean| mean * 255.0);
            arena[0].chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&mean));
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
