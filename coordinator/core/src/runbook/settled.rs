//! The runbook of a VM that needs nobody to bring it back any more: the coordinator does, or has done it, or a person
//! has, or its node is back. It says so, and names what is left. What the VM has now is in use: no command here touches
//! a claim, a pod, or a volume to which a claim is bound.

use std::fmt::Write;

use super::standing::{Progress, Standing};
use super::words::{code, plain, shell_word};
use super::{home_nodes, returns, storage, title, untied};
use crate::decision::{Decision, DecisionKind, DiskFinding, Locality};
use crate::fleet::{Fleet, Vm, Volume};
use crate::locality;
use crate::names::{Key, NodeName, VolumeName};

/// Writes it.
pub(super) fn write(fleet: &Fleet, decision: &Decision, standing: &Standing) -> String {
    let vm = fleet.vms.get(&decision.vm);
    let mut text = title(&decision.vm);
    let away = matches!(standing.progress, Progress::NodeBack | Progress::Elsewhere);
    let strayed = strayed(fleet, decision, vm).filter(|_| away);
    if standing.over && strayed.is_none() {
        text.push_str("**It is over: the coordinator does nothing more.** ");
    }
    match strayed {
        Some(node) => text.push_str(&strayed_words(decision, node)),
        None => text.push_str(&headline(fleet, decision, standing, vm)),
    }
    text.push_str("\n\n");
    if matches!(standing.progress, Progress::UnderWay | Progress::Stuck) {
        text.push_str(&watch(&decision.vm));
        if decision.kind == DecisionKind::Rebuild {
            text.push_str(&super::rebuild_chapter(decision));
        }
        return text;
    }
    if decision.kind == DecisionKind::Rebuild && standing.progress == Progress::Elsewhere {
        let _ = write!(text, "Its system disk is new. {}\n\n", super::NEW_SYSTEM_DISK);
    }
    if standing.progress == Progress::NodeBack {
        text.push_str(&still_untied(fleet, decision));
    }
    if standing.progress == Progress::ByHand {
        text.push_str(&way_back(fleet, decision));
    }
    text.push_str(&cordoned(fleet, decision));
    if standing.progress == Progress::NodeBack {
        text.push_str(&move_away(decision));
    }
    if matches!(standing.progress, Progress::Unaffected | Progress::ByHand) {
        text.push_str(&watch(&decision.vm));
    }
    text.push_str(&left_volumes(fleet, decision, standing.progress == Progress::Elsewhere));
    text.push_str(&next_time(&decision.vm));
    text
}

/// A VM that may yet start away from its disks, or has.
fn still_untied(fleet: &Fleet, decision: &Decision) -> String {
    let untied = untied::disks(fleet, decision);
    if untied.is_empty() || untied::is_held(fleet, decision) {
        return String::new();
    }
    format!("## {}\n\n", untied::tie(fleet, decision, &untied))
}

/// The node where it runs now though nothing says that its disks are there: they were on another one.
fn strayed<'a>(fleet: &'a Fleet, decision: &Decision, vm: Option<&'a Vm>) -> Option<&'a NodeName> {
    let node = vm.and_then(running_on)?;
    let untied = decision.is_unpinned_still(fleet) && !untied::is_held(fleet, decision);
    (untied && !decision.nodes.is_empty() && !decision.nodes.contains(node)).then_some(node)
}

/// Nodes of its disks that the scheduler does not use: a runbook said so, and what it said last, that it should again,
/// is easily left undone.
fn cordoned(fleet: &Fleet, decision: &Decision) -> String {
    let homes = home_nodes(decision).into_iter();
    let cordoned = homes.filter(|node| fleet.nodes.get(*node).is_some_and(|node| node.unschedulable));
    let commands = cordoned.fold(String::new(), |mut lines, node| {
        let _ = writeln!(lines, "kubectl uncordon {}", shell_word(node.as_str()));
        lines
    });
    if commands.is_empty() {
        return String::new();
    }
    format!(
        "## Its node is cordoned\n\nUnless that has another reason, let the scheduler use it again once it is back: other VMs \
         cannot go home to their disks before.\n\n```sh\n{commands}```\n\n"
    )
}

/// A node that has died once may die again.
fn move_away(decision: &Decision) -> String {
    let homes = home_nodes(decision);
    if homes.is_empty() || !decision.disks.iter().any(DiskFinding::is_local) {
        return String::new();
    }
    let commands = homes.into_iter().fold(String::new(), |mut lines, node| {
        let node = shell_word(node.as_str());
        let _ = writeln!(
            lines,
            "kubectl somersault evacuate {node} --dry-run\nkubectl somersault evacuate {node}"
        );
        lines
    });
    format!(
        "## If that node is not to be trusted\n\nIts VMs can be moved off it, with their disks, while it lives: see the plan, then \
         ask for it. The disks are copied while the VMs run, and no VM is stopped before you say so.\n\n```sh\n{commands}```\n\n"
    )
}

/// All that is left to say of a recovery of which no more is known than that it is over.
pub fn runbook_over(vm: &Key) -> String {
    over(vm, "")
}

/// What is left to say once no disk of the VM is broken any more. How to remove an old volume is not said: it may be all
/// that is left of what was lost.
pub(crate) fn storage_over(fleet: &Fleet, decision: &Decision) -> String {
    over(&decision.vm, &left_volumes(fleet, decision, false))
}

fn over(vm: &Key, left: &str) -> String {
    format!(
        "{}**It is over: the coordinator does nothing more.** What it said before holds no more.\n\n{left}{}",
        title(vm),
        next_time(vm)
    )
}

fn headline(fleet: &Fleet, decision: &Decision, standing: &Standing, vm: Option<&Vm>) -> String {
    match standing.progress {
        Progress::ByHand => "**A person was at work on it, and it was not seen running since.** A claim of it may be missing, or its pods."
            .to_owned(),
        Progress::UnderWay => {
            "**The coordinator brings it back.** Leave its claims, volumes and pods alone.".to_owned()
        }
        Progress::Stuck => "**The coordinator brings it back and does not get on; it tries again and again.** The Events say \
             why. Mend that, and leave its claims, volumes and pods alone."
            .to_owned(),
        Progress::Elsewhere => match vm.and_then(running_on) {
            Some(node) => format!("**It runs again, on {}.** What it has now is in use: leave it alone.", code(node.as_str())),
            None => "**It was seen running again, elsewhere.** What it has now is in use: leave it alone.".to_owned(),
        },
        Progress::Unaffected => "**The node that died holds nothing of it any more:** its disks were moved, or it was stopped. It has not \
             been seen running since. What it has now is to be used: leave its claims alone, unless you are not done with them."
            .to_owned(),
        Progress::NodeBack => {
            let node = decision.nodes.first().map_or_else(|| "Its node".to_owned(), |node| format!("Node {}", code(node.as_str())));
            format!("**{node} is back, and nothing of the VM was touched.** {}", returns(fleet, decision))
        }
        Progress::Untouched | Progress::Supposed => "Nothing of the VM was touched.".to_owned(),
    }
}

fn strayed_words(decision: &Decision, node: &NodeName) -> String {
    let homes: Vec<String> = decision.nodes.iter().map(|node| code(node.as_str())).collect();
    format!(
        "**It runs on {}, and its disks were on {}.** Nothing tied it to them: where a folder or a `disk.img` was missing, it has booted a \
         blank disk. The old one is unharmed. Stop the VM, see what was written to the new one, tie its disks to the node that holds \
         them, and start it again.",
        code(node.as_str()),
        homes.join(", ")
    )
}

fn running_on(vm: &Vm) -> Option<&NodeName> {
    vm.instance.as_ref().filter(|instance| instance.phase == "Running")?.node.as_ref()
}

fn watch(vm: &Key) -> String {
    let (ns, name) = (shell_word(&vm.namespace), shell_word(&vm.name));
    format!(
        "```sh\nkubectl somersault recoveries -n {ns}\nkubectl get vm,vmi,datavolume,pvc,pods -n {ns}\nkubectl get events -n {ns} \
         --field-selector involvedObject.name={name}\n```\n\n"
    )
}

/// What becomes of it the next time is another question.
fn next_time(vm: &Key) -> String {
    format!(
        "What would become of it if its node died now:\n\n```sh\nkubectl somersault explain {} -n {}\n```\n",
        shell_word(&vm.name),
        shell_word(&vm.namespace)
    )
}

/// An old volume of a disk, and the node that it is on.
struct Left<'a> {
    disk: &'a str,
    node: NodeName,
    name: &'a VolumeName,
    volume: &'a Volume,
}

/// Volumes that it had on a node, in this incident or before, and that no claim has now. How to remove them is said only
/// once it was seen running without them.
fn left_volumes(fleet: &Fleet, decision: &Decision, runs: bool) -> String {
    let of_disk = |disk: &DiskFinding, name: &VolumeName, volume: &Volume| {
        let earlier = volume.claim.as_ref().is_some_and(|claim| {
            claim.key.namespace == decision.vm.namespace && Some(&claim.key.name) == disk.claim.as_ref()
        });
        earlier || disk.volume.as_deref() == Some(name.as_str())
    };
    let released = fleet.volumes.iter().filter(|(_, volume)| volume.phase == "Released");
    let left: Vec<Left> = released
        .filter_map(|(name, volume)| {
            let disk = decision.disks.iter().find(|disk| of_disk(disk, name, volume))?;
            let found = match &disk.locality {
                Locality::Local { node } if disk.volume.as_deref() == Some(name.as_str()) => {
                    Some(node.clone())
                }
                _ => locality::pinned_node(fleet, volume),
            };
            Some(Left { disk: &disk.disk, node: found?, name, volume })
        })
        .filter(|left| !is_named_by_a_claim(fleet, decision, left.name))
        .collect();
    if left.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "## Old volumes\n\nThese it had before, and no claim has them now. They are kept until somebody removes them.\n\n",
    );
    for Left { disk, node, name, volume } in left {
        let _ = write!(
            text,
            "### {} of disk {}\n\nLook into it, as root on node {} while that is up; mount it read-only.\n\n```sh\n{}```\n\n",
            code(name.as_str()),
            code(disk),
            code(node.as_str()),
            look_commands(name, volume),
        );
        if runs {
            let _ = write!(
                text,
                "When nothing of it is needed any more, and it still is Released:\n\n```sh\n{}```\n\n",
                remove_commands(fleet, name, &node, volume),
            );
        }
    }
    text
}

/// A claim that is there names it: it is about to be bound to it, or was and lost it.
fn is_named_by_a_claim(fleet: &Fleet, decision: &Decision, name: &VolumeName) -> bool {
    let mut claims = fleet.claims.iter().filter(|(key, _)| key.namespace == decision.vm.namespace);
    claims.any(|(_, claim)| claim.volume.as_ref() == Some(name))
}

fn look_commands(name: &VolumeName, volume: &Volume) -> String {
    let mut text = format!("kubectl get pv {}\n", shell_word(name.as_str()));
    if let Some(path) = volume.source.path() {
        let image = shell_word(&format!("{}/disk.img", path.trim_end_matches('/')));
        let _ = writeln!(
            text,
            "losetup --find --show --read-only --partscan {image}      # afterwards: losetup -d the device that it names"
        );
    }
    text
}

/// On reclaim policy Retain nobody removes the folder with the object. A folder that something else has as well is in use,
/// whoever the object belongs to.
fn remove_commands(fleet: &Fleet, name: &VolumeName, node: &NodeName, volume: &Volume) -> String {
    let mut text = format!("kubectl delete pv {}\n", shell_word(name.as_str()));
    let Some(path) = volume.source.path().filter(|_| volume.retained) else { return text };
    match locality::other_user(fleet, name, Some(node), path) {
        None => {
            let _ = writeln!(text, "rm -r {}      # on node {}", shell_word(path), shell_word(node.as_str()));
        }
        Some(user) => {
            let _ = writeln!(
                text,
                "# {user} has the same folder: the object only, never the folder",
                user = plain(&user)
            );
        }
    }
    text
}

/// A person has begun and is not done: how a claim that is missing, or waits for a volume, gets its old one back.
fn way_back(fleet: &Fleet, decision: &Decision) -> String {
    let mut commands = String::new();
    for disk in decision.disks.iter().filter(|disk| disk.is_local()) {
        let (Some(claim), Some(name)) = (&disk.claim, &disk.volume) else { continue };
        let (key, name) = (Key::new(&decision.vm.namespace, claim), VolumeName(name.clone()));
        let Some(volume) =
            fleet.volumes.get(&name).filter(|volume| volume.phase == "Released" && volume.retained)
        else {
            continue;
        };
        if fleet.claims.get(&key).is_none_or(|found| found.phase == "Pending") {
            commands.push_str(&storage::rebind(fleet, &key, &name, volume));
        }
    }
    if commands.is_empty() {
        return String::new();
    }
    format!(
        "## Back to the old volumes\n\nWhere you do not want to go on: stop the VM, and bind each claim to the volume that it had. A \
         claim is deleted here only while it is bound to nothing.\n\n```sh\n{commands}```\n\n"
    )
}
