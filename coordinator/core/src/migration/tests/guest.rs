//! What of a guest is waited for after the move, and what is said where it does not come.

use super::*;

/// It runs on its new volumes, and its guest has told nothing.
fn started_silent() -> World {
    let mut world = asked();
    while world.phase("m") != Phase::Stopping {
        world.round();
    }
    world.faults.guest_silent = true;
    while world.phase("m") != Phase::Confirming {
        world.round();
    }
    world
}

/// Its agent and its address come later than the start: waited for, and they are no part of the downtime.
#[test]
fn what_the_guest_had_before_is_waited_for() {
    let mut world = started_silent();
    world.rounds(60);
    assert_eq!(world.phase("m"), Phase::Confirming, "the guest is not there yet");
    let guest = world.fleet.vms.get_mut(&key("vm")).and_then(|vm| vm.instance.as_mut()).expect("it runs");
    (guest.agent_connected, guest.has_address) = (true, true);
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    let record = &world.store[&key("m")];
    for name in ["VmRunning", "DisksAttached", "AddressReported", "GuestAgentConnected"] {
        assert!(
            record.checks.iter().any(|check| check.name == name && check.passed),
            "{name}: {:?}",
            record.checks
        );
    }
    assert_eq!(record.reason, None);
    let downtime = world.store[&key("m")].downtime_ms.expect("it was stopped");
    assert!(downtime < 60_000, "the guest's boot is counted: {downtime:?}");
}

/// It has written to its new volumes: whoever stops it before its guest was seen does not get the old ones back.
#[test]
fn a_vm_that_ran_and_was_stopped_before_its_guest_was_seen_is_not_put_back() {
    let mut world = started_silent();
    world.rounds(5);
    assert!(world.fleet.vms[&key("vm")].instance.is_some(), "it runs");
    world.set_run("vm", crate::fleet::RunStrategy::Halted);
    let phase = world.run(900, "m");
    let record = &world.store[&key("m")];
    assert_eq!((phase, record.reason.as_deref()), (Phase::Failed, Some("NotRunning")), "{record:?}");
    for claim in ["vm-system", "vm-data"] {
        let volume = &world.fleet.claims[&key(claim)].volume.as_ref().expect("bound").0;
        assert!(volume.starts_with("smst-"), "{claim} is on {volume}, without what the VM has written");
    }
}

/// The data is whole and the VM runs: the migration has succeeded, and a person hears of what is missing.
#[test]
fn a_guest_that_stays_silent_is_told_of() {
    for crash in [false, true] {
        let mut world = asked();
        while world.phase("m") != Phase::Stopping {
            world.round();
        }
        world.faults.guest_silent = true;
        if crash {
            while world.phase("m") != Phase::Confirming {
                world.round();
            }
            world.take_over();
        }
        assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
        let record = &world.store[&key("m")];
        assert_eq!(record.reason.as_deref(), Some("GuestNotConfirmed"));
        assert!(record.message.contains("the guest agent answered before"), "{}", record.message);
        let failed: Vec<_> =
            record.checks.iter().filter(|check| !check.passed).map(|check| &check.name).collect();
        assert_eq!(failed, ["AddressReported", "GuestAgentConnected"]);
        world.round();
        assert_whole(&world, Phase::Succeeded, "a silent guest");
    }
}
