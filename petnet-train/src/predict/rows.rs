//! Rows as text: lines for people, JSON lines, CSV.

use std::fs::File;
use std::io::{BufWriter, Write as _};

use anyhow::{Result, anyhow};

use super::Format;
use super::pipeline::Row;

/// A file that rows are written to.
pub(super) trait Sheet {
    fn add(&mut self, row: Row) -> Result<()>;
    /// Writes what is left.
    fn finish(self: Box<Self>) -> Result<File>;
}

/// JSON lines or CSV.
pub(super) struct TextSheet {
    file: BufWriter<File>,
    format: Format,
    labels: Vec<String>,
}

impl TextSheet {
    pub(super) fn new(file: File, format: Format, labels: &[String]) -> Result<Self> {
        let mut file = BufWriter::new(file);
        if format == Format::Csv {
            writeln!(file, "{}", csv_header(labels))?;
        }
        Ok(Self { file, format, labels: labels.into() })
    }
}

impl Sheet for TextSheet {
    fn add(&mut self, row: Row) -> Result<()> {
        Ok(writeln!(self.file, "{}", line(&row, &self.labels, self.format))?)
    }

    fn finish(self: Box<Self>) -> Result<File> {
        self.file.into_inner().map_err(|e| anyhow!(e.into_error()))
    }
}

/// Prints one row, a bad photo's text to standard error.
pub(super) fn print(row: Row, labels: &[String], format: Format) -> Result<()> {
    // Here an error names its photo, so that it stands alone among lines of a terminal.
    let Row { path, outcome, embedding } = row;
    let outcome = outcome.map_err(|reason| format!("{path}: {reason}"));
    if let (Format::Text, Err(error)) = (format, &outcome) {
        eprintln!("{error}");
        return Ok(());
    }
    Ok(writeln!(std::io::stdout(), "{}", line(&Row { path, outcome, embedding }, labels, format))?)
}

pub(super) fn csv_header(labels: &[String]) -> String {
    let labels: Vec<String> = labels.iter().map(|label| quoted(label)).collect();
    format!("path,label,confidence,{},error", labels.join(","))
}

fn line(row: &Row, labels: &[String], format: Format) -> String {
    match format {
        Format::Csv => csv_line(row, labels),
        Format::Jsonl => json_line(row, labels),
        Format::Text | Format::Parquet => match &row.outcome {
            Ok(guess) => format!("{}: {guess}", row.path),
            Err(error) => format!("{}: {error}", row.path),
        },
    }
}

fn json_line(row: &Row, labels: &[String]) -> String {
    let value = match &row.outcome {
        Ok(guess) => {
            let pairs = labels.iter().cloned().zip(guess.probabilities());
            let probabilities: serde_json::Map<_, _> =
                pairs.map(|(label, p)| (label, (*p).into())).collect();
            serde_json::json!({
                "path": row.path,
                "label": guess.label(),
                "confidence": guess.confidence(),
                "probabilities": probabilities,
            })
        }
        Err(error) => serde_json::json!({ "path": row.path, "error": error }),
    };
    value.to_string()
}

fn csv_line(row: &Row, labels: &[String]) -> String {
    let path = quoted(&row.path);
    match &row.outcome {
        Ok(guess) => {
            let all: Vec<String> = guess.probabilities().iter().map(f32::to_string).collect();
            let (label, all) = (quoted(guess.label()), all.join(","));
            format!("{path},{label},{},{all},", guess.confidence())
        }
        Err(error) => format!("{path},,,{}{}", ",".repeat(labels.len()), quoted(error)),
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
