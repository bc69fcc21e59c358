//! The VMs of a scenario, made anew for each: nothing of an earlier one can be mistaken for this one's.
//!
//! ```text
//!   name   disk                                              what becomes of it when its node dies
//!   web    class nfs-standin, which the policy calls Network Recreate
//!   db     class local-path                                  ManualRecovery
//!   odd    class hostpath-standin, without affinity          ManualRecovery (Unknown is never network)
//!   image  system disk of class local-path, from an image    Rebuild, as its owner has agreed to that
//!          and a disk of class nfs-standin
//! ```
//!
//! A VM prefers the node that it is staged on and may run on any: a pin would forbid to recreate it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use somersault_test_cluster::until;
use somersault_test_kubevirt::judge::{self, Disk};
use somersault_test_kubevirt::{HOSTPATH_CLASS, NETWORK_CLASS, builders};

use crate::api::Kind;
use crate::bed::{Bed, VMS};

/// Provisioning, scheduling, starting: about 5 s on an idle machine.
const RUN_DEADLINE: Duration = Duration::from_mins(2);
/// Removing VMs takes their grace period at most.
const GONE_DEADLINE: Duration = Duration::from_mins(2);
/// Records before a scenario begins: a disk that was never written proves nothing.
const RECORDS_MIN: usize = 5;
/// The disk by which a VM is judged; its claim is `<vm>-disk`.
const DISK: &str = "disk";
/// Of a VM that has a system disk besides; claim and `DataVolume` are `<vm>-system`.
pub const SYSTEM_DISK: &str = "system";
const LOCAL_CLASS: &str = "local-path";
/// Class of block devices that somebody has made beforehand.
pub const DEVICE_CLASS: &str = "devices";
/// Nobody looks: the stand-in's importer makes the image itself.
const IMAGE_URL: &str = "http://images.invalid/system.img";

/// Where a VM's disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A folder that every node sees, of a class that the policy calls Network.
    Network,
    /// local-path.
    Local,
    /// A `hostPath` volume without affinity, of a class that nobody has said anything about.
    Unknown,
    /// A folder that every node sees; besides, the system disk is on local-path and imported from an image, and the
    /// owner agrees that it is imported anew.
    NetworkAndImage,
    /// local-path, imported from an image by CDI.
    LocalFromImage,
    /// A block device of its node, of [`DEVICE_CLASS`].
    Device,
}

/// A VM to stage.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Its name.
    pub name: &'static str,
    /// Where its disk is.
    pub storage: Storage,
    /// `spec.runStrategy`.
    pub strategy: &'static str,
}

impl Vm {
    /// A VM that is to run always.
    pub const fn always(name: &'static str, storage: Storage) -> Self {
        Self { name, storage, strategy: "Always" }
    }
}

/// Twenty of them fit on a node of two cores.
const CPU_REQUEST: &str = "25m";

/// VM on network storage.
pub const WEB: Vm = Vm::always("web", Storage::Network);
/// VM on a local disk.
pub const DB: Vm = Vm::always("db", Storage::Local);
/// VM on a disk of which nobody can tell where it is.
pub const ODD: Vm = Vm::always("odd", Storage::Unknown);
/// VM whose system disk can be imported anew.
pub const IMAGE: Vm = Vm::always("image", Storage::NetworkAndImage);

/// A staged VM.
struct Staged {
    vm: Vm,
    /// `disk.img`: on a node, or on this machine where every node sees it.
    place: Place,
    /// What the disk said when the scenario began.
    before: Disk,
}

#[derive(Clone)]
enum Place {
    Here(PathBuf),
    On { node: String, path: String },
}

/// Staged VMs.
pub struct Stage<'a> {
    bed: &'a Bed,
    vms: Vec<Staged>,
}

impl<'a> Stage<'a> {
    /// Removes the VMs of earlier scenarios, and starts these on a node.
    pub fn set(bed: &'a Bed, node: &str, vms: &[Vm]) -> Result<Self> {
        clear(bed)?;
        Self::create_on(bed, node, vms)
    }

    /// The same without removing anything before.
    pub fn create_on(bed: &'a Bed, node: &str, vms: &[Vm]) -> Result<Self> {
        only_on(bed, node, || Self::create(bed, node, vms))
    }

    fn create(bed: &'a Bed, node: &str, vms: &[Vm]) -> Result<Self> {
        for vm in vms {
            create(bed, vm, node).with_context(|| format!("creating VM {}", vm.name))?;
        }
        let mut stage = Self { bed, vms: Vec::new() };
        for vm in vms {
            let log = [bed.standin_log()];
            let staged = until(&format!("VM {} runs on {node}", vm.name), RUN_DEADLINE, &log, || {
                let on = stage.node_of(vm.name)?;
                ensure!(on.as_deref() == Some(node), "it is on {on:?}");
                let place = place_of(bed, vm, node)?;
                let before = judge::read(&place.path(bed)?)?;
                let written = before.records.len() >= RECORDS_MIN;
                Ok(written.then(|| Staged { vm: vm.clone(), place, before }))
            })?;
            stage.vms.push(staged);
        }
        Ok(stage)
    }

    /// The staged VMs.
    pub fn staged(&self) -> impl Iterator<Item = &Vm> {
        self.vms.iter().map(|staged| &staged.vm)
    }

    fn find(&self, vm: &Vm) -> Result<&Staged> {
        let found = self.vms.iter().find(|staged| staged.vm.name == vm.name);
        found.with_context(|| format!("VM {} is not staged", vm.name))
    }

    /// The node on which a VM's instance is Running.
    pub fn node_of(&self, vm: &str) -> Result<Option<String>> {
        let Some(instance) = self.bed.api().find(Kind::VMI, VMS, vm)? else { return Ok(None) };
        let running = instance["status"]["phase"] == "Running";
        Ok(instance["status"]["nodeName"].as_str().filter(|_| running).map(str::to_owned))
    }

    /// The launcher pod of a VM on a node: name and uid.
    pub fn launcher_on(&self, vm: &str, node: &str) -> Result<Option<String>> {
        let pods = self.bed.api().list(Kind::POD, VMS, "kubevirt.io=virt-launcher")?;
        let pod = pods.iter().find(|pod| {
            pod["spec"]["nodeName"] == *node && pod["metadata"]["annotations"]["kubevirt.io/domain"] == *vm
        });
        Ok(pod.and_then(|pod| pod["metadata"]["uid"].as_str()).map(str::to_owned))
    }

    /// The `disk.img` of a VM, as this process can reach it while its node has power.
    pub fn image(&self, vm: &Vm) -> Result<PathBuf> {
        self.find(vm)?.place.path(self.bed)
    }

    /// What a VM's disk says now. A local disk can be read only while its node has power.
    pub fn disk(&self, vm: &Vm) -> Result<Disk> {
        judge::read(&self.find(vm)?.place.path(self.bed)?)
    }

    /// A VM's disk is on another node from now on.
    pub fn moved(&mut self, vm: &Vm, node: &str) -> Result<()> {
        let place = place_of(self.bed, vm, node)?;
        let staged = self.vms.iter_mut().find(|staged| staged.vm.name == vm.name);
        staged.with_context(|| format!("VM {} is not staged", vm.name))?.place = place;
        Ok(())
    }

    /// Waits until somebody else than before writes on a VM's disk; returns the later reading.
    pub fn wait_new_writer(&self, vm: &Vm, deadline: Duration) -> Result<Disk> {
        let known = self.find(vm)?.before.runs.len();
        let log = self.bed.standin_log();
        until(&format!("another instance of {} writes", vm.name), deadline, &[log], || {
            let disk = self.disk(vm)?;
            Ok((disk.runs.len() > known).then_some(disk))
        })
    }

    /// Waits until a VM writes, whoever it is.
    pub fn wait_writes(&self, vm: &Vm, deadline: Duration) -> Result<()> {
        let known = self.disk(vm)?.records.len();
        until(&format!("{} goes on writing", vm.name), deadline, &[self.bed.standin_log()], || {
            Ok((self.disk(vm)?.records.len() > known).then_some(()))
        })
    }

    /// Judges every disk: as a continuation of its state when the scenario began, no VM was active twice, no
    /// write was lost, none booted blank.
    pub fn judge(&self) -> Result<()> {
        for Staged { vm, before, .. } in &self.vms {
            let faults = self.disk(vm)?.continues(before);
            let list: Vec<_> = faults.iter().map(ToString::to_string).collect();
            ensure!(faults.is_empty(), "the disk of {}: {}", vm.name, list.join("; "));
        }
        Ok(())
    }

    /// Every VM writes, is where it was and has never been elsewhere.
    pub fn undisturbed(&self, deadline: Duration) -> Result<()> {
        for vm in self.staged() {
            self.wait_writes(vm, deadline)?;
            let instances = self.instances(vm)?;
            ensure!(instances == 1, "{instances} instances have written on the disk of {}", vm.name);
        }
        self.judge()
    }

    /// How many instances have written on a VM's disk.
    pub fn instances(&self, vm: &Vm) -> Result<usize> {
        Ok(self.disk(vm)?.instances().len())
    }
}

impl Place {
    /// As this process can open it. A node's disks can be read only while it has power.
    fn path(&self, bed: &Bed) -> Result<PathBuf> {
        match self {
            Self::Here(path) => Ok(path.clone()),
            Self::On { node, path } => bed.cluster().path_on(node, path),
        }
    }
}

/// Does something while no other node takes pods: an importer prefers no node, and its volume is where it ran; and what a
/// VM prefers counts for little where its node has many.
pub fn only_on<T>(bed: &Bed, node: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let others: Vec<String> = bed.nodes().into_iter().filter(|other| other != node).collect();
    let set = |what| others.iter().try_for_each(|other| bed.cluster().ask(&[what, other]).map(drop));
    set("cordon")?;
    let done = act();
    set("uncordon")?;
    done
}

/// What the disk of a claim on a node says now.
pub fn claim_disk(bed: &Bed, claim: &str, node: &str) -> Result<Disk> {
    judge::read(&place_of_claim(bed, claim, node)?.path(bed)?)
}

/// Where the `disk.img` of a volume is on its node; of a block device the device.
pub fn image_of(bed: &Bed, volume: &str) -> Result<String> {
    let volume = bed.api().get(Kind::VOLUME, "", volume)?;
    let path = ["hostPath", "local"].iter().find_map(|kind| volume["spec"][kind]["path"].as_str());
    let path = path.context("a volume without a path")?;
    let is_device = volume["spec"]["volumeMode"] == "Block";
    Ok(if is_device { path.to_owned() } else { format!("{path}/disk.img") })
}

fn place_of(bed: &Bed, vm: &Vm, node: &str) -> Result<Place> {
    place_of_claim(bed, &format!("{}-{DISK}", vm.name), node)
}

fn place_of_claim(bed: &Bed, claim: &str, node: &str) -> Result<Place> {
    let api = bed.api();
    let claim = api.get(Kind::CLAIM, VMS, claim)?;
    let volume = claim["spec"]["volumeName"].as_str().context("the claim is not bound")?;
    let path = image_of(bed, volume)?;
    Ok(match path.strip_prefix("/mnt/network/") {
        Some(shared) => Place::Here(bed.cluster().layout().network_folder().join(shared)),
        None => Place::On { node: node.to_owned(), path },
    })
}

/// Removes every VM of earlier scenarios, with its disks.
pub fn clear(bed: &Bed) -> Result<()> {
    let api = bed.api();
    delete_all(bed, Kind::MIGRATION, VMS)?;
    let kinds = [Kind::WUKONG, Kind::LIVE_MIGRATION, Kind::VM, Kind::VMI, Kind::DATA_VOLUME, Kind::CLAIM];
    until("the VMs of earlier scenarios are gone", GONE_DEADLINE, &[bed.standin_log()], || {
        let mut left = Vec::new();
        for kind in kinds {
            left.extend(delete_all(bed, kind, VMS)?);
        }
        ensure!(left.is_empty(), "left: {}", left.join(", "));
        Ok(Some(()))
    })?;
    for volume in api.list(Kind::VOLUME, "", "")? {
        let name = volume["metadata"]["name"].as_str().unwrap_or_default();
        // The provisioner's own go with their claims, but for those that a migration or a rebuild has put on Retain: they
        // are kept, like those of migrations, until somebody removes them.
        let kept = volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain";
        if volume["spec"]["storageClassName"] != LOCAL_CLASS || kept {
            api.delete(Kind::VOLUME, "", name)?;
        }
    }
    delete_all(bed, Kind::RECOVERY, VMS)?;
    empty(&bed.cluster().layout().network_folder())
}

/// Deletes every migration, and waits until each is let go.
pub fn without_migrations(bed: &Bed) -> Result<()> {
    until("the migrations are gone", GONE_DEADLINE, &[], || {
        let left = delete_all(bed, Kind::MIGRATION, VMS)?;
        ensure!(left.is_empty(), "left: {}", left.join(", "));
        Ok(Some(()))
    })
}

/// Returns the names of what was there.
fn delete_all(bed: &Bed, kind: Kind, namespace: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for object in bed.api().list(kind, namespace, "")? {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if object["metadata"]["deletionTimestamp"].is_null() {
            bed.api().delete(kind, namespace, &name)?;
        }
        names.push(name);
    }
    Ok(names)
}

fn empty(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            std::fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

fn create(bed: &Bed, vm: &Vm, node: &str) -> Result<()> {
    let class = match vm.storage {
        Storage::Network | Storage::NetworkAndImage => NETWORK_CLASS,
        Storage::Local | Storage::LocalFromImage => LOCAL_CLASS,
        Storage::Unknown => HOSTPATH_CLASS,
        Storage::Device => DEVICE_CLASS,
    };
    let mut made = builders::Vm::new(vm.name)
        .namespace(VMS)
        .run_strategy(vm.strategy)
        .preferring_node(node)
        .cpu_request(CPU_REQUEST);
    if vm.storage == Storage::NetworkAndImage {
        let allowed = made.annotation("somersault.novasphere.dev/rebuild", "true");
        made = allowed.data_volume_template(SYSTEM_DISK, LOCAL_CLASS, IMAGE_URL);
    }
    made = match vm.storage {
        Storage::LocalFromImage => made.data_volume_template(DISK, class, IMAGE_URL),
        Storage::Device => made.device(DISK, class),
        _ => made.claim(DISK, class),
    };
    for object in made.objects() {
        let kind = if object["kind"] == "VirtualMachine" { Kind::VM } else { Kind::CLAIM };
        bed.api().create(kind, VMS, object)?;
    }
    if vm.strategy == "Manual" {
        // What `virtctl start` asks for.
        let start = json!({"status": {"stateChangeRequests": [{"action": "Start"}]}});
        bed.api().merge_status(Kind::VM, VMS, vm.name, &start)?;
    }
    Ok(())
}
