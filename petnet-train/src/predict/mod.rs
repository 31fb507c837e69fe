//! `predict`: classify photos, one or millions of them. What is asked for; listing, scoring and keeping lie beside.

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

use self::embeddings::{EmbeddingFile, Form};
use self::listing::{Done, Found, Listing, Shard};
use self::parts::{Parts, Progress, Record};
use self::pipeline::{Lanes, Row};
use self::rows::Model;
pub(crate) use self::source::{copy_bucket, images_below, is_bucket};
use crate::error::UsageError;
use crate::model::ModelName;
use crate::terminal::{self, Output};

/// From here on, a speed says something.
const MANY: u64 = 100;

/// Classify photos: files, folders, globs, tar and zip archives, buckets.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train predict rex.jpg tom.jpg
  petnet-train predict --model models/best.safetensors --format csv photos/ > labels.csv
  petnet-train predict --format jsonl 'photos/**/*.jpg' shards/part-0.tar holiday.zip > answers.jsonl

Millions of photos: answers go to a folder, in parts. Killed and started again, the same command goes on
where it was; every photo is scored once. Four machines share the work, here this is the first of them:
  petnet-train predict --out answers --format csv --shard 0/4 photos/
  petnet-train predict --out answers --embeddings npy photos/

Embeddings, vectors of norm 1 to compare photos by, in the same pass; `np.load(\"cats.npy\")` reads them:
  petnet-train predict --embeddings cats.npy photos/    # [photos, values]; cats.paths.txt has a path a row
Built with `--features cloud`, from a bucket into Parquet. Credentials come from the variables that the
clouds' own tools read (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, AWS_ALLOW_HTTP,
GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_NAME, ...):
  petnet-train predict --out answers --format parquet s3://photos/inbox/
  petnet-train predict --embeddings cats.parquet photos/
  petnet-train predict --out answers --format parquet 's3://photos/shards/part-*.tar'")]
pub(crate) struct Predict {
    /// Model file, or `pretrained` for the bundled one
    #[arg(long, default_value = "pretrained")]
    model: ModelName,
    /// Photos, folders, globs in quotes, .tar or .zip archives, s3://, gs:// or az:// prefixes
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// How to write [default: text, with --out jsonl]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Device to compute on: auto, cpu, ndarray, wgpu or wgpu:N (discrete GPU N, from 0)
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Write into this folder, in parts; a run that was killed goes on when started again
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Photos in a part
    #[arg(long, default_value_t = 10_000, requires = "out", value_parser = clap::value_parser!(u64).range(1..))]
    part_size: u64,
    /// Write embeddings, too: a .npy or .parquet file; with --out `npy` or `parquet`, a file for each part
    #[arg(long, value_name = "FILE")]
    embeddings: Option<PathBuf>,
    /// Take the I-th of N shares of the photos; I is from 0 to N - 1
    #[arg(long, value_name = "I/N", default_value = "0/1")]
    shard: Shard,
    /// Photos that are read at once; more hide a slow network
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    readers: usize,
    /// Photos that pass through the network together
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
        terminal::start_log(output, "info");
        match &self.out {
            Some(folder) => self.keep(folder.clone(), output),
            None => self.print(output),
        }
    }

    /// Rows to standard output.
    fn print(&self, output: Output) -> Result<()> {
        let format = match self.format {
            Some(Format::Parquet) => {
                return Err(UsageError("--format parquet needs --out".into()).into());
            }
            _ if output.json => Format::Jsonl,
            asked => asked.unwrap_or(Format::Text),
        };
        let form = self.embeddings.as_deref().map(Form::of_file).transpose()?;
        let classifier = self.model.open(self.device)?;
        let model = Model::new(&classifier, &petnet::sha256(&self.model.bytes()?));
        let file = self
            .embeddings
            .as_deref()
            .zip(form)
            .map(|(path, form)| EmbeddingFile::create(path, form, classifier.embedding_len()));
        let mut file = file.transpose()?;
        if format == Format::Csv {
            say!("{}", rows::csv_header(&model));
        }
        let bar = terminal::counter("classifying", output);
        let (mut photos, mut failed) = (0, 0);
        let began = Instant::now();
        let found = self.score(&classifier, Done::default(), |row| {
            photos += 1;
            failed += u64::from(row.outcome.is_err());
            if let Some(file) = &mut file {
                file.add(&row)?;
            }
            bar.inc(1);
            bar.suspend(|| rows::print(row, &model, format))
        })?;
        bar.finish_and_clear();
        if let Some(file) = file {
            file.finish()?;
        }
        if photos > MANY {
            let speed = photos as f64 / began.elapsed().as_secs_f64();
            tracing::info!("{photos} photos, {speed:.1} photos/s");
        }
        say_left_out(&found)?;
        if failed > 0 {
            bail!("{failed} of {photos} photos could not be classified");
        }
        Ok(())
    }

    /// Rows into a folder.
    fn keep(&self, folder: PathBuf, output: Output) -> Result<()> {
        let format = match self.format.unwrap_or(Format::Jsonl) {
            Format::Text => {
                let text = "--format text is for people: --out takes jsonl, csv or parquet";
                return Err(UsageError(text.into()).into());
            }
            Format::Parquet => cloud::require("--format parquet").map(|()| Format::Parquet)?,
            other => other,
        };
        let form = self.embeddings.as_deref().map(Form::of_parts).transpose()?;
        self.inputs.iter().try_for_each(|input| source::require(input))?;
        let classifier = self.model.open(self.device)?;
        let record = Record {
            inputs: self.inputs.iter().map(|input| input.display().to_string()).collect(),
            model_sha256: petnet::sha256(&self.model.bytes()?),
            format: format.ending().into(),
            shards: self.shard.count,
            part_size: self.part_size,
            embeddings: form.map(|form| form.ending().into()),
        };
        let model = Model::new(&classifier, &record.model_sha256);
        let embeddings = form.map(|form| (form, classifier.embedding_len()));
        let mut parts = Parts::open(folder, &record, (format, self.shard), model, embeddings)?;
        let before = parts.progress().clone();
        if parts.is_complete() {
            return report(&before, None, output);
        }
        if before.photos > 0 {
            tracing::info!("going on after {} photos in {} parts", before.photos, before.parts);
        }
        let bar = terminal::counter("classifying", output);
        bar.set_position(before.photos);
        bar.reset_eta();
        let began = Instant::now();
        let found = self.score(&classifier, before.done(), |row| {
            bar.inc(1);
            parts.add(row)
        })?;
        bar.finish_and_clear();
        say_left_out(&found)?;
        let after = parts.finish()?;
        let speed = (after.photos - before.photos) as f64 / began.elapsed().as_secs_f64();
        report(&after, Some(speed), output)
    }

    /// The listed photos of all shards, and what else there was.
    fn score(
        &self,
        classifier: &Classifier,
        done: Done,
        take: impl FnMut(Row) -> Result<()>,
    ) -> Result<Found> {
        let lanes = Lanes { readers: self.readers, batch: self.batch_size };
        let list = |send: &mut dyn FnMut(listing::Item) -> Result<()>| {
            let mut listing = Listing::new(self.shard, done, send);
            self.inputs.iter().try_for_each(|input| source::walk(input, &mut listing))?;
            listing.end()
        };
        pipeline::run(lanes, classifier, list, take)
    }
}

impl Format {
    /// Of a part's file name.
    fn ending(self) -> &'static str {
        match self {
            Self::Text => "txt",
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }
}

/// Classifies all images behind one input; `take` gets the path and the outcome of each, in the order of their listing.
///
/// # Errors
/// When the input cannot be listed, or has no image.
pub(crate) fn each(
    classifier: &Classifier,
    input: &Path,
    mut take: impl FnMut(String, Result<Prediction, String>),
) -> Result<()> {
    source::require(input)?;
    let lanes = Lanes { readers: 16, batch: 32 };
    let list = |send: &mut dyn FnMut(listing::Item) -> Result<()>| list(input, send);
    let found = pipeline::run(lanes, classifier, list, |row| {
        take(row.path, row.outcome);
        Ok(())
    })?;
    say_left_out(&found).with_context(|| input.display().to_string())
}

/// The bytes of some images behind an input, by their paths in its listing.
///
/// # Errors
/// As [`each`].
pub(crate) fn read(input: &Path, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    list(input, &mut |item| {
        if wanted.contains(&item.path.as_str())
            && let Ok(bytes) = (item.load)()?
        {
            found.push((item.path, bytes));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Sends all images behind one input.
fn list(input: &Path, send: &mut dyn FnMut(listing::Item) -> Result<()>) -> Result<Found> {
    let mut listing = Listing::new(Shard { index: 0, count: 1 }, Done::default(), send);
    source::walk(input, &mut listing)?;
    listing.end()
}

/// Silence would be a fault: files that are no photos are counted by reason.
///
/// # Errors
/// When there is no photo at all.
fn say_left_out(found: &Found) -> Result<()> {
    let Found { photos, left_out } = found;
    match (photos, left_out.total()) {
        (0, 0) => bail!("no photo found"),
        (0, count) => bail!("no photo among {count} files: {left_out}"),
        (_, 0) => {}
        (_, count) => tracing::info!("{count} files left out: {left_out}"),
    }
    Ok(())
}

/// `speed` is this run's, in photos a second; none where there was nothing left to do.
fn report(progress: &Progress, speed: Option<f64>, output: Output) -> Result<()> {
    let Progress { photos, failed, parts, .. } = progress;
    if output.json {
        let summary = serde_json::json!({
            "photos": photos, "failed": failed, "parts": parts, "photos_per_second": speed,
        });
        say!("{summary}");
        return Ok(());
    }
    let failed = if *failed > 0 { format!(", {failed} of them failed") } else { String::new() };
    let speed = speed.map_or("; was complete".into(), |speed| format!("; {speed:.1} photos/s"));
    say!("{photos} photos in {parts} parts{failed}{speed}");
    Ok(())
}
