//! Results of an evaluation: metrics, charts, an HTML page.

pub(crate) mod charts;
pub(crate) mod compare;
pub(crate) mod evaluation;
mod labels;
pub(crate) mod page;

use anyhow::Result;
use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde::Serialize;

/// Renders the template of an HTML page.
pub(crate) fn render(template: &str, values: impl Serialize) -> Result<String> {
    let mut environment = Environment::new();
    environment.add_filter("percent", |value: f64| format!("{:.2} %", value * 100.0));
    environment.add_filter("cosine", |value: f64| format!("{value:.4}"));
    // Values are escaped, as the name ends in `.html`.
    environment.add_template("page.html", template)?;
    let values = Value::from(Serde(serde_json::to_value(values)?));
    Ok(environment.get_template("page.html")?.render(values)?)
}
