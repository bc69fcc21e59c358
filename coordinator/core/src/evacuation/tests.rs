//! Evacuations on the model that migrations are tested with.

mod auto;

use super::{Disruption, EvacuationSpec, PlanState};
use crate::fleet::{DiskHealth, Grade, LiveMigrationState, VolumeSource};
use crate::io::{Action, Effect, Severity};
use crate::migration::model::{World, key, to_node};
use crate::migration::{Destination, Phase};
use crate::policy::{EvacuationPolicySpec, Policy, PolicySpec};

const ROUNDS: usize = 300;

fn spec(node: &str) -> EvacuationSpec {
    EvacuationSpec {
        uid: "u1".into(),
        node: node.into(),
        disk: None,
        destination: None,
        disruption: Disruption::Now,
        window_open: false,
        dry_run: false,
        cancelled: false,
        complete: false,
    }
}

/// Three VMs on n2, of one, two and three disks, and one on n1.
fn world() -> World {
    let mut world = World::new();
    world.add_vm("big", "n2", &["a", "b", "c"]);
    world.add_vm("small", "n2", &["a"]);
    world.add_vm("other", "n1", &["a"]);
    world
}

fn run(world: &mut World, name: &str) {
    for _ in 0..ROUNDS {
        if world.evacuation_store.get(name).is_some_and(|record| record.complete) {
            break;
        }
        world.round();
    }
    world.round();
}

#[test]
fn empties_a_node_smallest_first_a_few_at_a_time() {
    let mut world = world();
    world.requests.evacuations.insert("e".into(), spec("n2"));
    run(&mut world, "e");
    let record = &world.evacuation_store["e"];
    assert!(record.complete, "{record:?}");
    let order: Vec<_> = record.plan.iter().map(|line| line.subject.name.as_str()).collect();
    assert_eq!(order, ["small", "vm", "big"]);
    assert!(record.plan.iter().all(|line| line.state == PlanState::Succeeded), "{record:?}");
    for vm in ["vm", "big", "small", "other"] {
        assert_ne!(world.fleet.vms[&key(vm)].node(), Some(&"n2".into()), "{vm}");
    }
}

#[test]
fn a_dry_run_only_tells() {
    let mut world = world();
    world.requests.evacuations.insert("e".into(), EvacuationSpec { dry_run: true, ..spec("n2") });
    run(&mut world, "e");
    let record = &world.evacuation_store["e"];
    assert_eq!((record.plan.len(), record.complete), (3, true));
    assert!(record.message.starts_with("dry run"), "{}", record.message);
    for line in &record.plan {
        assert_eq!(line.message, "to node n1", "{line:?}");
    }
    assert!(world.requests.migrations.is_empty());
}

#[test]
fn goes_on_past_a_vm_that_fails() {
    let mut world = world();
    // The first to be tried cannot be stopped: nobody knows its owner.
    let owner = crate::fleet::Owner::Unknown { kind: "Fleet".into(), name: "f".into() };
    world.fleet.vms.get_mut(&key("small")).expect("there").owner = owner;
    world.requests.evacuations.insert("e".into(), spec("n2"));
    run(&mut world, "e");
    let states: Vec<_> = world.evacuation_store["e"].plan.iter().map(|line| line.state).collect();
    assert_eq!(states, [PlanState::Failed, PlanState::Succeeded, PlanState::Succeeded]);
    assert!(world.evacuation_store["e"].plan[0].message.starts_with("OwnerUnknown"));
}

#[test]
fn cancelled_it_cancels_what_it_began() {
    let mut world = world();
    world
        .requests
        .evacuations
        .insert("e".into(), EvacuationSpec { disruption: Disruption::PreCopyOnly, ..spec("n2") });
    world.rounds(30);
    world.requests.evacuations.get_mut("e").expect("asked").cancelled = true;
    run(&mut world, "e");
    assert!(world.evacuation_store["e"].complete);
    assert_eq!(world.fleet.vms[&key("small")].node(), Some(&"n2".into()));
}

/// Copied ahead, and then the word is given, as `proceed` does: all of them finish, no more at a time than may move at once.
#[test]
fn given_the_word_what_was_copied_ahead_is_finished() {
    let mut world = world();
    let waiting = EvacuationSpec { disruption: Disruption::PreCopyOnly, ..spec("n2") };
    world.requests.evacuations.insert("e".into(), waiting);
    world.rounds(60);
    let states = |world: &World| -> Vec<PlanState> {
        world.evacuation_store["e"].plan.iter().map(|line| line.state).collect()
    };
    assert_eq!(states(&world), [PlanState::PreCopied; 3], "nothing more without a word");
    world.requests.evacuations.get_mut("e").expect("asked").disruption = Disruption::Now;
    let mut most = 0;
    for _ in 0..ROUNDS {
        world.round();
        let stopped = world.store.values().filter(|record| {
            let phase = record.phase;
            !phase.is_before_stop() && !phase.is_final()
        });
        most = most.max(stopped.count());
    }
    assert_eq!(states(&world), [PlanState::Succeeded; 3]);
    assert_eq!(most, world.policy.evacuation.concurrent_max);
}

/// VMs are stopped while the window is open, and one that has been begins no more when it is closed.
#[test]
fn in_a_window_vms_are_stopped_while_it_is_open() {
    let mut world = world();
    let windowed = EvacuationSpec { disruption: Disruption::Window, ..spec("n2") };
    world.requests.evacuations.insert("e".into(), windowed);
    let count = |world: &World, state: PlanState| {
        world.evacuation_store["e"].plan.iter().filter(|line| line.state == state).count()
    };
    world.rounds(60);
    assert_eq!(count(&world, PlanState::PreCopied), 3, "it is closed");
    let open = |world: &mut World, open| {
        world.requests.evacuations.get_mut("e").expect("asked").window_open = open;
    };
    open(&mut world, true);
    while count(&world, PlanState::Succeeded) == 0 {
        world.round();
    }
    open(&mut world, false);
    world.rounds(60);
    let moved = count(&world, PlanState::Succeeded);
    assert!((1..3).contains(&moved), "{moved} have moved, and the window is closed");
    assert!(world.evacuation_store["e"].message.contains("wait for the window"));
    open(&mut world, true);
    run(&mut world, "e");
    assert_eq!(count(&world, PlanState::Succeeded), 3);
}

#[test]
fn a_new_leader_goes_on() {
    for at in 0..40 {
        let mut world = world();
        world.requests.evacuations.insert("e".into(), spec("n2"));
        world.rounds(at);
        world.take_over();
        run(&mut world, "e");
        let record = &world.evacuation_store["e"];
        assert!(record.plan.iter().all(|line| line.state == PlanState::Succeeded), "at {at}: {record:?}");
    }
}

#[test]
fn an_unknown_node_is_refused() {
    let mut world = world();
    world.requests.evacuations.insert("e".into(), spec("n9"));
    run(&mut world, "e");
    assert!(world.evacuation_store["e"].message.starts_with("refused: there is no node n9:"));
}

#[test]
fn a_destination_is_passed_on() {
    let mut world = world();
    let destination = Some(Destination::Node("n1".into()));
    world.requests.evacuations.insert("e".into(), EvacuationSpec { destination, ..spec("n2") });
    run(&mut world, "e");
    assert_eq!(world.fleet.vms[&key("big")].node(), Some(&"n1".into()));
}

/// Why each VM or claim of a dry run's plan would not move.
fn would_not_move(world: &mut World) -> Vec<(String, String)> {
    world.requests.evacuations.insert("e".into(), EvacuationSpec { dry_run: true, ..spec("n2") });
    run(world, "e");
    let record = &world.evacuation_store["e"];
    assert!(record.complete, "{record:?}");
    let failed: Vec<_> = record.plan.iter().filter(|line| line.state == PlanState::Failed).collect();
    let told = record.message.contains(&format!("{} cannot move", failed.len()));
    assert_eq!(told, !failed.is_empty(), "{}", record.message);
    failed.iter().map(|line| (line.subject.name.clone(), line.message.clone())).collect()
}

#[test]
fn a_dry_run_names_what_will_not_move_with_its_reason() {
    let mut world = world();
    assert_eq!(would_not_move(&mut world), []);

    let mut world = self::world();
    world.add_claim("spare", "n2");
    world.fleet.claims_used_by_others.insert(key("spare"), ["backup".to_owned()].into());
    // A volume that names no node, of a VM that runs there, and of a claim whose folder is there.
    world.add_claim("loose", "n2");
    for volume in ["pv-small-a", "pv-loose", "pv-other-a"] {
        world.fleet.volumes.get_mut(&volume.into()).expect("there").node_affinity = None;
    }
    let mut found = would_not_move(&mut world);
    found.sort();
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["loose", "small", "spare"], "that of another node is not there: {found:#?}");
    for ((_, message), reason) in
        found.iter().zip(["DiskLocalityUnknown: ", "DiskLocalityUnknown: ", "ClaimUsedByPod: "])
    {
        assert!(message.starts_with(reason), "{message}");
    }
}

/// The folders of a class have the same path on every node.
#[test]
fn what_nobody_can_place_is_on_a_disk_only_where_something_of_it_was_seen() {
    for (node, found) in [("n1", vec!["other"]), ("n2", vec![]), ("n3", vec![])] {
        let mut world = world();
        world.fleet.volumes.get_mut(&"pv-other-a".into()).expect("there").node_affinity = None;
        let asked = EvacuationSpec { dry_run: true, disk: Some("sda".into()), ..spec(node) };
        world.requests.evacuations.insert("e".into(), asked);
        run(&mut world, "e");
        let plan = &world.evacuation_store["e"].plan;
        let failed = plan.iter().filter(|line| line.state == PlanState::Failed);
        let failed: Vec<_> = failed.map(|line| line.subject.name.as_str()).collect();
        assert_eq!(failed, found, "{node}");
    }
}

#[test]
fn a_dry_run_tells_that_no_node_has_room() {
    let mut world = world();
    for report in world.fleet.reports.values_mut() {
        report.roots[0].available_bytes = 1;
    }
    let found = would_not_move(&mut world);
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found.iter().all(|(_, why)| why.starts_with("no other healthy node takes it")), "{found:#?}");
}

#[test]
fn what_nobody_can_place_is_told_and_the_rest_is_moved() {
    let mut world = world();
    world.fleet.volumes.get_mut(&"pv-small-a".into()).expect("there").node_affinity = None;
    world.requests.evacuations.insert("e".into(), spec("n2"));
    run(&mut world, "e");
    let record = &world.evacuation_store["e"];
    let states: Vec<_> = record.plan.iter().map(|line| (line.subject.name.as_str(), line.state)).collect();
    let moved = PlanState::Succeeded;
    assert_eq!(states, [("small", PlanState::Failed), ("vm", moved), ("big", moved)]);
    assert!(record.plan[0].message.starts_with("DiskLocalityUnknown"), "{record:?}");
}

#[test]
fn a_dead_node_is_not_emptied() {
    let mut world = world();
    world.usable.remove(&"n2".into());
    world.dead.insert("n2".into());
    world.requests.evacuations.insert("e".into(), spec("n2"));
    run(&mut world, "e");
    let record = &world.evacuation_store["e"];
    assert!(record.complete && record.plan.is_empty(), "{record:?}");
    assert!(record.message.contains("node n2 is dead") && record.message.contains("bring it back"));
    assert!(world.requests.migrations.is_empty());
}

/// A VM on n2 without a disk there, and a spec that waits for a word before it disturbs one.
fn with_live_vm() -> World {
    let mut world = world();
    world.add_vm("net", "n2", &[]);
    let vm = world.fleet.vms.get_mut(&key("net")).expect("there");
    let mut running = crate::decision::testkit::running_vm("net", "n2");
    vm.instance = running.instance.take();
    let spec = EvacuationSpec { disruption: Disruption::PreCopyOnly, ..spec("n2") };
    world.requests.evacuations.insert("e".into(), spec);
    world
}

fn live_line(world: &World) -> (PlanState, String) {
    let plan = &world.evacuation_store["e"].plan;
    let line = plan.iter().find(|line| line.subject == key("net")).expect("in the plan");
    assert!(line.live && line.is_vm);
    (line.state, line.message.clone())
}

#[test]
fn a_vm_without_a_disk_there_moves_while_it_runs_and_waits_for_no_word() {
    let mut world = with_live_vm();
    world.rounds(20);
    let asked: Vec<_> =
        world.effects.iter().filter(|e| matches!(e, Effect::Act(Action::LiveMigrate { .. }))).collect();
    let wanted = Action::LiveMigrate { key: key("e-net"), vm: "net".into(), node: None };
    assert_eq!(asked, [&Effect::Act(wanted)]);
    assert_eq!(live_line(&world), (PlanState::Running, String::new()));
    world.fleet.live_migrations.get_mut(&key("e-net")).expect("asked").state = LiveMigrationState::Succeeded;
    world.rounds(2);
    assert_eq!(live_line(&world).0, PlanState::Running, "its instance does not tell yet");
    let vm = world.fleet.vms.get_mut(&key("net")).expect("there");
    vm.instance.as_mut().expect("runs").node = Some("n1".into());
    world.rounds(3);
    assert_eq!(live_line(&world), (PlanState::Succeeded, String::new()));
}

#[test]
fn a_live_migration_that_fails_or_cannot_be_is_told_in_kubevirts_words() {
    let mut world = with_live_vm();
    world.rounds(20);
    world.fleet.live_migrations.get_mut(&key("e-net")).expect("asked").state =
        LiveMigrationState::Failed("target pod was evicted".into());
    world.rounds(3);
    assert_eq!(live_line(&world), (PlanState::Failed, "LiveMigrationFailed: target pod was evicted".into()));

    let mut world = with_live_vm();
    let vm = world.fleet.vms.get_mut(&key("net")).expect("there");
    vm.instance.as_mut().expect("runs").not_migratable =
        Some("DisksNotLiveMigratable: claim a is not shared".into());
    world.rounds(5);
    let (state, message) = live_line(&world);
    assert_eq!(state, PlanState::Failed);
    assert!(message.contains("DisksNotLiveMigratable: claim a is not shared"), "{message}");
    assert!(world.fleet.live_migrations.is_empty());
}

#[test]
fn a_live_migration_that_somebody_removed_is_not_asked_for_again() {
    let mut world = with_live_vm();
    world.rounds(20);
    world.fleet.live_migrations.clear();
    world.rounds(20);
    assert_eq!(live_line(&world).0, PlanState::Failed);
    assert!(world.fleet.live_migrations.is_empty());
}

/// By the API server, or by what KubeVirt has to say in it.
#[test]
fn a_live_migration_that_is_refused_is_told_and_not_asked_for_again() {
    let mut world = with_live_vm();
    world.faults.live_refused = true;
    world.rounds(20);
    assert_eq!(live_line(&world), (PlanState::Failed, "LiveMigrationFailed: as the test asked".into()));
}

/// The migrations of an earlier evacuation of that name stay until somebody removes them.
#[test]
fn an_evacuation_does_not_take_the_migrations_of_an_earlier_one_for_its_own() {
    let mut world = world();
    world.requests.evacuations.insert("n2".into(), spec("n2"));
    run(&mut world, "n2");
    world.requests.evacuations.remove("n2");
    world.evacuation_store.remove("n2");
    world.rounds(3);
    world.ask("back", to_node("small", "n2"));
    assert_eq!(world.run(900, "back"), Phase::Succeeded);
    world.rounds(3);
    assert_eq!(world.fleet.vms[&key("small")].node(), Some(&"n2".into()));
    world.requests.evacuations.insert("n2".into(), EvacuationSpec { uid: "u2".into(), ..spec("n2") });
    run(&mut world, "n2");
    let record = &world.evacuation_store["n2"];
    assert_ne!(world.fleet.vms[&key("small")].node(), Some(&"n2".into()), "{record:?}");
    assert_eq!(record.plan[0].migration.name, "n2-small-2");
}

/// Replaced between two looks: nobody has seen it gone.
#[test]
fn another_evacuation_of_the_same_name_is_another_evacuation() {
    for recorded in [false, true] {
        let mut world = world();
        world.requests.evacuations.insert("e".into(), EvacuationSpec { dry_run: true, ..spec("n2") });
        run(&mut world, "e");
        if !recorded {
            world.evacuation_store.remove("e");
        }
        world.requests.evacuations.insert("e".into(), EvacuationSpec { uid: "u2".into(), ..spec("n2") });
        world.rounds(ROUNDS);
        let record = &world.evacuation_store["e"];
        assert_eq!((record.uid.as_str(), record.complete), ("u2", true), "{record:?}");
        assert!(record.plan.iter().all(|line| line.state == PlanState::Succeeded), "{record:?}");
    }
}

#[test]
fn a_migration_that_somebody_deletes_holds_up_nobody() {
    for at in 0..40 {
        let mut world = world();
        world.requests.evacuations.insert("e".into(), spec("n2"));
        while !world.requests.migrations.contains_key(&key("e-small")) {
            world.round();
        }
        world.rounds(at);
        world.delete("e-small");
        world.rounds(900);
        let record = &world.evacuation_store["e"];
        assert!(record.complete, "at {at}: {record:?}");
        let small = record.plan.iter().find(|line| line.subject.name == "small").expect("planned");
        let moved = world.fleet.vms[&key("small")].node() != Some(&"n2".into());
        assert_eq!(small.state == PlanState::Failed, !moved || small.message.starts_with("MigrationDeleted"));
    }
}

#[test]
fn a_node_that_does_not_take_the_vm_is_not_chosen_however_much_room_it_has() {
    let mut world = world();
    world.fleet.nodes.get_mut(&"n3".into()).expect("there").unschedulable = true;
    world.fleet.reports.get_mut(&"n3".into()).expect("there").roots[0].available_bytes = 90 << 30;
    world.requests.evacuations.insert("e".into(), spec("n2"));
    run(&mut world, "e");
    let record = &world.evacuation_store["e"];
    assert!(record.plan.iter().all(|line| line.state == PlanState::Succeeded), "{record:?}");
}

#[test]
fn those_that_wait_for_a_word_take_nobodys_turn() {
    let mut world = World::new();
    for name in ["a", "b", "c", "d", "f"] {
        world.add_vm(name, "n2", &["x"]);
    }
    world.add_vm("urgent", "n1", &["x"]);
    let ahead = EvacuationSpec { disruption: Disruption::PreCopyOnly, ..spec("n2") };
    world.requests.evacuations.insert("e".into(), ahead);
    world.rounds(ROUNDS);
    let states = world.evacuation_store["e"].plan.iter().map(|line| line.state);
    assert_eq!(states.collect::<Vec<_>>(), [PlanState::PreCopied; 6]);
    world.ask("urgent", to_node("urgent", "n3"));
    assert_eq!(world.run(ROUNDS, "urgent"), Phase::Succeeded);
}

/// Where a driver keeps them, nobody sees: but that they are there, the volume says.
#[test]
fn local_disks_without_a_path_are_planned_too() {
    let mut world = world();
    world.add_claim("spare", "n2");
    world.put_where_kubelets_mount("small", false);
    world.fleet.volumes.get_mut(&"pv-spare".into()).expect("there").source =
        VolumeSource::Csi { driver: "topolvm.io".into(), handle: "h".into() };
    world.requests.evacuations.insert("e".into(), EvacuationSpec { dry_run: true, ..spec("n2") });
    run(&mut world, "e");
    let record = &world.evacuation_store["e"];
    for name in ["spare", "small"] {
        let line = record.plan.iter().find(|line| line.subject.name == name);
        assert!(line.is_some_and(|line| !line.live), "{name}: {record:?}");
    }
}

/// A VM that has gone elsewhere by itself is not stopped a second time, and one that came is told.
#[test]
fn who_has_left_is_not_moved_and_who_has_come_is_told() {
    let mut world = world();
    world
        .requests
        .evacuations
        .insert("e".into(), EvacuationSpec { disruption: Disruption::Now, ..spec("n2") });
    world.rounds(5);
    let waiting = world.evacuation_store["e"].plan.iter().rfind(|line| line.state == PlanState::Waiting);
    let waiting = waiting.expect("its turn has not come").subject.clone();
    world.ask("away", to_node(&waiting.name, "n1"));
    assert_eq!(world.run(900, "away"), Phase::Succeeded);
    run(&mut world, "e");
    assert_eq!(world.fleet.vms[&waiting].node(), Some(&"n1".into()));
    assert!(world.evacuation_store["e"].plan.iter().all(|line| line.state == PlanState::Succeeded));

    let mut world = self::world();
    world.requests.evacuations.insert("e".into(), spec("n2"));
    world.rounds(5);
    world.add_vm("late", "n2", &["x"]);
    run(&mut world, "e");
    let record = &world.evacuation_store["e"];
    let late = record.plan.iter().find(|line| line.subject.name == "late").expect("told");
    assert_eq!(late.state, PlanState::Failed, "{record:?}");
    assert!(late.message.contains("evacuate again"), "{record:?}");
}
