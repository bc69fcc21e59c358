//! One node, as far as anything was heard of it: its beats, its boots, its kubelet's lease, and the answers to the probes
//! that are out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::BootTime;
use crate::io::{Effect, Prober, Reachability, Severity};
use crate::names::{BootId, NodeName};
use crate::scene::{Scene, tell_node};

/// Peers that are asked about a suspect: enough that one slow answer does not decide.
const PEERS_ASKED: usize = 3;
/// How long a renewed kubelet lease speaks for its node: the kubelet renews every 10 s, half again for the way.
const KUBELET_FRESH: Duration = Duration::from_secs(15);
/// How late we may see that a kubelet has renewed its lease: watches are late by less, even of a busy API server.
const LEASE_LATE_MAX: Duration = Duration::from_secs(5);
/// How long a node without a Node object is remembered after its last beat: its object may just be late.
const FORGET_AFTER: Duration = Duration::from_mins(10);
/// How long an agent that beat for an earlier coordinator has to find us. One that lives tries twice a second; one
/// whose pod is being replaced together with ours takes half a minute.
pub(crate) const EXPECTED_WITHIN: Duration = Duration::from_secs(30);
/// How late a beat of an ended boot may arrive: its stream dies with it, and what was under way arrives at once.
const LATE_BEAT_MAX: Duration = Duration::from_secs(10);
/// Why nothing is known of a node.
pub(crate) const NEVER_HEARD: &str = "no agent there was heard from since this coordinator started";
/// Earlier boots that are remembered, so that a late beat of one is not taken for a new boot.
const EARLIER_BOOTS_MAX: usize = 8;

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
    pub(super) quiet_since: BootTime,
    pub(super) kubelet_seen: Option<BootTime>,
    pub(super) status_boot: Option<BootId>,
    /// Boot that Node.status named when the last beat arrived.
    pub status_at_beat: Option<BootId>,
    pub(super) round: Round,
    /// Since when it had been alive without beats when that was last told.
    told_alive: Option<BootTime>,
}

/// One round of probes.
#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    pub(super) started: BootTime,
    /// Probes are out, or were: it is no mere sign to begin anew.
    asked: bool,
    deadline: BootTime,
    pub(super) answers: BTreeMap<Prober, Option<Reachability>>,
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

impl Pulse {
    pub(super) fn new(now: BootTime) -> Self {
        Self {
            phase: Phase::NoAgent,
            since: now,
            why: NEVER_HEARD.to_owned(),
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
            told_alive: None,
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

    /// A beat came after this moment; or, of a node whose agent is silent and that is known to live, its kubelet renewed its
    /// lease, or it answered one of our probes.
    pub fn shows_life_since(&self, moment: BootTime) -> bool {
        if self.last_beat.is_some_and(|at| at > moment) {
            return true;
        }
        let kubelet = self.kubelet_seen.is_some_and(|at| at > moment + LEASE_LATE_MAX);
        let alive = matches!(self.phase, Phase::AgentSilent | Phase::Partitioned);
        alive && (kubelet || self.round.was_answered_since(moment))
    }

    /// When a kubelet that has renewed its lease does not speak for its node any more.
    pub fn kubelet_speaks_until(&self) -> Option<BootTime> {
        self.kubelet_seen.map(|seen| seen + KUBELET_FRESH)
    }

    /// Beats are to arrive soon, of an agent that we have not heard ourselves.
    pub(super) fn expect(&mut self, now: BootTime) {
        self.quiet_since = now + EXPECTED_WITHIN;
        let why =
            format!("its agent beat before this coordinator started; silence counts in {EXPECTED_WITHIN:?}");
        self.enter(Phase::Expected, now, why);
    }

    /// Whether this boot has ended, as far as we know.
    pub fn has_ended(&self, boot: &BootId) -> bool {
        self.earlier_boots.contains(boot)
    }

    pub(super) fn boot_of(&self, boot: &BootId, now: BootTime) -> BeatOf {
        // Where the order of two boots was misjudged, the one that goes on beating is right.
        let quiet = self.last_beat.is_none_or(|at| now.saturating_sub(at) > LATE_BEAT_MAX);
        match &self.boot {
            _ if self.has_ended(boot) && !quiet => BeatOf::Ended,
            Some(known) if known != boot => BeatOf::New,
            _ => BeatOf::Known,
        }
    }

    pub(super) fn take_boot(&mut self, boot: &BootId) {
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

    pub(super) fn enter(&mut self, phase: Phase, now: BootTime, why: String) {
        if self.phase != phase {
            self.since = now;
        }
        self.phase = phase;
        self.why = why;
    }

    /// Asks the node itself and some healthy peers: those that follow it by name, so that the load spreads.
    pub(super) fn ask(
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
            asked: true,
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

    pub(super) fn judge_suspect(&mut self, scene: &Scene<'_>) {
        if !self.round.is_over(scene.now) {
            return;
        }
        if let Some((phase, how)) = self.sign_of_life(scene) {
            self.enter(phase, scene.now, format!("no beats, but {how}"));
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

    pub(super) fn judge_alive(
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
        }
        if scene.now >= self.round.started + scene.facts.policy.detection.declare {
            self.tell_alive(node, how, fx);
            self.ask(scene, node, healthy, fx);
        }
    }

    /// Once for each time, and only when it has lasted for a round: an agent that answers may be about to beat again, as
    /// one does whose node was frozen for a moment.
    fn tell_alive(&mut self, node: &NodeName, how: &str, fx: &mut Vec<Effect>) {
        if self.told_alive == Some(self.since) {
            return;
        }
        self.told_alive = Some(self.since);
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

    pub(super) fn next_deadline(&self, scene: &Scene<'_>) -> Option<BootTime> {
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
    pub(super) fn over(now: BootTime) -> Self {
        let answers = BTreeMap::from([(Prober::Coordinator, Some(Reachability::Kernel))]);
        Self { started: now, asked: false, deadline: now, answers }
    }

    fn was_answered_since(&self, moment: BootTime) -> bool {
        let answered = || self.answers.values().flatten().any(|answer| *answer > Reachability::Silent);
        self.asked && self.started > moment && answered()
    }

    fn is_over(&self, now: BootTime) -> bool {
        now >= self.deadline || self.answers.values().all(Option::is_some)
    }
}
