//! Arithmetic of feature vectors.

/// Dot product in lanes, which the compiler vectorises.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f32>()
}

/// Divides by the L2 norm; zeros stay zeros.
pub(crate) fn normalize(values: &mut [f32]) {
    let norm = norm(values);
    if norm > 0.0 {
        values.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
    }
}

/// L2 norm.
pub(crate) fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_get_the_norm_1_and_zeros_stay_zeros() {
        let mut values = [3.0, 0.0, 4.0];
        normalize(&mut values);
        assert_eq!(values, [0.6, 0.0, 0.8]);
        let mut small = [1e-30, 1e-30];
        normalize(&mut small);
        assert!((norm(&small) - 1.0).abs() < 1e-6, "squares below the smallest f32");
        let mut zeros = [0.0; 3];
        normalize(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
    }
}
