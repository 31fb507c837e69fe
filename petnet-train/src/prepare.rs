//! `prepare`: raw photos to a checked, deduplicated, split data set.

use std::path::{Path, PathBuf};

use anyhow::Result;
use petnet::augment::{Augment, Key};
use petnet::dataset::{
    LabelOptions, Labels, Layout, Manifest, Pattern, Prepare as Settings, Reading,
};
use petnet::preprocess::{Limits, Pixels, Preprocess, Resize, decode};
use petnet::{Dataset, dataset::Split};

use crate::config::ConfigError;
use crate::predict::{copy_bucket, is_bucket};
use crate::{Output, report, terminal};

/// Check, deduplicate, shrink and split a folder, zip or tar archive of photos.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train prepare --raw cats-vs-dogs.zip --out data/processed --preview sheet.png
  petnet-train prepare --raw photos --labels labels.csv          # path,label[,split]
  petnet-train prepare --raw train.zip --label-pattern '(cat|dog)\\.\\d+'    # cat.0.jpg, dog.0.jpg, ...
  petnet-train prepare --raw photos --labels tags.csv --multi-label    # path,label with labels like cat|dog
  petnet-train prepare --raw photos --labels feedback.jsonl      # GET /feedback/export of the service

Layouts that are found: a folder a class; folders train, val and test (or training, valid, validation, dev, testing)
above or below those of the classes, whose splits are kept; a labels.csv or metadata.csv beside the photos.")]
pub(crate) struct Prepare {
    /// Folder, zip or tar archive of photos, or with the feature `cloud` an address such as s3://bucket/photos
    #[arg(long)]
    raw: PathBuf,
    /// Folder to write; replaced if an earlier run prepared it
    #[arg(long, default_value = "data/processed")]
    out: PathBuf,
    /// Short side of the stored photos in pixels
    #[arg(long, default_value_t = 160)]
    size: u32,
    /// Decides the split
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Shares of training, validation and test
    #[arg(long, default_value = "0.8,0.1,0.1", value_delimiter = ',')]
    split: Vec<f64>,
    /// Layout of the photos, where it should not be guessed
    #[arg(long, value_enum, default_value_t, value_name = "LAYOUT")]
    layout: LayoutName,
    /// Labels: CSV with a line of column names, or a JSON object a line. The photo stands in `path` (or `file_name`, `image`,
    /// `id`) or, by the digest of its file, in `sha256`; the class in `label` (or `class`, `category`), and there may be a
    /// `split`. Labels go before folders; photos in a folder `unlabelled` need them. Labels that the service took without an API
    /// key count for such photos alone
    #[arg(long, value_name = "LABELS.csv|.jsonl")]
    labels: Option<PathBuf>,
    /// A photo has any number of classes: a label is `cat|dog`, or empty, or a list in JSON
    #[arg(long, conflicts_with = "label_pattern")]
    multi_label: bool,
    /// A regular expression for files' names, whose first group is the class
    #[arg(long, value_name = "REGEX", conflicts_with = "layout")]
    label_pattern: Option<Pattern>,
    /// Most pixels of a photo that are decoded; JPEG that is decoded at a reduced size may have four times as many
    #[arg(long, value_name = "PIXELS", default_value_t = Limits::default().max_pixels)]
    max_pixels: u64,
    /// Let labels that were given without an API key go before folders too
    #[arg(long, requires = "labels")]
    trust_open_labels: bool,
    /// Also draw a sheet of photos beside what augmentation makes of them
    #[arg(long, value_name = "SHEET.png")]
    preview: Option<PathBuf>,
}

impl Prepare {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        terminal::start_log(output, "info");
        let shares: [f64; 3] = self
            .split
            .as_slice()
            .try_into()
            .map_err(|_| ConfigError("--split takes three shares, e.g. 0.8,0.1,0.1".into()))?;
        let multi_label = self.multi_label;
        let options = LabelOptions { trust_open: self.trust_open_labels, multi_label };
        let labels = self.labels.as_deref().map(|path| Labels::read(path, options));
        let labels = labels.transpose()?.unwrap_or_default();
        if labels.open() > 0 {
            tracing::warn!(
                labels = labels.open(),
                "given without an API key, they do not go before folders; --trust-open-labels lets them"
            );
        }
        let limits = Limits { max_pixels: self.max_pixels, ..Limits::default() };
        let layout = self.layout.into();
        let pattern = self.label_pattern;
        let reading = Reading { layout, labels, pattern, multi_label, limits };
        let settings = Settings { size: self.size, seed: self.seed, shares, reading };
        let counter = terminal::counter("checking photos", output);
        if let Some(parent) = self.out.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let download = is_bucket(&self.raw).then(|| Download::of(&self.raw, &self.out, output));
        let download = download.transpose()?;
        let raw = download.as_ref().map_or(&self.raw, |download| &download.photos);
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

/// Photos of a bucket in a folder beside the output, for as long as they are needed.
struct Download {
    folder: PathBuf,
    /// The folder, or an archive in it.
    photos: PathBuf,
}

impl Download {
    fn of(address: &Path, out: &Path, output: Output) -> Result<Self> {
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let folder = out.with_file_name(format!(".{name}.{}.download", std::process::id()));
        // A killed run of the same number may have left one.
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        std::fs::create_dir(&folder)?;
        // Dropped, and so removed, where copying fails.
        let mut download = Self { photos: folder.clone(), folder };
        let counter = terminal::counter("copying objects", output);
        download.photos = copy_bucket(address, &download.folder, &|| counter.inc(1))?;
        counter.finish_and_clear();
        Ok(download)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // Nothing depends on it: what is left only takes space.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum LayoutName {
    /// As the folders and tables show
    #[default]
    Auto,
    /// A folder a class
    Folders,
    /// Folders of splits above or below those of the classes
    Splits,
    /// A labels.csv, labels.jsonl, metadata.csv or metadata.jsonl beside the photos
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
        "readable": manifest.photos.len(),
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
    say!("{} photos, {} files left out", manifest.photos.len(), manifest.left_out.total());
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
        count => format!("{count} span given splits: what is learned is also tested on"),
    };
    say!(
        "{} duplicate groups with {members} photos ({exact} exact, {} near); {spans}",
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

/// Four photos a class: the photo as the network sees it, then seven augmentations of it.
fn draw_preview(prepared: &std::path::Path, sheet: &std::path::Path) -> Result<()> {
    const SIDE: u32 = 96;
    const COLUMNS: u32 = 8;
    let train = Dataset::open(prepared)?.part(Split::Train)?;
    let chosen: Vec<usize> = (0..train.classes().len())
        .flat_map(|class| {
            let has = |i: &usize| train.samples()[*i].target.classes().contains(&class);
            let members = (0..train.len()).filter(has);
            members.take(4).collect::<Vec<_>>()
        })
        .collect();
    let to = Preprocess { size: SIDE, resize: Resize::Squeeze };
    let mut tiles = Vec::new();
    for index in chosen {
        let photo = decode(&train.read(index)?, &Limits::default())?;
        for column in 0..COLUMNS {
            let augment = if column == 0 { Augment::none() } else { Augment::default() };
            let key = Key { seed: 42, epoch: column as usize, index };
            tiles.push(augment.apply(&photo, to, key)?);
        }
    }
    report::files::write(sheet, &contact_sheet(&tiles, COLUMNS, SIDE)?)
}

/// Square tiles in rows, as a PNG.
fn contact_sheet(tiles: &[Pixels], columns: u32, side: u32) -> Result<Vec<u8>> {
    let rows = (tiles.len() as u32).div_ceil(columns);
    let mut sheet = image::RgbImage::new(columns * side, rows * side);
    for (place, tile) in (0u32..).zip(tiles) {
        let picture =
            image::RgbImage::from_raw(side, side, tile.data().to_vec()).unwrap_or_default();
        let (x, y) = (place % columns * side, place / columns * side);
        image::imageops::replace(&mut sheet, &picture, x.into(), y.into());
    }
    report::charts::png(sheet.as_raw(), sheet.width(), sheet.height())
}
