//! `somersault-kubevirt-standin`: the stand-in for KubeVirt, CDI and Wukong, for people.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use somersault_test_kubevirt::{client, install, judge, run};
use tracing_subscriber::EnvFilter;

/// Acts as KubeVirt, CDI and the Wukong operator on a test cluster, without virtual machines: a VM's launcher writes
/// ten times a second on its disks, and `judge` reads from a disk who wrote. The cluster is the one of KUBECONFIG.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the CRDs and storage classes, and be the controllers until interrupted.
    Run,
    /// Install the CRDs and storage classes only.
    Install,
    /// Say what a disk tells: who wrote, when nobody did, whether the VM ran twice or lost a write. Exit code 1: it
    /// is not sound.
    Judge {
        /// A `disk.img`.
        path: PathBuf,
        /// An earlier copy of the same disk: nothing of it may be missing.
        #[arg(long)]
        since: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let result = match command {
        Command::Judge { path, since } => judge_disk(&path, since.as_deref()),
        Command::Run => controllers(true),
        Command::Install => controllers(false),
    };
    result.unwrap_or_else(|error| {
        eprintln!("somersault-kubevirt-standin: {error:#}");
        ExitCode::from(2)
    })
}

fn judge_disk(path: &std::path::Path, since: Option<&std::path::Path>) -> Result<ExitCode> {
    let disk = judge::read(path)?;
    println!("{disk}");
    let faults = match since {
        Some(earlier) => disk.continues(&judge::read(earlier)?),
        None => disk.faults.clone(),
    };
    for fault in faults.iter().filter(|fault| !disk.faults.contains(fault)) {
        println!("FAULT  {fault}");
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn controllers(stay: bool) -> Result<ExitCode> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = client(None).await?;
        install(&client).await.context("installing CRDs and storage classes")?;
        if stay {
            tokio::select! {
                result = run(client) => result?,
                interrupted = tokio::signal::ctrl_c() => interrupted?,
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
