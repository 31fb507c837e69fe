//! What can go wrong, grouped by who must act. Messages name the path or the key.

mod format;
mod index;

use std::path::{Path, PathBuf};

use crate::graph::GraphError;

pub use format::ForeignFormat;
pub use index::IndexError;

/// The result of every fallible call of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that petnet refuses or fails at.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The picture cannot be used; whoever sent it must act.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// The same, for a picture that has a path.
    #[error("{path}: {source}")]
    ImageFile {
        /// Where the picture lies.
        path: PathBuf,
        /// What is wrong with it.
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
        /// What is wrong with it.
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
        /// What is wrong with it.
        reason: IndexError,
    },
    /// A setting is out of range or contradicts another.
    #[error("configuration: {0}")]
    Config(String),
    /// The computing device does not exist or was not compiled in.
    #[error("device: {0}")]
    Device(String),
    /// Training produced a loss that is not a number.
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
    /// Someone asked to stop; the state was saved and `resume` goes on from there.
    #[error("interrupted; the state is saved, continue with `--resume`")]
    Interrupted,
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
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
        /// Which kind of file it should be.
        format: &'static str,
        /// What its reader said.
        reason: String,
    },
    /// A safetensors file that petnet did not write.
    #[error("no model of petnet's: its metadata has no `{0}`")]
    Foreign(&'static str),
    /// The content was altered after it was written.
    #[error("the content does not match its checksum: the file was altered")]
    Checksum,
    /// The description is no valid JSON of a model.
    #[error("unreadable description: {0}")]
    Description(String),
    /// Another version's layout.
    #[error("written by petnet {version} in layout {format}, this petnet reads layout {expected}")]
    Format {
        /// The petnet that wrote it.
        version: String,
        /// Its layout.
        format: u32,
        /// The layout that is read.
        expected: u32,
    },
    /// The network itself is not valid.
    #[error("network: {0}")]
    Graph(#[from] GraphError),
    /// A layer's weight is not in the file.
    #[error("weight `{0}` is missing")]
    MissingWeight(String),
    /// A weight is no layer's.
    #[error("weight `{0}` belongs to no layer")]
    UnusedWeight(String),
    /// A weight has another shape than its layer.
    #[error("weight `{name}` has shape {found:?}, its layer needs {expected:?}")]
    WeightShape {
        /// The weight's name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The layer's.
        expected: Vec<usize>,
    },
    /// A weight has values that are infinite or no numbers, as of a training that diverged.
    #[error("weight `{0}` holds values that are not finite")]
    WeightValue(String),
    /// A weight is of a type that is not read.
    #[error("weight `{name}` is of type {dtype}, which is not supported")]
    WeightType {
        /// The weight's name.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// A multi-label model's thresholds are not one a class, each 0 to 1.
    #[error("thresholds must be one a class, each between 0 and 1")]
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
    #[error("its classes need names, each its own, of at most 256 bytes")]
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
    /// The classes for an out-of-distribution score are not some of a source head's.
    #[error(
        "out-of-distribution classes must be some of the source head's {0} classes, and not all"
    )]
    OodClasses(usize),
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
    /// A quantised model lacks the range of a feature map.
    #[error("quantization has no range for feature map `{0}`")]
    MissingRange(String),
    /// The range of a feature map holds no values, or is not finite.
    #[error(
        "quantization: the range of feature map `{name}` is {range:?}, must be finite and not empty"
    )]
    Range {
        /// The node that gives the feature map.
        name: String,
        /// Its smallest and its largest value.
        range: [f32; 2],
    },
    /// The file holds nothing.
    #[error("it holds no weights")]
    Empty,
    /// The file holds more than any network here.
    #[error("it holds {values} values, more than the limit of {limit}")]
    TooManyValues {
        /// Values of all its tensors.
        values: usize,
        /// The limit.
        limit: usize,
    },
    /// A PyTorch file of a network that petnet does not have.
    #[error(
        "its weights are of no network that petnet knows ({known}); it holds {keys} tensors: {first}"
    )]
    UnknownNetwork {
        /// The names that petnet knows.
        known: String,
        /// Number of tensors.
        keys: usize,
        /// The names of the first few.
        first: String,
    },
    /// The network of a file is not the one that was asked for.
    #[error("it holds a {found}, the settings ask for a {expected}")]
    OtherNetwork {
        /// The file's.
        found: String,
        /// The one asked for.
        expected: String,
    },
    /// `class_names` of a PyTorch file's `config` is no list of texts.
    #[error("`class_names` is no list of texts: {0}")]
    ClassNames(String),
    /// A model could not be written in its form.
    #[error("cannot be written: {0}")]
    Encode(String),
}

/// Why a picture was refused.
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
    #[error("the picture is {width} x {height}, more than the limit of {limit} pixels")]
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
        "the picture is {width} x {height}, with a side of more than the limit of {limit} pixels"
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
    #[error("not a JPEG, PNG, WebP, GIF or BMP picture")]
    UnknownFormat,
    /// An image in a format that is known and not read.
    #[error("{0} is not read: {advice}", advice = .0.advice())]
    ForeignFormat(ForeignFormat),
    /// Bytes compressed by gzip, with whatever inside.
    #[error("gzip, not an image: expand it first")]
    Compressed,
    /// A known format in a variant that cannot be decoded.
    #[error("unsupported picture: {0}")]
    Unsupported(String),
    /// The bytes contradict their format, or end too early.
    #[error("broken picture: {0}")]
    Broken(String),
    /// Decoding would need more memory than [`Limits::max_alloc`](crate::preprocess::Limits).
    #[error("decoding needs more memory than the limit")]
    TooMuchMemory,
    /// The decoder panicked on these bytes; the panic was contained.
    #[error("the decoder failed on this picture")]
    DecoderPanicked,
}
