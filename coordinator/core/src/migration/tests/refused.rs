//! What is refused, with a reason, before anything is touched.

use super::{ROUNDS, asked, of_data_volume};
use crate::fleet::{Fixed, Owner, VolumeMode};
use crate::io::{Action, Effect};
use crate::migration::model::{World, key, to_node};
use crate::migration::{Destination, MigrationSpec, Phase};

#[test]
fn a_second_migration_of_the_same_vm_is_refused() {
    // Before the first one has done anything, and while it has the claims locked.
    for at in [1, 20] {
        let mut world = asked();
        world.rounds(at);
        world.ask("second", to_node("vm", "n1"));
        assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
        assert_eq!(world.phase("second"), Phase::Failed);
        assert_eq!(world.store[&key("second")].reason.as_deref(), Some("AlreadyMigrating"), "at {at}");
    }
}

type Spoil = fn(&mut World);

#[test]
fn refuses_with_a_reason_and_touches_nothing() {
    let table: [(&str, Spoil); 21] = [
        ("VmNotFound", |world| world.spec("m").vm = Some("nobody".into())),
        ("InvalidSpec", |world| world.spec("m").claim = Some("vm-data".into())),
        ("NodeNotFound", |world| world.spec("m").destination = Destination::Node("n9".into())),
        ("ClassNotFound", |world| world.spec("m").destination = Destination::Class("gold".into())),
        ("NothingToMove", |world| world.spec("m").destination = Destination::Node("n2".into())),
        ("TargetNotUsable", |world| {
            world.usable.remove(&"n3".into());
        }),
        ("SourceNotUsable", |world| {
            world.usable.remove(&"n2".into());
        }),
        ("SourceDead", |world| die(world, "n2")),
        ("TargetDead", |world| die(world, "n3")),
        ("DiskLocalityUnknown", |world| {
            world.fleet.volumes.get_mut(&"pv-vm-data".into()).expect("there").node_affinity = None;
        }),
        ("OwnerUnknown", |world| {
            let owner = Owner::Unknown { kind: "Fleet".into(), name: "f".into() };
            world.fleet.vms.get_mut(&key("vm")).expect("there").owner = owner;
        }),
        ("ClaimUsedByPod", |world| {
            world.fleet.claims_used_by_others.insert(key("vm-data"), ["backup".to_owned()].into());
        }),
        ("VolumeModeDiffers", |world| {
            world.fleet.volumes.get_mut(&"pv-vm-data".into()).expect("there").mode = VolumeMode::Block;
        }),
        ("DiskShareable", |world| {
            let vm = world.fleet.vms.get_mut(&key("vm")).expect("there");
            vm.fixed.insert("vm-data".into(), Fixed::Shareable);
        }),
        ("VolumeReadOnly", |world| {
            let vm = world.fleet.vms.get_mut(&key("vm")).expect("there");
            vm.fixed.insert("vm-data".into(), Fixed::ReadOnly);
        }),
        ("VolumeReadOnly", |world| {
            let claim = world.fleet.claims.get_mut(&key("vm-data")).expect("there");
            claim.access_modes = vec!["ReadOnlyMany".into()];
        }),
        ("DataVolumeMissing", |world| {
            world.fleet.claims.get_mut(&key("vm-system")).expect("there").data_volume =
                Some("vm-system".into());
        }),
        ("DataVolumeImporting", |world| of_data_volume(world, "ImportInProgress")),
        ("DestinationTooSmall", |world| {
            world.fleet.reports.get_mut(&"n3".into()).expect("there").roots[0].available_bytes = 6 << 30;
        }),
        ("TargetNotReported", |world| unseen(world, "n3")),
        ("ClassNotOnNode", |world| {
            let report = world.fleet.reports.get_mut(&"n3".into()).expect("there");
            (report.pods, report.roots[0].depth) = (None, 2);
        }),
    ];
    for (reason, spoil) in table {
        let mut world = asked();
        spoil(&mut world);
        let before = world.fleet.volumes.clone();
        let phase = world.run(ROUNDS, "m");
        let record = &world.store[&key("m")];
        assert_eq!((phase, record.reason.as_deref()), (Phase::Failed, Some(reason)), "{record:?}");
        assert!(!record.message.is_empty());
        assert_eq!(world.fleet.volumes, before, "{reason}: something was touched");
        assert!(!world.effects.iter().any(|effect| matches!(effect, Effect::Act(_))), "{reason}");
    }
}

/// As its agent tells of a root that it has not looked into yet.
fn unseen(world: &mut World, node: &str) {
    let root = &mut world.fleet.reports.get_mut(&node.into()).expect("there").roots[0];
    (root.size_bytes, root.available_bytes, root.listed_age) = (0, 0, None);
}

/// An agent that has just started says nothing of its room: whoever asks in that second is not told that there is none.
#[test]
fn a_root_that_was_not_looked_into_yet_is_waited_for() {
    let mut world = asked();
    let seen = world.fleet.reports[&"n3".into()].clone();
    unseen(&mut world, "n3");
    world.rounds(3);
    assert!(matches!(world.phase("m"), Phase::Pending | Phase::Checking), "{:?}", world.store[&key("m")]);
    world.fleet.reports.insert("n3".into(), seen);
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
}

fn die(world: &mut World, node: &str) {
    world.usable.remove(&node.into());
    world.dead.insert(node.into());
}

/// Nothing is waited for that cannot come: whoever asks sees at once why nothing begins.
#[test]
fn what_time_does_not_mend_is_refused_at_once() {
    let spoils: [(&str, Spoil); 5] = [
        ("SourceDead", |world| die(world, "n2")),
        ("TargetDead", |world| die(world, "n3")),
        ("NothingToMove", |world| world.spec("m").destination = Destination::Node("n2".into())),
        ("NodeNotFound", |world| world.spec("m").destination = Destination::Node("n9".into())),
        ("DiskLocalityUnknown", |world| {
            world.fleet.volumes.get_mut(&"pv-vm-data".into()).expect("there").node_affinity = None;
        }),
    ];
    for (reason, spoil) in spoils {
        let mut world = asked();
        spoil(&mut world);
        assert_eq!(world.run(3, "m"), Phase::Failed, "{reason}");
        let record = &world.store[&key("m")];
        assert_eq!(record.reason.as_deref(), Some(reason));
        assert!(record.message.contains(':'), "what to do: {}", record.message);
    }
}

#[test]
fn a_claim_that_is_there_already_does_not_move() {
    let mut world = World::new();
    world.add_claim("spare", "n1");
    let spec = MigrationSpec { vm: None, claim: Some("spare".into()), ..to_node("", "n1") };
    world.ask("m", spec);
    assert_eq!(world.run(ROUNDS, "m"), Phase::Failed);
    assert_eq!(world.store[&key("m")].reason.as_deref(), Some("NothingToMove"));
}

#[test]
fn a_pod_that_is_in_the_way_is_named() {
    let refusal = |pods: &[&str]| {
        let mut world = asked();
        let pods = pods.iter().map(|pod| (*pod).to_owned()).collect();
        world.fleet.claims_used_by_others.insert(key("vm-data"), pods);
        assert_eq!(world.run(ROUNDS, "m"), Phase::Failed);
        world.store[&key("m")].message.clone()
    };
    for (pods, words) in [
        (&["backup-x7k2p"][..], "by pod backup-x7k2p: "),
        (&["a", "b"], "by pods a, b: "),
        (&["a", "b", "c", "d", "e"], "by pods a, b, c and 2 more: "),
    ] {
        assert!(refusal(pods).contains(words), "{words}: {}", refusal(pods));
    }
}

/// Whoever has come during the copy is named, and the VM is not stopped.
#[test]
fn a_second_user_who_comes_during_the_copy_is_told_and_no_vm_is_stopped() {
    let mut world = asked();
    world.spec("m").pre_copy_only = true;
    while world.phase("m") != Phase::PreCopying {
        world.round();
    }
    world.fleet.claims_used_by_others.insert(key("vm-data"), ["backup".to_owned()].into());
    world.spec("m").pre_copy_only = false;
    assert_eq!(world.run(100, "m"), Phase::RolledBack);
    let record = &world.store[&key("m")];
    assert_eq!(record.reason.as_deref(), Some("ClaimUsedByPod"), "{record:?}");
    assert!(record.message.contains("backup"), "{record:?}");
    let stops = world.effects.iter().filter(|effect| matches!(effect, Effect::Act(Action::StopVm { .. })));
    assert_eq!(stops.count(), 0);
}

/// What a claim that cannot move lacks is said, and not something else.
#[test]
fn a_claim_that_is_not_there_or_not_bound_is_called_so() {
    for bound in [false, true] {
        let mut world = World::new();
        if bound {
            world.add_claim("spare", "n2");
            world.fleet.claims.get_mut(&key("spare")).expect("there").volume = None;
        }
        let spec = MigrationSpec { vm: None, claim: Some("spare".into()), ..to_node("vm", "n3") };
        world.ask("m", spec);
        assert_eq!(world.run(100, "m"), Phase::Failed);
        let record = &world.store[&key("m")];
        assert_eq!(record.reason.as_deref(), Some("ClaimNotBound"), "{record:?}");
        assert_eq!(record.message.contains("is not bound"), bound, "{record:?}");
    }
}
