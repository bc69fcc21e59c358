//! The coordinator's process, or a fence runner's: flags, logs, signals.
//!
//! Exit codes: 0 stopped as asked, 1 could not start or go on, 2 wrong flags.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use somersault_coordinator::admin::Operators;
use somersault_coordinator::alert::config::AlertArgs;
use somersault_coordinator::app::App;
use somersault_coordinator::ca::{CaPolicy, KubeStore};
use somersault_coordinator::certificates::{Certificates, EnrolmentPlan};
use somersault_coordinator::cluster::Cluster;
use somersault_coordinator::cluster::directory::Directory;
use somersault_coordinator::cluster::kube::{Access, Kube, policy};
use somersault_coordinator::config::{Args, Cli, ClusterPlace, Command, Config, LogFormat};
use somersault_coordinator::enroll::{Accounts, KubeReviewer};
use somersault_coordinator::fence::runner::{Runner, RunnerArgs};
use somersault_coordinator_core::policy::Policy;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let ended = match Cli::parse() {
        Cli { command: Some(Command::FenceRunner(args)), .. } => {
            start_logs(args.log_format);
            run_fence_agents(&args).await
        }
        Cli { command: Some(Command::Hold), .. } => hold().await,
        Cli { coordinator: Some(args), alerts, .. } => {
            start_logs(args.log_format);
            Box::pin(run(&args, &alerts)).await
        }
        // No flag at all: say which ones are needed, as for any other that is missing.
        Cli { .. } => Cli::command()
            .error(ErrorKind::MissingRequiredArgument, "--cluster and --certs are needed")
            .exit(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line with all causes: a backtrace tells an operator nothing.
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args, alerts: &AlertArgs) -> anyhow::Result<()> {
    let config = Config::load(args, alerts)?;
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    match &args.cluster {
        ClusterPlace::Directory(folder) => {
            let cluster = Directory::open(folder)
                .with_context(|| format!("cannot open --cluster dir:{}", folder.display()))?;
            let certificates = from_folder(args).context("--ca-secret needs --cluster kube")?;
            serve(App::bind(Arc::new(cluster), config, certificates).await?, stop).await
        }
        ClusterPlace::Kube => run_on_kube(args, config, stop).await,
    }
}

async fn run_on_kube(args: &Args, mut config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    // First, so that nobody restarts us while we wait for the API server.
    let operators = Operators::open(config.admin_listen).await?;
    let cluster = Arc::new(Kube::open(&access(args)).await?);
    let of_flags = Arc::new(config.policy.clone());
    // Waits for the API server, but not for longer than we are to live.
    let prepared = stop.run_until_cancelled(Box::pin(prepare(args, &of_flags, &cluster))).await;
    let Some(prepared) = prepared else { return Ok(()) };
    let certificates;
    (config.policy, certificates) = prepared?;
    cluster.set_leader_times(&config.policy);
    let app = App::bind_with(operators, Arc::clone(&cluster), config, certificates).await?;
    let follow = policy::follow(Arc::clone(&cluster), of_flags, app.policy(), stop.clone());
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

/// What must be known before anything is decided and anybody is served.
async fn prepare(args: &Args, of_flags: &Policy, cluster: &Kube) -> anyhow::Result<(Policy, Certificates)> {
    let certificates = match &args.ca_secret {
        None => from_folder(args)?,
        Some(secret) => authority(args, secret, cluster).await?,
    };
    Ok((policy::at_start(cluster, of_flags).await, certificates))
}

async fn serve<C: Cluster>(app: App<C>, stop: CancellationToken) -> anyhow::Result<()> {
    tracing::info!(
        agents = %app.agents_address()?,
        operators = %app.operators_address(),
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

/// Certificates from the files of `--certs`.
fn from_folder(args: &Args) -> anyhow::Result<Certificates> {
    let folder = args.certs.as_deref().context("--certs must be given")?;
    Ok(Certificates::from_folder(folder)?)
}

/// Certificates of our own authority, which is kept in this Secret.
async fn authority(args: &Args, secret: &str, cluster: &Kube) -> anyhow::Result<Certificates> {
    let (client, namespace) = (cluster.client(), cluster.namespace());
    let leaf_lifetime = Duration::from_secs(args.certificate_lifetime_s);
    let plan = EnrolmentPlan {
        listen: args.enroll_listen,
        policy: CaPolicy { leaf_lifetime, ..CaPolicy::default() },
        store: KubeStore::new(client, namespace, secret),
        reviewer: KubeReviewer::new(client, namespace),
        accounts: Accounts::new(namespace),
    };
    let (certificates, enrolment) = Certificates::from_authority(plan).await?;
    tracing::info!(%enrolment, secret, namespace, "agents are certified by our own authority");
    Ok(certificates)
}

/// As the process of a pod that holds a volume mounted.
async fn hold() -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    stop.cancelled().await;
    Ok(())
}

/// As fence runner.
async fn run_fence_agents(args: &RunnerArgs) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    let runner = Runner::bind(args).await?;
    tracing::info!(
        coordinators = %runner.address()?,
        operators = %runner.operators_address()?,
        config = %args.fence_config.display(),
        "fence runner started"
    );
    runner.run(stop).await?;
    tracing::info!("fence runner stopped");
    Ok(())
}

/// The client of the API server logs every failed try as an error; whoever made the call knows whether it is one.
const LEVELS: &str = "info,kube_client=off";

fn start_logs(format: LogFormat) {
    let levels = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LEVELS));
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
