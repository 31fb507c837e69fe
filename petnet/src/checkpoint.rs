//! One `.safetensors` file that holds all a model needs: weights, labels, preprocessing,
//! architecture, and where it came from.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::architecture::{Architecture, Normalization};
use crate::drift::Reference;
use crate::error::{Error, Result};
#[cfg(feature = "burn")]
use crate::model::Network;
use crate::novelty::Novelty;
use crate::preprocess::Preprocess;
use crate::weights::{Weight, Weights};

const INFO_KEY: &str = "petnet";
const DIGEST_KEY: &str = "sha256";
const FORMAT: u32 = 1;
/// After the name of a weight of bytes.
const SCALE: &str = ".scale";

/// What a checkpoint says about its model, apart from the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Version of this layout.
    pub format: u32,
    /// Version of petnet that wrote the file.
    pub petnet_version: String,
    /// The network.
    pub architecture: Architecture,
    /// Class names in the order of the logits.
    pub labels: Vec<String>,
    /// How a photo becomes the network's input.
    pub preprocess: Preprocess,
    /// Its first layer.
    pub normalization: Normalization,
    /// Logits are divided by it before they become probabilities; 1 where it was never chosen.
    #[serde(default = "one")]
    pub temperature: f32,
    /// Answers of less confidence than this are unsure; 0 where it was never chosen.
    #[serde(default)]
    pub threshold: f32,
    /// What known photos look like to the network; absent where it was never learned.
    #[serde(default)]
    pub novelty: Option<Novelty>,
    /// The resolved settings of the training, as they were.
    #[serde(default)]
    pub settings: serde_json::Value,
    /// Figures measured on validation data when the model was saved.
    #[serde(default)]
    pub metrics: serde_json::Value,
    /// Figures of every epoch, for curves.
    #[serde(default)]
    pub history: serde_json::Value,
    /// SHA-256 over the training data set's members.
    #[serde(default)]
    pub data_digest: String,
    /// When the training data was last changed, in seconds since 1970.
    #[serde(default)]
    pub data_time: Option<u64>,
    /// When these weights were trained, in seconds since 1970.
    #[serde(default)]
    pub trained: Option<u64>,
    /// What the photos were like that the model was judged on; absent where it was never learned.
    #[serde(default)]
    pub reference: Option<Reference>,
}

fn one() -> f32 {
    1.0
}

impl ModelInfo {
    /// A new model's description, with nothing measured yet.
    pub fn new(architecture: Architecture, labels: Vec<String>, preprocess: Preprocess) -> Self {
        Self {
            format: FORMAT,
            petnet_version: env!("CARGO_PKG_VERSION").into(),
            architecture,
            labels,
            preprocess,
            normalization: Normalization::default(),
            temperature: 1.0,
            threshold: 0.0,
            novelty: None,
            settings: serde_json::Value::Null,
            metrics: serde_json::Value::Null,
            history: serde_json::Value::Null,
            data_digest: String::new(),
            data_time: None,
            trained: None,
            reference: None,
        }
    }
}

/// How many bytes a stored weight takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Precision {
    /// Four bytes: exact.
    #[default]
    F32,
    /// Two bytes: half the file; batch-norm statistics stay exact.
    F16,
    /// One byte, and a scale for each output channel (Krishnamoorthi, "Quantizing deep convolutional
    /// networks", 2018): a quarter of the file; biases and norms stay exact. It is a smaller file, not a
    /// faster network: weights are floats again once they are read.
    Int8,
}

/// A model's description and weights, on no device.
///
/// ```
/// # #[cfg(feature = "pretrained")] {
/// use petnet::{Checkpoint, Precision};
///
/// let model = Checkpoint::pretrained()?;
/// assert_eq!(model.info().labels, ["cat", "dog"]);
/// let small = model.to_bytes(Precision::Int8)?;
/// assert!(small.len() < Checkpoint::pretrained_bytes().len());
/// assert_eq!(Checkpoint::from_bytes(&small)?.parameters(), model.parameters());
/// # }
/// # Ok::<(), petnet::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    info: ModelInfo,
    weights: Weights,
}

impl Checkpoint {
    /// What is said of a file that others wrote.
    pub(crate) const FOREIGN: &str = "no model of petnet's";

    #[cfg(any(feature = "burn", feature = "pytorch"))]
    pub(crate) fn new(info: ModelInfo, weights: Weights) -> Self {
        Self { info, weights }
    }

    /// What the model says about itself.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Number of stored values, batch-norm statistics included.
    pub fn parameters(&self) -> usize {
        self.weights.values().map(|w| w.values.len()).sum()
    }

    /// The same model with another [`ModelInfo::temperature`], [`ModelInfo::threshold`] and
    /// [`ModelInfo::novelty`].
    #[must_use]
    pub fn with_calibration(
        self,
        temperature: f32,
        threshold: f32,
        novelty: Option<Novelty>,
    ) -> Self {
        Self { info: ModelInfo { temperature, threshold, novelty, ..self.info }, ..self }
    }

    /// The same model with another [`ModelInfo::reference`].
    #[must_use]
    pub fn with_reference(self, reference: Option<Reference>) -> Self {
        Self { info: ModelInfo { reference, ..self.info }, ..self }
    }

    /// Reads a file written by [`Checkpoint::save`].
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, [`Error::Checkpoint`] when it is cut short,
    /// altered, or no model of petnet's.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(Error::io(path))?;
        Self::parse(&bytes).map_err(|reason| Error::checkpoint(path, reason))
    }

    /// Reads a checkpoint from memory.
    ///
    /// # Errors
    /// [`Error::Checkpoint`], as [`Checkpoint::load`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::parse(bytes).map_err(|reason| Error::checkpoint("<bytes>", reason))
    }

    /// What [`Checkpoint::save`] writes, in memory.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where a weight's shape and values do not fit each other.
    pub fn to_bytes(&self, precision: Precision) -> Result<Vec<u8>> {
        self.encode(precision).map_err(|reason| Error::checkpoint("<bytes>", reason))
    }

    /// The cat-or-dog network that ships inside the crate.
    ///
    /// # Errors
    /// None in a sound build; a damaged build answers [`Error::Checkpoint`].
    #[cfg(feature = "pretrained")]
    pub fn pretrained() -> Result<Self> {
        Self::from_bytes(Self::pretrained_bytes())
    }

    /// The bundled model's file.
    #[cfg(feature = "pretrained")]
    pub fn pretrained_bytes() -> &'static [u8] {
        // Not a constant: the documentation would show its value, 15 MB.
        include_bytes!("../models/cats-vs-dogs.safetensors")
    }

    /// Writes one file: first beside `path`, then renamed over it, so that a crash leaves the old
    /// file or the new one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>, precision: Precision) -> Result<()> {
        let path = path.as_ref();
        let bytes = self.encode(precision).map_err(|reason| Error::checkpoint(path, reason))?;
        write_atomically(path, &bytes)
    }

    #[cfg(feature = "onnx")]
    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(crate) fn into_parts(self) -> (ModelInfo, Weights) {
        (self.info, self.weights)
    }

    /// Gives a network these weights.
    #[cfg(feature = "burn")]
    pub(crate) fn fill(&self, network: Network) -> Result<Network> {
        crate::model::weights::write(network, self.weights.clone())
            .map_err(|e| Error::checkpoint("<weights>", e))
    }

    fn encode(&self, precision: Precision) -> Result<Vec<u8>, String> {
        let stored: Vec<_> =
            self.weights.iter().flat_map(|(name, weight)| store(name, weight, precision)).collect();
        let views: Vec<_> = stored
            .iter()
            .map(|(name, shape, dtype, bytes)| {
                let view = TensorView::new(*dtype, shape.clone(), bytes);
                view.map(|view| (name.clone(), view)).map_err(|e| e.to_string())
            })
            .collect::<Result<_, _>>()?;
        let info = serde_json::to_string(&self.info).map_err(|e| e.to_string())?;
        let digest = digest(&info, views.iter().map(|(n, v)| (n.as_str(), v.data())));
        let metadata = HashMap::from([(INFO_KEY.into(), info), (DIGEST_KEY.into(), digest)]);
        safetensors::serialize(views, Some(metadata)).map_err(|e| e.to_string())
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let damaged =
            |e: safetensors::SafeTensorError| format!("not a complete safetensors file ({e})");
        if bytes.get(8) != Some(&b'{') && !bytes.is_empty() {
            return Err(format!("{}: it is no safetensors file", Self::FOREIGN));
        }
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let metadata = header.metadata().as_ref();
        let metadata = metadata.ok_or(format!("{}: it has no metadata", Self::FOREIGN))?;
        let text = metadata.get(INFO_KEY);
        let text = text.ok_or(format!("{}: `petnet` is missing", Self::FOREIGN))?;
        let mut views = tensors.tensors();
        views.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = digest(text, views.iter().map(|(n, v)| (n.as_str(), v.data())));
        if metadata.get(DIGEST_KEY) != Some(&expected) {
            return Err("the content does not match its checksum: the file was altered".into());
        }
        let info: ModelInfo =
            serde_json::from_str(text).map_err(|e| format!("unreadable description: {e}"))?;
        if info.format > FORMAT {
            return Err(format!(
                "written by petnet {} in a newer layout: update petnet",
                info.petnet_version
            ));
        }
        let mut weights = Weights::new();
        for (name, view) in &views {
            match view.dtype() {
                Dtype::I8 => {
                    let scale = tensors.tensor(&format!("{name}{SCALE}"));
                    let scale = read_weight(&scale.map_err(|e| format!("{name}: {e}"))?)?;
                    weights.insert(name.clone(), unpack(view, &scale.values));
                }
                _ if name.ends_with(SCALE) => {}
                _ => drop(weights.insert(name.clone(), read_weight(view)?)),
            }
        }
        Ok(Self { info, weights })
    }
}

/// A weight as the tensors of a file: name, shape, type, bytes.
fn store(
    name: &str,
    Weight { shape, values }: &Weight,
    precision: Precision,
) -> Vec<(String, Vec<usize>, Dtype, Vec<u8>)> {
    let tensor = |dtype, bytes| vec![(name.to_string(), shape.clone(), dtype, bytes)];
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    match precision {
        Precision::F16 if shape.len() > 1 => {
            let halves = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes());
            tensor(Dtype::F16, halves.collect())
        }
        Precision::Int8 if shape.len() > 1 => {
            let channel = channels(shape);
            let mut scales = vec![0.0_f32; channel.count];
            for (place, value) in values.iter().enumerate() {
                let scale = &mut scales[channel.of(place)];
                *scale = scale.max(value.abs() / 127.0);
            }
            let steps = values.iter().enumerate().map(|(place, value)| {
                let scale = scales[channel.of(place)];
                if scale > 0.0 { (value / scale).round() as i8 } else { 0 }
            });
            let mut tensors = tensor(Dtype::I8, steps.flat_map(i8::to_le_bytes).collect());
            let scale =
                (format!("{name}{SCALE}"), vec![channel.count], Dtype::F32, floats(&scales));
            tensors.push(scale);
            tensors
        }
        _ => tensor(Dtype::F32, floats(values)),
    }
}

fn unpack(view: &TensorView<'_>, scales: &[f32]) -> Weight {
    let channel = channels(view.shape());
    let steps = view.data().iter().map(|byte| f32::from(i8::from_le_bytes([*byte])));
    // A file may say what it likes of its scales.
    let scale = |place| scales.get(channel.of(place)).copied().unwrap_or_default();
    let values = steps.enumerate().map(|(place, step)| step * scale(place)).collect();
    Weight { shape: view.shape().to_vec(), values }
}

/// Where a weight's output channels lie.
struct Channels {
    count: usize,
    /// Values of one channel that lie side by side.
    stride: usize,
}

impl Channels {
    fn of(&self, place: usize) -> usize {
        place / self.stride % self.count
    }
}

/// First of a convolution's `[outputs, inputs, k, k]`, last of a dense layer's `[inputs, outputs]`.
fn channels(shape: &[usize]) -> Channels {
    let (count, stride) = match shape {
        [outputs, rest @ ..] if shape.len() > 2 => (*outputs, rest.iter().product()),
        _ => (shape.last().copied().unwrap_or(1), 1),
    };
    Channels { count: count.max(1), stride: stride.max(1) }
}

pub(crate) fn read_weight(view: &TensorView<'_>) -> Result<Weight, String> {
    let values = match view.dtype() {
        Dtype::F32 => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => {
            view.data().as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
        }
        Dtype::BF16 => {
            view.data().as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
        }
        other => return Err(format!("weights of type {other:?} are not supported")),
    };
    Ok(Weight { shape: view.shape().to_vec(), values })
}

fn digest<'a>(info: &str, tensors: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    hash.update(info);
    let mut sorted: Vec<_> = tensors.collect();
    sorted.sort();
    for (name, data) in sorted {
        hash.update(name);
        hash.update((data.len() as u64).to_le_bytes());
        hash.update(data);
    }
    hex(&hash.finalize())
}

/// SHA-256 in hex: of a model file, the digest by which registries know it.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes a file beside `path`, syncs it and renames it over `path`, so that a crash leaves the
/// old content or the new one.
///
/// # Errors
/// [`Error::Io`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = path.with_file_name(format!(".{name}.{}.partial", std::process::id()));
    let written = fs::File::create(&partial)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // Best effort: the reason to report is the first failure, not this one.
        let _ = fs::remove_file(&partial);
    }
    written.map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::SimpleCnnConfig;
    use crate::preprocess::Resize;

    fn checkpoint() -> Checkpoint {
        let config = SimpleCnnConfig { channels: vec![4, 8], hidden: 4, dropout: 0.0 };
        let architecture = Architecture::SimpleCnn(config);
        let preprocess = Preprocess { size: 16, resize: Resize::Squeeze };
        let labels = vec!["cat".to_string(), "dog".to_string()];
        let info = ModelInfo::new(architecture, labels, preprocess);
        let device = burn::tensor::Device::flex();
        Network::new(&info.architecture, 2, info.normalization, &device).checkpoint(info)
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let saved = checkpoint();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        saved.save(&path, Precision::F32).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), saved);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left over");
        Network::load(&saved, &burn::tensor::Device::flex()).unwrap();
    }

    #[test]
    fn half_precision_is_half_the_size_and_close() {
        let saved = checkpoint();
        let bytes = saved.to_bytes(Precision::F16).unwrap();
        let loaded = Checkpoint::from_bytes(&bytes).unwrap();
        for (name, weight) in &saved.weights {
            for (a, b) in weight.values.iter().zip(&loaded.weights[name].values) {
                assert!((a - b).abs() <= a.abs() / 1024.0 + 1e-6, "{name}: {a} {b}");
            }
        }
    }

    #[test]
    fn bytes_are_a_quarter_of_the_size_and_within_half_a_step() {
        let saved = checkpoint();
        let bytes = saved.to_bytes(Precision::Int8).unwrap();
        let loaded = Checkpoint::from_bytes(&bytes).unwrap();
        assert!(loaded.weights.keys().eq(saved.weights.keys()));
        for (name, weight) in &saved.weights {
            let channel = channels(&weight.shape);
            let largest = |of: usize| {
                let all = weight.values.iter().enumerate().filter(|(at, _)| channel.of(*at) == of);
                all.fold(0.0_f32, |top, (_, value)| top.max(value.abs()))
            };
            for (place, value) in weight.values.iter().enumerate() {
                let exact = weight.shape.len() == 1;
                let step = if exact { 0.0 } else { largest(channel.of(place)) / 127.0 };
                let error = (value - loaded.weights[name].values[place]).abs();
                assert!(error <= step * 0.501, "{name}: {value} is off by {error}");
            }
        }
    }

    #[test]
    fn any_cut_and_any_altered_byte_is_refused() {
        let bytes = checkpoint().to_bytes(Precision::F32).unwrap();
        for length in (0..bytes.len()).step_by(41) {
            assert!(Checkpoint::from_bytes(&bytes[..length]).is_err(), "cut to {length}");
        }
        for place in (0..bytes.len()).step_by(37) {
            let mut altered = bytes.clone();
            altered[place] ^= 4;
            assert!(Checkpoint::from_bytes(&altered).is_err(), "altered at {place}");
        }
    }

    #[test]
    fn weights_that_do_not_fit_are_named() {
        let mut wrong = checkpoint();
        wrong.info.labels.push("fish".into());
        let error = Network::load(&wrong, &burn::tensor::Device::flex()).unwrap_err().to_string();
        assert!(error.contains("head"), "{error}");
    }
}
