//! Embeddings as a Parquet file: path, embedding (a list of floats), error.

use std::fs::File;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use parquet::basic::Compression;
use parquet::data_type::FloatType;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;

use super::parquet_rows::{Group, required_text, text};
use crate::predict::embeddings::EmbeddingWriter;
use crate::predict::pipeline::Row;

/// Rows per row group, which are buffered until it is written: some megabytes.
const ROWS_PER_GROUP: usize = 1_000;
/// The list column has the three levels that Parquet's specification requires: group, repeated group, element.
const SCHEMA: &str = "message embeddings {
    required binary path (STRING);
    optional group embedding (LIST) { repeated group list { required float element; } }
    optional binary error (STRING);
}";
/// Definition levels of the list column: no list, and a value in a list.
const NO_LIST_LEVEL: i16 = 0;
const VALUE_LEVEL: i16 = 2;

pub(super) struct ParquetEmbeddings {
    file: SerializedFileWriter<File>,
    rows: Vec<BufferedRow>,
}

/// A row until its row group is written: the embedding, or the error.
struct BufferedRow {
    path: String,
    outcome: Result<Vec<f32>, String>,
}

impl ParquetEmbeddings {
    pub(super) fn new(file: File) -> Result<Self> {
        let values = ["embedding", "list", "element"].map(String::from).to_vec();
        // The floats hardly ever repeat, so that a dictionary would hold nearly all of them.
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_column_dictionary_enabled(ColumnPath::new(values), false)
            .build();
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let file = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
        Ok(Self { file, rows: Vec::new() })
    }

    fn write_group(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let mut group = self.file.next_row_group()?;
        required_text(&mut group, rows.iter().map(|row| row.path.as_str()))?;
        lists(&mut group, rows.iter().map(|row| row.outcome.as_deref().ok()))?;
        text(&mut group, rows.iter().map(|row| row.outcome.as_ref().err().map(String::as_str)))?;
        group.close()?;
        Ok(())
    }
}

impl EmbeddingWriter for ParquetEmbeddings {
    fn add(&mut self, row: &Row) -> Result<()> {
        let outcome = match &row.outcome {
            Ok(_) => Ok(row.embedding.clone()),
            Err(reason) => Err(reason.clone()),
        };
        self.rows.push(BufferedRow { path: row.path.clone(), outcome });
        if self.rows.len() == ROWS_PER_GROUP { self.write_group() } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<File>> {
        if !self.rows.is_empty() {
            self.write_group()?;
        }
        Ok(vec![self.file.into_inner()?])
    }
}

/// Writes a column of lists, which are absent or not empty. A repetition level of 0 begins a row, 1 continues its list.
fn lists<'a>(group: &mut Group, rows: impl Iterator<Item = Option<&'a [f32]>>) -> Result<()> {
    let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        let row = row.unwrap_or_default();
        definitions.push(if row.is_empty() { NO_LIST_LEVEL } else { VALUE_LEVEL });
        repetitions.push(0);
        let rest = row.len().saturating_sub(1);
        definitions.extend(std::iter::repeat_n(VALUE_LEVEL, rest));
        repetitions.extend(std::iter::repeat_n(1, rest));
        values.extend_from_slice(row);
    }
    let mut column = group.next_column()?.ok_or_else(|| anyhow!("a column too many"))?;
    let typed = column.typed::<FloatType>();
    typed.write_batch(&values, Some(&definitions), Some(&repetitions))?;
    Ok(column.close()?)
}
