//! What can go wrong, grouped by who must act. Messages name the path or the key.

use std::path::{Path, PathBuf};

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
        reason: String,
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

    pub(crate) fn checkpoint(path: impl AsRef<Path>, reason: impl ToString) -> Self {
        Self::Checkpoint { path: path.as_ref().to_path_buf(), reason: reason.to_string() }
    }
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
    /// The bytes are none of JPEG, PNG, WebP, GIF or BMP.
    #[error("not a JPEG, PNG, WebP, GIF or BMP picture")]
    UnknownFormat,
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
