//! The program `petnet-serve`: an image classifier over HTTP.

mod healthcheck;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use healthcheck::Healthcheck;
use petnet_serve::{Listeners, MetricsAddr, Settings, run, start_log};
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit status for bad usage or configuration.
const BAD_USAGE_STATUS: u8 = 2;
/// Exit status after a second signal.
const INTERRUPTED_STATUS: i32 = 130;
/// Blocking threads for feedback, exports and large JSON; decoding and reloading have threads of their own.
const BLOCKING_THREADS: usize = 4;
/// Length of the listen backlog: connections that the kernel completes before the service accepts them.
const BACKLOG: u32 = 1024;

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

/// Settings of glibc's allocator. Blocks of 4 MiB and more, which large images need, are returned to the system when they
/// are freed; without a fixed threshold, glibc raises it with the first such block and keeps later ones. Compared with
/// mimalloc and jemalloc in `benches/results/README.md`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ALLOCATOR: [(&str, &str); 2] =
    [("MALLOC_MMAP_THRESHOLD_", "4194304"), ("MALLOC_TRIM_THRESHOLD_", "1048576")];

/// Executes this program again with the allocator's settings where they are missing: glibc reads them before `main`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn set_allocator() {
    use std::os::unix::process::CommandExt as _;
    let missing = ALLOCATOR.iter().any(|(name, _)| std::env::var_os(name).is_none());
    if missing && let Ok(program) = std::env::current_exe() {
        let mut command = std::process::Command::new(program);
        for (name, value) in ALLOCATOR {
            command.env(name, std::env::var_os(name).unwrap_or_else(|| value.into()));
        }
        // Returns only on failure; the program then runs with the defaults.
        let _ = command.args(std::env::args_os().skip(1)).exec();
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn set_allocator() {}

fn main() -> ExitCode {
    set_allocator();
    let Cli { settings, command } = Cli::parse();
    if let Some(Command::Healthcheck(check)) = command {
        return check.run(&settings).map_or_else(|e| fail(&e, 1), |()| ExitCode::SUCCESS);
    }
    let (log, address) = match start_log(&settings).and_then(|log| Ok((log, settings.address()?))) {
        Ok(started) => started,
        Err(error) => return fail(&error, BAD_USAGE_STATUS),
    };
    let runtime =
        Builder::new_multi_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build();
    let runtime = match runtime.context("no runtime") {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    let outcome = runtime.block_on(serve(settings, address));
    // Blocking work that is still running has had the grace period.
    runtime.shutdown_background();
    drop(log);
    outcome.map_or_else(|error| fail(&error, 1), |()| ExitCode::SUCCESS)
}

fn fail(error: &anyhow::Error, status: u8) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(status)
}

async fn serve(settings: Settings, address: SocketAddr) -> Result<()> {
    let api = bind(address, "--port")?;
    let metrics = match settings.metrics_addr {
        MetricsAddr::Off => None,
        MetricsAddr::At(address) => Some(bind(address, "--metrics-addr")?),
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, reload) = tokio::sync::mpsc::channel(1);
    tokio::spawn(
        async move { while hangup.recv().await.is_some() && sender.send(()).await.is_ok() {} },
    );
    let stop = async move {
        stop_signal(&mut terminate, &mut interrupt).await;
        // A second signal ends the process at once.
        tokio::spawn(async move {
            stop_signal(&mut terminate, &mut interrupt).await;
            std::process::exit(INTERRUPTED_STATUS);
        });
    };
    run(Listeners { api, metrics }, settings, reload, stop).await
}

/// Waits for SIGTERM or SIGINT.
async fn stop_signal(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
}

fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().with_context(|| format!("cannot listen on {address} ({setting})"))
}
