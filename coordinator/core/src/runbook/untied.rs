//! Disks whose data is in a folder of one node though nothing ties their VM to that node: `hostPath` volumes without
//! node affinity, and hostDisks. KubeVirt starts such a VM wherever the scheduler likes, and on another node a new folder
//! and a blank `disk.img` take the place of the data.

use std::fmt::Write;

use super::words::{code, json, shell_word};
use super::{HOSTNAME, hostname};
use crate::decision::{Decision, DiskFinding};
use crate::fleet::{self, Disk, DiskSource, Fleet, Vm, Volume};
use crate::names::{Key, NodeName, VolumeName};

/// What stands for the node that nobody told: a shell refuses the command as long as nobody has. An affinity is given once
/// and for good, so that one to a node of no such name would lose the volume.
const PLACEHOLDER: &str = r#"'"${NODE:?say the hostname label of the node that holds it: NODE=...}"'"#;

/// In a patch, the node that nobody told. No name of a node has a colon.
const UNTOLD: &str = "untold:node";

/// A disk that nothing ties to the node that holds it.
pub(super) struct Untied<'a> {
    name: &'a str,
    path: &'a str,
    /// Its volume and the class of that; a hostDisk has none.
    volume: Option<(VolumeName, &'a str)>,
}

/// The disks of the decision's VM that nothing ties to the node that holds them.
pub(super) fn disks<'a>(fleet: &'a Fleet, decision: &'a Decision) -> Vec<Untied<'a>> {
    let of_volume = |finding: &'a DiskFinding| {
        let name = VolumeName(finding.volume.clone()?);
        let path = fleet.volumes.get(&name)?.source.path()?;
        Some(Untied {
            name: &finding.disk,
            path,
            volume: Some((name, finding.class.as_deref().unwrap_or_default())),
        })
    };
    let vm = fleet.vms.get(&decision.vm);
    let host_disks = vm.into_iter().flat_map(|vm| &vm.disks).filter_map(|disk| match &disk.source {
        DiskSource::HostDisk { path } => Some(Untied { name: &disk.name, path, volume: None }),
        _ => None,
    });
    decision.disks.iter().filter(|disk| disk.untied).filter_map(of_volume).chain(host_disks).collect()
}

/// Whether something else ties the VM to a node: a local volume's affinity, or its own node selector.
pub(super) fn is_held(fleet: &Fleet, decision: &Decision) -> bool {
    let selects = fleet.vms.get(&decision.vm).is_some_and(|vm| vm.node_selector.contains_key(HOSTNAME));
    let local = |disk: &DiskFinding| disk.volume.is_some() && disk.is_local();
    selects || decision.disks.iter().any(local)
}

/// Other VMs of this node that nothing ties to it: while it is cordoned, they would start elsewhere, on blank disks. A
/// sentence, where there are some.
pub(super) fn others_first(fleet: &Fleet, node: &NodeName, but: &Key) -> String {
    let untied = |vm: &Vm, namespace: &str| {
        let volume = |disk: &Disk| {
            let DiskSource::Claim { name, .. } = &disk.source else { return None };
            fleet.volumes.get(fleet.claims.get(&Key::new(namespace, name))?.volume.as_ref()?)
        };
        let volumes: Vec<&Volume> = vm.disks.iter().filter_map(volume).collect();
        let host_disk = vm.disks.iter().any(|disk| matches!(disk.source, DiskSource::HostDisk { .. }));
        let loose = |volume: &&Volume| {
            volume.node_affinity.is_none() && volume.source.path().is_some_and(|path| !is_shared(fleet, path))
        };
        let held = volumes.iter().any(|volume| volume.node_affinity.is_some());
        !held && !vm.node_selector.contains_key(HOSTNAME) && (host_disk || volumes.iter().any(loose))
    };
    let others = fleet
        .vms
        .iter()
        .filter(|(key, vm)| *key != but && vm.node() == Some(node) && untied(vm, &key.namespace));
    let names: Vec<String> = others.map(|(key, _)| code(&key.to_string())).collect();
    if names.is_empty() {
        return String::new();
    }
    format!(
        "**First tie the disks of {} to this node, as their runbooks say, where they are on this node only:** once it is back \
         and cordoned they would start elsewhere, on blank disks. ",
        names.join(", ")
    )
}

/// How its disks are tied to their node, for good and at any time.
pub(super) fn tie(fleet: &Fleet, decision: &Decision, disks: &[Untied]) -> String {
    let mut text = String::from(
        "Tie its disks to the node that holds them\n\nNothing tells Kubernetes which node that is: wherever the VM starts, \
         on another node it boots a blank disk. Do this before the node comes back; it can be done at any time. A \
         volume without node affinity may be given one, once and for good: see first that the folder is on that node, and on no \
         other.\n\n",
    );
    for disk in disks {
        let _ = write!(text, "- {}: {}", code(disk.name), code(disk.path));
        match &disk.volume {
            Some((name, class)) => text.push_str(&tie_volume(fleet, decision, disk, name, class)),
            None => text.push_str(&tie_vm(fleet, decision)),
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn tie_volume(fleet: &Fleet, decision: &Decision, disk: &Untied, name: &VolumeName, class: &str) -> String {
    let mut text = String::new();
    let shared = is_shared(fleet, disk.path);
    if shared {
        text.push_str(", which every node sees, as an agent tells.");
    } else {
        let holder = decision.nodes.iter().find(|node| lists(fleet, node, disk.path));
        let host = if let Some(node) = holder {
            let _ = write!(text, ", which the agent of node {} lists.", code(node.as_str()));
            hostname(fleet, node)
        } else {
            text.push_str(
                "; no agent of a node that it ran on lists it: set `NODE` to the hostname label of the node that holds it first.",
            );
            UNTOLD
        };
        let patch = format!(
            r#"{{"spec":{{"nodeAffinity":{{"required":{{"nodeSelectorTerms":[{{"matchExpressions":[{{"key":"{HOSTNAME}","operator":"In","values":["{}"]}}]}}]}}}}}}}}"#,
            json(host)
        );
        let _ = write!(
            text,
            "\n\n```sh\nkubectl patch pv {} --type=merge -p {}\n```\n\n  Never a folder that every node sees, such as an NFS mount.",
            shell_word(name.as_str()),
            word_with_host(&patch)
        );
    }
    // Of a class that is not shared, this very command would have VMs started away from their disks: it is printed for no
    // other, lest it be pasted.
    if class.is_empty() || !shared {
        text.push_str("\n\n");
        return text;
    }
    let patch = format!(r#"{{"spec":{{"storageClasses":{{"{}":"Network"}}}}}}"#, json(class));
    let _ = write!(
        text,
        " Where all volumes of its class are so, say that in the policy instead:\n\n```sh\nkubectl patch recoverypolicy default \
         --type=merge -p {}\n```\n\n",
        shell_word(&patch)
    );
    text
}

/// A hostDisk has no volume that could say where it is: its VM must.
fn tie_vm(fleet: &Fleet, decision: &Decision) -> String {
    let host = decision.nodes.first().map_or(UNTOLD, |node| hostname(fleet, node));
    let patch = format!(
        r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{{"{HOSTNAME}":"{}"}}}}}}}}}}"#,
        json(host)
    );
    format!(
        ", a hostDisk, on the node that the VM ran on. It has no volume: the VM itself is tied, through its owner where it has \
         one.\n\n```sh\nkubectl patch vm {} -n {} --type=merge -p {}\n```\n\n",
        shell_word(&decision.vm.name),
        shell_word(&decision.vm.namespace),
        word_with_host(&patch)
    )
}

/// The patch as one word of a shell, which refuses it where the node is to be said first.
fn word_with_host(patch: &str) -> String {
    shell_word(patch).replace(UNTOLD, PLACEHOLDER)
}

fn lists(fleet: &Fleet, node: &NodeName, path: &str) -> bool {
    fleet.reports.get(node).is_some_and(|report| report.usage.contains_key(fleet::folder(path)))
}

fn is_shared(fleet: &Fleet, path: &str) -> bool {
    fleet.reports.values().any(|report| report.root_of(path).is_some_and(|root| root.shared))
}
