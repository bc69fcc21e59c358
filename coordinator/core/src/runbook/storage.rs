//! The runbook of a VM whose storage is broken while its nodes live: what must not be done now, and for each broken
//! disk what may bring its data back, with the commands where objects tell enough to write them.
//!
//! ```text
//!   runs, file or folder gone ──► the deleted file is still open: copy it out before anything else
//!   does not run              ──► keep it stopped: KubeVirt makes a blank disk where none is
//!   each broken disk ──► snapshots ─► volumes kept ─► folders without a volume ─► image ─► by a person's word: empty
//! ```
//!
//! A volume is bound again by the uid in its `claimRef`, never through a null: for a moment without a `claimRef` any
//! claim may take it, and with reclaim policy Delete its data goes.

use std::fmt::Write;

use super::swap::{self, ClaimManifest, VolumeManifest};
use super::words::{code, json, plain, shell_word};
use super::{disks_chapter, hostname, source_words};
use crate::decision::{Decision, DiskFinding, Reason, SourceKind};
use crate::fleet::{Claim, Fleet, Owner, Vm, Volume};
use crate::locality::{ClassOverride, ClassOverrides};
use crate::names::{Key, NodeName, VolumeName};

/// Writes the runbook of a decision about storage alone; `overrides` are the policy's words on classes.
pub fn storage_runbook(fleet: &Fleet, overrides: &ClassOverrides, decision: &Decision) -> String {
    let vm = fleet.vms.get(&decision.vm);
    let reasons: Vec<&str> = decision.reasons.iter().map(|reason| reason.as_str()).collect();
    let mut text = format!(
        "# Runbook: VM {}\n\n**Its storage is broken, and no node of it died. It needs a person. Nothing of it has been \
         touched, and nothing will be.** ({})\n\n",
        code(&decision.vm.to_string()),
        reasons.join(", ")
    );
    for detail in &decision.details {
        let _ = writeln!(text, "- {}", plain(detail));
    }
    text.push('\n');
    text.push_str(&first(fleet, decision, vm));
    text.push_str(&disks_chapter(fleet, decision));
    text.push_str("## Bringing the data back\n\n");
    text.push_str(
        "In this order, once what is said under \"First\" is done. Stop the VM before its claim gets another volume, and look into what you \
         have found before the VM starts on it.\n\n",
    );
    for disk in decision.disks.iter().filter(|disk| is_concerned(decision, disk)) {
        let _ = write!(text, "### Disk {}\n\n", code(&disk.disk));
        text.push_str(&ways(fleet, overrides, decision, disk));
    }
    text
}

/// A disk that a detail speaks of: details begin with the disk's name.
fn is_concerned(decision: &Decision, disk: &DiskFinding) -> bool {
    let begin = format!("disk {}: ", disk.disk);
    decision.details.iter().any(|detail| detail.starts_with(&begin))
}

/// What must be done, or not be done, before anything else.
fn first(fleet: &Fleet, decision: &Decision, vm: Option<&Vm>) -> String {
    let file_gone = |reason: &Reason| matches!(reason, Reason::DiskImageMissing | Reason::VolumePathMissing);
    let file_gone = decision.reasons.iter().any(file_gone);
    let runs_on: Vec<&NodeName> = decision.nodes.iter().collect();
    let mut text = String::from("## First\n\n");
    let disk_failed = decision.reasons.contains(&Reason::DiskFailed);
    if disk_failed {
        text.push_str(
            "A physical disk is graded Failed: do not trust what it reads, and write nothing to it. Restore onto another \
             disk.\n\n",
        );
    }
    if runs_on.is_empty() {
        text.push_str("It runs on no node. ");
        text.push_str(&keep_stopped(decision, vm));
        return text;
    }
    let never_ran = vm.and_then(|vm| vm.instance.as_ref()).is_some_and(|instance| !instance.has_run);
    if never_ran {
        text.push_str("Its present instance has never run, so that no file of the old one is open in it. ");
        text.push_str(&keep_stopped(decision, vm));
        return text;
    }
    let nodes: Vec<String> = runs_on.iter().map(|node| code(node.as_str())).collect();
    let _ = write!(text, "It runs on {}. ", nodes.join(", "));
    if !file_gone {
        text.push_str(if disk_failed {
            "Once it is stopped it may not start again.\n\n"
        } else {
            "What it has open goes on working: leave it running until you know what you do. Once it is stopped it may not \
             start again.\n\n"
        });
        return text;
    }
    text.push_str(
        "**Do not stop, restart or migrate it.** The file that it has open was deleted, and is gone for good the moment \
         its process ends. Until then its content can be copied out of that process:\n\n",
    );
    text.push_str(&copy_out(fleet, decision, runs_on[0]));
    text
}

fn keep_stopped(decision: &Decision, vm: Option<&Vm>) -> String {
    let mut text = String::from(
        "Keep it stopped: where a disk image is missing KubeVirt makes a blank one and starts the VM on it.",
    );
    match vm.map(|vm| &vm.owner) {
        Some(Owner::Itself) => {
            let _ = write!(
                text,
                " Write down how it was started before, to give it back at the end.\n\n```sh\nkubectl get vm -n {ns} {name} -o \
                 jsonpath='{{.spec.running}} {{.spec.runStrategy}}'\nkubectl patch vm -n {ns} {name} --type merge -p \
                 '{{\"spec\":{{\"running\":null,\"runStrategy\":\"Halted\"}}}}'\n```\n\n",
                ns = shell_word(&decision.vm.namespace),
                name = shell_word(&decision.vm.name),
            );
        }
        Some(Owner::Wukong { name } | Owner::Unknown { name, .. }) => {
            let _ = write!(text, " It is stopped through its owner {}.\n\n", code(name));
        }
        None => text.push_str("\n\n"),
    }
    text
}

/// How the content of a deleted file is copied while its process lives. The guest is paused meanwhile: a copy of a disk
/// that is being written is a copy of no moment.
fn copy_out(fleet: &Fleet, decision: &Decision, node: &NodeName) -> String {
    let Key { namespace, name } = &decision.vm;
    // libvirt names a guest so, and QEMU has the name in its command line.
    let guest = shell_word(&format!("guest={namespace}_{name},"));
    let mut text = format!(
        "```sh\nvirtctl pause vm {vm} -n {ns}      # nothing is written while it is copied\n# on node {node}, as root:\nfor p in \
         $(pgrep -f {guest}); do ls -l /proc/$p/fd | grep -F '(deleted)'; done\n",
        vm = shell_word(name),
        ns = shell_word(namespace),
        node = shell_word(node.as_str()),
    );
    for disk in decision.disks.iter().filter(|disk| is_concerned(decision, disk)) {
        let Some(path) = path_of(fleet, disk) else { continue };
        let folder = shell_word(path.trim_end_matches('/'));
        let _ = write!(
            text,
            "mkdir -p {folder}\ncp --sparse=always /proc/PID/fd/FD {folder}/rescued.img      # disk {}: PID and FD as listed above\n",
            shell_word(&disk.disk),
        );
    }
    text.push_str(
        "```\n\nCopy to another filesystem where this one is not to be trusted. When the copy is complete: stop the VM, name \
         the copy `disk.img` in its volume's folder, give it to 107:107 with mode 0660, and start the VM. Do not unpause it \
         in between: what it writes then goes into the deleted file.\n\n",
    );
    text
}

fn path_of<'a>(fleet: &'a Fleet, disk: &DiskFinding) -> Option<&'a str> {
    fleet.volumes.get(&VolumeName(disk.volume.clone()?))?.source.path()
}

/// What may bring back one disk.
fn ways(fleet: &Fleet, overrides: &ClassOverrides, decision: &Decision, disk: &DiskFinding) -> String {
    let mut text = String::new();
    let sources = decision.restore_from.iter().filter(|source| source.disk == disk.disk);
    for source in sources.map(|source| &source.source) {
        let _ = write!(text, "- From {}.\n\n", source_words(source));
        if let Some(commands) = commands(fleet, overrides, decision, disk, source) {
            let _ = write!(text, "{commands}\n\n");
        }
    }
    if text.is_empty() {
        text.push_str("- No copy of it is known here. Look for a backup outside the cluster.\n\n");
    }
    text.push_str(
        "- Or a new, empty claim under the old name: the VM then boots a blank disk, and everything on the old one is given \
         up. Nobody does that for you: delete and create the claim yourself, and only if that is what is wanted.\n\n",
    );
    text
}

fn commands(
    fleet: &Fleet,
    overrides: &ClassOverrides,
    decision: &Decision,
    disk: &DiskFinding,
    source: &SourceKind,
) -> Option<String> {
    let key = Key::new(&decision.vm.namespace, disk.claim.as_ref()?);
    let claim = fleet.claims.get(&key);
    match source {
        SourceKind::Snapshot { ready: false, .. } | SourceKind::Image { .. } => None,
        SourceKind::Snapshot { name, .. } => claim.map(|claim| from_snapshot(&key, claim, name)),
        SourceKind::Volume { name, .. } => {
            let volume = fleet.volumes.get(name)?;
            Some(match claim {
                Some(claim) if claim.volume.as_ref() == Some(name) => bind_again(&key, claim, name),
                _ => bind_anew(fleet, &key, name, volume),
            })
        }
        SourceKind::Folder { node, path, .. } => {
            let claim = claim?;
            // A volume of that name that is there is not this folder.
            let name = claim.volume.as_ref().filter(|name| !fleet.volumes.contains_key(*name))?;
            Some(volume_again(fleet, overrides, &key, claim, name, (node, path)))
        }
    }
}

/// The snapshot as a claim beside the old one, which stays as it is.
fn from_snapshot(key: &Key, claim: &Claim, snapshot: &str) -> String {
    let mut new = ClaimManifest::like(key, claim);
    new.name = format!("{}-from-{snapshot}", key.name);
    new.volume = None;
    new.data_volume = None;
    new.snapshot = Some(snapshot);
    format!(
        "  As a claim beside the old one; name it in the VM in place of the old one once you have looked into it.\n\n```sh\nkubectl \
         create -f - <<'EOF'\n{}EOF\n```",
        new.write()
    )
}

/// The claim's own volume is there, but bound to an earlier claim or to nobody: its `claimRef` is given the claim's uid.
fn bind_again(key: &Key, claim: &Claim, name: &VolumeName) -> String {
    format!(
        "  It is the claim's own volume: bound to it again, the claim is Bound at once, and nothing is copied or deleted.\n\n\
         ```sh\n{retain}kubectl patch pv {pv} --type merge -p {patch}\n{wait}```",
        retain = retain(name),
        pv = shell_word(name.as_str()),
        patch = quoted(&format!(
            r#"{{"spec":{{"claimRef":{{"apiVersion":"v1","kind":"PersistentVolumeClaim","namespace":"{}","name":"{}","uid":"{}","resourceVersion":null}}}}}}"#,
            json(&key.namespace),
            json(&key.name),
            json(claim.uid.as_str()),
        )),
        wait = wait(key),
    )
}

/// Another volume than the claim's own, as the one before a move.
fn bind_anew(fleet: &Fleet, key: &Key, name: &VolumeName, volume: &Volume) -> String {
    format!(
        "  The claim is made anew on it, so the VM must be stopped: a claim that a pod uses stays until the pod is gone.\n\n\
         ```sh\n{}{}```",
        rebind(fleet, key, name, volume),
        wait(key)
    )
}

/// Binds a claim, which may be there or not, to a volume that is free: pre-bound first, then the claim is made anew as the
/// volume is, since a claim of another class or size would not bind to it.
pub(super) fn rebind(fleet: &Fleet, key: &Key, name: &VolumeName, volume: &Volume) -> String {
    let (ns, pvc) = (shell_word(&key.namespace), shell_word(&key.name));
    let claim = fleet.claims.get(key);
    let mut text = retain(name);
    if let Some(own) = claim.and_then(|claim| claim.volume.as_ref()).filter(|own| *own != name) {
        let _ = writeln!(text, "# and the volume that the claim has now, where it still exists:");
        text.push_str(&retain(own));
    }
    // CDI fills a claim of its own that does not say that it is filled.
    let told = claim.and_then(|claim| claim.data_volume.as_deref());
    let data_volume = told.or_else(|| fleet.data_volumes.contains_key(key).then_some(key.name.as_str()));
    if let (Some(data_volume), Some(_)) = (data_volume, claim) {
        text.push_str(&swap::handshake_commands(&ns, &pvc, data_volume));
    }
    text.push_str(&prebind(key, name));
    if claim.is_some() {
        let _ = writeln!(text, "kubectl delete pvc -n {ns} {pvc}");
    }
    let new =
        ClaimManifest { volume: Some(name.as_str()), data_volume, ..ClaimManifest::for_volume(key, volume) };
    let _ = write!(text, "kubectl create -f - <<'EOF'\n{}EOF\n", new.write());
    text
}

/// Before the claim goes: an owner that makes it anew at once would otherwise get a blank volume.
fn prebind(key: &Key, name: &VolumeName) -> String {
    let patch = format!(
        r#"{{"spec":{{"claimRef":{{"apiVersion":"v1","kind":"PersistentVolumeClaim","namespace":"{}","name":"{}","uid":null,"resourceVersion":null}}}}}}"#,
        json(&key.namespace),
        json(&key.name),
    );
    format!("kubectl patch pv {} --type merge -p {}\n", shell_word(name.as_str()), quoted(&patch))
}

/// The folder is there and its volume object is not: made again under its name, with the claim's uid, the Lost claim is
/// Bound again.
fn volume_again(
    fleet: &Fleet,
    overrides: &ClassOverrides,
    key: &Key,
    claim: &Claim,
    name: &VolumeName,
    (node, path): (&NodeName, &str),
) -> String {
    // Tied to this node, a volume that every node sees would tie its VM to it too.
    let root = fleet.reports.get(node).and_then(|report| report.root_of(path));
    let shared = root.is_some_and(|root| root.shared)
        || overrides.0.get(&claim.class) == Some(&ClassOverride::Network);
    let manifest = VolumeManifest {
        name: name.as_str(),
        class: &claim.class,
        capacity_bytes: claim.requested_bytes,
        access_modes: &claim.access_modes,
        mode: claim.mode,
        claim: key,
        claim_uid: Some(claim.uid.as_str()),
        path,
        host: (!shared).then(|| hostname(fleet, node)),
    };
    format!(
        "  The volume's object, made again under its old name: the claim is Bound to it at once. See first that the folder \
         holds this disk.\n\n```sh\nkubectl create -f - <<'EOF'\n{}EOF\n{}```",
        manifest.write(),
        wait(key)
    )
}

fn retain(name: &VolumeName) -> String {
    format!(
        "kubectl patch pv {} -p '{{\"spec\":{{\"persistentVolumeReclaimPolicy\":\"Retain\"}}}}'\n",
        shell_word(name.as_str())
    )
}

fn wait(key: &Key) -> String {
    format!(
        "kubectl wait -n {} pvc/{} --for=jsonpath='{{.status.phase}}'=Bound --timeout=60s\n",
        shell_word(&key.namespace),
        shell_word(&key.name)
    )
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::decision::testkit::{World, bound_volume, data_root, host_path, key, on_host};
    use crate::fleet::{ClaimRef, DiskImage, NodeReport, RunStrategy, Snapshot, StorageRoot, Usage};
    use crate::names::Uid;

    /// VM `web` runs on n1 with a disk there; of its folder the agent told this.
    fn told(folders: &[(&str, DiskImage)]) -> World {
        let mut world = World::new();
        world.question.dead.clear();
        world.add_disk("web", "x", host_path(), on_host(&["n1"]));
        let usage = |image| Usage { disk_image: image, allocated_bytes: 4096, ..Usage::default() };
        let root = StorageRoot { disk: None, ..data_root(Some(Duration::ZERO)) };
        let usage = folders.iter().map(|(path, image)| ((*path).to_owned(), usage(*image))).collect();
        let report = NodeReport { roots: vec![root], usage, ..NodeReport::default() };
        world.fleet.reports.insert(NodeName::from("n1"), report);
        world
    }

    fn lost() -> World {
        let mut world = told(&[("/data/vol", DiskImage::Present)]);
        world.claim("web-x").phase = "Lost".to_owned();
        world
    }

    fn written(world: &World) -> String {
        storage_runbook(&world.fleet, &world.overrides, &world.decide("web"))
    }

    fn assert_in_order(text: &str, parts: &[&str]) {
        let mut rest = text;
        for part in parts {
            let at =
                rest.find(part).unwrap_or_else(|| panic!("{part:?} is missing, or too early, in:\n{text}"));
            rest = &rest[at..];
        }
    }

    #[test]
    fn a_living_node_is_neither_brought_back_nor_attested() {
        for world in [lost(), told(&[]), told(&[("/data/vol", DiskImage::Absent)])] {
            let text = written(&world);
            assert_in_order(&text, &["Its storage is broken", "## First", "## Its disks", "### Disk `x`"]);
            assert!(!text.contains("Bring node") && !text.contains("attest"), "{text}");
            assert!(!text.contains("### Disk `data`"), "a sound disk needs nothing: {text}");
        }
    }

    #[test]
    fn a_deleted_image_is_copied_out_of_the_guest_that_has_it_open() {
        let text = written(&told(&[("/data/vol", DiskImage::Absent)]));
        let steps = [
            "(DiskImageMissing)",
            "It runs on `n1`. **Do not stop, restart or migrate it.**",
            "virtctl pause vm web -n shop",
            "pgrep -f guest=shop_web,",
            "cp --sparse=always /proc/PID/fd/FD /data/vol/rescued.img",
            "107:107",
            "No copy of it is known here",
            "only if that is what is wanted",
        ];
        assert_in_order(&text, &steps);
    }

    #[test]
    fn a_stopped_vm_is_kept_from_booting_a_blank_disk() {
        let mut world = told(&[("/data/vol", DiskImage::Vanished)]);
        world.vm("web").run = RunStrategy::Halted;
        world.vm("web").instance = None;
        world.vm("web").pods.clear();
        let text = written(&world);
        assert_in_order(&text, &["It runs on no node. Keep it stopped", "\"runStrategy\":\"Halted\""]);
        assert!(!text.contains("/proc/"), "no process has it open: {text}");
        world.vm("web").owner = Owner::Wukong { name: "wk".to_owned() };
        assert_in_order(&written(&world), &["It is stopped through its owner `wk`"]);
    }

    /// It was started on a volume whose folder is gone: it waits for its mount, and has nothing open.
    #[test]
    fn of_an_instance_that_has_never_run_nothing_is_to_be_copied_out() {
        let mut world = told(&[("/data/vol", DiskImage::Vanished)]);
        world.instance("web").has_run = false;
        let text = written(&world);
        assert_in_order(&text, &["has never run", "Keep it stopped"]);
        assert!(!text.contains("/proc/"), "{text}");
    }

    /// Its own volume, bound to nobody that is there: the claim's uid binds it again, and nothing is deleted.
    #[test]
    fn the_claims_own_volume_is_bound_again_by_its_uid() {
        let mut world = lost();
        world.volume("pv-web-x").claim = Some(ClaimRef { key: key("web-x"), uid: Some(Uid::from("older")) });
        let text = written(&world);
        let steps = [
            "From volume `pv-web-x`",
            "persistentVolumeReclaimPolicy\":\"Retain\"",
            "\"name\":\"web-x\",\"uid\":\"uid-pv-web-x\",\"resourceVersion\":null}}}'",
            "kubectl wait -n shop pvc/web-x",
        ];
        assert_in_order(&text, &steps);
        assert!(!text.contains("\"claimRef\":null") && !text.contains("delete pvc"), "{text}");
    }

    /// The order is what keeps the data: Retain, CDI's word, the volume promised, and only then the claim deleted.
    #[test]
    fn an_earlier_volume_is_promised_before_the_claim_is_made_anew() {
        let mut world = lost();
        world.claim("web-x").data_volume = Some("web-x".to_owned());
        world.fleet.volumes.remove(&VolumeName::from("pv-web-x"));
        let mut kept = bound_volume("web-x", host_path(), on_host(&["n2"]));
        kept.phase = "Released".to_owned();
        world.fleet.volumes.insert(VolumeName::from("pv-before"), kept);
        let text = written(&world);
        let steps = [
            "From volume `pv-before` (phase Released, node `n2`",
            "kubectl patch pv pv-before -p '{\"spec\":{\"persistentVolumeReclaimPolicy\":\"Retain\"}}'",
            "storage.populatedFor=web-x",
            "storage\\.prePopulated",
            "kubectl patch pv pv-before --type merge",
            "\"uid\":null",
            "kubectl delete pvc -n shop web-x",
            "kind: PersistentVolumeClaim\n",
            "volumeName: \"pv-before\"",
        ];
        assert_in_order(&text, &steps);
        assert!(!text.contains("\"claimRef\":null"), "{text}");
    }

    #[test]
    fn a_folder_without_its_volume_gets_the_volume_back() {
        let mut world = lost();
        world.fleet.volumes.remove(&VolumeName::from("pv-web-x"));
        world.claim("web-x").volume = Some(VolumeName::from("pvc-1"));
        let report = world.fleet.reports.get_mut(&NodeName::from("n1")).expect("told");
        report.usage.insert("/data/pvc-1_shop_web-x".to_owned(), Usage::default());
        let steps = [
            "From folder `/data/pvc-1_shop_web-x` on node `n1`",
            "kind: PersistentVolume\n",
            "name: \"pvc-1\"",
            "persistentVolumeReclaimPolicy: Retain",
            "uid: \"uid-pv-web-x\"",
            "path: \"/data/pvc-1_shop_web-x\"",
            "values: [\"n1\"]",
        ];
        assert_in_order(&written(&world), &steps);
    }

    /// Tied to one node, the volume would tie a VM on network storage to that node for good.
    #[test]
    fn a_folder_that_every_node_sees_is_tied_to_none() {
        for by_policy in [false, true] {
            let mut world = lost();
            world.fleet.volumes.remove(&VolumeName::from("pv-web-x"));
            world.claim("web-x").volume = Some(VolumeName::from("pvc-1"));
            let report = world.fleet.reports.get_mut(&NodeName::from("n1")).expect("told");
            report.usage.insert("/data/pvc-1_shop_web-x".to_owned(), Usage::default());
            report.roots[0].shared = !by_policy;
            if by_policy {
                world.overrides.0.insert("gold".to_owned(), ClassOverride::Network);
            }
            let text = written(&world);
            let place = "  hostPath:\n    path: \"/data/pvc-1_shop_web-x\"\n    type: Directory\n";
            assert_in_order(&text, &["kind: PersistentVolume\n", place]);
            assert!(!text.contains("nodeAffinity"), "{text}");
        }
    }

    #[test]
    fn a_snapshot_is_the_first_way_and_becomes_a_claim_beside_the_old_one() {
        let mut world = lost();
        let snapshot = |ready| Snapshot {
            claim: Some("web-x".to_owned()),
            ready,
            taken: Some("2026-01-06T03:00:00Z".to_owned()),
        };
        world.fleet.snapshots.insert(key("nightly"), snapshot(true));
        let steps = [
            "### Disk `x`",
            "From snapshot `nightly` (taken 2026-01-06T03:00:00Z)",
            "name: \"web-x-from-nightly\"",
            "kind: VolumeSnapshot\n    name: \"nightly\"",
        ];
        assert_in_order(&written(&world), &steps);
        world.fleet.snapshots.insert(key("nightly"), snapshot(false));
        let text = written(&world);
        assert_in_order(&text, &["not ready to use"]);
        assert!(!text.contains("web-x-from-nightly"), "{text}");
    }

    /// Manifests are hostile: neither a name nor a path adds a word to a command.
    #[test]
    fn hostile_names_stay_words() {
        let mut world = told(&[("/data/a'; reboot #", DiskImage::Vanished)]);
        world.volume("pv-web-x").source =
            crate::fleet::VolumeSource::Local { path: "/data/a'; reboot #".to_owned() };
        let text = written(&world);
        assert_in_order(&text, &[r"mkdir -p '/data/a'\''; reboot #'"]);
        let mut world = lost();
        world.claim("web-x").uid = Uid::from("u\"}'; reboot #\n");
        world.volume("pv-web-x").claim = Some(ClaimRef { key: key("web-x"), uid: None });
        let text = written(&world);
        assert_in_order(&text, &[r#""uid":"u\"}'\''; reboot #""#]);
    }
}
