//! The agent's process: flags, log, signals. Everything else is in the library.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use somersault_agent::config::{Cli, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing_subscriber::EnvFilter;

/// Lines of log that wait for a slow reader, about 1 MB. More are dropped: a container runtime whose disk is dead
/// must not stop the agent that is to report it.
const LOG_LINES_MAX: usize = 8192;
/// A file operation in a dead mount cannot be ended; the process does not wait for it.
const STUCK_MAX: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (writer, _flushed_at_the_end) = tracing_appender::non_blocking::NonBlockingBuilder::default()
        .buffered_lines_limit(LOG_LINES_MAX)
        .lossy(true)
        .finish(std::io::stderr());
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(ansi).init();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the agent's threads")?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn({
            let stop = stop.clone();
            async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                stop.cancel();
            }
        });
        match cli {
            Cli { command: Some(Command::Hold { device, folder }), .. } => {
                let held = somersault_agent::transfer::hold(&device, &folder, stop).await;
                held.with_context(|| format!("cannot hold {} for {}", device.display(), folder.display()))
            }
            Cli { agent: Some(config), .. } => Ok(somersault_agent::run::run(config, stop).await?),
            // clap asks for the agent's flags before it comes to this.
            Cli { .. } => Cli::command().print_help().context("cannot print the help"),
        }
    });
    runtime.shutdown_timeout(STUCK_MAX);
    outcome
}
