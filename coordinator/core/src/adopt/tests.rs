//! Which folders are nobody's, whose they may be, and what speaks against giving one to its claim.

use std::time::Duration;

use super::*;
use crate::decision::testkit::{World, data_report, key, on_host, running_vm};
use crate::fleet::{Grade, Vm, VolumeSource};

const FOLDER: &str = "/data/pv-db-data_shop_db-data";

/// VM `db` is stopped; its disk was on n1, which is proven dead, and is in n2 now.
struct Bed {
    world: World,
    usable: BTreeSet<NodeName>,
    dead: BTreeSet<NodeName>,
}

impl Bed {
    fn new() -> Self {
        let mut world = World::bare();
        let vm = running_vm("db", "n1");
        world.fleet.vms.insert(key("db"), vm);
        world.add_disk("db", "data", VolumeSource::Local { path: FOLDER.to_owned() }, on_host(&["n1"]));
        world.vm("db").instance = None;
        world.vm("db").pods.clear();
        let usage = Usage { apparent_bytes: 7, disk_image: DiskImage::Present, ..Usage::default() };
        let report = |folders: &[(&str, Usage)]| {
            data_report(Some(Duration::from_secs(1)), Grade::Ok, folders.iter().copied())
        };
        world.fleet.reports.insert("n2".into(), report(&[(FOLDER, usage)]));
        world.fleet.reports.insert("n3".into(), report(&[]));
        Self { world, usable: ["n2".into(), "n3".into()].into(), dead: ["n1".into()].into() }
    }

    fn nodes(&self) -> Nodes<'_> {
        Nodes { usable: &self.usable, proven_dead: &self.dead }
    }

    fn plan(&self) -> Result<Adoption, Refusal> {
        plan(&self.world.fleet, &self.nodes(), (&"n2".into(), FOLDER), &key("db-data"))
    }

    fn orphans(&self) -> Vec<Orphan> {
        orphans(&self.world.fleet, &self.nodes())
    }
}

#[test]
fn a_disk_in_another_machine_is_found_and_named_after_its_claim() {
    let bed = Bed::new();
    let found = bed.orphans();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].node.as_str(), found[0].path.as_str(), &found[0].of),
        ("n2", FOLDER, &Some(key("db-data")))
    );
}

#[test]
fn a_folders_name_tells_of_its_claim_by_the_volume_or_by_the_claim_itself() {
    let bed = Bed::new();
    let of = |path: &str| claim_of(&bed.world.fleet, path);
    assert_eq!(of("/data/pv-db-data"), Some(key("db-data")), "the volume that the claim names");
    assert_eq!(of("/data/pvc-77_shop_gone"), Some(key("gone")), "local-path's own form");
    for nameless in ["/data/backup", "/data/a_b", "/data/a_b_c_d", "/data/a__c"] {
        assert_eq!(of(nameless), None, "{nameless}");
    }
}

#[test]
fn each_step_leaves_a_state_from_which_the_next_plan_goes_on() {
    let mut bed = Bed::new();
    let adoption = bed.plan().expect("nothing speaks against it");
    let name = adoption.volume.name.clone();
    assert_eq!(
        adoption.template.requested_bytes,
        10 << 30,
        "as the old volume, which is larger than the folder"
    );
    let steps = adoption.steps();
    let kinds: Vec<String> = steps
        .iter()
        .map(|step| format!("{step:?}").split(['{', '(', ' ']).next().expect("named").to_owned())
        .collect();
    assert_eq!(kinds, ["RetainVolume", "CreateVolume", "PrebindVolume", "DeleteClaim", "CreateClaim"]);
    assert_ne!(adoption.volume.claim, key("db-data"), "kept for nobody until the old volume is on Retain");

    // It broke off before the claim was made anew.
    let mut made = bed.world.fleet.volumes[&VolumeName::from("pv-db-data")].clone();
    made.node_affinity = on_host(&["n2"]);
    made.claim = None;
    bed.world.fleet.volumes.insert(name.clone(), made);
    let again = bed.plan().expect("goes on");
    assert_eq!(again.volume.name, name);
    let makes = |step: &Action| matches!(step, Action::CreateVolume(_));
    assert!(!again.steps().iter().any(makes), "it is pre-bound by now, and would be taken for another one");
    bed.world.fleet.claims.remove(&key("db-data"));
    let again = bed.plan().expect("goes on");
    assert_eq!(again.steps().len(), 2, "{:?}", again.steps());
    assert_eq!(again.template.requested_bytes, 10 << 30);

    let mut claim = Bed::new().world.claim("db-data").clone();
    claim.volume = Some(name);
    bed.world.fleet.claims.insert(key("db-data"), claim);
    assert_eq!(bed.plan().expect_err("done").reason, "AlreadyAdopted");
    assert_eq!(bed.orphans(), [], "a volume names it now");
}

#[test]
fn what_speaks_against_it_is_said() {
    type Change = fn(&mut Bed);
    let cases: &[(Change, &str)] = &[
        (|b| _ = b.dead.remove(&NodeName::from("n1")), "OldNodeInDoubt"),
        (|b| _ = b.usable.remove(&NodeName::from("n2")), "NodeNotUsable"),
        (|b| _ = b.world.fleet.nodes.remove(&NodeName::from("n2")), "NodeNotFound"),
        (
            |b| b.world.fleet.reports.get_mut(&NodeName::from("n2")).expect("there").usage.clear(),
            "FolderNotSeen",
        ),
        (
            |b| {
                let report = b.world.fleet.reports.get_mut(&NodeName::from("n2")).expect("there");
                report.usage.get_mut(FOLDER).expect("there").disk_image = DiskImage::Absent;
            },
            "NoDiskImage",
        ),
        (
            |b| {
                let twin = b.world.fleet.volumes[&VolumeName::from("pv-db-data")].clone();
                let twin = Volume { node_affinity: on_host(&["n2"]), ..twin };
                b.world.fleet.volumes.insert("twin".into(), twin);
            },
            "FolderInUse",
        ),
        (|b| b.world.claim("db-data").mode = VolumeMode::Block, "BlockMode"),
        (
            |b| {
                let pods = BTreeSet::from(["backup".to_owned()]);
                b.world.fleet.claims_used_by_others.insert(key("db-data"), pods);
            },
            "ClaimInUse",
        ),
        (
            |b| b.world.volume("pv-db-data").source = VolumeSource::Network { field: "nfs".to_owned() },
            "ClaimHasItsVolume",
        ),
    ];
    for (number, (change, reason)) in cases.iter().enumerate() {
        let mut bed = Bed::new();
        change(&mut bed);
        assert_eq!(bed.plan().expect_err(reason).reason, *reason, "case {number}");
    }
    let mut bed = Bed::new();
    let disks = bed.world.vm("db").disks.clone();
    bed.world.fleet.vms.insert(key("db"), Vm { disks, ..running_vm("db", "n1") });
    assert_eq!(bed.plan().expect_err("it may be running").reason, "VmNotStopped");
}

/// The old machine lives: only where its agent says that the folder is gone is the one in the other machine the same.
#[test]
fn with_the_old_node_alive_the_folder_must_be_gone_there() {
    let mut bed = Bed::new();
    bed.dead.clear();
    bed.usable.insert("n1".into());
    let usage = Usage { disk_image: DiskImage::Present, ..Usage::default() };
    let with = |folders: &[(&str, Usage)], age| data_report(age, Grade::Ok, folders.iter().copied());
    let age = Some(Duration::from_secs(1));
    for (report, reason) in [
        (with(&[(FOLDER, usage)], age), Some("ClaimHasItsVolume")),
        (with(&[], None), Some("ClaimHasItsVolume")),
        (with(&[], age), None),
    ] {
        bed.world.fleet.reports.insert("n1".into(), report);
        assert_eq!(bed.plan().err().map(|refusal| refusal.reason), reason);
    }
}

#[test]
fn a_node_that_came_back_under_another_name_gives_its_disk() {
    let mut bed = Bed::new();
    bed.dead.clear();
    bed.world.fleet.nodes.remove(&NodeName::from("n1"));
    let adoption = bed.plan().expect("the old node is no more");
    assert_eq!(adoption.volume.node, Some("n2".into()));
}
