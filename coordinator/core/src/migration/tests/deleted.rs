//! Somebody deletes what a migration works with: volumes, the VM. A `PersistentVolume` that is deleted stays as long as a
//! claim is bound to it, and goes in the moment in which that claim changes volumes.

use super::*;
use crate::names::{NodeName, VolumeName};

const OLD: [&str; 2] = ["pv-vm-system", "pv-vm-data"];

fn delete(world: &mut World, volumes: &[VolumeName]) {
    for volume in volumes {
        world.delete_volume(volume);
    }
}

fn old() -> Vec<VolumeName> {
    OLD.map(VolumeName::from).into()
}

fn record(world: &World) -> &crate::migration::MigrationRecord {
    &world.store[&key("m")]
}

fn stops(world: &World) -> usize {
    world.effects.iter().filter(|effect| matches!(effect, Effect::Act(Action::StopVm { .. }))).count()
}

#[test]
fn a_volume_that_is_being_deleted_is_not_moved() {
    let mut world = World::new();
    delete(&mut world, &old());
    world.ask("m", to_node("vm", "n3"));
    assert_eq!(world.run(ROUNDS, "m"), Phase::Failed);
    assert_eq!(record(&world).reason.as_deref(), Some("VolumeBeingDeleted"));
    for disk in OLD {
        let said = &record(&world).message;
        assert!(said.contains(&format!("adopt n2:/var/lib/volumes/{disk} --claim")), "{said}");
    }
    assert_whole(&world, Phase::Failed, "refused");
}

#[test]
fn one_that_somebody_deletes_during_the_copy_is_seen_before_the_stop() {
    let mut world = asked();
    world.spec("m").pre_copy_only = true;
    while world.phase("m") != Phase::PreCopying {
        world.round();
    }
    delete(&mut world, &old());
    world.spec("m").pre_copy_only = false;
    assert_eq!(world.run(100, "m"), Phase::RolledBack);
    assert_eq!((record(&world).reason.as_deref(), stops(&world)), (Some("VolumeBeingDeleted"), 0));
    assert_whole(&world, Phase::RolledBack, "before the stop");
}

/// A copy that waits for a word may wait for days.
#[test]
fn a_new_volume_that_somebody_deletes_before_the_stop_is_made_anew() {
    let mut world = asked();
    world.spec("m").pre_copy_only = true;
    world.rounds(ROUNDS);
    let new = world.store[&key("m")].disks[0].new.name.clone();
    assert!(world.fleet.volumes.remove(&new).is_some());
    world.spec("m").pre_copy_only = false;
    let phase = world.run(ROUNDS, "m");
    assert_eq!(phase, Phase::Succeeded, "{}", world.store[&key("m")].message);
    assert_whole(&world, phase, "deleted volume");
}

/// One disk's volume or both, old ones or new ones; whether it then goes on, fails on the way, or is to end.
#[test]
fn volumes_deleted_at_every_round_leave_the_vm_whole() {
    let mut backs = 0;
    for at in 0..60 {
        for which in 0..4 {
            for then in ["goes on", "cannot be swapped", "is cancelled", "is led anew"] {
                let what = format!("round {at}, volumes {which}, {then}");
                let mut world = asked();
                if then == "cannot be swapped" {
                    world.faults.swap_refused = Some("vm-data");
                }
                world.rounds(at);
                let new = world.store.get(&key("m")).map(|record| record.disks.clone()).unwrap_or_default();
                let new: Vec<VolumeName> = new.into_iter().map(|disk| disk.new.name).collect();
                // By a new volume that it is bound to, a deletion shows at the next change only.
                match which {
                    0 => delete(&mut world, &old()[1..]),
                    1 => delete(&mut world, &old()),
                    2 => delete(&mut world, new.get(1..).unwrap_or_default()),
                    _ => delete(&mut world, &new),
                }
                match then {
                    "is cancelled" => world.spec("m").cancelled = true,
                    "is led anew" => world.take_over(),
                    _ => {}
                }
                let phase = world.run(ROUNDS, "m");
                world.rounds(3);
                assert!(phase.is_final(), "{what}: {phase:?}");
                assert_whole(&world, phase, &what);
                backs += usize::from(phase == Phase::RolledBack && stops(&world) > 0);
            }
        }
    }
    assert!(backs > 20, "{backs} went back after the stop: the test has lost its point");
}

#[test]
fn a_move_that_outlives_its_old_volumes_does_not_say_that_they_are_kept() {
    let mut world = asked();
    while world.phase("m") != Phase::FinalCopying {
        world.round();
    }
    delete(&mut world, &old()[1..]);
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    let said = &record(&world).message;
    assert!(said.contains("but for the objects of pv-vm-data, which somebody has deleted"), "{said}");
}

/// With the folder gone too there is nothing to go back to: a person must look, and what is left is named.
#[test]
fn without_folder_and_volume_it_is_told_what_is_left_and_the_lock_goes_with_its_claim() {
    let mut world = asked();
    while world.phase("m") != Phase::FinalCopying {
        world.round();
    }
    delete(&mut world, &old());
    let n2 = NodeName::from("n2");
    world.fleet.reports.get_mut(&n2).expect("there").usage.clear();
    world.spec("m").cancelled = true;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Failed);
    assert_eq!(record(&world).reason.as_deref(), Some("VolumeGone"));
    assert!(record(&world).message.contains("runbook"), "{:?}", record(&world));
    let dropped = |effect: &&Effect| {
        matches!(effect, Effect::Order { order: Order::CancelPull { .. } | Order::RemoveVolume { .. }, .. })
    };
    assert_eq!(world.effects.iter().filter(dropped).count(), 0, "the copies may be all that is left");
    let locks = |world: &World| world.fleet.volumes.keys().filter(|name| name.0.ends_with("-lock")).count();
    world.rounds(120);
    assert_eq!(locks(&world), 2, "claims are bound to them");

    // A person gives the claims other volumes.
    for claim in ["vm-system", "vm-data"] {
        let uid = world.fleet.claims[&key(claim)].uid.clone();
        world.delete_claim(&key(claim), &uid).expect("no pod uses it");
        world.add_claim(claim, "n1");
    }
    world.rounds(120);
    assert_eq!(locks(&world), 0);
}

/// Whoever deletes an object may have deleted its folder just before, and the agent has not looked since.
#[test]
fn a_listing_of_before_the_deletion_says_nothing_of_the_folder() {
    let mut world = asked();
    while world.phase("m") != Phase::FinalCopying {
        world.round();
    }
    delete(&mut world, &old());
    world.spec("m").cancelled = true;
    world.rounds(60);
    assert_eq!(world.phase("m"), Phase::RollingBack, "not made again yet");
    let n2 = NodeName::from("n2");
    world.fleet.reports.get_mut(&n2).expect("there").usage.clear();
    assert_eq!(world.run(ROUNDS, "m"), Phase::Failed);
    let copies = world.content.keys().filter(|place| place.starts_with("n3:")).count();
    assert!(copies > 0 || record(&world).message.contains("What was copied is left"), "{:?}", record(&world));
    for old in old() {
        assert!(!world.fleet.volumes.contains_key(&old), "a volume for a folder that is not there");
    }
}

#[test]
fn while_the_node_is_away_its_volume_is_not_given_up() {
    let mut world = asked();
    while world.phase("m") != Phase::FinalCopying {
        world.round();
    }
    delete(&mut world, &old());
    world.usable.remove(&NodeName::from("n2"));
    world.spec("m").cancelled = true;
    world.rounds(300);
    assert_eq!(world.phase("m"), Phase::RollingBack);
    world.usable.insert("n2".into());
    let phase = world.run(ROUNDS, "m");
    world.rounds(3);
    assert_eq!(phase, Phase::Cancelled);
    assert_whole(&world, phase, "the node is back");
}

#[test]
fn a_vm_that_somebody_deletes_is_not_waited_for_as_if_it_came() {
    let mut world = asked();
    while world.phase("m") != Phase::FinalCopying {
        world.round();
    }
    world.fleet.vms.clear();
    assert_eq!(world.run(240, "m"), Phase::Failed);
    assert_eq!(record(&world).reason.as_deref(), Some("VmGone"));
    for claim in ["vm-system", "vm-data"] {
        let volume = world.fleet.claims[&key(claim)].volume.clone().expect("bound");
        assert!(volume.0.starts_with("smst-") && !volume.0.ends_with("-lock"), "{claim}: {volume}");
    }
    for old in old() {
        assert!(world.fleet.volumes[&old].retained);
    }
}

#[test]
fn a_word_to_cancel_that_comes_too_late_is_told_so() {
    let mut world = asked();
    while world.phase("m") != Phase::Confirming {
        world.round();
    }
    world.spec("m").cancelled = true;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    assert!(record(&world).message.contains("too late"), "{:?}", record(&world));
}
