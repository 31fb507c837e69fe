//! Output: results, log lines, progress bars, and one line for an error.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::error::UsageError;

/// Amount and form of the output; flags of every subcommand.
#[derive(Args, Clone, Copy)]
pub(crate) struct Output {
    /// Print results only: no progress bars, no log lines below errors
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Print results as JSON on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// Writes a line of results to standard output. Unlike `println!`, it does not panic where that is closed or full: a
/// training continues, and [`exit`] reports the error at the end.
macro_rules! say {
    ($($text:tt)*) => { $crate::terminal::print(format_args!($($text)*)) };
}

/// Writes a line to standard error. A failure is ignored: there is nowhere else to report it.
macro_rules! say_error {
    ($($text:tt)*) => { $crate::terminal::print_error(format_args!($($text)*)) };
}

/// Returned by work that stopped because standard output cannot be written to; [`OUTPUT_ERROR`] holds the reason.
#[derive(Debug, thiserror::Error)]
#[error("standard output cannot be written to")]
struct OutputClosed;

/// First error of writing to standard output.
static OUTPUT_ERROR: OnceLock<io::Error> = OnceLock::new();

/// Exit status after bad usage or configuration.
const BAD_USAGE: u8 = 2;
/// Exit status after Ctrl-C: 128 and the number of SIGINT, as shells report it.
const INTERRUPTED: u8 = 130;

pub(crate) fn start_log(output: Output, level: &str) {
    let level = if output.quiet { "error" } else { level };
    let variable = std::env::var("RUST_LOG").ok().and_then(|log| log.parse::<Targets>().ok());
    let levels = variable.or_else(|| level.parse().ok()).unwrap_or_default();
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(!no_color && io::stderr().is_terminal())
        .log_internal_errors(false)
        .without_time();
    tracing_subscriber::registry().with(levels).with(lines).init();
}

pub(crate) fn print(text: Arguments) {
    // `exit` reports the error.
    let _ = print_or_stop(text);
}

/// Writes a line to standard output, for work that should stop once its results are no longer read.
/// Errors: when standard output cannot be written to.
pub(crate) fn print_or_stop(text: Arguments) -> anyhow::Result<()> {
    if OUTPUT_ERROR.get().is_none()
        && let Err(error) = writeln!(io::stdout(), "{text}")
    {
        let _ = OUTPUT_ERROR.set(error);
    }
    OUTPUT_ERROR.get().map_or(Ok(()), |_| Err(OutputClosed.into()))
}

pub(crate) fn print_error(text: Arguments) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints an error, if any, and returns the exit status. A pipe that its reader has closed, as `head` does, is no error.
pub(crate) fn exit(outcome: &anyhow::Result<()>) -> ExitCode {
    match outcome {
        Err(error) if !error.is::<OutputClosed>() => report(error),
        Ok(()) | Err(_) => match OUTPUT_ERROR.get() {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => {
                say_error!("error: standard output: {error}");
                ExitCode::FAILURE
            }
            Some(_) | None => ExitCode::SUCCESS,
        },
    }
}

/// Prints an error once, with its causes.
fn report(error: &anyhow::Error) -> ExitCode {
    // Errors of the library repeat their cause in their message; only causes that the message lacks are appended.
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    say_error!("error: {text}");
    ExitCode::from(exit_status(error))
}

/// The exit status after an error, by all errors of its chain of causes.
fn exit_status(error: &anyhow::Error) -> u8 {
    let causes = || error.chain().filter_map(|cause| cause.downcast_ref::<petnet::Error>());
    let interrupted = |cause: &petnet::Error| matches!(cause, petnet::Error::Interrupted);
    let setting = |cause: &petnet::Error| {
        matches!(cause, petnet::Error::Config(_) | petnet::Error::Device(_))
    };
    if causes().any(interrupted) {
        INTERRUPTED
    } else if error.chain().any(|cause| cause.is::<UsageError>()) || causes().any(setting) {
        BAD_USAGE
    } else {
        1
    }
}

/// A progress bar over `length` items, hidden with `--quiet` and where standard error is no terminal.
pub(crate) fn bar(length: u64, title: &str, output: Output) -> ProgressBar {
    let template = "{prefix} {bar:32} {pos}/{len} {per_sec} {msg} [{eta}]";
    progress(ProgressBar::new(length), template, title, output)
}

/// A progress bar over bytes.
pub(crate) fn bytes(length: u64, title: &str, output: Output) -> ProgressBar {
    let template = "{prefix} {bar:32} {bytes}/{total_bytes} {bytes_per_sec} [{eta}]";
    progress(ProgressBar::new(length), template, title, output)
}

/// A counter, for work of unknown length.
pub(crate) fn counter(title: &str, output: Output) -> ProgressBar {
    progress(ProgressBar::no_length(), "{prefix} {pos} {per_sec} [{elapsed}]", title, output)
}

fn progress(bar: ProgressBar, template: &str, title: &str, output: Output) -> ProgressBar {
    if output.quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_prefix(title.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] petnet::Error);

    #[test]
    fn the_exit_status_is_that_of_the_cause() {
        let status = |error: petnet::Error| exit_status(&Outer(error).into());
        assert_eq!(status(petnet::Error::Interrupted), INTERRUPTED);
        assert_eq!(status(petnet::Error::Device("none".into())), BAD_USAGE);
        assert_eq!(status(petnet::Error::Dataset("empty".into())), 1);
    }
}
