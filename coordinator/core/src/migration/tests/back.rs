//! The way back: disks on network storage move to local volumes, when somebody asks for it.

use super::{ROUNDS, assert_whole};
use crate::fleet::VolumeSource;
use crate::io::Requests;
use crate::migration::model::{World, all_to_class, key, to_class};
use crate::migration::{Context, MigrationSpec, Phase, refusal};

fn asked() -> World {
    let mut world = World::new();
    world.put_on_network("vm");
    world.ask("m", all_to_class("vm", "local-path"));
    world
}

#[test]
fn disks_on_network_storage_become_local_when_asked_for() {
    let mut world = asked();
    let phase = world.run(ROUNDS, "m");
    assert_eq!(phase, Phase::Succeeded, "{:?}", world.store);
    world.round();
    assert_whole(&world, phase, "undisturbed");
    let nodes: Vec<_> = world.store[&key("m")]
        .disks
        .iter()
        .map(|disk| {
            assert_eq!(disk.source_node, disk.target_node, "the target reads what every node sees");
            world.fleet.volumes[&disk.new.name].node_affinity.clone().expect("local")
        })
        .collect();
    assert_eq!(nodes[0], nodes[1], "all disks on one node");
}

#[test]
fn a_new_leader_or_a_word_to_cancel_at_every_round_ends_whole() {
    for at in 0..60 {
        let mut world = asked();
        world.rounds(at);
        world.take_over();
        let phase = world.run(ROUNDS, "m");
        world.round();
        assert_eq!(phase, Phase::Succeeded, "a new leader at round {at}");
        assert_whole(&world, phase, &format!("a new leader at round {at}"));

        let mut world = asked();
        world.rounds(at);
        world.spec("m").cancelled = true;
        let phase = world.run(ROUNDS, "m");
        world.rounds(2);
        assert!(matches!(phase, Phase::Cancelled | Phase::Succeeded), "cancel at round {at}: {phase:?}");
        assert_whole(&world, phase, &format!("cancel at round {at}"));
    }
}

/// A disk on one node ties the VM to it.
#[test]
fn the_disks_go_where_the_vm_can_run() {
    let mut world = asked();
    for node in ["n1", "n2"] {
        world.fleet.nodes.get_mut(&node.into()).expect("there").unschedulable = true;
    }
    world.fleet.reports.get_mut(&"n1".into()).expect("there").roots[0].available_bytes = 90 << 30;
    while world.phase("m") < Phase::Provisioning {
        world.round();
    }
    assert!(world.store[&key("m")].disks.iter().all(|disk| disk.target_node.0 == "n3"));

    let mut world = asked();
    for node in ["n1", "n2", "n3"] {
        world.fleet.nodes.get_mut(&node.into()).expect("there").unschedulable = true;
    }
    assert_eq!(world.run(ROUNDS, "m"), Phase::Failed);
    assert_eq!(world.store[&key("m")].reason.as_deref(), Some("TargetDoesNotFitVm"));
}

/// Only the disk that is not there yet moves.
#[test]
fn a_disk_that_is_of_the_class_already_stays() {
    let mut world = asked();
    world.fleet.volumes.get_mut(&"pv-vm-data".into()).expect("there").class = "gold".into();
    world.ask("m", all_to_class("vm", "nfs"));
    while world.phase("m") < Phase::Provisioning {
        world.round();
    }
    let moved: Vec<_> = world.store[&key("m")].disks.iter().map(|disk| disk.claim.name.as_str()).collect();
    assert_eq!(moved, ["vm-data"]);
}

#[test]
fn what_is_not_asked_for_or_not_reached_stays() {
    let refused = |spec: MigrationSpec, spoil: fn(&mut World)| {
        let mut world = asked();
        spoil(&mut world);
        let ctx = Context {
            fleet: &world.fleet,
            requests: &Requests::default(),
            policy: &world.policy,
            epoch: world.epoch,
            usable: &world.usable,
            dead: &world.dead,
        };
        let why = refusal(&key("m"), &spec, &ctx).expect("refused");
        (why.reason, why.transient)
    };
    let back = || all_to_class("vm", "local-path");
    assert_eq!(refused(to_class("vm", "local-path"), |_| ()), ("NothingToMove", false));
    assert_eq!(refused(all_to_class("vm", "nfs"), |_| ()), ("NothingToMove", false));
    let unshared: fn(&mut World) = |world| {
        for report in world.fleet.reports.values_mut() {
            report.roots[1].shared = false;
        }
    };
    assert_eq!(refused(back(), unshared), ("VolumeNotReachable", true), "an agent may have just started");
    let of_a_driver: fn(&mut World) = |world| {
        let volume = world.fleet.volumes.get_mut(&"pv-vm-data".into()).expect("there");
        volume.source = VolumeSource::Network { field: "glusterfs".into() };
    };
    assert_eq!(refused(back(), of_a_driver), ("VolumeNotReachable", false));
}
