//! Copies that fail, that cannot read everything, that wait for a word.

use super::*;
use crate::migration::Unreadable;

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

/// Nothing is made up unless somebody says so, and then it is told, by check, message and Event.
#[test]
fn what_a_dying_disk_cannot_read_becomes_zeroes_by_a_word_alone() {
    let mut world = asked();
    world.faults.bad_sectors = true;
    let phase = world.run(ROUNDS, "m");
    assert_eq!(phase, Phase::RolledBack);
    let record = &world.store[&key("m")];
    assert!(record.message.contains("disk.img bytes 0..4096"), "{}", record.message);
    assert!(record.message.contains("spec.unreadable Zeroes"), "{}", record.message);
    assert_whole(&world, phase, "bad sectors");

    let mut world = asked();
    world.faults.bad_sectors = true;
    world.spec("m").unreadable = Unreadable::Zeroes;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    let record = &world.store[&key("m")];
    assert_eq!(record.reason, None);
    assert!(record.message.contains("vm-system: 4096 bytes cannot be read: disk.img"), "{}", record.message);
    let all_read: Vec<bool> =
        record.checks.iter().filter(|check| check.name == "AllRead").map(|c| c.passed).collect();
    assert_eq!(all_read, [false, false]);
    let told = |effect: &&Effect| {
        matches!(effect, Effect::Notify(Notice { severity: Severity::Warning, reason: "MigrationSucceeded", message, .. })
            if *message == record.message)
    };
    assert_eq!(world.effects.iter().filter(told).count(), 1);
}

#[test]
fn pre_copy_only_waits_for_a_word() {
    let mut world = asked();
    world.spec("m").pre_copy_only = true;
    world.rounds(ROUNDS);
    assert_eq!(world.phase("m"), Phase::PreCopying);
    assert!(world.machine.waits_for_word(&key("m")));
    assert!(world.fleet.vms[&key("vm")].instance.is_some(), "the VM was stopped without a word");
    world.spec("m").pre_copy_only = false;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
}
