//! One `.safetensors` file that holds all a model needs: the network's graph and weights, labels, preprocessing, and
//! its origin. Independent of architectures: any valid graph in a file can be run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::arch::Normalization;
use crate::disk::write_atomically;
use crate::drift::Reference;
use crate::engine::NetworkSpec;
use crate::error::{Error, ModelError, Result};
use crate::graph::{Graph, SourceHead};
use crate::ood::OutOfDistribution;
use crate::passes;
use crate::preprocess::{MAX_SIZE, Preprocess};
use crate::quantization::Quantization;
pub use crate::storage::Precision;
use crate::storage::{SCALE_SUFFIX, decode_int4, decode_int8, encode, read_weight};
use crate::task::{MAX_LABEL_BYTES, Task};
use crate::weights::Weights;

mod change;

#[cfg(feature = "train")]
pub(crate) use change::Confidence;

const INFO_KEY: &str = "petnet";
const DIGEST_KEY: &str = "sha256";
const FORMAT_VERSION: u32 = 2;

/// The description of a model in its file: everything but the weights.
///
/// ```
/// use petnet::ModelInfo;
/// use petnet::arch::Architecture;
/// use petnet::preprocess::{Preprocess, Resize};
///
/// let preprocess = Preprocess { size: 160, resize: Resize::Squeeze };
/// let labels = vec!["cat".into(), "dog".into(), "rabbit".into()];
/// let info = ModelInfo::new(Architecture::named("petnet")?.graph(3)?, labels, preprocess);
/// assert_eq!((info.temperature, info.threshold), (1.0, 0.0), "nothing was calibrated yet");
/// # Ok::<(), petnet::Error>(())
/// ```
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Version of this layout.
    pub format: u32,
    /// Version of petnet that wrote the file.
    pub petnet_version: String,
    /// The network.
    pub graph: Graph,
    /// The head of the network that training started from, on the same trunk; absent where none was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceHead>,
    /// Class names in the order of the logits.
    pub labels: Vec<String>,
    /// Single-label or multi-label classification.
    #[serde(default, skip_serializing_if = "Task::is_single_label")]
    pub task: Task,
    /// Input size, and how images are resized to it.
    pub preprocess: Preprocess,
    /// Per-channel mean and standard deviation, applied as the network's first layer.
    pub normalization: Normalization,
    /// Logits are divided by it before they become probabilities; 1 where it was never chosen.
    #[serde(default = "one")]
    pub temperature: f32,
    /// Answers of less confidence than this are unsure; 0 where it was never chosen.
    #[serde(default)]
    pub threshold: f32,
    /// Out-of-distribution score and threshold; absent where they were never chosen.
    #[serde(default)]
    pub ood: Option<OutOfDistribution>,
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
    /// Statistics of the images that the model was calibrated on, for drift; absent where none were measured.
    #[serde(default)]
    pub reference: Option<Reference>,
    /// Ranges of the feature maps, for int8 inference; absent where they were never measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
}

fn one() -> f32 {
    1.0
}

impl ModelInfo {
    /// A new model's description, with nothing measured yet.
    pub fn new(graph: Graph, labels: Vec<String>, preprocess: Preprocess) -> Self {
        Self {
            format: FORMAT_VERSION,
            petnet_version: env!("CARGO_PKG_VERSION").into(),
            graph,
            source: None,
            labels,
            task: Task::SingleLabel,
            preprocess,
            normalization: Normalization::default(),
            temperature: 1.0,
            threshold: 0.0,
            ood: None,
            settings: serde_json::Value::Null,
            metrics: serde_json::Value::Null,
            history: serde_json::Value::Null,
            data_digest: String::new(),
            data_time: None,
            trained: None,
            reference: None,
            quantization: None,
        }
    }

    /// Floating-point operations of one image, two for each multiply-add of a convolution; 0 where the network does
    /// not take its size.
    pub fn flops(&self) -> u64 {
        passes::flops(&self.graph, self.preprocess.size as usize).unwrap_or_default()
    }

    /// Validates that all parts fit each other and are within bounds.
    fn validate(&self) -> Result<(), ModelError> {
        let (size, least) = (self.preprocess.size, self.graph.min_side() as u32);
        if !(least..=MAX_SIZE).contains(&size) {
            return Err(ModelError::ImageSize { size, least, most: MAX_SIZE });
        }
        // Not every larger image fits as well: strides may leave sums of unequal sides.
        self.graph.sides(size as usize)?;
        if let Some(source) = &self.source {
            source.validate(&self.graph)?;
            source.graph().sides(size as usize)?;
        }
        let named = |label: &&String| (1..=MAX_LABEL_BYTES).contains(&label.len());
        let distinct: BTreeSet<_> = self.labels.iter().filter(named).collect();
        if distinct.is_empty() || distinct.len() != self.labels.len() {
            return Err(ModelError::Labels);
        }
        let (logits, labels) = (self.graph.classes(), self.labels.len());
        if logits != labels {
            return Err(ModelError::Classes { logits, labels });
        }
        if !self.normalization.is_valid() {
            let Normalization { mean, std } = self.normalization;
            return Err(ModelError::Normalization { mean, std });
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(ModelError::Temperature(self.temperature));
        }
        if let Task::MultiLabel { thresholds } = &self.task {
            let valid = |threshold: &f32| (0.0..=1.0).contains(threshold);
            if thresholds.len() != labels || !thresholds.iter().all(valid) {
                return Err(ModelError::Thresholds);
            }
        }
        if let Some(OutOfDistribution { score, threshold }) = &self.ood {
            score.validate(self.source.as_ref().map(SourceHead::graph))?;
            if !threshold.is_finite() {
                return Err(ModelError::OodThreshold(*threshold));
            }
        }
        if self.reference.as_ref().is_some_and(|reference| !reference.is_valid()) {
            return Err(ModelError::Reference);
        }
        let mut quantization = self.quantization.iter();
        quantization.try_for_each(|quantization| quantization.validate(self.graphs()))
    }

    /// The network whose features out-of-distribution scores are made of.
    pub(crate) fn ood_graph(&self) -> &Graph {
        self.source.as_ref().map_or(&self.graph, SourceHead::graph)
    }

    /// Names and shapes of all values that its weights consist of.
    fn parameters(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        let layers = self.graphs().flat_map(Graph::nodes).flat_map(passes::parameters);
        let ood = self.ood.as_ref().and_then(|ood| ood.score.parameters(self.ood_graph()));
        layers.chain(ood)
    }

    /// The network, and that of the source head.
    fn graphs(&self) -> impl Iterator<Item = &Graph> {
        std::iter::once(&self.graph).chain(self.source.as_ref().map(SourceHead::graph))
    }
}

/// A model's description and weights, on no device; both are known to fit each other.
///
/// ```
/// # #[cfg(feature = "pretrained")] {
/// use petnet::{Checkpoint, Precision};
///
/// let model = Checkpoint::pretrained()?;
/// assert_eq!(model.info().labels, ["cat", "dog"]);
/// let small = model.to_bytes(Precision::Int8)?;
/// assert!(small.len() * 4 < model.to_bytes(Precision::F32)?.len());
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
    /// [`Checkpoint::load`], or nothing where a file is not meant to be petnet's.
    #[cfg(feature = "train")]
    pub(crate) fn load_if_petnet(path: &Path) -> Result<Option<Self>> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        let header = SafeTensors::read_metadata(&bytes);
        let metadata = header.ok().and_then(|(_, header)| header.metadata().clone());
        if !metadata.is_some_and(|metadata| metadata.contains_key(INFO_KEY)) {
            return Ok(None);
        }
        Self::parse(&bytes).map(Some).map_err(|reason| Error::checkpoint(path, reason))
    }

    /// A model of a description and its weights.
    /// Errors: [`ModelError`] where description and weights do not fit each other, or are out of bounds.
    pub(crate) fn new(info: ModelInfo, weights: Weights) -> Result<Self, ModelError> {
        info.validate()?;
        passes::validate(info.parameters(), &weights)?;
        Ok(Self { info, weights })
    }

    /// The model's description.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Number of stored values, batch-norm statistics included.
    pub fn parameters(&self) -> usize {
        self.weights.values().map(|w| w.values.len()).sum()
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

    /// The bytes that [`Checkpoint::save`] writes.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where a weight's shape and values do not fit each other.
    pub fn to_bytes(&self, precision: Precision) -> Result<Vec<u8>> {
        self.serialize(precision).map_err(|reason| Error::checkpoint("<bytes>", reason))
    }

    /// The cat-or-dog network that ships inside the crate.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the embedded file is corrupt.
    #[cfg(feature = "pretrained")]
    pub fn pretrained() -> Result<Self> {
        Self::from_bytes(Self::pretrained_bytes())
    }

    /// The bundled model's file.
    #[cfg(feature = "pretrained")]
    pub fn pretrained_bytes() -> &'static [u8] {
        // Not a constant: the documentation would list its five million bytes as 15 MB of text.
        include_bytes!("../../models/cats-vs-dogs.safetensors")
    }

    /// Writes one file: first beside `path`, then renamed over it, so that a crash leaves the old
    /// file or the new one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>, precision: Precision) -> Result<()> {
        let path = path.as_ref();
        let bytes = self.serialize(precision).map_err(|reason| Error::checkpoint(path, reason))?;
        write_atomically(path, &bytes)
    }

    /// Description, weights and ranges as the engine compiles them.
    pub(crate) fn network(&self) -> NetworkSpec<'_> {
        let Self { info, weights } = self;
        NetworkSpec {
            graph: &info.graph,
            source: info.source.as_ref(),
            normalization: info.normalization,
            side: info.preprocess.size as usize,
            weights,
            ranges: info.quantization.as_ref().map(|quantization| &quantization.ranges),
        }
    }

    #[cfg(any(feature = "burn", feature = "onnx"))]
    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(crate) fn into_info(self) -> ModelInfo {
        self.info
    }

    fn serialize(&self, precision: Precision) -> Result<Vec<u8>, ModelError> {
        let failed = |e: &dyn std::fmt::Display| ModelError::Encode(e.to_string());
        let weights = self.weights.iter();
        let stored: Vec<_> = weights.flat_map(|(name, w)| encode(name, w, precision)).collect();
        let views: Vec<_> = stored
            .iter()
            .map(|(name, shape, dtype, bytes)| {
                let view = TensorView::new(*dtype, shape.clone(), bytes);
                view.map(|view| (name.clone(), view)).map_err(|e| failed(&e))
            })
            .collect::<Result<_, _>>()?;
        let info = serde_json::to_string(&self.info).map_err(|e| failed(&e))?;
        let digest = digest(&info, views.iter().map(|(n, v)| (n.as_str(), v.data())));
        let metadata = HashMap::from([(INFO_KEY.into(), info), (DIGEST_KEY.into(), digest)]);
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| failed(&e))?;
        sorted_header(bytes).map_err(|e| failed(&e))
    }

    fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        let damaged = |e: safetensors::SafeTensorError| {
            let (format, reason) = ("safetensors", e.to_string());
            ModelError::Damaged { format, reason }
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(damaged)?;
        let metadata = header.metadata().as_ref().ok_or(ModelError::Foreign(INFO_KEY))?;
        let text = metadata.get(INFO_KEY).ok_or(ModelError::Foreign(INFO_KEY))?;
        let mut views = tensors.tensors();
        views.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = digest(text, views.iter().map(|(n, v)| (n.as_str(), v.data())));
        if metadata.get(DIGEST_KEY) != Some(&expected) {
            return Err(ModelError::Checksum);
        }
        let info = parse_info(text)?;
        let scales = |name: &String| {
            let scale = tensors.tensor(&format!("{name}{SCALE_SUFFIX}")).map_err(damaged)?;
            Ok::<_, ModelError>(read_weight(name, &scale)?.values)
        };
        let shapes: HashMap<String, Vec<usize>> = info.parameters().collect();
        let mut weights = Weights::new();
        for (name, view) in &views {
            let weight = match view.dtype() {
                Dtype::I8 => decode_int8(name, view, &scales(name)?)?,
                Dtype::U8 => {
                    // Packed 4-bit weights do not store their shape; it follows from the graph.
                    let shape = shapes.get(name).ok_or(ModelError::UnusedWeight(name.clone()))?;
                    decode_int4(name, view, shape, &scales(name)?)?
                }
                _ if name.ends_with(SCALE_SUFFIX) => continue,
                _ => read_weight(name, view)?,
            };
            weights.insert(name.clone(), weight);
        }
        Self::new(info, weights)
    }
}

/// A safetensors file with the keys of its header in order. The writer leaves those of the metadata in the order of a
/// hash map, so that two files of one model would differ.
fn sorted_header(mut bytes: Vec<u8>) -> Result<Vec<u8>, serde_json::Error> {
    let Some((length, rest)) = bytes.split_first_chunk_mut::<8>() else { return Ok(bytes) };
    let length = u64::from_le_bytes(*length) as usize;
    if let Some(header) = rest.get_mut(..length) {
        type Sorted = BTreeMap<String, BTreeMap<String, serde_json::Value>>;
        let sorted: Sorted = serde_json::from_slice(header)?;
        let mut text = serde_json::to_vec(&sorted)?;
        // The same keys and values take the same length; spaces fill up what was aligned.
        text.resize(length, b' ');
        header.copy_from_slice(&text);
    }
    Ok(bytes)
}

/// A file's description, whose layout is read first: another one need not have the same fields.
fn parse_info(text: &str) -> Result<ModelInfo, ModelError> {
    #[derive(Deserialize)]
    struct Layout {
        format: u32,
        #[serde(default)]
        petnet_version: String,
    }
    let unreadable = |e: serde_json::Error| ModelError::Description(e.to_string());
    let Layout { format, petnet_version } = serde_json::from_str(text).map_err(unreadable)?;
    let expected = FORMAT_VERSION;
    if format != expected {
        return Err(ModelError::Format { version: petnet_version, format, expected });
    }
    serde_json::from_str(text).map_err(unreadable)
}

/// SHA-256, in hexadecimal digits, of the metadata and the tensors of a safetensors file, in any order.
pub(crate) fn digest<'a>(
    metadata: &str,
    tensors: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> String {
    let mut hash = Sha256::new();
    hash.update(metadata);
    let mut sorted: Vec<_> = tensors.collect();
    sorted.sort();
    for (name, data) in sorted {
        hash.update(name);
        hash.update((data.len() as u64).to_le_bytes());
        hash.update(data);
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
pub(crate) mod tests;
