//! Old volumes whose removal was asked for: gone where nothing speaks for keeping them, and else untouched.

use super::*;
use crate::fleet::{ClaimRef, DiskHealth, DiskImage, Grade, RunStrategy, VolumeSource};
use crate::io::Input;
use crate::migration::OldVolume;
use crate::names::{NodeName, VolumeName};
use crate::view::RemovalView;

/// Rounds until both old volumes are gone, if they go at all: what keeps one is looked at every ten.
const REMOVAL_ROUNDS: usize = 40;
const OLD: [&str; 2] = ["pv-vm-system", "pv-vm-data"];

/// It has succeeded, and the VM runs on its new volumes.
fn succeeded() -> World {
    let mut world = asked();
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    world.rounds(3);
    world
}

fn ask_removal(world: &mut World) {
    world.spec("m").remove_old = true;
}

fn states(world: &World) -> Vec<OldVolume> {
    world.store[&key("m")].disks.iter().map(|disk| disk.old_volume).collect()
}

/// Why it is kept, where it is.
fn kept(world: &World) -> Option<&'static str> {
    match world.machine.views()[&key("m")].removal {
        Some(RemovalView::Kept(ref why)) => Some(why.reason),
        _ => None,
    }
}

fn node(name: &str) -> NodeName {
    NodeName::from(name)
}

fn folder(old: &str) -> String {
    format!("n2:/var/lib/volumes/{old}")
}

fn there(world: &World, old: &str) -> (bool, bool) {
    (world.fleet.volumes.contains_key(&VolumeName::from(old)), world.content.contains_key(&folder(old)))
}

fn assert_removed(world: &World, what: &str) {
    assert_eq!(states(world), [OldVolume::Removed; 2], "{what}: {:?}", kept(world));
    for old in OLD {
        assert_eq!(there(world, old), (false, false), "{what}: {old}");
    }
    assert_whole(world, Phase::Succeeded, what);
    assert_eq!(world.machine.views()[&key("m")].removal, Some(RemovalView::Removed), "{what}");
}

#[test]
fn asked_for_they_go_and_the_vm_runs_on() {
    let mut world = succeeded();
    world.rounds(20);
    assert_eq!(states(&world), [OldVolume::Kept; 2]);
    ask_removal(&mut world);
    world.rounds(REMOVAL_ROUNDS);
    assert_removed(&world, "undisturbed");
    let told =
        |effect: &&Effect| matches!(effect, Effect::Notify(notice) if notice.reason == "OldVolumesRemoved");
    assert_eq!(world.effects.iter().filter(told).count(), 1);
}

/// The word may be there from the beginning: nothing goes before the end.
#[test]
fn asked_for_at_any_time_they_go_after_the_success_only() {
    for at in [0, 3, 10, 25] {
        let mut world = asked();
        world.rounds(at);
        ask_removal(&mut world);
        assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
        world.rounds(REMOVAL_ROUNDS);
        assert_removed(&world, &format!("asked in round {at}"));
        let gone = world
            .effects
            .iter()
            .position(|effect| matches!(effect, Effect::Act(Action::DeleteReleased { .. })));
        let ended = world.effects.iter().position(
            |effect| matches!(effect, Effect::Notify(notice) if notice.reason == "MigrationSucceeded"),
        );
        assert!(ended < gone, "asked in round {at}");
    }
}

#[test]
fn a_new_leader_at_every_round_finishes_it() {
    for crash in 0..16 {
        let mut world = succeeded();
        ask_removal(&mut world);
        world.rounds(crash);
        world.take_over();
        world.rounds(REMOVAL_ROUNDS);
        assert_removed(&world, &format!("new leader after {crash} rounds"));
    }
}

#[test]
fn what_was_put_back_is_never_removed() {
    let mut world = asked();
    ask_removal(&mut world);
    world.rounds(12);
    world.spec("m").cancelled = true;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Cancelled);
    world.rounds(REMOVAL_ROUNDS);
    assert_whole(&world, Phase::Cancelled, "cancelled");
    assert_eq!(kept(&world), Some("NotSucceeded"));
}

/// What speaks for keeping an old volume, and what that is called.
#[test]
fn whatever_speaks_for_keeping_one_keeps_it() {
    type Change = fn(&mut World);
    let cases: &[(Change, &str)] = &[
        (|w| _ = w.usable.remove(&node("n3")), "PresentDiskInDoubt"),
        (|w| _ = w.usable.remove(&node("n2")), "SourceNotUsable"),
        (|w| _ = w.fleet.claims.remove(&key("vm-data")), "PresentDiskInDoubt"),
        (
            |w| {
                let usage = &mut w.fleet.reports.get_mut(&node("n3")).expect("there").usage;
                for usage in usage.values_mut() {
                    usage.disk_image = DiskImage::Absent;
                }
            },
            "PresentDiskInDoubt",
        ),
        (|w| w.fleet.reports.get_mut(&node("n3")).expect("there").usage.clear(), "PresentDiskInDoubt"),
        (
            |w| {
                let sick = DiskHealth {
                    grade: Grade::Failing,
                    reasons: Vec::new(),
                    model: String::new(),
                    serial: String::new(),
                };
                w.fleet.reports.get_mut(&node("n3")).expect("there").disks.insert("sda".into(), sick);
            },
            "PresentDiskInDoubt",
        ),
        (
            |w| {
                // An owner that makes a missing claim anew has got a blank volume, in a folder with a disk.img.
                let blank = VolumeName::from("blank");
                let old = w.fleet.claims[&key("vm-data")].volume.clone().expect("bound");
                let volume = w.fleet.volumes[&old].clone();
                w.fleet.volumes.insert(blank.clone(), volume);
                w.fleet.claims.get_mut(&key("vm-data")).expect("there").volume = Some(blank);
            },
            "PresentDiskInDoubt",
        ),
        (
            |w| {
                let volume = w.fleet.claims[&key("vm-data")].volume.clone().expect("bound");
                w.fleet.volumes.get_mut(&volume).expect("there").source =
                    VolumeSource::Network { field: "nfs".into() };
                w.fleet.vms.get_mut(&key("vm")).expect("there").run = RunStrategy::Halted;
                w.fleet.vms.get_mut(&key("vm")).expect("there").instance = None;
            },
            "PresentDiskInDoubt",
        ),
        (
            |w| {
                // Somebody wants one back.
                let old = w.fleet.volumes.get_mut(&VolumeName::from("pv-vm-data")).expect("there");
                old.claim = Some(ClaimRef { key: key("vm-data"), uid: None });
                old.phase = "Available".into();
            },
            "VolumeInUse",
        ),
        (
            |w| {
                let old = w.fleet.volumes.get_mut(&VolumeName::from("pv-vm-data")).expect("there");
                old.source = VolumeSource::Local { path: "/somewhere/else".into() };
            },
            "VolumeChanged",
        ),
        (
            |w| {
                let twin = w.fleet.volumes[&VolumeName::from("pv-vm-data")].clone();
                w.fleet.volumes.insert("twin".into(), twin);
            },
            "FolderShared",
        ),
        (
            |w| {
                let roots = &mut w.fleet.reports.get_mut(&node("n2")).expect("there").roots;
                for root in roots {
                    root.read_only = true;
                }
            },
            "SourceReadOnly",
        ),
    ];
    for (number, (change, reason)) in cases.iter().enumerate() {
        let mut world = succeeded();
        change(&mut world);
        ask_removal(&mut world);
        world.rounds(REMOVAL_ROUNDS);
        assert_eq!(kept(&world), Some(*reason), "case {number}");
        assert!(world.content.contains_key(&folder("pv-vm-data")), "case {number}: removed");
        assert_eq!(states(&world), [OldVolume::Kept; 2], "case {number}: all of a VM go, or none");
    }
}

/// Its data is whole, and yet nobody has seen the guest as it was: the old disk stays until somebody has.
#[test]
fn one_whose_guest_was_not_confirmed_is_kept_until_it_is() {
    let mut world = asked();
    world.faults.guest_silent = true;
    world.fleet.vms.get_mut(&key("vm")).expect("there").instance.as_mut().expect("runs").agent_connected =
        true;
    assert_eq!(world.run(ROUNDS, "m"), Phase::Succeeded);
    assert_eq!(world.store[&key("m")].reason.as_deref(), Some("GuestNotConfirmed"));
    ask_removal(&mut world);
    world.rounds(REMOVAL_ROUNDS);
    assert_eq!(kept(&world), Some("GuestNotConfirmed"));
    let instance = world.fleet.vms.get_mut(&key("vm")).expect("there").instance.as_mut().expect("runs");
    (instance.agent_connected, instance.has_address) = (true, true);
    world.rounds(REMOVAL_ROUNDS);
    assert_removed(&world, "confirmed");
}

/// Between the word that is stored and the end of the object somebody binds a claim to it.
#[test]
fn one_that_somebody_takes_in_the_last_moment_is_kept() {
    let mut world = succeeded();
    ask_removal(&mut world);
    while !states(&world).contains(&OldVolume::Removing) {
        world.now += Duration::from_secs(1);
        world.input(Input::Tick);
    }
    let old = VolumeName::from("pv-vm-data");
    let volume = world.fleet.volumes.get_mut(&old).expect("not gone yet");
    volume.claim = Some(ClaimRef { key: key("vm-data"), uid: None });
    volume.phase = "Available".into();
    world.rounds(REMOVAL_ROUNDS);
    assert_eq!(there(&world, "pv-vm-data"), (true, true));
    assert_eq!(there(&world, "pv-vm-system"), (false, false));
    assert_eq!((states(&world)[1], kept(&world)), (OldVolume::Kept, Some("VolumeInUse")));
}

/// The agent that looks after the present disk falls silent while the API server deletes the old object: what was done is not
/// taken for somebody else's doing, and the folder goes once that disk is seen again.
#[test]
fn a_doubt_that_comes_after_the_object_was_deleted_only_waits() {
    for seen_gone in [false, true] {
        let mut world = succeeded();
        ask_removal(&mut world);
        while !states(&world).contains(&OldVolume::Removing) {
            world.now += Duration::from_secs(1);
            world.input(Input::Tick);
        }
        world.usable.remove(&node("n3"));
        let gone: Vec<_> = OLD.map(VolumeName::from).into();
        if seen_gone {
            for old in gone {
                world.fleet.volumes.remove(&old);
            }
        }
        world.rounds(REMOVAL_ROUNDS);
        assert_eq!(states(&world), [OldVolume::Removing; 2], "seen: {seen_gone}");
        assert_eq!(kept(&world), Some("PresentDiskInDoubt"), "seen: {seen_gone}");
        for old in OLD {
            assert!(world.content.contains_key(&folder(old)), "removed in doubt: {old}");
        }
        world.usable.insert(node("n3"));
        world.rounds(REMOVAL_ROUNDS);
        assert_removed(&world, "seen again");
    }
}

#[test]
fn a_folder_that_cannot_be_removed_is_told_of_and_tried_again() {
    let mut world = succeeded();
    world.faults.failing_removals = (2, "VolumeInUse");
    ask_removal(&mut world);
    world.rounds(REMOVAL_ROUNDS);
    assert_eq!(kept(&world), Some("RemovalFailed"));
    world.rounds(60);
    assert_removed(&world, "second try");
}

/// Its object is gone, its folder is not yet, and somebody makes a volume of it: it is his for good, also while he makes that
/// volume anew.
#[test]
fn a_folder_that_somebody_took_after_its_object_went_is_left_for_good() {
    let mut world = succeeded();
    world.faults.failing_removals = (100, "VolumeInUse");
    let rescue = world.fleet.volumes[&VolumeName::from("pv-vm-data")].clone();
    ask_removal(&mut world);
    world.rounds(REMOVAL_ROUNDS);
    assert_eq!(there(&world, "pv-vm-data"), (false, true));
    world.fleet.volumes.insert("rescue".into(), rescue);
    world.rounds(5);
    world.fleet.volumes.remove(&VolumeName::from("rescue"));
    world.faults.failing_removals.0 = 0;
    world.rounds(200);
    assert_eq!(there(&world, "pv-vm-data"), (false, true));
    assert_eq!((states(&world)[1], kept(&world)), (OldVolume::Kept, Some("VolumeGone")));
}

/// The agent has removed it, and then found something new under its name: that is not ours.
#[test]
fn what_came_after_it_under_its_name_is_left_alone() {
    let mut world = succeeded();
    world.faults.failing_removals = (2, "TargetExists");
    ask_removal(&mut world);
    world.rounds(REMOVAL_ROUNDS);
    assert_eq!(states(&world), [OldVolume::Removed; 2]);
    let orders = world
        .effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Order { order: Order::RemoveVolume { .. }, .. }));
    assert_eq!(orders.count(), 2, "one for each disk");
}

/// Another migration of the same VM is not disturbed.
#[test]
fn while_the_claims_move_again_nothing_is_removed() {
    let mut world = succeeded();
    world.ask("n", to_node("vm", "n1"));
    world.rounds(6);
    assert!(world.phase("n").is_at_work());
    ask_removal(&mut world);
    world.rounds(2);
    assert_eq!(kept(&world), Some("MigratingAgain"));
    world.run(ROUNDS, "n");
    world.rounds(REMOVAL_ROUNDS);
    assert_eq!(states(&world), [OldVolume::Removed; 2]);
}
