//! Rows as a Parquet file: path, label, confidence, decision, ood_score, p_CLASS for each class, model, error.

use std::fs::File;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type;
use petnet::Prediction;

use crate::predict::pipeline::Row;
use crate::predict::rows::{RowHeader, RowWriter};

/// Rows per row group, which are buffered until it is written.
const ROWS_PER_GROUP: usize = 10_000;

pub(super) struct ParquetWriter {
    file: SerializedFileWriter<File>,
    classes: usize,
    /// Version of the model.
    version: String,
    rows: Vec<Row>,
}

impl ParquetWriter {
    pub(super) fn new(file: File, header: &RowHeader) -> Result<Self> {
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let file = SerializedFileWriter::new(file, schema(&header.labels)?, Arc::new(properties))?;
        let (classes, version) = (header.labels.len(), header.version.clone());
        Ok(Self { file, classes, version, rows: Vec::new() })
    }

    fn write_group(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let mut group = self.file.next_row_group()?;
        required_text(&mut group, rows.iter().map(|row| row.path.as_str()))?;
        let labels: Vec<Option<String>> =
            rows.iter().map(|row| prediction(row).map(Prediction::label_text)).collect();
        text(&mut group, labels.iter().map(Option::as_deref))?;
        floats(&mut group, rows.iter().map(|row| prediction(row).map(Prediction::confidence)))?;
        text(
            &mut group,
            rows.iter().map(|row| prediction(row).map(|prediction| prediction.decision().name())),
        )?;
        floats(&mut group, rows.iter().map(|row| prediction(row).and_then(Prediction::ood_score)))?;
        for class in 0..self.classes {
            let one = |prediction: &Prediction| prediction.probabilities().get(class).copied();
            floats(&mut group, rows.iter().map(|row| prediction(row).and_then(one)))?;
        }
        required_text(&mut group, rows.iter().map(|_| self.version.as_str()))?;
        text(&mut group, rows.iter().map(|row| row.outcome.as_ref().err().map(String::as_str)))?;
        group.close()?;
        Ok(())
    }
}

impl RowWriter for ParquetWriter {
    fn add(&mut self, row: Row) -> Result<()> {
        self.rows.push(row);
        if self.rows.len() == ROWS_PER_GROUP { self.write_group() } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>) -> Result<File> {
        if !self.rows.is_empty() {
            self.write_group()?;
        }
        Ok(self.file.into_inner()?)
    }
}

fn schema(labels: &[String]) -> Result<Arc<Type>> {
    let text = |name: &str, repetition| {
        Type::primitive_type_builder(name, Physical::BYTE_ARRAY)
            .with_logical_type(Some(LogicalType::String))
            .with_repetition(repetition)
            .build()
    };
    let float = |name: &str| {
        Type::primitive_type_builder(name, Physical::FLOAT)
            .with_repetition(Repetition::OPTIONAL)
            .build()
    };
    let mut fields = vec![
        text("path", Repetition::REQUIRED)?,
        text("label", Repetition::OPTIONAL)?,
        float("confidence")?,
        text("decision", Repetition::OPTIONAL)?,
        float("ood_score")?,
    ];
    for label in labels {
        fields.push(float(&format!("p_{label}"))?);
    }
    fields.push(text("model", Repetition::REQUIRED)?);
    fields.push(text("error", Repetition::OPTIONAL)?);
    let fields = fields.into_iter().map(Arc::new).collect();
    Ok(Arc::new(Type::group_type_builder("prediction").with_fields(fields).build()?))
}

fn prediction(row: &Row) -> Option<&Prediction> {
    row.outcome.as_ref().ok()
}

pub(super) type Group<'a> = SerializedRowGroupWriter<'a, File>;

pub(super) fn required_text<'a>(
    group: &mut Group,
    values: impl Iterator<Item = &'a str>,
) -> Result<()> {
    let values: Vec<ByteArray> = values.map(ByteArray::from).collect();
    let mut column = group.next_column()?.ok_or_else(|| anyhow!("a column too many"))?;
    column.typed::<ByteArrayType>().write_batch(&values, None, None)?;
    Ok(column.close()?)
}

pub(super) fn text<'a>(
    group: &mut Group,
    values: impl Iterator<Item = Option<&'a str>>,
) -> Result<()> {
    let (levels, values) = present(values.map(|value| value.map(ByteArray::from)));
    let mut column = group.next_column()?.ok_or_else(|| anyhow!("a column too many"))?;
    column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None)?;
    Ok(column.close()?)
}

fn floats(group: &mut Group, values: impl Iterator<Item = Option<f32>>) -> Result<()> {
    let (levels, values) = present(values);
    let mut column = group.next_column()?.ok_or_else(|| anyhow!("a column too many"))?;
    column.typed::<FloatType>().write_batch(&values, Some(&levels), None)?;
    Ok(column.close()?)
}

/// Definition levels and values of an optional column: Parquet stores which rows have a value, and those values only.
fn present<T>(values: impl Iterator<Item = Option<T>>) -> (Vec<i16>, Vec<T>) {
    let mut present = Vec::new();
    let levels = values.map(|value| {
        let level = i16::from(value.is_some());
        present.extend(value);
        level
    });
    (levels.collect(), present)
}
