//! The error for bad usage, which decides the exit status.

/// Invalid arguments, settings or environment variables. The process ends with status 2, other failures with 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);
