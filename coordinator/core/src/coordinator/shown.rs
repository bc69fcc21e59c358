//! What the coordinator shows of itself.

use std::collections::BTreeMap;

use super::Coordinator;
use crate::fencing::{Case, proofs_possible};
use crate::liveness::{self, Phase, Pulse};
use crate::migration::{self, Context, refusal};
use crate::names::{Key, NodeName};
use crate::scene::Scene;
use crate::view::{MigrationView, NodeState, NodeView, View};

impl Coordinator {
    /// What to show.
    pub fn view(&self) -> View {
        let scene = Scene { now: self.now, facts: &self.facts };
        let objects = self.facts.fleet.nodes.keys();
        let names = objects.chain(self.liveness.pulses().map(|(node, _)| node)).chain(self.cases.keys());
        View {
            nodes: names.map(|node| (node.clone(), self.node_view(node))).collect(),
            recoveries: self.recovery.views(&scene, &self.storage),
            storage_in_doubt: self.storage.in_doubt(self.now),
            migrations: self.migration_views(),
            evacuations: self.evacuations.views(),
            storm_hold: self.liveness.hold().map(str::to_owned),
        }
    }

    /// Of a migration that has not begun, with what it waits for: that changes with the cluster, and is not stored.
    fn migration_views(&self) -> BTreeMap<Key, MigrationView> {
        let mut views = self.migrations.views();
        let mut waiting =
            views.iter_mut().filter(|(_, view)| view.record.phase == migration::Phase::Pending).peekable();
        if waiting.peek().is_none() {
            return views;
        }
        let (usable, dead) = (self.usable(), self.dead());
        let (fleet, requests, policy) = (&self.facts.fleet, &self.facts.requests, &self.facts.policy);
        let epoch = self.facts.epoch.unwrap_or_default();
        let context = Context { fleet, requests, policy, epoch, usable: &usable, dead: &dead };
        for (key, view) in waiting {
            let request = requests.migrations.get(key);
            let refusal = request.and_then(|request| refusal(key, &request.spec, &context));
            let (reason, message) = refusal.map_or_else(
                || {
                    if !self.migrations.turns_are_taken() {
                        let what = "the API server is asked whether it would take what has to be made";
                        return ("BeingChecked", what.to_owned());
                    }
                    let limit = migration::ACTIVE_MAX;
                    let what =
                        format!("{limit} others copy, or hold up their VMs: it begins when one has ended");
                    ("WaitsForItsTurn", what)
                },
                |refusal| (refusal.reason, refusal.message),
            );
            view.record.reason = Some(reason.to_owned());
            view.record.message = message;
        }
        views
    }

    fn node_view(&self, node: &NodeName) -> NodeView {
        let scene = Scene { now: self.now, facts: &self.facts };
        let (pulse, case) = (self.liveness.pulse(node), self.cases.get(node));
        let acted = self.recovery.settled(&scene, node).acted;
        let (state, since, message) = match (case, pulse) {
            // A node in quarantine that falls silent again is first of all that.
            (Some(case), Some(pulse))
                if !matches!(
                    pulse.phase,
                    Phase::Healthy | Phase::Declared | Phase::NoAgent | Phase::Expected
                ) =>
            {
                (
                    state_of(pulse.phase),
                    pulse.since,
                    format!("{}; before that, {}", pulse.why, case.words(&scene)),
                )
            }
            (Some(case), _) => (case.state(acted), case.since(), case.words(&scene)),
            (None, Some(pulse)) => (state_of(pulse.phase), pulse.since, pulse.why.clone()),
            (None, None) => (NodeState::NoAgent, self.now, liveness::NEVER_HEARD.to_owned()),
        };
        let past = || self.past_timelines.get(node).cloned().unwrap_or_default();
        NodeView {
            state,
            since,
            message,
            boot_id: pulse.and_then(|pulse: &Pulse| pulse.boot.clone()),
            proofs_possible: proofs_possible(&scene, node),
            fence_agent: self.rounds.view(&scene, node),
            proof: case.and_then(Case::proven_by),
            timeline: case.map_or_else(past, |case| case.timeline().to_vec()),
            report: self.reports.get(node).cloned(),
            fence: case.and_then(Case::stored).cloned(),
        }
    }
}

fn state_of(phase: Phase) -> NodeState {
    match phase {
        Phase::NoAgent | Phase::Expected => NodeState::NoAgent,
        Phase::Healthy => NodeState::Healthy,
        Phase::Suspect => NodeState::Suspect,
        Phase::AgentSilent => NodeState::AgentSilent,
        Phase::Partitioned => NodeState::Partitioned,
        Phase::StormHold => NodeState::StormHold,
        Phase::Declared => NodeState::AwaitingProof,
    }
}

#[cfg(test)]
mod tests {
    use crate::coordinator::testkit::{Bench, fast};
    use crate::decision::testkit::key;
    use crate::io::{Record, RecordKey};
    use crate::migration::{Destination, MigrationRequest, MigrationSpec, Phase, Unreadable, WhichDisks};

    fn ask(bench: &mut Bench) {
        let spec = MigrationSpec {
            vm: Some("local".to_owned()),
            claim: None,
            destination: Destination::Node("n2".into()),
            pre_copy_only: false,
            cancelled: false,
            remove_old: false,
            unreadable: Unreadable::Fail,
            disks: WhichDisks::Local,
            probe: None,
            evacuation: None,
        };
        bench.requests.migrations.insert(key("m"), MigrationRequest { uid: "u".into(), spec });
        bench.show_requests();
    }

    fn stored(bench: &Bench) -> Option<(Phase, Option<&str>)> {
        match bench.store.get(&RecordKey::Migration(key("m"))) {
            Some(Record::Migration(record)) => Some((record.phase, record.reason.as_deref())),
            _ => None,
        }
    }

    /// Otherwise it would be written anew each second, for ever.
    #[test]
    fn a_node_without_an_agent_shows_the_same_for_as_long_as_nothing_happens() {
        let mut bench = Bench::new(fast(&[]));
        bench.fleet.nodes.insert("windows".into(), crate::fleet::Node::default());
        bench.show_fleet();
        let shown = |bench: &Bench| bench.view().nodes[&crate::names::NodeName::from("windows")].clone();
        let first = shown(&bench);
        bench.run_ms(60_000);
        assert_eq!(shown(&bench), first);
    }

    #[test]
    fn a_migration_that_waits_says_for_what() {
        let mut bench = Bench::new(fast(&[]));
        ask(&mut bench);
        bench.run_ms(1_000);
        let shown = &bench.c.view().migrations[&key("m")];
        assert_eq!(shown.record.phase, Phase::Pending);
        assert_eq!(shown.record.reason.as_deref(), Some("TargetNotReported"), "no agent has reported here");
        assert!(shown.record.message.contains("n2"), "{}", shown.record.message);
        assert_eq!(stored(&bench), None, "it is shown, and not stored");
        bench.run_ms(70_000);
        assert_eq!(stored(&bench), Some((Phase::Failed, Some("TargetNotReported"))));
    }

    #[test]
    fn nobody_waits_for_a_dead_node_to_be_copied_from() {
        let mut bench = Bench::new(fast(&[]));
        bench.silence(&["n1"]);
        bench.run_ms(5_000);
        ask(&mut bench);
        bench.run_ms(1_000);
        assert_eq!(stored(&bench), Some((Phase::Failed, Some("SourceDead"))));
    }
}
