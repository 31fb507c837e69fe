//! `prepare`: raw photos to a checked, deduplicated, split data set.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use petnet::augment::{Augment, Key};
use petnet::dataset::{Label, Manifest, Prepare as Settings};
use petnet::preprocess::{Limits, Pixels, Preprocess, Resize, decode};
use petnet::{Dataset, dataset::Split};

use crate::config::ConfigError;
use crate::{Output, report, terminal};

/// Check, deduplicate, shrink and split a folder or zip of photos.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  petnet-train prepare --raw cats-vs-dogs.zip --out data/processed --preview sheet.png
  petnet-train prepare --raw photos --labels feedback.jsonl"
)]
pub(crate) struct Prepare {
    /// Folder or zip with one sub-folder per class
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
    /// Labels that people gave, as `GET /feedback/export` hands them out: a JSON object a line with
    /// `sha256` and `label`; they go before folders, and photos in a folder `unlabelled` need them. Labels that were
    /// given without an API key count for such photos alone
    #[arg(long, value_name = "FEEDBACK.jsonl")]
    labels: Option<PathBuf>,
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
        let labels = self.labels.as_deref().map(|path| read_labels(path, self.trust_open_labels));
        let labels = labels.transpose()?.unwrap_or_default();
        let open = labels.values().filter(|label| !label.before_folder).count();
        if open > 0 {
            tracing::warn!(
                labels = open,
                "given without an API key, they do not go before folders; --trust-open-labels lets them"
            );
        }
        let settings = Settings { size: self.size, seed: self.seed, shares, labels };
        let counter = terminal::counter("checking photos", output);
        if let Some(parent) = self.out.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let manifest = settings.run(&self.raw, &self.out, || counter.inc(1))?;
        counter.finish_and_clear();
        if let Some(sheet) = &self.preview {
            draw_preview(&self.out, sheet)?;
        }
        if output.json {
            println!("{}", serde_json::to_string(&summary(&manifest))?);
        } else {
            print_summary(&manifest, &self.out.display().to_string());
        }
        Ok(())
    }
}

/// Label by digest; of two labels for one photo the later line's.
fn read_labels(path: &Path, trust_open: bool) -> Result<HashMap<String, Label>> {
    #[derive(serde::Deserialize)]
    struct Given {
        sha256: String,
        label: String,
        /// Lists that people write themselves do not say it.
        #[serde(default = "yes")]
        authenticated: bool,
    }
    fn yes() -> bool {
        true
    }
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let given = lines.map(|(number, line)| {
        let Given { sha256, label, authenticated } = serde_json::from_str(line)
            .with_context(|| format!("{}, line {}", path.display(), number + 1))?;
        Ok((sha256, Label { class: label, before_folder: authenticated || trust_open }))
    });
    given.collect()
}

fn summary(manifest: &Manifest) -> serde_json::Value {
    serde_json::json!({
        "readable": manifest.photos.len(),
        "refused": manifest.rejects,
        "ignored": manifest.ignored,
        "classes": manifest.classes,
        "counts": manifest.counts,
        "duplicate_groups": manifest.duplicates.len(),
        "exact_groups": manifest.duplicates.iter().filter(|d| d.exact).count(),
        "conflicts": manifest.duplicates.iter().filter(|d| d.conflict).collect::<Vec<_>>(),
        "digests": manifest.digests,
    })
}

fn print_summary(manifest: &Manifest, out: &str) {
    println!(
        "{} readable, {} refused, {} ignored (no pictures)",
        manifest.photos.len(),
        manifest.rejects.len(),
        manifest.ignored
    );
    for reject in &manifest.rejects {
        println!("  refused {}: {}", reject.path, reject.reason);
    }
    let members: usize = manifest.duplicates.iter().map(|d| d.members.len()).sum();
    let exact = manifest.duplicates.iter().filter(|d| d.exact).count();
    println!(
        "{} duplicate groups with {members} photos ({exact} exact, {} near); none spans two splits",
        manifest.duplicates.len(),
        manifest.duplicates.len() - exact
    );
    for conflict in manifest.duplicates.iter().filter(|d| d.conflict) {
        println!("  conflicting labels: {}", conflict.members.join(" = "));
    }
    for split in Split::ALL {
        if let Some(counts) = manifest.counts.get(split.name()) {
            let classes: Vec<String> = counts.iter().map(|(c, n)| format!("{c} {n}")).collect();
            println!("{:5} {}", split.name(), classes.join(", "));
        }
    }
    println!("written to {out}");
}

/// Four photos a class: the photo as the network sees it, then seven augmentations of it.
fn draw_preview(prepared: &std::path::Path, sheet: &std::path::Path) -> Result<()> {
    const SIDE: u32 = 96;
    const COLUMNS: u32 = 8;
    let train = Dataset::open(prepared)?.part(Split::Train)?;
    let chosen: Vec<usize> = (0..train.classes().len())
        .flat_map(|class| {
            let members = (0..train.len()).filter(|i| train.samples()[*i].class == class);
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
