//! Fence agents while all is well: which nodes have one, and whether it answers for the right machine. Each is asked
//! for its `status`, which switches nothing, every `fencing.statusMs`.
//!
//! ```text
//!   Untested ──► asked ──► on ───────────────────────────────────────► Answers
//!                  │ └──── an error, or nothing in time ─────────────► AnswersNot
//!                  └────── off, and the same boot goes on beating ───► WrongMachine ── its entry is changed,
//!                                                                                      and it says on ──► Answers
//! ```
//!
//! One that may have switched another machine off (see `bystanders`) is doubted, and asked again at once: until it says on of
//! its own node while that beats, it is neither run nor believed.
//!
//! An agent that looks at another machine would switch that one off and prove the death of a node that lives. So
//! once it said off of a node that beats, its word proves nothing and it is not run any more. `on` alone does not
//! mend that: the other machine may have been switched on.
//!
//! Followers ask too: they hear the beats themselves, and the next leader must know what this one knows.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{run_max, words};
use crate::BootTime;
use crate::io::Effect;
use crate::names::{BootId, NodeName};
use crate::scene::Scene;

/// Agents that are asked at the same time: each is a process that logs in to a management controller for about a
/// second, so that a thousand nodes are asked within a few minutes.
const ASKED_MAX: usize = 4;
/// How soon a node that was due while it was not healthy is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How soon one that did not answer is asked again: whoever mends it wants to see that it is mended.
const FAILED_AGAIN: Duration = Duration::from_mins(1);
/// Rounds differ by up to this share of the period, so that agents that share one controller drift apart.
const JITTER: f64 = 0.1;
/// Names without a Node that are told: who mistyped one sees it, and a message stays short.
const STRANGERS_MAX: usize = 3;

/// Differs when a node's entry in the fence configuration names another agent or another machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentRevision(pub String);

/// Which nodes have a fence agent, as last told by whoever runs them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FenceRoster {
    /// The nodes that have one.
    pub agents: BTreeMap<NodeName, AgentRevision>,
    /// Why none of them can be run now, where that is so.
    pub away: Option<String>,
    /// Why a changed configuration is not in use, where that is so: the one before it is.
    pub problem: Option<String>,
}

/// What a fence agent said when it was asked for the status of its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceAnswer {
    /// The machine is on.
    On,
    /// It is off.
    Off,
    /// It did not say, with the reason for people.
    Failed(String),
}

/// What is known about fencing by power, for whoever judges.
#[derive(Clone, Debug, Default)]
pub(crate) struct PowerOff {
    /// `None` until it was told: then the policy's own list counts.
    roster: Option<FenceRoster>,
    wrong: BTreeMap<NodeName, Wrong>,
    /// Nodes whose agents may have switched another machine off.
    doubted: BTreeSet<NodeName>,
}

/// An agent that looks at another machine.
#[derive(Clone, Debug)]
struct Wrong {
    revision: Option<AgentRevision>,
    told: bool,
}

impl PowerOff {
    /// The nodes whose agents could be run now, trusted or not.
    fn runnable<'a>(&'a self, listed: &'a BTreeSet<NodeName>) -> Box<dyn Iterator<Item = &'a NodeName> + 'a> {
        match &self.roster {
            None => Box::new(listed.iter()),
            Some(roster) if roster.away.is_some() => Box::new(std::iter::empty()),
            Some(roster) => Box::new(roster.agents.keys()),
        }
    }

    /// A fence agent is configured for the node.
    fn has_agent(&self, listed: &BTreeSet<NodeName>, node: &NodeName) -> bool {
        self.roster.as_ref().map_or_else(|| listed.contains(node), |roster| roster.agents.contains_key(node))
    }

    fn away(&self) -> Option<&str> {
        self.roster.as_ref()?.away.as_deref()
    }

    fn problem(&self) -> Option<&str> {
        self.roster.as_ref()?.problem.as_deref()
    }

    fn revision(&self, node: &NodeName) -> Option<&AgentRevision> {
        self.roster.as_ref()?.agents.get(node)
    }

    /// The node's agent looks at another machine.
    pub fn is_wrong(&self, node: &NodeName) -> bool {
        self.wrong.contains_key(node)
    }

    /// From now on its word proves nothing.
    pub fn distrust(&mut self, node: &NodeName) {
        let revision = self.revision(node).cloned();
        self.wrong.entry(node.clone()).or_insert(Wrong { revision, told: false });
    }

    /// It may have switched another machine off: until it says on of a node that beats, its word proves nothing.
    pub fn doubt(&mut self, node: &NodeName) {
        self.doubted.insert(node.clone());
    }

    /// It may have switched another machine off.
    pub fn is_doubted(&self, node: &NodeName) -> bool {
        self.doubted.contains(node)
    }

    /// It says on, of a node that beats. Whether it was not trusted before.
    pub fn mended(&mut self, node: &NodeName) -> bool {
        self.doubted.remove(node);
        let revision = self.revision(node).cloned();
        let mended = self.wrong.get(node).is_some_and(|wrong| wrong.revision != revision);
        mended && self.wrong.remove(node).is_some()
    }

    /// Agents that nobody was told about yet.
    pub fn tell(&mut self, fx: &mut Vec<Effect>) {
        for (node, wrong) in self.wrong.iter_mut().filter(|(_, wrong)| !wrong.told) {
            wrong.told = true;
            words::wrong_machine(fx, node);
        }
    }

    /// Another leader's successor tells it again.
    pub fn begin_leading(&mut self) {
        self.wrong.values_mut().for_each(|wrong| wrong.told = false);
    }

    pub fn forget(&mut self, node: &NodeName) {
        self.wrong.remove(node);
        self.doubted.remove(node);
    }

    /// Whoever runs the agents told which nodes have one. Returns the nodes whose agents can be run only now,
    /// or name another machine now.
    pub fn told(&mut self, roster: FenceRoster, leads: bool, fx: &mut Vec<Effect>) -> Vec<NodeName> {
        let before = self.roster.replace(roster).unwrap_or_default();
        let Some(now) = &self.roster else { return Vec::new() };
        if leads {
            words::roster_changed(fx, &before, now);
        }
        if now.away.is_some() {
            return Vec::new();
        }
        let same = |node: &NodeName| before.away.is_none() && before.agents.get(node) == now.agents.get(node);
        now.agents.keys().filter(|node| !same(node)).cloned().collect()
    }
}

impl Scene<'_> {
    /// A fence agent is configured for the node.
    pub fn has_fence_agent(&self, node: &NodeName) -> bool {
        self.facts.power_off.has_agent(&self.facts.policy.fencing.nodes, node)
    }

    /// The node's fence agent can be run now, and what it says counts.
    pub fn can_power_off(&self, node: &NodeName) -> bool {
        let power = &self.facts.power_off;
        let trusted = !power.is_wrong(node) && !power.is_doubted(node);
        self.has_fence_agent(node) && power.away().is_none() && trusted
    }
}

/// What a node's fence agent said when it was last asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FencingState {
    /// It was not asked yet.
    Untested,
    /// It answers, for a machine that is on.
    Answers,
    /// It does not answer.
    AnswersNot {
        /// Why, for people.
        why: String,
    },
    /// Whatever runs the agents cannot be reached.
    RunnerAway {
        /// Why, for people.
        why: String,
    },
    /// It looks at another machine.
    WrongMachine,
    /// None is configured, and the configuration holds a mistake that may be why.
    NotConfigured {
        /// Which, for people.
        why: String,
    },
}

/// Condition reason while no fence runner answers the coordinator.
pub const RUNNER_AWAY: &str = "RunnerAway";
/// Condition reason where an agent answers, but a change of the configuration is not in use.
pub const CHANGE_REFUSED: &str = "ChangeRefused";
/// Condition reason of a node without a fence agent while the configuration holds a mistake that may be why.
pub const NOT_CONFIGURED: &str = "NotConfigured";

impl FencingState {
    /// Condition reason and metric label.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Untested => "Untested",
            Self::Answers => "Answers",
            Self::AnswersNot { .. } => "AnswersNot",
            Self::RunnerAway { .. } => RUNNER_AWAY,
            Self::WrongMachine => "WrongMachine",
            Self::NotConfigured { .. } => NOT_CONFIGURED,
        }
    }
}

/// A node's fence agent, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceAgentView {
    /// What it said.
    pub state: FencingState,
    /// When it last said that the machine is on.
    pub answered: Option<BootTime>,
    /// Why a changed configuration is not in use, where that is so: what is said here is of the one before it.
    pub change_refused: Option<String>,
}

/// A node, as far as asking its agent goes.
pub(crate) struct Patient<'a> {
    pub healthy: bool,
    pub boot: Option<&'a BootId>,
}

/// Asks the agents in turn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rounds {
    checks: BTreeMap<NodeName, Check>,
    look_at: BootTime,
    /// The first few names with a fence agent that no Node has: a typo, or a node that is yet to come.
    strangers: Vec<NodeName>,
    /// Of which people were told, while we lead.
    strangers_told: Vec<NodeName>,
}

#[derive(Clone, Debug, Default)]
struct Check {
    /// Which entry of the configuration this is about.
    revision: Option<AgentRevision>,
    /// What is asked now was asked by an entry of before: its answer says nothing.
    stale: bool,
    due: BootTime,
    round: u32,
    asked: Option<Asked>,
    failed: Option<String>,
    answered: Option<BootTime>,
    /// It said off, at this time, of a node that was beating in this boot.
    off: Option<(BootId, BootTime)>,
}

#[derive(Clone, Debug)]
struct Asked {
    boot: BootId,
    until: BootTime,
}

impl Rounds {
    /// Something changed: look before the next due time.
    pub fn look_now(&mut self) {
        self.look_at = BootTime::ZERO;
    }

    /// Asks whoever is due.
    pub fn tick<'a>(
        &mut self,
        scene: &Scene<'_>,
        patient: impl Fn(&NodeName) -> Patient<'a>,
        fx: &mut Vec<Effect>,
    ) {
        if scene.now < self.look_at {
            return;
        }
        let late = self.checks.iter().filter(|(_, check)| check.is_late(scene.now));
        let late: Vec<NodeName> = late.map(|(node, _)| node.clone()).collect();
        for node in late {
            self.failed(scene, &node, "it did not answer in time", fx);
        }
        let (power, listed) = (&scene.facts.power_off, &scene.facts.policy.fencing.nodes);
        self.checks.retain(|node, _| power.has_agent(listed, node) && scene.exists(node));
        let mut asked = self.checks.values().filter(|check| check.asked.is_some()).count();
        // While no runner answers, nothing is said of its names: they are as they were.
        if power.away().is_none() {
            self.strangers.clear();
        }
        for node in power.runnable(listed) {
            if !scene.exists(node) {
                if self.strangers.len() < STRANGERS_MAX {
                    self.strangers.push(node.clone());
                }
                continue;
            }
            let check = self.checks.entry(node.clone()).or_default();
            check.follow(power.revision(node), scene.now);
            // The policy may have changed since.
            check.due = check.due.min(scene.now + scene.facts.policy.fencing.status);
            if check.asked.is_some() || scene.now < check.due || asked >= ASKED_MAX {
                continue;
            }
            let Patient { healthy: true, boot: Some(boot) } = patient(node) else {
                check.due = scene.now + LOOK_AGAIN;
                continue;
            };
            asked += 1;
            let timeout = scene.facts.policy.fencing.timeout;
            check.asked = Some(Asked { boot: boot.clone(), until: scene.now + run_max(scene) });
            fx.push(Effect::AskFence { node: node.clone(), timeout });
        }
        if scene.facts.epoch.is_some() && self.strangers != self.strangers_told {
            self.strangers_told.clone_from(&self.strangers);
            words::strangers(fx, &self.strangers);
        }
        let full = asked >= ASKED_MAX;
        let next = |check: &Check| match &check.asked {
            Some(asked) => Some(asked.until),
            None => (!full).then_some(check.due),
        };
        let again = scene.now + LOOK_AGAIN;
        let next = self.checks.values().filter_map(next).min().unwrap_or(again);
        // A Node object that is missing may come at any time.
        self.look_at = if self.strangers.is_empty() { next } else { next.min(again) };
    }

    /// An agent answered. Whether its entry was mended.
    pub fn answered(
        &mut self,
        scene: &Scene<'_>,
        node: &NodeName,
        answer: &FenceAnswer,
        patient: &Patient<'_>,
        fx: &mut Vec<Effect>,
    ) -> bool {
        let Some(check) = self.checks.get_mut(node) else { return false };
        let Some(Asked { boot, .. }) = check.asked.clone() else { return false };
        if std::mem::take(&mut check.stale) {
            check.asked = None;
            self.look_now();
            return false;
        }
        match answer {
            FenceAnswer::Failed(why) => self.failed(scene, node, why, fx),
            FenceAnswer::On => {
                check.next_round(scene, node);
                check.off = None;
                check.answered = Some(scene.now);
                if check.failed.take().is_some() && scene.facts.epoch.is_some() {
                    words::answers_again(fx, node);
                }
                self.look_now();
                return patient.healthy && patient.boot == Some(&boot);
            }
            FenceAnswer::Off => {
                check.next_round(scene, node);
                // Nothing is wrong where the node has died meanwhile: only further beats of this boot tell.
                check.off = (patient.boot == Some(&boot)).then_some((boot, scene.now));
            }
        }
        self.look_now();
        false
    }

    fn failed(&mut self, scene: &Scene<'_>, node: &NodeName, why: &str, fx: &mut Vec<Effect>) {
        let Some(check) = self.checks.get_mut(node) else { return };
        check.next_round(scene, node);
        check.due = check.due.min(scene.now + FAILED_AGAIN);
        let first = check.failed.replace(why.to_owned()).is_none();
        if first && scene.facts.epoch.is_some() {
            words::answers_not(fx, node, why, check.answered.is_some());
        }
    }

    /// Something speaks against it: it is asked as soon as its node is healthy.
    pub fn ask_soon(&mut self, scene: &Scene<'_>, node: &NodeName) {
        if let Some(check) = self.checks.get_mut(node) {
            check.due = scene.now;
            self.look_now();
        }
    }

    /// A run that was to switch the machine off has failed, and was told of: until it answers again, nobody shall think that
    /// it would.
    pub fn run_failed(&mut self, scene: &Scene<'_>, node: &NodeName, why: &str) {
        if let Some(check) = self.checks.get_mut(node) {
            check.failed = Some(format!("it could not switch the machine off: {why}"));
            check.due = check.due.min(scene.now + FAILED_AGAIN);
            self.look_now();
        }
    }

    /// The node beats. True where its agent said off of this very boot: what was under way then has arrived.
    pub fn beat(&mut self, scene: &Scene<'_>, node: &NodeName, boot: &BootId) -> bool {
        let Some(check) = self.checks.get_mut(node) else { return false };
        let Some((said_of, at)) = &check.off else { return false };
        if said_of == boot && scene.now <= *at + scene.facts.policy.detection.declare {
            return false;
        }
        let wrong = said_of == boot;
        check.off = None;
        wrong
    }

    /// For people; `None` where no agent is configured, and no mistake is known that may be why.
    pub fn view(&self, scene: &Scene<'_>, node: &NodeName) -> Option<FenceAgentView> {
        let refused = scene.facts.power_off.problem();
        if !scene.has_fence_agent(node) {
            let state = FencingState::NotConfigured { why: self.mistake(scene)? };
            return Some(FenceAgentView { state, answered: None, change_refused: None });
        }
        let check = self.checks.get(node);
        let state = if scene.facts.power_off.is_wrong(node) {
            FencingState::WrongMachine
        } else if let Some(why) = scene.facts.power_off.away() {
            FencingState::RunnerAway { why: why.to_owned() }
        } else if scene.facts.power_off.is_doubted(node) {
            let why =
                "another node fell when it was run: believed again once it says on while this one beats";
            FencingState::AnswersNot { why: why.to_owned() }
        } else if let Some(why) = check.and_then(|check| check.failed.clone()) {
            FencingState::AnswersNot { why }
        } else if check.is_some_and(|check| check.answered.is_some()) {
            FencingState::Answers
        } else {
            FencingState::Untested
        };
        let answered = check.and_then(|check| check.answered);
        Some(FenceAgentView { state, answered, change_refused: refused.map(str::to_owned) })
    }

    /// The mistake in the configuration for which a node may have no agent.
    pub fn mistake(&self, scene: &Scene<'_>) -> Option<String> {
        if let Some(why) = scene.facts.power_off.problem() {
            return Some(format!("the fence configuration cannot be used: {why}"));
        }
        let names = words::listed(&self.strangers);
        (!names.is_empty())
            .then(|| format!("the fence configuration does not name it, but {names}, as no node is called"))
    }

    /// When time alone allows a next step.
    pub fn next_deadline(&self) -> Option<BootTime> {
        (!self.checks.is_empty()).then_some(self.look_at)
    }
}

impl Check {
    /// Another entry names another machine, or the same one otherwise: what the one before said counts no more, and the new
    /// one is asked at once.
    fn follow(&mut self, revision: Option<&AgentRevision>, now: BootTime) {
        if self.revision.as_ref() != revision {
            let (asked, round) = (self.asked.take(), self.round);
            let stale = asked.is_some();
            *self = Self { revision: revision.cloned(), due: now, asked, stale, round, ..Self::default() };
        }
    }

    fn is_late(&self, now: BootTime) -> bool {
        self.asked.as_ref().is_some_and(|asked| now >= asked.until)
    }

    fn next_round(&mut self, scene: &Scene<'_>, node: &NodeName) {
        (self.asked, self.stale) = (None, false);
        self.round = self.round.wrapping_add(1);
        let share = f64::from(hash(node, self.round) % 1_000) / 1_000.0;
        self.due = scene.now + scene.facts.policy.fencing.status.mul_f64(1.0 - JITTER * share);
    }
}

/// FNV-1a: spreads, and needs no randomness, which the core does not have.
fn hash(node: &NodeName, round: u32) -> u32 {
    let bytes = node.as_str().bytes().chain(round.to_le_bytes());
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
