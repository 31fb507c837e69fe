//! Batch normalisation (Ioffe and Szegedy, 2015) for training, fused with the residual add, activation and 2x2 max pool
//! that follow it, forward and backward. Maps are `[height, width, batch, channels]`, so that each row of `channels`
//! values is one pixel of one image.
//!
//! Forward reads the input twice (statistics, then output), backward twice (sums, then gradient). With
//! `scale = gamma / sqrt(variance + epsilon)` and means over all rows, the gradient of the input is
//! `scale * (dy - mean(dy) - (z - mean) * mean(dy * (z - mean)) / (variance + epsilon))`, which is computed as
//! `scale * dy + z_factor * z + offset`.

use rayon::prelude::*;

use super::{NormEpilogue, batch_norm_affine, vectorized};
use crate::graph::Activation;

/// Rows that are summed in f32; the sums of these chunks are added in f64.
const CHUNK_ROWS: usize = 512;

/// Shapes of a batch norm with its epilogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Norm {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) batch: usize,
    pub(crate) channels: usize,
    pub(crate) epilogue: NormEpilogue,
}

impl NormEpilogue {
    /// Smallest and largest output of the activation.
    fn bounds(self) -> [f32; 2] {
        self.activation.map_or([f32::NEG_INFINITY, f32::INFINITY], Activation::bounds)
    }
}

/// Mean and (biased) variance of each channel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Statistics {
    pub(crate) mean: Vec<f32>,
    pub(crate) variance: Vec<f32>,
}

/// A batch norm as an affine map of each channel: `value * scale + shift`.
#[derive(Debug, Clone)]
pub(crate) struct Affine {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Affine {
    pub(crate) fn new(statistics: &Statistics, gamma: &[f32], beta: &[f32], epsilon: f32) -> Self {
        let Statistics { mean, variance } = statistics;
        let [scale, shift] = batch_norm_affine([gamma, beta, mean, variance], epsilon);
        Self { scale, shift }
    }
}

/// Arguments of [`Norm::backward`].
pub(crate) struct NormGradient<'a> {
    /// The gradient of the output; overwritten.
    pub(crate) dy: &'a mut [f32],
    /// The input.
    pub(crate) z: &'a [f32],
    /// The output, where a residual was added to it.
    pub(crate) y: Option<&'a [f32]>,
    pub(crate) statistics: &'a Statistics,
    pub(crate) affine: &'a Affine,
    pub(crate) epsilon: f32,
}

/// Sums over all rows, for each channel.
struct GradientSums<T> {
    /// Of `dy`.
    dy: Vec<T>,
    /// Of `dy * (z - mean)`.
    centred: Vec<T>,
}

impl Norm {
    pub(crate) fn len(&self) -> usize {
        self.height * self.width * self.batch * self.channels
    }

    /// Height and width of the output.
    pub(crate) fn out_size(&self) -> (usize, usize) {
        match self.epilogue.pool {
            true => (self.height / 2, self.width / 2),
            false => (self.height, self.width),
        }
    }

    pub(crate) fn out_len(&self) -> usize {
        let (height, width) = self.out_size();
        height * width * self.batch * self.channels
    }

    /// Mean and variance of each channel. Chunks' means and sums of squared deviations are merged in order (Chan, Golub
    /// and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979).
    pub(crate) fn statistics(&self, z: &[f32]) -> Statistics {
        let channels = self.channels;
        let chunks: Vec<_> = z
            .par_chunks(CHUNK_ROWS * channels)
            .map(|rows| (rows.len() / channels, moments(rows, channels)))
            .collect();
        let (mut count, mut mean, mut squares) = (0.0, vec![0.0; channels], vec![0.0; channels]);
        for (rows, (chunk_mean, chunk_squares)) in chunks {
            let rows = rows as f64;
            let total = count + rows;
            for c in 0..channels {
                let delta = f64::from(chunk_mean[c]) - mean[c];
                mean[c] += delta * rows / total;
                squares[c] += f64::from(chunk_squares[c]) + delta * delta * count * rows / total;
            }
            count = total;
        }
        Statistics {
            mean: mean.iter().map(|mean| *mean as f32).collect(),
            variance: squares.iter().map(|squares| (squares / count) as f32).collect(),
        }
    }

    /// Computes the output from the input and, where there is no pool, a residual of the same shape.
    pub(crate) fn forward(
        &self,
        z: &[f32],
        affine: &Affine,
        residual: Option<&[f32]>,
        out: &mut [f32],
    ) {
        assert!(z.len() == self.len() && out.len() == self.out_len());
        let Affine { scale, shift } = affine;
        if self.epilogue.pool {
            return self.forward_pooled(z, affine, out);
        }
        let [floor, ceiling] = self.epilogue.bounds();
        let chunk = CHUNK_ROWS * self.channels;
        out.par_chunks_mut(chunk).enumerate().for_each(|(index, out)| {
            let z = &z[index * chunk..][..out.len()];
            let residual = residual.map(|all| &all[index * chunk..][..out.len()]);
            vectorized!({
                let rows = out.chunks_exact_mut(self.channels).zip(z.chunks_exact(self.channels));
                for (row, (out, z)) in rows.enumerate() {
                    for (((out, z), scale), shift) in out.iter_mut().zip(z).zip(scale).zip(shift) {
                        *out = z * scale + shift;
                    }
                    if let Some(residual) = residual {
                        let residual = &residual[row * self.channels..];
                        out.iter_mut().zip(residual).for_each(|(out, other)| *out += other);
                    }
                    out.iter_mut().for_each(|out| *out = out.max(floor).min(ceiling));
                }
            });
        });
    }

    /// The output with a pool, row by row.
    fn forward_pooled(&self, z: &[f32], Affine { scale, shift }: &Affine, out: &mut [f32]) {
        let (channels, [floor, ceiling]) = (self.channels, self.epilogue.bounds());
        out.par_chunks_mut(self.out_row()).enumerate().for_each(|(y, out)| {
            vectorized!({
                for (column, out) in out.chunks_exact_mut(channels).enumerate() {
                    let window = self.window(z, y, column);
                    for c in 0..channels {
                        let value = |k: usize| window[k][c] * scale[c] + shift[c];
                        let largest = value(0).max(value(1)).max(value(2).max(value(3)));
                        out[c] = largest.max(floor).min(ceiling);
                    }
                }
            });
        });
    }

    /// Values of a row of the output.
    fn out_row(&self) -> usize {
        self.out_size().1 * self.batch * self.channels
    }

    /// The four inputs of an output, `channels` values each; `column` is its pixel times the batch plus its image.
    #[inline(always)]
    fn window<'a>(&self, z: &'a [f32], y: usize, column: usize) -> [&'a [f32]; 4] {
        let (x, image) = (column / self.batch, column % self.batch);
        [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(down, right)| {
            let pixel = (2 * y + down) * self.width + 2 * x + right;
            &z[(pixel * self.batch + image) * self.channels..][..self.channels]
        })
    }

    /// Writes the gradient of the input to `dz` and returns those of gamma and beta. Without a pool, `args.dy` becomes the
    /// gradient before the activation, which is that of the residual.
    pub(crate) fn backward(&self, args: NormGradient<'_>, dz: &mut [f32]) -> (Vec<f32>, Vec<f32>) {
        assert!(args.dy.len() == self.out_len() && dz.len() == self.len());
        let NormGradient { dy, z, y, statistics, affine, epsilon } = args;
        let sums = match self.epilogue.pool {
            true => self.pooled_gradient_sums(dy, z, &statistics.mean, affine),
            false => self.gradient_sums(dy, (z, y), &statistics.mean, affine),
        };
        let rows = (self.len() / self.channels) as f64;
        let inverse: Vec<f64> =
            statistics.variance.iter().map(|v| 1.0 / f64::from(v + epsilon).sqrt()).collect();
        let (mut z_factor, mut offset) = (vec![0.0; self.channels], vec![0.0; self.channels]);
        for c in 0..self.channels {
            let scale = f64::from(affine.scale[c]);
            let factor = -scale * inverse[c] * inverse[c] * sums.centred[c] / rows;
            z_factor[c] = factor as f32;
            offset[c] =
                (-scale * sums.dy[c] / rows - f64::from(statistics.mean[c]) * factor) as f32;
        }
        let terms = InputGradient { affine, z_factor: &z_factor, offset: &offset };
        match self.epilogue.pool {
            true => self.write_pooled_gradient(dy, z, terms, dz),
            false => self.write_gradient(dy, z, terms, dz),
        }
        let gamma = sums.centred.iter().zip(&inverse).map(|(sum, i)| (sum * i) as f32).collect();
        (gamma, sums.dy.iter().map(|sum| *sum as f32).collect())
    }

    /// Sets the gradient to zero where the activation's is zero, and sums it.
    fn gradient_sums(
        &self,
        dy: &mut [f32],
        (z, y): (&[f32], Option<&[f32]>),
        mean: &[f32],
        Affine { scale, shift }: &Affine,
    ) -> GradientSums<f64> {
        let (channels, [floor, ceiling]) = (self.channels, self.epilogue.bounds());
        let has_activation = self.epilogue.activation.is_some();
        let is_inside = move |value: f32| value > floor && value < ceiling;
        let chunk = CHUNK_ROWS * channels;
        let parts = dy.par_chunks_mut(chunk).enumerate().map(|(index, dy)| {
            let mut sums = GradientSums::zeros(channels);
            let z = &z[index * chunk..][..dy.len()];
            let y = y.map(|y| &y[index * chunk..][..dy.len()]);
            vectorized!({
                for (row, dy) in dy.chunks_exact_mut(channels).enumerate() {
                    let z = &z[row * channels..][..channels];
                    match y.map(|y| &y[row * channels..][..channels]) {
                        _ if !has_activation => {}
                        Some(y) => {
                            for (dy, y) in dy.iter_mut().zip(y) {
                                *dy = if is_inside(*y) { *dy } else { 0.0 };
                            }
                        }
                        None => {
                            for (((dy, z), scale), shift) in
                                dy.iter_mut().zip(z).zip(scale).zip(shift)
                            {
                                *dy = if is_inside(z * scale + shift) { *dy } else { 0.0 };
                            }
                        }
                    }
                    add(&mut sums.dy, dy.iter().copied());
                    add(
                        &mut sums.centred,
                        dy.iter().zip(z).zip(mean).map(|((d, z), m)| d * (z - m)),
                    );
                }
            });
            sums
        });
        GradientSums::merge(parts.collect(), channels)
    }

    /// The sums with a pool: each gradient belongs to the largest of four inputs.
    fn pooled_gradient_sums(
        &self,
        dy: &[f32],
        z: &[f32],
        mean: &[f32],
        Affine { scale, shift }: &Affine,
    ) -> GradientSums<f64> {
        let (channels, bounds) = (self.channels, self.epilogue.bounds());
        let parts = dy.par_chunks(self.out_row()).enumerate().map(|(y, dy)| {
            let mut sums = GradientSums::zeros(channels);
            vectorized!({
                for (column, dy) in dy.chunks_exact(channels).enumerate() {
                    let window = self.window(z, y, column);
                    for c in 0..channels {
                        let values = window.map(|z| z[c]);
                        let gradients = pool_gradients(values, [scale[c], shift[c]], bounds);
                        let weighted: f32 =
                            (0..4).map(|k| gradients[k] * (values[k] - mean[c])).sum();
                        let total: f32 = gradients.iter().sum();
                        sums.dy[c] += dy[c] * total;
                        sums.centred[c] += dy[c] * weighted;
                    }
                }
            });
            sums
        });
        GradientSums::merge(parts.collect(), channels)
    }

    /// Writes the gradient of the input, without a pool.
    fn write_gradient(&self, dy: &[f32], z: &[f32], terms: InputGradient<'_>, dz: &mut [f32]) {
        let (channels, chunk) = (self.channels, CHUNK_ROWS * self.channels);
        let scale = &terms.affine.scale;
        dz.par_chunks_mut(chunk).enumerate().for_each(|(index, dz)| {
            let (dy, z) = (&dy[index * chunk..][..dz.len()], &z[index * chunk..][..dz.len()]);
            vectorized!({
                for (row, dz) in dz.chunks_exact_mut(channels).enumerate() {
                    let (dy, z) =
                        (&dy[row * channels..][..channels], &z[row * channels..][..channels]);
                    for c in 0..channels {
                        dz[c] = scale[c] * dy[c] + (terms.z_factor[c] * z[c] + terms.offset[c]);
                    }
                }
            });
        });
    }

    /// Writes the gradient of the input with a pool, two rows at a time.
    fn write_pooled_gradient(
        &self,
        dy: &[f32],
        z: &[f32],
        terms: InputGradient<'_>,
        dz: &mut [f32],
    ) {
        let Affine { scale, shift } = terms.affine;
        let (channels, batch, out_width) = (self.channels, self.batch, self.out_size().1);
        let bounds = self.epilogue.bounds();
        let row = self.width * batch * channels;
        dz.par_chunks_mut(2 * row).enumerate().for_each(|(y, dz)| {
            let z_rows = &z[2 * y * row..][..dz.len()];
            vectorized!({
                // An odd last row or column is in no window: it has only the terms of the statistics.
                for (dz, z) in dz.chunks_exact_mut(channels).zip(z_rows.chunks_exact(channels)) {
                    for c in 0..channels {
                        dz[c] = terms.z_factor[c] * z[c] + terms.offset[c];
                    }
                }
                let windows = if dz.len() == 2 * row { out_width * batch } else { 0 };
                for column in 0..windows {
                    let window = self.window(z, y, column);
                    let dy = &dy[(y * out_width * batch + column) * channels..][..channels];
                    let (x, image) = (column / batch, column % batch);
                    for k in 0..4 {
                        let pixel = (k / 2) * self.width + 2 * x + k % 2;
                        let dz = &mut dz[(pixel * batch + image) * channels..][..channels];
                        for c in 0..channels {
                            let values = window.map(|z| z[c]);
                            let gradients = pool_gradients(values, [scale[c], shift[c]], bounds);
                            dz[c] += scale[c] * dy[c] * gradients[k];
                        }
                    }
                }
            });
        });
    }
}

/// The gradient of the input, for each channel: `scale * dy + z_factor * z + offset`.
#[derive(Clone, Copy)]
struct InputGradient<'a> {
    affine: &'a Affine,
    z_factor: &'a [f32],
    offset: &'a [f32],
}

impl<T: Copy + Default> GradientSums<T> {
    fn zeros(channels: usize) -> Self {
        Self { dy: vec![T::default(); channels], centred: vec![T::default(); channels] }
    }
}

impl GradientSums<f64> {
    /// The sums of parts, added in order.
    fn merge(parts: Vec<GradientSums<f32>>, channels: usize) -> Self {
        let mut sums = Self::zeros(channels);
        for part in parts {
            add(&mut sums.dy, part.dy.into_iter().map(f64::from));
            add(&mut sums.centred, part.centred.into_iter().map(f64::from));
        }
        sums
    }
}

#[inline(always)]
fn add<T: std::ops::AddAssign>(sums: &mut [T], values: impl Iterator<Item = T>) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// The gradients of affine map, max pool and activation by the pool's four mapped values: 1 for the first of the largest
/// ones, or 0 if it lies at a bound of the activation; 0 for the others.
#[inline(always)]
fn pool_gradients(values: [f32; 4], [scale, shift]: [f32; 2], bounds: [f32; 2]) -> [f32; 4] {
    let [floor, ceiling] = bounds;
    let mapped = values.map(|value| value * scale + shift);
    let largest = mapped[0].max(mapped[1]).max(mapped[2].max(mapped[3]));
    let mut remaining = if largest > floor && largest < ceiling { 1.0 } else { 0.0 };
    mapped.map(|value| {
        let gradient = if value == largest { remaining } else { 0.0 };
        remaining -= gradient;
        gradient
    })
}

/// Mean and sum of squared deviations of each channel.
fn moments(rows: &[f32], channels: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut mean, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
    let inverse_count = channels as f32 / rows.len() as f32;
    vectorized!({
        for row in rows.chunks_exact(channels) {
            add(&mut mean, row.iter().copied());
        }
        mean.iter_mut().for_each(|mean| *mean *= inverse_count);
        for row in rows.chunks_exact(channels) {
            add(&mut squares, row.iter().zip(&mean).map(|(value, mean)| (value - mean).powi(2)));
        }
    });
    (mean, squares)
}
