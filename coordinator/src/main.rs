//! The coordinator's process: flags, logs, signals.
//!
//! Exit codes: 0 stopped as asked, 1 could not start or go on, 2 wrong flags.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use somersault_coordinator::app::App;
use somersault_coordinator::cluster::Cluster;
use somersault_coordinator::cluster::directory::Directory;
use somersault_coordinator::cluster::kube::{Access, Kube, policy};
use somersault_coordinator::config::{Args, ClusterPlace, Config, LogFormat};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    start_logs(args.log_format);
    match run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line with all causes: a backtrace tells an operator nothing.
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(args)?;
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    match &args.cluster {
        ClusterPlace::Directory(folder) => {
            let cluster = Directory::open(folder)
                .with_context(|| format!("cannot open --cluster dir:{}", folder.display()))?;
            serve(App::bind(Arc::new(cluster), config).await?, stop).await
        }
        ClusterPlace::Kube => {
            let cluster = Arc::new(Kube::open(&access(args)).await?);
            let app = App::bind(Arc::clone(&cluster), config).await?;
            let follow = policy::follow(Arc::clone(&cluster), app.policy(), stop.clone());
            let serve = async {
                let served = serve(app, stop.clone()).await;
                stop.cancel();
                served
            };
            let (served, ()) = tokio::join!(serve, follow);
            // Nothing is in hand any more: the next leader need not wait for the lease to run out.
            cluster.step_down().await;
            served
        }
    }
}

async fn serve<C: Cluster>(app: App<C>, stop: CancellationToken) -> anyhow::Result<()> {
    tracing::info!(
        agents = %app.agents_address()?,
        operators = %app.operators_address()?,
        "coordinator started"
    );
    app.run(stop).await?;
    tracing::info!("coordinator stopped");
    Ok(())
}

fn access(args: &Args) -> Access {
    let host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let instance = args.instance.clone().or_else(host).unwrap_or_else(|| "coordinator".to_owned());
    Access { context: args.context.clone(), namespace: args.namespace.clone(), instance }
}

fn start_logs(format: LogFormat) {
    let levels = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(levels)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
}

fn stop_on_signals(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
        stop.cancel();
    });
    Ok(())
}
