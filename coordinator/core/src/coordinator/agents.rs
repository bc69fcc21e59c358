//! What the coordinator makes of its fence agents: whose power can be cut, and who is asked whether it can.

use super::Coordinator;
use crate::fencing::agents::{FenceAnswer, FenceRoster, Patient};
use crate::fencing::words;
use crate::io::Effect;
use crate::liveness::Phase;
use crate::names::NodeName;
use crate::scene::Scene;

impl Coordinator {
    /// Asks whoever is due; leader or not.
    pub(super) fn ask_fence_agents(&mut self, fx: &mut Vec<Effect>) {
        let scene = Scene { now: self.now, facts: &self.facts };
        let (liveness, cases) = (&self.liveness, &self.cases);
        let suspect_after = scene.facts.policy.detection.suspect();
        let patient = |node: &NodeName| {
            let Some(pulse) = liveness.pulse(node) else { return Patient { healthy: false, boot: None } };
            let beats = pulse.last_beat.is_some_and(|at| scene.now < at + suspect_after);
            let healthy = beats && pulse.phase == Phase::Healthy && !pulse.left && !cases.contains_key(node);
            Patient { healthy, boot: pulse.boot.as_ref() }
        };
        self.rounds.tick(&scene, patient, fx);
    }

    /// Which nodes have a fence agent was read anew.
    pub(super) fn take_roster(&mut self, roster: FenceRoster, fx: &mut Vec<Effect>) {
        let leads = self.facts.epoch.is_some();
        let new = self.facts.power_off.told(roster, leads, fx);
        let scene = Scene { now: self.now, facts: &self.facts };
        for node in new {
            if let Some(case) = self.cases.get_mut(&node) {
                case.agent_is_back(&scene);
            }
        }
        self.rounds.look_now();
    }

    /// A fence agent said what its machine does.
    pub(super) fn take_answer(&mut self, node: &NodeName, answer: &FenceAnswer, fx: &mut Vec<Effect>) {
        let scene = Scene { now: self.now, facts: &self.facts };
        let pulse = self.liveness.pulse(node);
        let patient = Patient {
            healthy: pulse.is_some_and(|pulse| pulse.phase == Phase::Healthy),
            boot: pulse.and_then(|pulse| pulse.boot.as_ref()),
        };
        let on_for_sure = self.rounds.answered(&scene, node, answer, &patient, fx);
        if on_for_sure && self.facts.power_off.mended(node) && self.facts.epoch.is_some() {
            words::mended(fx, node);
        }
    }
}
