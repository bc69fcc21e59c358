//! A disk that starts to fail is evacuated by itself: after a hold, by two sources or one that leaves no doubt, one at a time.

use super::*;

fn automatic(dry_run: bool) -> Policy {
    let evacuation = EvacuationPolicySpec {
        automatic: true,
        dry_run,
        hold_ms: 20_000,
        disruption: Disruption::Now,
        ..EvacuationPolicySpec::default()
    };
    Policy::try_from(PolicySpec { evacuation, ..PolicySpec::default() }).expect("a valid policy")
}

fn set_disk(world: &mut World, node: &str, grade: Grade, reasons: &[&str]) {
    let health = DiskHealth {
        grade,
        reasons: reasons.iter().map(|reason| (*reason).to_owned()).collect(),
        model: String::new(),
        serial: String::new(),
    };
    world.fleet.reports.get_mut(&node.into()).expect("a node").disks.insert("sda".into(), health);
}

fn with_disks(policy: Policy) -> World {
    let mut world = world();
    world.policy = policy;
    for node in ["n1", "n2", "n3"] {
        set_disk(&mut world, node, Grade::Ok, &[]);
    }
    world
}

#[test]
fn a_failing_disk_is_evacuated_by_itself_after_the_hold() {
    let mut world = with_disks(automatic(false));
    set_disk(&mut world, "n2", Grade::Failing, &["SmartFailingNow"]);
    world.rounds(18);
    assert!(world.requests.evacuations.is_empty(), "before the hold is over");
    world.rounds(10);
    assert!(world.requests.evacuations.contains_key("auto-n2-sda"));
    run(&mut world, "auto-n2-sda");
    assert_ne!(world.fleet.vms[&key("vm")].node(), Some(&"n2".into()));
}

#[test]
fn one_soft_source_is_not_enough_and_two_are() {
    let mut world = with_disks(automatic(true));
    for one in [
        &["PendingSectors", "Reallocated"],
        &["PendingSectors", "SectorDefects"],
        &["FilesystemErrorsGrowing", "SmartUnsupported"],
        &["FilesystemErrorsGrowing", "HistoricErrors"],
        &["FilesystemErrorsGrowing", "LinkErrorsGrowing"],
        &["FilesystemErrorsGrowing", "NeverHeardOf"],
    ] {
        set_disk(&mut world, "n2", Grade::Failing, one);
        world.rounds(60);
        assert!(world.requests.evacuations.is_empty(), "{one:?} is one source");
    }
    set_disk(&mut world, "n2", Grade::Failing, &["PendingSectors", "FilesystemErrorsGrowing"]);
    world.rounds(60);
    assert!(world.requests.evacuations["auto-n2-sda"].dry_run);
    assert!(world.requests.migrations.is_empty(), "a dry run moved something");
}

#[test]
fn a_disk_that_recovers_within_the_hold_is_left_alone() {
    let mut world = with_disks(automatic(false));
    for _ in 0..5 {
        set_disk(&mut world, "n2", Grade::Failing, &["SmartFailingNow"]);
        world.rounds(15);
        set_disk(&mut world, "n2", Grade::Ok, &[]);
        world.rounds(15);
    }
    assert!(world.requests.evacuations.is_empty());
}

#[test]
fn many_bad_disks_together_move_nothing_and_are_told_once() {
    let mut world = with_disks(automatic(false));
    set_disk(&mut world, "n2", Grade::Failing, &["SmartFailingNow"]);
    set_disk(&mut world, "n3", Grade::Failing, &["SmartFailingNow"]);
    world.rounds(100);
    assert!(world.requests.evacuations.is_empty());
    let told = |effect: &&Effect| matches!(effect, Effect::Notify(notice) if notice.reason == "EvacuationGuarded" && notice.severity == Severity::Critical);
    assert_eq!(world.effects.iter().filter(told).count(), 1);

    // What they shared is mended; then it comes again.
    set_disk(&mut world, "n3", Grade::Ok, &[]);
    world.rounds(60);
    assert!(world.requests.evacuations.contains_key("auto-n2-sda"), "the guard stays for ever");
    set_disk(&mut world, "n3", Grade::Failed, &["DeviceGone"]);
    world.rounds(10);
    assert_eq!(
        world.effects.iter().filter(told).count(),
        2,
        "the second time too, also by disks that are gone"
    );
}

/// What a silent agent said last may be hours old.
#[test]
fn the_last_word_of_a_silent_agent_moves_nothing() {
    let mut world = with_disks(automatic(false));
    set_disk(&mut world, "n2", Grade::Failing, &["SmartFailingNow"]);
    world.usable.remove(&"n2".into());
    world.rounds(100);
    assert!(world.requests.evacuations.is_empty());
}

#[test]
fn off_by_default() {
    let mut world = with_disks(Policy::default());
    set_disk(&mut world, "n2", Grade::Failing, &["SmartFailingNow"]);
    world.rounds(1000);
    assert!(world.requests.evacuations.is_empty());
}

/// What was only told may be done later.
#[test]
fn an_automatic_dry_run_does_not_stand_in_the_way_of_the_real_one() {
    let mut world = with_disks(automatic(true));
    set_disk(&mut world, "n2", Grade::Failing, &["SmartFailingNow"]);
    world.rounds(ROUNDS);
    let names = |world: &World| world.requests.evacuations.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&world), ["auto-n2-sda"]);
    world.policy = automatic(false);
    world.rounds(ROUNDS);
    assert_eq!(names(&world), ["auto-n2-sda", "auto-n2-sda-2"]);
    world.rounds(ROUNDS);
    assert_eq!(names(&world).len(), 2, "once is enough");
}

/// Nobody may take for done what was never looked at.
#[test]
fn of_a_disk_that_is_not_there_nothing_is_done_and_it_is_said() {
    let mut world = with_disks(Policy::default());
    world.requests.evacuations.insert("e".into(), EvacuationSpec { disk: Some("sdz".into()), ..spec("n2") });
    run(&mut world, "e");
    let message = &world.evacuation_store["e"].message;
    assert!(message.starts_with("refused: node n2 has no disk sdz") && message.contains("sda"), "{message}");
}
