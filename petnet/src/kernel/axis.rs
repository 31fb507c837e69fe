//! A window that moves along one axis of a map: the relation of inputs, outputs and kernel taps, by their indices.

use std::ops::Range;

use crate::graph::Window;

/// One axis of a convolution or pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Axis {
    /// Number of inputs.
    pub(crate) len: usize,
    /// Number of outputs.
    pub(crate) out_len: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    /// Padding before the first input.
    pub(crate) padding: usize,
}

impl Axis {
    /// `None` where the window does not fit once.
    pub(crate) fn new(window: Window, len: usize) -> Option<Self> {
        let ([padding, _], Window { kernel, stride, .. }) = (window.padding(len), window);
        Some(Self { len, out_len: window.output(len)?, kernel, stride, padding })
    }

    /// The taps that read an input, and not padding, for an output.
    #[inline(always)]
    pub(super) fn valid_taps(self, out: usize) -> Range<usize> {
        let start = out * self.stride;
        let end = (self.len + self.padding).saturating_sub(start);
        self.padding.saturating_sub(start)..self.kernel.min(end)
    }

    /// The outputs whose windows have no padding.
    pub(super) fn inner_outputs(self) -> Range<usize> {
        let Self { len, out_len, kernel, stride, padding } = self;
        let first = padding.div_ceil(stride).min(out_len);
        let end = (len + padding).checked_sub(kernel).map_or(0, |at| at / stride + 1);
        first..end.min(out_len).max(first)
    }

    /// The input that a tap reads for an output; `None` in the padding.
    #[cfg(feature = "flex")]
    #[inline(always)]
    pub(super) fn input_index(self, out: usize, tap: usize) -> Option<usize> {
        (out * self.stride + tap).checked_sub(self.padding).filter(|at| *at < self.len)
    }
}

#[cfg(feature = "train")]
impl Axis {
    /// The output for which a tap reads an input.
    pub(super) fn output_index(self, input: usize, tap: usize) -> Option<usize> {
        let scaled = (input + self.padding).checked_sub(tap)?;
        let out = scaled / self.stride;
        (scaled.is_multiple_of(self.stride) && out < self.out_len).then_some(out)
    }

    /// The outputs that read an input, each with its tap.
    pub(super) fn readers(self, input: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..self.kernel).filter_map(move |tap| Some((self.output_index(input, tap)?, tap)))
    }

    /// The outputs for which a tap reads an input and not padding.
    pub(super) fn valid_outputs(self, tap: usize) -> Range<usize> {
        let first = self.padding.saturating_sub(tap).div_ceil(self.stride);
        let end = (self.len + self.padding).saturating_sub(tap).div_ceil(self.stride);
        first..end.min(self.out_len).max(first)
    }

    /// The axis along which the gradient of the input is a convolution of that of the output, for a stride of 1.
    pub(super) fn reversed(self) -> Self {
        let padding = self.kernel - 1 - self.padding;
        Self { len: self.out_len, out_len: self.len, padding, ..self }
    }
}
