//! Exact nearest-neighbour search over embeddings by cosine, for similar images and duplicates.
//!
//! [`Index`] holds rows of one length in memory. Every query is compared with all rows, so that no neighbour is missed.
//! [`ImageIndex`] is an index together with the files of its rows, stored in a folder.
//!
//! A search reads all rows once for each block of 32 queries. A single query is bound by memory bandwidth, a block of
//! queries by arithmetic; `benches/similar.rs` measures both. Millions of rows may need an approximate index instead.
//!
//! ```
//! use petnet::similar::Index;
//!
//! let index = Index::from_rows(3, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.8, 0.0]])?;
//! let nearest = index.nearest(&[0.0, 2.0, 0.0], 2)?;
//! assert_eq!([nearest[0].row, nearest[1].row], [1, 2]);
//! assert!((nearest[1].cosine - 0.8).abs() < 1e-6);
//! # Ok::<(), petnet::Error>(())
//! ```

use std::cmp::Ordering;

use rayon::prelude::*;

use crate::error::Result;
use crate::vector::{norm, normalize};

mod images;
mod npy;
mod products;
mod top_k;

pub use crate::error::IndexError;
pub use images::{Added, ImageIndex, IndexedImage, Unreadable};
pub use npy::NpyWriter;
use top_k::{Ranked, TopK};

/// Queries per block, for which rows are read once from memory.
const QUERIES_PER_BLOCK: usize = 32;
/// Values per block of rows, 256 KiB, which stay in the cache while the queries of a block are compared with them.
const BLOCK_VALUES: usize = 1 << 16;

/// A row near a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Neighbour {
    /// Number of the row in the index, from 0.
    pub row: usize,
    /// Cosine of the angle between row and query, at most 1.
    pub cosine: f32,
}

impl Ranked for Neighbour {
    fn rank(&self, other: &Self) -> Ordering {
        other.cosine.total_cmp(&self.cosine).then(self.row.cmp(&other.row))
    }
}

/// Two rows near each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// The rows, the lower one first.
    pub rows: [usize; 2],
    /// Cosine of the angle between them, at most 1.
    pub cosine: f32,
}

impl Ranked for Pair {
    fn rank(&self, other: &Self) -> Ordering {
        other.cosine.total_cmp(&self.cosine).then(self.rows.cmp(&other.rows))
    }
}

/// Vectors of one length, each of norm 1 or zero, in memory at 4 bytes per value. The caller maps rows to images.
#[derive(Debug, Clone, PartialEq)]
pub struct Index {
    embedding_len: usize,
    /// `[rows, embedding_len]`.
    values: Vec<f32>,
}

impl Index {
    /// An empty index.
    pub fn new(embedding_len: usize) -> Self {
        Self { embedding_len, values: Vec::new() }
    }

    /// An index of some rows, each added by [`Index::push`].
    ///
    /// # Errors
    /// As [`Index::push`].
    pub fn from_rows<R: AsRef<[f32]>>(
        embedding_len: usize,
        rows: impl IntoIterator<Item = R>,
    ) -> Result<Self> {
        let mut index = Self::new(embedding_len);
        rows.into_iter().try_for_each(|row| index.push(row.as_ref()))?;
        Ok(index)
    }

    /// Adds a row, normalised to norm 1.
    ///
    /// # Errors
    /// [`Error::Index`](crate::Error::Index) for another length, or values that are not finite.
    pub fn push(&mut self, row: &[f32]) -> Result<()> {
        let row = self.unit(row)?;
        self.values.extend(row);
        Ok(())
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.embedding_len).unwrap_or_default()
    }

    /// True where there are no rows.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Number of values per row.
    pub fn embedding_len(&self) -> usize {
        self.embedding_len
    }

    /// A row, normalised; `None` beyond the last one.
    pub fn row(&self, row: usize) -> Option<&[f32]> {
        let end = row.checked_add(1)?.checked_mul(self.embedding_len)?;
        self.values.get(end - self.embedding_len..end)
    }

    /// The `count` rows of the largest cosine, the nearest first; of equal cosines, the lower row first. A query of zeros
    /// has the cosine 0 to every row.
    ///
    /// # Errors
    /// [`Error::Index`](crate::Error::Index) for a query of another length, or values that are not finite.
    pub fn nearest(&self, query: &[f32], count: usize) -> Result<Vec<Neighbour>> {
        Ok(self.nearest_all(&[query], count)?.pop().unwrap_or_default())
    }

    /// [`Index::nearest`] for many queries, with the same results. All rows are read once for each 32 queries.
    ///
    /// ```
    /// use petnet::similar::Index;
    ///
    /// let index = Index::from_rows(2, [[1.0, 0.0], [0.0, 1.0]])?;
    /// let found = index.nearest_all(&[[0.9, 0.1], [0.1, 0.9]], 1)?;
    /// assert_eq!([found[0][0].row, found[1][0].row], [0, 1]);
    /// # Ok::<(), petnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Index::nearest`].
    pub fn nearest_all<Q: AsRef<[f32]>>(
        &self,
        queries: &[Q],
        count: usize,
    ) -> Result<Vec<Vec<Neighbour>>> {
        let units = queries.iter().map(|query| self.unit(query.as_ref()));
        let units = units.collect::<Result<Vec<_>>>()?;
        Ok(units.chunks(QUERIES_PER_BLOCK).flat_map(|block| self.search(block, count)).collect())
    }

    /// The `most` pairs of different rows with the largest cosines of at least `cosine`, the nearest pair first. All pairs
    /// are compared: the time grows with the square of the number of rows.
    ///
    /// ```
    /// use petnet::similar::Index;
    ///
    /// let index = Index::from_rows(2, [[1.0, 0.0], [0.0, 1.0], [0.999, 0.001]])?;
    /// let pairs = index.pairs(0.99, 10);
    /// assert_eq!((pairs.len(), pairs[0].rows), (1, [0, 2]));
    /// # Ok::<(), petnet::Error>(())
    /// ```
    pub fn pairs(&self, cosine: f32, most: usize) -> Vec<Pair> {
        if self.is_empty() {
            return Vec::new();
        }
        let step = QUERIES_PER_BLOCK * self.embedding_len;
        let blocks = self.values.par_chunks(step).enumerate();
        let best = blocks.fold(
            || TopK::new(most),
            |mut best, (block, queries)| {
                let first = block * QUERIES_PER_BLOCK;
                self.pairs_with(queries, first, |pair: Pair| {
                    if pair.cosine >= cosine {
                        best.push(pair);
                    }
                });
                best
            },
        );
        best.reduce(|| TopK::new(most), TopK::merge).sorted()
    }

    /// Calls `found` with all pairs of a row of `queries`, which begin at row `first`, and a later row.
    fn pairs_with(&self, queries: &[f32], first: usize, mut found: impl FnMut(Pair)) {
        let len = self.embedding_len;
        let step = self.block_rows();
        let later = &self.values[first * len..];
        let mut cosines = Vec::new();
        for (block, rows) in later.chunks(step * len).enumerate() {
            let count = queries.len() / len;
            cosines.resize(rows.len() / len * count, 0.0);
            products::products(rows, queries, len, &mut cosines);
            for (row, cosines) in cosines.chunks_exact(count).enumerate() {
                let row = first + block * step + row;
                for (query, cosine) in cosines.iter().enumerate() {
                    if first + query < row {
                        found(Pair { rows: [first + query, row], cosine: cosine.min(1.0) });
                    }
                }
            }
        }
    }

    fn search(&self, queries: &[Vec<f32>], count: usize) -> Vec<Vec<Neighbour>> {
        let query_count = queries.len();
        if self.is_empty() {
            return vec![Vec::new(); query_count];
        }
        let (len, step) = (self.embedding_len, self.block_rows());
        let flat = queries.concat();
        let none = || vec![TopK::new(count.min(self.len())); query_count];
        // The result does not depend on the threads, as no two rows rank equal.
        let blocks = self.values.par_chunks(step * len).enumerate();
        let best = blocks.fold(none, |mut best, (block, rows)| {
            let mut cosines = vec![0.0; rows.len() / len * query_count];
            products::products(rows, &flat, len, &mut cosines);
            for (row, cosines) in cosines.chunks_exact(query_count).enumerate() {
                for (best, cosine) in best.iter_mut().zip(cosines) {
                    best.push(Neighbour { row: block * step + row, cosine: cosine.min(1.0) });
                }
            }
            best
        });
        let merge = |a: Vec<TopK<_>>, b: Vec<_>| {
            a.into_iter().zip(b).map(|(a, b)| TopK::merge(a, b)).collect()
        };
        best.reduce(none, merge).into_iter().map(TopK::sorted).collect()
    }

    fn block_rows(&self) -> usize {
        // A multiple of the rows per tile, for both sizes of tiles.
        (BLOCK_VALUES / self.embedding_len.max(1)).next_multiple_of(6).max(6)
    }

    /// Validates a vector and normalises it.
    fn unit(&self, values: &[f32]) -> Result<Vec<f32>> {
        let (found, expected) = (values.len(), self.embedding_len);
        if found != expected || found == 0 {
            return Err(IndexError::Length { found, expected }.into());
        }
        if !values.iter().all(|value| value.is_finite()) {
            return Err(IndexError::NotFinite.into());
        }
        let mut unit = values.to_vec();
        normalize(&mut unit);
        Ok(unit)
    }

    /// Replaces a row.
    fn set(&mut self, row: usize, values: &[f32]) -> Result<()> {
        let unit = self.unit(values)?;
        let len = self.embedding_len;
        self.values[row * len..][..len].copy_from_slice(&unit);
        Ok(())
    }

    /// Keeps the rows for which `keep` is true, in their order.
    fn retain(&mut self, keep: &[bool]) {
        let len = self.embedding_len;
        let mut to = 0;
        for from in keep.iter().enumerate().filter(|(_, keep)| **keep).map(|(row, _)| row) {
            self.values.copy_within(from * len..(from + 1) * len, to * len);
            to += 1;
        }
        self.values.truncate(to * len);
    }
}

/// True for vectors of norm 1, up to rounding, and for zeros.
fn is_unit(row: &[f32]) -> bool {
    let norm = norm(row);
    norm == 0.0 || (norm - 1.0).abs() < 1e-3
}

#[cfg(test)]
mod tests;
