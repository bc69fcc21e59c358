//! Disks that move to volumes which somebody else makes: a class's provisioner, or who made local volumes beforehand; and back
//! from where only kubelets mount them. A claim and a pod of ours hold each while it is written or read, and leave nothing
//! behind.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use somersault_test_cluster::until;
use somersault_test_e2e::api::Kind;
use somersault_test_e2e::bed::{Bed, VMS};
use somersault_test_e2e::stage::{self, DB, DEVICE_CLASS, Stage, Storage, Vm};

use super::migration::{of_vm, succeeded};

const MAIL: Vm = Vm::always("mail", Storage::Local);
/// VM on a block device.
const RAW: Vm = Vm::always("raw", Storage::Device);
/// As large as every disk.
const DEVICE_BYTES: u64 = 16 << 20;
/// A class of local volumes in folders that no agent knows: they are reached where kubelets mount them.
const MOUNTED: &str = "mounted-only";
/// Where those are on the nodes.
const FOLDER: &str = "/var/lib/mounted-only";
/// A second class of the provisioner whose folders agents know.
const AGAIN: &str = "local-path-again";
const WRITE_DEADLINE: Duration = Duration::from_mins(1);
/// What a copy keeps in a volume while it runs.
const PARTIAL: &str = ".somersault-";
/// Label of claims, pods and aliases that are there for a copy only.
const STAGING: &str = "somersault.novasphere.dev/staging";

pub fn by_provisioners(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let mut stage = Stage::set(bed, &node, &[DB, MAIL])?;
    classes(bed, &node)?;
    for (vm, class) in [(DB, MOUNTED), (MAIL, AGAIN)] {
        let claim = format!("{}-disk", vm.name);
        let old = bound_volume(bed, &claim)?;
        bed.plugin(&["migrate", vm.name, "-n", VMS, "--to-class", class])?;
        let migration = succeeded(bed, vm.name)?;
        let disk = &migration["status"]["disks"][0];
        let target = disk["targetNode"].as_str().context("no target")?.to_owned();
        ensure!(target != node, "{} was copied onto its own node", vm.name);
        ensure!(disk["staging"].is_string(), "the volume was not made by its provisioner: {disk}");
        eprintln!("   {} is on {class}, down for {} ms", vm.name, migration["status"]["downtimeMs"]);

        let new = bound_volume(bed, &claim)?;
        ensure!(disk["newVolume"]["name"] == new.as_str(), "the claim has {new}, and not {disk}");
        let volume = bed.api().get(Kind::VOLUME, "", &new)?;
        ensure!(volume["spec"]["storageClassName"] == class, "{new} is of another class: {volume}");
        for name in [&old, &new] {
            let policy =
                bed.api().get(Kind::VOLUME, "", name)?["spec"]["persistentVolumeReclaimPolicy"].clone();
            ensure!(policy == "Retain", "volume {name} is on {policy}");
        }
        nothing_is_left(bed, &new, &target)?;
        ensure!(stage.node_of(vm.name)?.as_deref() == Some(&target), "{} does not run on {target}", vm.name);
        stage.moved(&vm, &target)?;
        stage.wait_writes(&vm, WRITE_DEADLINE)?;
    }
    stage.judge()
}

/// From a volume that only kubelets mount to a local one of another node: copied while the VM runs from where its own pod has
/// it mounted, and at last by an alias.
pub fn back_from_where_kubelets_mount(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let mut stage = Stage::set(bed, &node, &[DB])?;
    classes(bed, &node)?;
    let claim = format!("{}-disk", DB.name);
    bed.plugin(&["migrate", DB.name, "-n", VMS, "--to-class", MOUNTED])?;
    let there = succeeded(bed, DB.name)?["status"]["disks"][0]["targetNode"].clone();
    let there = there.as_str().context("no target")?;
    stage.moved(&DB, there)?;
    stage.wait_writes(&DB, WRITE_DEADLINE)?;
    bed.cluster().ask(&["delete", "volumemigrations", "-n", VMS, "--all"])?;

    let old = bound_volume(bed, &claim)?;
    let before = bed.api().get(Kind::VOLUME, "", &old)?;
    bed.plugin(&["migrate", DB.name, "-n", VMS, "--to-class", "local-path", "--pre-copy-only"])?;
    let migration = copied_ahead(bed, DB.name)?;
    let alias =
        migration["status"]["disks"][0]["reading"].as_str().context("it is read from a root")?.to_owned();
    nothing_of_ours(bed)?;
    ensure!(stage.node_of(DB.name)?.as_deref() == Some(there), "it was moved without a word");
    let name = migration["metadata"]["name"].as_str().context("a migration without a name")?;
    bed.api().merge(Kind::MIGRATION, VMS, name, &json!({"spec": {"preCopyOnly": false}}))?;
    let migration = succeeded(bed, DB.name)?;
    let disk = &migration["status"]["disks"][0];
    let target = disk["targetNode"].as_str().context("no target")?;
    ensure!(target != there && disk["sourceNode"] == there, "{disk}");
    let (sent, all) = (disk["copied"]["sentBytes"].as_u64(), disk["copied"]["totalBytes"].as_u64());
    ensure!(sent.is_some() && sent < all, "the last copy sent all of it again: {disk}");
    let downtime = &migration["status"]["downtimeMs"];
    ensure!(downtime.is_u64(), "it was stopped, and for how long is not told: {migration}");
    eprintln!("   {} is on local-path, down for {downtime} ms, {sent:?} of {all:?} bytes sent then", DB.name);

    // The old volume is as any migration leaves it, its object untouched but for what Kubernetes notes there.
    let after = bed.api().get(Kind::VOLUME, "", &old)?;
    ensure!(after["metadata"]["uid"] == before["metadata"]["uid"], "the old volume is another one");
    ensure!(after["status"]["phase"] == "Released", "the old volume is {}", after["status"]["phase"]);
    ensure!(after["spec"]["persistentVolumeReclaimPolicy"] == "Retain", "{after}");
    ensure!(after["spec"]["local"] == before["spec"]["local"], "{after}");
    nothing_of_ours(bed)?;
    ensure!(bed.api().find(Kind::VOLUME, "", &alias)?.is_none(), "alias {alias} is still there");
    let new = bound_volume(bed, &claim)?;
    let volume = bed.api().get(Kind::VOLUME, "", &new)?;
    ensure!(volume["spec"]["storageClassName"] == "local-path", "{volume}");
    ensure!(stage.node_of(DB.name)?.as_deref() == Some(target), "it does not run on {target}");
    stage.moved(&DB, target)?;
    stage.wait_writes(&DB, WRITE_DEADLINE)?;

    // Not before the new disk was listed.
    until("somebody says who removes the old volume", WRITE_DEADLINE * 2, &[], || {
        let kept = bed.plugin(&["cleanup", name, "-n", VMS, "--older-than", "0s", "--dry-run"])?;
        ensure!(kept.contains(&format!("kubectl delete pv {old}")), "{kept}");
        Ok(Some(()))
    })?;
    stage.judge()
}

/// A block device of each node, until this is dropped.
struct Devices(Vec<(tempfile::TempDir, String)>);

impl Devices {
    fn make(bed: &Bed) -> Result<Self> {
        let mut made = Self(Vec::new());
        let mut objects = vec![json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": DEVICE_CLASS},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
        })];
        for node in bed.nodes() {
            let dir = tempfile::tempdir()?;
            let backing = dir.path().join("backing");
            fs::File::create(&backing)?.set_len(DEVICE_BYTES)?;
            let output = Command::new("losetup").args(["--show", "-f"]).arg(&backing).output()?;
            ensure!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
            let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let pin = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
            objects.push(json!({
                "apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": {"name": format!("{DEVICE_CLASS}-{node}")},
                "spec": {
                    "capacity": {"storage": DEVICE_BYTES.to_string()},
                    "accessModes": ["ReadWriteOnce"],
                    "storageClassName": DEVICE_CLASS,
                    "persistentVolumeReclaimPolicy": "Retain",
                    "volumeMode": "Block",
                    "local": {"path": device},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [pin]}]}},
                },
            }));
            made.0.push((dir, device));
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        bed.cluster().apply(&list.to_string())?;
        Ok(made)
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for (_, device) in &self.0 {
            // It goes when the last pod has let go of it.
            let _ = Command::new("losetup").args(["-d", device]).output();
        }
    }
}

/// A block device: a holder hands over the old one when the VM has stopped, and another the new one.
pub fn of_a_device(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    stage::clear(bed)?;
    let _devices = Devices::make(bed)?;
    let mut stage = Stage::create_on(bed, &node, &[RAW])?;
    let claim = format!("{}-disk", RAW.name);
    let old = bound_volume(bed, &claim)?;
    let target = bed.nodes().into_iter().find(|other| *other != node).context("one node")?;
    bed.plugin(&["migrate", RAW.name, "-n", VMS, "--to-node", &target])?;
    let migration = succeeded(bed, RAW.name)?;
    let disk = &migration["status"]["disks"][0];
    ensure!(disk["staging"].is_string() && disk["reading"].is_string(), "nobody held it: {disk}");
    ensure!(disk["copied"]["totalBytes"] == DEVICE_BYTES, "{disk}");
    eprintln!("   {} has moved: {} of {DEVICE_BYTES} bytes sent", RAW.name, disk["copied"]["sentBytes"]);
    let new = bound_volume(bed, &claim)?;
    ensure!(new == format!("{DEVICE_CLASS}-{target}"), "the claim has {new}");
    for name in [&old, &new] {
        let volume = bed.api().get(Kind::VOLUME, "", name)?;
        ensure!(volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain", "{volume}");
    }
    nothing_of_ours(bed)?;
    ensure!(stage.node_of(RAW.name)?.as_deref() == Some(&target), "it does not run on {target}");
    stage.moved(&RAW, &target)?;
    stage.wait_writes(&RAW, WRITE_DEADLINE)?;
    stage.judge()?;
    stage::clear(bed)
}

/// Cancelled when its new volume was made and filled: the VM was never stopped, and the volume is gone with all that had it
/// made.
pub fn cancelled(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let stage = Stage::set(bed, &node, &[DB])?;
    classes(bed, &node)?;
    let claim = format!("{}-disk", DB.name);
    let old = bound_volume(bed, &claim)?;
    bed.plugin(&["migrate", DB.name, "-n", VMS, "--to-class", AGAIN, "--pre-copy-only"])?;
    let migration = copied_ahead(bed, DB.name)?;
    let disk = &migration["status"]["disks"][0];
    let new = disk["newVolume"]["name"].as_str().context("no new volume")?;
    let target = disk["targetNode"].as_str().context("no target")?;
    let folder = bed.cluster().path_on(target, &stage::image_of(bed, new)?)?;
    let folder = folder.parent().context("an image without a folder")?.to_owned();
    ensure!(folder.exists(), "{} is not there, though it was copied to", folder.display());
    let name = migration["metadata"]["name"].as_str().context("a migration without a name")?;
    bed.plugin(&["cancel", &format!("migration/{name}"), "-n", VMS])?;
    until("the new volume is gone, and its folder", WRITE_DEADLINE * 2, &[], || {
        let ended = bed.api().get(Kind::MIGRATION, VMS, name)?["status"]["phase"] == "Cancelled";
        ensure!(ended, "it has not ended");
        let volume = bed.api().find(Kind::VOLUME, "", new)?;
        ensure!(volume.is_none() && !folder.exists(), "volume {volume:?}, folder {}", folder.display());
        Ok(Some(()))
    })?;
    nothing_of_ours(bed)?;
    ensure!(bound_volume(bed, &claim)? == old, "the claim has another volume");
    stage.undisturbed(WRITE_DEADLINE)
}

/// The pods that hold a volume for the agents are lost: one is deleted by force as soon as it runs, while the VM does, and all
/// processes of the next one are killed in the last copy.
pub fn holders_killed(bed: &Bed) -> Result<()> {
    let node = bed.node_without_leader()?;
    let mut stage = Stage::set(bed, &node, &[DB])?;
    classes(bed, &node)?;
    let claim = format!("{}-disk", DB.name);
    let old = bound_volume(bed, &claim)?;
    let mut lost = BTreeSet::new();
    bed.plugin(&["migrate", DB.name, "-n", VMS, "--to-class", MOUNTED, "--pre-copy-only"])?;
    evict(bed, &mut lost)?;
    let migration = copied_ahead(bed, DB.name)?;
    let name = migration["metadata"]["name"].as_str().context("a migration without a name")?;
    bed.api().merge(Kind::MIGRATION, VMS, name, &json!({"spec": {"preCopyOnly": false}}))?;
    kill(&holder(bed, &mut lost)?)?;
    let migration = succeeded(bed, DB.name)?;
    let disk = &migration["status"]["disks"][0];
    eprintln!("   {} holders were lost; {}", lost.len(), disk["copied"]);
    let target = disk["targetNode"].as_str().context("no target")?;
    let new = bound_volume(bed, &claim)?;
    ensure!(new != old && disk["newVolume"]["name"] == new.as_str(), "the claim has {new}: {disk}");
    nothing_is_left(bed, &new, target)?;
    stage.moved(&DB, target)?;
    stage.wait_writes(&DB, WRITE_DEADLINE)?;
    stage.judge()
}

/// Waits until all was copied once, and the VM is not stopped for the rest.
fn copied_ahead(bed: &Bed, vm: &str) -> Result<Value> {
    until("the copy waits for a word", WRITE_DEADLINE * 2, &[bed.standin_log()], || {
        let migration = of_vm(bed, vm)?;
        let status = &migration["status"];
        let total = status["progress"]["totalBytes"].as_u64().filter(|total| *total > 0);
        let copied = total.is_some_and(|total| status["progress"]["doneBytes"] == total);
        ensure!(status["phase"] == "PreCopying" && copied, "{}: {}", status["phase"], status["message"]);
        Ok(Some(migration))
    })
}

/// Waits for a holder that runs and was not lost before.
fn holder(bed: &Bed, lost: &mut BTreeSet<String>) -> Result<Value> {
    let found = until("a pod of ours holds a volume", WRITE_DEADLINE * 2, &[], || {
        let pods = bed.cluster().ask(&["get", "pods", "-A", "-l", STAGING, "-o", "json"])?;
        let pods: Value = serde_json::from_str(&pods)?;
        let all = pods["items"].as_array().context("no list")?;
        let is_new = |pod: &&Value| {
            let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
            pod["status"]["phase"] == "Running" && !lost.contains(uid)
        };
        Ok(all.iter().find(is_new).cloned())
    })?;
    lost.insert(found["metadata"]["uid"].as_str().context("a pod without uid")?.to_owned());
    Ok(found)
}

/// As a node's eviction ends it, and without a grace.
fn evict(bed: &Bed, lost: &mut BTreeSet<String>) -> Result<()> {
    let pod = holder(bed, lost)?;
    let name = |field: &str| pod["metadata"][field].as_str().context("a pod without a name");
    let (namespace, name) = (name("namespace")?, name("name")?);
    bed.cluster().ask(&["-n", namespace, "delete", "pod", name, "--grace-period=0", "--force"]).map(drop)
}

/// Kills what runs in a pod.
fn kill(pod: &Value) -> Result<()> {
    // As both drivers of cgroups write it.
    let uid = pod["metadata"]["uid"].as_str().context("a pod without uid")?;
    let names = [uid.to_owned(), uid.replace('-', "_")];
    let mut killed = 0;
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // One that has just ended has none.
        let group = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        let pid = process.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if names.iter().any(|name| group.contains(name.as_str())) {
            killed += usize::from(Command::new("kill").args(["-9", pid]).status()?.success());
        }
    }
    ensure!(killed > 0, "nothing runs in {}", pod["metadata"]["name"]);
    Ok(())
}

/// The volume of a claim.
pub fn bound_volume(bed: &Bed, claim: &str) -> Result<String> {
    let claim = bed.api().get(Kind::CLAIM, VMS, claim)?;
    Ok(claim["spec"]["volumeName"].as_str().context("it is not bound")?.to_owned())
}

/// No claim, no pod, no alias of ours.
fn nothing_of_ours(bed: &Bed) -> Result<()> {
    for kind in ["pods", "persistentvolumeclaims", "persistentvolumes"] {
        until("our claim, our pod and our alias are gone", WRITE_DEADLINE, &[], || {
            let left = bed.cluster().ask(&["get", kind, "-A", "-l", STAGING, "-o", "name"])?;
            ensure!(left.trim().is_empty(), "left over: {left}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}

/// Nor anything of the copy in the volume.
fn nothing_is_left(bed: &Bed, volume: &str, node: &str) -> Result<()> {
    nothing_of_ours(bed)?;
    let image = bed.cluster().path_on(node, &stage::image_of(bed, volume)?)?;
    let names = fs::read_dir(image.parent().context("an image without a folder")?)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<Result<Vec<_>>>()?;
    ensure!(names.iter().any(|name| name == "disk.img"), "no disk.img in {names:?}");
    ensure!(!names.iter().any(|name| name.starts_with(PARTIAL)), "something of the copy is left: {names:?}");
    Ok(())
}

/// Both classes, and on each node but the source a local volume that waits for its first consumer.
fn classes(bed: &Bed, source: &str) -> Result<()> {
    let provisioner =
        bed.cluster().ask(&["get", "storageclass", "local-path", "-o", "jsonpath={.provisioner}"])?;
    let mut objects = Vec::new();
    for (name, provisioner) in [(MOUNTED, "kubernetes.io/no-provisioner"), (AGAIN, provisioner.trim())] {
        objects.push(json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
            "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer",
        }));
    }
    for node in bed.nodes().into_iter().filter(|node| node != source) {
        let folder = bed.cluster().path_on(&node, FOLDER)?;
        // An earlier scenario's disk may be in it.
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let pin = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [node]});
        objects.push(json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("{MOUNTED}-{node}")},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": MOUNTED,
                "persistentVolumeReclaimPolicy": "Delete",
                "local": {"path": FOLDER},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [pin]}]}},
            },
        }));
    }
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    bed.cluster().apply(&list.to_string()).map(drop)
}
