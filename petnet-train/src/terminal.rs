//! What a person at a terminal sees: log lines, progress bars, one line for an error.

use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::Output;

/// Exit status for bad usage or configuration.
const BAD_USAGE: u8 = 2;
/// Exit status of what Ctrl-C ended, as shells have it.
const INTERRUPTED: u8 = 130;

pub(crate) fn start_log(output: Output, level: &str) {
    let level = if output.quiet { "error" } else { level };
    let asked = std::env::var("RUST_LOG").ok().and_then(|log| log.parse::<Targets>().ok());
    // The levels' names are known.
    let wanted = asked.or_else(|| level.parse().ok()).unwrap_or_default();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time();
    tracing_subscriber::registry().with(wanted).with(lines).init();
}

/// Prints an error once and chooses the exit status.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    // Library errors carry their cause in their own message; only what was added here is joined.
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    eprintln!("error: {text}");
    if matches!(error.downcast_ref(), Some(petnet::Error::Interrupted)) {
        return ExitCode::from(INTERRUPTED);
    }
    let usage = error.chain().any(|cause| {
        cause.is::<crate::config::ConfigError>()
            || matches!(
                cause.downcast_ref(),
                Some(petnet::Error::Config(_) | petnet::Error::Device(_))
            )
    });
    ExitCode::from(if usage { BAD_USAGE } else { 1 })
}

/// A bar over `length` things, hidden when quiet or when standard error is no terminal.
pub(crate) fn bar(length: u64, what: &str, output: Output) -> ProgressBar {
    let template = "{prefix} {bar:32} {pos}/{len} {per_sec} {msg} [{eta}]";
    progress(ProgressBar::new(length), template, what, output)
}

/// A bar over bytes.
pub(crate) fn bytes(length: u64, what: &str, output: Output) -> ProgressBar {
    let template = "{prefix} {bar:32} {bytes}/{total_bytes} {bytes_per_sec} [{eta}]";
    progress(ProgressBar::new(length), template, what, output)
}

/// A counter for when the length is not known.
pub(crate) fn counter(what: &str, output: Output) -> ProgressBar {
    progress(ProgressBar::no_length(), "{prefix} {pos} {per_sec} [{elapsed}]", what, output)
}

fn progress(bar: ProgressBar, template: &str, what: &str, output: Output) -> ProgressBar {
    if output.quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_prefix(what.to_string())
}
