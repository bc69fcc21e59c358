//! A Job of the user's own as the question to the guest: asked for by name, and refused before the VM is stopped where it
//! cannot be made.

use super::*;
use crate::migration::Check;

fn asked_for_a_job() -> World {
    let mut world = asked();
    world.spec("m").probe = Some("job:check-orders".parse().expect("a question"));
    world
}

fn until(world: &mut World, phase: Phase) {
    while world.phase("m") != phase {
        world.round();
    }
}

fn check<'a>(world: &'a World, name: &str) -> Option<&'a Check> {
    world.store[&key("m")].checks.iter().find(|check| check.name == name)
}

fn reason(world: &World) -> Option<&str> {
    world.store[&key("m")].reason.as_deref()
}

fn dry_runs(world: &World) -> usize {
    world.effects.iter().filter(|effect| matches!(effect, Effect::DryRun(_))).count()
}

fn never_stopped(world: &World) -> bool {
    !world.effects.iter().any(|effect| matches!(effect, Effect::Act(Action::StopVm { .. })))
}

#[test]
fn a_job_that_ends_well_is_an_answer() {
    let mut world = asked_for_a_job();
    world.faults.failing_answers = 3;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    assert!(check(&world, "ProbeJobAdmitted").is_some_and(|check| check.passed));
    assert!(check(&world, "ProbeAnswered").is_some_and(|check| check.passed));
    assert_eq!((reason(&world), dry_runs(&world)), (None, 2), "asked first, and again before the stop");
    assert_whole(&world, Phase::Succeeded, "a Job");
}

/// Its failure is told at once: it is made once, and is not made again.
#[test]
fn a_job_that_fails_is_not_waited_for() {
    let mut world = asked_for_a_job();
    world.faults.job_fails = true;
    until(&mut world, Phase::Confirming);
    let begun = world.now;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    assert!(world.now.saturating_sub(begun) < Duration::from_secs(30));
    assert_eq!(reason(&world), Some("GuestNotConfirmed"));
    let told = check(&world, "ProbeAnswered").expect("a check");
    assert!(!told.passed && told.message.contains("Job web-1 has failed"), "{told:?}");
    assert_whole(&world, Phase::Succeeded, "a Job that fails");
}

#[test]
fn a_job_that_cannot_be_made_refuses_the_migration_before_anything_is_touched() {
    let mut world = asked_for_a_job();
    world.faults.jobs_refused = true;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Failed);
    let told = check(&world, "ProbeJobAdmitted").expect("a check");
    assert!(!told.passed && told.message.contains("jobs.batch is forbidden"), "{told:?}");
    assert_eq!(reason(&world), Some("ProbeJobRefused"));
    assert!(never_stopped(&world) && world.store[&key("m")].disks.is_empty());
    assert_whole(&world, Phase::Failed, "no Job");
}

/// While the copy was under way, somebody deleted the template or took the right away.
#[test]
fn one_that_cannot_be_made_any_more_is_heard_of_before_the_stop() {
    let mut world = asked_for_a_job();
    until(&mut world, Phase::PreCopying);
    world.faults.jobs_refused = true;
    assert_eq!(world.run(ROUNDS, "m"), Phase::RolledBack);
    assert_eq!(reason(&world), Some("ProbeJobRefused"));
    assert!(never_stopped(&world));
    assert_whole(&world, Phase::RolledBack, "no Job any more");
}

/// What cannot be said is asked again, for a while.
#[test]
fn an_api_server_that_cannot_say_is_asked_again_and_not_for_ever() {
    let mut world = asked_for_a_job();
    (world.faults.failing_dry_runs, world.faults.lost_dry_runs) = (2, 1);
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    assert_eq!(dry_runs(&world), 5);

    let mut never = asked_for_a_job();
    never.faults.failing_dry_runs = u32::MAX;
    assert_eq!(never.run(ROUNDS, "m"), Phase::Failed);
    assert_eq!(reason(&never), Some("DryRunFailed"));
    assert!(never.store[&key("m")].message.contains("a webhook does not answer"));

    let mut later = asked_for_a_job();
    until(&mut later, Phase::PreCopying);
    later.faults.lost_dry_runs = u32::MAX;
    assert_eq!(later.run(ROUNDS, "m"), Phase::RolledBack);
    assert_eq!(reason(&later), Some("DryRunFailed"));
    assert!(never_stopped(&later));
}

#[test]
fn a_new_leader_at_every_round_asks_again() {
    for crash in 0..60 {
        let mut world = asked_for_a_job();
        (world.faults.failing_answers, world.faults.failing_dry_runs) = (2, 1);
        world.rounds(crash);
        world.take_over();
        assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded, "crash at round {crash}");
        assert_whole(&world, Phase::Succeeded, &format!("crash at round {crash}"));
        assert!(check(&world, "ProbeAnswered").is_some_and(|check| check.passed), "crash at round {crash}");
    }
}
