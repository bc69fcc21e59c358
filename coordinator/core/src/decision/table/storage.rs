//! By storage that is broken, and what may bring the data back.

use DecisionKind::{ManualRecovery, NothingToDo};

use crate::decision::table::check;
use crate::decision::testkit::{World, bound_volume, host_path, key, on_host};
use crate::decision::{DecisionKind, Reason, RestoreSource, SourceKind};
use crate::fleet::{DiskHealth, Grade, NodeReport, RunStrategy, StorageRoot, Usage, VolumeSource};
use crate::names::{NodeName, Uid, VolumeName};

fn report_of_n1(grade: Grade, folders: &[&str]) -> NodeReport {
    NodeReport {
        roots: vec![StorageRoot {
            path: "/data".to_owned(),
            class: "gold".to_owned(),
            shared: false,
            size_bytes: 100,
            available_bytes: 50,
            read_only: false,
            disk: Some("sda".to_owned()),
        }],
        usage: folders.iter().map(|&path| (path.to_owned(), Usage::default())).collect(),
        disks: [(
            "sda".to_owned(),
            DiskHealth { grade, reasons: Vec::new(), model: String::new(), serial: String::new() },
        )]
        .into(),
        ..NodeReport::default()
    }
}

#[test]
fn by_broken_storage() {
    check(&[
        (
            "claim Lost",
            |w| w.claim("web-data").phase = "Lost".to_owned(),
            ManualRecovery,
            &[Reason::ClaimLost],
        ),
        ("claim missing", |w| w.fleet.claims.clear(), ManualRecovery, &[Reason::ClaimMissing]),
        ("volume gone", |w| w.fleet.volumes.clear(), ManualRecovery, &[Reason::VolumeMissing]),
        (
            "volume of another claim",
            |w| w.volume("pv-web-data").claim.as_mut().expect("bound").key = key("other"),
            ManualRecovery,
            &[Reason::VolumeBoundElsewhere],
        ),
        (
            "volume of an earlier claim",
            |w| w.volume("pv-web-data").claim.as_mut().expect("bound").uid = Some(Uid::from("older")),
            ManualRecovery,
            &[Reason::VolumeBoundElsewhere],
        ),
        (
            "claim unbound",
            |w| {
                w.claim("web-data").volume = None;
                w.claim("web-data").phase = "Pending".to_owned();
            },
            ManualRecovery,
            &[Reason::ClaimNotBound],
        ),
        (
            "claim names its volume, but is not bound yet",
            |w| w.claim("web-data").phase = "Pending".to_owned(),
            ManualRecovery,
            &[Reason::ClaimNotBound],
        ),
        (
            "the DataVolume's claim unbound",
            |w| {
                w.claim("web-data").volume = None;
                w.claim("web-data").data_volume = Some("web-data".to_owned());
            },
            ManualRecovery,
            &[Reason::DataVolumeImporting],
        ),
    ]);
}

#[test]
fn by_what_agents_tell() {
    check(&[
        (
            "disk of a node that is gone",
            |w| w.add_disk("web", "x", host_path(), on_host(&["n9"])),
            ManualRecovery,
            &[Reason::DiskNodeGone, Reason::LocalDisk],
        ),
        (
            "physical disk Failed",
            |w| {
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                w.fleet.reports.insert(NodeName::from("n1"), report_of_n1(Grade::Failed, &["/data/vol"]));
            },
            ManualRecovery,
            &[Reason::DiskFailed, Reason::LocalDisk],
        ),
        (
            "physical disk only Failing",
            |w| {
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                w.fleet.reports.insert(NodeName::from("n1"), report_of_n1(Grade::Failing, &["/data/vol"]));
            },
            ManualRecovery,
            &[Reason::LocalDisk],
        ),
        (
            "folder gone",
            |w| {
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                w.fleet.reports.insert(NodeName::from("n1"), report_of_n1(Grade::Ok, &["/data/other"]));
            },
            ManualRecovery,
            &[Reason::VolumePathMissing, Reason::LocalDisk],
        ),
        (
            "nothing measured yet",
            |w| {
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                w.fleet.reports.insert(NodeName::from("n1"), report_of_n1(Grade::Ok, &[]));
            },
            ManualRecovery,
            &[Reason::LocalDisk],
        ),
        (
            "a stopped VM's claim Lost, its node not in question",
            |w| {
                w.claim("web-data").phase = "Lost".to_owned();
                w.question.dead.clear();
                w.vm("web").run = RunStrategy::Halted;
                w.vm("web").instance = None;
                w.vm("web").pods.clear();
            },
            ManualRecovery,
            &[Reason::ClaimLost],
        ),
        (
            "nothing broken, no node in question",
            |w| w.question.dead.clear(),
            NothingToDo,
            &[Reason::StorageSound],
        ),
        (
            "claim Lost, but another node died",
            |w| {
                w.claim("web-data").phase = "Lost".to_owned();
                w.question.dead = [NodeName::from("n3")].into();
            },
            NothingToDo,
            &[Reason::RunsElsewhere],
        ),
    ]);
}

#[test]
fn names_what_may_bring_data_back() {
    let mut world = World::new();
    world.claim("web-data").phase = "Lost".to_owned();
    world.fleet.volumes.clear();
    let mut kept = bound_volume("web-data", host_path(), on_host(&["n2"]));
    kept.phase = "Released".to_owned();
    world.fleet.volumes.insert(VolumeName::from("pv-before"), kept);
    let taken = VolumeSource::HostPath { path: "/data/pvc-2_shop_web-data".to_owned() };
    world
        .fleet
        .volumes
        .insert(VolumeName::from("pv-of-another"), bound_volume("other", taken, on_host(&["n3"])));
    world.fleet.reports.insert(
        NodeName::from("n3"),
        NodeReport {
            usage: [
                ("/data/pvc-1_shop_web-data", 4096),
                ("/data/pvc-1_shop_other", 8192),
                ("/data/pvc-2_shop_web-data", 16384),
            ]
            .map(|(path, allocated_bytes)| (path.to_owned(), Usage { allocated_bytes, ..Usage::default() }))
            .into(),
            ..NodeReport::default()
        },
    );
    let sources: Vec<SourceKind> =
        world.decide("web").restore_from.into_iter().map(|source| source.source).collect();
    assert_eq!(
        sources,
        [
            SourceKind::Volume {
                name: VolumeName::from("pv-before"),
                phase: "Released".to_owned(),
                node: Some(NodeName::from("n2"))
            },
            SourceKind::Folder {
                node: NodeName::from("n3"),
                path: "/data/pvc-1_shop_web-data".to_owned(),
                allocated_bytes: 4096
            },
        ]
    );
}

/// A claim is Lost when its volume belongs to an earlier claim of its name: that volume has the data.
#[test]
fn the_volume_of_a_lost_claim_is_a_source() {
    let mut world = World::new();
    world.claim("web-data").phase = "Lost".to_owned();
    world.volume("pv-web-data").claim.as_mut().expect("bound").uid = Some(Uid::from("older"));
    let sources = world.decide("web").restore_from;
    assert!(
        matches!(&sources[..], [RestoreSource { source: SourceKind::Volume { name, .. }, .. }] if name.as_str() == "pv-web-data"),
        "{sources:#?}"
    );
}
