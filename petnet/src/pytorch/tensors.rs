//! A file's tensors by name, as numbers, and the settings that lie beside them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use half::{bf16, f16};
use pytorch_reader::{DType, PickleValue, PytorchError, PytorchReader, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::error::{Error, ModelError, Result};
use crate::storage::{floats, read_weight};
use crate::weights::{Weight, Weights};

const PYTORCH: &str = "PyTorch";
/// Maximum number of values of all tensors, a gigabyte: many times those of the largest network here.
const MAX_VALUES: usize = 1 << 28;
/// Key of the optimiser's state, which lies beside the weights of a checkpoint and is as large.
const OPTIMIZER_PREFIX: &str = "optimizer";

pub(super) struct Contents {
    pub(super) tensors: Weights,
    /// A JSON object, or null.
    pub(super) config: Value,
}

pub(super) fn read(path: &Path) -> Result<Contents> {
    let contents = if is_safetensors(path)? { read_safetensors(path)? } else { read_pickle(path)? };
    match contents.tensors.is_empty() {
        true => Err(Error::checkpoint(path, ModelError::Empty)),
        false => Ok(contents),
    }
}

fn damaged(path: &Path, format: &'static str, reason: impl ToString) -> Error {
    Error::checkpoint(path, ModelError::Damaged { format, reason: reason.to_string() })
}

/// The value stored as `config` next to the weights; most files have none.
pub(super) fn config(path: &Path) -> Result<Value> {
    if is_safetensors(path)? {
        return Ok(Value::Null);
    }
    match PytorchReader::read_pickle_data(path, Some("config")) {
        Ok(config) => Ok(to_json(config)),
        Err(PytorchError::KeyNotFound(_)) => Ok(Value::Null),
        Err(error) => Err(damaged(path, PYTORCH, error)),
    }
}

/// Eight bytes of a header's length, then the header itself.
fn is_safetensors(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(Error::io(path))?;
    file.take(9).read_to_end(&mut start).map_err(Error::io(path))?;
    Ok(start.get(8) == Some(&b'{'))
}

fn read_safetensors(path: &Path) -> Result<Contents> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(path, "safetensors", e))?;
    let floats = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16];
    let tensors = file.tensors().into_iter().filter(|(_, view)| floats.contains(&view.dtype()));
    let tensors = tensors.map(|(name, view)| {
        let weight = read_weight(&name, &view).map_err(|reason| Error::checkpoint(path, reason))?;
        Ok((name, weight))
    });
    Ok(Contents { tensors: tensors.collect::<Result<_>>()?, config: Value::Null })
}

fn read_pickle(path: &Path) -> Result<Contents> {
    let failed = |e: PytorchError| damaged(path, PYTORCH, e);
    let mut found = PytorchReader::new(path).map_err(failed)?.into_tensors();
    found.retain(|name, _| !name.starts_with(OPTIMIZER_PREFIX));
    let values: usize = found.values().map(Tensor::num_elements).sum();
    if values > MAX_VALUES {
        let reason = ModelError::TooManyValues { values, limit: MAX_VALUES };
        return Err(Error::checkpoint(path, reason));
    }
    let mut tensors = Weights::new();
    for (name, tensor) in found {
        let bytes = tensor.read().map_err(|e| damaged(path, PYTORCH, e))?;
        let Some(values) = to_f32(tensor.dtype(), &bytes) else { continue };
        tensors.insert(name, Weight { shape: tensor.shape().to_vec(), values });
    }
    Ok(Contents { tensors, config: config(path)? })
}

/// `None` for types that weights do not have, such as that of counters.
fn to_f32(kind: DType, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match kind {
        DType::F64 => floats(bytes, |value| f64::from_ne_bytes(value) as f32),
        DType::F32 => floats(bytes, f32::from_ne_bytes),
        DType::F16 => floats(bytes, |value| f16::from_ne_bytes(value).to_f32()),
        DType::BF16 => floats(bytes, |value| bf16::from_ne_bytes(value).to_f32()),
        _ => return None,
    })
}

/// Values without an equivalent in JSON become null.
fn to_json(pickle: PickleValue) -> Value {
    match pickle {
        PickleValue::Bool(value) => json!(value),
        PickleValue::Int(value) => json!(value),
        PickleValue::Float(value) => json!(value),
        PickleValue::String(value) => json!(value),
        PickleValue::List(values) => values.into_iter().map(to_json).collect(),
        PickleValue::Dict(entries) => {
            let sorted: BTreeMap<_, _> = entries.into_iter().collect();
            sorted.into_iter().map(|(key, entry)| (key, to_json(entry))).collect()
        }
        _ => Value::Null,
    }
}
