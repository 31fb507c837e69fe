//! `petnet-serve`: the classifier over HTTP.

mod healthcheck;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use healthcheck::Healthcheck;
use petnet_serve::{Listeners, MetricsAddr, Settings, run, start_log};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Exit status for bad usage or configuration.
const BAD_USAGE: u8 = 2;

#[derive(clap::Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    Healthcheck(Healthcheck),
}

fn main() -> ExitCode {
    let Cli { settings, command } = Cli::parse();
    if let Some(Command::Healthcheck(check)) = command {
        return check.run(&settings).map_or_else(|e| fail(&e, 1), |()| ExitCode::SUCCESS);
    }
    let address = match start_log(&settings).and_then(|()| settings.address()) {
        Ok(address) => address,
        Err(error) => return fail(&error, BAD_USAGE),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let decoders = if settings.decode_threads == 0 { cores } else { settings.decode_threads };
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(decoders + 1)
        .build()
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(serve(settings, address)));
    outcome.map_or_else(|error| fail(&error, 1), |()| ExitCode::SUCCESS)
}

fn fail(error: &anyhow::Error, status: u8) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(status)
}

async fn serve(settings: Settings, address: SocketAddr) -> Result<()> {
    let api = bind(address).await?;
    let metrics = match settings.metrics_addr {
        MetricsAddr::Off => None,
        MetricsAddr::At(address) => Some(bind(address).await?),
    };
    let (mut term, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let (ask, reload) = tokio::sync::mpsc::channel(1);
    tokio::spawn(
        async move { while hangup.recv().await.is_some() && ask.send(()).await.is_ok() {} },
    );
    let stop = async move {
        tokio::select! { _ = term.recv() => (), _ = interrupt.recv() => () }
    };
    run(Listeners { api, metrics }, settings, reload, stop).await
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}
