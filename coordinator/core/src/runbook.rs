//! The runbook of one VM: what a person must know and may do, in Markdown.
//!
//! A pure function of the decision, the fleet, and how the VM stands in its incident. It says what objects and agents
//! tell, and "unknown" for the rest: a runbook that guesses is worse than none. One that still tells to replace a claim
//! when that is in use again is worse still, so it follows the recovery to its end:
//!
//! ```text
//!   nothing happened, or nothing touched yet ──► what a person may do (here; what needs proof says so, or has it)
//!   a person has begun, and is not done ─────────► the same as before the first step (`begun_by_hand`)
//!   acted upon, running again, node back, over ──► that it is so, and what is left (`settled`)
//! ```

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::SocketAddr;

use crate::decision::{Decision, DecisionKind, DiskFinding, Locality, Reason, SourceKind, remedy};
use crate::fleet::{DiskHealth, Fleet, NodeReport, RunStrategy, StorageRoot, Usage};
use crate::names::{Key, NodeName, VolumeName};

mod settled;
mod standing;
mod storage;
mod swap;
#[cfg(test)]
mod tests;
mod untied;
mod words;

use words::{bytes, bytes_or_unknown, code, plain};

pub use words::shell_word;

/// Label by which volumes are tied to their node.
const HOSTNAME: &str = "kubernetes.io/hostname";

pub use settled::runbook_over;
pub(crate) use settled::storage_over;
pub use standing::{Progress, Standing};
pub use storage::storage_runbook;

/// Writes the runbook of the decision's VM.
pub fn runbook(fleet: &Fleet, decision: &Decision, standing: &Standing) -> String {
    if standing.over || !matches!(standing.progress, Progress::Supposed | Progress::Untouched) {
        return settled::write(fleet, decision, standing);
    }
    let vm = fleet.vms.get(&decision.vm);
    let mut text = title(&decision.vm);
    if standing.progress == Progress::Supposed {
        text.push_str("No recovery of it is under way: this is what would be if its node died.\n\n");
    }
    let _ = write!(text, "{}\n\n", headline(decision));
    for detail in &decision.details {
        let _ = writeln!(text, "- {}", plain(detail));
    }
    let _ = write!(text, "\n{}\n\n", where_it_ran(decision, standing));
    text.push_str(&disks_chapter(fleet, decision));
    if decision.kind == DecisionKind::Rebuild {
        text.push_str(&rebuild_chapter(decision));
    }
    text.push_str("## Options\n\n");
    // A rebuild is the coordinator's own work: a person who replaces its claims would only get in its way.
    let by_itself = decision.kind == DecisionKind::Rebuild;
    let swaps = if by_itself { Vec::new() } else { swap::local_claims(fleet, decision) };
    let options = options(fleet, decision, standing, !swaps.is_empty());
    for (number, option) in (1..).zip(options) {
        let _ = write!(text, "### {number}. {option}\n\n");
    }
    if let Some(vm) = vm.filter(|_| !swaps.is_empty()) {
        let unproven: Vec<&NodeName> = unproven(decision, standing).collect();
        text.push_str(&swap::chapter(decision, vm, fleet, &swaps, &unproven));
    }
    text
}

/// The runbook of a VM on which a person is at work: what it said before the first step holds until the last.
pub fn begun_by_hand(steps: &str) -> String {
    let (title, rest) = steps.split_once("\n\n").unwrap_or((steps, ""));
    format!(
        "{title}\n\n**Its pods or a claim of it were removed: go on with the step that comes next.** What follows was written before \
         the first step, and stays until every claim is bound elsewhere.\n\n{rest}"
    )
}

fn title(vm: &Key) -> String {
    format!("# Runbook: VM {}\n\n", code(&vm.to_string()))
}

/// Nodes on which it may run, as far as is proven.
fn unproven<'a>(decision: &'a Decision, standing: &'a Standing) -> impl Iterator<Item = &'a NodeName> {
    decision.nodes.iter().filter(|node| !standing.proven.contains_key(*node))
}

fn headline(decision: &Decision) -> String {
    let reasons: Vec<&str> = decision.reasons.iter().map(|reason| reason.as_str()).collect();
    let kind = match decision.kind {
        DecisionKind::Recreate => {
            "It can be started elsewhere without a person, once its node is proven dead"
        }
        DecisionKind::Rebuild => {
            "It is rebuilt elsewhere once its node is proven dead: its system disk anew from the image, its data disks attached"
        }
        DecisionKind::ManualRecovery => {
            "It needs a person. Nothing of it has been touched, and nothing will be"
        }
        DecisionKind::NothingToDo => "Nothing needs to be done",
    };
    format!("**{kind}.** ({})", reasons.join(", "))
}

fn where_it_ran(decision: &Decision, standing: &Standing) -> String {
    let homes = home_nodes(decision);
    let proven = homes.iter().filter_map(|node| Some((*node, standing.proof(node)?)));
    let mut sentences: Vec<String> =
        decision.nodes.is_empty().then(|| "It runs on no node.".to_owned()).into_iter().collect();
    sentences.extend(proven.map(|(node, proof)| {
        format!(
            "Node {} is proven dead ({proof}): nothing of it can run or write there any more.",
            code(node.as_str())
        )
    }));
    let living: Vec<String> = unproven(decision, standing).map(|node| code(node.as_str())).collect();
    if !living.is_empty() {
        let runs = if standing.progress == Progress::Supposed { "runs" } else { "may still run" };
        sentences.push(format!(
            "It {runs} on {}: start it nowhere else before each of these is proven dead.",
            living.join(", ")
        ));
    }
    sentences.join(" ")
}

/// A disk of the decision with what its node's agent last told.
struct Told<'a> {
    path: Option<&'a str>,
    usage: Option<&'a Usage>,
    root: Option<&'a StorageRoot>,
    health: Option<(&'a str, &'a DiskHealth)>,
}

impl<'a> Told<'a> {
    fn of(fleet: &'a Fleet, finding: &DiskFinding) -> Self {
        let volume = finding.volume.as_deref().and_then(|name| fleet.volumes.get(&VolumeName::from(name)));
        let path = volume.and_then(|volume| volume.source.path());
        let report: Option<&NodeReport> = match &finding.locality {
            Locality::Local { node } => fleet.reports.get(node),
            _ => None,
        };
        let root = report.zip(path).and_then(|(report, path)| report.root_of(path));
        let health = report.zip(root).and_then(|(report, root)| {
            let name = root.disk.as_deref()?;
            Some((name, report.disks.get(name)?))
        });
        Self { path, usage: report.zip(path).and_then(|(report, path)| report.usage.get(path)), root, health }
    }

    fn health_words(&self) -> String {
        match self.health {
            None => "unknown".to_owned(),
            Some((name, health)) => {
                let reasons = if health.reasons.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", plain(&health.reasons.join(", ")))
                };
                format!("{} {:?}{reasons}", code(name), health.grade)
            }
        }
    }
}

fn disks_chapter(fleet: &Fleet, decision: &Decision) -> String {
    let mut text = String::from(
        "## Its disks\n\n| Disk | Where | Claim, volume, class | Path | Requested | Allocated | Health |\n|---|---|---|---|---|---|---|\n",
    );
    for finding in &decision.disks {
        let told = Told::of(fleet, finding);
        let claim =
            finding.claim.as_ref().and_then(|name| fleet.claims.get(&Key::new(&decision.vm.namespace, name)));
        let names: Vec<String> = [&finding.claim, &finding.volume, &finding.class]
            .into_iter()
            .flatten()
            .map(|name| code(name))
            .collect();
        let (requested, allocated, health) = match finding.locality {
            Locality::Rebuildable | Locality::Lost => ("-".to_owned(), "-".to_owned(), "-".to_owned()),
            _ => (
                bytes_or_unknown(claim.map(|claim| claim.requested_bytes)),
                bytes_or_unknown(told.usage.map(|usage| usage.allocated_bytes)),
                told.health_words(),
            ),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {requested} | {allocated} | {health} |",
            code(&finding.disk),
            where_words(&finding.locality),
            if names.is_empty() { "-".to_owned() } else { names.join(", ") },
            told.path.map_or_else(|| "-".to_owned(), code),
        );
    }
    text.push('\n');
    for finding in &decision.disks {
        let _ = writeln!(text, "- {}: {}.", code(&finding.disk), plain(&finding.because));
    }
    text.push_str("\nSizes and health are those of the last report of the node's agent.\n\n");
    text.push_str(&copies_chapter(decision));
    text
}

/// What a rebuild means for what is inside the VM.
const NEW_SYSTEM_DISK: &str = "What was written to the system disk is not on the new one: packages, settings, logs. To cloud-init the guest is a new \
         instance: it makes new SSH host keys, and users and networks are set up as at the first start. What is needed of the old \
         disk can be copied from the old volume once its node is back; remove that volume and its folder yourself when nothing of it is \
         needed any more.";

/// What a rebuild does and does not bring back.
fn rebuild_chapter(decision: &Decision) -> String {
    let mut text = String::from(
        "## What the rebuild does\n\nOnce the node is proven dead, the coordinator stops the VM, deletes the claim of each system disk \
         below so that its DataVolume imports the image once more, and starts the VM on another node. Its other disks are attached as \
         they are.\n\n",
    );
    for disk in decision.disks.iter().filter(|disk| disk.is_local()) {
        let or_unknown = |name: &Option<String>| name.as_deref().map_or_else(|| "unknown".to_owned(), code);
        let _ = writeln!(
            text,
            "- {}: claim {} is made anew; the old volume {} is kept, on reclaim policy Retain",
            code(&disk.disk),
            or_unknown(&disk.claim),
            or_unknown(&disk.volume),
        );
    }
    let _ = write!(text, "\n{NEW_SYSTEM_DISK}\n\n");
    text
}

fn where_words(locality: &Locality) -> String {
    match locality {
        Locality::Local { node } => format!("node {}", code(node.as_str())),
        Locality::Network => "network storage".to_owned(),
        Locality::Rebuildable => "made anew at every start".to_owned(),
        Locality::Lost => "lost at every stop".to_owned(),
        Locality::Unknown => "unknown".to_owned(),
    }
}

fn copies_chapter(decision: &Decision) -> String {
    let concerned =
        decision.disks.iter().filter(|disk| is_in_danger(disk) || has_source(decision, &disk.disk));
    let concerned: Vec<&DiskFinding> = concerned.collect();
    if concerned.is_empty() {
        return String::new();
    }
    let mut text = String::from("## Copies and backups\n\n");
    for disk in concerned {
        let sources = decision.restore_from.iter().filter(|source| source.disk == disk.disk);
        let words: Vec<String> = sources.map(|source| source_words(&source.source)).collect();
        let words = if words.is_empty() { "no copy is known".to_owned() } else { words.join("; ") };
        let _ = writeln!(text, "- {}: {words}", code(&disk.disk));
    }
    let _ = write!(
        text,
        "\nVolumeSnapshots of its claims are named where the cluster has them (`kubectl get volumesnapshots -n {}`); a snapshot is on the same storage as its volume, unless its driver says otherwise. Backups outside the cluster are not seen from here: whether there are any is unknown.\n\n",
        shell_word(&decision.vm.namespace)
    );
    text
}

/// Lost with a node, as far as is known.
fn is_in_danger(disk: &DiskFinding) -> bool {
    disk.is_local() || disk.locality == Locality::Unknown
}

fn has_source(decision: &Decision, disk: &str) -> bool {
    decision.restore_from.iter().any(|source| source.disk == disk)
}

fn source_words(source: &SourceKind) -> String {
    match source {
        SourceKind::Snapshot { name, ready, taken } => {
            let taken = taken.as_deref().map_or_else(|| "at an unknown time".to_owned(), plain);
            let ready = if *ready { "" } else { ", not ready to use" };
            format!("snapshot {} (taken {taken}{ready})", code(name))
        }
        SourceKind::Volume { name, phase, node, created } => {
            let node = node.as_ref().map_or_else(|| "unknown".to_owned(), |node| code(node.as_str()));
            let phase = if phase.is_empty() { "unknown" } else { phase };
            let age = created
                .as_deref()
                .map_or_else(|| "age unknown".to_owned(), |at| format!("made {}", plain(at)));
            format!("volume {} (phase {}, node {node}, {age})", code(name.as_str()), plain(phase))
        }
        SourceKind::Folder { node, path, allocated_bytes } => format!(
            "folder {} on node {}, {} allocated, in no volume, age unknown",
            code(path),
            code(node.as_str()),
            bytes(*allocated_bytes)
        ),
        SourceKind::Image { url } => {
            format!("the image {}, without anything written since its import", code(url))
        }
    }
}

/// The options that apply, each with its title on the first line.
fn options(fleet: &Fleet, decision: &Decision, standing: &Standing, movable: bool) -> Vec<String> {
    let mut options = Vec::new();
    options.extend(clear_the_way(decision));
    let untied = untied::disks(fleet, decision);
    if !untied.is_empty() {
        options.push(untied::tie(fleet, decision, &untied));
    }
    for node in home_nodes(decision) {
        options.push(bring_back(fleet, decision, node));
    }
    options.extend(unproven(decision, standing).map(|node| attest(decision, node)));
    if movable {
        let homes = home_nodes(decision);
        let dead = !homes.is_empty() && homes.iter().all(|node| standing.proven.contains_key(*node));
        options.push(move_disks(fleet, decision, dead));
    }
    if decision.kind != DecisionKind::Rebuild && decision.disks.iter().any(is_in_danger) {
        options.push(restore(decision, movable));
    }
    options
}

/// Nodes whose return brings disks back, and those that it may run on.
fn home_nodes(decision: &Decision) -> BTreeSet<&NodeName> {
    decision.local_nodes().chain(&decision.nodes).collect()
}

/// What can be done about reasons other than a disk's place, for which there are options of their own.
fn clear_the_way(decision: &Decision) -> Option<String> {
    use Reason::{LocalBacking, LocalDisk, LocalHotplug, LocalState};
    let others = decision
        .reasons
        .iter()
        .filter(|reason| !matches!(reason, LocalDisk | LocalHotplug | LocalState | LocalBacking))
        .map(|reason| (reason, decision.remedy_for(*reason)))
        .filter(|(_, remedy)| remedy != remedy::NONE);
    let lines: Vec<String> =
        others.map(|(reason, remedy)| format!("- {reason}: {}", plain(&remedy))).collect();
    (!lines.is_empty()).then(|| format!("Remove what stands in the way\n\n{}", lines.join("\n")))
}

fn bring_back(fleet: &Fleet, decision: &Decision, node: &NodeName) -> String {
    let address = fleet.nodes.get(node).and_then(|node| node.address.as_deref());
    let address = address.map_or_else(|| "unknown".to_owned(), without_port);
    format!(
        "Bring node {name} back\n\nThe safest way where the machine can be repaired (address: {}). {starts}\n\n```sh\nkubectl get node {word}\nkubectl somersault status\n```",
        code(&address),
        name = code(node.as_str()),
        starts = returns(fleet, decision),
        word = shell_word(node.as_str()),
    )
}

/// The address of a machine: what is known of it is where its kubelet answers, and a person goes elsewhere.
fn without_port(address: &str) -> String {
    address.parse::<SocketAddr>().map_or_else(|_| address.to_owned(), |address| address.ip().to_string())
}

/// What the VM does once its node is back.
fn returns(fleet: &Fleet, decision: &Decision) -> String {
    let unknown: Vec<String> = decision
        .disks
        .iter()
        .filter(|disk| disk.locality == Locality::Unknown || disk.volume.is_none() && disk.is_local())
        .map(|disk| code(&disk.disk))
        .collect();
    match fleet.vms.get(&decision.vm).map(|vm| vm.run) {
        Some(RunStrategy::Always | RunStrategy::RerunOnFailure)
            if unknown.is_empty() || untied::is_held(fleet, decision) =>
        {
            "The VM then starts there by itself, with everything that was written to its disks.".to_owned()
        }
        Some(RunStrategy::Always | RunStrategy::RerunOnFailure) => {
            let tie = if untied::disks(fleet, decision).is_empty() {
                ""
            } else {
                " Tie its disks to their node first, as said here."
            };
            format!(
                "**The VM then starts by itself, on whichever node the scheduler likes:** nothing ties it to the node that holds {}, \
                 and on another one it may boot a blank disk.{tie}",
                unknown.join(", ")
            )
        }
        Some(RunStrategy::Manual | RunStrategy::Once | RunStrategy::Halted) | None => {
            "Its disks are then there again; the VM does not start by itself (its run strategy).".to_owned()
        }
    }
}

/// What a node's volumes are tied to it by.
fn hostname<'a>(fleet: &'a Fleet, node: &'a NodeName) -> &'a str {
    let label = fleet.nodes.get(node).and_then(|node| node.labels.get(HOSTNAME));
    label.map_or(node.as_str(), String::as_str)
}

fn attest(decision: &Decision, node: &NodeName) -> String {
    let this_one = match decision.kind {
        DecisionKind::Recreate => "this one is among them",
        DecisionKind::Rebuild => "this one is then rebuilt",
        _ => "this VM is not touched by it, but may then be recovered by hand",
    };
    format!(
        "Attest that node {} is dead\n\nOnly after somebody has seen that the machine is off, or has cut its power. It is a promise that nothing on it can run or write any more: if it is wrong, VMs run twice and disks are destroyed. It lets the node's VMs with network storage start elsewhere at once; {this_one}.\n\n```sh\nkubectl somersault attest {}\n```",
        code(node.as_str()),
        shell_word(node.as_str())
    )
}

fn move_disks(fleet: &Fleet, decision: &Decision, dead: bool) -> String {
    let mut text = String::from("Move the disks to another node\n\n");
    for finding in &decision.disks {
        let Locality::Local { node } = &finding.locality else { continue };
        let told = Told::of(fleet, finding);
        let device = match (told.root.and_then(|root| root.disk.as_deref()), told.health) {
            (Some(name), Some((_, health))) => {
                let or_unknown =
                    |text: &str| if text.is_empty() { "unknown".to_owned() } else { plain(text) };
                format!(
                    "{} (model {}, serial {})",
                    code(name),
                    or_unknown(&health.model),
                    or_unknown(&health.serial)
                )
            }
            (Some(name), None) => format!("{} (model and serial unknown)", code(name)),
            (None, _) => "unknown".to_owned(),
        };
        let _ = writeln!(
            text,
            "- {}: {} on node {}, physical disk {device}",
            code(&finding.disk),
            told.path.map_or_else(|| "path unknown".to_owned(), code),
            code(node.as_str()),
        );
    }
    text.push('\n');
    if dead {
        text.push_str("Put");
    } else {
        let _ = write!(
            text,
            "While the node lives, one command copies, verifies and switches all of them:\n\n```sh\nkubectl somersault migrate {} -n {} --to-node NEW_NODE\n```\n\n\
             If it is dead: attest it, put",
            shell_word(&decision.vm.name),
            shell_word(&decision.vm.namespace)
        );
    }
    text.push_str(
        " the physical disk into another node and mount it there, or copy the folders from it, then follow \"Pointing claims at other volumes\" below. Mount it read-only first, and copy before anything else if it is not healthy.",
    );
    text
}

fn restore(decision: &Decision, movable: bool) -> String {
    let mut text = String::from("Restore from a copy or a backup\n\nWhat was written since is lost. ");
    text.push_str(if decision.restore_from.is_empty() {
        "No copy is known: look for a backup outside the cluster. "
    } else {
        "The copies known are listed under \"Copies and backups\"; how old they are is unknown. "
    });
    text.push_str(if movable {
        "Put the data into a folder on the new node as `disk.img`, then follow \"Pointing claims at other volumes\" below."
    } else {
        "Put the data on a new volume and point the claim at it. A new, empty claim under the old name boots a blank disk: create one only if that is what is wanted."
    });
    text
}
