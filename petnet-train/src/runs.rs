//! `runs`: recorded runs listed, shown, compared, and sent to an MLflow server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use clap::Subcommand;
use comfy_table::{Table, presets};
use petnet::mlflow::RequestError;
use serde_json::{Value, json};

use crate::error::UsageError;
use crate::files;
use crate::report::compare;
use crate::terminal::{self, Output};
use crate::tracking::{self, Run, Tracking};

/// Metrics in the table of runs, and their column titles.
const COLUMNS: [(&str, &str); 4] = [
    ("val_accuracy", "val acc"),
    ("val_loss", "val loss"),
    ("test_accuracy", "test acc"),
    ("seconds", "seconds"),
];

/// List, show, compare and send recorded runs
#[derive(clap::Args)]
#[command(after_help = "Examples:
  petnet-train runs list
  petnet-train runs show 019ab2
  petnet-train runs compare 019ab2 019ab3 --html compare.html
  MLFLOW_TRACKING_URI=http://localhost:5001 petnet-train runs sync")]
pub(crate) struct Runs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List all runs, the newest first
    #[command(after_help = "Examples:\n  petnet-train runs list\n  petnet-train runs list --json")]
    List,
    /// Show one run: settings, metrics, files
    #[command(after_help = "Examples:\n  petnet-train runs show 019ab2")]
    Show {
        /// Identifier of the run or its beginning
        run: String,
    },
    /// Compare runs: the settings that differ, and the metrics
    #[command(
        after_help = "Examples:\n  petnet-train runs compare 019ab2 019ab3 --html compare.html"
    )]
    Compare {
        /// Identifiers of the runs or their beginnings
        #[arg(required = true, num_args = 2..)]
        runs: Vec<String>,
        /// Also write a page with one chart per metric, which has the curves of all runs
        #[arg(long, value_name = "PAGE.html")]
        html: Option<PathBuf>,
    },
    /// Send the records that the server at MLFLOW_TRACKING_URI lacks
    #[command(
        after_help = "Examples:\n  MLFLOW_TRACKING_URI=http://localhost:5001 petnet-train runs sync"
    )]
    Sync {
        /// Identifiers of the runs or their beginnings [default: all]
        runs: Vec<String>,
    },
}

impl Runs {
    pub(crate) fn run(self, output: Output) -> Result<()> {
        let tracking = Tracking::required()?;
        match self.command {
            Command::List => list(&tracking, output),
            Command::Show { run } => show(&tracking.store.run(&run)?, output),
            Command::Compare { runs, html } => {
                let runs = find_runs(&tracking, &runs)?;
                if let Some(page) = html {
                    files::write(&page, compare::html(&runs)?.as_bytes())?;
                }
                compare_runs(&runs, output)
            }
            Command::Sync { runs } => sync(&tracking, &runs, output),
        }
    }
}

fn find_runs(tracking: &Tracking, names: &[String]) -> Result<Vec<Run>> {
    names.iter().map(|name| tracking.store.run(name)).collect()
}

fn table(head: Vec<String>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head);
    table
}

fn time(millis: i64) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(millis.max(0) as u64);
    humantime::format_rfc3339_seconds(time).to_string()
}

fn figure(run: &Run, key: &str) -> String {
    let value = run.last(key);
    value.map_or_else(|| "-".into(), |value| format!("{value:.4}"))
}

fn about(run: &Run) -> Value {
    let meta = run.meta();
    json!({
        "run_id": run.id(),
        "name": meta.run_name,
        "status": meta.status().name(),
        "start_time": meta.start_time,
        "end_time": meta.end_time,
    })
}

fn list(tracking: &Tracking, output: Output) -> Result<()> {
    let runs = tracking.store.runs()?;
    if output.json {
        let all: Vec<Value> = runs.iter().map(about).collect();
        say!("{}", serde_json::to_string(&all)?);
        return Ok(());
    }
    let mut head: Vec<String> = ["run", "name", "status", "started"].map(String::from).into();
    head.extend(COLUMNS.map(|(_, title)| title.to_string()));
    let mut table = table(head);
    for run in &runs {
        let meta = run.meta();
        let status = meta.status().name().to_lowercase();
        let mut row = vec![run.id().into(), meta.run_name.clone(), status, time(meta.start_time)];
        row.extend(COLUMNS.map(|(key, _)| figure(run, key)));
        table.add_row(row);
    }
    say!("{table}");
    Ok(())
}

fn show(run: &Run, output: Output) -> Result<()> {
    let figures: Vec<(String, f64)> = run
        .metric_files()?
        .into_iter()
        .filter_map(|(key, _)| run.last(&key).map(|value| (key, value)))
        .collect();
    let (params, tags) = (run.params()?, run.tags()?);
    let artifacts: Vec<String> = run.artifacts()?.into_iter().map(|(path, _)| path).collect();
    if output.json {
        let mut all = about(run);
        all["params"] = json!(BTreeMap::from_iter(params));
        all["tags"] = json!(BTreeMap::from_iter(tags));
        all["metrics"] = json!(BTreeMap::from_iter(figures));
        all["artifacts"] = json!(artifacts);
        say!("{all}");
        return Ok(());
    }
    let meta = run.meta();
    say!("{} {} ({})", run.id(), meta.run_name, meta.status().name().to_lowercase());
    say!("started {}", time(meta.start_time));
    let rows = |title: &str, pairs: Vec<(String, String)>| {
        let mut table = table(vec![title.to_string(), String::new()]);
        for (key, value) in pairs {
            table.add_row([key, value]);
        }
        say!("\n{table}");
    };
    rows("metric", figures.into_iter().map(|(key, v)| (key, format!("{v:.6}"))).collect());
    rows("setting", params);
    let short = |(key, _): &(String, String)| key != "mlflow.log-model.history";
    rows("tag", tags.into_iter().filter(short).collect());
    say!("\nfiles in {}", run.folder().join("artifacts").display());
    artifacts.iter().for_each(|path| say!("  {path}"));
    Ok(())
}

/// Prints the settings that differ between runs, and the last value of every metric.
fn compare_runs(runs: &[Run], output: Output) -> Result<()> {
    let settings: Vec<Vec<(String, String)>> =
        runs.iter().map(Run::params).collect::<Result<_>>()?;
    let differing = compare::differing(&settings);
    let figures = compare::final_figures(runs)?;
    if output.json {
        let ids: Vec<&str> = runs.iter().map(Run::id).collect();
        let (params, metrics) = (BTreeMap::from_iter(differing), BTreeMap::from_iter(figures));
        let all = json!({ "runs": ids, "params": params, "metrics": metrics });
        say!("{all}");
        return Ok(());
    }
    let mut head = vec![String::new()];
    head.extend(runs.iter().map(compare::title));
    let mut table = table(head);
    for (key, values) in differing.into_iter().chain(figures) {
        table.add_row([vec![key], values].concat());
    }
    say!("{table}");
    Ok(())
}

fn sync(tracking: &Tracking, names: &[String], output: Output) -> Result<()> {
    let server = tracking.server()?;
    let runs = match names {
        [] => tracking.store.runs()?,
        names => find_runs(tracking, names)?,
    };
    if runs.is_empty() {
        return Err(UsageError(format!("no runs in {}", tracking.store.root().display())).into());
    }
    let bar = terminal::bar(runs.len() as u64, "sending", output);
    let mut sent = Vec::new();
    let mut first = None;
    for run in &runs {
        match tracking::sync(run, server) {
            Ok(remote) => {
                sent.push(json!({ "run_id": run.id(), "server_run_id": remote.run_id }));
            }
            // A run that cannot be sent does not keep the others from being sent.
            Err(error) => {
                let unreachable =
                    matches!(error.downcast_ref(), Some(RequestError::Unreachable { .. }));
                first.get_or_insert(error.context(format!("run {}", run.id())));
                if unreachable {
                    break;
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    if let Some(error) = first {
        let failed = runs.len() - sent.len();
        return Err(error
            .context(format!("{failed} of {} runs are not complete on the server", runs.len())));
    }
    if output.json {
        say!("{}", json!(sent));
    } else {
        say!("{} runs are complete on {}", runs.len(), server.uri());
    }
    Ok(())
}
