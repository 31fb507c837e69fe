//! A self-contained HTML page: each query with its neighbours, and pairs of duplicates.

use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;

use super::{Duplicate, Query, shown};
use crate::encode::{data_url, thumbnail};
use crate::report::render;

const TEMPLATE: &str = include_str!("page.html");
/// Most pairs on the page; their thumbnails determine its size.
const MOST_PAIRS: usize = 200;

/// Contents of the page.
#[derive(Serialize)]
pub(super) struct Page {
    pub(super) images: usize,
    pub(super) model: String,
    pub(super) threshold: f32,
    pub(super) queries: Vec<Shown>,
    /// `None` without `--duplicates`.
    pub(super) duplicates: Option<Pairs>,
}

/// A query with its neighbours.
#[derive(Serialize)]
pub(super) struct Shown {
    image: Image,
    error: Option<String>,
    found: Vec<Image>,
}

/// The first of `count` pairs of duplicates.
#[derive(Serialize)]
pub(super) struct Pairs {
    count: usize,
    shown: Vec<[Image; 2]>,
}

#[derive(Serialize)]
struct Image {
    folder: String,
    name: String,
    cosine: Option<f32>,
    duplicate: bool,
    /// Thumbnail as JPEG; empty where the file cannot be read.
    #[serde(serialize_with = "data_url")]
    thumbnail: Vec<u8>,
}

impl Image {
    fn new(path: &str, cosine: Option<f32>) -> Self {
        let jpeg = std::fs::read(path).ok().and_then(|bytes| thumbnail(&bytes).ok());
        let shown = shown(path);
        let (folder, name) = shown.rsplit_once('/').unwrap_or(("", &shown));
        let (folder, name) = (folder.to_string(), name.to_string());
        Self { folder, name, cosine, duplicate: false, thumbnail: jpeg.unwrap_or_default() }
    }
}

impl Shown {
    pub(super) fn query(query: &Query, threshold: f32) -> Self {
        let near = query.found.as_deref().unwrap_or_default();
        let found = near.par_iter().map(|near| Image {
            duplicate: near.cosine >= threshold,
            ..Image::new(&near.path, Some(near.cosine))
        });
        Self {
            image: Image::new(&query.path.to_string_lossy(), None),
            error: query.found.as_ref().err().cloned(),
            found: found.collect(),
        }
    }
}

pub(super) fn pairs(pairs: &[Duplicate]) -> Pairs {
    let nearest = &pairs[..pairs.len().min(MOST_PAIRS)];
    let both =
        |pair: &Duplicate| pair.paths.each_ref().map(|path| Image::new(path, Some(pair.cosine)));
    let shown = nearest.par_iter().map(both);
    Pairs { count: pairs.len(), shown: shown.collect() }
}

impl Page {
    pub(super) fn html(&self) -> Result<String> {
        render(TEMPLATE, self)
    }
}
