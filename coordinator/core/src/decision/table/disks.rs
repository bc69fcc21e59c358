//! By its disks, and who else uses them.

use DecisionKind::{ManualRecovery, Rebuild, Recreate};

use crate::decision::table::check;
use crate::decision::testkit::{World, host_path, key, on_host, running_vm};
use crate::decision::{DecisionKind, Reason};
use crate::fleet::{ClaimUse, DiskSource, Owner};
use crate::locality::ClassOverride;
use crate::names::Key;

/// A system disk on n1 that can be imported anew, second in the VM.
fn local_system_disk(world: &mut World) {
    world.add_local_system_disk("web");
}

/// The same, and its owner allows that.
fn rebuildable(world: &mut World) {
    local_system_disk(world);
    world.vm("web").rebuild_allowed = true;
}

#[test]
fn by_disks() {
    check(&[
        ("all on network", |_| {}, Recreate, &[Reason::AllDisksOnNetwork]),
        ("no disks", |w| w.vm("web").disks.clear(), Recreate, &[Reason::NoDataDisks]),
        (
            "only volumes made anew",
            |w| {
                let disks = &mut w.vm("web").disks;
                disks[0].source = DiskSource::Rebuildable { field: "containerDisk".to_owned() };
                let mut scratch = disks[0].clone();
                scratch.source = DiskSource::Empty;
                disks.push(scratch);
            },
            Recreate,
            &[Reason::NoDataDisks],
        ),
        (
            "a local disk",
            |w| w.add_disk("web", "x", host_path(), on_host(&["n1"])),
            ManualRecovery,
            &[Reason::LocalDisk],
        ),
        (
            "a local hotplugged disk",
            |w| {
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                w.set_use("web", 1, ClaimUse::Hotplugged);
            },
            ManualRecovery,
            &[Reason::LocalHotplug],
        ),
        (
            "a hotplugged disk on the network",
            |w| w.set_use("web", 0, ClaimUse::Hotplugged),
            Recreate,
            &[Reason::AllDisksOnNetwork],
        ),
        (
            "local TPM state",
            |w| {
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                w.set_use("web", 1, ClaimUse::State);
            },
            ManualRecovery,
            &[Reason::LocalState],
        ),
        (
            "a local ephemeral backing",
            |w| {
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                w.set_use("web", 1, ClaimUse::EphemeralBacking);
            },
            ManualRecovery,
            &[Reason::LocalBacking],
        ),
        (
            "a local memory dump is expendable",
            |w| {
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                w.set_use("web", 1, ClaimUse::MemoryDump);
            },
            Recreate,
            &[Reason::AllDisksOnNetwork],
        ),
    ]);
}

#[test]
fn by_disks_that_are_not_plain_claims() {
    check(&[
        (
            "a hostDisk",
            |w| w.vm("web").disks[0].source = DiskSource::HostDisk { path: "/data/disk.img".to_owned() },
            ManualRecovery,
            &[Reason::HostDisk],
        ),
        (
            "a volume of an unknown kind",
            |w| w.vm("web").disks[0].source = DiskSource::Unknown { field: "quantumDisk".to_owned() },
            ManualRecovery,
            &[Reason::LocalityUnknown],
        ),
        (
            "a hostPath without affinity",
            |w| w.volume("pv-web-data").source = host_path(),
            ManualRecovery,
            &[Reason::LocalityUnknown],
        ),
        (
            "the same, declared network storage",
            |w| {
                w.volume("pv-web-data").source = host_path();
                w.overrides.0.insert("gold".to_owned(), ClassOverride::Network);
            },
            Recreate,
            &[Reason::AllDisksOnNetwork],
        ),
        (
            "an import under way",
            |w| {
                let claim = w.claim("web-data");
                claim.data_volume = Some("web-data".to_owned());
                claim
                    .annotations
                    .insert("cdi.kubevirt.io/storage.pod.phase".to_owned(), "Running".to_owned());
            },
            ManualRecovery,
            &[Reason::DataVolumeImporting],
        ),
        (
            "an import that is done",
            |w| {
                let claim = w.claim("web-data");
                claim.data_volume = Some("web-data".to_owned());
                claim
                    .annotations
                    .insert("cdi.kubevirt.io/storage.pod.phase".to_owned(), "Succeeded".to_owned());
            },
            Recreate,
            &[Reason::AllDisksOnNetwork],
        ),
    ]);
}

#[test]
fn by_sharing() {
    check(&[
        (
            "two VMs on one claim",
            |w| {
                let mut other = running_vm("twin", "n2");
                other.disks = w.vm("web").disks.clone();
                w.fleet.vms.insert(key("twin"), other);
            },
            ManualRecovery,
            &[Reason::ClaimSharedWithVm],
        ),
        (
            "two ephemeral disks on one backing",
            |w| {
                w.set_use("web", 0, ClaimUse::EphemeralBacking);
                let mut other = running_vm("twin", "n2");
                other.disks = w.vm("web").disks.clone();
                w.fleet.vms.insert(key("twin"), other);
            },
            Recreate,
            &[Reason::AllDisksOnNetwork],
        ),
        (
            "a claim of the same name in another namespace",
            |w| {
                let mut other = running_vm("twin", "n2");
                other.disks = w.vm("web").disks.clone();
                w.fleet.vms.insert(Key::new("elsewhere", "twin"), other);
            },
            Recreate,
            &[Reason::AllDisksOnNetwork],
        ),
        (
            "a backup pod on the claim",
            |w| {
                w.fleet.claims_used_by_others.insert(key("web-data"), ["backup".to_owned()].into());
            },
            ManualRecovery,
            &[Reason::ClaimUsedByPod],
        ),
    ]);
}

#[test]
fn by_rebuild() {
    check(&[
        (
            "local system disk, allowed",
            |w| {
                local_system_disk(w);
                w.vm("web").rebuild_allowed = true;
            },
            Rebuild,
            &[Reason::SystemDiskRebuildable],
        ),
        (
            "local system disk, not allowed",
            local_system_disk,
            ManualRecovery,
            &[Reason::LocalDisk, Reason::RebuildNotAllowed],
        ),
        (
            "no DataVolume controls its claim",
            |w| {
                rebuildable(w);
                w.claim("web-system").data_volume = None;
            },
            ManualRecovery,
            &[Reason::LocalDisk, Reason::DataVolumeMissing],
        ),
        (
            "its DataVolume is gone",
            |w| {
                rebuildable(w);
                w.fleet.data_volumes.clear();
            },
            ManualRecovery,
            &[Reason::LocalDisk, Reason::DataVolumeMissing],
        ),
        (
            "its DataVolume is pre-populated",
            |w| {
                rebuildable(w);
                w.data_volume("web-system").pre_populated = true;
            },
            ManualRecovery,
            &[Reason::LocalDisk, Reason::DataVolumePrePopulated],
        ),
        (
            "uploaded, whatever its owner says of an image",
            |w| {
                rebuildable(w);
                w.data_volume("web-system").image = None;
            },
            ManualRecovery,
            &[Reason::LocalDisk, Reason::ImageNotImportable],
        ),
        (
            "uploaded, and not allowed: a rebuild is not even spoken of",
            |w| {
                local_system_disk(w);
                w.data_volume("web-system").image = None;
            },
            ManualRecovery,
            &[Reason::LocalDisk],
        ),
    ]);
}

#[test]
fn by_class_of_the_rebuilt_disk() {
    check(&[
        (
            "its class binds at once",
            |w| {
                rebuildable(w);
                w.class("local-path").waits_for_consumer = false;
            },
            ManualRecovery,
            &[Reason::LocalDisk, Reason::ClassNotPortable],
        ),
        (
            "its class has no provisioner",
            |w| {
                rebuildable(w);
                w.class("local-path").provisioner = "kubernetes.io/no-provisioner".to_owned();
            },
            ManualRecovery,
            &[Reason::LocalDisk, Reason::ClassNotPortable],
        ),
        (
            "its class is not there",
            |w| {
                rebuildable(w);
                w.fleet.classes.clear();
            },
            ManualRecovery,
            &[Reason::LocalDisk, Reason::ClassNotPortable],
        ),
        (
            "its class makes volumes on the dead node only",
            |w| {
                rebuildable(w);
                w.class("local-path").allowed_topologies = on_host(&["n1"]);
            },
            ManualRecovery,
            &[Reason::LocalDisk, Reason::NoFittingNode],
        ),
        (
            "its class makes volumes on a node that lives",
            |w| {
                rebuildable(w);
                w.class("local-path").allowed_topologies = on_host(&["n1", "n3"]);
            },
            Rebuild,
            &[Reason::SystemDiskRebuildable],
        ),
    ]);
}

#[test]
fn by_what_else_stops_a_rebuild() {
    check(&[
        (
            "it selects the dead node",
            |w| {
                rebuildable(w);
                w.vm("web").node_selector.insert("kubernetes.io/hostname".to_owned(), "n1".to_owned());
            },
            ManualRecovery,
            &[Reason::LocalDisk, Reason::NoFittingNode],
        ),
        (
            "local system disk without an image",
            |w| {
                local_system_disk(w);
                w.vm("web").rebuild_allowed = true;
                w.vm("web").disks[1].image = None;
            },
            ManualRecovery,
            &[Reason::LocalDisk],
        ),
        (
            "a local data disk besides, with an image of its own",
            |w| {
                local_system_disk(w);
                w.vm("web").rebuild_allowed = true;
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                w.vm("web").disks[2].image = Some("https://images.example/data.img".to_owned());
            },
            ManualRecovery,
            &[Reason::LocalDisk],
        ),
        (
            "an owner that we do not know",
            |w| {
                local_system_disk(w);
                w.vm("web").rebuild_allowed = true;
                w.vm("web").owner = Owner::Unknown { kind: "Pool".to_owned(), name: "p".to_owned() };
            },
            ManualRecovery,
            &[Reason::LocalDisk, Reason::OwnerUnknown],
        ),
        (
            "paused besides",
            |w| {
                local_system_disk(w);
                w.vm("web").rebuild_allowed = true;
                w.instance("web").paused = Some(String::new());
            },
            ManualRecovery,
            &[Reason::LocalDisk, Reason::InstancePaused],
        ),
        (
            "no node fits the data disk",
            |w| {
                local_system_disk(w);
                w.vm("web").rebuild_allowed = true;
                for name in ["n2", "n3"] {
                    w.node(name).ready = false;
                }
            },
            ManualRecovery,
            &[Reason::LocalDisk, Reason::NoFittingNode],
        ),
    ]);
}
