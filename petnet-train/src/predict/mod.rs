//! `predict`: classifies one image or millions. This file has the subcommand; `listing` and `source` list the images,
//! `pipeline` classifies them, `rows`, `parts` and `embeddings` write the results.

mod archive;
#[cfg(feature = "cloud")]
mod cloud;
#[cfg(not(feature = "cloud"))]
#[path = "no_cloud.rs"]
mod cloud;
mod embeddings;
mod listing;
mod parts;
mod pipeline;
mod rows;
mod source;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use petnet::{Classifier, Device, Prediction};

use self::embeddings::{EmbeddingFile, EmbeddingFormat};
use self::listing::{Finished, ImageSelector, Listed, Shard};
use self::parts::{Parts, RunSettings, ShardProgress};
use self::pipeline::{Concurrency, Row};
use self::rows::RowHeader;
pub(crate) use self::source::{copy_bucket, images_below, is_bucket};
use crate::error::UsageError;
use crate::model::ModelName;
use crate::terminal::{self, Output};

/// Fewest images for which the speed is reported.
const MIN_IMAGES_FOR_SPEED: u64 = 100;

/// Classify images: files, folders, globs, tar and zip archives, buckets
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train predict rex.jpg tom.jpg
  petnet-train predict --model models/best.safetensors --format csv photos/ > labels.csv
  petnet-train predict --format jsonl 'photos/**/*.jpg' shards/part-0.tar holiday.zip > answers.jsonl

For millions of images, write the predictions to a folder, in parts. The same command continues a killed run where it
stopped; every image is classified once. The first of four machines that share the work runs:
  petnet-train predict --out answers --format csv --shard 0/4 photos/
  petnet-train predict --out answers --embeddings npy photos/

Embeddings, vectors of norm 1 for comparing images, are written in the same pass; `np.load(\"cats.npy\")` reads them:
  petnet-train predict --embeddings cats.npy photos/    # [images, values]; cats.paths.txt has one path per row
Built with `--features cloud`, it reads buckets and writes Parquet. Credentials come from the variables that the clouds'
own tools read (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, AWS_ALLOW_HTTP,
GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_NAME, ...):
  petnet-train predict --out answers --format parquet s3://photos/inbox/
  petnet-train predict --embeddings cats.parquet photos/
  petnet-train predict --out answers --format parquet 's3://photos/shards/part-*.tar'")]
pub(crate) struct Predict {
    /// Model file, or `pretrained` for the bundled one
    #[arg(long, default_value = "pretrained")]
    model: ModelName,
    /// Images, folders, globs in quotes, .tar or .zip archives, s3://, gs:// or az:// prefixes
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// Format of the predictions [default: text, or jsonl with --out]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Device to compute on: auto, cpu, ndarray, wgpu or wgpu:N (discrete GPU N, from 0)
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Write parts into this folder; the same command continues a killed run
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Number of images in a part
    #[arg(long, default_value_t = 10_000, requires = "out", value_parser = clap::value_parser!(u64).range(1..))]
    part_size: u64,
    /// Also write embeddings to this .npy or .parquet file; with --out, give `npy` or `parquet` for one file per part
    #[arg(long, value_name = "FILE")]
    embeddings: Option<PathBuf>,
    /// Classify only share I of N of the images; I is from 0 to N - 1
    #[arg(long, value_name = "I/N", default_value = "0/1")]
    shard: Shard,
    /// Number of images that are read concurrently; more hide the latency of a slow network
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    readers: usize,
    /// Number of images in a batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    batch_size: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Jsonl,
    Csv,
    Parquet,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let number = text.parse().map_err(|e: std::num::ParseIntError| e.to_string())?;
    if number == 0 { Err("must be at least 1".into()) } else { Ok(number) }
}

impl Predict {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        match &self.out {
            Some(folder) => self.write_parts(folder.clone(), output),
            None => self.print(output),
        }
    }

    /// Prints rows to standard output.
    fn print(&self, output: Output) -> Result<()> {
        let format = match self.format {
            Some(Format::Parquet) => {
                return Err(UsageError("--format parquet needs --out".into()).into());
            }
            _ if output.json => Format::Jsonl,
            format => format.unwrap_or(Format::Text),
        };
        let embedding_format =
            self.embeddings.as_deref().map(EmbeddingFormat::of_file).transpose()?;
        let classifier = self.model.open(self.device)?;
        let header = RowHeader::new(&classifier, &petnet::disk::sha256(&self.model.bytes()?));
        let file =
            self.embeddings.as_deref().zip(embedding_format).map(|(path, format)| {
                EmbeddingFile::create(path, format, classifier.embedding_len())
            });
        let mut file = file.transpose()?;
        if format == Format::Csv {
            say!("{}", rows::csv_header(&header));
        }
        let bar = terminal::counter("classifying", output);
        let (mut images, mut failed) = (0, 0);
        let began = Instant::now();
        let found = self.classify_images(&classifier, Finished::default(), |row| {
            images += 1;
            failed += u64::from(row.outcome.is_err());
            if let Some(file) = &mut file {
                file.add(&row)?;
            }
            bar.inc(1);
            bar.suspend(|| rows::print(row, &header, format))
        })?;
        bar.finish_and_clear();
        if let Some(file) = file {
            file.finish()?;
        }
        if images > MIN_IMAGES_FOR_SPEED {
            let speed = images as f64 / began.elapsed().as_secs_f64();
            tracing::info!("{images} images, {speed:.1} images/s");
        }
        report_left_out(&found)?;
        if failed > 0 {
            bail!("{failed} of {images} images could not be classified");
        }
        Ok(())
    }

    /// Writes rows into the parts of a folder.
    fn write_parts(&self, folder: PathBuf, output: Output) -> Result<()> {
        let format = match self.format.unwrap_or(Format::Jsonl) {
            Format::Text => {
                let text =
                    "--format text cannot be used with --out, which takes jsonl, csv or parquet";
                return Err(UsageError(text.into()).into());
            }
            Format::Parquet => cloud::require("--format parquet").map(|()| Format::Parquet)?,
            other => other,
        };
        let embedding_format =
            self.embeddings.as_deref().map(EmbeddingFormat::of_parts).transpose()?;
        self.inputs.iter().try_for_each(|input| source::require(input))?;
        let classifier = self.model.open(self.device)?;
        let settings = RunSettings {
            inputs: self.inputs.iter().map(|input| input.display().to_string()).collect(),
            model_sha256: petnet::disk::sha256(&self.model.bytes()?),
            format: format.extension().into(),
            shards: self.shard.count,
            part_size: self.part_size,
            embeddings: embedding_format.map(|format| format.extension().into()),
        };
        let header = RowHeader::new(&classifier, &settings.model_sha256);
        let embeddings = embedding_format.map(|format| (format, classifier.embedding_len()));
        let mut parts = Parts::open(folder, &settings, (format, self.shard), header, embeddings)?;
        let before = parts.progress().clone();
        if parts.is_complete() {
            return report(&before, None, output);
        }
        if before.images > 0 {
            tracing::info!("continuing after {} images in {} parts", before.images, before.parts);
        }
        let bar = terminal::counter("classifying", output);
        bar.set_position(before.images);
        bar.reset_eta();
        let began = Instant::now();
        let found = self.classify_images(&classifier, before.finished(), |row| {
            bar.inc(1);
            parts.add(row)
        })?;
        bar.finish_and_clear();
        report_left_out(&found)?;
        let after = parts.finish()?;
        let speed = (after.images - before.images) as f64 / began.elapsed().as_secs_f64();
        report(&after, Some(speed), output)
    }

    /// Classifies the images of this shard. Returns the numbers of images listed, over all shards, and of files left out.
    fn classify_images(
        &self,
        classifier: &Classifier,
        done: Finished,
        on_row: impl FnMut(Row) -> Result<()>,
    ) -> Result<Listed> {
        let concurrency = Concurrency { readers: self.readers, batch: self.batch_size };
        let list = |send: &mut dyn FnMut(listing::Item) -> Result<()>| {
            let mut selector = ImageSelector::new(self.shard, done, send);
            self.inputs.iter().try_for_each(|input| source::walk(input, &mut selector))?;
            selector.end()
        };
        pipeline::run(concurrency, classifier, list, on_row)
    }
}

impl Format {
    /// Extension of a part's file name.
    fn extension(self) -> &'static str {
        match self {
            Self::Text => "txt",
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }
}

/// Classifies all images of one input; `on_row` gets the path and the outcome of each, in the order of the listing.
/// Errors: when the input cannot be listed, or has no image.
pub(crate) fn classify_all(
    classifier: &Classifier,
    input: &Path,
    mut on_row: impl FnMut(String, Result<Prediction, String>),
) -> Result<()> {
    source::require(input)?;
    let concurrency = Concurrency { readers: 16, batch: 32 };
    let list = |send: &mut dyn FnMut(listing::Item) -> Result<()>| list(input, send);
    let found = pipeline::run(concurrency, classifier, list, |row| {
        on_row(row.path, row.outcome);
        Ok(())
    })?;
    report_left_out(&found).with_context(|| input.display().to_string())
}

/// The bytes of some images of an input, by their paths in its listing.
pub(crate) fn read_images(input: &Path, paths: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    list(input, &mut |item| {
        if paths.contains(&item.path.as_str())
            && let Ok(bytes) = (item.load)()?
        {
            found.push((item.path, bytes));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Lists all images of one input.
fn list(input: &Path, send: &mut dyn FnMut(listing::Item) -> Result<()>) -> Result<Listed> {
    let mut selector = ImageSelector::new(Shard { index: 0, count: 1 }, Finished::default(), send);
    source::walk(input, &mut selector)?;
    selector.end()
}

/// Logs the number of files left out, by reason.
/// Errors: when there is no image at all.
fn report_left_out(found: &Listed) -> Result<()> {
    let Listed { images, left_out } = found;
    match (images, left_out.total()) {
        (0, 0) => bail!("no image found"),
        (0, count) => bail!("no image among {count} files: {left_out}"),
        (_, 0) => {}
        (_, count) => tracing::info!("{count} files left out: {left_out}"),
    }
    Ok(())
}

/// Prints the totals of the shard. `speed` is this run's, in images per second; `None` where the shard was complete.
fn report(progress: &ShardProgress, speed: Option<f64>, output: Output) -> Result<()> {
    let ShardProgress { images, failed, parts, .. } = progress;
    if output.json {
        let summary = serde_json::json!({
            "photos": images, "failed": failed, "parts": parts, "photos_per_second": speed,
        });
        say!("{summary}");
        return Ok(());
    }
    let failed = if *failed > 0 { format!(", {failed} of them failed") } else { String::new() };
    let speed = speed.map_or("; was complete".into(), |speed| format!("; {speed:.1} images/s"));
    say!("{images} images in {parts} parts{failed}{speed}");
    Ok(())
}
