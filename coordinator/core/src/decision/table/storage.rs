//! By storage that is broken, and what may bring the data back.

use std::time::Duration;

use DecisionKind::{ManualRecovery, NothingToDo};

use crate::decision::table::check;
use crate::decision::testkit::{World, bound_volume, data_report, host_path, key, on_host};
use crate::decision::{DecisionKind, Reason, RestoreSource, SourceKind};
use crate::fleet::{
    ClaimUse, DataVolume, DiskImage, Grade, NodeReport, RunStrategy, Snapshot, Usage, Volume, VolumeMode,
    VolumeSource,
};
use crate::migration::{LOCK_FOLDER, LOCK_LABEL, LOCKED_BY};
use crate::names::{NodeName, Uid, VolumeName};

fn report_with_image(image: DiskImage) -> NodeReport {
    let mut report = report_of_n1(Grade::Ok, &["/data/vol"]);
    report.roots[0].listed_age = Some(Duration::ZERO);
    report.usage.values_mut().for_each(|usage| usage.disk_image = image);
    report
}

fn report_of_n1(grade: Grade, folders: &[&str]) -> NodeReport {
    data_report(None, grade, folders.iter().map(|&path| (path, Usage::default())))
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
            "claim names a volume of an earlier claim, and waits for it for ever",
            |w| {
                w.claim("web-data").phase = "Pending".to_owned();
                w.volume("pv-web-data").claim.as_mut().expect("bound").uid = Some(Uid::from("older"));
            },
            ManualRecovery,
            &[Reason::VolumeBoundElsewhere],
        ),
        (
            "claim names a volume that is gone, and waits for it for ever",
            |w| {
                w.claim("web-data").phase = "Pending".to_owned();
                w.fleet.volumes.clear();
            },
            ManualRecovery,
            &[Reason::VolumeMissing],
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
            "folder gone before the node died",
            |w| {
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                let mut report = report_of_n1(Grade::Ok, &["/data/other"]);
                report.gone = ["/data/vol".to_owned()].into();
                w.fleet.reports.insert(NodeName::from("n1"), report);
            },
            ManualRecovery,
            &[Reason::VolumePathMissing, Reason::LocalDisk],
        ),
        (
            "folder made since the dead node's last listing",
            |w| {
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                w.fleet.reports.insert(NodeName::from("n1"), report_of_n1(Grade::Ok, &["/data/other"]));
            },
            ManualRecovery,
            &[Reason::LocalDisk],
        ),
        (
            "image made since the dead node's last listing",
            |w| {
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                let mut report = report_of_n1(Grade::Ok, &["/data/vol"]);
                report.usage.get_mut("/data/vol").expect("there").disk_image = DiskImage::Absent;
                w.fleet.reports.insert(NodeName::from("n1"), report);
            },
            ManualRecovery,
            &[Reason::LocalDisk],
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

/// VM `web` with a disk in `/data/vol` of n1, of whose image the agent told this; asked about its storage alone.
fn image(w: &mut World, image: DiskImage) {
    w.add_disk("web", "x", host_path(), on_host(&["n1"]));
    w.fleet.reports.insert(NodeName::from("n1"), report_with_image(image));
    w.question.dead.clear();
}

fn stopped(w: &mut World) {
    w.vm("web").run = RunStrategy::Halted;
    w.vm("web").instance = None;
    w.vm("web").pods.clear();
}

#[test]
fn by_a_disk_image_that_is_not_there() {
    check(&[
        ("the VM runs with it", |w| image(w, DiskImage::Absent), ManualRecovery, &[Reason::DiskImageMissing]),
        (
            "it was there before, and its node dies",
            |w| {
                image(w, DiskImage::Vanished);
                w.question.dead.insert(NodeName::from("n1"));
            },
            ManualRecovery,
            &[Reason::DiskImageMissing, Reason::LocalDisk],
        ),
        ("it is there", |w| image(w, DiskImage::Present), NothingToDo, &[Reason::StorageSound]),
        ("an older agent", |w| image(w, DiskImage::Untold), NothingToDo, &[Reason::StorageSound]),
        (
            "a volume with which no VM was ever started",
            |w| {
                image(w, DiskImage::Absent);
                stopped(w);
            },
            NothingToDo,
            &[Reason::Stopped],
        ),
        (
            "a stopped VM whose image was there before",
            |w| {
                image(w, DiskImage::Vanished);
                stopped(w);
            },
            ManualRecovery,
            &[Reason::DiskImageMissing],
        ),
        (
            "a stopped VM whose DataVolume has succeeded",
            |w| {
                image(w, DiskImage::Absent);
                stopped(w);
                w.claim("web-x").data_volume = Some("web-x".to_owned());
                let filled = DataVolume { phase: "Succeeded".to_owned(), ..DataVolume::default() };
                w.fleet.data_volumes.insert(key("web-x"), filled);
            },
            ManualRecovery,
            &[Reason::DiskImageMissing],
        ),
        (
            "a stopped VM whose DataVolume still imports",
            |w| {
                image(w, DiskImage::Absent);
                stopped(w);
                w.claim("web-x").data_volume = Some("web-x".to_owned());
                let filling = DataVolume { phase: "ImportInProgress".to_owned(), ..DataVolume::default() };
                w.fleet.data_volumes.insert(key("web-x"), filling);
            },
            NothingToDo,
            &[Reason::Stopped],
        ),
        (
            "a disk that was added since the VM started",
            |w| {
                image(w, DiskImage::Absent);
                w.instance("web").claims.remove("web-x");
            },
            NothingToDo,
            &[Reason::StorageSound],
        ),
        (
            "a live migration moves it",
            |w| {
                image(w, DiskImage::Absent);
                w.instance("web").migrating = Some(None);
            },
            NothingToDo,
            &[Reason::StorageSound],
        ),
        (
            "a shared folder has no image",
            |w| {
                image(w, DiskImage::Absent);
                w.set_use("web", 1, ClaimUse::Folder);
            },
            NothingToDo,
            &[Reason::StorageSound],
        ),
    ]);
}

#[test]
fn what_agents_do_not_list_is_not_missing() {
    let listed = |w: &mut World, path: &str, mode: VolumeMode| {
        w.add_disk("web", "x", VolumeSource::Local { path: path.to_owned() }, on_host(&["n1"]));
        w.volume("pv-web-x").mode = mode;
        w.fleet.reports.insert(NodeName::from("n1"), report_with_image(DiskImage::Present));
        w.question.dead.clear();
        w.decide("web").reasons
    };
    let sound = [Reason::StorageSound];
    assert_eq!(listed(&mut World::new(), "/data/vol/", VolumeMode::Filesystem), sound, "a slash at its end");
    assert_eq!(listed(&mut World::new(), "/data/deep/vol", VolumeMode::Filesystem), sound);
    assert_eq!(listed(&mut World::new(), "/data/.hidden", VolumeMode::Filesystem), sound);
    assert_eq!(listed(&mut World::new(), "/data/device", VolumeMode::Block), sound, "no folder");
    let gone = [Reason::VolumePathMissing];
    assert_eq!(listed(&mut World::new(), "/data/gone", VolumeMode::Filesystem), gone);
    let mut emptied = World::new();
    emptied.add_disk("web", "x", host_path(), on_host(&["n1"]));
    let mut report = report_with_image(DiskImage::Present);
    report.usage.clear();
    emptied.fleet.reports.insert(NodeName::from("n1"), report);
    emptied.question.dead.clear();
    assert_eq!(emptied.decide("web").reasons, gone, "the last folder of a root that was listed");
}

#[test]
fn names_the_newest_usable_snapshots_first() {
    let mut world = World::new();
    world.claim("web-data").phase = "Lost".to_owned();
    let snapshot = |claim: &str, ready, taken: Option<&str>| Snapshot {
        claim: Some(claim.to_owned()),
        ready,
        taken: taken.map(str::to_owned),
    };
    for (name, made) in [
        ("monday", snapshot("web-data", true, Some("2026-01-05T03:00:00Z"))),
        ("tuesday", snapshot("web-data", true, Some("2026-01-06T03:00:00Z"))),
        ("running", snapshot("web-data", false, None)),
        ("of-another", snapshot("other", true, Some("2026-01-06T03:00:00Z"))),
        ("imported", Snapshot { ready: true, ..Snapshot::default() }),
    ] {
        world.fleet.snapshots.insert(key(name), made);
    }
    let names: Vec<String> = world
        .decide("web")
        .restore_from
        .into_iter()
        .filter_map(|source| match source.source {
            SourceKind::Snapshot { name, .. } => Some(name),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["tuesday", "monday", "running"]);
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
            SourceKind::Folder {
                node: NodeName::from("n3"),
                path: "/data/pvc-1_shop_web-data".to_owned(),
                allocated_bytes: 4096
            },
            SourceKind::Volume {
                name: VolumeName::from("pv-before"),
                phase: "Released".to_owned(),
                node: Some(NodeName::from("n2")),
                created: None,
            },
        ]
    );
}

/// A migration has ended and left its locks: the copy that it made and the volumes of before are named, the newest first,
/// and the lock is no source of anything.
#[test]
fn of_a_claim_that_was_left_locked_copy_and_old_volumes_are_named_by_age() {
    let mut world = World::new();
    let released = |created: &str| Volume {
        phase: "Released".to_owned(),
        created: Some(created.to_owned()),
        ..bound_volume("web-data", host_path(), on_host(&["n2"]))
    };
    let copy = Volume { claim: None, ..released("2026-11-03T00:00:00Z") };
    let lock = VolumeSource::Local { path: LOCK_FOLDER.to_owned() };
    let volumes = [
        ("pv-a-oldest", released("2026-11-01T00:00:00Z")),
        ("pv-b-newer", released("2026-11-02T00:00:00Z")),
        ("smst-web-data", copy),
        ("smst-web-data-lock", bound_volume("web-data", lock, on_host(&["nowhere"]))),
    ];
    world.fleet.volumes = volumes.map(|(name, volume)| (name.into(), volume)).into();
    let claim = world.claim("web-data");
    claim.volume = Some("smst-web-data-lock".into());
    claim.labels.insert(LOCK_LABEL.to_owned(), "true".to_owned());
    claim.annotations.insert(LOCKED_BY.to_owned(), "web-to-n3".to_owned());
    let decision = world.decide("web");
    assert!(decision.reasons.contains(&Reason::ClaimLocked), "{decision:?}");
    assert!(decision.disks[0].because.contains("VolumeMigration web-to-n3"), "{decision:?}");
    let named: Vec<String> = decision
        .restore_from
        .into_iter()
        .map(|source| match source.source {
            SourceKind::Volume { name, .. } => name.0,
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(named, ["smst-web-data", "pv-b-newer", "pv-a-oldest"]);
}

/// Each node lists what is in a folder that all of them see.
#[test]
fn a_folder_that_every_node_sees_is_one_source() {
    for (shared, expected) in [(true, 1), (false, 2)] {
        let mut world = World::new();
        world.claim("web-data").phase = "Lost".to_owned();
        world.fleet.volumes.clear();
        for node in ["n2", "n3"] {
            let listed = Some(("/data/pvc-1_shop_web-data", Usage::default()));
            let mut report = data_report(Some(Duration::ZERO), Grade::Ok, listed);
            report.roots.iter_mut().for_each(|root| root.shared = shared);
            world.fleet.reports.insert(NodeName::from(node), report);
        }
        assert_eq!(world.decide("web").restore_from.len(), expected, "{shared}");
    }
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
