//! `prepare`: raw images to a validated, deduplicated, split data set.

use std::path::{Path, PathBuf};

use anyhow::Result;
use petnet::augment::{Augment, Key};
use petnet::dataset::{
    LabelOptions, Labels, Layout, Manifest, Pattern, Prepare as Settings, Reading,
};
use petnet::disk::temporary_folder;
use petnet::preprocess::{Limits, Pixels, Preprocess, Resize, decode};
use petnet::{Dataset, dataset::Split};
use tempfile::TempDir;

use crate::error::UsageError;
use crate::predict::{copy_bucket, is_bucket};
use crate::terminal::{self, Output};
use crate::{encode, files};

/// Validate, deduplicate, downscale and split a folder, zip or tar archive of images
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train prepare --raw cats-vs-dogs.zip --out data/processed --preview sheet.png
  petnet-train prepare --raw photos --labels labels.csv          # path,label[,split]
  petnet-train prepare --raw train.zip --label-pattern '(cat|dog)\\.\\d+'    # cat.0.jpg, dog.0.jpg, ...
  petnet-train prepare --raw photos --labels tags.csv --multi-label    # path,label with labels like cat|dog
  petnet-train prepare --raw photos --labels feedback.jsonl      # GET /feedback/export of the service

Layouts that are recognised: one folder per class; folders train, val and test (or training, valid, validation, dev,
testing) above or below the folders of the classes, whose splits are kept; a labels.csv or metadata.csv in the folder
of the images.")]
pub(crate) struct Prepare {
    /// Folder, zip or tar archive of images; with the feature `cloud` also an address such as s3://bucket/images
    #[arg(long)]
    raw: PathBuf,
    /// Folder to write the prepared data set to; replaced if an earlier run prepared it
    #[arg(long, default_value = "data/processed")]
    out: PathBuf,
    /// Short side of the stored images, in pixels
    #[arg(long, default_value_t = 160)]
    size: u32,
    /// Seed of the random split
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Shares of the training, validation and test split; they sum to 1
    #[arg(long, default_value = "0.8,0.1,0.1", value_delimiter = ',')]
    split: Vec<f64>,
    /// Layout of the images
    #[arg(long, value_enum, default_value_t, value_name = "LAYOUT")]
    layout: LayoutName,
    /// Labels: CSV with a header, or one JSON object per line. The image is named by `path` (or `file_name`, `image`, `id`)
    /// or by the digest of its file, `sha256`; the class by `label` (or `class`, `category`); `split` is optional. These labels
    /// override those of folders; images in a folder `unlabelled` need them. Labels that the service accepted without an
    /// API key apply to such images only
    #[arg(long, value_name = "LABELS.csv|.jsonl")]
    labels: Option<PathBuf>,
    /// Read labels as any number of classes per image: `cat|dog`, empty, or a list in JSON
    #[arg(long, conflicts_with = "label_pattern")]
    multi_label: bool,
    /// Regular expression for file names; its first group is the class
    #[arg(long, value_name = "REGEX", conflicts_with = "layout")]
    label_pattern: Option<Pattern>,
    /// Largest image that is decoded, in pixels; a JPEG that is decoded at a reduced size may have four times as many
    #[arg(long, value_name = "PIXELS", default_value_t = Limits::default().max_pixels)]
    max_pixels: u64,
    /// Let labels that were given without an API key override folders, too
    #[arg(long, requires = "labels")]
    trust_open_labels: bool,
    /// Also write a PNG with four images of each class, each next to seven augmentations of it
    #[arg(long, value_name = "SHEET.png")]
    preview: Option<PathBuf>,
}

impl Prepare {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let wrong = |_| UsageError("--split takes three shares, e.g. 0.8,0.1,0.1".into());
        let shares: [f64; 3] = self.split.as_slice().try_into().map_err(wrong)?;
        let multi_label = self.multi_label;
        let options = LabelOptions { trust_unauthenticated: self.trust_open_labels, multi_label };
        let labels = self.labels.as_deref().map(|path| Labels::read(path, options));
        let labels = labels.transpose()?.unwrap_or_default();
        if labels.unauthenticated() > 0 {
            tracing::warn!(
                labels = labels.unauthenticated(),
                "given without an API key, these labels do not override folders unless --trust-open-labels is set"
            );
        }
        let limits = Limits { max_pixels: self.max_pixels, ..Limits::default() };
        let layout = self.layout.into();
        let pattern = self.label_pattern;
        let reading = Reading { layout, labels, pattern, multi_label, limits };
        let settings = Settings { size: self.size, seed: self.seed, shares, reading };
        let counter = terminal::counter("checking images", output);
        if let Some(parent) = self.out.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let copy = is_bucket(&self.raw).then(|| download(&self.raw, &self.out, output));
        let copy = copy.transpose()?;
        let raw = copy.as_ref().map_or(&self.raw, |(_, images)| images);
        let manifest = settings.run(raw, &self.out, || counter.inc(1))?;
        counter.finish_and_clear();
        if let Some(sheet) = &self.preview {
            draw_preview(&self.out, sheet)?;
        }
        if output.json {
            say!("{}", serde_json::to_string(&summary(&manifest))?);
        } else {
            print_summary(&manifest, &self.out.display().to_string());
        }
        Ok(())
    }
}

/// Copies images from a bucket into a temporary folder next to the output. Returns that folder, and the images: the same
/// folder, or the archive in it.
fn download(address: &Path, out: &Path, output: Output) -> Result<(TempDir, PathBuf)> {
    let folder = temporary_folder(out)?;
    let counter = terminal::counter("copying objects", output);
    let images = copy_bucket(address, folder.path(), &|| counter.inc(1))?;
    counter.finish_and_clear();
    Ok((folder, images))
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum LayoutName {
    /// Recognised from folders and tables
    #[default]
    Auto,
    /// One folder per class
    Folders,
    /// Folders of splits above or below the folders of the classes
    Splits,
    /// A labels.csv, labels.jsonl, metadata.csv or metadata.jsonl in the folder of the images
    Table,
}

impl From<LayoutName> for Layout {
    fn from(name: LayoutName) -> Self {
        match name {
            LayoutName::Auto => Self::Auto,
            LayoutName::Folders => Self::Folders,
            LayoutName::Splits => Self::Splits,
            LayoutName::Table => Self::Table,
        }
    }
}

fn summary(manifest: &Manifest) -> serde_json::Value {
    serde_json::json!({
        "readable": manifest.images.len(),
        "refused": manifest.rejects,
        "left_out": manifest.left_out,
        "notes": manifest.notes,
        "classes": manifest.classes,
        "counts": manifest.counts,
        "duplicate_groups": manifest.duplicates.len(),
        "exact_groups": manifest.duplicates.iter().filter(|d| d.exact).count(),
        "groups_across_splits": manifest.duplicates.iter().filter(|d| d.across_splits).count(),
        "conflicts": manifest.duplicates.iter().filter(|d| d.conflict).collect::<Vec<_>>(),
        "digests": manifest.digests,
    })
}

fn print_summary(manifest: &Manifest, out: &str) {
    for note in &manifest.notes {
        say!("{note}");
    }
    say!("{} images, {} files left out", manifest.images.len(), manifest.left_out.total());
    for (reason, count) in manifest.left_out.iter() {
        say!("{count:>7}  {reason}");
    }
    for reject in &manifest.rejects {
        say!("  refused {}: {}", reject.path, reject.reason);
    }
    let members: usize = manifest.duplicates.iter().map(|d| d.members.len()).sum();
    let exact = manifest.duplicates.iter().filter(|d| d.exact).count();
    let across: Vec<_> = manifest.duplicates.iter().filter(|d| d.across_splits).collect();
    let spans = match across.len() {
        0 => "none spans two splits".to_string(),
        count => {
            format!("{count} span given splits: the test images are among the training images")
        }
    };
    say!(
        "{} duplicate groups with {members} images ({exact} exact, {} near); {spans}",
        manifest.duplicates.len(),
        manifest.duplicates.len() - exact
    );
    for group in across {
        say!("  across splits: {}", group.members.join(" = "));
    }
    for conflict in manifest.duplicates.iter().filter(|d| d.conflict) {
        say!("  conflicting labels: {}", conflict.members.join(" = "));
    }
    for split in Split::ALL {
        if let Some(counts) = manifest.counts.get(split.name()) {
            let classes: Vec<String> = counts.iter().map(|(c, n)| format!("{c} {n}")).collect();
            say!("{:5} {}", split.name(), classes.join(", "));
        }
    }
    say!("written to {out}");
}

/// Writes a sheet with four images per class: each as the network sees it, then seven augmentations of it.
fn draw_preview(prepared: &Path, sheet: &Path) -> Result<()> {
    const SIDE: u32 = 96;
    const COLUMNS: u32 = 8;
    let train = Dataset::open(prepared)?.part(Split::Train)?;
    let chosen: Vec<usize> = (0..train.classes().len())
        .flat_map(|class| {
            let has = |i: &usize| train.samples()[*i].target.classes().contains(&class);
            (0..train.len()).filter(has).take(4).collect::<Vec<_>>()
        })
        .collect();
    let to = Preprocess { size: SIDE, resize: Resize::Squeeze };
    let mut tiles = Vec::new();
    for index in chosen {
        let image = decode(&train.read(index)?, &Limits::default())?;
        for column in 0..COLUMNS {
            let augment = if column == 0 { Augment::none() } else { Augment::default() };
            let key = Key { seed: 42, epoch: column as usize, index };
            tiles.push(augment.apply(&image, to, key)?);
        }
    }
    files::write(sheet, &contact_sheet(&tiles, COLUMNS, SIDE)?)
}

/// Square tiles in rows, as a PNG.
fn contact_sheet(tiles: &[Pixels], columns: u32, side: u32) -> Result<Vec<u8>> {
    let rows = (tiles.len() as u32).div_ceil(columns);
    let mut sheet = image::RgbImage::new(columns * side, rows * side);
    for (index, tile) in (0u32..).zip(tiles) {
        let image = image::RgbImage::from_raw(side, side, tile.data().to_vec()).unwrap_or_default();
        let (x, y) = (index % columns * side, index / columns * side);
        image::imageops::replace(&mut sheet, &image, x.into(), y.into());
    }
    encode::png(sheet.as_raw(), sheet.width(), sheet.height())
}
