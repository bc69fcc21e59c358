//! Who else was alive when a node's machine was ordered off. A fence agent that is set to another node's machine switches that
//! one off, and then says off with every right: its word would prove the death of a node that lives.
//!
//! ```text
//!   ordered: every node that lives is a bystander
//!      │
//!      ▼
//!   the agent says off ──► one shows life after that ──► it is none any more
//!      │                   one is declared, or back in another boot ──► the agent is not believed in this incident
//!      ▼
//!   no bystander is left ──► the agent's off counts
//! ```
//!
//! Beats that were on their way when a machine lost its power have arrived one beat after the agent's word. A run that failed
//! clears nobody: a slow machine goes off long after it. A goodbye clears nobody: a machine that is shut down gently says it
//! too. Nor does a Node object that is gone: clouds delete those of machines that are off. What an earlier leader has
//! ordered, and when, is not known: then every node must show life that had no incident of its own yet (whoever had one when
//! this one was ordered was no bystander, and one that came after it was noted in the record). A node that no agent was
//! ever heard from is nobody's bystander: nothing would tell that it fell.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::BootTime;
use crate::liveness::{Liveness, Phase};
use crate::names::{BootId, NodeName};
use crate::scene::Scene;

/// The bystanders of one incident.
#[derive(Clone, Debug, Default)]
pub(super) struct Bystanders {
    /// Those that have shown no life since, each with its boot of then.
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

    /// An order goes out now. Whoever was only just heard counts, and whoever was not, as long as nobody calls it dead: after
    /// a stall of ours nobody was heard for a while.
    pub fn ordered(&mut self, node: &NodeName, all: &Liveness) {
        let lives = |phase| {
            matches!(phase, Phase::Healthy | Phase::Expected | Phase::AgentSilent | Phase::Partitioned)
        };
        for (other, pulse) in all.pulses().filter(|(other, pulse)| *other != node && lives(pulse.phase)) {
            let Some(boot) = &pulse.boot else { continue };
            self.waited_for.entry(other.clone()).or_insert_with(|| boot.clone());
        }
    }

    /// Looks at them anew. `confirmed` is when the agent said off, where it has. True where one has fallen only now.
    pub fn look(
        &mut self,
        scene: &Scene<'_>,
        node: &NodeName,
        all: &Liveness,
        had_fallen: impl Fn(&NodeName) -> bool,
        confirmed: Option<BootTime>,
    ) -> bool {
        if self.uncounted && scene.facts.fleet_read {
            self.uncounted = false;
            let told = &scene.facts.fleet.agents_seen;
            let heard = |other: &NodeName| all.pulse(other).and_then(|pulse| pulse.boot.as_ref());
            let boot = |other: &NodeName| heard(other).or_else(|| told.get(other)).cloned();
            let others = scene.facts.fleet.nodes.keys().filter(|other| *other != node && !had_fallen(other));
            self.waited_for.extend(others.filter_map(|other| Some((other.clone(), boot(other)?))));
        }
        let arrived = confirmed.map(|at| at + scene.facts.policy.detection.beat);
        let mut fell = None;
        self.waited_for.retain(|other, boot| {
            let Some(pulse) = all.pulse(other) else { return true };
            let is_same = pulse.boot.as_ref().is_none_or(|now| now == boot);
            if pulse.phase == Phase::Declared || !is_same {
                fell.get_or_insert_with(|| other.clone());
            }
            !(is_same && arrived.is_some_and(|at| pulse.shows_life_since(at)))
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

    /// Somebody who has shown no life yet.
    pub fn waits_for(&self) -> Option<&NodeName> {
        self.waited_for.keys().next()
    }
}
