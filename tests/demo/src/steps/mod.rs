//! The demo's story, step by step. Each step asserts what it shows, by reading objects, disks and processes.
//!
//! ```text
//!   build ──► overview ──► plug (n1 dies) ──► migrate (n2 → n3) ──► failing_disk (n3 → nfs) ──► comeback (n1)
//! ```

mod build;
mod comeback;
mod crash;
mod failing_disk;
mod migrate;
mod overview;
mod plug;
mod stage;
mod summary;

use std::time::Instant;

use anyhow::{Context, Result};
use nix::libc::SIGINT;
use somersault_test_support::world::programs::Process;

use self::stage::Stage;
use self::summary::Summary;
use crate::table::heading;
use crate::watch::log_tails;
use crate::world::layout::Layout;

const INTRODUCTION: &str = "\
Somersault on three nodes of this machine, no Kubernetes needed.

real        coordinator, agents (one per node), kubectl-somersault, mutual TLS, disk images with ext4 in them,
            network and process namespaces, pulled plugs, killed processes, everything measured
stand-ins   KubeVirt, Wukong's operator, scheduler, volume binder, kubelets; VMs are processes that write their
            instance and a running number on their disks; network storage is a folder that all nodes mount;
            `smartctl` prints a stored report";

/// Exit code of a program that Ctrl-C ended, as shells have it.
const INTERRUPTED: i32 = 128 + SIGINT;

/// Runs the demo.
pub fn demo() -> Result<()> {
    let mut summary = Summary::default();
    let began = Instant::now();
    println!("{INTRODUCTION}");
    let told = on_stage(|stage, coordinator| story(stage, coordinator, &mut summary));
    summary.print();
    let work = told?;
    println!(
        "\nEvery step held, in {:.0} s. Manifests, disks and logs are kept in {work}.",
        began.elapsed().as_secs_f32()
    );
    Ok(())
}

/// Kills what can be killed halfway through a migration.
pub fn crash() -> Result<()> {
    on_stage(crash::run).map(drop)
}

/// Builds the stage for a play, and returns its work folder; where the play fails, the logs' ends are shown.
fn on_stage(play: impl FnOnce(&Stage, &mut Option<Process>) -> Result<()>) -> Result<String> {
    exit_on_interrupt()?;
    let stage = build::run()?;
    let mut coordinator = None;
    play(&stage, &mut coordinator).map_err(|error| {
        // Before the coordinator's end fills the logs of those that talk to it.
        eprintln!("\n{}", log_tails(&stage.layout.logs));
        error.context(format!("failed; logs are in {}", Layout::short(&stage.layout.logs)))
    })?;
    Ok(Layout::short(&stage.layout.work))
}

fn story(stage: &Stage, coordinator: &mut Option<Process>, summary: &mut Summary) -> Result<()> {
    heading("1  Who is where, and who would survive what");
    let began = Instant::now();
    *coordinator = Some(overview::start(stage).context("step 1, the start")?);
    summary.time("coordinator started until all nodes known", began.elapsed(), "");
    overview::run(stage).context("step 1, the overview")?;
    heading("2  The network plug of n1 is pulled");
    plug::run(stage, summary).context("step 2, the plug")?;
    heading("3  A VM moves from n2 to n3 with its local disks");
    migrate::run(stage, summary).context("step 3, the migration")?;
    heading("4  The disk of n3 begins to fail");
    failing_disk::run(stage, summary).context("step 4, the failing disk")?;
    heading("5  n1 comes back");
    comeback::run(stage, summary).context("step 5, the return")
}

/// As first process of its namespaces this program takes everything with it when it ends.
fn exit_on_interrupt() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let wait = async {
        if tokio::signal::ctrl_c().await.is_ok() {
            eprintln!("\ninterrupted; everything that ran ends now");
            std::process::exit(INTERRUPTED);
        }
    };
    std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || runtime.block_on(wait))?;
    Ok(())
}
