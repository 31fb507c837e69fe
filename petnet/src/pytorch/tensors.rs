//! A file's tensors by name, as numbers, and the settings that lie beside them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use half::{bf16, f16};
use pytorch_reader::{DType, PickleValue, PytorchError, PytorchReader, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::storage::read_weight;
use crate::weights::{Weight, Weights};

/// Most values of all tensors together, a gigabyte: many times what the largest network here takes.
const MOST_VALUES: usize = 1 << 28;
/// Where weights may lie.
const PLACES: [&str; 3] = ["model_state_dict.", "state_dict.", "model."];
/// What wrappers put before each name.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

pub(super) struct Contents {
    pub(super) tensors: Weights,
    /// An object, or null.
    pub(super) config: Value,
}

pub(super) fn read(path: &Path) -> Result<Contents> {
    let contents = if is_safetensors(path)? { safe(path) } else { pickled(path) };
    let contents = contents.map_err(|reason| Error::checkpoint(path, reason))?;
    match contents.tensors.is_empty() {
        true => Err(Error::checkpoint(path, "it holds no weights")),
        false => Ok(contents),
    }
}

/// What lies beside the weights as `config`; most files have none.
pub(super) fn config(path: &Path) -> Result<Value> {
    if is_safetensors(path)? {
        return Ok(Value::Null);
    }
    match PytorchReader::read_pickle_data(path, Some("config")) {
        Ok(config) => Ok(value(config)),
        Err(PytorchError::KeyNotFound(_)) => Ok(Value::Null),
        Err(error) => Err(Error::checkpoint(path, error)),
    }
}

/// Eight bytes of a header's length, then the header itself.
fn is_safetensors(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(Error::io(path))?;
    file.take(9).read_to_end(&mut start).map_err(Error::io(path))?;
    Ok(start.get(8) == Some(&b'{'))
}

fn safe(path: &Path) -> Result<Contents, String> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| e.to_string())?;
    let floats = [Dtype::F32, Dtype::F16, Dtype::BF16];
    let tensors = file.tensors().into_iter().filter(|(_, view)| floats.contains(&view.dtype()));
    let tensors = tensors.map(|(name, view)| Ok((plain(&name).into(), read_weight(&view)?)));
    Ok(Contents { tensors: tensors.collect::<Result<_, String>>()?, config: Value::Null })
}

fn pickled(path: &Path) -> Result<Contents, String> {
    let failed = |e: pytorch_reader::PytorchError| e.to_string();
    let found = PytorchReader::new(path).map_err(failed)?.into_tensors();
    let place = PLACES.into_iter().find(|place| found.keys().any(|name| name.starts_with(place)));
    let place = place.unwrap_or_default();
    let found: BTreeMap<&str, &Tensor> = found
        .iter()
        .filter_map(|(name, tensor)| Some((plain(name.strip_prefix(place)?), tensor)))
        .collect();
    let values: usize = found.values().map(|tensor| tensor.num_elements()).sum();
    if values > MOST_VALUES {
        return Err(format!("it holds {values} values, more than the limit of {MOST_VALUES}"));
    }
    let mut tensors = Weights::new();
    for (name, tensor) in found {
        let bytes = tensor.read().map_err(|e| e.to_string())?;
        let Some(values) = numbers(tensor.dtype(), &bytes) else { continue };
        tensors.insert(name.into(), Weight { shape: tensor.shape().to_vec(), values });
    }
    let config = config(path).map_err(|e| e.to_string())?;
    Ok(Contents { tensors, config })
}

/// A name without what wrappers put before it, one around the other.
fn plain(mut name: &str) -> &str {
    while let Some(inner) = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        name = inner;
    }
    name
}

/// `None` for what is no weight, as counters.
fn numbers(kind: DType, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || bytes.as_chunks().0.iter();
    Some(match kind {
        DType::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_ne_bytes(*b) as f32).collect(),
        DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect(),
        DType::F16 => halves().map(|b| f16::from_ne_bytes(*b).to_f32()).collect(),
        DType::BF16 => halves().map(|b| bf16::from_ne_bytes(*b).to_f32()).collect(),
        _ => return None,
    })
}

/// What JSON has no word for is null.
fn value(pickle: PickleValue) -> Value {
    match pickle {
        PickleValue::Bool(value) => json!(value),
        PickleValue::Int(value) => json!(value),
        PickleValue::Float(value) => json!(value),
        PickleValue::String(value) => json!(value),
        PickleValue::List(values) => values.into_iter().map(value).collect(),
        PickleValue::Dict(entries) => {
            let sorted: BTreeMap<_, _> = entries.into_iter().collect();
            sorted.into_iter().map(|(key, entry)| (key, value(entry))).collect()
        }
        _ => Value::Null,
    }
}
