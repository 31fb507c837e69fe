//! Errors of the library. Messages name the path, setting or key that is wrong.

mod format;
mod index;

use std::path::{Path, PathBuf};

use crate::graph::GraphError;
use crate::task::MAX_LABEL_BYTES;

pub use format::UnsupportedFormat;
pub use index::IndexError;

/// The result of every fallible call of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of petnet.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An image cannot be decoded or is beyond the limits.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// An image file cannot be decoded or is beyond the limits.
    #[error("{path}: {source}")]
    ImageFile {
        /// Path of the image.
        path: PathBuf,
        /// The reason.
        source: ImageError,
    },
    /// A data set is missing, empty or inconsistent.
    #[error("data set: {0}")]
    Dataset(String),
    /// A model file is damaged or does not fit.
    #[error("checkpoint {path}: {reason}")]
    Checkpoint {
        /// The file, or `<bytes>` when it came from memory.
        path: PathBuf,
        /// The reason.
        reason: ModelError,
    },
    /// An embedding does not fit an index, or a query.
    #[error("index: {0}")]
    Index(#[from] IndexError),
    /// A file of an index is damaged or does not fit.
    #[error("index {path}: {reason}")]
    IndexFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: IndexError,
    },
    /// A setting is out of range or contradicts another.
    #[error("configuration: {0}")]
    Config(String),
    /// The computing device does not exist, was not compiled in, or failed.
    #[error("device: {0}")]
    Device(String),
    /// Training produced a loss that is not finite.
    #[error(
        "loss is {loss} at epoch {epoch}, step {step}: lower `learning_rate` or set `grad_clip`; the last good checkpoint is kept"
    )]
    Diverged {
        /// Epoch, from 1.
        epoch: usize,
        /// Step within the epoch, from 1.
        step: usize,
        /// The loss itself.
        loss: f32,
    },
    /// The observer stopped the training; the state was saved and a run with `resume` continues from it. Where only the last
    /// layer is trained, no state is saved and such a run starts over.
    #[error("interrupted; the state is saved, set `resume` to continue")]
    Interrupted,
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    #[cfg(feature = "files")]
    pub(crate) fn dataset(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Dataset(format!("{}: {reason}", path.display()))
    }

    pub(crate) fn checkpoint(path: impl AsRef<Path>, reason: impl Into<ModelError>) -> Self {
        Self::Checkpoint { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }
}

impl From<GraphError> for Error {
    fn from(reason: GraphError) -> Self {
        Self::Config(reason.to_string())
    }
}

/// Why a model file was refused.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// The file is cut short, or of another kind.
    #[error("not a complete {format} file ({reason})")]
    Damaged {
        /// The expected kind of file.
        format: &'static str,
        /// The parser's message.
        reason: String,
    },
    /// A safetensors file that petnet did not write.
    #[error("not a petnet model: its metadata has no `{0}`")]
    Foreign(&'static str),
    /// The content was changed after it was written.
    #[error("the content does not match its checksum: the file was altered")]
    Checksum,
    /// The description in the metadata is not the JSON of a model.
    #[error("unreadable description: {0}")]
    Description(String),
    /// The layout of the file is another version's.
    #[error("written by petnet {version} in layout {format}, this petnet reads layout {expected}")]
    Format {
        /// The version of petnet that wrote it.
        version: String,
        /// Version of its layout.
        format: u32,
        /// Version of the layout that is read.
        expected: u32,
    },
    /// The network itself is not valid.
    #[error("network: {0}")]
    Graph(#[from] GraphError),
    /// A layer's weight is not in the file.
    #[error("weight `{0}` is missing")]
    MissingWeight(String),
    /// A weight that belongs to no layer.
    #[error("weight `{0}` belongs to no layer")]
    UnusedWeight(String),
    /// A weight has another shape than its layer.
    #[error("weight `{name}` has shape {found:?}, its layer needs {expected:?}")]
    WeightShape {
        /// The weight's name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the layer needs.
        expected: Vec<usize>,
    },
    /// A weight has values that are infinite or NaN, as after a training that diverged.
    #[error("weight `{0}` holds values that are not finite")]
    WeightValue(String),
    /// A weight is of a type that is not supported.
    #[error("weight `{name}` is of type {dtype}, which is not supported")]
    WeightType {
        /// The weight's name.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// The distributions for drift are not histograms.
    #[error("its reference for drift needs rising edges, and one count more than edges")]
    Reference,
    /// A multi-label model does not have one threshold per class, each from 0 to 1.
    #[error("thresholds must be one per class, each between 0 and 1")]
    Thresholds,
    /// The image size is out of range.
    #[error("image_size is {size}, must be between {least} and {most}")]
    ImageSize {
        /// Side of the network's input, in pixels.
        size: u32,
        /// The smallest that the network takes.
        least: u32,
        /// The largest that petnet takes.
        most: u32,
    },
    /// Class names are empty, longer than 256 bytes, or not unique.
    #[error("its class names must be unique, not empty, and of at most {MAX_LABEL_BYTES} bytes")]
    Labels,
    /// There are more or fewer class names than logits.
    #[error("its network has {logits} classes, {labels} are named")]
    Classes {
        /// Outputs of the last layer.
        logits: usize,
        /// Class names.
        labels: usize,
    },
    /// The temperature is out of range.
    #[error("temperature is {0}, must be above 0")]
    Temperature(f32),
    /// The classes of an out-of-distribution score are not a proper subset of the source head's.
    #[error("out-of-distribution classes must be a proper subset of the source head's {0} classes")]
    OodClasses(usize),
    /// The normalisation is out of range.
    #[error("normalization has mean {mean:?} and std {std:?}, must be finite, and std above 0")]
    Normalization {
        /// Mean of each channel.
        mean: [f32; 3],
        /// Standard deviation of each channel.
        std: [f32; 3],
    },
    /// The out-of-distribution threshold is not a number.
    #[error("out-of-distribution threshold is {0}, must be a number")]
    OodThreshold(f32),
    /// There are no images to measure the ranges of feature maps on.
    #[error("quantization needs at least one image")]
    NoImages,
    /// An image to measure ranges on has another size than the model's.
    #[error("quantization: an image is {width} x {height}, the model takes {size} x {size}")]
    OtherSize {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The side of the network's input, in pixels.
        size: u32,
    },
    /// A quantised model has no range for a feature map.
    #[error("quantization has no range for feature map `{0}`")]
    MissingRange(String),
    /// The range of a feature map is empty or not finite.
    #[error(
        "quantization: the range of feature map `{name}` is {range:?}, must be finite and not empty"
    )]
    Range {
        /// Name of the node that computes the feature map.
        name: String,
        /// Its smallest and its largest value.
        range: [f32; 2],
    },
    /// The file has no weights.
    #[error("it holds no weights")]
    Empty,
    /// The file has more values than any supported network.
    #[error("it holds {values} values, more than the limit of {limit}")]
    TooManyValues {
        /// Values of all its tensors.
        values: usize,
        /// The limit.
        limit: usize,
    },
    /// A PyTorch file of a network that petnet does not support.
    #[error("its weights are of no supported network ({known}); it holds {keys} tensors: {first}")]
    UnknownNetwork {
        /// Names of the supported networks.
        known: String,
        /// Number of tensors.
        keys: usize,
        /// The names of the first few.
        first: String,
    },
    /// The network of a file is not that of the settings.
    #[error("it holds a {found}, the settings require a {expected}")]
    OtherNetwork {
        /// Name of the file's network.
        found: String,
        /// Name of the network in the settings.
        expected: String,
    },
    /// `class_names` of a PyTorch file's `config` is not a list of strings.
    #[error("`class_names` is not a list of strings: {0}")]
    ClassNames(String),
    /// A model could not be encoded.
    #[error("cannot be written: {0}")]
    Encode(String),
}

/// Why an image was refused.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No bytes at all.
    #[error("the file is empty")]
    Empty,
    /// More bytes than [`Limits::max_bytes`](crate::preprocess::Limits).
    #[error("the file has {bytes} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Size of the file.
        bytes: u64,
        /// The limit it exceeds.
        limit: u64,
    },
    /// More pixels than [`Limits::max_pixels`](crate::preprocess::Limits).
    #[error("the image is {width} x {height}, more than the limit of {limit} pixels")]
    TooManyPixels {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit their product exceeds.
        limit: u64,
    },
    /// A side longer than [`Limits::max_side`](crate::preprocess::Limits).
    #[error(
        "the image is {width} x {height}, with a side of more than the limit of {limit} pixels"
    )]
    TooLong {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The limit that one of them exceeds.
        limit: u32,
    },
    /// More scans than [`Limits::max_scans`](crate::preprocess::Limits), or than an image of this size may have.
    #[error("the JPEG has {scans} scans, more than the limit of {limit}")]
    TooManyScans {
        /// Number of scans.
        scans: u64,
        /// The limit that it exceeds.
        limit: u64,
    },
    /// The bytes are none of JPEG, PNG, WebP, GIF or BMP.
    #[error("not a JPEG, PNG, WebP, GIF or BMP image")]
    UnknownFormat,
    /// An image in a format that is recognised but not supported.
    #[error("{0} is not read: {advice}", advice = .0.advice())]
    UnsupportedFormat(UnsupportedFormat),
    /// The bytes are compressed by gzip.
    #[error("gzip, not an image: expand it first")]
    Compressed,
    /// A known format in a variant that cannot be decoded.
    #[error("unsupported image: {0}")]
    Unsupported(String),
    /// The bytes contradict their format, or end too early.
    #[error("broken image: {0}")]
    Broken(String),
    /// Decoding would need more memory than [`Limits::max_alloc`](crate::preprocess::Limits).
    #[error("decoding needs more memory than the limit")]
    TooMuchMemory,
    /// The decoder panicked on these bytes; the panic was contained.
    #[error("the decoder failed on this image")]
    DecoderPanicked,
}
