//! A user's own question to the guest: asked at last, and again, by whoever leads; nothing of the old disks goes while it
//! stands unanswered.

use super::*;
use crate::fleet::RunStrategy;
use crate::io::Input;
use crate::migration::{Check, GuestProbe, GuestQuestion, OldVolume};
use crate::view::RemovalView;

fn probe(text: &str) -> GuestProbe {
    text.parse().expect("a question")
}

fn asked_to_probe() -> World {
    let mut world = asked();
    world.spec("m").probe = Some(probe("tcp:5432"));
    world
}

fn until(world: &mut World, phase: Phase) {
    while world.phase("m") != phase {
        world.round();
    }
}

fn answered(world: &World) -> Option<&Check> {
    world.store[&key("m")].checks.iter().find(|check| check.name == "ProbeAnswered")
}

fn questions(world: &World) -> Vec<GuestQuestion> {
    let asked = world.effects.iter().filter_map(|effect| match effect {
        Effect::AskGuest { question, .. } => Some(question.clone()),
        _ => None,
    });
    asked.collect()
}

fn reason(world: &World) -> Option<&str> {
    world.store[&key("m")].reason.as_deref()
}

#[test]
fn a_guest_that_answers_at_once_is_asked_once() {
    let mut world = asked_to_probe();
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    let check = answered(&world).expect("a check");
    assert_eq!((check.passed, reason(&world)), (true, None));
    assert_eq!(check.message, "the guest answers tcp:5432 at 10.42.0.51: it accepts a connection");
    assert_eq!(world.store[&key("m")].checks.last(), Some(check), "it is asked last");
    world.rounds(30);
    assert_eq!(questions(&world).len(), 1);
    assert_whole(&world, Phase::Succeeded, "answered at once");
}

#[test]
fn nobody_is_asked_where_nobody_wants_to_know() {
    let mut world = asked();
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    assert!(questions(&world).is_empty() && answered(&world).is_none());
}

#[test]
fn a_guest_that_takes_its_time_is_asked_every_few_seconds() {
    let mut world = asked_to_probe();
    (world.faults.failing_answers, world.faults.lost_answers) = (6, 2);
    until(&mut world, Phase::Confirming);
    let begun = world.now;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    assert_eq!(reason(&world), None);
    let took = world.now.saturating_sub(begun);
    assert_eq!(questions(&world).len(), 9);
    assert!((40..70).contains(&took.as_secs()), "{took:?}");
    let downtime = world.store[&key("m")].downtime_ms.expect("it was stopped");
    assert!(downtime < 30_000, "the wait for an answer is counted: {downtime:?}");
}

/// What it had before comes first: a guest that has not booted is not asked.
#[test]
fn it_is_asked_once_it_is_as_it_was() {
    let mut world = asked_to_probe();
    until(&mut world, Phase::Stopping);
    world.faults.guest_silent = true;
    until(&mut world, Phase::Confirming);
    world.rounds(60);
    assert!(questions(&world).is_empty());
    let guest = world.fleet.vms.get_mut(&key("vm")).and_then(|vm| vm.instance.as_mut()).expect("it runs");
    (guest.agent_connected, guest.has_address) = (true, true);
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    assert_eq!((questions(&world).len(), reason(&world)), (1, None));
}

/// The data is whole: it has succeeded, a person hears of it, and the old volumes stay until that person has looked.
#[test]
fn a_guest_that_never_answers_is_told_of_and_keeps_the_old_volumes() {
    for crash in [false, true] {
        let mut world = asked_to_probe();
        world.faults.failing_answers = u32::MAX;
        until(&mut world, Phase::Confirming);
        if crash {
            world.rounds(20);
            world.take_over();
        }
        assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
        world.round();
        assert_whole(&world, Phase::Succeeded, "never answered");
        assert_eq!(reason(&world), Some("GuestNotConfirmed"));
        let check = answered(&world).expect("a check");
        let told = "the guest does not answer tcp:5432 at 10.42.0.51: connection refused";
        assert_eq!((check.passed, check.message.as_str()), (false, told));
        assert!(world.store[&key("m")].message.contains(told));
        let asked = questions(&world).len();
        assert!(asked > 100, "{asked}");

        world.faults.failing_answers = 0;
        world.spec("m").remove_old = true;
        world.rounds(60);
        assert_eq!(questions(&world).len(), asked, "asked after the end");
        let removal = world.machine.views()[&key("m")].removal.clone();
        assert!(
            matches!(&removal, Some(RemovalView::Kept(why)) if why.reason == "ProbeNotAnswered"),
            "{removal:?}"
        );
        let kept = |world: &World| {
            world.store[&key("m")].disks.iter().all(|disk| disk.old_volume == OldVolume::Kept)
        };
        assert!(kept(&world));
        // Somebody has looked.
        world.spec("m").probe = None;
        world.rounds(60);
        assert_eq!(world.machine.views()[&key("m")].removal, Some(RemovalView::Removed));
    }
}

#[test]
fn one_that_has_answered_lets_the_old_volumes_go() {
    let mut world = asked_to_probe();
    world.spec("m").remove_old = true;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    world.rounds(60);
    assert_eq!(world.machine.views()[&key("m")].removal, Some(RemovalView::Removed));
}

#[test]
fn a_new_leader_at_every_round_asks_again() {
    for crash in 0..60 {
        let mut world = asked_to_probe();
        world.faults.failing_answers = 3;
        world.rounds(crash);
        world.take_over();
        assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded, "crash at round {crash}");
        assert_whole(&world, Phase::Succeeded, &format!("crash at round {crash}"));
        assert!(answered(&world).is_some_and(|check| check.passed), "crash at round {crash}");
        assert_eq!(reason(&world), None, "crash at round {crash}");
    }
}

#[test]
fn an_address_that_is_not_known_is_waited_for_and_told_of() {
    let mut world = asked_to_probe();
    world.faults.no_addresses = true;
    until(&mut world, Phase::Confirming);
    world.rounds(60);
    assert_eq!((world.phase("m"), questions(&world).len()), (Phase::Confirming, 0));
    let mut never = asked_to_probe();
    never.faults.no_addresses = true;
    assert_eq!(never.run(ROUNDS, "m"), Phase::Succeeded);
    assert_eq!(reason(&never), Some("GuestNotConfirmed"));
    let check = answered(&never).expect("a check");
    assert!(
        !check.passed && check.message.contains("no address of its launcher pod on node n3"),
        "{check:?}"
    );

    world.faults.no_addresses = false;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    assert_eq!(reason(&world), None);
}

/// It is started again while a question is out: the answer was that of a guest that is gone.
#[test]
fn an_answer_of_an_earlier_run_is_none_of_this_one() {
    let mut world = asked_to_probe();
    world.faults.lost_answers = 1;
    until(&mut world, Phase::Confirming);
    while questions(&world).is_empty() {
        world.round();
    }
    let before = world.set_run("vm", RunStrategy::Halted);
    world.unseen(2);
    world.set_run("vm", before);
    world.unseen(1);
    world.faults.failing_answers = 1;
    let question = questions(&world).remove(0);
    world.input(Input::GuestAnswered { question: question.clone(), answer: Ok("open".into()) });
    world.rounds(2);
    assert_eq!(world.phase("m"), Phase::Confirming);
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    let asked = questions(&world);
    assert_eq!(asked.len(), 3);
    assert!(asked[1..].iter().all(|other| other.instance != question.instance), "{asked:?}");
}

/// Late answers, to a migration that was replaced and of an earlier term, at every round: nothing but the question that is
/// out now is answered by them.
#[test]
fn stale_answers_confirm_nothing() {
    let mut first = World::new();
    first.ask("m", to_node("vm", "n1"));
    first.spec("m").probe = Some(probe("tcp:5432"));
    assert_eq!(first.run(ROUNDS, "m"), Phase::Succeeded);
    let stale = questions(&first).remove(0);
    first.ask("m", to_node("vm", "n3"));
    first.spec("m").probe = Some(probe("tcp:5432"));
    first.faults.failing_answers = u32::MAX;
    for round in 0..100 {
        if round % 30 == 0 {
            first.take_over();
        }
        first.round();
        let answer = Ok("open".into());
        first.input(Input::GuestAnswered { question: stale.clone(), answer });
    }
    assert_eq!(first.phase("m"), Phase::Confirming);
    assert_eq!(first.run(ROUNDS, "m"), Phase::Succeeded);
    assert_eq!(reason(&first), Some("GuestNotConfirmed"));
    assert!(answered(&first).is_some_and(|check| !check.passed));

    let mut none = World::new();
    none.input(Input::GuestAnswered { question: stale, answer: Ok("open".into()) });
    none.rounds(3);
    assert!(none.store.is_empty());
}

/// People change their minds while it is under way.
#[test]
fn the_question_may_change_and_go_away() {
    let mut world = asked_to_probe();
    world.faults.failing_answers = u32::MAX;
    until(&mut world, Phase::Confirming);
    world.rounds(12);
    world.spec("m").probe = Some(probe("http:80/ready"));
    world.rounds(12);
    assert_eq!(questions(&world).last().map(|question| &question.probe), Some(&probe("http:80/ready")));
    world.spec("m").probe = None;
    assert_eq!(world.run(5, "m"), Phase::Succeeded);
    assert_eq!((reason(&world), answered(&world)), (None, None));
}

/// Nobody starts it: there is no guest to ask, and nobody says that there was an answer.
#[test]
fn a_vm_that_stands_still_is_not_asked() {
    let mut world = World::new();
    world.set_run("vm", RunStrategy::Halted);
    world.rounds(2);
    world.ask("m", to_node("vm", "n3"));
    world.spec("m").probe = Some(probe("tcp:22"));
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded, "{:?}", world.store);
    assert!(questions(&world).is_empty());
    let check = answered(&world).expect("a check");
    assert!(!check.passed && check.message.contains("was not running"), "{check:?}");
    assert_eq!(reason(&world), None);
}

/// Nobody would learn of the answer, and the next one of its name waits.
#[test]
fn one_whose_object_is_gone_asks_no_more() {
    let mut world = asked_to_probe();
    world.faults.failing_answers = u32::MAX;
    until(&mut world, Phase::Confirming);
    world.rounds(10);
    let asked = questions(&world).len();
    world.ask("m", to_node("vm", "n1"));
    assert_eq!(world.run(60, "m"), Phase::Succeeded, "it was waited for");
    assert_eq!(questions(&world).len(), asked);
}
