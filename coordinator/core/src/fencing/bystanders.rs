//! Who else was alive when a node's machine was ordered off. A fence agent that is set to another node's machine switches that
//! one off, and then says off with every right: its word would prove the death of a node that lives.
//!
//! ```text
//!   ordered: every node that beats is a bystander
//!      │
//!      ▼                          one beats again once the run has ended ──► it is none any more
//!   the run has ended ────────────►│
//!                                  one is declared, or back in another boot ──► the agent is not believed in this incident
//!   no bystander is left ──► the agent's off counts
//! ```
//!
//! Beats that were on their way when a machine lost its power have arrived by the end of the run and one beat more. A goodbye
//! clears nobody: a machine that is shut down gently says it too. What an earlier leader has ordered, and when, is not known:
//! then every node must beat that was not proven dead before.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::BootTime;
use crate::liveness::{Liveness, Phase, Pulse};
use crate::names::{BootId, NodeName};
use crate::scene::Scene;

/// The bystanders of one incident.
#[derive(Clone, Debug, Default)]
pub(super) struct Bystanders {
    /// Those that have not beaten since, each with its boot of then.
    waited_for: BTreeMap<NodeName, BootId>,
    /// An earlier leader has ordered, and nobody was counted yet.
    uncounted: bool,
    /// The first that fell.
    fell: Option<NodeName>,
}

impl Bystanders {
    /// An earlier leader has ordered.
    pub fn unknown() -> Self {
        Self { uncounted: true, ..Self::default() }
    }

    /// An order goes out now.
    pub fn ordered(&mut self, scene: &Scene<'_>, node: &NodeName, all: &Liveness) {
        let limit = scene.facts.policy.detection.suspect();
        let beats = |pulse: &Pulse| {
            pulse.phase == Phase::Healthy && pulse.last_beat.is_some_and(|at| scene.now < at + limit)
        };
        for (other, pulse) in all.pulses().filter(|(other, pulse)| *other != node && beats(pulse)) {
            let Some(boot) = &pulse.boot else { continue };
            self.waited_for.entry(other.clone()).or_insert_with(|| boot.clone());
        }
    }

    /// Looks at them anew. `ended` is when the last run ended, while none is under way. True where one has fallen only now.
    pub fn look(
        &mut self,
        scene: &Scene<'_>,
        node: &NodeName,
        all: &Liveness,
        was_proven: impl Fn(&NodeName) -> bool,
        ended: Option<BootTime>,
    ) -> bool {
        if self.uncounted && scene.facts.fleet_read {
            self.uncounted = false;
            let told = &scene.facts.fleet.agents_seen;
            let heard = |other: &NodeName| all.pulse(other).and_then(|pulse| pulse.boot.as_ref());
            let boot = |other: &NodeName| heard(other).or_else(|| told.get(other)).cloned();
            let others = scene.facts.fleet.nodes.keys().filter(|other| *other != node && !was_proven(other));
            self.waited_for.extend(others.filter_map(|other| Some((other.clone(), boot(other)?))));
        }
        let arrived = ended.map(|at| at + scene.facts.policy.detection.beat);
        let mut fell = None;
        self.waited_for.retain(|other, boot| {
            let pulse = all.pulse(other).filter(|_| scene.exists(other));
            // Its Node object is gone: nobody will hear of it again.
            let Some(pulse) = pulse else { return scene.exists(other) };
            let is_same = pulse.boot.as_ref().is_none_or(|now| now == boot);
            if pulse.phase == Phase::Declared || !is_same {
                fell.get_or_insert_with(|| other.clone());
            }
            !(is_same && pulse.last_beat > arrived && arrived.is_some())
        });
        let news = self.fell.is_none() && fell.is_some();
        self.fell = self.fell.take().or(fell);
        news
    }

    /// The agent's word counts: nobody else was switched off.
    pub fn all_live(&self) -> bool {
        !self.uncounted && self.fell.is_none() && self.waited_for.is_empty()
    }

    /// Who fell.
    pub fn fell(&self) -> Option<&NodeName> {
        self.fell.as_ref()
    }

    /// Somebody who has not beaten yet.
    pub fn waits_for(&self) -> Option<&NodeName> {
        self.waited_for.keys().next()
    }
}
