//! Migrations that are interrupted, at a phase, by a failure: the VM ends on its old disks or on its new ones, whole.
//!
//! ```text
//!   Wukongs' VMs with two disks, one of them imported ──► migrate ──► phase ──► failure ──► repaired ──► end
//!                                                           ▲                                             │
//!                                                           └── from where they are ◄── judged ◄──────────┘
//!       both claims bound, their volumes on one node, the VM writes on both there; every write is there, nothing booted
//!       blank; no claim or volume too many; the old volumes of this one and of all before on Retain
//! ```
//!
//! The operator makes missing claims anew, blank, and writes the whole VM every ten seconds; the `DataVolume` would be
//! imported again, until the first migration has told CDI. A phase lasts from a tenth of a second to some seconds: a failure
//! hits the phase that it is meant for, or a later one, and it is told which. Two phases last as long as somebody wants: the
//! copying ahead, and the confirmation while a probe is not answered. A second VM's migration waits in one of these while the
//! same failure hits the first one's.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use somersault_test_cluster::until;
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, VMS};
use somersault_test_e2e::stage;
use somersault_test_kubevirt::judge::Disk;

use super::migration::{self, FINAL};
use super::wukong::{self, Wukong, disks};

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
/// Room that was made is seen by the agent within ten seconds, and told at once.
const ROOM_SEEN: Duration = Duration::from_secs(20);
/// Where the nodes have their volumes.
const ROOT: &str = "/opt/local-path-provisioner";
/// A question to which no guest has an answer.
const NEVER: &str = "tcp:1";
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
    /// The objects of the old volumes are deleted. While their claims are bound to them that shows later only.
    VolumesDeleted,
    /// The same, and it is to go back to them.
    VolumesDeletedAndCancelled,
}
use Failure::{
    ApiServerRestarted, Cancelled, Deleted, LeaderKilled, SourceAgentKilled, SourceOff, Started,
    StartedUnrefused, TargetAgentKilled, TargetFull, TargetOff, VolumesDeleted, VolumesDeletedAndCancelled,
};

/// Those that may hit any phase.
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

/// The most telling ones, as many as a few minutes have room for. Where two phases are named, the failure hits two
/// migrations at once. A source that dies comes first: only there the two are sure to have it in common.
const TELLING: [(Failure, &[&str]); 10] = [
    // Nothing can be read any more, and what was read is not all.
    (SourceOff, &["FinalCopying", "PreCopying"]),
    // The claims are between two volumes, and a new leader has to know in which direction.
    (LeaderKilled, &["Swapping", "PreCopying"]),
    (ApiServerRestarted, &["Swapping", "Confirming"]),
    // Partial copies, and a VM that stands still meanwhile.
    (TargetAgentKilled, &["FinalCopying", "PreCopying"]),
    (SourceAgentKilled, &["FinalCopying"]),
    // The claims have their new volumes, and no node.
    (TargetOff, &["Starting", "PreCopying"]),
    (TargetFull, &["PreCopying"]),
    // Halfway back.
    (Cancelled, &["Swapping"]),
    (Deleted, &["FinalCopying"]),
    // Somebody else wants the VM to run.
    (Started, &["FinalCopying"]),
];

/// The most telling ones, on the same two VMs.
pub fn telling(bed: &Bed) -> Result<()> {
    let mut stage = Stage::set(bed, &[wukong::FIRST, wukong::SECOND])?;
    for (failure, phases) in TELLING {
        stage.interrupt(failure, phases)?;
        bed.calm()?;
    }
    stage::clear(bed)
}

/// Somebody deletes the volumes while their claims are locked, so that they are gone: the VM goes on with the copy, or with the
/// same folders under volumes that are made anew.
pub fn volumes_deleted(bed: &Bed) -> Result<()> {
    let mut stage = Stage::set(bed, &[wukong::FIRST])?;
    for failure in [VolumesDeletedAndCancelled, VolumesDeleted] {
        stage.interrupt(failure, &["FinalCopying"])?;
        bed.calm()?;
    }
    stage::clear(bed)
}

/// Their folders are deleted too: nothing is left of the old disks, and what was copied of them is not dropped.
pub fn volumes_and_folders_deleted(bed: &Bed) -> Result<()> {
    let wukong = wukong::FIRST;
    let stage = Stage::set(bed, &[wukong])?;
    let source = stage.vms[0].node.clone();
    let target = migration::another(bed, &source)?;
    bed.plugin(&["migrate", wukong.vm, "-n", VMS, "--to-node", &target])?;
    reach(bed, wukong.vm, "FinalCopying")?;
    let status = migration::of_vm(bed, wukong.vm)?["status"].clone();
    let disks = status["disks"].as_array().context("no disks")?;
    for disk in disks {
        let text = |field: &str| disk[field].as_str().with_context(|| format!("no {field}"));
        bed.api().delete(Kind::VOLUME, "", text("oldVolume")?)?;
        std::fs::remove_dir_all(bed.cluster().path_on(&source, text("sourcePath")?)?)?;
    }
    let repair = inflict(bed, Cancelled, wukong, &source, &target)?;
    repair(bed)?;
    let end = ended(bed, wukong.vm)?;
    let said = end["message"].as_str().unwrap_or_default();
    if end["phase"] != "Succeeded" {
        ensure!(end["phase"] == "Failed" && end["reason"] == "VolumeGone", "{end}");
        ensure!(said.contains("What was copied is left"), "{said}");
    }
    let copies = folders(bed)?.into_iter().filter(|(node, name)| *node == target && name.contains("smst-"));
    let copies = copies.filter(|(_, name)| !stage.old_folders.contains(name)).count();
    ensure!(copies >= disks.len(), "{copies} copies of {} disks are left on {target}: {said}", disks.len());
    stage::clear(bed)
}

/// Every failure at every phase, one after the other; it goes on past one that fails, and names all of them. Where the word for the
/// soak names failures (`TargetOff,TargetFull`), it is those.
pub fn everywhere(bed: &Bed) -> Result<()> {
    let mut failed = Vec::new();
    let asked = std::env::var(super::SOAK).unwrap_or_default();
    let named = |failure: &Failure| asked.split(',').any(|name| name == format!("{failure:?}"));
    let some = ALL.iter().any(named);
    for failure in ALL.into_iter().filter(|failure| !some || named(failure)) {
        // A `DataVolume` that would be imported again is made anew for each failure.
        let mut stage = Stage::set(bed, &[wukong::FIRST])?;
        for phase in &PHASES[2..] {
            if let Err(error) = stage.interrupt(failure, &[*phase]).and_then(|()| bed.calm()) {
                eprintln!("   FAILED: {error:#}");
                failed.push(format!("{failure:?} at {phase}: {error:#}"));
                bed.calm()?;
                stage = Stage::set(bed, &[wukong::FIRST])?;
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    stage::clear(bed)
}

/// A failure at a phase.
pub fn at(bed: &Bed, phase: &str, failure: Failure) -> Result<()> {
    Stage::set(bed, &[wukong::FIRST])?.interrupt(failure, &[phase])?;
    stage::clear(bed)
}

/// VMs that are interrupted again and again, wherever the last time has left them.
struct Stage<'a> {
    bed: &'a Bed,
    vms: Vec<Staged>,
    /// Of stages before: the objects that told of them were deleted with those, and their folders were not.
    old_folders: BTreeSet<String>,
}

struct Staged {
    wukong: &'static Wukong,
    node: String,
    /// What earlier migrations have left: kept, until somebody removes it.
    left: Vec<String>,
}

/// One that is under way.
struct Before {
    disks: Vec<Disk>,
    volumes: Vec<String>,
}

impl<'a> Stage<'a> {
    fn set(bed: &'a Bed, wukongs: &[&'static Wukong]) -> Result<Self> {
        let began = Instant::now();
        bed.wait_whole(RUN_DEADLINE)?;
        let node = bed.node_without_leader()?;
        let old_folders = folders(bed)?.into_iter().map(|(_, name)| name).collect();
        wukong::start(bed, &node, wukongs)?;
        let staged = |wukong: &&'static Wukong| Staged { wukong, node: node.clone(), left: Vec::new() };
        eprintln!("   staged within {} s", began.elapsed().as_secs());
        Ok(Self { bed, vms: wukongs.iter().map(staged).collect(), old_folders })
    }

    /// Interrupts the first VM's migration at the first phase, and the second one's, at the same moment, at the second.
    fn interrupt(&mut self, failure: Failure, phases: &[&str]) -> Result<()> {
        let (bed, began) = (self.bed, Instant::now());
        bed.wait_whole(RUN_DEADLINE)?;
        let taking_part = &self.vms[..phases.len()];
        // One for both: what happens to a target happens to both.
        let taken = |node: &String| taking_part.iter().any(|staged| staged.node == *node);
        let target = bed.nodes().into_iter().find(|node| !taken(node)).context("no node is free")?;
        let source = taking_part[0].node.clone();
        let before = |staged: &Staged| {
            let volumes = volumes(bed, staged.wukong)?;
            anyhow::Ok(Before { disks: disks(bed, staged.wukong, &staged.node)?, volumes })
        };
        let before: Vec<Before> = taking_part.iter().map(before).collect::<Result<_>>()?;
        if failure == StartedUnrefused {
            bed.cluster().ask(&["delete", "-f", CLAIM_LOCK])?;
        }

        let mut hit = Vec::new();
        // Those that wait come first.
        for (place, (staged, phase)) in taking_part.iter().zip(phases).enumerate().rev() {
            let wait: &[&str] = match *phase {
                _ if place == 0 => &[],
                "PreCopying" => &["--pre-copy-only"],
                "Confirming" => &["--probe", NEVER],
                other => bail!("no migration can be kept in {other}"),
            };
            let ask = ["migrate", staged.wukong.vm, "-n", VMS, "--to-node", &target];
            bed.plugin(&[&ask[..], wait].concat())?;
            hit.push(reach(bed, staged.wukong.vm, phase)?);
        }
        hit.reverse();
        let reached = began.elapsed();
        let repair = inflict(bed, failure, taking_part[0].wukong, &source, &target)?;
        repair(bed)?;
        for staged in &taking_part[1..] {
            go_on(bed, staged.wukong.vm)?;
        }
        let mut ends = Vec::new();
        for ((staged, before), hit) in taking_part.iter().zip(&before).zip(&hit) {
            let status = if failure == Deleted {
                gone(bed, staged.wukong, &before.volumes)?
            } else {
                ended(bed, staged.wukong.vm)?
            };
            eprintln!("   {failure:?} at {hit}: {} {}", status["phase"], status["reason"]);
            ends.push(status);
        }
        for (place, (before, status)) in before.iter().zip(&ends).enumerate() {
            let end = status["phase"].as_str().unwrap_or_default();
            let (hit, phase) = (&hit[place], phases[place]);
            self.judge(place, before, end).with_context(|| {
                format!("{failure:?} at {hit}, meant for {phase}, which ended {end}: {status}")
            })?;
        }
        if matches!(failure, VolumesDeleted | VolumesDeletedAndCancelled) {
            // Of those that were not needed any more their folders are left.
            let there = names(&bed.api().list(Kind::VOLUME, "", "")?);
            let staged = &mut self.vms[0];
            let (left, gone) =
                std::mem::take(&mut staged.left).into_iter().partition(|old| there.contains(old));
            staged.left = left;
            self.old_folders.extend::<Vec<String>>(gone);
        }
        // What somebody was told of is his.
        let is_told = |name: &String| {
            ends.iter().any(|end| end["message"].as_str().is_some_and(|said| said.contains(name.as_str())))
        };
        self.old_folders.extend(folders(bed)?.into_iter().map(|(_, name)| name).filter(is_told));
        self.nothing_is_left_over()?;
        stage::without_migrations(bed)?;
        let (reached, all) = (reached.as_secs(), began.elapsed().as_secs());
        eprintln!("   {failure:?} at {phases:?}: in {hit:?} after {reached} s, judged after {all} s");
        Ok(())
    }

    /// The VM runs, with both disks whole and on its node.
    fn judge(&mut self, place: usize, before: &Before, end: &str) -> Result<()> {
        let (bed, wukong) = (self.bed, self.vms[place].wukong);
        let node = until("the VM runs", END_DEADLINE, &[bed.standin_log()], || {
            let instance = bed.api().get(Kind::VMI, VMS, wukong.vm)?;
            let phase = &instance["status"]["phase"];
            ensure!(phase == "Running", "it is {phase} on {}", instance["status"]["nodeName"]);
            Ok(instance["status"]["nodeName"].as_str().map(str::to_owned))
        })?;
        let known: Vec<usize> = disks(bed, wukong, &node)?.iter().map(|disk| disk.records.len()).collect();
        until("it writes on both disks", RUN_DEADLINE, &[bed.standin_log()], || {
            let now = disks(bed, wukong, &node)?;
            Ok(now.iter().zip(&known).all(|(disk, known)| disk.records.len() > *known).then_some(()))
        })?;
        for ((claim, disk), before) in wukong.claims.iter().zip(disks(bed, wukong, &node)?).zip(&before.disks)
        {
            let faults: Vec<String> = disk.continues(before).iter().map(ToString::to_string).collect();
            ensure!(faults.is_empty(), "{claim}: {}", faults.join("; "));
        }
        let (now, old) = (volumes(bed, wukong)?, &before.volumes);
        let moved = now.iter().zip(old).all(|(now, old)| now != old);
        ensure!(moved || now == *old, "one disk is the old one and one is new: {now:?}, {old:?}");
        ensure!(
            moved == (end == "Succeeded" || end == "Failed" && moved),
            "{end}, and the volumes are {now:?}"
        );
        let staged = &mut self.vms[place];
        staged.node = node;
        if moved {
            staged.left.extend_from_slice(old);
        }
        Ok(())
    }

    /// The VMs' claims and no other, their volumes, and on Retain all that they have left; on the nodes' disks their folders alone.
    fn nothing_is_left_over(&self) -> Result<()> {
        let bed = self.bed;
        let mut wanted: Vec<&str> = self.vms.iter().flat_map(|staged| staged.wukong.claims).collect();
        wanted.sort_unstable();
        let left: Vec<&String> = self.vms.iter().flat_map(|staged| &staged.left).collect();
        until("nothing is left over", RUN_DEADLINE, &[], || {
            let mut claims = names(&bed.api().list(Kind::CLAIM, VMS, "")?);
            claims.sort_unstable();
            ensure!(claims == wanted, "there are claims {claims:?}");
            let mut now = Vec::new();
            for staged in &self.vms {
                now.extend(volumes(bed, staged.wukong)?);
            }
            for volume in bed.api().list(Kind::VOLUME, "", "")? {
                let name = volume["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let ours = volume["spec"]["claimRef"]["namespace"] == VMS;
                ensure!(!ours || now.contains(&name) || left.contains(&&name), "volume {name} is left over");
                let policy = &volume["spec"]["persistentVolumeReclaimPolicy"];
                ensure!(!left.contains(&&name) || policy == "Retain", "old volume {name} is on {policy}");
            }
            Ok(Some(()))
        })?;
        until("no folder of a copy is left over", RUN_DEADLINE, &[], || {
            let volumes = names(&bed.api().list(Kind::VOLUME, "", "")?);
            for (node, name) in folders(bed)? {
                ensure!(!name.ends_with(".partial"), "{name} is left over on {node}");
                let is_ours = name.starts_with("smst-") && !self.old_folders.contains(&name);
                ensure!(
                    !is_ours || volumes.contains(&name),
                    "{name} is left over on {node}, and is no volume"
                );
            }
            Ok(Some(()))
        })?;
        let volumes = names(&bed.api().list(Kind::VOLUME, "", "")?);
        for old in left {
            ensure!(volumes.contains(old), "old volume {old} is gone");
        }
        Ok(())
    }
}

/// What lies on the nodes' disks beside the volumes' objects: nodes, and names.
fn folders(bed: &Bed) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for node in bed.nodes() {
        for folder in std::fs::read_dir(bed.cluster().path_on(&node, ROOT)?)? {
            found.push((node.clone(), folder?.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(found)
}

/// Lets one that waits for somebody go on.
fn go_on(bed: &Bed, vm: &str) -> Result<()> {
    let migration = migration::of_vm(bed, vm)?;
    let name = migration["metadata"]["name"].as_str().context("no name")?;
    let word = json!({ "spec": { "preCopyOnly": false, "probe": null } });
    bed.api().merge(Kind::MIGRATION, VMS, name, &word)
}

/// Waits for the end; returns the status.
fn ended(bed: &Bed, vm: &str) -> Result<Value> {
    until("the migration ends", END_DEADLINE, &[bed.standin_log()], || {
        let status = &migration::of_vm(bed, vm)?["status"];
        let phase = status["phase"].as_str().unwrap_or_default();
        ensure!(FINAL.contains(&phase), "{phase} {} {}", status["reason"], status["message"]);
        Ok(Some(status.clone()))
    })
}

/// Waits until the deleted object is let go; its end is told by the volumes alone.
fn gone(bed: &Bed, wukong: &Wukong, old: &[String]) -> Result<Value> {
    until("the deleted migration ends", END_DEADLINE, &[bed.standin_log()], || {
        let left = bed.api().list(Kind::MIGRATION, VMS, "")?;
        ensure!(left.is_empty(), "{} {}", left[0]["metadata"]["name"], left[0]["status"]);
        Ok(Some(()))
    })?;
    let phase = if volumes(bed, wukong)? == old { "Cancelled" } else { "Succeeded" };
    Ok(json!({ "phase": phase, "reason": "by the word of its volumes" }))
}

/// Waits until the migration is in this phase or a later one; returns which.
fn reach(bed: &Bed, vm: &str, phase: &str) -> Result<String> {
    let order = |phase: &str| PHASES.iter().position(|known| *known == phase);
    let wanted = order(phase).context("no such phase")?;
    let began = Instant::now();
    while began.elapsed() < PHASE_DEADLINE {
        let now = migration::of_vm(bed, vm)
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
        migration::of_vm(bed, vm)?["status"]
    );
}

type Repair = Box<dyn FnOnce(&Bed) -> Result<()>>;

/// Lets it go wrong; returns what repairs it.
fn inflict(bed: &Bed, failure: Failure, wukong: &Wukong, source: &str, target: &str) -> Result<Repair> {
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
            let name =
                migration::of_vm(bed, wukong.vm)?["metadata"]["name"].as_str().context("no name")?.to_owned();
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
            inflict(bed, LeaderKilled, wukong, source, target)
        }
        Started => {
            // Before the claims are locked, and when they are whole again, it is not refused.
            if let Err(refused) = start(bed, wukong) {
                let said = format!("{refused:#}");
                ensure!(said.contains("is locked by VolumeMigration"), "{said}");
                eprintln!("   {said}");
            }
            Ok(nothing)
        }
        VolumesDeleted | VolumesDeletedAndCancelled => {
            let status = &migration::of_vm(bed, wukong.vm)?["status"];
            for disk in status["disks"].as_array().context("no disks")? {
                bed.api().delete(Kind::VOLUME, "", disk["oldVolume"].as_str().context("no old volume")?)?;
            }
            let back = failure == VolumesDeletedAndCancelled;
            if back { inflict(bed, Cancelled, wukong, source, target) } else { Ok(nothing) }
        }
        StartedUnrefused => {
            start(bed, wukong)?;
            // Installed again as it was, labels and all.
            Ok(Box::new(Bed::install))
        }
    }
}

/// As `virtctl start` does it: behind the back of the Wukong, which undoes it when it looks next.
fn start(bed: &Bed, wukong: &Wukong) -> Result<()> {
    bed.api().merge(Kind::VM, VMS, wukong.vm, &json!({ "spec": { "running": true } }))
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
    let filler = bed.cluster().path_on(node, &format!("{ROOT}/filler"))?;
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
        std::fs::remove_file(&filler).context("removing the filler")?;
        // What shows on the node's object may be a minute old.
        std::thread::sleep(ROOM_SEEN);
        Ok(())
    }))
}

fn names(objects: &[Value]) -> Vec<String> {
    objects.iter().filter_map(|object| object["metadata"]["name"].as_str().map(str::to_owned)).collect()
}

/// The volumes of its claims.
fn volumes(bed: &Bed, wukong: &Wukong) -> Result<Vec<String>> {
    let volume = |claim: &&str| {
        let claim = bed.api().get(Kind::CLAIM, VMS, claim)?;
        Ok(claim["spec"]["volumeName"].as_str().context("a claim that is not bound")?.to_owned())
    };
    wukong.claims.iter().map(volume).collect()
}
