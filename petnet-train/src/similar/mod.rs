//! `similar`: nearest neighbours of images by their embeddings. This file has the subcommand, searches and prints; `update`
//! synchronises the index with folders, `page` renders the HTML page.

mod orientations;
mod page;
mod update;

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use petnet::similar::{ImageIndex, Neighbour};
use petnet::{Classifier, Device};
use serde::Serialize;
use serde_json::{Value, json};

use self::update::Updated;
use crate::error::UsageError;
use crate::files;
use crate::model::ModelName;
use crate::terminal::Output;

/// Most pairs of duplicates that are listed, the nearest first.
const MAX_LISTED_PAIRS: usize = 1_000;

/// Find similar images and duplicates by their embeddings
///
/// An index holds the embedding of each image. The search is exact: it compares the query with all of them.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  petnet-train similar --index shelter --photos shelter-photos/            # build the index, or update it
  petnet-train similar --index shelter --html similar.html lost.jpg        # the 8 nearest, also as a page
  petnet-train similar --index shelter --photos new-arrivals/ -k 3 lost-1.jpg lost-2.jpg
  petnet-train similar --index shelter --turned stolen.jpg                 # also mirrored and rotated copies
  petnet-train similar --index shelter --duplicates --html duplicates.html

--photos synchronises the index with a folder: new and changed images are embedded, deleted ones are removed, and
images of other folders stay. An index can only be used with the model that made it. With embeddings of 1,280 values,
an image takes 5 KB of memory and disk, and a million images are searched in about a second. --duplicates compares
every pair of images: minutes for 100,000 images, hours for a million.")]
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
    /// Number of images to find for each IMAGE
    #[arg(long, short = 'k', value_name = "K", default_value_t = 8)]
    count: usize,
    /// Also find mirrored and rotated copies of IMAGE
    #[arg(long)]
    turned: bool,
    /// List pairs of images in the index that are duplicates
    #[arg(long = "duplicates")]
    find_duplicates: bool,
    /// Cosine similarity from which two images count as duplicates, from -1 to 1. With the bundled model, copies that were
    /// compressed, resized or mirrored have 0.88 and more, different images up to 0.85
    #[arg(long, value_name = "COSINE", default_value_t = 0.87, value_parser = cosine)]
    threshold: f32,
    /// Also write a self-contained HTML page with the images
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Images to search for
    #[arg(value_name = "IMAGE")]
    queries: Vec<PathBuf>,
}

fn cosine(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|e: std::num::ParseFloatError| e.to_string())?;
    if (-1.0..=1.0).contains(&value) { Ok(value) } else { Err("must be from -1 to 1".into()) }
}

/// A query image with its neighbours, or the reason why it cannot be read.
struct Query {
    path: PathBuf,
    found: Result<Vec<NamedNeighbour>, String>,
}

/// Results of the command.
struct Results {
    /// Number of images in the index.
    images: usize,
    updated: Option<Updated>,
    queries: Vec<Query>,
    duplicates: Option<Vec<Duplicate>>,
    /// True where there are more pairs of duplicates than those.
    more_pairs: bool,
}

/// An image of the index, and its similarity to the query.
#[derive(Serialize)]
struct NamedNeighbour {
    path: String,
    cosine: f32,
}

/// Two images of the index that count as duplicates.
#[derive(Serialize)]
struct Duplicate {
    paths: [String; 2],
    cosine: f32,
}

impl Similar {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        if self.photos.is_empty() && self.queries.is_empty() && !self.find_duplicates {
            let text = "nothing to do: give an IMAGE, --photos DIR or --duplicates";
            return Err(UsageError(text.into()).into());
        }
        let model_sha256 = petnet::disk::sha256(&self.model.bytes()?);
        let classifier = self.model.open(self.device)?;
        let mut images = self.open(&classifier, &model_sha256)?;
        let updated = match self.photos.as_slice() {
            [] => None,
            folders => Some(update::run(&mut images, &classifier, folders, &self.index, output)?),
        };
        let queries = self.search(&images, &classifier)?;
        let mut duplicates = self.find_duplicates.then(|| self.pairs(&images));
        let more_pairs = duplicates.as_ref().is_some_and(|pairs| pairs.len() > MAX_LISTED_PAIRS);
        duplicates.iter_mut().for_each(|pairs| pairs.truncate(MAX_LISTED_PAIRS));
        if let Some(path) = &self.html {
            let (count, model) = (images.images().len(), self.model.to_string());
            let page = page::html(count, &model, self.threshold, &queries, duplicates.as_deref())?;
            files::write(path, page.as_bytes())?;
        }
        let images = images.images().len();
        let results = Results { images, updated, queries, duplicates, more_pairs };
        if output.json {
            say!("{}", results.json());
        } else {
            results.print()?;
        }
        let queries = results.queries;
        let failed = queries.iter().filter(|query| query.found.is_err()).count();
        if failed > 0 {
            bail!("{failed} of {} images could not be read", queries.len());
        }
        Ok(())
    }

    /// Opens the index, or creates an empty one if images are to be added.
    fn open(&self, classifier: &Classifier, model_sha256: &str) -> Result<ImageIndex> {
        if ImageIndex::is_at(&self.index) {
            return Ok(ImageIndex::open(&self.index, model_sha256)?);
        }
        if self.photos.is_empty() {
            let text = format!("{}: no index found; --photos DIR builds one", self.index.display());
            return Err(UsageError(text).into());
        }
        Ok(ImageIndex::new(model_sha256, classifier))
    }

    fn search(&self, images: &ImageIndex, classifier: &Classifier) -> Result<Vec<Query>> {
        let embedded: Vec<_> =
            self.queries.iter().map(|path| self.embed(path, classifier)).collect();
        let readable: Vec<&Vec<f32>> = embedded.iter().flatten().flatten().collect();
        // One more than requested: a query that is in the index finds itself.
        let found = images.index().nearest_all(&readable, self.count.saturating_add(1))?;
        let mut found = found.into_iter();
        let answers = self.queries.iter().zip(embedded).map(|(path, embedded)| {
            let found = embedded.map(|orientations| {
                let near = found.by_ref().take(orientations.len()).flatten().collect();
                self.without_query(images, path, near)
            });
            Query { path: path.clone(), found }
        });
        Ok(answers.collect())
    }

    /// The embedding of an image; with `--turned`, one for each of its eight orientations.
    fn embed(&self, path: &Path, classifier: &Classifier) -> Result<Vec<Vec<f32>>, String> {
        let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
        let pixels = classifier.preprocess(&bytes).map_err(|e| e.to_string())?;
        let orientations = if self.turned { orientations::all(pixels) } else { vec![pixels] };
        classifier.embed(&orientations).map_err(|e| e.to_string())
    }

    /// The images found in any orientation, each once, without the query itself.
    fn without_query(
        &self,
        images: &ImageIndex,
        own: &Path,
        mut found: Vec<Neighbour>,
    ) -> Vec<NamedNeighbour> {
        found.sort_by(|a, b| b.cosine.total_cmp(&a.cosine).then(a.row.cmp(&b.row)));
        let own = own.canonicalize().ok();
        let mut seen = HashSet::new();
        let near = found.into_iter().filter(|near| seen.insert(near.row)).filter_map(|near| {
            let path = images.images().get(near.row)?.path.clone();
            Some(NamedNeighbour { path, cosine: near.cosine })
        });
        near.filter(|near| own.as_deref() != Some(Path::new(&near.path))).take(self.count).collect()
    }

    /// The nearest pairs of duplicates: one more than is listed, where there are that many.
    fn pairs(&self, images: &ImageIndex) -> Vec<Duplicate> {
        let pairs = images.index().pairs(self.threshold, MAX_LISTED_PAIRS + 1);
        let named = pairs.into_iter().map(|pair| Duplicate {
            paths: pair.rows.map(|row| images.images()[row].path.clone()),
            cosine: pair.cosine,
        });
        named.collect()
    }
}

/// A path for display: relative to the current folder, if it lies below it.
fn display_path(path: &str) -> String {
    let here = std::env::current_dir().and_then(|here| here.canonicalize()).unwrap_or_default();
    let path = Path::new(path);
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

impl Results {
    fn json(&self) -> Value {
        let queries = self.queries.iter().map(|Query { path, found }| match found {
            Ok(found) => json!({ "path": path, "neighbours": found }),
            Err(reason) => json!({ "path": path, "error": reason }),
        });
        let mut json = json!({
            "images": self.images,
            "updated": self.updated.as_ref().map(Updated::json),
            "queries": queries.collect::<Vec<_>>(),
        });
        if let Some(pairs) = &self.duplicates {
            json["duplicates"] = json!(pairs);
        }
        json
    }

    fn print(&self) -> Result<()> {
        let mut out = std::io::stdout().lock();
        if let Some(updated) = &self.updated {
            writeln!(out, "{}", updated.summary(self.images))?;
        }
        for Query { path, found } in &self.queries {
            match found {
                Ok(found) => {
                    writeln!(out, "{}", path.display())?;
                    for near in found {
                        writeln!(out, "  {:.4}  {}", near.cosine, display_path(&near.path))?;
                    }
                }
                Err(reason) => say_error!("{}: {reason}", path.display()),
            }
        }
        let Some(pairs) = &self.duplicates else { return Ok(()) };
        for Duplicate { paths: [a, b], cosine } in pairs {
            writeln!(out, "{cosine:.4}  {}  {}", display_path(a), display_path(b))?;
        }
        let limited = match self.more_pairs {
            true => ", only the nearest are listed: raise --threshold",
            false => "",
        };
        Ok(writeln!(out, "{} pairs of duplicates{limited}", pairs.len())?)
    }
}
