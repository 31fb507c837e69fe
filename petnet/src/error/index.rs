//! Why an index, or what is asked of it, was refused.

/// Why an index of embeddings was refused, or a row or query for it.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// An embedding has another length than those of the index, or none.
    #[error("an embedding has {found} values, those of the index have {expected}")]
    Length {
        /// Values that it has.
        found: usize,
        /// Values that the index takes.
        expected: usize,
    },
    /// An embedding holds an infinity or no number.
    #[error("an embedding has values that are not finite")]
    NotFinite,
    /// The file is cut short, or of another kind.
    #[error("not a complete .npy file of 32-bit floats in two dimensions ({0})")]
    Npy(String),
    /// A row of a file is no embedding.
    #[error("row {0} is neither of norm 1 nor zero")]
    Norm(usize),
    /// The embeddings were altered after they were written.
    #[error("the content does not match its checksum in the list of images: the file was altered")]
    Checksum,
    /// The list of images cannot be read.
    #[error("line {line} is not what an index of images has there: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// The reader's message.
        reason: String,
    },
    /// Another version's layout.
    #[error("written in layout {found}, this petnet reads layout {expected}; build the index anew")]
    Format {
        /// The file's layout.
        found: u32,
        /// The layout that is read.
        expected: u32,
    },
    /// The embeddings are those of another model and cannot be compared with this model's.
    #[error(
        "the index was made by the model with SHA-256 {found}, not by this one ({expected}): use that model or build the index anew"
    )]
    OtherModel {
        /// The index's.
        found: String,
        /// The one asked for.
        expected: String,
    },
    /// There are more or fewer embeddings than images.
    #[error("it lists {images} images, there are {embeddings} embeddings")]
    Rows {
        /// Images in the list.
        images: usize,
        /// Rows of the embeddings.
        embeddings: usize,
    },
}
