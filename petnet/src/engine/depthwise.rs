//! A depthwise convolution of a plan in f32: [`kernel::Depthwise`], which training uses too, with bias, residual and
//! activation, and its rows divided among threads.

use rayon::prelude::*;

use super::shape::{Input, Shape};
use crate::graph::{Activation, Window};
use crate::kernel::{self, Epilogue};
use crate::weights::transposed;

/// A depthwise convolution with its epilogue. Its input needs no border.
#[derive(Debug)]
pub(super) struct DepthwiseConv {
    conv: kernel::Depthwise,
    output: Shape,
    activation: Option<Activation>,
    /// `[kernel * kernel, channels]`, batch norm folded in.
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl DepthwiseConv {
    /// `weights` are `[channels, 1, kernel, kernel]`.
    pub(super) fn new(
        window: Window,
        activation: Option<Activation>,
        weights: &[f32],
        bias: Vec<f32>,
        [input, output]: [Shape; 2],
    ) -> Self {
        let Shape { height, width, channels, .. } = input;
        let conv = kernel::Depthwise::new([height, width, 1, channels], window);
        let conv = conv.expect("the program's sides were computed for this window");
        let conv = kernel::Depthwise {
            row_stride: input.row_len(),
            out_row_stride: output.row_len(),
            ..conv
        };
        let weights = transposed(weights, window.kernel * window.kernel);
        Self { conv, output, activation, weights, bias }
    }

    /// Computes the inside of `out`, with its rows divided among threads; a residual has the layout of `out`.
    pub(super) fn run(&self, input: Input<'_>, residual: Option<&[f32]>, out: &mut [f32]) {
        let (shape, activation) = (self.output, self.activation);
        let epilogue = Epilogue { bias: Some(&self.bias), residual, activation };
        let x = &input.values[input.shape.inner_rows().start + input.shape.inner_columns().start..];
        let (row, rows) = (shape.row_len(), shape.height.div_ceil(input.threads()));
        let parts = out[shape.inner_rows()].par_chunks_mut(rows * row).enumerate();
        parts.with_min_len(input.min_parts()).for_each(|(part, out)| {
            let (first, inside) = (part * rows, shape.inner_columns().start);
            let epilogue = epilogue.at_offset(shape.inner_rows().start + first * row + inside);
            let rows = first..first + out.len() / row;
            self.conv.run_rows((x, &self.weights), rows, epilogue, &mut out[inside..]);
        });
    }
}
