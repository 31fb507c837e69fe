//! Dot products of many rows with some queries, in the widest vectors of this CPU. Knows slices alone.

use pulp::{Simd, WithSimd};

use crate::kernel::arch;

/// Queries whose products with a row are summed at a time.
const QUERIES: usize = 4;

/// Fills `out`, `[rows, queries]`, with the dot products of `rows` and `queries`, each of `len` values a row.
///
/// A product is summed in the same order whatever rows and queries are beside it, so that its bits depend on the width of
/// the vectors alone.
pub(super) fn products(rows: &[f32], queries: &[f32], len: usize, out: &mut [f32]) {
    arch().dispatch(Block { rows, queries, len, out });
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
        // Sums of a tile stay in registers: 6 x 4 of 32, or 2 x 4 of 16.
        if S::REGISTER_COUNT > 16 {
            tiles::<S, 6>(simd, self);
        } else {
            tiles::<S, 2>(simd, self);
        }
    }
}

/// Some queries at a time with all rows, `R` of them at a time: those queries stay in the first level of the cache, the
/// rows in the second.
#[inline(always)]
fn tiles<S: Simd, const R: usize>(simd: S, Block { rows, queries, len, out }: Block<'_>) {
    let count = queries.len() / len;
    let mut first = 0;
    while first < count {
        let these = &queries[first * len..];
        if first + QUERIES <= count {
            let these = split::<QUERIES>(these, len);
            over_rows::<S, R, QUERIES>(simd, (rows, len), these, (&mut *out, first, count));
            first += QUERIES;
        } else {
            let this = split::<1>(these, len);
            over_rows::<S, R, 1>(simd, (rows, len), this, (&mut *out, first, count));
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

/// One sum a row and query, in registers.
#[inline(always)]
fn tile<S: Simd, const R: usize, const Q: usize>(
    simd: S,
    rows: [&[f32]; R],
    queries: [&[f32]; Q],
) -> [[f32; Q]; R] {
    let (rows, queries) = (rows.map(S::as_simd_f32s), queries.map(S::as_simd_f32s));
    let len = rows[0].0.len();
    // Slices of one known length: no index is checked below.
    let (whole_rows, whole_queries) = (rows.map(|row| &row.0[..len]), queries.map(|q| &q.0[..len]));
    // Loops in place of `map`, whose closures are not always inlined: three times as fast.
    let mut sums = [[simd.splat_f32s(0.0); Q]; R];
    for at in 0..len {
        let mut these = [simd.splat_f32s(0.0); Q];
        for (value, query) in these.iter_mut().zip(&whole_queries) {
            *value = query[at];
        }
        for (sums, row) in sums.iter_mut().zip(&whole_rows) {
            let row = row[at];
            for (sum, query) in sums.iter_mut().zip(&these) {
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
    fn products_are_those_of_a_plain_loop_whatever_is_beside_them() {
        for (count, asked, len) in [(1, 1, 1), (9, 7, 19), (5, 4, 64), (8, 33, 100), (3, 2, 1280)] {
            let value = |at: usize| ((at * 7919 + len) % 201) as f32 / 100.0 - 1.0;
            let rows: Vec<f32> = (0..count * len).map(value).collect();
            let queries: Vec<f32> = (0..asked * len).map(|at| value(at + 31)).collect();
            let mut out = vec![f32::NAN; count * asked];
            products(&rows, &queries, len, &mut out);
            for (row, values) in rows.chunks(len).enumerate() {
                for (query, others) in queries.chunks(len).enumerate() {
                    let pairs = values.iter().zip(others);
                    let plain: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    let ours = out[row * asked + query];
                    assert!((f64::from(ours) - plain).abs() < 1e-4, "{ours} {plain}");
                    let mut alone = [0.0];
                    products(values, others, len, &mut alone);
                    assert_eq!(alone[0].to_bits(), ours.to_bits());
                }
            }
        }
    }
}
