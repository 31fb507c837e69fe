//! What an evaluation leaves behind: figures, charts, one page.

pub(crate) mod charts;
pub(crate) mod compare;
pub(crate) mod findings;
mod labels;
pub(crate) mod page;
