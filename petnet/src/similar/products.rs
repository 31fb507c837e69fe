//! Dot products of many rows with some queries, in the widest vector instructions of this CPU.

use pulp::{Simd, WithSimd};

use crate::kernel::vector_arch;

/// Queries per tile.
const QUERIES: usize = 4;

/// Fills `out`, `[rows, queries]`, with the dot products of `rows` and `queries`, each of `len` values a row.
///
/// The order of summation does not depend on the other rows and queries, so that the bits of a product depend on the width
/// of the vectors alone.
pub(super) fn products(rows: &[f32], queries: &[f32], len: usize, out: &mut [f32]) {
    vector_arch().dispatch(Block { rows, queries, len, out });
}

struct Block<'a> {
    rows: &'a [f32],
    queries: &'a [f32],
    len: usize,
    out: &'a mut [f32],
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // The sums of a tile stay in registers: 6 x 4 of 32, or 2 x 4 of 16.
        if S::REGISTER_COUNT > 16 {
            tiles::<S, 6>(simd, self);
        } else {
            tiles::<S, 2>(simd, self);
        }
    }
}

/// Compares all rows, `R` at a time, with each group of [`QUERIES`] queries. The group stays in the first-level cache, the
/// rows in the second-level one.
#[inline(always)]
fn tiles<S: Simd, const R: usize>(simd: S, Block { rows, queries, len, out }: Block<'_>) {
    let count = queries.len() / len;
    let mut first = 0;
    while first < count {
        let rest = &queries[first * len..];
        if first + QUERIES <= count {
            let group = split::<QUERIES>(rest, len);
            over_rows::<S, R, QUERIES>(simd, (rows, len), group, (&mut *out, first, count));
            first += QUERIES;
        } else {
            let one = split::<1>(rest, len);
            over_rows::<S, R, 1>(simd, (rows, len), one, (&mut *out, first, count));
            first += 1;
        }
    }
}

#[inline(always)]
fn over_rows<S: Simd, const R: usize, const Q: usize>(
    simd: S,
    (rows, len): (&[f32], usize),
    queries: [&[f32]; Q],
    (out, first, count): (&mut [f32], usize, usize),
) {
    let mut out = out.chunks_exact_mut(count);
    let mut keep = |sums: [f32; Q]| {
        if let Some(out) = out.next() {
            out[first..first + Q].copy_from_slice(&sums);
        }
    };
    let together = rows.chunks_exact(R * len);
    let rest = together.remainder();
    for rows in together {
        for sums in tile::<S, R, Q>(simd, split(rows, len), queries) {
            keep(sums);
        }
    }
    for row in rest.chunks_exact(len) {
        for sums in tile::<S, 1, Q>(simd, [row], queries) {
            keep(sums);
        }
    }
}

/// The first `N` rows.
#[inline(always)]
fn split<const N: usize>(rows: &[f32], len: usize) -> [&[f32]; N] {
    std::array::from_fn(|row| &rows[row * len..][..len])
}

/// One dot product per row and query, with the sums in registers.
#[inline(always)]
fn tile<S: Simd, const R: usize, const Q: usize>(
    simd: S,
    rows: [&[f32]; R],
    queries: [&[f32]; Q],
) -> [[f32; Q]; R] {
    let (rows, queries) = (rows.map(S::as_simd_f32s), queries.map(S::as_simd_f32s));
    let len = rows[0].0.len();
    // Slices of one known length, so that the compiler removes the bounds checks below.
    let (whole_rows, whole_queries) = (rows.map(|row| &row.0[..len]), queries.map(|q| &q.0[..len]));
    // Loops are three times as fast as `map`, whose closures are not always inlined.
    let mut sums = [[simd.splat_f32s(0.0); Q]; R];
    for at in 0..len {
        let mut values = [simd.splat_f32s(0.0); Q];
        for (value, query) in values.iter_mut().zip(&whole_queries) {
            *value = query[at];
        }
        for (sums, row) in sums.iter_mut().zip(&whole_rows) {
            let row = row[at];
            for (sum, query) in sums.iter_mut().zip(&values) {
                *sum = simd.mul_add_f32s(row, *query, *sum);
            }
        }
    }
    if !rows[0].1.is_empty() {
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let row = simd.partial_load_f32s(row.1);
            for (sum, query) in sums.iter_mut().zip(&queries) {
                *sum = simd.mul_add_f32s(row, simd.partial_load_f32s(query.1), *sum);
            }
        }
    }
    let mut products = [[0.0; Q]; R];
    for (products, sums) in products.iter_mut().zip(&sums) {
        for (product, sum) in products.iter_mut().zip(sums) {
            *product = simd.reduce_sum_f32s(*sum);
        }
    }
    products
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_a_plain_loop_and_have_the_same_bits_alone() {
        for (count, query_count, len) in
            [(1, 1, 1), (9, 7, 19), (5, 4, 64), (8, 33, 100), (3, 2, 1280)]
        {
            let value = |at: usize| ((at * 7919 + len) % 201) as f32 / 100.0 - 1.0;
            let rows: Vec<f32> = (0..count * len).map(value).collect();
            let queries: Vec<f32> = (0..query_count * len).map(|at| value(at + 31)).collect();
            let mut out = vec![f32::NAN; count * query_count];
            products(&rows, &queries, len, &mut out);
            for (row, values) in rows.chunks(len).enumerate() {
                for (query, others) in queries.chunks(len).enumerate() {
                    let pairs = values.iter().zip(others);
                    let plain: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    let ours = out[row * query_count + query];
                    assert!((f64::from(ours) - plain).abs() < 1e-4, "{ours} {plain}");
                    let mut alone = [0.0];
                    products(values, others, len, &mut alone);
                    assert_eq!(alone[0].to_bits(), ours.to_bits());
                }
            }
        }
    }
}
