//! Beats, probes and the kubelet's lease -> who is silent, and whether that means anything.
//!
//! ```text
//!             first beat           3 missed beats
//!   NoAgent ────────────► Healthy ────────────────► Suspect ── declare time over, every probe silent ──► Declared
//!                          ▲  ▲  ▲                   │ │ │ ▲                                             (fencing
//!                          │  │  │    a beat         │ │ │ │ kernel, kubelet and peers silent too         goes on)
//!                          │  │  └───────────────────┘ │ │ │                                                 │
//!                          │  │        ┌───────────────┘ └─┼─► AgentSilent (kernel or kubelet answers) ───┐  │
//!                          │  │        ▼ a storm           ├── Partitioned (peers reach the agent)        │  │
//!                          │  │     StormHold ─────────────┘◄─────────────────────────────────────────────┘  │
//!                          │  └── a beat, from any of them                                                   │
//!                          └── incident closed, or Quarantine begun ◄────────────────────────────────────────┘
//! ```
//!
//! A node whose agent beat in the time of an earlier coordinator, as its `NodeHealth` tells, and which we have not heard
//! ourselves yet, is `Expected`: its silence counts from our start or leadership, and 30 s more for agents that start
//! together with us. It leads to `Healthy` by a beat, and to `Suspect` without one.
//!
//! A node in `StormHold` for which somebody else gives a proof is declared at once. A goodbye makes silence
//! unsuspicious for a while. A leader change and a stall of our own loop start every timer anew. A Node object
//! that is gone takes its node out of the diagram; a node without one is never judged. Declaring needs
//! leadership; beats are noted always, so that a follower knows the fleet when it takes over.

mod pulse;
mod storm;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use self::pulse::Round;
pub(crate) use self::pulse::{BeatOf, EXPECTED_WITHIN, NEVER_HEARD, Phase, Pulse};
use self::storm::StormWatch;
use crate::BootTime;
use crate::io::{Effect, Notice, Prober, Reachability, Severity, Subject};
use crate::names::{BootId, NodeName};
use crate::scene::{Scene, tell_node};

/// Why a node is healthy.
const BEATS: &str = "beats arrive";

/// All nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Liveness {
    nodes: BTreeMap<NodeName, Pulse>,
    storm: StormWatch,
}

impl Liveness {
    /// The node, where anything is known of it.
    pub fn pulse(&self, node: &NodeName) -> Option<&Pulse> {
        self.nodes.get(node)
    }

    /// Every node of which anything is known.
    pub fn pulses(&self) -> impl Iterator<Item = (&NodeName, &Pulse)> {
        self.nodes.iter()
    }

    /// Beats are missing of some node, and it is not told yet what that means.
    pub fn any_suspect(&self) -> bool {
        self.nodes.values().any(|pulse| pulse.phase == Phase::Suspect)
    }

    /// Why nothing is declared, while nothing is.
    pub fn hold(&self) -> Option<&str> {
        self.storm.hold()
    }

    /// A beat arrived.
    pub fn beat(
        &mut self,
        scene: &Scene<'_>,
        node: &NodeName,
        boot: &BootId,
        fx: &mut Vec<Effect>,
    ) -> BeatOf {
        let pulse = self.nodes.entry(node.clone()).or_insert_with(|| Pulse::new(scene.now));
        let beat = pulse.boot_of(boot, scene.now);
        if beat == BeatOf::Ended {
            return beat;
        }
        pulse.take_boot(boot);
        pulse.last_beat = Some(scene.now);
        pulse.quiet_since = scene.now;
        pulse.status_at_beat = scene.facts.fleet.nodes.get(node).and_then(|node| node.boot_id.clone());
        pulse.left = false;
        if pulse.phase == Phase::Declared {
            return beat;
        }
        if pulse.phase == Phase::Healthy {
            // What was said while no beat had come yet is not so any more.
            if pulse.why != BEATS {
                BEATS.clone_into(&mut pulse.why);
            }
            return beat;
        }
        let (before, silent_for) = (pulse.phase, scene.now.saturating_sub(pulse.since));
        pulse.enter(Phase::Healthy, scene.now, BEATS.to_owned());
        self.storm.cleared(node);
        if scene.facts.epoch.is_some() && !matches!(before, Phase::NoAgent | Phase::Expected) {
            let message =
                format!("{node} beats again after {silent_for:.1?} of suspicion; nothing was done.");
            tell_node(fx, Severity::Info, node, "SuspicionEnded", message);
        }
        beat
    }

    /// The agent stops on purpose.
    pub fn goodbye(&mut self, scene: &Scene<'_>, node: &NodeName, boot: &BootId) {
        let Some(pulse) = self.nodes.get_mut(node) else { return };
        if pulse.boot.as_ref() != Some(boot) || pulse.phase == Phase::Declared {
            return;
        }
        pulse.left = true;
        pulse.quiet_since = scene.now + scene.facts.policy.detection.goodbye;
        let why =
            format!("its agent said goodbye; silence counts in {:?}", scene.facts.policy.detection.goodbye);
        pulse.enter(Phase::Healthy, scene.now, why);
        self.storm.cleared(node);
    }

    /// A probe ended.
    pub fn probed(&mut self, node: &NodeName, by: &Prober, answer: Reachability) {
        let Some(pulse) = self.nodes.get_mut(node) else { return };
        if let Some(slot) = pulse.round.answers.get_mut(by) {
            *slot = Some(slot.unwrap_or(answer).max(answer));
        }
    }

    /// The kubelet renewed its lease.
    pub fn kubelet_renewed(&mut self, scene: &Scene<'_>, node: &NodeName) {
        if let Some(pulse) = self.nodes.get_mut(node) {
            pulse.kubelet_seen = Some(scene.now);
        }
    }

    /// The cluster was read anew. A boot id in Node.status that changes is a kubelet at work.
    pub fn fleet_read(&mut self, scene: &Scene<'_>) {
        for node in scene.facts.fleet.nodes.keys() {
            if !self.nodes.contains_key(node) {
                self.nodes.insert(node.clone(), Pulse::new(scene.now));
            }
        }
        for (node, boot) in scene.facts.fleet.agents_seen.iter().filter(|(node, _)| scene.exists(node)) {
            let pulse = self.nodes.entry(node.clone()).or_insert_with(|| Pulse::new(scene.now));
            if pulse.phase == Phase::NoAgent {
                pulse.boot = Some(boot.clone());
                pulse.expect(scene.now);
            }
        }
        for (name, pulse) in &mut self.nodes {
            let Some(node) = scene.facts.fleet.nodes.get(name) else { continue };
            if node.boot_id.is_some() && pulse.status_boot != node.boot_id {
                if pulse.status_boot.is_some() {
                    pulse.kubelet_seen = Some(scene.now);
                }
                pulse.status_boot.clone_from(&node.boot_id);
            }
        }
    }

    /// Silence counts from `from` only: our own loop stood still, or beats are due at other times now.
    pub fn restart_timers(&mut self, scene: &Scene<'_>, from: BootTime, why: &str) {
        self.storm.restart();
        for (node, pulse) in &mut self.nodes {
            pulse.quiet_since = pulse.quiet_since.max(from);
            match pulse.phase {
                Phase::Suspect => {
                    pulse.enter(Phase::Healthy, scene.now, why.to_owned());
                    self.storm.cleared(node);
                }
                Phase::AgentSilent | Phase::Partitioned => pulse.round = Round::over(scene.now),
                _ => {}
            }
        }
    }

    /// We lead now: every silence counts from here.
    pub fn begin_leading(&mut self, scene: &Scene<'_>) {
        self.storm.reset();
        for pulse in self.nodes.values_mut() {
            pulse.quiet_since = pulse.quiet_since.max(scene.now);
            if pulse.phase == Phase::NoAgent {
                continue;
            }
            if pulse.last_beat.is_some() {
                pulse.enter(Phase::Healthy, scene.now, "timers start anew with a new leader".to_owned());
            } else {
                pulse.expect(scene.now);
            }
        }
    }

    /// A leader before us declared this boot of the node.
    pub fn inherit_declared(&mut self, scene: &Scene<'_>, node: &NodeName, boot: Option<&BootId>) {
        let pulse = self.nodes.entry(node.clone()).or_insert_with(|| Pulse::new(scene.now));
        if pulse.boot.is_none() {
            pulse.boot = boot.cloned();
        }
        pulse.enter(Phase::Declared, scene.now, "declared unreachable by an earlier leader".to_owned());
    }

    /// The node is given back: its silence counts again from now. `boot` is the boot in which it came back after
    /// `declared` had ended; a boot that we heard of ourselves counts for more.
    pub fn watch_again(
        &mut self,
        scene: &Scene<'_>,
        node: &NodeName,
        declared: Option<&BootId>,
        boot: Option<&BootId>,
    ) {
        let pulse = self.nodes.entry(node.clone()).or_insert_with(|| Pulse::new(scene.now));
        if let Some(boot) = boot.filter(|_| pulse.boot.is_none() || pulse.boot.as_ref() == declared) {
            pulse.take_boot(boot);
        }
        pulse.quiet_since = scene.now;
        pulse.enter(Phase::Healthy, scene.now, BEATS.to_owned());
        self.storm.cleared(node);
    }

    /// The Node object is gone.
    pub fn forget(&mut self, node: &NodeName) {
        self.nodes.remove(node);
        self.storm.cleared(node);
    }

    /// Lets time pass; only while we lead. Returns the nodes that are declared now. `proven` tells whether
    /// somebody else's proof is at hand for this boot of a node.
    pub fn judge(
        &mut self,
        scene: &Scene<'_>,
        proven: impl Fn(&NodeName, &Pulse) -> bool,
        fx: &mut Vec<Effect>,
    ) -> Vec<NodeName> {
        let known = self.known(scene);
        self.suspect_the_quiet(scene, &known, fx);
        self.end_hold(scene, &known, fx);
        let healthy = self.in_phase(&known, &[Phase::Healthy]);
        let mut declared = Vec::new();
        for node in &known {
            let Some(pulse) = self.nodes.get_mut(node) else { continue };
            let before = pulse.phase;
            match pulse.phase {
                Phase::Suspect => pulse.judge_suspect(scene),
                Phase::AgentSilent | Phase::Partitioned => pulse.judge_alive(scene, node, &healthy, fx),
                Phase::StormHold if proven(node, pulse) => {
                    pulse.enter(Phase::Declared, scene.now, "silent, and proven by others".to_owned());
                }
                _ => {}
            }
            let after = pulse.phase;
            match (before, after) {
                (Phase::Suspect, Phase::AgentSilent | Phase::Partitioned) => self.storm.cleared(node),
                (_, Phase::Suspect) if before != after => self.note_suspicion(scene, node, &known, fx),
                (_, Phase::Declared) if before != after => declared.push(node.clone()),
                _ => {}
            }
        }
        declared
    }

    /// When time alone changes something.
    pub fn next_deadline(&self, scene: &Scene<'_>) -> Option<BootTime> {
        let pulses = self.nodes.iter().filter(|(node, _)| scene.exists(node));
        let hold = self.storm.next_deadline(scene.facts.policy.storm.calm);
        pulses.filter_map(|(_, pulse)| pulse.next_deadline(scene)).chain(hold).min()
    }

    fn known(&self, scene: &Scene<'_>) -> BTreeSet<NodeName> {
        let heard = |(node, pulse): &(&NodeName, &Pulse)| pulse.phase != Phase::NoAgent && scene.exists(node);
        self.nodes.iter().filter(heard).map(|(node, _)| node.clone()).collect()
    }

    fn in_phase(&self, among: &BTreeSet<NodeName>, phases: &[Phase]) -> BTreeSet<NodeName> {
        let is = |node: &&NodeName| self.nodes.get(*node).is_some_and(|pulse| phases.contains(&pulse.phase));
        among.iter().filter(is).cloned().collect()
    }

    fn suspect_the_quiet(&mut self, scene: &Scene<'_>, known: &BTreeSet<NodeName>, fx: &mut Vec<Effect>) {
        let suspect_after = scene.facts.policy.detection.suspect();
        let quiet = |node: &&NodeName| {
            let pulse = &self.nodes[*node];
            matches!(pulse.phase, Phase::Healthy | Phase::Expected)
                && scene.now >= pulse.quiet_since + suspect_after
        };
        let quiet: Vec<NodeName> = known.iter().filter(quiet).cloned().collect();
        // All of them first, so that none of them is asked about another.
        for node in &quiet {
            let Some(pulse) = self.nodes.get_mut(node) else { continue };
            let why = format!("no beat for {suspect_after:?}; probes are out");
            pulse.suspected_at = Some(scene.now);
            pulse.enter(Phase::Suspect, scene.now, why);
        }
        let healthy = self.in_phase(known, &[Phase::Healthy]);
        for node in &quiet {
            let Some(pulse) = self.nodes.get_mut(node) else { continue };
            pulse.ask(scene, node, &healthy, fx);
            let message = format!("{node} missed its beats; asking it and its peers whether it lives.");
            tell_node(fx, Severity::Info, node, "NodeSuspect", message);
            self.note_suspicion(scene, node, known, fx);
        }
    }

    fn note_suspicion(
        &mut self,
        scene: &Scene<'_>,
        node: &NodeName,
        known: &BTreeSet<NodeName>,
        fx: &mut Vec<Effect>,
    ) {
        let begins = self.storm.suspected(scene, node, known);
        let Some(why) = self.storm.hold().map(str::to_owned) else { return };
        for pulse in self.nodes.values_mut().filter(|pulse| pulse.phase == Phase::Suspect) {
            pulse.enter(Phase::StormHold, scene.now, format!("{why}: we suspect ourselves first"));
        }
        if begins {
            let message = format!(
                "{why}. Nothing is declared and nobody is powered off: look at the coordinator's own network and at \
                 the switches first. If the nodes are really dead, power them off yourself and attest it, or release \
                 the hold by changing holdRelease of the RecoveryPolicy."
            );
            let (severity, subject) = (Severity::Critical, Subject::Coordinator);
            fx.push(Effect::Notify(Notice { severity, subject, reason: "StormHold", message }));
        }
    }

    fn end_hold(&mut self, scene: &Scene<'_>, known: &BTreeSet<NodeName>, fx: &mut Vec<Effect>) {
        let suspects = self.in_phase(known, &[Phase::Suspect, Phase::StormHold]);
        let Some(why) = self.storm.ended(scene, &suspects, known) else { return };
        let healthy = self.in_phase(known, &[Phase::Healthy]);
        for node in self.in_phase(known, &[Phase::StormHold]) {
            let Some(pulse) = self.nodes.get_mut(&node) else { continue };
            pulse.suspected_at = Some(scene.now);
            pulse.enter(Phase::Suspect, scene.now, "the storm hold ended; probes are out".to_owned());
            pulse.ask(scene, &node, &healthy, fx);
        }
        let message = format!("The storm hold is over: {why}. Silent nodes are now judged one by one.");
        let (severity, subject) = (Severity::Info, Subject::Coordinator);
        fx.push(Effect::Notify(Notice { severity, subject, reason: "StormHoldOver", message }));
    }
}
