//! `review`: likely label errors, outliers, bad images and duplicates of a data set, and a page to correct them.

mod corrections;
mod page;
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;
use petnet::review::{LabelSuspect, Review as Findings, Suspect};
use petnet::{Classifier, Dataset, Device};
use serde_json::json;

use crate::files;
use crate::model::ModelName;
use crate::terminal::{self, Output};
use corrections::Corrections;
use page::{Card, List, Page};

/// Find label errors, outliers and duplicates, and correct them on a page
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train review data/processed                    # writes review/index.html and review/review.json
  petnet-train review photos --serve                    # http://127.0.0.1:8123: keep, relabel or drop by key
  petnet-train prepare --raw photos --labels review/corrections.csv

Label errors are found by confident learning (Northcutt et al., 2021): a linear layer on the model's features is fitted
to four fifths of the images and predicts the last fifth, five times. The served page writes every decision to
corrections.csv immediately.")]
pub(crate) struct Review {
    /// Labelled images: any input of `prepare`, or a prepared folder
    data: PathBuf,
    /// Model file whose features compare the images, or `pretrained` for the bundled one
    #[arg(long, default_value = "pretrained")]
    model: ModelName,
    /// Folder to write review.json, the page and corrections.csv to
    #[arg(long, default_value = "review")]
    out: PathBuf,
    /// Serve the page on this address until Ctrl-C, and save decisions
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "127.0.0.1:8123")]
    serve: Option<SocketAddr>,
    /// Most images in each list of the page
    #[arg(long, value_name = "N", default_value_t = 200)]
    most: usize,
    /// Device to compute on: auto, cpu, ndarray, wgpu or wgpu:N (discrete GPU N, from 0)
    #[arg(long, default_value = "cpu")]
    device: Device,
}

impl Review {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let classifier = self.model.open(self.device)?.with_mirrors(true);
        let counter = terminal::counter("reading images", output);
        let dataset = Dataset::open(&self.data)?;
        counter.finish_and_clear();
        for note in dataset.notes() {
            tracing::info!("{note}");
        }
        if dataset.left_out().total() > 0 {
            tracing::info!("{} files left out: {}", dataset.left_out().total(), dataset.left_out());
        }
        let findings = analyse(&dataset, &classifier, output)?;
        std::fs::create_dir_all(&self.out)?;
        let file = self.out.join("review.json");
        files::write_json(&file, &summary(&dataset, &findings, self.most))?;
        let lists = lists(&dataset, &findings, self.most);
        let page =
            Page { dataset: &dataset, data: &self.data, lists, agreement: findings.agreement };
        let index = self.out.join("index.html");
        if self.serve.is_none() {
            files::write(&index, page.html(true)?.as_bytes())?;
        }
        if output.json {
            say!("{}", summary(&dataset, &findings, self.most));
        } else {
            print_findings(&dataset, &findings);
            say!("written to {}", if self.serve.is_some() { file } else { index }.display());
        }
        match self.serve {
            Some(address) => {
                let corrections = Corrections::open(&self.out.join("corrections.csv"))?;
                server::serve(address, &page, corrections)
            }
            None => Ok(()),
        }
    }
}

fn analyse(dataset: &Dataset, classifier: &Classifier, output: Output) -> Result<Findings> {
    let bar = terminal::bar(dataset.len() as u64, "analysing", output);
    let findings = Findings::run(dataset, classifier, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(findings)
}

/// The label of an image.
fn given(dataset: &Dataset, image: usize) -> String {
    dataset.class_names(&dataset.samples()[image]).join("|")
}

fn summary(dataset: &Dataset, findings: &Findings, most: usize) -> serde_json::Value {
    let path = |image: usize| dataset.samples()[image].path.display().to_string();
    let class = |number: usize| &dataset.classes()[number];
    let label = |suspect: &LabelSuspect| {
        json!({
            "path": path(suspect.image), "given": given(dataset, suspect.image),
            "likely": class(suspect.likely), "given_probability": suspect.given_probability,
            "likely_probability": suspect.likely_probability, "confident": suspect.confident,
        })
    };
    let others = |list: &[Suspect]| -> Vec<_> {
        let first = list.iter().take(most);
        first.map(|s| json!({ "path": path(s.image), "value": s.value })).collect()
    };
    let groups = findings.duplicates.iter();
    json!({
        "photos": dataset.len(),
        "left_out": dataset.left_out(),
        "agreement": findings.agreement,
        "labels": findings.labels.iter().map(label).collect::<Vec<_>>(),
        "outliers": others(&findings.outliers),
        "blurred": others(&findings.blurred),
        "dark": others(&findings.dark),
        "tiny": others(&findings.tiny),
        "duplicates": groups
            .map(|group| group.iter().map(|image| path(*image)).collect::<Vec<_>>())
            .collect::<Vec<_>>(),
    })
}

fn print_findings(dataset: &Dataset, findings: &Findings) {
    let confident = findings.labels.iter().filter(|suspect| suspect.confident).count();
    let across = dataset.conflicts().len();
    say!(
        "{} images; the labels of {:.2} % agree with the prediction",
        dataset.len(),
        findings.agreement * 100.0
    );
    say!("{} likely label errors, {confident} of them confident", findings.labels.len());
    say!("{} groups of duplicates, {across} with different labels", findings.duplicates.len());
    for suspect in findings.labels.iter().take(5) {
        let sample = &dataset.samples()[suspect.image];
        say!(
            "  {}: labelled {}, predicted {} ({:.0} %)",
            sample.path.display(),
            given(dataset, suspect.image),
            dataset.classes()[suspect.likely],
            suspect.likely_probability * 100.0
        );
    }
}

/// Writes the value that an image is ranked by.
type Note = fn(f32) -> String;

/// The lists of the page. Lists of outliers and of bad images are limited to a tenth of the data set, but at least 12.
fn lists(dataset: &Dataset, findings: &Findings, most: usize) -> Vec<List> {
    let labels = findings.labels.iter().take(most).map(|suspect| Card {
        image: suspect.image,
        likely: Some(suspect.likely),
        note: format!(
            "{:.0} % {}, {:.0} % as labelled",
            suspect.likely_probability * 100.0,
            dataset.classes()[suspect.likely],
            suspect.given_probability * 100.0
        ),
    });
    let few = most.min((dataset.len() / 10).max(12));
    let mut groups: Vec<&Vec<usize>> = findings.duplicates.iter().collect();
    let same_label = |group: &Vec<usize>| {
        let first = &dataset.samples()[group[0]].target;
        group.iter().all(|image| dataset.samples()[*image].target == *first)
    };
    // Groups with different labels come first: at least one label of each is wrong.
    groups.sort_by_key(|group| same_label(group));
    let duplicates = groups.iter().enumerate().flat_map(|(number, group)| {
        let differ = if same_label(group) { "" } else { ", with different labels" };
        group.iter().map(move |image| Card {
            image: *image,
            likely: None,
            note: format!("group {}{differ}", number + 1),
        })
    });
    let mut lists = vec![
        List { id: "labels", title: "Likely label errors", cards: labels.collect() },
        List { id: "duplicates", title: "Duplicates", cards: duplicates.take(most).collect() },
    ];
    let ranked: [(_, _, _, Note); 4] = [
        ("outliers", "Outliers", &findings.outliers, |value| format!("similarity {value:.2}")),
        ("blurred", "Blurred", &findings.blurred, |value| format!("sharpness {value:.0}")),
        ("dark", "Dark", &findings.dark, |value| format!("brightness {value:.0} of 255")),
        ("tiny", "Tiny", &findings.tiny, |value| format!("{value:.0} pixels")),
    ];
    lists.extend(ranked.map(|(id, title, suspects, note)| {
        let card = |s: &Suspect| Card { image: s.image, likely: None, note: note(s.value) };
        List { id, title, cards: suspects.iter().take(few).map(card).collect() }
    }));
    lists
}
