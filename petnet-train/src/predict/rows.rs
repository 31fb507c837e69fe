//! Rows as text: readable lines, JSON lines, CSV.

use std::fs::File;
use std::io::{BufWriter, Write as _};

use anyhow::{Result, anyhow};
use petnet::Classifier;

use super::Format;
use super::pipeline::Row;
use crate::terminal;

/// Writer of one file of rows.
pub(super) trait RowWriter {
    fn add(&mut self, row: Row) -> Result<()>;
    /// Writes buffered rows and returns the complete file.
    fn finish(self: Box<Self>) -> Result<File>;
}

/// Names of the classes and version of the model, which all rows of a run share.
#[derive(Debug, Clone)]
pub(super) struct RowHeader {
    pub(super) labels: Vec<String>,
    /// The first 12 digits of the SHA-256 of the model's file, as the service reports it.
    pub(super) version: String,
}

impl RowHeader {
    pub(super) fn new(classifier: &Classifier, sha256: &str) -> Self {
        Self { labels: classifier.labels().to_vec(), version: sha256.chars().take(12).collect() }
    }
}

/// Writer of JSON lines or CSV.
pub(super) struct TextWriter {
    file: BufWriter<File>,
    format: Format,
    header: RowHeader,
}

impl TextWriter {
    pub(super) fn new(file: File, format: Format, header: &RowHeader) -> Result<Self> {
        let mut file = BufWriter::new(file);
        if format == Format::Csv {
            writeln!(file, "{}", csv_header(header))?;
        }
        Ok(Self { file, format, header: header.clone() })
    }
}

impl RowWriter for TextWriter {
    fn add(&mut self, row: Row) -> Result<()> {
        Ok(writeln!(self.file, "{}", line(&row, &self.header, self.format))?)
    }

    fn finish(self: Box<Self>) -> Result<File> {
        self.file.into_inner().map_err(|e| anyhow!(e.into_error()))
    }
}

/// Prints one row; as text, the error of an unreadable image goes to standard error.
pub(super) fn print(mut row: Row, header: &RowHeader, format: Format) -> Result<()> {
    // On a terminal, an error names its image.
    row.outcome = row.outcome.map_err(|reason| format!("{}: {reason}", row.path));
    if let (Format::Text, Err(error)) = (format, &row.outcome) {
        say_error!("{error}");
        return Ok(());
    }
    terminal::print_or_stop(format_args!("{}", line(&row, header, format)))
}

pub(super) fn csv_header(header: &RowHeader) -> String {
    let labels: Vec<String> = header.labels.iter().map(|label| quoted(label)).collect();
    format!("path,label,confidence,decision,ood_score,{},model,error", labels.join(","))
}

fn line(row: &Row, header: &RowHeader, format: Format) -> String {
    match format {
        Format::Csv => csv_line(row, header),
        Format::Jsonl => json_line(row, header),
        Format::Text | Format::Parquet => text_line(row, header),
    }
}

/// `rex.jpg: dog (98 %)`, or `chair.jpg: unsure (cat 97 %): This does not look like a cat or a dog.`
fn text_line(row: &Row, header: &RowHeader) -> String {
    let path = &row.path;
    match &row.outcome {
        Ok(prediction) => match prediction.decision().reason(&header.labels) {
            None => format!("{path}: {prediction}"),
            Some(reason) => {
                let percent = (prediction.confidence() * 100.0).floor();
                format!("{path}: unsure ({} {percent} %): {reason}", prediction.label())
            }
        },
        Err(error) => format!("{path}: {error}"),
    }
}

fn json_line(row: &Row, header: &RowHeader) -> String {
    let version = &header.version;
    let value = match &row.outcome {
        Ok(prediction) => {
            let pairs = header.labels.iter().cloned().zip(prediction.probabilities());
            let probabilities: serde_json::Map<_, _> =
                pairs.map(|(label, p)| (label, (*p).into())).collect();
            let mut value = serde_json::json!({
                "path": row.path,
                "label": prediction.label_text(),
                "confidence": prediction.confidence(),
                "decision": prediction.decision(),
                "ood_score": prediction.ood_score(),
                "probabilities": probabilities,
                "model": version,
            });
            if let Some(labels) = prediction.labels() {
                let names: Vec<&str> = labels.into_iter().map(|(name, _)| name).collect();
                value["labels"] = names.into();
            }
            value
        }
        Err(error) => serde_json::json!({ "path": row.path, "error": error, "model": version }),
    };
    value.to_string()
}

fn csv_line(row: &Row, header: &RowHeader) -> String {
    let (path, version) = (quoted(&row.path), &header.version);
    match &row.outcome {
        Ok(prediction) => {
            let probabilities: Vec<String> =
                prediction.probabilities().iter().map(f32::to_string).collect();
            let (label, probabilities) =
                (quoted(&prediction.label_text()), probabilities.join(","));
            let (confidence, decision) = (prediction.confidence(), prediction.decision());
            let score = prediction.ood_score().map_or(String::new(), |score| score.to_string());
            format!("{path},{label},{confidence},{decision},{score},{probabilities},{version},")
        }
        Err(error) => {
            let probabilities = ",".repeat(header.labels.len());
            format!("{path},,,,{probabilities},{version},{}", quoted(error))
        }
    }
}

/// A path on one line: backslashes and line breaks are escaped.
pub(super) fn escape_line_breaks(path: &str) -> String {
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
