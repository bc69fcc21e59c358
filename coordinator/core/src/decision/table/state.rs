//! By its run strategy, its instance and its launchers.

use DecisionKind::{ManualRecovery, NothingToDo, Recreate};

use crate::decision::table::check;
use crate::decision::testkit::{World, host_path, key, on_host, running_vm};
use crate::decision::{DecisionKind, Reason};
use crate::fleet::{ClaimUse, RunStrategy};
use crate::names::NodeName;

#[test]
fn by_run_strategy_and_place() {
    check(&[
        (
            "RerunOnFailure",
            |w| w.vm("web").run = RunStrategy::RerunOnFailure,
            Recreate,
            &[Reason::AllDisksOnNetwork],
        ),
        ("Manual", |w| w.vm("web").run = RunStrategy::Manual, ManualRecovery, &[Reason::RunStrategyManual]),
        ("Once", |w| w.vm("web").run = RunStrategy::Once, ManualRecovery, &[Reason::RunStrategyOnce]),
        (
            "meant to be stopped, still there",
            |w| w.vm("web").run = RunStrategy::Halted,
            NothingToDo,
            &[Reason::Stopped],
        ),
        (
            "stopped, its disk on the dead node",
            |w| {
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                w.vm("web").run = RunStrategy::Halted;
                w.vm("web").instance = None;
                w.vm("web").pods.clear();
            },
            NothingToDo,
            &[Reason::Stopped],
        ),
        (
            "should run, does not, its disk on the dead node",
            |w| {
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                w.vm("web").instance = None;
                w.vm("web").pods.clear();
            },
            ManualRecovery,
            &[Reason::LocalDisk],
        ),
        (
            "should run, does not, nothing on the dead node",
            |w| {
                w.vm("web").instance = None;
                w.vm("web").pods.clear();
            },
            NothingToDo,
            &[Reason::NotRunning],
        ),
        (
            "on another node",
            |w| {
                let vm = running_vm("web", "n2");
                w.fleet.vms.insert(key("web"), vm);
            },
            NothingToDo,
            &[Reason::RunsElsewhere],
        ),
        (
            "on another node, with a memory dump on the dead one",
            |w| {
                let vm = running_vm("web", "n2");
                w.fleet.vms.insert(key("web"), vm);
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
                w.set_use("web", 0, ClaimUse::MemoryDump);
            },
            NothingToDo,
            &[Reason::RunsElsewhere],
        ),
        (
            "on another node, though a disk of it is on the dead one",
            |w| {
                let vm = running_vm("web", "n2");
                w.fleet.vms.insert(key("web"), vm);
                w.add_disk("web", "x", host_path(), on_host(&["n1"]));
            },
            ManualRecovery,
            &[Reason::LocalDisk],
        ),
        (
            "stopped, nothing of it on the dead node",
            |w| {
                w.vm("web").run = RunStrategy::Halted;
                w.vm("web").instance = None;
                w.vm("web").pods.clear();
            },
            NothingToDo,
            &[Reason::Stopped],
        ),
        ("no such VM", |w| w.fleet.vms.clear(), NothingToDo, &[Reason::VmNotFound]),
    ]);
}

#[test]
fn by_the_state_of_its_instance() {
    check(&[
        (
            "paused",
            |w| w.instance("web").paused = Some("PausedIOError".to_owned()),
            ManualRecovery,
            &[Reason::InstancePaused],
        ),
        ("never ran", |w| w.instance("web").has_run = false, ManualRecovery, &[Reason::InstanceNeverRan]),
        (
            "instance has failed, its launcher is still there",
            |w| w.instance("web").phase = "Failed".to_owned(),
            Recreate,
            &[Reason::AllDisksOnNetwork],
        ),
        (
            "instance has failed before it ran: one more loss counts no more",
            |w| {
                w.instance("web").has_run = false;
                w.instance("web").phase = "Failed".to_owned();
            },
            Recreate,
            &[Reason::AllDisksOnNetwork],
        ),
        (
            "instance and launcher have ended",
            |w| {
                w.instance("web").phase = "Failed".to_owned();
                w.vm("web").pods[0].phase = "Failed".to_owned();
            },
            NothingToDo,
            &[Reason::NotRunning],
        ),
        (
            "migrating to a living node",
            |w| w.instance("web").migrating = Some(Some(NodeName::from("n2"))),
            ManualRecovery,
            &[Reason::LiveMigrationInFlight],
        ),
        (
            "migrating from a living node to the dead one",
            |w| {
                w.instance("web").migrating = Some(Some(NodeName::from("n1")));
                w.instance("web").node = Some(NodeName::from("n2"));
            },
            ManualRecovery,
            &[Reason::LiveMigrationInFlight],
        ),
        (
            "migrating, both nodes dead",
            |w| {
                w.instance("web").migrating = Some(Some(NodeName::from("n2")));
                w.question.dead.insert(NodeName::from("n2"));
            },
            Recreate,
            &[Reason::AllDisksOnNetwork],
        ),
        (
            "migrating to nobody knows where",
            |w| w.instance("web").migrating = Some(None),
            ManualRecovery,
            &[Reason::LiveMigrationInFlight],
        ),
        (
            "a second launcher on a living node",
            |w| {
                let mut second = w.vm("web").pods[0].clone();
                second.node = Some(NodeName::from("n2"));
                w.vm("web").pods.push(second);
            },
            ManualRecovery,
            &[Reason::LauncherElsewhere],
        ),
        (
            "a second launcher that has ended",
            |w| {
                let mut second = w.vm("web").pods[0].clone();
                second.node = Some(NodeName::from("n2"));
                second.phase = "Succeeded".to_owned();
                w.vm("web").pods.push(second);
            },
            Recreate,
            &[Reason::AllDisksOnNetwork],
        ),
    ]);
}

#[test]
fn says_which_nodes_need_a_proof() {
    let mut world = World::new();
    world.instance("web").migrating = Some(Some(NodeName::from("n2")));
    world.question.dead.insert(NodeName::from("n2"));
    assert_eq!(world.decide("web").nodes, ["n1", "n2"].map(NodeName::from));
}
