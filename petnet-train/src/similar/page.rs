//! A self-contained HTML page: each query with its neighbours, and pairs of duplicates.

use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Duplicate, Query, display_path};
use crate::encode::{data_url, thumbnail};
use crate::report::render;

const TEMPLATE: &str = include_str!("page.html");
/// Most pairs on the page; their thumbnails determine its size.
const MAX_PAGE_PAIRS: usize = 200;

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
        let shown = display_path(path);
        let (folder, name) = shown.rsplit_once('/').unwrap_or(("", &shown));
        let (folder, name) = (folder.to_string(), name.to_string());
        Self { folder, name, cosine, duplicate: false, thumbnail: jpeg.unwrap_or_default() }
    }
}

/// The page: each query with its neighbours, and the nearest pairs of duplicates, `None` without `--duplicates`.
pub(super) fn html(
    images: usize,
    model: &str,
    threshold: f32,
    queries: &[Query],
    duplicates: Option<&[Duplicate]>,
) -> Result<String> {
    let queries: Vec<Value> = queries.iter().map(|query| shown_query(query, threshold)).collect();
    let values = json!({
        "images": images,
        "model": model,
        "threshold": threshold,
        "queries": queries,
        "duplicates": duplicates.map(shown_pairs),
    });
    render(TEMPLATE, values)
}

/// A query with its neighbours.
fn shown_query(query: &Query, threshold: f32) -> Value {
    let near = query.found.as_deref().unwrap_or_default().par_iter();
    let found = near.map(|near| Image {
        duplicate: near.cosine >= threshold,
        ..Image::new(&near.path, Some(near.cosine))
    });
    json!({
        "image": Image::new(&query.path.to_string_lossy(), None),
        "error": query.found.as_ref().err(),
        "found": found.collect::<Vec<_>>(),
    })
}

/// The number of pairs, and the images of the first ones.
fn shown_pairs(pairs: &[Duplicate]) -> Value {
    let nearest = &pairs[..pairs.len().min(MAX_PAGE_PAIRS)];
    let both =
        |pair: &Duplicate| pair.paths.each_ref().map(|path| Image::new(path, Some(pair.cosine)));
    let shown: Vec<[Image; 2]> = nearest.par_iter().map(both).collect();
    json!({ "count": pairs.len(), "shown": shown })
}
