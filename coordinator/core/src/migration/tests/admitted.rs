//! What the API server would refuse while the VM stands still is heard of while it runs: policies, and quotas, which count
//! the claims that go as well.

use super::*;
use crate::migration::{Check, Quota};

const GIB: u64 = 1 << 30;

fn quota(world: &mut World, resource: &str, hard: u64) {
    world.quotas = vec![Quota {
        name: "disks".into(),
        hard: [(resource.to_owned(), hard)].into(),
        used: std::collections::BTreeMap::new(),
    }];
}

fn reason(world: &World) -> Option<&str> {
    world.store[&key("m")].reason.as_deref()
}

fn check<'a>(world: &'a World, name: &str) -> Option<&'a Check> {
    world.store[&key("m")].checks.iter().find(|check| check.name == name)
}

fn never_stopped(world: &World) -> bool {
    !world.effects.iter().any(|effect| matches!(effect, Effect::Act(Action::StopVm { .. })))
}

#[test]
fn a_claim_that_would_be_refused_refuses_the_migration() {
    let mut world = asked();
    world.faults.claims_not_admitted = true;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Failed);
    assert_eq!(reason(&world), Some("ClaimWouldBeRefused"));
    assert!(world.store[&key("m")].message.contains("a policy says no"));
    assert!(check(&world, "ClaimsAdmitted").is_some_and(|check| !check.passed));
    assert!(never_stopped(&world));
    assert_whole(&world, Phase::Failed, "a policy");
}

/// The policy came while the disks were copied: the VM has run all along.
#[test]
fn it_is_asked_again_right_before_the_stop() {
    let mut world = asked();
    world.spec("m").pre_copy_only = true;
    world.rounds(60);
    assert_eq!(world.phase("m"), Phase::PreCopying);
    world.faults.claims_not_admitted = true;
    world.spec("m").pre_copy_only = false;
    assert_eq!(world.run(ROUNDS, "m"), Phase::RolledBack);
    assert_eq!(reason(&world), Some("ClaimWouldBeRefused"));
    assert!(never_stopped(&world));
    assert_whole(&world, Phase::RolledBack, "a policy that came later");
}

/// The model's API server counts as a real one does: the migration goes all its way under the quota.
#[test]
fn a_quota_that_is_exactly_full_lets_the_disks_move() {
    for (resource, hard) in [
        ("persistentvolumeclaims", 2),
        ("requests.storage", 8 * GIB),
        ("local-path.storageclass.storage.k8s.io/requests.storage", 8 * GIB),
    ] {
        let mut world = asked();
        quota(&mut world, resource, hard);
        assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded, "{resource}: {:?}", world.store);
        assert!(check(&world, "QuotasHold").is_some_and(|check| check.passed));
        assert_whole(&world, Phase::Succeeded, resource);
    }
}

#[test]
fn a_quota_of_the_destinations_class_counts_all_disks() {
    let bytes = "nfs.storageclass.storage.k8s.io/requests.storage";
    for (hard, end) in [(8 * GIB, Phase::Succeeded), (8 * GIB - 1, Phase::Failed)] {
        let mut world = World::new();
        world.ask("m", to_class("vm", "nfs"));
        quota(&mut world, bytes, hard);
        assert_eq!(world.run(ROUNDS, "m"), end, "{hard}: {:?}", world.store);
        assert_whole(&world, end, bytes);
        if end == Phase::Failed {
            assert_eq!(reason(&world), Some("QuotaWouldBeExceeded"));
            assert!(never_stopped(&world));
        }
    }
}

/// Somebody has lowered it below what is there: not even the lock could be made.
#[test]
fn a_quota_that_is_over_its_limit_keeps_the_vm_running() {
    for resource in
        ["persistentvolumeclaims", "local-path.storageclass.storage.k8s.io/persistentvolumeclaims"]
    {
        let mut world = World::new();
        world.ask("m", to_class("vm", "nfs"));
        quota(&mut world, resource, 1);
        assert_eq!(world.run(ROUNDS, "m"), Phase::Failed, "{resource}");
        assert_eq!(reason(&world), Some("QuotaWouldBeExceeded"));
        assert!(never_stopped(&world));
    }
}
