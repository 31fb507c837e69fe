//! What a person at a terminal sees: results, log lines, progress bars, one line for an error.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::OnceLock;

use indicatif::{ProgressBar, ProgressStyle};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::Output;

/// Writes a line of results to standard output. Unlike `println!`, nothing ends where it is closed or full: a training
/// goes on, and [`exit`] says so at the end.
macro_rules! say {
    ($($text:tt)*) => { $crate::terminal::print(format_args!($($text)*)) };
}

/// Writes a line to standard error; where that is closed, nobody is there to be told.
macro_rules! say_error {
    ($($text:tt)*) => { $crate::terminal::complain(format_args!($($text)*)) };
}

/// Work that stopped because of [`OUTPUT`].
#[derive(Debug)]
struct OutputEnded;

impl std::fmt::Display for OutputEnded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("standard output takes no more")
    }
}

impl std::error::Error for OutputEnded {}

/// Why standard output took no more.
static OUTPUT: OnceLock<io::Error> = OnceLock::new();

/// Exit status for bad usage or configuration.
const BAD_USAGE: u8 = 2;
/// Exit status of what Ctrl-C ended, as shells have it.
const INTERRUPTED: u8 = 130;

pub(crate) fn start_log(output: Output, level: &str) {
    let level = if output.quiet { "error" } else { level };
    let asked = std::env::var("RUST_LOG").ok().and_then(|log| log.parse::<Targets>().ok());
    // The levels' names are known.
    let wanted = asked.or_else(|| level.parse().ok()).unwrap_or_default();
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(!plain && io::stderr().is_terminal())
        .log_internal_errors(false)
        .without_time();
    tracing_subscriber::registry().with(wanted).with(lines).init();
}

pub(crate) fn print(text: Arguments) {
    // Kept for the end.
    let _ = print_or_stop(text);
}

/// Writes a line to standard output, for work that is of no use without it.
///
/// # Errors
/// When standard output takes no more.
pub(crate) fn print_or_stop(text: Arguments) -> anyhow::Result<()> {
    if OUTPUT.get().is_none()
        && let Err(error) = writeln!(io::stdout(), "{text}")
    {
        let _ = OUTPUT.set(error);
    }
    OUTPUT.get().map_or(Ok(()), |_| Err(OutputEnded.into()))
}

pub(crate) fn complain(text: Arguments) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The exit status; an error is printed. Who closes standard output, as `head` does, has what was wanted.
pub(crate) fn exit(outcome: &anyhow::Result<()>) -> ExitCode {
    match outcome {
        Err(error) if !error.is::<OutputEnded>() => report(error),
        Ok(()) | Err(_) => match OUTPUT.get() {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => {
                say_error!("error: standard output: {error}");
                ExitCode::FAILURE
            }
            Some(_) | None => ExitCode::SUCCESS,
        },
    }
}

/// Prints an error once and chooses the exit status.
fn report(error: &anyhow::Error) -> ExitCode {
    // Library errors carry their cause in their own message; only what was added here is joined.
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    say_error!("error: {text}");
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
