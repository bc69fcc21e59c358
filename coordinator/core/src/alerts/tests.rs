//! Each alert from the state that it is about; and what holds of all of them.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::coordinator::testkit::{Bench, fast};
use crate::decision::testkit::{World, data_report, host_path, key, on_host, running_vm};
use crate::evacuation::{Disruption, EvacuationSpec};
use crate::fencing::ProofKind;
use crate::fencing::agents::{FenceAgentView, FencingState};
use crate::fleet::{DataVolume, Grade, RunStrategy, Snapshot};
use crate::locality::ClassOverride;
use crate::migration::model::{self, to_node};
use crate::view::{NodeState, NodeView};

const NOW: BootTime = BootTime::from_hours(100);
/// Five minutes before.
const EARLIER: BootTime = BootTime::from_mins(100 * 60 - 5);

/// A fleet and what is shown of it.
#[derive(Debug)]
struct State {
    world: World,
    view: View,
    requests: Requests,
    backups: bool,
}

impl State {
    /// VM `web` runs on n1, and all is well.
    fn new() -> Self {
        let view = View {
            nodes: ["n1", "n2", "n3"].map(|name| (name.into(), node(NodeState::Healthy))).into(),
            ..View::default()
        };
        Self { world: World::new(), view, requests: Requests::default(), backups: false }
    }

    fn known(&self) -> Known<'_> {
        Known {
            view: &self.view,
            fleet: &self.world.fleet,
            requests: &self.requests,
            overrides: &self.world.overrides,
            backups: self.backups,
        }
    }

    fn node(&mut self, name: &str) -> &mut NodeView {
        self.view.nodes.get_mut(&NodeName::from(name)).expect("there")
    }

    /// What fires when the state has been so for that long.
    fn after(&self, time: Duration) -> Vec<(AlertName, AlertSubject)> {
        let mut alerts = Alerts::default();
        alerts.look(NOW, &self.known());
        ids(alerts.look(NOW + time, &self.known()))
    }

    fn at_last(&self) -> Vec<(AlertName, AlertSubject)> {
        self.after(Duration::from_hours(48))
    }

    fn description(&self) -> String {
        let mut alerts = Alerts::default();
        alerts.look(NOW, &self.known());
        let firing = alerts.look(NOW + Duration::from_hours(48), &self.known());
        firing.alerts.into_iter().map(|alert| alert.description).collect::<Vec<_>>().join("\n")
    }
}

fn ids(firing: Firing) -> Vec<(AlertName, AlertSubject)> {
    firing.alerts.into_iter().map(|alert| (alert.id.name, alert.id.subject)).collect()
}

fn node(state: NodeState) -> NodeView {
    NodeView {
        state,
        since: NOW,
        message: "as a test says".to_owned(),
        boot_id: None,
        proofs_possible: vec![ProofKind::NewBootId, ProofKind::HumanAttested],
        fence_agent: None,
        proof: None,
        timeline: Vec::new(),
        report: None,
        fence: None,
    }
}

fn of_node(name: &str) -> AlertSubject {
    AlertSubject::Node(name.into())
}

fn of_vm(name: &str) -> AlertSubject {
    AlertSubject::Vm(key(name))
}

/// A moment before that much.
fn almost(time: Duration) -> Duration {
    time.saturating_sub(Duration::from_secs(1))
}

fn mins(minutes: u64) -> Duration {
    Duration::from_mins(minutes)
}

#[test]
fn nothing_fires_where_all_is_well() {
    assert_eq!(State::new().at_last(), []);
    let nothing = (View::default(), Fleet::default(), Requests::default(), ClassOverrides::default());
    let (view, fleet, requests, overrides) = &nothing;
    let known = Known { view, fleet, requests, overrides, backups: true };
    assert_eq!(Alerts::default().look(NOW, &known), Firing::default());
}

#[test]
fn each_state_of_a_node_that_needs_somebody_fires() {
    for (state, name, minutes) in [
        (NodeState::FenceContradicted, AlertName::FenceContradicted, 0),
        (NodeState::AwaitingProof, AlertName::AwaitingProof, 0),
        (NodeState::AgentSilent, AlertName::AgentSilent, 5),
        (NodeState::Partitioned, AlertName::NodePartitioned, 5),
    ] {
        let mut known = State::new();
        *known.node("n1") = node(state);
        assert_eq!(known.after(mins(minutes)), [(name, of_node("n1"))]);
        if minutes > 0 {
            assert_eq!(known.after(almost(mins(minutes))), [], "{state:?}");
        }
    }
}

#[test]
fn a_proof_that_comes_by_itself_is_waited_for() {
    let mut known = State::new();
    *known.node("n1") = node(NodeState::AwaitingProof);
    known.node("n1").proofs_possible.push(ProofKind::PowerOffConfirmed);
    assert_eq!(known.after(Duration::from_secs(59)), []);
    assert_eq!(known.after(mins(1)), [(AlertName::AwaitingProof, of_node("n1"))]);
}

/// The view knows since when, and a new leader has it from there.
#[test]
fn who_looks_for_the_first_time_does_not_wait_for_what_has_lasted() {
    let mut known = State::new();
    *known.node("n1") = NodeView { since: EARLIER, ..node(NodeState::AgentSilent) };
    let firing = Alerts::default().look(NOW, &known.known());
    assert_eq!(firing.alerts[0].since, EARLIER);
    assert_eq!(ids(firing), [(AlertName::AgentSilent, of_node("n1"))]);
}

#[test]
fn a_storm_is_told_of_once() {
    let mut known = State::new();
    known.view.storm_hold = Some("3 nodes fell silent".to_owned());
    assert_eq!(known.after(Duration::ZERO), [(AlertName::StormHold, AlertSubject::Cluster)]);
    assert!(known.description().contains("release-hold"));
}

#[test]
fn a_fence_agent_that_cannot_be_counted_upon_fires_after_a_round_and_one_that_looks_elsewhere_at_once() {
    let why = || "timeout".to_owned();
    let agent = |state| FenceAgentView { state, answered: None, change_refused: None };
    for (state, minutes) in [
        (FencingState::Untested, 15),
        (FencingState::AnswersNot { why: why() }, 15),
        (FencingState::NotConfigured { why: why() }, 15),
        (FencingState::WrongMachine, 0),
    ] {
        let mut known = State::new();
        known.node("n1").fence_agent = Some(agent(state.clone()));
        assert_eq!(known.after(mins(minutes)), [(AlertName::FenceUntested, of_node("n1"))], "{state:?}");
        assert_eq!(known.after(Duration::ZERO).len(), usize::from(minutes == 0), "{state:?}");
        known.node("n1").state = NodeState::NoAgent;
        assert_eq!(known.at_last(), [], "a node that is away is not asked");
    }
    let mut known = State::new();
    for name in ["n1", "n2", "n3"] {
        known.node(name).fence_agent = Some(agent(FencingState::Answers));
    }
    assert_eq!(known.at_last(), []);
    for name in ["n1", "n2", "n3"] {
        known.node(name).fence_agent = Some(agent(FencingState::RunnerAway { why: why() }));
    }
    let once = [(AlertName::FenceUntested, AlertSubject::Cluster)];
    assert_eq!(known.at_last(), once, "of all runners, not of each node");
    for name in ["n1", "n2", "n3"] {
        let refused = FenceAgentView { change_refused: Some(why()), ..agent(FencingState::Answers) };
        known.node(name).fence_agent = Some(refused);
    }
    assert_eq!(known.at_last(), once);
}

#[test]
fn disks_fire_by_their_grade_for_as_long_as_their_agent_may_live() {
    let sda = || AlertSubject::Disk { node: "n1".into(), disk: "sda".to_owned() };
    for (grade, name) in [
        (Grade::Failed, AlertName::DiskFailed),
        (Grade::Failing, AlertName::DiskFailing),
        (Grade::Warning, AlertName::DiskWarning),
    ] {
        let mut known = State::new();
        known.node("n1").report = Some(data_report(None, grade, []));
        assert_eq!(known.after(mins(1)), [(name, sda())]);
        assert_eq!(known.after(Duration::from_secs(59)), []);
        known.node("n1").state = NodeState::Suspect;
        assert_eq!(known.at_last(), [(name, sda())], "a moment of silence ends nothing");
        known.node("n1").state = NodeState::Fenced;
        assert_eq!(known.at_last(), [], "nobody can read it");
    }
    let mut known = State::new();
    known.node("n1").report = Some(data_report(None, Grade::Ok, []));
    known.node("n2").report = Some(data_report(None, Grade::Unknown, []));
    assert_eq!(known.at_last(), []);
}

#[test]
fn a_vm_that_should_run_and_does_not_fires_and_one_that_may_stand_still_does_not() {
    let fires = [(AlertName::VmNotRunning, of_vm("web"))];
    let mut known = State::new();
    known.world.vm("web").instance = None;
    assert_eq!(known.after(mins(5)), fires);
    assert_eq!(known.after(almost(mins(5))), []);
    for run in [RunStrategy::Halted, RunStrategy::Manual, RunStrategy::Once, RunStrategy::RerunOnFailure] {
        known.world.vm("web").run = run;
        assert_eq!(known.at_last(), [], "{run:?}");
    }

    let mut known = State::new();
    for (run, phase, should) in [
        (RunStrategy::Always, "Scheduling", true),
        (RunStrategy::Always, "Succeeded", true),
        (RunStrategy::RerunOnFailure, "Failed", true),
        (RunStrategy::RerunOnFailure, "Succeeded", false),
        (RunStrategy::Manual, "Failed", false),
        (RunStrategy::Always, "Running", false),
    ] {
        known.world.vm("web").run = run;
        phase.clone_into(&mut known.world.instance("web").phase);
        assert_eq!(known.at_last().len(), usize::from(should), "{run:?} {phase}");
    }
    for (paused, fires) in [("PausedIOError", true), ("PausedByUser", false)] {
        known.world.instance("web").paused = Some(paused.to_owned());
        assert_eq!(known.at_last().len(), usize::from(fires), "{paused}");
    }
}

#[test]
fn a_vm_whose_disk_is_being_filled_is_waited_for() {
    let mut known = State::new();
    known.world.add_local_system_disk("web");
    known.world.vm("web").instance = None;
    for (phase, fires) in [("ImportInProgress", false), ("Pending", true), ("Failed", true)] {
        let filled = DataVolume { phase: phase.to_owned(), ..DataVolume::default() };
        known.world.fleet.data_volumes.insert(key("web-system"), filled);
        assert_eq!(!known.at_last().is_empty(), fires, "{phase}");
    }
}

/// Of a real incident: what waits for the proof, and what a person must do.
#[test]
fn a_dead_node_fires_for_itself_and_for_each_vm_that_needs_a_person() {
    let mut bench = Bench::new(fast(&[]));
    bench.silence(&["n1"]);
    bench.run_ms(10_000);
    let (view, overrides) = (bench.view(), ClassOverrides::default());
    let known = Known {
        view: &view,
        fleet: &bench.fleet,
        requests: &bench.requests,
        overrides: &overrides,
        backups: false,
    };
    let firing = Alerts::default().look(bench.now, &known);
    let said = |wanted: AlertName| {
        firing.alerts.iter().find(|alert| alert.id.name == wanted).map(|alert| alert.description.as_str())
    };
    assert!(said(AlertName::AwaitingProof).is_some_and(|said| said.contains("kubectl somersault attest n1")));
    assert!(said(AlertName::AwaitingProof).is_some_and(|said| said.contains("1 of its VMs")));
    let by_hand = said(AlertName::ManualRecoveryNeeded);
    assert!(
        by_hand.is_some_and(|said| said.contains("kubectl somersault runbook local -n shop")),
        "{by_hand:?}"
    );
    assert_eq!(firing.alerts.len(), 2, "{firing:#?}");

    bench.attest("n1", 1, "alice");
    bench.run_ms(10_000);
    let view = bench.view();
    let known = Known { view: &view, ..known_of(&bench, &overrides, &view) };
    let firing = ids(Alerts::default().look(bench.now, &known));
    assert_eq!(firing, [(AlertName::ManualRecoveryNeeded, of_vm("local"))], "the proof is there");
}

fn known_of<'a>(bench: &'a Bench, overrides: &'a ClassOverrides, view: &'a View) -> Known<'a> {
    Known { view, fleet: &bench.fleet, requests: &bench.requests, overrides, backups: false }
}

/// What the coordinator and the model of its surroundings make of it.
fn of_moves(world: &model::World) -> Vec<AlertName> {
    let view =
        View { migrations: world.machine.views(), evacuations: world.evacuations.views(), ..View::default() };
    let overrides = ClassOverrides::default();
    let known = Known {
        view: &view,
        fleet: &world.fleet,
        requests: &world.requests,
        overrides: &overrides,
        backups: false,
    };
    let mut alerts = Alerts::default();
    alerts.look(NOW, &known);
    ids(alerts.look(NOW + Duration::from_hours(48), &known)).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn a_migration_that_waits_for_a_word_fires_while_its_copy_is_made_fresh_too() {
    let mut world = model::World::new();
    world.ask("m", to_node("vm", "n3"));
    world.spec("m").pre_copy_only = true;
    world.rounds(100);
    assert_eq!(of_moves(&world), [AlertName::MigrationWaits]);
    // Half an hour: three times it is copied anew.
    for _ in 0..1_800 {
        world.round();
        assert_eq!(of_moves(&world), [AlertName::MigrationWaits]);
    }
    world.spec("m").pre_copy_only = false;
    while !world.phase("m").is_final() {
        world.round();
        let told = of_moves(&world);
        assert!(told.is_empty() || told == [AlertName::MigrationWaits], "{told:?}: it is stopped by us");
    }
    world.round();
    assert_eq!(of_moves(&world), []);
}

#[test]
fn a_migration_that_failed_fires_until_its_object_is_deleted() {
    let mut world = model::World::new();
    world.ask("m", to_node("vm", "nowhere-known"));
    world.run(300, "m");
    assert_eq!(of_moves(&world), [AlertName::MigrationFailed]);
    world.delete("m");
    world.round();
    assert_eq!(of_moves(&world), []);
}

#[test]
fn a_guest_that_was_not_confirmed_fires() {
    let mut world = model::World::new();
    world.ask("m", to_node("vm", "n3"));
    world.spec("m").probe = Some("tcp:80".parse().expect("a probe"));
    world.faults.failing_answers = u32::MAX;
    world.run(3_000, "m");
    assert_eq!(of_moves(&world), [AlertName::GuestNotConfirmed]);
}

fn evacuation(disruption: Disruption) -> EvacuationSpec {
    EvacuationSpec {
        uid: "u1".into(),
        node: "n2".into(),
        disk: None,
        destination: None,
        disruption,
        window_open: false,
        dry_run: false,
        cancelled: false,
        complete: false,
    }
}

#[test]
fn an_evacuation_that_waits_for_a_word_fires_and_its_migrations_do_not() {
    let mut world = model::World::new();
    world.requests.evacuations.insert("e".into(), evacuation(Disruption::PreCopyOnly));
    world.rounds(200);
    for _ in 0..1_200 {
        world.round();
        assert_eq!(of_moves(&world), [AlertName::EvacuationWaits]);
    }
    let windowed = evacuation(Disruption::Window);
    world.requests.evacuations.insert("e".into(), windowed);
    assert_eq!(of_moves(&world), [], "it waits for its window, and for nobody");
}

#[test]
fn an_evacuation_in_which_something_fails_fires_and_a_dry_run_does_not() {
    let mut world = model::World::new();
    let owner = crate::fleet::Owner::Unknown { kind: "Fleet".into(), name: "f".into() };
    world.fleet.vms.get_mut(&model::key("vm")).expect("there").owner = owner;
    world.requests.evacuations.insert("e".into(), evacuation(Disruption::Now));
    world.rounds(300);
    assert_eq!(of_moves(&world), [AlertName::EvacuationFailed]);
    world.requests.evacuations.get_mut("e").expect("there").dry_run = true;
    assert_eq!(of_moves(&world), []);
}

#[test]
fn an_evacuation_without_room_fires_after_a_while() {
    let mut world = model::World::new();
    world.usable.clear();
    world.requests.evacuations.insert("e".into(), evacuation(Disruption::Now));
    world.rounds(100);
    assert_eq!(of_moves(&world), [AlertName::EvacuationStuck]);
}

#[test]
fn backups_are_told_of_only_where_somebody_asks_and_only_of_local_disks() {
    let mut known = State::new();
    known.world.add_disk("web", "x", host_path(), on_host(&["n1"]));
    assert_eq!(known.at_last(), []);
    known.backups = true;
    assert_eq!(known.at_last(), [(AlertName::NoBackupKnown, of_vm("web"))]);
    assert!(known.description().contains("web-x") && !known.description().contains("web-data"));
    let taken = |ready| Snapshot { claim: Some("web-x".to_owned()), ready, taken: None };
    known.world.fleet.snapshots.insert(key("s"), taken(false));
    assert_eq!(known.at_last().len(), 1, "it cannot be restored from");
    known.world.fleet.snapshots.insert(key("s"), taken(true));
    assert_eq!(known.at_last(), []);
    known.world.fleet.snapshots.clear();
    known.world.overrides.0.insert("gold".to_owned(), ClassOverride::Network);
    assert_eq!(known.at_last(), []);
}

#[test]
fn what_is_more_than_anybody_reads_is_counted_and_the_most_urgent_stays() {
    let mut known = State::new();
    for number in 0..2 * ALERTS_MAX {
        let mut vm = running_vm(&format!("vm{number}"), "n1");
        vm.instance = None;
        known.world.fleet.vms.insert(key(&format!("vm{number}")), vm);
        let name = NodeName(format!("silent{number}"));
        known.view.nodes.insert(name, node(NodeState::AgentSilent));
    }
    known.view.storm_hold = Some("many".to_owned());
    let mut alerts = Alerts::default();
    alerts.look(NOW, &known.known());
    let firing = alerts.look(NOW + mins(5), &known.known());
    assert_eq!(firing.alerts.len(), ALERTS_MAX + 1);
    assert_eq!(firing.alerts[0].id.name, AlertName::StormHold);
    let last = firing.alerts.last().expect("there");
    assert_eq!(last.id.name, AlertName::MoreAlerts);
    let left_out = 4 * ALERTS_MAX + 1 - ALERTS_MAX;
    assert!(last.description.starts_with(&left_out.to_string()), "{}", last.description);
    assert_eq!(firing.left_out.len(), left_out);
    assert_eq!(firing.counts[&AlertName::AgentSilent], 2 * ALERTS_MAX);
}

#[test]
fn a_long_description_loses_its_end() {
    let cut = short("é".repeat(DESCRIPTION_CHARS_MAX + 1));
    assert_eq!(cut.chars().count(), DESCRIPTION_CHARS_MAX);
    assert!(cut.ends_with('…'));
    let fits = "é".repeat(DESCRIPTION_CHARS_MAX);
    assert_eq!(short(fits.clone()), fits);
}

fn any_state() -> impl Strategy<Value = State> {
    let states = [
        NodeState::NoAgent,
        NodeState::Healthy,
        NodeState::Suspect,
        NodeState::AgentSilent,
        NodeState::Partitioned,
        NodeState::AwaitingProof,
        NodeState::Fenced,
        NodeState::FenceContradicted,
    ];
    let agents = [
        None,
        Some(FencingState::Untested),
        Some(FencingState::WrongMachine),
        Some(FencingState::RunnerAway { why: String::new() }),
    ];
    let grades = [Grade::Unknown, Grade::Ok, Grade::Warning, Grade::Failing, Grade::Failed];
    let of_node = (0..states.len(), 0..agents.len(), 0..grades.len());
    (proptest::collection::vec(of_node, 3), any::<[bool; 4]>(), 0..4_usize).prop_map(
        move |(nodes, [storm, stopped, backups, local], phase)| {
            let mut known = State::new();
            for (name, (state, agent, grade)) in ["n1", "n2", "n3"].into_iter().zip(nodes) {
                let fence_agent = agents[agent].clone().map(|state| FenceAgentView {
                    state,
                    answered: None,
                    change_refused: None,
                });
                let report = Some(data_report(None, grades[grade], []));
                *known.node(name) = NodeView { fence_agent, report, ..node(states[state]) };
            }
            known.view.storm_hold = storm.then(|| "many".to_owned());
            known.backups = backups;
            if local {
                known.world.add_disk("web", "x", host_path(), on_host(&["n1"]));
            }
            ["Pending", "Running", "Failed", "Succeeded"][phase]
                .clone_into(&mut known.world.instance("web").phase);
            if stopped {
                known.world.vm("web").instance = None;
            }
            known
        },
    )
}

proptest! {
    #[test]
    fn what_fires_is_a_function_of_the_state_and_has_what_people_need(
        before in any_state(), state in any_state(), minutes in 0..3_000_u64,
    ) {
        // Whatever was before: what has ended leaves nothing behind, and what begins is held from now on.
        let mut alerts = Alerts::default();
        alerts.look(NOW, &before.known());
        alerts.look(NOW, &State::new().known());
        alerts.look(NOW, &state.known());
        let firing = alerts.look(NOW + mins(minutes), &state.known());
        prop_assert_eq!(ids(firing.clone()), state.after(mins(minutes)));
        prop_assert!(firing.alerts.len() <= ALERTS_MAX + 1);
        prop_assert_eq!(firing.counts.values().sum::<usize>(), firing.alerts.len());
        let names: BTreeSet<&AlertId> = firing.alerts.iter().map(|alert| &alert.id).collect();
        prop_assert_eq!(names.len(), firing.alerts.len(), "each once");
        for alert in &firing.alerts {
            let labels = alert.id.labels();
            let needed: &[&str] = match &alert.id.subject {
                AlertSubject::Cluster => &[],
                AlertSubject::Node(_) => &["node"],
                AlertSubject::Disk { .. } => &["node", "disk"],
                AlertSubject::Vm(_) => &["namespace", "vm"],
                AlertSubject::Migration(_) => &["namespace", "migration"],
                AlertSubject::Evacuation(_) => &["evacuation"],
            };
            for label in ["alertname", "severity"].iter().chain(needed) {
                prop_assert!(labels.get(label).is_some_and(|value| !value.is_empty()), "{:?}", alert);
            }
            prop_assert_eq!(labels.len(), needed.len() + 2);
            prop_assert!(!alert.description.is_empty() && !alert.id.summary().is_empty());
            prop_assert!(alert.description.chars().count() <= DESCRIPTION_CHARS_MAX);
            prop_assert!(alert.since <= NOW + mins(minutes));
        }
    }
}
