//! Comparison of runs: settings that differ, last values of metrics, and a page with their curves.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;

use super::charts::{self, Curve};
use super::render;
use crate::tracking::Run;

const TEMPLATE: &str = include_str!("compare.html");
/// Metrics by epoch that get a chart where a run has them, and the titles of the charts.
const CURVES: [(&str, &str); 5] = [
    ("val_accuracy", "Validation accuracy"),
    ("val_loss", "Validation loss"),
    ("train_accuracy", "Training accuracy"),
    ("train_loss", "Training loss"),
    ("learning_rate", "Learning rate"),
];

/// Name of a run and the beginning of its identifier.
pub(crate) fn title(run: &Run) -> String {
    let id: String = run.id().chars().take(6).collect();
    format!("{} {id}", run.meta().run_name)
}

/// Settings whose value differs between runs, with one value per run.
pub(crate) fn differing(runs: &[Vec<(String, String)>]) -> Vec<(String, Vec<String>)> {
    let mut by_key: BTreeMap<&str, Vec<Option<&str>>> = BTreeMap::new();
    for (index, settings) in runs.iter().enumerate() {
        for (key, value) in settings {
            by_key.entry(key).or_insert_with(|| vec![None; runs.len()])[index] = Some(value);
        }
    }
    by_key
        .into_iter()
        .filter(|(_, values)| values.iter().any(|value| value != &values[0]))
        .map(|(key, values)| {
            let values = values.iter().map(|value| value.unwrap_or("-").to_string()).collect();
            (key.to_string(), values)
        })
        .collect()
}

/// The last value of each metric, with one value per run. Metrics by step and of the system, whose names contain `/`, are
/// left out.
pub(crate) fn final_figures(runs: &[Run]) -> Result<Vec<(String, Vec<String>)>> {
    let mut keys = std::collections::BTreeSet::new();
    for run in runs {
        let all = run.metric_files()?.into_iter().map(|(key, _)| key);
        keys.extend(all.filter(|key| !key.contains('/')));
    }
    let value = |run: &Run, key: &str| run.last(key).map_or("-".into(), |v| format!("{v:.5}"));
    Ok(keys
        .into_iter()
        .map(|key| {
            let values = runs.iter().map(|run| value(run, &key)).collect();
            (key, values)
        })
        .collect())
}

/// The HTML page.
pub(crate) fn html(runs: &[Run]) -> Result<String> {
    let titles: Vec<String> = runs.iter().map(title).collect();
    let mut curves = Vec::new();
    for (key, name) in CURVES {
        let lines: Vec<Curve> = runs
            .iter()
            .zip(&titles)
            .map(|(run, title)| {
                let points = run.points(key).iter().map(|p| (p.step as f64, p.value)).collect();
                (title.clone(), points)
            })
            .collect();
        if lines.iter().any(|(_, points)| points.len() > 1) {
            curves.push(charts::overlaid(name, &lines)?);
        }
    }
    let settings: Vec<_> = runs.iter().map(Run::params).collect::<Result<_>>()?;
    let values = json!({
        "titles": titles,
        "curves": curves,
        "settings": differing(&settings),
        "figures": final_figures(runs)?,
    });
    render(TEMPLATE, values)
}

#[cfg(test)]
mod tests {
    use super::differing;

    #[test]
    fn only_settings_that_differ_are_listed() {
        let run =
            |rate: &str| vec![("rate".to_string(), rate.to_string()), ("seed".into(), "1".into())];
        let mut second = run("0.2");
        second.push(("extra".into(), "x".into()));
        let rows = differing(&[run("0.1"), second]);
        let expected = [("extra", ["-", "x"]), ("rate", ["0.1", "0.2"])];
        assert_eq!(rows.len(), expected.len());
        for ((key, values), (name, expected)) in rows.iter().zip(expected) {
            assert_eq!((key.as_str(), values.as_slice()), (name, &expected.map(String::from)[..]));
        }
    }
}
