//! What the coordinator shows of itself.

use super::Coordinator;
use crate::fencing::{Case, proofs_possible};
use crate::liveness::{Phase, Pulse};
use crate::names::NodeName;
use crate::scene::Scene;
use crate::view::{NodeState, NodeView, View};

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
            migrations: self.migrations.views(),
            evacuations: self.evacuations.views(),
            storm_hold: self.liveness.hold().map(str::to_owned),
        }
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
                (state_of(pulse.phase), pulse.since, format!("{}; before that, {}", pulse.why, case.words()))
            }
            (Some(case), _) => (case.state(acted), case.since(), case.words()),
            (None, Some(pulse)) => (state_of(pulse.phase), pulse.since, pulse.why.clone()),
            (None, None) => (NodeState::NoAgent, self.now, "its agent was never heard from".to_owned()),
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
