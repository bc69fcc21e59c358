//! The commands that point a claim at another volume under its name, for a VM whose node is dead. Their order is
//! what keeps the data: the old volume on Retain first, CDI's word that it will not import again before the claim
//! is deleted, the new volume pre-bound before the claim exists anew.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::decision::{Decision, DiskFinding, Locality};
use crate::fleet::{Claim, ClaimRef, Fleet, Vm, Volume, VolumeMode};
use crate::names::{Key, NodeName, VolumeName};
use crate::runbook::words::{code, shell_word, yaml};
use crate::runbook::{HOSTNAME, untied};

/// A local claim, with everything that pointing it at another volume needs.
pub(super) struct Swap<'a> {
    key: Key,
    claim: &'a Claim,
    volume_name: VolumeName,
    volume: &'a Volume,
    path: &'a str,
    /// Name of the volume that is made for it.
    new_name: String,
}

/// The local claims of the decision, where pointing them elsewhere is all that the VM needs. None if any other
/// disk is a hostDisk or in an unknown place: with its local claims elsewhere the VM would start there, and a
/// `hostPath` without affinity would boot blank.
pub(super) fn local_claims<'a>(fleet: &'a Fleet, decision: &Decision) -> Vec<Swap<'a>> {
    if decision.disks.iter().any(|disk| disk.locality == Locality::Unknown) {
        return Vec::new();
    }
    let local = decision.disks.iter().filter(|disk| disk.is_local());
    local.map(|disk| Swap::of(fleet, decision, disk)).collect::<Option<_>>().unwrap_or_default()
}

impl<'a> Swap<'a> {
    /// `None` if an object is missing, or the data is not in a folder of a node.
    fn of(fleet: &'a Fleet, decision: &Decision, disk: &DiskFinding) -> Option<Self> {
        let key = Key::new(&decision.vm.namespace, disk.claim.as_ref()?);
        let volume_name = VolumeName(disk.volume.clone()?);
        let volume = fleet.volumes.get(&volume_name)?;
        let (claim, path) = (fleet.claims.get(&key)?, volume.source.path()?);
        let new_name = new_name(fleet, &key, &volume_name);
        Some(Self { key, claim, volume_name, volume, path, new_name })
    }
}

/// The chapter, for every local claim of the VM together: with one of two swapped the VM does not start. `unproven` are
/// the nodes on which it may still run.
pub(super) fn chapter(
    decision: &Decision,
    vm: &Vm,
    fleet: &Fleet,
    swaps: &[Swap],
    unproven: &[&NodeName],
) -> String {
    let mut text = String::from(
        "## Pointing claims at other volumes\n\n\
         First bring the data to a folder below a storage root of the node that is to have it: a folder of its own, which no \
         volume names yet, lest an old volume be overwritten. `disk.img` must be owned by 107:107 \
         and be a raw image: a missing one boots a blank disk. Do every disk of this VM: it does not start with some \
         of them only.\n\n",
    );
    if !unproven.is_empty() {
        let nodes: Vec<String> = unproven.iter().map(|node| code(node.as_str())).collect();
        let _ = write!(text, "Begin only once each of these nodes is proven dead: {}.\n\n", nodes.join(", "));
    }
    let namespace = shell_word(&decision.vm.namespace);
    let mut steps: Vec<(String, String)> = Vec::new();
    let homes: BTreeSet<&NodeName> = decision.local_nodes().chain(vm.node()).collect();
    let homes: Vec<&NodeName> = homes.into_iter().filter(|node| fleet.nodes.contains_key(*node)).collect();
    for node in &homes {
        let what = format!(
            "{}Keep the scheduler away from the dead node, should it come back meanwhile. The last step takes this back.",
            untied::others_first(fleet, node, &decision.vm)
        );
        steps.push((what, format!("kubectl cordon {}\n", shell_word(node.as_str()))));
    }
    let keep = swaps.iter().fold(String::new(), |mut lines, swap| {
        let _ = writeln!(
            lines,
            r#"kubectl patch pv {} -p '{{"spec":{{"persistentVolumeReclaimPolicy":"Retain"}}}}'"#,
            shell_word(swap.volume_name.as_str())
        );
        lines
    });
    steps.push(("Keep the old volumes, whatever happens.".to_owned(), keep));
    steps.extend(swaps.iter().filter_map(|swap| handshake(swap, &namespace)));
    for swap in swaps {
        let what = format!(
            "Create the new volume for claim {}, bound to it in advance. Say in the first two lines where the data is now: the \
             hostname label of the node, and the folder there that holds what was in {}.",
            code(&swap.key.name),
            code(swap.path)
        );
        steps.push((what, new_volume_commands(swap)));
    }
    // One that no node has yet is KubeVirt's next try, and in nobody's way.
    let pods = vm.pods.iter().filter(|pod| pod.node.is_some());
    let pods: String = pods.fold(String::new(), |lines, pod| format!("{lines} {}", shell_word(&pod.name)));
    if !pods.is_empty() {
        let what = if unproven.is_empty() {
            "Remove the VM's pods: they died with their node, and only their objects are left."
        } else {
            "Only when the node is proven dead: remove the VM's pods from it. A launcher that lives writes to the old disk."
        };
        steps.push((
            what.to_owned(),
            format!("kubectl delete pod -n {namespace} --force --grace-period=0{pods}\n"),
        ));
    }
    for swap in swaps {
        let name = shell_word(&swap.key.name);
        steps.push((
            format!("Replace claim {}.", code(&swap.key.name)),
            format!(
                "kubectl delete pvc -n {namespace} {name}\nkubectl create -f - <<'EOF'\n{}EOF\nkubectl wait -n {namespace} pvc/{name} --for=jsonpath='{{.status.phase}}'=Bound --timeout=60s\n",
                new_claim(swap)
            ),
        ));
    }
    for node in &homes {
        let what = "Let the scheduler use the node again, unless it was cordoned for another reason, or another VM of it is still being \
             moved by hand: once it is back, other VMs cannot go home to their disks before.";
        steps.push((what.to_owned(), format!("kubectl uncordon {}\n", shell_word(node.as_str()))));
    }
    for (number, (what, commands)) in (1..).zip(steps) {
        let _ = write!(text, "{number}. {what}\n\n```sh\n{commands}```\n\n");
    }
    text
}

/// CDI re-creates a deleted claim of a `DataVolume` at once and imports over whatever it is bound to, unless it
/// has noted that the claim is populated.
fn handshake(swap: &Swap, namespace: &str) -> Option<(String, String)> {
    let data_volume = swap.claim.data_volume.as_deref()?;
    let claim = shell_word(&swap.key.name);
    let what = format!(
        "Tell CDI that claim {} is populated, and see that it has understood: the second command must print the claim's name. If it still does not after a minute, stop here, or CDI imports over the data.",
        code(&swap.key.name)
    );
    let commands = handshake_commands(namespace, &claim, data_volume);
    Some((what, commands))
}

/// The same commands; namespace and claim are words of a shell already.
pub(super) fn handshake_commands(namespace: &str, claim: &str, data_volume: &str) -> String {
    let data_volume = shell_word(data_volume);
    format!(
        "kubectl annotate pvc -n {namespace} {claim} cdi.kubevirt.io/storage.populatedFor={data_volume}\n\
         kubectl get dv -n {namespace} {data_volume} -o jsonpath='{{.metadata.annotations.cdi\\.kubevirt\\.io/storage\\.prePopulated}}'\n"
    )
}

/// A shell refuses it as long as nobody has said where the data is: a volume on a node of no such name would be lost to the
/// claim.
fn new_volume_commands(swap: &Swap) -> String {
    format!(
        "NEW_NODE=''\nNEW_PATH=''\nsed -e \"s|NEW_NODE|${{NEW_NODE:?say it first}}|\" -e \"s|NEW_PATH|${{NEW_PATH:?say it first}}|\" <<'EOF' | \
         kubectl create -f -\n{}EOF\n",
        new_volume(swap)
    )
}

/// A name that no volume has, since the disk may have been moved by hand before; or that of the one that was just made by
/// these very steps, which stay the same while they are followed.
fn new_name(fleet: &Fleet, key: &Key, old: &VolumeName) -> String {
    const SUFFIX: &str = "-restored";
    let name = old.as_str();
    let stem = name.split_once(SUFFIX).map_or(name, |(stem, _)| stem);
    let numbered = (2..).map(|number| format!("{stem}{SUFFIX}-{number}"));
    let mut names = std::iter::once(format!("{stem}{SUFFIX}")).chain(numbered);
    let made = |volume: &Volume| {
        let waits_for = |claim: &ClaimRef| claim.key == *key && claim.uid.is_none();
        volume.claim.as_ref().is_some_and(waits_for)
    };
    let free = names.find(|name| fleet.volumes.get(&VolumeName(name.clone())).is_none_or(made));
    free.unwrap_or_else(|| format!("{stem}{SUFFIX}"))
}

fn new_volume(swap: &Swap) -> String {
    let Volume { class, capacity_bytes, access_modes, mode, .. } = swap.volume;
    let manifest = VolumeManifest {
        name: &swap.new_name,
        class,
        capacity_bytes: *capacity_bytes,
        access_modes,
        mode: *mode,
        claim: &swap.key,
        claim_uid: None,
        path: "NEW_PATH",
        host: Some("NEW_NODE"),
    };
    manifest.write()
}

fn new_claim(swap: &Swap) -> String {
    ClaimManifest { volume: Some(&swap.new_name), ..ClaimManifest::like(&swap.key, swap.claim) }.write()
}

/// A `PersistentVolume` with a folder of a node, or of all, on reclaim policy Retain, for one claim.
pub(super) struct VolumeManifest<'a> {
    pub name: &'a str,
    pub class: &'a str,
    pub capacity_bytes: u64,
    pub access_modes: &'a [String],
    pub mode: VolumeMode,
    pub claim: &'a Key,
    /// For a claim that is there and waits for it; without a uid it waits for a claim of that name.
    pub claim_uid: Option<&'a str>,
    pub path: &'a str,
    /// Hostname label of its node; `None` where every node sees the folder.
    pub host: Option<&'a str>,
}

impl VolumeManifest<'_> {
    pub fn write(&self) -> String {
        let uid = self.claim_uid.map_or_else(String::new, |uid| format!("    uid: {}\n", yaml(uid)));
        let path = yaml(self.path);
        let place = match self.host {
            Some(host) => format!(
                "  local:\n    path: {path}\n  nodeAffinity:\n    required:\n      nodeSelectorTerms:\n      - matchExpressions:\n        \
                 - key: {HOSTNAME}\n          operator: In\n          values: [{}]\n",
                yaml(host)
            ),
            // `local` must have an affinity. A mount that is not there must fail, and not boot a blank disk.
            None => format!("  hostPath:\n    path: {path}\n    type: Directory\n"),
        };
        format!(
            "apiVersion: v1\nkind: PersistentVolume\nmetadata:\n  name: {}\nspec:\n  storageClassName: {}\n  capacity:\n    storage: \"{}\"\n  \
             accessModes: {}\n  volumeMode: {}\n  persistentVolumeReclaimPolicy: Retain\n  claimRef:\n    apiVersion: v1\n    kind: PersistentVolumeClaim\n    \
             namespace: {}\n    name: {}\n{uid}{place}",
            yaml(self.name),
            yaml(self.class),
            self.capacity_bytes,
            yaml_list(self.access_modes),
            mode_word(self.mode),
            yaml(&self.claim.namespace),
            yaml(&self.claim.name),
        )
    }
}

/// A `PersistentVolumeClaim`.
pub(super) struct ClaimManifest<'a> {
    pub namespace: &'a str,
    pub name: String,
    pub class: &'a str,
    pub requested_bytes: u64,
    pub access_modes: &'a [String],
    pub mode: VolumeMode,
    /// The `DataVolume` that must not fill it.
    pub data_volume: Option<&'a str>,
    /// The volume that it is for.
    pub volume: Option<&'a str>,
    /// The snapshot that it is filled from.
    pub snapshot: Option<&'a str>,
}

impl<'a> ClaimManifest<'a> {
    /// As a claim that is there.
    pub fn like(key: &'a Key, claim: &'a Claim) -> Self {
        Self {
            namespace: &key.namespace,
            name: key.name.clone(),
            class: &claim.class,
            requested_bytes: claim.requested_bytes,
            access_modes: &claim.access_modes,
            mode: claim.mode,
            data_volume: claim.data_volume.as_deref(),
            volume: claim.volume.as_ref().map(VolumeName::as_str),
            snapshot: None,
        }
    }

    /// One that a volume fits, where there is no claim to go by.
    pub fn for_volume(key: &'a Key, volume: &'a Volume) -> Self {
        Self {
            namespace: &key.namespace,
            name: key.name.clone(),
            class: &volume.class,
            requested_bytes: volume.capacity_bytes,
            access_modes: &volume.access_modes,
            mode: volume.mode,
            data_volume: None,
            volume: None,
            snapshot: None,
        }
    }

    pub fn write(&self) -> String {
        let annotations = self.data_volume.map_or_else(String::new, |name| {
            format!("  annotations:\n    cdi.kubevirt.io/storage.populatedFor: {}\n", yaml(name))
        });
        let volume = self.volume.map_or_else(String::new, |name| format!("  volumeName: {}\n", yaml(name)));
        let source = self.snapshot.map_or_else(String::new, |name| {
            format!(
                "  dataSource:\n    apiGroup: snapshot.storage.k8s.io\n    kind: VolumeSnapshot\n    name: {}\n",
                yaml(name)
            )
        });
        format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata:\n  namespace: {}\n  name: {}\n{annotations}spec:\n  storageClassName: {}\n{volume}{source}  \
             accessModes: {}\n  volumeMode: {}\n  resources:\n    requests:\n      storage: \"{}\"\n",
            yaml(self.namespace),
            yaml(&self.name),
            yaml(self.class),
            yaml_list(self.access_modes),
            mode_word(self.mode),
            self.requested_bytes,
        )
    }
}

fn yaml_list(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| yaml(word)).collect();
    format!("[{}]", words.join(", "))
}

fn mode_word(mode: VolumeMode) -> &'static str {
    match mode {
        VolumeMode::Filesystem => "Filesystem",
        VolumeMode::Block => "Block",
    }
}
