//! A migration that is interrupted, at a phase, by a failure: the VM ends on its old disks or on its new ones, whole.
//!
//! ```text
//!   a Wukong's VM with two disks, one of them imported ──► migrate ──► phase ──► failure ──► repaired ──► end
//!                                                                                              │
//!                 both claims bound, their volumes on one node, the VM writes on both there ◄──┘
//!                 every write is there, nothing booted blank; no claim or volume too many; old volumes on Retain
//! ```
//!
//! The operator makes missing claims anew, blank, and writes the whole VM every ten seconds; the `DataVolume` would be
//! imported again. A phase lasts from a tenth of a second to some seconds: a failure hits the phase that it is meant
//! for, or a later one, and it is told which.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use somersault_test_cluster::until;
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, VMS};
use somersault_test_e2e::stage;
use somersault_test_kubevirt::judge::Disk;

use super::migration::{self, FINAL};
use super::wukong::{self, CLAIMS, VM, disks};

/// Provisioning, an import, scheduling, starting.
const RUN_DEADLINE: Duration = Duration::from_mins(3);
/// To a phase of a migration without trouble.
const PHASE_DEADLINE: Duration = Duration::from_mins(2);
/// Three tries of a copy, a wait of five minutes for a VM that does not start, a node that boots.
const END_DEADLINE: Duration = Duration::from_mins(12);
/// Between two looks at a phase, some of which last a tenth of a second.
const LOOK: Duration = Duration::from_millis(20);
/// A node without power is declared, fenced and decided upon.
const OFF: Duration = Duration::from_secs(15);
/// In their order.
const PHASES: [&str; 10] = [
    "Pending",
    "Checking",
    "Provisioning",
    "PreCopying",
    "Stopping",
    "FinalCopying",
    "Verifying",
    "Swapping",
    "Starting",
    "Confirming",
];

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    LeaderKilled,
    TargetAgentKilled,
    SourceAgentKilled,
    ApiServerRestarted,
    SourceOff,
    TargetOff,
    TargetFull,
    Cancelled,
    /// Its object is deleted, and the leader that knows of it killed at the same moment.
    Deleted,
    /// Somebody starts the VM, and is told why it waits.
    Started,
    /// The same where no admission policy refuses it.
    StartedUnrefused,
}
use Failure::{
    ApiServerRestarted, Cancelled, Deleted, LeaderKilled, SourceAgentKilled, SourceOff, Started,
    StartedUnrefused, TargetAgentKilled, TargetFull, TargetOff,
};

const ALL: [Failure; 11] = [
    LeaderKilled,
    TargetAgentKilled,
    SourceAgentKilled,
    ApiServerRestarted,
    SourceOff,
    TargetOff,
    TargetFull,
    Cancelled,
    Deleted,
    Started,
    StartedUnrefused,
];
/// The admission policy that refuses to start a VM whose claims are locked.
const CLAIM_LOCK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/base/claim-lock.yaml");

/// Every failure at every phase, one after the other; it goes on past one that fails, and names all of them.
pub fn everywhere(bed: &Bed) -> Result<()> {
    let mut failed = Vec::new();
    for failure in ALL {
        for phase in &PHASES[2..] {
            if let Err(error) = at(bed, phase, failure).and_then(|()| bed.calm()) {
                eprintln!("   FAILED: {error:#}");
                failed.push(format!("{failure:?} at {phase}: {error:#}"));
                bed.calm()?;
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// A failure at a phase.
pub fn at(bed: &Bed, phase: &str, failure: Failure) -> Result<()> {
    bed.wait_whole(RUN_DEADLINE)?;
    let source = bed.node_without_leader()?;
    let target = migration::another(bed, &source)?;
    wukong::start(bed, &source)?;
    let before = disks(bed, &source)?;
    let volumes = volumes(bed)?;
    if failure == StartedUnrefused {
        bed.cluster().ask(&["delete", "-f", CLAIM_LOCK])?;
    }

    bed.plugin(&["migrate", VM, "-n", VMS, "--to-node", &target])?;
    let hit = reach(bed, phase)?;
    let repair = inflict(bed, failure, &source, &target)?;
    repair(bed)?;
    let status = if failure == Deleted { gone(bed, &volumes)? } else { ended(bed)? };
    let end = status["phase"].as_str().unwrap_or_default();
    eprintln!("   {failure:?} at {hit} (meant for {phase}): {end} {}", status["reason"]);
    judge(bed, &before, &volumes, end)
        .with_context(|| format!("{failure:?} at {hit}, which ended {end}: {status}"))?;
    stage::clear(bed)
}

/// Waits for the end; returns the status.
fn ended(bed: &Bed) -> Result<Value> {
    until("the migration ends", END_DEADLINE, &[bed.standin_log()], || {
        let status = &migration::of_vm(bed, VM)?["status"];
        let phase = status["phase"].as_str().unwrap_or_default();
        ensure!(FINAL.contains(&phase), "{phase} {} {}", status["reason"], status["message"]);
        Ok(Some(status.clone()))
    })
}

/// Waits until the deleted object is let go; its end is told by the volumes alone.
fn gone(bed: &Bed, old: &[String]) -> Result<Value> {
    until("the deleted migration ends", END_DEADLINE, &[bed.standin_log()], || {
        let left = bed.api().list(Kind::MIGRATION, VMS, "")?;
        ensure!(left.is_empty(), "{} {}", left[0]["metadata"]["name"], left[0]["status"]);
        Ok(Some(()))
    })?;
    let phase = if volumes(bed)? == old { "Cancelled" } else { "Succeeded" };
    Ok(json!({ "phase": phase, "reason": "by the word of its volumes" }))
}

/// Waits until the migration is in this phase or a later one; returns which.
fn reach(bed: &Bed, phase: &str) -> Result<String> {
    let order = |phase: &str| PHASES.iter().position(|known| *known == phase);
    let wanted = order(phase).context("no such phase")?;
    let began = Instant::now();
    while began.elapsed() < PHASE_DEADLINE {
        let now = migration::of_vm(bed, VM)
            .ok()
            .and_then(|found| found["status"]["phase"].as_str().map(str::to_owned));
        if let Some(now) = now
            && order(&now).is_none_or(|at| at >= wanted)
        {
            return Ok(now);
        }
        std::thread::sleep(LOOK);
    }
    bail!(
        "the migration is not in {phase} within {PHASE_DEADLINE:?}: {:?}",
        migration::of_vm(bed, VM)?["status"]
    );
}

type Repair = Box<dyn FnOnce(&Bed) -> Result<()>>;

/// Lets it go wrong; returns what repairs it.
fn inflict(bed: &Bed, failure: Failure, source: &str, target: &str) -> Result<Repair> {
    let nothing: Repair = Box::new(|_| Ok(()));
    match failure {
        LeaderKilled => {
            let leader = bed.leader()?;
            bed.kill_pod(leader["metadata"]["name"].as_str().context("a leader without a name")?)?;
            Ok(nothing)
        }
        TargetAgentKilled => bed.kill_agents_pod(target).map(|()| nothing),
        SourceAgentKilled => bed.kill_agents_pod(source).map(|()| nothing),
        ApiServerRestarted => {
            bed.restart_apiserver()?;
            Ok(nothing)
        }
        SourceOff => off(bed, source),
        TargetOff => off(bed, target),
        TargetFull => fill(bed, target),
        Cancelled => {
            let name = migration::of_vm(bed, VM)?["metadata"]["name"].as_str().context("no name")?.to_owned();
            let object = format!("migration/{name}");
            if let Err(refused) = bed.plugin(&["cancel", &object, "-n", VMS]) {
                // Too late is an answer too.
                let said = format!("{refused:#}");
                let late =
                    said.contains("has ended already") || said.contains("already point to the new volumes");
                ensure!(late, "{said}");
                eprintln!("   {said}");
            }
            Ok(nothing)
        }
        Deleted => {
            bed.cluster().ask(&["delete", "volumemigration", "-n", VMS, "--all", "--wait=false"])?;
            inflict(bed, LeaderKilled, source, target)
        }
        Started => {
            // Before the claims are locked, and when they are whole again, it is not refused.
            if let Err(refused) = start(bed) {
                let said = format!("{refused:#}");
                ensure!(said.contains("is locked by VolumeMigration"), "{said}");
                eprintln!("   {said}");
            }
            Ok(nothing)
        }
        StartedUnrefused => {
            start(bed)?;
            // Installed again as it was, labels and all.
            Ok(Box::new(Bed::install))
        }
    }
}

/// As `virtctl start` does it: behind the back of the Wukong, which undoes it when it looks next.
fn start(bed: &Bed) -> Result<()> {
    bed.api().merge(Kind::VM, VMS, VM, &json!({ "spec": { "running": true } }))
}

fn off(bed: &Bed, node: &str) -> Result<Repair> {
    bed.cluster().power_off(node)?;
    let node = node.to_owned();
    Ok(Box::new(move |bed| {
        std::thread::sleep(OFF);
        bed.cluster().power_on(&node)?;
        bed.cluster().wait_ready(&node)
    }))
}

/// Leaves no byte on the target's disk.
fn fill(bed: &Bed, node: &str) -> Result<Repair> {
    let filler = bed.cluster().path_on(node, "/opt/local-path-provisioner/filler")?;
    let folder = filler.parent().context("a root")?;
    let left = nix::sys::statvfs::statvfs(folder)?;
    let bytes = left.blocks_available() * left.fragment_size();
    let file = std::fs::File::create(&filler)?;
    let length = i64::try_from(bytes)?;
    // The last blocks may be the filesystem's own: what it gives is enough.
    let _full = nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, length);
    Ok(Box::new(move |_| {
        // Longer than three tries of a copy.
        std::thread::sleep(Duration::from_secs(20));
        std::fs::remove_file(&filler).context("removing the filler")
    }))
}

/// The VM runs, with both disks whole and on its node; nothing is left over, and nothing is gone.
fn judge(bed: &Bed, before: &[Disk], old: &[String], end: &str) -> Result<()> {
    let node = until("the VM runs", END_DEADLINE, &[bed.standin_log()], || {
        let instance = bed.api().get(Kind::VMI, VMS, VM)?;
        let phase = &instance["status"]["phase"];
        ensure!(phase == "Running", "it is {phase} on {}", instance["status"]["nodeName"]);
        Ok(instance["status"]["nodeName"].as_str().map(str::to_owned))
    })?;
    let known: Vec<usize> = disks(bed, &node)?.iter().map(|disk| disk.records.len()).collect();
    until("it writes on both disks", RUN_DEADLINE, &[bed.standin_log()], || {
        let now = disks(bed, &node)?;
        Ok(now.iter().zip(&known).all(|(disk, known)| disk.records.len() > *known).then_some(()))
    })?;
    for ((claim, disk), before) in CLAIMS.iter().zip(disks(bed, &node)?).zip(before) {
        let faults: Vec<String> = disk.continues(before).iter().map(ToString::to_string).collect();
        ensure!(faults.is_empty(), "{claim}: {}", faults.join("; "));
    }
    let now = volumes(bed)?;
    let moved = now.iter().zip(old).all(|(now, old)| now != old);
    ensure!(moved || now == old, "one disk is the old one and one is new: {now:?}, {old:?}");
    ensure!(moved == (end == "Succeeded" || end == "Failed" && moved), "{end}, and the volumes are {now:?}");
    nothing_is_left_over(bed, &now, old)
}

/// Both claims and no other, their volumes, and the old ones on Retain.
fn nothing_is_left_over(bed: &Bed, now: &[String], old: &[String]) -> Result<()> {
    until("nothing is left over", RUN_DEADLINE, &[], || {
        let mut claims = names(&bed.api().list(Kind::CLAIM, VMS, "")?);
        claims.sort_unstable();
        ensure!(claims.iter().rev().eq(CLAIMS.iter()), "there are claims {claims:?}");
        for volume in bed.api().list(Kind::VOLUME, "", "")? {
            let name = volume["metadata"]["name"].as_str().unwrap_or_default();
            let is_one_of = |list: &[String]| list.iter().any(|known| known == name);
            let ours = volume["spec"]["claimRef"]["namespace"] == VMS;
            ensure!(!ours || is_one_of(now) || is_one_of(old), "volume {name} is left over");
            let policy = &volume["spec"]["persistentVolumeReclaimPolicy"];
            ensure!(!is_one_of(old) || now == old || policy == "Retain", "old volume {name} is on {policy}");
        }
        Ok(Some(()))
    })?;
    let volumes = names(&bed.api().list(Kind::VOLUME, "", "")?);
    for old in old {
        ensure!(volumes.contains(old), "old volume {old} is gone");
    }
    Ok(())
}

fn names(objects: &[Value]) -> Vec<String> {
    objects.iter().filter_map(|object| object["metadata"]["name"].as_str().map(str::to_owned)).collect()
}

/// The volumes of the claims.
fn volumes(bed: &Bed) -> Result<Vec<String>> {
    let volume = |claim: &&str| {
        let claim = bed.api().get(Kind::CLAIM, VMS, claim)?;
        Ok(claim["spec"]["volumeName"].as_str().context("a claim that is not bound")?.to_owned())
    };
    CLAIMS.iter().map(volume).collect()
}
