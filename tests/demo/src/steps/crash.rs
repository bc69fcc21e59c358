//! Not part of the demo, but of `make soak`: the agent that pulls and the coordinator are killed halfway through
//! a copy, in turn. The migration must end as if nothing had happened, with the source untouched.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use somersault_crd::volume_migration::Phase;
use somersault_test_support::world::power;
use somersault_test_support::world::programs::Process;

use super::migrate::{TARGET, VM, assert_moved, mebibytes, state_of};
use super::overview::start;
use super::stage::{PATIENCE, Stage, runs_of};
use crate::watch::until;
use crate::world::disks::hash_files;
use crate::world::programs::command_line;

const MIGRATION: &str = "wk1-vm-to-n3";
/// Of 350 MiB: early enough that there is always something left to copy, also after the second kill.
const KILL_AT_BYTES: u64 = 48 << 20;

/// Kills both.
pub fn run(stage: &Stage, coordinator: &mut Option<Process>) -> Result<()> {
    *coordinator = Some(start(stage)?);
    let before = state_of(stage)?;
    let sources = stage.images(VM)?;
    let status = command_line(&stage.layout, &["migrate", VM, "--to-node", TARGET]).status();
    ensure!(status.context("starting kubectl-somersault")?.success(), "the migration was refused");

    let arrived = wait_for_copy(stage, KILL_AT_BYTES)?;
    kill_agent(TARGET)?;
    println!(
        "{} have arrived: the agent of {TARGET} is killed. Its node starts it again.",
        mebibytes(arrived)
    );
    let arrived = wait_for_copy(stage, arrived + KILL_AT_BYTES)?;
    *coordinator = None; // SIGKILL
    println!("{} have arrived: the coordinator is killed.", mebibytes(arrived));
    *coordinator = Some(start(stage)?);
    println!("It is started again.");

    until("the migration has ended", PATIENCE * 3, || {
        let migration = stage.look()?.migration(MIGRATION)?.unwrap_or_default();
        Ok((migration.phase >= Phase::Succeeded && migration.phase != Phase::RollingBack).then_some(()))
    })?;
    let moved = assert_moved(stage, &before, MIGRATION)?;
    for (claim, source) in sources {
        let runs = runs_of(&source)?;
        ensure!(runs.len() == 1, "the old disk of {claim} was written by {} instances", runs.len());
        let files = hash_files(&source, &stage.layout.work.join("compare"))?;
        ensure!(before.files.get(&claim) == Some(&files), "the files on the old disk of {claim} differ");
    }
    println!("It ended as it should: {} files equal, one VM, the old disks as they were left.", moved.files);
    Ok(())
}

/// Waits until this much of the copy is on the target's disk, and says how much is.
fn wait_for_copy(stage: &Stage, bytes: u64) -> Result<u64> {
    let root = stage.layout.node(TARGET).join("local-path");
    until("the copy goes on", PATIENCE, || {
        let migration = stage.look()?.migration(MIGRATION)?.unwrap_or_default();
        ensure!(migration.phase <= Phase::PreCopying, "the copy was over before anything could be killed");
        let arrived = allocated(&root).unwrap_or_default(); // files are being renamed at this moment
        Ok((arrived >= bytes).then_some(arrived))
    })
}

/// Bytes that the files below a folder take on the disk.
fn allocated(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let found = entry.metadata()?;
        bytes += if found.is_dir() { allocated(&entry.path())? } else { found.blocks() * 512 };
    }
    Ok(bytes)
}

fn kill_agent(node: &str) -> Result<()> {
    let is_agent = |pid: &Pid| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe"));
        program.is_ok_and(|program| program.ends_with("somersault-agent"))
    };
    let agent = power::census(node)?.into_iter().find(is_agent);
    kill(agent.with_context(|| format!("no agent runs on {node}"))?, Signal::SIGKILL)
        .context("killing the agent")
}
