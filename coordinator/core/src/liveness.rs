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

mod storm;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use self::storm::StormWatch;
use crate::BootTime;
use crate::io::{Effect, Notice, Prober, Reachability, Severity, Subject};
use crate::names::{BootId, NodeName};
use crate::scene::{Scene, tell_node};

/// Peers that are asked about a suspect: enough that one slow answer does not decide.
const PEERS_ASKED: usize = 3;
/// How long a renewed kubelet lease speaks for its node: the kubelet renews every 10 s, half again for the way.
const KUBELET_FRESH: Duration = Duration::from_secs(15);
/// How long a node without a Node object is remembered after its last beat: its object may just be late.
const FORGET_AFTER: Duration = Duration::from_mins(10);
/// How long an agent that beat for an earlier coordinator has to find us. One that lives tries twice a second; one
/// whose pod is being replaced together with ours takes half a minute.
pub(crate) const EXPECTED_WITHIN: Duration = Duration::from_secs(30);
/// How late a beat of an ended boot may arrive: its stream dies with it, and what was under way arrives at once.
const LATE_BEAT_MAX: Duration = Duration::from_secs(10);
/// Why a node is healthy.
const BEATS: &str = "beats arrive";
/// Earlier boots that are remembered, so that a late beat of one is not taken for a new boot.
const EARLIER_BOOTS_MAX: usize = 8;

/// All nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Liveness {
    nodes: BTreeMap<NodeName, Pulse>,
    storm: StormWatch,
}

/// Where a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Never heard from.
    NoAgent,
    /// Not heard from since we started, but by a coordinator before us.
    Expected,
    /// Beats arrive.
    Healthy,
    /// Beats are missing.
    Suspect,
    /// The agent is silent, its node is not.
    AgentSilent,
    /// Peers reach the agent.
    Partitioned,
    /// We suspect ourselves.
    StormHold,
    /// Declared: fencing has it.
    Declared,
}

/// One node.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    /// Where it stands.
    pub phase: Phase,
    /// Since when.
    pub since: BootTime,
    /// Why, for people.
    pub why: String,
    /// Boot of the last beat.
    pub boot: Option<BootId>,
    /// When the last beat arrived.
    pub last_beat: Option<BootTime>,
    /// When it last became suspect.
    pub suspected_at: Option<BootTime>,
    /// It said goodbye and has not come back.
    pub left: bool,
    earlier_boots: VecDeque<BootId>,
    quiet_since: BootTime,
    kubelet_seen: Option<BootTime>,
    status_boot: Option<BootId>,
    /// Boot that Node.status named when the last beat arrived.
    pub status_at_beat: Option<BootId>,
    round: Round,
}

/// One round of probes.
#[derive(Clone, Debug, Default)]
struct Round {
    started: BootTime,
    deadline: BootTime,
    answers: BTreeMap<Prober, Option<Reachability>>,
}

/// What a beat is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BeatOf {
    /// The boot that we know, or the first that we hear of.
    Known,
    /// A boot that is new to us.
    New,
    /// A boot that has ended: a late message.
    Ended,
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
            tell_node(fx, Severity::Info, node, "NodeHealthy", message);
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
                Phase::Suspect => pulse.judge_suspect(scene, node, fx),
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

impl Pulse {
    fn new(now: BootTime) -> Self {
        Self {
            phase: Phase::NoAgent,
            since: now,
            why: "its agent was never heard from".to_owned(),
            boot: None,
            last_beat: None,
            suspected_at: None,
            left: false,
            earlier_boots: VecDeque::new(),
            quiet_since: now,
            kubelet_seen: None,
            status_boot: None,
            status_at_beat: None,
            round: Round::default(),
        }
    }

    /// Nothing was heard of it for a while, or ever.
    pub fn is_quiet(&self, now: BootTime) -> bool {
        self.last_beat.is_none_or(|at| now.saturating_sub(at) > FORGET_AFTER)
    }

    /// Its kubelet has renewed its lease after this moment, and not long ago.
    pub fn kubelet_lives(&self, now: BootTime, after: BootTime) -> bool {
        self.kubelet_seen.is_some_and(|seen| seen > after && now.saturating_sub(seen) < KUBELET_FRESH)
    }

    /// When a kubelet that has renewed its lease does not speak for its node any more.
    pub fn kubelet_speaks_until(&self) -> Option<BootTime> {
        self.kubelet_seen.map(|seen| seen + KUBELET_FRESH)
    }

    /// Beats are to arrive soon, of an agent that we have not heard ourselves.
    fn expect(&mut self, now: BootTime) {
        self.quiet_since = now + EXPECTED_WITHIN;
        let why =
            format!("its agent beat before this coordinator started; silence counts in {EXPECTED_WITHIN:?}");
        self.enter(Phase::Expected, now, why);
    }

    /// Whether this boot has ended, as far as we know.
    pub fn has_ended(&self, boot: &BootId) -> bool {
        self.earlier_boots.contains(boot)
    }

    fn boot_of(&self, boot: &BootId, now: BootTime) -> BeatOf {
        // Where the order of two boots was misjudged, the one that goes on beating is right.
        let quiet = self.last_beat.is_none_or(|at| now.saturating_sub(at) > LATE_BEAT_MAX);
        match &self.boot {
            _ if self.has_ended(boot) && !quiet => BeatOf::Ended,
            Some(known) if known != boot => BeatOf::New,
            _ => BeatOf::Known,
        }
    }

    fn take_boot(&mut self, boot: &BootId) {
        if self.boot.as_ref() == Some(boot) {
            return;
        }
        self.earlier_boots.retain(|earlier| earlier != boot);
        if let Some(ended) = self.boot.replace(boot.clone()) {
            self.earlier_boots.push_back(ended);
        }
        if self.earlier_boots.len() > EARLIER_BOOTS_MAX {
            self.earlier_boots.pop_front();
        }
    }

    fn enter(&mut self, phase: Phase, now: BootTime, why: String) {
        if self.phase != phase {
            self.since = now;
        }
        self.phase = phase;
        self.why = why;
    }

    /// Asks the node itself and some healthy peers: those that follow it by name, so that the load spreads.
    fn ask(
        &mut self,
        scene: &Scene<'_>,
        node: &NodeName,
        healthy: &BTreeSet<NodeName>,
        fx: &mut Vec<Effect>,
    ) {
        let detection = &scene.facts.policy.detection;
        let after = healthy.range::<NodeName, _>(node..);
        let before = healthy.range::<NodeName, _>(..node);
        let peers =
            after.chain(before).filter(|peer| *peer != node).take(PEERS_ASKED).cloned().map(Prober::Peer);
        let probers: Vec<Prober> = std::iter::once(Prober::Coordinator).chain(peers).collect();
        self.round = Round {
            started: scene.now,
            deadline: scene.now + detection.probe_deadline(),
            answers: probers.iter().map(|by| (by.clone(), None)).collect(),
        };
        let timeout = detection.probe_timeout;
        fx.extend(probers.into_iter().map(|by| Effect::Probe { node: node.clone(), by, timeout }));
    }

    /// A sign of life since the suspicion, as the phase that it leads to and what it was.
    fn sign_of_life(&self, scene: &Scene<'_>) -> Option<(Phase, &'static str)> {
        let best = |peer: bool| {
            let of = |(by, answer): (&Prober, &Option<Reachability>)| {
                (matches!(by, Prober::Peer(_)) == peer).then_some(*answer).flatten()
            };
            self.round.answers.iter().filter_map(of).max().unwrap_or(Reachability::Silent)
        };
        let (ours, theirs) = (best(false), best(true));
        if ours > Reachability::Silent {
            return Some((Phase::AgentSilent, "it answers our probe"));
        }
        if theirs == Reachability::Agent {
            return Some((Phase::Partitioned, "its peers reach its agent, we do not"));
        }
        if theirs == Reachability::Kernel {
            return Some((Phase::AgentSilent, "its kernel answers its peers"));
        }
        let fresh = |seen: BootTime| {
            Some(seen) >= self.suspected_at && scene.now.saturating_sub(seen) < KUBELET_FRESH
        };
        self.kubelet_seen.is_some_and(fresh).then_some((Phase::AgentSilent, "its kubelet renews its lease"))
    }

    fn judge_suspect(&mut self, scene: &Scene<'_>, node: &NodeName, fx: &mut Vec<Effect>) {
        if !self.round.is_over(scene.now) {
            return;
        }
        if let Some((phase, how)) = self.sign_of_life(scene) {
            self.enter(phase, scene.now, format!("no beats, but {how}"));
            self.tell_alive(node, how, fx);
        } else if scene.now >= self.quiet_since + scene.facts.policy.detection.declare {
            let why = match self.last_beat {
                Some(at) => {
                    format!("no beat for {:.1?}, and every probe is silent", scene.now.saturating_sub(at))
                }
                None => "no beat since this coordinator started, and every probe is silent".to_owned(),
            };
            self.enter(Phase::Declared, scene.now, why);
        }
    }

    fn judge_alive(
        &mut self,
        scene: &Scene<'_>,
        node: &NodeName,
        healthy: &BTreeSet<NodeName>,
        fx: &mut Vec<Effect>,
    ) {
        if !self.round.is_over(scene.now) {
            return;
        }
        let Some((phase, how)) = self.sign_of_life(scene) else {
            self.suspected_at = Some(scene.now);
            self.enter(Phase::Suspect, scene.now, "the last sign of life is gone; probes are out".to_owned());
            self.ask(scene, node, healthy, fx);
            return;
        };
        if phase != self.phase {
            self.enter(phase, scene.now, format!("no beats, but {how}"));
            self.tell_alive(node, how, fx);
        }
        if scene.now >= self.round.started + scene.facts.policy.detection.declare {
            self.ask(scene, node, healthy, fx);
        }
    }

    fn tell_alive(&self, node: &NodeName, how: &str, fx: &mut Vec<Effect>) {
        let (reason, todo) = match self.phase {
            Phase::Partitioned => {
                ("NodePartitioned", "look at the network between the coordinator and the node")
            }
            _ => ("AgentSilent", "look at the agent's pod and log on that node"),
        };
        let message =
            format!("No beats of {node}, but {how}: this is no node death, nothing is done. To do: {todo}.");
        tell_node(fx, Severity::Warning, node, reason, message);
    }

    fn next_deadline(&self, scene: &Scene<'_>) -> Option<BootTime> {
        let detection = &scene.facts.policy.detection;
        let over = self.round.is_over(scene.now);
        match self.phase {
            Phase::Healthy | Phase::Expected => Some(self.quiet_since + detection.suspect()),
            Phase::Suspect if over => Some(self.quiet_since + detection.declare),
            Phase::AgentSilent | Phase::Partitioned if over => Some(self.round.started + detection.declare),
            Phase::Suspect | Phase::AgentSilent | Phase::Partitioned => Some(self.round.deadline),
            Phase::NoAgent | Phase::StormHold | Phase::Declared => None,
        }
    }
}

impl Round {
    /// A round that nobody answers any more, so that the next one begins.
    fn over(now: BootTime) -> Self {
        let answers = BTreeMap::from([(Prober::Coordinator, Some(Reachability::Kernel))]);
        Self { started: now, deadline: now, answers }
    }

    fn is_over(&self, now: BootTime) -> bool {
        now >= self.deadline || self.answers.values().all(Option::is_some)
    }
}
