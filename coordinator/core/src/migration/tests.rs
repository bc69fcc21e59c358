//! Migrations against the model: every crash point, every cancel point, every kind of interference.

mod admitted;
mod back;
mod copies;
mod deleted;
mod guest;
mod probed;
mod probed_by_job;
mod read;
mod refused;
mod removed;
mod staged;
mod started;

use std::time::Duration;

use proptest::prelude::*;

use self::started::Start;
use super::model::{World, all_to_class, key, to_class, to_node};
use super::{Destination, Phase, WhichDisks};
use crate::fleet::{ClaimUse, DataVolume, Disk, DiskSource, SavedStart, Snapshot};
use crate::io::{Action, Effect, Notice, Order, Severity};

/// More rounds than any migration of the model takes: a timed-out stop takes 300.
const ROUNDS: usize = 900;

fn asked() -> World {
    let mut world = World::new();
    world.ask("m", to_node("vm", "n3"));
    world
}

/// The VM runs, all its disks together, on the node where it should be; its start field is as it was.
fn assert_whole(world: &World, phase: Phase, what: &str) {
    let vm = &world.fleet.vms[&key("vm")];
    let node = vm.node().map(|node| node.0.as_str());
    let spec = world.requests.migrations.get(&key("m")).map(|request| request.spec.clone());
    let (to_class, from_network) = spec
        .map(|spec| (matches!(spec.destination, Destination::Class(_)), spec.disks == WhichDisks::All))
        .unwrap_or_default();
    match phase {
        Phase::Succeeded if to_class => assert!(node.is_some(), "{what}: the VM does not run"),
        Phase::Succeeded => assert_eq!(node, Some("n3"), "{what}: ended as {phase:?}"),
        _ if from_network => assert!(node.is_some(), "{what}: the VM does not run"),
        _ => assert_eq!(node, Some("n2"), "{what}: ended as {phase:?}"),
    }
    assert_eq!(vm.start, SavedStart::WukongStartStrategy(None), "{what}: the start field was not given back");
    for claim in ["vm-system", "vm-data"] {
        let volume = &world.fleet.claims[&key(claim)].volume.as_ref().expect("bound").0;
        assert_eq!(volume.starts_with("smst-"), phase == Phase::Succeeded, "{what}: {claim} is on {volume}");
    }
    let lock = world.fleet.volumes.keys().find(|name| name.0.ends_with("-lock"));
    assert_eq!(lock, None, "{what}: a lock was left");
    if matches!(phase, Phase::RolledBack | Phase::Cancelled)
        && !world.store[&key("m")].message.contains("left over")
    {
        let left = world.content.keys().find(|place| place.contains("/volumes/smst-"));
        assert_eq!(left, None, "{what}: a copy was left on a target's disk, and nobody was told");
    }
}

#[test]
fn moves_every_disk_of_a_vm_and_gives_the_owner_back() {
    let mut world = asked();
    let phase = world.run(ROUNDS, "m");
    assert_eq!(phase, Phase::Succeeded, "{:?}", world.store);
    world.round();
    assert_whole(&world, phase, "undisturbed");
    let record = &world.store[&key("m")];
    assert!(record.disks.iter().all(|disk| disk.copied.is_some()));
    assert!(world.store[&key("m")].downtime_ms.is_some());
}

#[test]
fn stores_each_step_before_it_is_taken() {
    let mut world = asked();
    world.run(ROUNDS, "m");
    let position = |wanted: fn(&Effect) -> bool| world.effects.iter().position(wanted).expect("it happened");
    let stored = |effect: &Effect, phase: Phase| matches!(effect, Effect::Commit(crate::Record::Migration(record)) if record.phase == phase);
    let stopping = position(|effect| matches!(effect, Effect::Act(Action::StopVm { .. })));
    let swapping = position(
        |effect| matches!(effect, Effect::Act(Action::CreateClaim { volume, .. }) if !volume.0.ends_with("-lock")),
    );
    let copying =
        position(|effect| matches!(effect, Effect::Order { order: Order::Pull { final_: true, .. }, .. }));
    assert!(world.effects[..stopping].iter().any(|effect| stored(effect, Phase::Stopping)));
    assert!(world.effects[..copying].iter().any(|effect| stored(effect, Phase::FinalCopying)));
    assert!(world.effects[..swapping].iter().any(|effect| stored(effect, Phase::Swapping)));
}

#[test]
fn survives_a_new_leader_at_every_round() {
    for crash in 0..60 {
        let mut world = asked();
        world.rounds(crash);
        world.take_over();
        let phase = world.run(ROUNDS, "m");
        world.round();
        assert_eq!(phase, Phase::Succeeded, "crash at round {crash}");
        assert_whole(&world, phase, &format!("crash at round {crash}"));
    }
}

#[test]
fn a_new_leader_that_reads_the_request_late_goes_on_from_the_record() {
    for crash in 0..60 {
        let mut world = asked();
        world.rounds(crash);
        let requests = std::mem::take(&mut world.requests.migrations);
        world.take_over();
        world.round();
        world.requests.migrations = requests;
        let phase = world.run(ROUNDS, "m");
        world.round();
        assert_eq!(phase, Phase::Succeeded, "crash at round {crash}");
        assert_whole(&world, phase, &format!("crash at round {crash}, request read late"));
    }
}

#[test]
fn cancelled_at_every_round_it_ends_whole() {
    let mut ends = Vec::new();
    for at in 0..60 {
        let mut world = asked();
        world.rounds(at);
        world.spec("m").cancelled = true;
        let phase = world.run(ROUNDS, "m");
        world.round();
        world.round();
        assert!(matches!(phase, Phase::Cancelled | Phase::Succeeded), "cancel at round {at}: {phase:?}");
        assert_whole(&world, phase, &format!("cancel at round {at}"));
        let made = world.fleet.volumes.keys().filter(|name| name.0.starts_with("smst-")).count();
        let left = if phase == Phase::Succeeded { 2 } else { 0 };
        assert_eq!(made, left, "cancel at round {at}: a volume leaked");
        ends.push(phase);
    }
    assert!(ends.contains(&Phase::Cancelled) && ends.contains(&Phase::Succeeded));
}

/// One claim has its new volume, the other has not: the VM cannot have run there, and a new leader knows it too.
#[test]
fn cancelled_halfway_through_the_swap_under_a_new_leader_no_volume_leaks() {
    let mut world = asked();
    world.faults.swap_refused = Some("vm-data");
    while world.phase("m") != Phase::Swapping {
        world.round();
    }
    world.rounds(5);
    let volume = world.fleet.claims[&key("vm-system")].volume.clone().expect("bound");
    assert!(volume.0.starts_with("smst-") && !volume.0.ends_with("-lock"), "not halfway: {volume}");
    world.spec("m").cancelled = true;
    world.take_over();
    let phase = world.run(ROUNDS, "m");
    world.rounds(2);
    assert_eq!(phase, Phase::Cancelled);
    assert_whole(&world, phase, "halfway through the swap");
    let left: Vec<_> = world.fleet.volumes.keys().filter(|name| name.0.starts_with("smst-")).collect();
    assert!(left.is_empty(), "leaked: {left:?}");
}

/// A stop that is on its way when the migration is cancelled must not be the last word.
#[test]
fn cancelled_while_a_stop_is_on_its_way_the_start_field_is_given_back_after_it() {
    for at in 0..60 {
        let mut world = asked();
        world.faults.slow_starts = 4;
        world.rounds(at);
        world.spec("m").cancelled = true;
        let phase = world.run(ROUNDS, "m");
        world.rounds(20);
        assert!(matches!(phase, Phase::Cancelled | Phase::Succeeded), "cancel at round {at}: {phase:?}");
        assert_whole(&world, phase, &format!("cancel at round {at}"));
    }
}

#[test]
fn an_object_deleted_in_the_middle_ends_whole() {
    for at in 0..60 {
        let mut world = asked();
        world.rounds(at);
        world.delete("m");
        world.rounds(ROUNDS);
        let vm = &world.fleet.vms[&key("vm")];
        assert!(vm.instance.is_some(), "deleted at round {at}: the VM does not run");
        assert_eq!(vm.start, SavedStart::WukongStartStrategy(None), "deleted at round {at}");
    }
}

/// The namespace goes, with the VM and its claims, or with a claim that no VM has; the object of the migration waits for
/// its end.
#[test]
fn a_namespace_that_is_deleted_in_the_middle_is_not_held_up() {
    for bare in [false, true] {
        for at in 8..60 {
            let mut world = World::new();
            world.add_claim("spare", "n1");
            let claim = super::MigrationSpec { vm: None, claim: Some("spare".into()), ..to_node("", "n3") };
            world.ask("m", if bare { claim } else { to_node("vm", "n3") });
            world.rounds(at);
            if world.phase("m").is_final() {
                break;
            }
            delete_namespace(&mut world);
            let what = format!("deleted at round {at}, bare: {bare}");
            assert!(world.run(ROUNDS, "m").is_final(), "{what}: {:?}", world.phase("m"));
        }
    }
}

fn delete_namespace(world: &mut World) {
    world.spec("m").cancelled = true;
    world.faults.claims_refused = true;
    world.fleet.vms.clear();
    for claim in world.fleet.claims.values() {
        if let Some(volume) = claim.volume.as_ref().and_then(|name| world.fleet.volumes.get_mut(name)) {
            volume.phase = "Released".into();
        }
    }
    world.fleet.claims.clear();
}

/// An agent answers a repeated order id with the old result: the copy would be taken for made. (The model refuses an id
/// that was used before.)
#[test]
fn another_migration_of_the_same_name_orders_copies_of_its_own() {
    let mut world = asked();
    world.spec("m").pre_copy_only = true;
    world.rounds(ROUNDS);
    world.spec("m").cancelled = true;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Cancelled);
    world.delete("m");
    world.round();
    world.ask("m", to_node("vm", "n3"));
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    assert_whole(&world, Phase::Succeeded, "the second of its name");
}

/// Deleted and created again between two looks, to another destination: the first one is ended, then the second begins.
#[test]
fn another_object_of_the_same_name_is_another_migration_at_every_round() {
    for at in 0..60 {
        let mut world = World::new();
        world.ask("m", to_node("vm", "n1"));
        world.rounds(at);
        let on_n1 = world.phase("m") == Phase::Succeeded;
        world.ask("m", to_node("vm", "n3"));
        let uid = world.requests.migrations[&key("m")].uid.clone();
        let phase = world.run(ROUNDS, "m");
        world.round();
        assert_eq!(phase, Phase::Succeeded, "replaced at round {at}: {:?}", world.store);
        let record = &world.store[&key("m")];
        assert_eq!(record.uid, uid, "replaced at round {at}: the record is another object's");
        assert!(record.disks.iter().all(|disk| disk.target_node == "n3".into()), "{record:?}");
        // One that could not be taken back any more was brought to its end.
        let source = record.disks[0].source_node.0.as_str();
        assert!(source == "n2" || source == "n1" && (on_n1 || at > 20), "at {at} from {source}");
        assert_whole(&world, phase, &format!("replaced at round {at}"));
    }
}

/// The record of an object that is gone came back with another one of its name, out of a backup.
#[test]
fn a_record_of_an_earlier_object_is_ended_before_the_new_migration_begins() {
    for at in 0..60 {
        let mut world = asked();
        world.rounds(at);
        let record = world.store.get(&key("m")).cloned();
        world.ask("m", to_node("vm", "n1"));
        world.store.extend(record.map(|record| (key("m"), record)));
        world.take_over();
        let uid = world.requests.migrations[&key("m")].uid.clone();
        world.rounds(ROUNDS);
        let record = &world.store[&key("m")];
        assert_eq!((record.phase, &record.uid), (Phase::Succeeded, &uid), "at round {at}: {record:?}");
        let vm = &world.fleet.vms[&key("vm")];
        assert_eq!(vm.node().map(|node| node.0.as_str()), Some("n1"), "at round {at}");
        assert_eq!(vm.start, SavedStart::WukongStartStrategy(None), "at round {at}");
    }
}

/// Nothing but our memory knows of a migration whose object was deleted in the middle.
#[test]
fn an_object_deleted_in_the_middle_is_not_forgotten_when_the_records_are_read_anew() {
    for at in 0..60 {
        let mut world = asked();
        world.rounds(at);
        world.delete("m");
        world.round();
        world.list_again();
        world.rounds(ROUNDS);
        let vm = &world.fleet.vms[&key("vm")];
        assert!(vm.instance.is_some(), "deleted at round {at}: the VM does not run");
        assert_eq!(vm.start, SavedStart::WukongStartStrategy(None), "deleted at round {at}");
    }
}

#[test]
fn a_claim_that_wukong_creates_again_gets_our_volume() {
    let mut world = asked();
    world.faults.wukong_recreates = true;
    let phase = world.run(ROUNDS, "m");
    world.round();
    assert_eq!(phase, Phase::Succeeded, "{:?}", world.store);
    assert_whole(&world, phase, "claims created again");
}

#[test]
fn a_rollback_binds_the_old_volume_before_it_gives_the_claim_up() {
    let mut world = asked();
    world.faults.wukong_recreates = true;
    while world.phase("m") != Phase::Starting {
        world.round();
    }
    // The VM is never scheduled: its node is cordoned for ever.
    world.fleet.vms.get_mut(&key("vm")).expect("there").disks.push(nowhere());
    world.rounds(400);
    assert_eq!(world.phase("m"), Phase::RolledBack);
    world.fleet.vms.get_mut(&key("vm")).expect("there").disks.pop();
    world.round();
    assert_whole(&world, Phase::RolledBack, "an owner that creates claims again");
}

/// A disk whose claim does not exist: the model's VM cannot start.
fn nowhere() -> Disk {
    let source = DiskSource::Claim { name: "nowhere".into(), use_: ClaimUse::Disk };
    Disk { name: "nowhere".into(), source, boot: false, image: None }
}

#[test]
fn a_bare_claim_moves_too() {
    let mut world = World::new();
    world.add_claim("spare", "n1");
    let spec = super::MigrationSpec { vm: None, claim: Some("spare".into()), ..to_node("", "n3") };
    world.ask("m", spec);
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded, "{:?}", world.store);
    let volume = world.fleet.claims[&key("spare")].volume.clone().expect("bound");
    assert!(volume.0.starts_with("smst-"), "{volume}");
}

/// Every failure at every round, of a VM with two disks whose owner makes missing claims anew, blank: below a root of the target,
/// by the class's provisioner, and block devices. It ends on the old disks or on the new ones, whole, and nothing is left.
#[test]
fn whatever_fails_at_whichever_round_the_vm_ends_whole() {
    type Fault = (&'static str, fn(&mut World), fn(&mut World));
    let faults: [Fault; 9] = [
        ("the coordinator is killed, and another one leads", World::take_over, |_| {}),
        ("nobody leads for a while", |world| world.unseen(5), World::take_over),
        (
            "agents are killed",
            |world| world.faults.agents_silent = true,
            |world| world.faults.agents_silent = false,
        ),
        (
            "copies stand still",
            |world| world.faults.copies_hang = true,
            |world| world.faults.copies_hang = false,
        ),
        ("a copy breaks off", |world| world.faults.failing_copies = 1, |_| {}),
        (
            "the target is full",
            |world| world.faults.failing_copies = 6,
            |world| world.faults.failing_copies = 0,
        ),
        ("mover pods are killed", |world| world.lose_holders(false), |_| {}),
        ("mover pods are evicted", |world| world.lose_holders(true), |_| {}),
        (
            "the API server is restarted",
            |world| world.faults.api_away = true,
            |world| world.faults.api_away = false,
        ),
    ];
    let ways: [fn(&mut World); 3] = [
        |world| world.ask("m", to_node("vm", "n3")),
        |world| world.ask("m", to_class("vm", "ceph")),
        |world| {
            world.put_on_devices("vm", false);
            world.ask("m", all_to_class("vm", "local-path"));
        },
    ];
    for (way, ask) in ways.iter().enumerate() {
        for (what, fails, is_mended) in faults {
            let mut ends = std::collections::BTreeSet::new();
            for at in 0..70 {
                let mut world = World::new();
                world.faults.wukong_recreates = true;
                ask(&mut world);
                world.rounds(at);
                fails(&mut world);
                world.rounds(12);
                is_mended(&mut world);
                let phase = world.run(ROUNDS, "m");
                let what = format!("way {way}: {what} at {at}: {:?}", world.store.get(&key("m")));
                assert!(matches!(phase, Phase::Succeeded | Phase::RolledBack), "{what}");
                world.rounds(8);
                assert_whole(&world, phase, &what);
                assert!(world.fleet.staged.is_empty(), "{what}: {:?}", world.fleet.staged);
                ends.insert(phase);
            }
            assert!(ends.contains(&Phase::Succeeded), "{what} never mattered");
        }
    }
}

/// People are told, before anything is touched, whether anything but the copy could bring the data back.
#[test]
fn says_which_disks_have_a_snapshot() {
    let mut world = asked();
    let snapshot = |claim: &str, ready, taken: &str| Snapshot {
        claim: Some(claim.to_owned()),
        ready,
        taken: Some(taken.to_owned()),
    };
    for (name, snapshot) in [
        ("old", snapshot("vm-data", true, "2026-01-01T00:00:00Z")),
        ("new", snapshot("vm-data", true, "2026-02-01T00:00:00Z")),
        ("unready", snapshot("vm-data", false, "2026-03-01T00:00:00Z")),
        ("other", snapshot("vm", true, "2026-03-01T00:00:00Z")),
    ] {
        world.fleet.snapshots.insert(key(name), snapshot);
    }
    world.rounds(5);
    let checks = &world.store[&key("m")].checks;
    let told = checks.iter().find(|check| check.name == "BackupKnown").expect("it was asked");
    assert!(told.message.contains("default/vm-data: snapshot new, taken 2026-02-01T00:00:00Z"), "{told:?}");
    assert!(told.message.contains("default/vm-system: no snapshot that can be used"), "{told:?}");
}

/// The system disk's claim belongs to a `DataVolume` in this phase.
fn of_data_volume(world: &mut World, phase: &str) {
    world.fleet.claims.get_mut(&key("vm-system")).expect("there").data_volume = Some("vm-system".into());
    let data_volume = DataVolume { phase: phase.into(), pre_populated: false, image: None };
    world.fleet.data_volumes.insert(key("vm-system"), data_volume);
}

#[test]
fn the_claim_of_a_filled_data_volume_moves_with_the_others() {
    let mut world = asked();
    of_data_volume(&mut world, "Succeeded");
    let phase = world.run(ROUNDS, "m");
    assert_eq!(phase, Phase::Succeeded, "{:?}", world.store);
    world.round();
    assert_whole(&world, phase, "of a DataVolume");
}

proptest! {
    /// Leaders change, copies fail, people start the VM and cancel, all at any time: it ends whole.
    #[test]
    fn ends_whole_whatever_happens(
        events in prop::collection::vec((0usize..12, 0u8..9), 0..12),
        to_class in prop::option::of(prop::sample::select(vec!["nfs", "ceph"])),
        back: bool,
        recreates: bool,
    ) {
        let mut world = asked();
        if back {
            world.put_on_network("vm");
            let class = to_class.filter(|class| *class != "nfs").unwrap_or("local-path");
            world.ask("m", all_to_class("vm", class));
        } else if let Some(class) = to_class {
            world.ask("m", super::model::to_class("vm", class));
        }
        world.faults.wukong_recreates = recreates;
        for (rounds, event) in events {
            world.rounds(rounds);
            match event {
                0 => world.take_over(),
                1 => world.faults.failing_copies += 1,
                2 => Start::Seen.happen(&mut world),
                3 => world.spec("m").cancelled = true,
                4 => world.list_again(),
                5 => Start::Unseen.happen(&mut world),
                6 => Start::UnderNoLeader.happen(&mut world),
                7 => world.lose_holders(rounds % 2 == 0),
                _ => Start::FoundByTheNext.happen(&mut world),
            }
        }
        let phase = world.run(2 * ROUNDS, "m");
        prop_assert!(phase.is_final(), "still {phase:?}");
        world.round();
        world.round();
        assert_whole(&world, phase, "whatever");
    }
}
