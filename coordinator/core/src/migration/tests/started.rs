//! A VM that somebody starts in the middle: it never runs on a mix of old and new disks, and no write of it is lost.

use super::{ROUNDS, asked, assert_whole};
use crate::fleet::RunStrategy;
use crate::io::{Action, Effect, Order};
use crate::migration::model::{World, key, to_class, to_node};
use crate::migration::{LOCK_LABEL, LOCKED_BY, MigrationSpec, Phase};

/// What somebody does to the VM in the middle of a migration.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
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

    pub fn happen(self, world: &mut World) {
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
fn destinations() -> [(MigrationSpec, bool); 4] {
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
                world.rounds(at);
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
                    world.rounds(at);
                    world.spec("m").cancelled = true;
                    world.rounds(later);
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
        world.rounds(at);
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
        let pull = |effect: &&Effect| matches!(effect, Effect::Order { order: Order::Pull { .. }, .. });
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
