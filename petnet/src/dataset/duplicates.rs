//! Duplicates: equal files, and near-duplicates by perceptual hash.
//!
//! Near-duplicates have 64-bit difference hashes (N. Krawetz, "Kind of like that", 2013) that differ in at most three
//! bits. Candidates share one of four bands of 16 bits, as three different bits leave at least one band equal. They are
//! confirmed by an 8 x 8 colour thumbnail, so that images with plain backgrounds do not form chains.

use std::collections::HashMap;

use image_hasher::{HashAlg, Hasher, HasherConfig, ImageHash};

use crate::error::ImageError;
use crate::preprocess::{Pixels, Resize, resize};

const MAX_HASH_DISTANCE: u32 = 3;
const MAX_THUMBNAIL_DIFFERENCE: u32 = 6;
const HASHED_SIDE: u32 = 32;
const THUMBNAIL_SIDE: u32 = 8;

/// Hash and thumbnail of an image, to compare it with others: 200 bytes.
#[derive(Debug, Clone)]
pub(crate) struct Fingerprint {
    hash: u64,
    thumbnail: Vec<u8>,
}

impl Fingerprint {
    pub(crate) fn of(pixels: &Pixels) -> Result<Self, ImageError> {
        let small = resize(pixels, HASHED_SIDE, Resize::Squeeze)?;
        let thumbnail = resize(&small, THUMBNAIL_SIDE, Resize::Squeeze)?.into_data();
        let image = image::RgbImage::from_raw(HASHED_SIDE, HASHED_SIDE, small.into_data())
            .ok_or(ImageError::TooMuchMemory)?;
        let hasher: Hasher<[u8; 8]> =
            HasherConfig::with_bytes_type().hash_alg(HashAlg::Gradient).hash_size(8, 8).to_hasher();
        let hash: ImageHash<[u8; 8]> = hasher.hash_image(&image);
        Ok(Self { hash: u64::from_le_bytes(hash.into_inner()), thumbnail })
    }

    fn is_near_duplicate(&self, other: &Self) -> bool {
        let bits = (self.hash ^ other.hash).count_ones();
        let pairs = self.thumbnail.iter().zip(&other.thumbnail);
        bits <= MAX_HASH_DISTANCE
            && pairs.map(|(a, b)| u32::from(a.abs_diff(*b))).sum::<u32>()
                <= MAX_THUMBNAIL_DIFFERENCE * self.thumbnail.len() as u32
    }
}

/// Group number of each image by digest and fingerprint, counted from 0 in the order of first members.
pub(crate) fn group<'a>(images: impl Iterator<Item = (&'a str, &'a Fingerprint)>) -> Vec<usize> {
    let images: Vec<(&str, &Fingerprint)> = images.collect();
    let mut sets = Sets::new(images.len());
    let mut by_digest: HashMap<&str, usize> = HashMap::new();
    for (index, (digest, _)) in images.iter().enumerate() {
        let first = *by_digest.entry(digest).or_insert(index);
        sets.join(first, index);
    }
    for band in 0..4 {
        let mut buckets: HashMap<u16, Vec<usize>> = HashMap::new();
        for (index, (_, print)) in images.iter().enumerate() {
            let bucket = buckets.entry((print.hash >> (16 * band)) as u16).or_default();
            for &other in bucket.iter() {
                if print.is_near_duplicate(images[other].1) {
                    sets.join(other, index);
                }
            }
            bucket.push(index);
        }
    }
    sets.numbers()
}

/// Disjoint-set forest (union-find) with path halving.
struct Sets(Vec<usize>);

impl Sets {
    fn new(count: usize) -> Self {
        Self((0..count).collect())
    }

    fn root(&mut self, mut index: usize) -> usize {
        while self.0[index] != index {
            self.0[index] = self.0[self.0[index]];
            index = self.0[index];
        }
        index
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }

    fn numbers(mut self) -> Vec<usize> {
        let mut named = HashMap::new();
        (0..self.0.len())
            .map(|index| {
                let root = self.root(index);
                let number = named.len();
                *named.entry(root).or_insert(number)
            })
            .collect()
    }
}
