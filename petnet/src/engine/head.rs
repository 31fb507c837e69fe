//! The dense layers at the end, and what they say of each feature.

/// `x * weights + bias`, then perhaps ReLU.
#[derive(Debug)]
pub(super) struct Dense {
    /// `[inputs, outputs]`.
    pub(super) weights: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) relu: bool,
}

impl Dense {
    fn run(&self, x: &[f32]) -> Vec<f32> {
        let mut out = self.bias.clone();
        for (value, row) in x.iter().zip(self.weights.chunks_exact(out.len())) {
            out.iter_mut().zip(row).for_each(|(out, weight)| *out += value * weight);
        }
        if self.relu {
            out.iter_mut().for_each(|out| *out = out.max(0.0));
        }
        out
    }
}

/// Features to logits.
pub(super) fn run(layers: &[Dense], features: &[f32]) -> Vec<f32> {
    layers.iter().fold(features.to_vec(), |x, layer| layer.run(&x))
}

/// The gradient of logit `class` by the features.
pub(super) fn slope(layers: &[Dense], features: &[f32], class: usize) -> Vec<f32> {
    let Some((layer, later)) = layers.split_first() else {
        return (0..features.len()).map(|place| f32::from(u8::from(place == class))).collect();
    };
    let out = layer.run(features);
    let mut slopes = slope(later, &out, class);
    if layer.relu {
        // ReLU passes what it let through.
        slopes.iter_mut().zip(&out).for_each(|(s, out)| *s = if *out > 0.0 { *s } else { 0.0 });
    }
    let rows = layer.weights.chunks_exact(out.len());
    rows.map(|row| row.iter().zip(&slopes).map(|(weight, slope)| weight * slope).sum()).collect()
}
