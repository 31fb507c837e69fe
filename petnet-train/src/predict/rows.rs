//! Rows as text: lines for people, JSON lines, CSV.

use std::fs::File;
use std::io::{BufWriter, Write as _};

use anyhow::{Result, anyhow};
use petnet::Classifier;

use super::Format;
use super::pipeline::Row;
use crate::terminal;

/// A file that rows are written to.
pub(super) trait Sheet {
    fn add(&mut self, row: Row) -> Result<()>;
    /// Writes what is left.
    fn finish(self: Box<Self>) -> Result<File>;
}

/// The model in each row.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) labels: Vec<String>,
    /// As the service reports it: the first 12 digits of the SHA-256 of the model's file.
    pub(super) version: String,
}

impl Model {
    pub(super) fn new(classifier: &Classifier, sha256: &str) -> Self {
        Self { labels: classifier.labels().to_vec(), version: sha256.chars().take(12).collect() }
    }
}

/// JSON lines or CSV.
pub(super) struct TextSheet {
    file: BufWriter<File>,
    format: Format,
    model: Model,
}

impl TextSheet {
    pub(super) fn new(file: File, format: Format, model: &Model) -> Result<Self> {
        let mut file = BufWriter::new(file);
        if format == Format::Csv {
            writeln!(file, "{}", csv_header(model))?;
        }
        Ok(Self { file, format, model: model.clone() })
    }
}

impl Sheet for TextSheet {
    fn add(&mut self, row: Row) -> Result<()> {
        Ok(writeln!(self.file, "{}", line(&row, &self.model, self.format))?)
    }

    fn finish(self: Box<Self>) -> Result<File> {
        self.file.into_inner().map_err(|e| anyhow!(e.into_error()))
    }
}

/// Prints one row, a bad photo's text to standard error.
pub(super) fn print(row: Row, model: &Model, format: Format) -> Result<()> {
    // Here an error names its photo, so that it stands alone among lines of a terminal.
    let Row { path, outcome, embedding } = row;
    let outcome = outcome.map_err(|reason| format!("{path}: {reason}"));
    if let (Format::Text, Err(error)) = (format, &outcome) {
        say_error!("{error}");
        return Ok(());
    }
    let row = Row { path, outcome, embedding };
    terminal::print_or_stop(format_args!("{}", line(&row, model, format)))
}

pub(super) fn csv_header(model: &Model) -> String {
    let labels: Vec<String> = model.labels.iter().map(|label| quoted(label)).collect();
    format!("path,label,confidence,decision,ood_score,{},model,error", labels.join(","))
}

fn line(row: &Row, model: &Model, format: Format) -> String {
    match format {
        Format::Csv => csv_line(row, model),
        Format::Jsonl => json_line(row, model),
        Format::Text | Format::Parquet => text_line(row, model),
    }
}

/// `rex.jpg: dog (98 %)`, or `chair.jpg: unsure (cat 97 %): This does not look like a cat or a dog.`
fn text_line(row: &Row, model: &Model) -> String {
    let path = &row.path;
    match &row.outcome {
        Ok(guess) => match guess.decision().reason(&model.labels) {
            None => format!("{path}: {guess}"),
            Some(reason) => {
                let percent = (guess.confidence() * 100.0).floor();
                format!("{path}: unsure ({} {percent} %): {reason}", guess.label())
            }
        },
        Err(error) => format!("{path}: {error}"),
    }
}

fn json_line(row: &Row, model: &Model) -> String {
    let version = &model.version;
    let value = match &row.outcome {
        Ok(guess) => {
            let pairs = model.labels.iter().cloned().zip(guess.probabilities());
            let probabilities: serde_json::Map<_, _> =
                pairs.map(|(label, p)| (label, (*p).into())).collect();
            let mut value = serde_json::json!({
                "path": row.path,
                "label": guess.label_text(),
                "confidence": guess.confidence(),
                "decision": guess.decision(),
                "ood_score": guess.ood_score(),
                "probabilities": probabilities,
                "model": version,
            });
            if let Some(labels) = guess.labels() {
                let names: Vec<&str> = labels.into_iter().map(|(name, _)| name).collect();
                value["labels"] = names.into();
            }
            value
        }
        Err(error) => serde_json::json!({ "path": row.path, "error": error, "model": version }),
    };
    value.to_string()
}

fn csv_line(row: &Row, model: &Model) -> String {
    let (path, version) = (quoted(&row.path), &model.version);
    match &row.outcome {
        Ok(guess) => {
            let all: Vec<String> = guess.probabilities().iter().map(f32::to_string).collect();
            let (label, all) = (quoted(&guess.label_text()), all.join(","));
            let (confidence, decision) = (guess.confidence(), guess.decision());
            let score = guess.ood_score().map_or(String::new(), |score| score.to_string());
            format!("{path},{label},{confidence},{decision},{score},{all},{version},")
        }
        Err(error) => {
            let probabilities = ",".repeat(model.labels.len());
            format!("{path},,,,{probabilities},{version},{}", quoted(error))
        }
    }
}

/// A path as a line of its own.
pub(super) fn one_line(path: &str) -> String {
    path.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r")
}

/// A CSV field (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_string()
    }
}
