//! The commands that point a claim at another volume under its name, for a VM whose node is dead. Their order is
//! what keeps the data: the old volume on Retain first, CDI's word that it will not import again before the claim
//! is deleted, the new volume pre-bound before the claim exists anew.

use std::fmt::Write;

use crate::decision::{Decision, DiskFinding, Locality};
use crate::fleet::{Claim, Fleet, Vm, Volume, VolumeMode};
use crate::names::{Key, VolumeName};
use crate::runbook::words::{code, shell_word, yaml};

/// A local claim, with everything that pointing it at another volume needs.
pub(super) struct Swap<'a> {
    key: Key,
    claim: &'a Claim,
    volume_name: VolumeName,
    volume: &'a Volume,
    path: &'a str,
}

/// The local claims of the decision, where pointing them elsewhere is all that the VM needs. None if any other
/// disk is a hostDisk or in an unknown place: with its local claims elsewhere the VM would start there, and a
/// `hostPath` without affinity would boot blank.
pub(super) fn local_claims<'a>(fleet: &'a Fleet, decision: &Decision) -> Vec<Swap<'a>> {
    if decision.disks.iter().any(|disk| disk.locality == Locality::Unknown) {
        return Vec::new();
    }
    let local = decision.disks.iter().filter(|disk| matches!(disk.locality, Locality::Local { .. }));
    local.map(|disk| Swap::of(fleet, decision, disk)).collect::<Option<_>>().unwrap_or_default()
}

impl<'a> Swap<'a> {
    /// `None` if an object is missing, or the data is not in a folder of a node.
    fn of(fleet: &'a Fleet, decision: &Decision, disk: &DiskFinding) -> Option<Self> {
        let key = Key::new(&decision.vm.namespace, disk.claim.as_ref()?);
        let volume_name = VolumeName(disk.volume.clone()?);
        let volume = fleet.volumes.get(&volume_name)?;
        let (claim, path) = (fleet.claims.get(&key)?, volume.source.path()?);
        Some(Self { key, claim, volume_name, volume, path })
    }
}

/// The chapter, for every local claim of the VM together: with one of two swapped the VM does not start.
pub(super) fn chapter(vm_key: &Key, vm: &Vm, fleet: &Fleet, swaps: &[Swap]) -> String {
    let mut text = String::from(
        "## Pointing claims at other volumes\n\n\
         `NEW_NODE` is the hostname label of the node that holds the data now. `disk.img` must be owned by 107:107 \
         and be a raw image: a missing one boots a blank disk. Do every disk of this VM: it does not start with some \
         of them only.\n\n",
    );
    let namespace = shell_word(&vm_key.namespace);
    let mut steps: Vec<(String, String)> = Vec::new();
    for node in vm.node().into_iter().filter(|node| fleet.nodes.contains_key(*node)) {
        steps.push((
            "Keep the scheduler away from the dead node.".to_owned(),
            format!("kubectl cordon {}\n", shell_word(node.as_str())),
        ));
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
            "Create the new volume for claim {}, bound to it in advance. `NEW_PATH` is the folder there that holds what was in {}.",
            code(&swap.key.name),
            code(swap.path)
        );
        steps.push((what, format!("kubectl create -f - <<'EOF'\n{}EOF\n", new_volume(swap))));
    }
    let pods: String =
        vm.pods.iter().fold(String::new(), |lines, pod| format!("{lines} {}", shell_word(&pod.name)));
    if !pods.is_empty() {
        steps.push((
            "Only when the node is proven dead: remove the VM's pods from it. A launcher that lives writes to the old disk."
                .to_owned(),
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
    for (number, (what, commands)) in (1..).zip(steps) {
        let _ = write!(text, "{number}. {what}\n\n```sh\n{commands}```\n\n");
    }
    text
}

/// CDI re-creates a deleted claim of a `DataVolume` at once and imports over whatever it is bound to, unless it
/// has noted that the claim is populated.
fn handshake(swap: &Swap, namespace: &str) -> Option<(String, String)> {
    let data_volume = shell_word(swap.claim.data_volume.as_deref()?);
    let claim = shell_word(&swap.key.name);
    let what = format!(
        "Tell CDI that claim {} is populated, and see that it has understood: the second command must print the claim's name. If it still does not after a minute, stop here, or CDI imports over the data.",
        code(&swap.key.name)
    );
    let commands = format!(
        "kubectl annotate pvc -n {namespace} {claim} cdi.kubevirt.io/storage.populatedFor={data_volume}\n\
         kubectl get dv -n {namespace} {data_volume} -o jsonpath='{{.metadata.annotations.cdi\\.kubevirt\\.io/storage\\.prePopulated}}'\n"
    );
    Some((what, commands))
}

fn new_volume(swap: &Swap) -> String {
    let Volume { class, capacity_bytes, access_modes, mode, .. } = swap.volume;
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata:\n  name: {}\nspec:\n  storageClassName: {}\n  capacity:\n    storage: \"{capacity_bytes}\"\n  \
         accessModes: {}\n  volumeMode: {}\n  persistentVolumeReclaimPolicy: Retain\n  claimRef:\n    apiVersion: v1\n    kind: PersistentVolumeClaim\n    \
         namespace: {}\n    name: {}\n  local:\n    path: NEW_PATH\n  nodeAffinity:\n    required:\n      nodeSelectorTerms:\n      - matchExpressions:\n        \
         - key: kubernetes.io/hostname\n          operator: In\n          values: [NEW_NODE]\n",
        yaml(&format!("{}-restored", swap.volume_name)),
        yaml(class),
        yaml_list(access_modes),
        mode_word(*mode),
        yaml(&swap.key.namespace),
        yaml(&swap.key.name),
    )
}

fn new_claim(swap: &Swap) -> String {
    let Claim { class, requested_bytes, access_modes, mode, data_volume, .. } = swap.claim;
    let annotations = data_volume.as_ref().map_or_else(String::new, |name| {
        format!("  annotations:\n    cdi.kubevirt.io/storage.populatedFor: {}\n", yaml(name))
    });
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata:\n  namespace: {}\n  name: {}\n{annotations}spec:\n  storageClassName: {}\n  volumeName: {}\n  \
         accessModes: {}\n  volumeMode: {}\n  resources:\n    requests:\n      storage: \"{requested_bytes}\"\n",
        yaml(&swap.key.namespace),
        yaml(&swap.key.name),
        yaml(class),
        yaml(&format!("{}-restored", swap.volume_name)),
        yaml_list(access_modes),
        mode_word(*mode),
    )
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
