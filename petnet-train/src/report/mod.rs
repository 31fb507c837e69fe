//! Results of an evaluation: metrics, charts, an HTML page.

pub(crate) mod charts;
pub(crate) mod compare;
pub(crate) mod findings;
mod labels;
pub(crate) mod page;
