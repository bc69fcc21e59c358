//! Volumes that a class's own provisioner makes: held while they are written, let go before the VM has them, discarded
//! where it never does.

use super::{ROUNDS, assert_whole};
use crate::fleet::{Staged, StagedClaim, VolumeSource};
use crate::io::{Action, Effect};
use crate::migration::model::{World, key, to_class, to_node};
use crate::migration::{MigrationSpec, Phase};
use crate::names::VolumeName;

/// Rounds in which Kubernetes brings to its end what was deleted.
const AFTERWARDS: usize = 4;

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

fn assert_ended(world: &mut World, phase: Phase, what: &str) {
    world.rounds(AFTERWARDS);
    assert_whole(world, phase, what);
    assert!(world.fleet.staged.is_empty(), "{what}: a claim or pod of ours leaked: {:?}", world.fleet.staged);
    let message = &world.store[&key("m")].message;
    let told = made(world).iter().filter(|name| message.contains(name.as_str())).count();
    let (there, expected) =
        (made(world).len(), if phase == Phase::Succeeded { (2, 0) } else { (told, told) });
    assert_eq!((there, told), expected, "{what}: a volume leaked, and nobody was told: {message}");
    assert!(message.matches("left over").count() == usize::from(told > 0), "{what}: {message}");
}

#[test]
fn a_class_that_no_agent_reaches_by_path_gets_its_volumes_from_its_provisioner() {
    let mut world = asked();
    let phase = world.run(ROUNDS, "m");
    assert_eq!(phase, Phase::Succeeded, "{:?}", world.store);
    assert_ended(&mut world, phase, "undisturbed");
    for disk in &world.store[&key("m")].disks {
        let new = &world.fleet.volumes[&disk.new.name];
        assert!(new.retained && new.phase == "Bound", "{new:?}");
        assert_eq!(disk.target_node.0, "n1", "away from the source");
        assert!(
            new.capacity_bytes > 4 << 30,
            "a full image does not fit beside the filesystem's own: {new:?}"
        );
    }
}

#[test]
fn a_new_leader_or_a_lost_holder_at_every_round_changes_nothing() {
    let disturb: [fn(&mut World); 3] =
        [|world| world.lose_holders(false), |world| world.lose_holders(true), World::take_over];
    for at in 0..70 {
        for (number, disturb) in disturb.iter().enumerate() {
            let mut world = asked();
            world.rounds(at);
            disturb(&mut world);
            let phase = world.run(ROUNDS, "m");
            assert_eq!(phase, Phase::Succeeded, "at {at}, {number}: {:?}", world.store);
            assert_ended(&mut world, phase, &format!("at {at}, {number}"));
        }
    }
}

#[test]
fn cancelled_at_every_round_it_leaves_nothing_or_says_what() {
    for (slow, statics) in [(0, false), (3, false), (0, true)] {
        let mut ends = Vec::new();
        for at in 0..90 {
            let mut world = asked();
            (world.faults.slow_stages, world.faults.static_volumes) = (slow, statics);
            world.rounds(at);
            world.spec("m").cancelled = true;
            let phase = world.run(ROUNDS, "m");
            let what = format!("cancel at round {at}, slow: {slow}, static: {statics}");
            assert!(matches!(phase, Phase::Cancelled | Phase::Succeeded), "{what}: {phase:?}");
            assert_ended(&mut world, phase, &what);
            ends.push((phase, made(&world).len()));
        }
        assert!(ends.contains(&(Phase::Cancelled, 0)) && ends.contains(&(Phase::Succeeded, 2)), "{ends:?}");
        // What was there before our claims is nobody's to give up.
        assert!(!statics || ends.contains(&(Phase::Cancelled, 2)), "{ends:?}");
    }
}

#[test]
fn what_nobody_mounts_is_given_up_before_the_vm_is_touched() {
    let mut world = asked();
    world.faults.nothing_mounts = true;
    let phase = world.run(ROUNDS, "m");
    assert_eq!(phase, Phase::RolledBack);
    let record = &world.store[&key("m")];
    assert_eq!(record.reason.as_deref(), Some("VolumeNotMade"));
    assert!(record.message.contains("does not run on node n1"), "{}", record.message);
    assert!(!world.effects.iter().any(|effect| matches!(effect, Effect::Act(Action::StopVm { .. }))));
    assert_ended(&mut world, phase, "nothing mounts");
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
    assert_eq!(phase, Phase::RolledBack, "{:?}", world.store);
    assert_ended(&mut world, phase, "nothing mounts any more");
}

/// The word comes while the copy cannot be written: the VM runs on.
#[test]
fn no_vm_is_stopped_while_a_holder_is_lost() {
    let mut world = asked();
    world.spec("m").pre_copy_only = true;
    while !world.machine.waits_for_word(&key("m")) {
        world.round();
    }
    world.faults.nothing_mounts = true;
    world.lose_holders(true);
    world.spec("m").pre_copy_only = false;
    world.rounds(30);
    assert_eq!(world.phase("m"), Phase::PreCopying);
    assert!(world.fleet.vms[&key("vm")].instance.is_some());
    world.faults.nothing_mounts = false;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
}

/// Its pods stay until somebody says what has become of the node. Nobody waits for that.
#[test]
fn a_target_that_is_dead_does_not_keep_the_migration_from_its_end() {
    for at in [15, 20, 25, 30] {
        let mut world = asked();
        world.rounds(at);
        (world.faults.target_dead, world.faults.nothing_mounts) = (true, true);
        world.spec("m").cancelled = true;
        let phase = world.run(100, "m");
        assert!(phase.is_final(), "at {at}: {:?}", world.store);
        world.faults.target_dead = false;
        assert_ended(&mut world, phase, &format!("at {at}"));
    }
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

/// A deposed leader's last request arrives after everything was over.
#[test]
fn what_nobody_needs_is_swept_and_what_somebody_needs_is_not() {
    let mut world = asked();
    world.spec("m").pre_copy_only = true;
    while world.phase("m") != Phase::PreCopying {
        world.round();
    }
    let claim = StagedClaim { uid: "late".into(), volume: Some("gone".into()), deleting: false };
    world.fleet.staged.insert("smst-late".into(), Staged { claim: Some(claim), ..Staged::default() });
    let needed: Vec<String> =
        world.store[&key("m")].disks.iter().filter_map(|disk| disk.staging.clone()).collect();
    world.rounds(130);
    assert_eq!(world.fleet.staged.keys().cloned().collect::<Vec<_>>(), needed);
    assert!(!made(&world).iter().any(|name| name.as_str().starts_with("smst-late")));
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
