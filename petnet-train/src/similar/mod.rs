//! `similar`: images that look alike, by their embeddings. This file parses, searches and prints; `update` synchronises
//! the index with folders, `page` renders the HTML.

mod page;
mod turned;
mod update;

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use petnet::similar::{ImageIndex, Neighbour};
use petnet::{Classifier, Device};
use serde_json::{Value, json};

use self::page::{Page, Shown};
use self::update::Updated;
use crate::error::UsageError;
use crate::files;
use crate::model::ModelName;
use crate::terminal::{self, Output};

/// Pairs of duplicates that are listed; the nearest ones.
const MOST_PAIRS: usize = 1_000;

/// Find images that look alike: lost pets, duplicates.
///
/// An index holds the embedding of each image; the search compares all of them and misses none.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  petnet-train similar --index shelter --photos shelter-photos/            # build it, or take up what changed
  petnet-train similar --index shelter --html similar.html lost.jpg        # the 8 nearest, and a page with them
  petnet-train similar --index shelter --photos new-arrivals/ -k 3 lost-1.jpg lost-2.jpg
  petnet-train similar --index shelter --turned stolen.jpg                 # mirrored and turned copies, too
  petnet-train similar --index shelter --duplicates --html duplicates.html

Images below a folder of --photos are synchronised with the index: new and changed ones are embedded, those that are
gone are removed, and images of other folders stay. An index belongs to the model that made it.
For 1,280 values an image takes 5 KB of memory and disk; a million images are searched in about a second, while
--duplicates compares each with each: minutes for 100,000, hours for a million.")]
pub(crate) struct Similar {
    /// Folder of the index
    #[arg(long, value_name = "DIR")]
    index: PathBuf,
    /// Synchronise the index with the images below this folder; may be repeated
    #[arg(long, value_name = "DIR")]
    photos: Vec<PathBuf>,
    /// Model file, or `pretrained` for the bundled one
    #[arg(long, default_value = "pretrained")]
    model: ModelName,
    /// Device to compute on: auto, cpu, ndarray, wgpu or wgpu:N (discrete GPU N, from 0)
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Images to find for each PHOTO
    #[arg(long, short = 'k', value_name = "K", default_value_t = 8)]
    count: usize,
    /// Look for mirrored and turned copies of PHOTO, too
    #[arg(long)]
    turned: bool,
    /// List the pairs of images in the index that look the same
    #[arg(long)]
    duplicates: bool,
    /// Cosine from which on two images count as duplicates: with the bundled model, copies that were compressed, resized or
    /// mirrored have 0.88 and more, different photos up to 0.85
    #[arg(long, value_name = "COSINE", default_value_t = 0.87, value_parser = cosine)]
    threshold: f32,
    /// Write a page with the images, in one file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Images to find look-alikes of
    #[arg(value_name = "PHOTO")]
    queries: Vec<PathBuf>,
}

fn cosine(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|e: std::num::ParseFloatError| e.to_string())?;
    if (-1.0..=1.0).contains(&value) { Ok(value) } else { Err("must be from -1 to 1".into()) }
}

/// An image that was asked about, and what was found, or why it cannot be read.
struct Query {
    path: PathBuf,
    found: Result<Vec<Near>, String>,
}

/// An image of the index.
struct Near {
    path: String,
    cosine: f32,
}

/// Two images of the index that look the same.
struct Duplicate {
    paths: [String; 2],
    cosine: f32,
}

impl Similar {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        terminal::start_log(output, "info");
        if self.photos.is_empty() && self.queries.is_empty() && !self.duplicates {
            let text = "nothing to do: name a PHOTO, or --photos DIR, or --duplicates";
            return Err(UsageError(text.into()).into());
        }
        let model_sha256 = petnet::sha256(&self.model.bytes()?);
        let classifier = self.model.open(self.device)?;
        let mut images = self.open(&classifier, &model_sha256)?;
        let updated = match self.photos.as_slice() {
            [] => None,
            folders => Some(update::run(&mut images, &classifier, folders, &self.index, output)?),
        };
        let queries = self.search(&images, &classifier)?;
        let duplicates = self.duplicates.then(|| self.pairs(&images));
        if let Some(path) = &self.html {
            let shown = self.page(&images, &queries, duplicates.as_deref());
            files::write(path, shown.html()?.as_bytes())?;
        }
        if output.json {
            say!("{}", report(&images, updated.as_ref(), &queries, duplicates.as_deref()));
        } else {
            print(&images, updated.as_ref(), &queries, duplicates.as_deref())?;
        }
        let failed = queries.iter().filter(|query| query.found.is_err()).count();
        if failed > 0 {
            bail!("{failed} of {} photos could not be read", queries.len());
        }
        Ok(())
    }

    /// The index that is there, or an empty one where images are to be added.
    fn open(&self, classifier: &Classifier, model_sha256: &str) -> Result<ImageIndex> {
        if ImageIndex::is_at(&self.index) {
            return Ok(ImageIndex::open(&self.index, model_sha256)?);
        }
        if self.photos.is_empty() {
            let text = format!("{}: no index there: --photos DIR builds one", self.index.display());
            return Err(UsageError(text).into());
        }
        Ok(ImageIndex::new(model_sha256, classifier))
    }

    fn search(&self, images: &ImageIndex, classifier: &Classifier) -> Result<Vec<Query>> {
        let embedded: Vec<_> =
            self.queries.iter().map(|path| self.embed(path, classifier)).collect();
        let readable: Vec<&Vec<f32>> = embedded.iter().flatten().flatten().collect();
        // One more: a query that is in the index finds itself.
        let found = images.index().nearest_all(&readable, self.count.saturating_add(1))?;
        let mut found = found.into_iter();
        let answers = self.queries.iter().zip(embedded).map(|(path, embedded)| {
            let found = embedded.map(|ways| {
                let near = found.by_ref().take(ways.len()).flatten().collect();
                self.others(images, path, near)
            });
            Query { path: path.clone(), found }
        });
        Ok(answers.collect())
    }

    /// The embedding of an image; with `--turned` one of each way that it may lie.
    fn embed(&self, path: &Path, classifier: &Classifier) -> Result<Vec<Vec<f32>>, String> {
        let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
        let pixels = classifier.preprocess(&bytes).map_err(|e| e.to_string())?;
        let ways = if self.turned { turned::all(pixels) } else { vec![pixels] };
        classifier.embed(&ways).map_err(|e| e.to_string())
    }

    /// The images found in any orientation, each once and without the query itself.
    fn others(&self, images: &ImageIndex, own: &Path, mut found: Vec<Neighbour>) -> Vec<Near> {
        found.sort_by(|a, b| b.cosine.total_cmp(&a.cosine).then(a.row.cmp(&b.row)));
        let own = own.canonicalize().ok();
        let mut seen = HashSet::new();
        let near = found.into_iter().filter(|near| seen.insert(near.row)).filter_map(|near| {
            let path = images.images().get(near.row)?.path.clone();
            Some(Near { path, cosine: near.cosine })
        });
        near.filter(|near| own.as_deref() != Some(Path::new(&near.path))).take(self.count).collect()
    }

    fn pairs(&self, images: &ImageIndex) -> Vec<Duplicate> {
        let pairs = images.index().pairs(self.threshold, MOST_PAIRS);
        let named = pairs.into_iter().map(|pair| Duplicate {
            paths: pair.rows.map(|row| images.images()[row].path.clone()),
            cosine: pair.cosine,
        });
        named.collect()
    }

    fn page(
        &self,
        images: &ImageIndex,
        queries: &[Query],
        duplicates: Option<&[Duplicate]>,
    ) -> Page {
        let (threshold, count) = (self.threshold, images.images().len());
        Page {
            images: count,
            model: self.model.to_string(),
            threshold,
            queries: queries.iter().map(|query| Shown::query(query, threshold)).collect(),
            duplicates: duplicates.map(page::pairs),
        }
    }
}

/// A path as people wrote it: below the current folder without that folder's name.
fn shown(path: &str) -> String {
    let here = std::env::current_dir().and_then(|here| here.canonicalize()).unwrap_or_default();
    let path = Path::new(path);
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

fn report(
    images: &ImageIndex,
    updated: Option<&Updated>,
    queries: &[Query],
    duplicates: Option<&[Duplicate]>,
) -> Value {
    let queries = queries.iter().map(|query| match &query.found {
        Ok(found) => {
            let near = found.iter().map(|near| json!({ "path": near.path, "cosine": near.cosine }));
            json!({ "path": query.path, "neighbours": near.collect::<Vec<_>>() })
        }
        Err(reason) => json!({ "path": query.path, "error": reason }),
    });
    let mut report = json!({
        "images": images.images().len(),
        "updated": updated.map(Updated::json),
        "queries": queries.collect::<Vec<_>>(),
    });
    if let Some(pairs) = duplicates {
        let pairs = pairs.iter().map(|pair| json!({ "paths": pair.paths, "cosine": pair.cosine }));
        report["duplicates"] = pairs.collect();
    }
    report
}

fn print(
    images: &ImageIndex,
    updated: Option<&Updated>,
    queries: &[Query],
    duplicates: Option<&[Duplicate]>,
) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if let Some(updated) = updated {
        writeln!(out, "{}", updated.summary(images.images().len()))?;
    }
    for Query { path, found } in queries {
        match found {
            Ok(found) => {
                writeln!(out, "{}", path.display())?;
                for near in found {
                    writeln!(out, "  {:.4}  {}", near.cosine, shown(&near.path))?;
                }
            }
            Err(reason) => say_error!("{}: {reason}", path.display()),
        }
    }
    let Some(pairs) = duplicates else { return Ok(()) };
    for Duplicate { paths: [a, b], cosine } in pairs {
        writeln!(out, "{cosine:.4}  {}  {}", shown(a), shown(b))?;
    }
    let most = if pairs.len() == MOST_PAIRS { ", the nearest ones: raise --threshold" } else { "" };
    Ok(writeln!(out, "{} pairs of duplicates{most}", pairs.len())?)
}
