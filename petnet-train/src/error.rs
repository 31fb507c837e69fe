//! The error for bad usage, which decides the exit status.

use std::fmt;

/// Invalid arguments, settings or environment variables. The process ends with status 2, other failures with 1.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}
