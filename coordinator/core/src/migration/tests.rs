//! Migrations against the model: every crash point, every cancel point, every kind of interference.

use proptest::prelude::*;

use super::model::{World, key, to_class, to_node};
use super::{Destination, LOCK_LABEL, LOCKED_BY, Phase};
use crate::fleet::{ClaimUse, DataVolume, Disk, DiskSource, Owner, RunStrategy, SavedStart, VolumeMode};
use crate::io::{Action, Effect, Order};

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
    match (phase, &world.requests.migrations.get(&key("m")).map(|request| request.spec.destination.clone())) {
        (Phase::Succeeded, Some(Destination::Class(_))) => {
            assert!(node.is_some(), "{what}: the VM does not run");
        }
        (Phase::Succeeded, _) => assert_eq!(node, Some("n3"), "{what}: ended as {phase:?}"),
        _ => assert_eq!(node, Some("n2"), "{what}: ended as {phase:?}"),
    }
    assert_eq!(vm.start, SavedStart::WukongStartStrategy(None), "{what}: the start field was not given back");
    for claim in ["vm-system", "vm-data"] {
        let volume = &world.fleet.claims[&key(claim)].volume.as_ref().expect("bound").0;
        assert_eq!(volume.starts_with("smst-"), phase == Phase::Succeeded, "{what}: {claim} is on {volume}");
    }
    let lock = world.fleet.volumes.keys().find(|name| name.0.ends_with("-lock"));
    assert_eq!(lock, None, "{what}: a lock was left");
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
    assert!(world.machine.views()[&key("m")].downtime.is_some());
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
        for _ in 0..crash {
            world.round();
        }
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
        for _ in 0..crash {
            world.round();
        }
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
        for _ in 0..at {
            world.round();
        }
        world.spec("m").cancelled = true;
        let phase = world.run(ROUNDS, "m");
        world.round();
        world.round();
        assert!(matches!(phase, Phase::Cancelled | Phase::Succeeded), "cancel at round {at}: {phase:?}");
        assert_whole(&world, phase, &format!("cancel at round {at}"));
        ends.push(phase);
    }
    assert!(ends.contains(&Phase::Cancelled) && ends.contains(&Phase::Succeeded));
}

/// A stop that is on its way when the migration is cancelled must not be the last word.
#[test]
fn cancelled_while_a_stop_is_on_its_way_the_start_field_is_given_back_after_it() {
    for at in 0..60 {
        let mut world = asked();
        world.faults.slow_starts = 4;
        for _ in 0..at {
            world.round();
        }
        world.spec("m").cancelled = true;
        let phase = world.run(ROUNDS, "m");
        for _ in 0..20 {
            world.round();
        }
        assert!(matches!(phase, Phase::Cancelled | Phase::Succeeded), "cancel at round {at}: {phase:?}");
        assert_whole(&world, phase, &format!("cancel at round {at}"));
    }
}

#[test]
fn an_object_deleted_in_the_middle_ends_whole() {
    for at in 0..60 {
        let mut world = asked();
        for _ in 0..at {
            world.round();
        }
        world.delete("m");
        for _ in 0..ROUNDS {
            world.round();
        }
        let vm = &world.fleet.vms[&key("vm")];
        assert!(vm.instance.is_some(), "deleted at round {at}: the VM does not run");
        assert_eq!(vm.start, SavedStart::WukongStartStrategy(None), "deleted at round {at}");
    }
}

/// An agent answers a repeated order id with the old result: the copy would be taken for made. (The model refuses an id
/// that was used before.)
#[test]
fn another_migration_of_the_same_name_orders_copies_of_its_own() {
    let mut world = asked();
    world.spec("m").pre_copy_only = true;
    for _ in 0..ROUNDS {
        world.round();
    }
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
        for _ in 0..at {
            world.round();
        }
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
        for _ in 0..at {
            world.round();
        }
        let record = world.store.get(&key("m")).cloned();
        world.ask("m", to_node("vm", "n1"));
        world.store.extend(record.map(|record| (key("m"), record)));
        world.take_over();
        let uid = world.requests.migrations[&key("m")].uid.clone();
        for _ in 0..ROUNDS {
            world.round();
        }
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
        for _ in 0..at {
            world.round();
        }
        world.delete("m");
        world.round();
        world.list_again();
        for _ in 0..ROUNDS {
            world.round();
        }
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
    for _ in 0..400 {
        world.round();
    }
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
fn copies_that_fail_are_tried_again_and_then_given_up() {
    let mut world = asked();
    world.faults.failing_copies = 2;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);

    let mut world = asked();
    world.faults.failing_copies = 1000;
    let phase = world.run(ROUNDS, "m");
    assert_eq!(phase, Phase::RolledBack);
    assert_eq!(world.store[&key("m")].reason.as_deref(), Some("CopyFailed"));
    assert_whole(&world, phase, "hopeless copy");
    assert!(!world.fleet.volumes.keys().any(|name| name.0.starts_with("smst-")), "a volume object leaked");
}

/// What somebody does to the VM in the middle of a migration.
#[derive(Clone, Copy, Debug)]
enum Start {
    /// Started, for everybody to see.
    Seen,
    /// Started and stopped, between two looks.
    Unseen,
    /// Started and stopped while nobody leads; another leader goes on.
    UnderNoLeader,
    /// Started while nobody leads; another leader finds it running.
    FoundByTheNext,
}

impl Start {
    const ALL: [Self; 4] = [Self::Seen, Self::Unseen, Self::UnderNoLeader, Self::FoundByTheNext];

    fn happen(self, world: &mut World) {
        match self {
            Self::Seen => _ = world.set_run("vm", RunStrategy::Always),
            Self::Unseen => world.run_unseen("vm"),
            Self::UnderNoLeader => {
                world.run_unseen("vm");
                world.take_over();
            }
            Self::FoundByTheNext => {
                world.set_run("vm", RunStrategy::Always);
                world.unseen(2);
                world.take_over();
            }
        }
    }
}

/// To another node, or to network storage, which the old node reaches beside its old disks.
fn destinations() -> [(super::MigrationSpec, bool); 4] {
    let (node, class) = (to_node("vm", "n3"), to_class("vm", "nfs"));
    [(node.clone(), false), (node, true), (class.clone(), false), (class, true)]
}

/// The model's guest tells when it runs on a mix, or misses one of its writes.
#[test]
fn a_vm_started_at_any_round_under_any_leader_ends_whole_with_all_its_writes() {
    for (destination, wukong_recreates) in destinations() {
        for start in Start::ALL {
            for at in 0..60 {
                let mut world = World::new();
                world.faults.wukong_recreates = wukong_recreates;
                world.ask("m", destination.clone());
                for _ in 0..at {
                    world.round();
                }
                start.happen(&mut world);
                let phase = world.run(ROUNDS, "m");
                world.round();
                assert_eq!(phase, Phase::Succeeded, "{start:?} at round {at}: {:?}", world.store);
                assert_whole(&world, phase, &format!("{start:?} at round {at} of {destination:?}"));
            }
        }
    }
}

#[test]
fn a_vm_started_while_everything_is_put_back_ends_whole_with_all_its_writes() {
    for (destination, wukong_recreates) in destinations() {
        for start in Start::ALL {
            for at in 0..40 {
                for later in 0..20 {
                    let mut world = World::new();
                    world.faults.wukong_recreates = wukong_recreates;
                    world.ask("m", destination.clone());
                    for _ in 0..at {
                        world.round();
                    }
                    world.spec("m").cancelled = true;
                    for _ in 0..later {
                        world.round();
                    }
                    start.happen(&mut world);
                    let phase = world.run(ROUNDS, "m");
                    world.round();
                    world.round();
                    let what = format!("cancelled at round {at}, {start:?} {later} rounds later");
                    assert!(matches!(phase, Phase::Cancelled | Phase::Succeeded), "{what}: {phase:?}");
                    assert_whole(&world, phase, &what);
                }
            }
        }
    }
}

/// The VM that nobody may start in the middle: somebody wants it to run from now on.
#[test]
fn a_halted_vm_that_is_started_in_the_middle_runs_when_its_disks_are_whole() {
    for at in 0..60 {
        let mut world = asked();
        world.set_run("vm", RunStrategy::Halted);
        world.unseen(1);
        for _ in 0..at {
            world.round();
        }
        world.set_run("vm", RunStrategy::Always);
        let phase = world.run(ROUNDS, "m");
        world.round();
        assert_eq!(phase, Phase::Succeeded, "started at round {at}");
        assert_whole(&world, phase, &format!("started at round {at}"));
    }
}

/// By it the admission policy knows a claim that is locked, and whom to name; afterwards it is as it was.
#[test]
fn a_claim_is_marked_as_long_as_it_is_locked() {
    for cancelled in [false, true] {
        let mut world = asked();
        let before: Vec<_> =
            ["vm-system", "vm-data"].map(|name| world.fleet.claims[&key(name)].labels.clone()).into();
        let mut locked = 0;
        while !world.phase("m").is_final() {
            world.round();
            if world.phase("m") == Phase::Verifying {
                world.spec("m").cancelled = cancelled;
            }
            for claim in world.fleet.claims.values() {
                let holds = claim.volume.as_ref().is_some_and(|volume| volume.0.ends_with("-lock"));
                assert_eq!(claim.labels.contains_key(LOCK_LABEL), holds, "{claim:?}");
                assert_eq!(
                    claim.annotations.get(LOCKED_BY).map(String::as_str),
                    holds.then_some("m"),
                    "{claim:?}"
                );
                locked += usize::from(holds);
            }
        }
        assert!(locked > 0, "nothing was ever locked");
        let after: Vec<_> =
            ["vm-system", "vm-data"].map(|name| world.fleet.claims[&key(name)].labels.clone()).into();
        assert_eq!(after, before);
    }
}

#[test]
fn a_lock_that_somebody_takes_away_is_put_back_and_everything_copied_again() {
    let mut world = asked();
    while world.phase("m") != Phase::Verifying {
        world.round();
    }
    let orders = |world: &World| {
        let pull = |effect: &&Effect| matches!(effect, Effect::Order { .. });
        world.effects.iter().filter(pull).count()
    };
    let before = orders(&world);
    world.fleet.claims.remove(&key("vm-data"));
    let phase = world.run(ROUNDS, "m");
    world.round();
    assert_eq!(phase, Phase::Succeeded);
    assert_eq!(orders(&world), before + 2, "the last copy was not made again");
    assert_whole(&world, phase, "a lock taken away");
}

#[test]
fn a_lock_that_is_taken_away_again_and_again_ends_the_migration() {
    let mut world = asked();
    for _ in 0..ROUNDS {
        if world.phase("m") == Phase::Verifying {
            world.fleet.claims.remove(&key("vm-data"));
        }
        world.round();
    }
    assert_eq!(world.phase("m"), Phase::RolledBack, "{:?}", world.store);
    assert_eq!(world.store[&key("m")].reason.as_deref(), Some("LockBroken"));
    assert_whole(&world, Phase::RolledBack, "locks taken away again and again");
}

/// The API server lets a claim that a pod uses go when the pod does, and not before.
#[test]
fn a_claim_that_is_going_while_the_vm_runs_is_waited_for_and_the_vm_stopped() {
    let mut world = asked();
    while world.phase("m") != Phase::Stopping {
        world.round();
    }
    // Started at the last moment; the pod was scheduled before the deletion arrived.
    world.fleet.claims.get_mut(&key("vm-data")).expect("there").deleting = true;
    world.spec("m").cancelled = true;
    for _ in 0..20 {
        world.set_run("vm", RunStrategy::Always);
        world.round();
    }
    assert_eq!(world.phase("m"), Phase::RollingBack, "it ended with a claim that is about to go");
    let stops = world.effects.iter().filter(|effect| matches!(effect, Effect::Act(Action::StopVm { .. })));
    assert!(stops.count() > 0, "nobody stops the VM");
}

/// After the start nobody can tell whether a VM that does not run now has run: its new volumes may have its writes.
#[test]
fn what_may_have_run_on_its_new_volumes_while_nobody_looked_is_not_put_back() {
    let mut world = asked();
    while world.phase("m") != Phase::Confirming {
        world.round();
    }
    world.unseen(2);
    world.set_run("vm", RunStrategy::Halted);
    world.unseen(1);
    world.take_over();
    assert_eq!(world.run(ROUNDS, "m"), Phase::Failed);
    assert_eq!(world.store[&key("m")].reason.as_deref(), Some("NotScheduled"));
    world.set_run("vm", RunStrategy::Always);
    world.round();
    assert_whole(&world, Phase::Succeeded, "kept on its new volumes");
}

#[test]
fn pre_copy_only_waits_for_a_word() {
    let mut world = asked();
    world.spec("m").pre_copy_only = true;
    for _ in 0..ROUNDS {
        world.round();
    }
    assert_eq!(world.phase("m"), Phase::PreCopying);
    assert!(world.machine.waits_for_word(&key("m")));
    assert!(world.fleet.vms[&key("vm")].instance.is_some(), "the VM was stopped without a word");
    world.spec("m").pre_copy_only = false;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
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

#[test]
fn a_second_migration_of_the_same_vm_is_refused() {
    // Before the first one has done anything, and while it has the claims locked.
    for at in [1, 20] {
        let mut world = asked();
        for _ in 0..at {
            world.round();
        }
        world.ask("second", to_node("vm", "n1"));
        assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
        assert_eq!(world.phase("second"), Phase::Failed);
        assert_eq!(world.store[&key("second")].reason.as_deref(), Some("AlreadyMigrating"), "at {at}");
    }
}

type Spoil = fn(&mut World);

#[test]
fn refuses_with_a_reason_and_touches_nothing() {
    let table: [(&str, Spoil); 16] = [
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
        ("BlockModeNotSupported", |world| {
            world.fleet.volumes.get_mut(&"pv-vm-data".into()).expect("there").mode = VolumeMode::Block;
        }),
        ("DataVolumeMissing", |world| {
            world.fleet.claims.get_mut(&key("vm-system")).expect("there").data_volume =
                Some("vm-system".into());
        }),
        ("DataVolumeImporting", |world| of_data_volume(world, "ImportInProgress")),
        ("DestinationTooSmall", |world| {
            world.fleet.reports.get_mut(&"n3".into()).expect("there").roots[0].available_bytes = 6 << 30;
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
    let spec = super::MigrationSpec { vm: None, claim: Some("spare".into()), ..to_node("", "n1") };
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
        events in prop::collection::vec((0usize..12, 0u8..8), 0..12),
        to_class: bool,
        recreates: bool,
    ) {
        let mut world = asked();
        if to_class {
            world.ask("m", super::model::to_class("vm", "nfs"));
        }
        world.faults.wukong_recreates = recreates;
        for (rounds, event) in events {
            for _ in 0..rounds {
                world.round();
            }
            match event {
                0 => world.take_over(),
                1 => world.faults.failing_copies += 1,
                2 => Start::Seen.happen(&mut world),
                3 => world.spec("m").cancelled = true,
                4 => world.list_again(),
                5 => Start::Unseen.happen(&mut world),
                6 => Start::UnderNoLeader.happen(&mut world),
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
