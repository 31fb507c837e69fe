//! Errors of indices of embeddings.

/// The reason why an index of embeddings, or a row or query for it, was refused.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// An embedding is empty, or has another length than those of the index.
    #[error("an embedding has {found} values, those of the index have {expected}")]
    Length {
        /// Values that it has.
        found: usize,
        /// Values that the index takes.
        expected: usize,
    },
    /// An embedding has values that are infinite or NaN.
    #[error("an embedding has values that are not finite")]
    NotFinite,
    /// The file is cut short, or of another kind.
    #[error("not a complete .npy file of 32-bit floats in two dimensions ({0})")]
    Npy(String),
    /// A row of a file is not an embedding.
    #[error("row {0} is neither of norm 1 nor zero")]
    Norm(usize),
    /// The embeddings were changed after they were written.
    #[error("the content does not match its checksum in the list of images: the file was altered")]
    Checksum,
    /// A line of the list of images cannot be parsed.
    #[error("line {line} of the list of images is invalid: {reason}")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// The parser's message.
        reason: String,
    },
    /// The layout of the index is another version's.
    #[error(
        "written in layout {found}, this petnet reads layout {expected}; build the index again"
    )]
    Format {
        /// The file's layout.
        found: u32,
        /// The layout that is read.
        expected: u32,
    },
    /// The embeddings are those of another model and cannot be compared with this model's.
    #[error(
        "the index was made by the model with SHA-256 {found}, not by this one ({expected}): use that model or build the index again"
    )]
    OtherModel {
        /// SHA-256 of the index's model.
        found: String,
        /// SHA-256 of this model.
        expected: String,
    },
    /// The folder holds another index than the one that was read from it or written to it last.
    #[error("it was changed by another process: open it again and repeat the update")]
    Changed,
    /// The number of embeddings is not that of images.
    #[error("it lists {images} images, there are {embeddings} embeddings")]
    Rows {
        /// Number of images in the list.
        images: usize,
        /// Number of embeddings.
        embeddings: usize,
    },
}
