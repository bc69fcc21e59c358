//! Volumes that a class's own provisioner makes: held while they are written, let go before the VM has them, discarded
//! where it never does.

use super::{ROUNDS, assert_whole};
use crate::fleet::VolumeSource;
use crate::io::{Action, Effect};
use crate::migration::model::{World, key, to_class, to_node};
use crate::migration::{MigrationSpec, Phase};
use crate::names::VolumeName;

fn asked() -> World {
    let mut world = World::new();
    world.ask("m", to_class("vm", "ceph"));
    world
}

/// Of both disks, or of none.
fn made(world: &World) -> Vec<&VolumeName> {
    let is_csi = |source: &VolumeSource| matches!(source, VolumeSource::Csi { .. });
    world.fleet.volumes.iter().filter(|(_, volume)| is_csi(&volume.source)).map(|(name, _)| name).collect()
}

fn assert_ended(world: &World, phase: Phase, what: &str) {
    assert_whole(world, phase, what);
    assert!(world.fleet.staged.is_empty(), "{what}: a claim or pod of ours leaked: {:?}", world.fleet.staged);
    let message = &world.store[&key("m")].message;
    let told = made(world).iter().filter(|name| message.contains(name.as_str())).count();
    let (there, expected) =
        (made(world).len(), if phase == Phase::Succeeded { (2, 0) } else { (told, told) });
    assert_eq!((there, told), expected, "{what}: a volume leaked, and nobody was told: {message}");
}

#[test]
fn a_class_that_no_agent_reaches_by_path_gets_its_volumes_from_its_provisioner() {
    let mut world = asked();
    let phase = world.run(ROUNDS, "m");
    world.round();
    assert_eq!(phase, Phase::Succeeded, "{:?}", world.store);
    assert_ended(&world, phase, "undisturbed");
    for disk in &world.store[&key("m")].disks {
        let new = &world.fleet.volumes[&disk.new.name];
        assert!(new.retained && new.phase == "Bound", "{new:?}");
        assert_eq!(disk.target_node.0, "n1", "away from the source");
    }
}

#[test]
fn a_new_leader_or_a_lost_holder_at_every_round_changes_nothing() {
    for at in 0..70 {
        for lost in [false, true] {
            let mut world = asked();
            world.rounds(at);
            if lost {
                world.lose_holders();
            } else {
                world.take_over();
            }
            let phase = world.run(ROUNDS, "m");
            world.round();
            assert_eq!(phase, Phase::Succeeded, "at {at}, lost: {lost}: {:?}", world.store);
            assert_ended(&world, phase, &format!("at {at}, lost: {lost}"));
        }
    }
}

#[test]
fn cancelled_at_every_round_it_leaves_nothing_or_says_what() {
    let mut ends = Vec::new();
    for at in 0..70 {
        let mut world = asked();
        world.rounds(at);
        world.spec("m").cancelled = true;
        let phase = world.run(ROUNDS, "m");
        world.rounds(2);
        assert!(matches!(phase, Phase::Cancelled | Phase::Succeeded), "cancel at round {at}: {phase:?}");
        assert_ended(&world, phase, &format!("cancel at round {at}"));
        ends.push((phase, made(&world).len()));
    }
    for end in [(Phase::Cancelled, 0), (Phase::Cancelled, 2), (Phase::Succeeded, 2)] {
        assert!(ends.contains(&end), "never {end:?}: {ends:?}");
    }
}

#[test]
fn what_nobody_mounts_is_given_up_before_the_vm_is_touched() {
    let mut world = asked();
    world.faults.nothing_mounts = true;
    let phase = world.run(ROUNDS, "m");
    world.round();
    assert_eq!(phase, Phase::RolledBack);
    assert_eq!(world.store[&key("m")].reason.as_deref(), Some("VolumeNotMade"));
    assert!(!world.effects.iter().any(|effect| matches!(effect, Effect::Act(Action::StopVm { .. }))));
    assert_ended(&world, phase, "nothing mounts");
    assert!(made(&world).is_empty());
}

#[test]
fn a_holder_that_is_lost_for_good_during_the_last_copy_gives_the_vm_back() {
    let mut world = asked();
    while world.phase("m") != Phase::Stopping {
        world.round();
    }
    world.faults.nothing_mounts = true;
    let phase = world.run(ROUNDS, "m");
    world.rounds(2);
    assert_eq!(phase, Phase::RolledBack, "{:?}", world.store);
    assert_ended(&world, phase, "nothing mounts any more");
}

#[test]
fn an_object_deleted_in_the_middle_leaves_no_claim_of_ours() {
    for at in 0..70 {
        let mut world = asked();
        world.rounds(at);
        world.delete("m");
        world.rounds(ROUNDS);
        assert!(world.fleet.staged.is_empty(), "deleted at round {at}: {:?}", world.fleet.staged);
        assert!(world.fleet.vms[&key("vm")].instance.is_some(), "deleted at round {at}: the VM does not run");
    }
}

#[test]
fn without_the_right_to_what_kubelets_mount_it_is_refused() {
    let mut world = asked();
    for report in world.fleet.reports.values_mut() {
        report.pods = None;
    }
    assert_eq!(world.run(ROUNDS, "m"), Phase::Failed);
    let record = &world.store[&key("m")];
    assert_eq!(record.reason.as_deref(), Some("ClassNotReachable"));
    assert!(record.message.contains("movers"), "{}", record.message);
}

#[test]
fn a_bare_claim_goes_there_too() {
    let mut world = World::new();
    world.add_claim("spare", "n1");
    let spec = MigrationSpec { vm: None, claim: Some("spare".into()), ..to_class("", "ceph") };
    world.ask("m", spec);
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded, "{:?}", world.store);
    assert!(made(&world).contains(&world.fleet.claims[&key("spare")].volume.as_ref().expect("bound")));
    assert!(world.fleet.staged.is_empty());
}

/// A node that has no root of the class, where its provisioner makes volumes all the same.
#[test]
fn a_node_without_a_root_of_the_class_takes_what_its_provisioner_makes() {
    let mut world = World::new();
    let report = world.fleet.reports.get_mut(&"n3".into()).expect("there");
    report.roots.retain(|root| root.shared);
    world.ask("m", to_node("vm", "n3"));
    let phase = world.run(ROUNDS, "m");
    assert_eq!(phase, Phase::Succeeded, "{:?}", world.store);
    assert!(world.fleet.staged.is_empty());
    assert_eq!(made(&world).len(), 2);
}
