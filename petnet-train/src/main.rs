//! `petnet-train`: from an archive of labelled images to a trained, evaluated classifier.
//!
//! A module imports only from later ones in this order, so that there are no cycles: `main`, the subcommands (of which
//! `lr_find` uses `fit`), `report`, `ood`, `predict`, `tracking`, then `data`, `metrics`, `terminal`, `config`, `model`,
//! `encode`, `files`, `disk`, and `error`.

#[macro_use]
mod terminal;

mod calibrate;
mod config;
mod data;
mod disk;
mod download;
mod encode;
mod error;
mod evaluate;
mod export;
mod files;
mod fit;
mod import;
mod lr_find;
mod metrics;
mod model;
mod ood;
mod predict;
mod prepare;
mod quantize;
mod register;
mod report;
mod review;
mod runs;
mod similar;
mod smoke;
mod tracking;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use terminal::Output;

/// Prepare data, train, evaluate, run and export image classifiers.
#[derive(Parser)]
#[command(version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: Output,
}

const EXAMPLES: &str = "\
Examples:
  petnet-train prepare --raw cats-vs-dogs.zip --out data/processed --preview sheet.png
  petnet-train fit --config configs/train.yaml
  petnet-train evaluate --model models/best.safetensors --data data/processed
  petnet-train predict rex.jpg tom.jpg";

#[derive(Subcommand)]
enum Command {
    Download(download::Download),
    Prepare(prepare::Prepare),
    Fit(fit::Fit),
    LrFind(lr_find::LrFind),
    Evaluate(evaluate::Evaluate),
    Predict(predict::Predict),
    Calibrate(calibrate::Calibrate),
    Quantize(quantize::Quantize),
    Export(export::Export),
    Import(import::Import),
    Runs(runs::Runs),
    Register(register::Register),
    Similar(similar::Similar),
    Review(review::Review),
    Smoke(smoke::Smoke),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The level of a training's log is one of its settings.
    if !matches!(cli.command, Command::Fit(_) | Command::LrFind(_)) {
        terminal::start_log(cli.output, "info");
    }
    let outcome = match cli.command {
        Command::Download(command) => command.run(cli.output),
        Command::Prepare(command) => command.run(cli.output),
        Command::Fit(command) => command.run(cli.output),
        Command::LrFind(command) => command.run(cli.output),
        Command::Evaluate(command) => command.run(cli.output),
        Command::Predict(command) => command.run(cli.output),
        Command::Calibrate(command) => command.run(cli.output),
        Command::Quantize(command) => command.run(cli.output),
        Command::Export(command) => command.run(cli.output),
        Command::Import(command) => command.run(cli.output),
        Command::Runs(command) => command.run(cli.output),
        Command::Register(command) => command.run(cli.output),
        Command::Similar(command) => command.run(cli.output),
        Command::Review(command) => command.run(cli.output),
        Command::Smoke(command) => command.run(cli.output),
    };
    terminal::exit(&outcome)
}
