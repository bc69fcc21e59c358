//! The fencing of one node: facts come in at any time, [`Case::advance`] takes the next step that they allow.
//! The states are drawn in the parent module.
//!
//! Everything is level-triggered: which step comes next follows from the stored record and the facts, so a lost
//! answer, a new leader or a repeated input needs no case of its own. At most one commit is under way.

mod next;

use std::collections::BTreeSet;

use super::bystanders::Bystanders;
use super::lease::LeaseWatch;
use super::{Attested, FenceProof, FenceRecord, FenceStage, PowerTaints, ProofKind, run_max, words};
use crate::BootTime;
use crate::io::{Effect, FenceResult, Record};
use crate::liveness::{BeatOf, EXPECTED_WITHIN, Liveness, Phase, Pulse};
use crate::names::{BootId, NodeName};
use crate::scene::Scene;
use crate::view::{Milestone, NodeState};

/// How long a Node object may be gone before its incident ends: an editor may write a file in two steps, and a
/// cluster may be read in between.
const REMOVED_AFTER: BootTime = BootTime::from_secs(10);
/// Entries of a timeline: an incident has some ten, one that flaps for weeks must not grow for ever.
const TIMELINE_MAX: usize = 40;

/// One incident, as far as fencing goes.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    node: NodeName,
    /// The boot that was declared.
    boot: Option<BootId>,
    /// Boot that Node.status named while the declared boot was beating: no news, however it differs.
    status_then: Option<BootId>,
    /// We have seen what Node.status said before: a difference is a new boot, and not an old reading.
    status_known: bool,
    /// Another boot than the declared one that Node.status names, of which we cannot tell whether it is newer.
    status_doubt: Option<BootId>,
    stored: Option<FenceRecord>,
    pending: Option<FenceRecord>,
    /// The node is to be declared, whatever an older record says.
    declare: bool,
    commit_after: BootTime,
    /// Since when it is at its stage.
    since: BootTime,
    /// Since when the case is ours.
    begun: BootTime,
    /// The proof that was stored in this incident.
    proven_by: Option<ProofKind>,
    /// Last beat of the declared boot since the declaration.
    last_beat: Option<BootTime>,
    new_boot: Option<BootId>,
    power: Power,
    proven_at: Option<BootTime>,
    /// It beats in the very boot that was proven dead.
    contradicted: bool,
    /// Since when the returned node has been beating without a gap.
    trusted_since: Option<BootTime>,
    missing_since: Option<BootTime>,
    /// Who has given a word that does not count, as was told.
    left_over: Option<String>,
    remind_at: BootTime,
    timeline: Vec<(Milestone, BootTime)>,
}

/// The fence agent's part.
#[derive(Clone, Debug, Default)]
struct Power {
    /// An order may have reached the machine, in this epoch or before.
    ordered: bool,
    /// The agent said off, and the node went on beating.
    lied: bool,
    /// Why its last run failed.
    failed: Option<String>,
    running_until: Option<BootTime>,
    /// A run that an earlier leader began may still be under way.
    foreign_until: Option<BootTime>,
    confirmed_at: Option<BootTime>,
    bystanders: Bystanders,
    attempts: u32,
    next_at: BootTime,
}

/// What recovery says of the node's VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    /// No deletion is under way.
    pub idle: bool,
    /// VMs that are, or will be, acted upon.
    pub open: usize,
    /// At least one was acted upon.
    pub acted: bool,
}

/// What a case may look at besides the scene.
pub(crate) struct Around<'a> {
    pub pulse: Option<&'a Pulse>,
    /// Of every node.
    pub liveness: &'a Liveness,
    /// Nodes with an incident of their own.
    pub fallen: &'a BTreeSet<NodeName>,
    pub leases: &'a LeaseWatch,
    pub taints: &'a PowerTaints,
    pub attested: &'a Attested,
    /// A storm hold: nobody is powered off.
    pub hold: bool,
    pub settled: Settled,
}

impl Case {
    /// A node was declared.
    pub fn declared(scene: &Scene<'_>, node: &NodeName, pulse: &Pulse) -> Self {
        let mut case = Self::new(scene, node, pulse.boot.clone());
        case.declare = true;
        case.know_status(pulse);
        case.mark_declared(scene, pulse);
        case
    }

    /// A returned node fell silent again before its incident was over: the record in the store is replaced.
    pub fn declared_again(self, scene: &Scene<'_>, pulse: &Pulse) -> Self {
        let mut case = Self::declared(scene, &self.node, pulse);
        case.stored = self.stored;
        case.pending = self.pending;
        case.commit_after = self.commit_after;
        case
    }

    /// A leader before us left this record.
    pub fn inherited(scene: &Scene<'_>, record: FenceRecord, pulse: Option<&Pulse>) -> Self {
        let mut case = Self::new(scene, &record.node, record.boot_id.clone());
        if let Some(pulse) = pulse.filter(|pulse| pulse.boot == record.boot_id) {
            case.know_status(pulse);
        }
        if record.stage == FenceStage::PowerOrdered {
            case.power.ordered = true;
            case.power.bystanders = Bystanders::unknown();
            case.power.foreign_until = Some(scene.now + run_max(scene));
        }
        // A process that has just started has heard nobody yet: the node may beat in a moment.
        if pulse.is_none_or(|pulse| pulse.last_beat.is_none()) {
            case.power.next_at = scene.now + EXPECTED_WITHIN;
        }
        case.proven_at = matches!(record.stage, FenceStage::Fenced { .. }).then_some(scene.now);
        if let FenceStage::Quarantine { boot_id } = &record.stage {
            case.new_boot = Some(boot_id.clone());
        }
        case.stored = Some(record);
        case.proven_by = case.proof_kind();
        case
    }

    fn new(scene: &Scene<'_>, node: &NodeName, boot: Option<BootId>) -> Self {
        Self {
            node: node.clone(),
            boot,
            status_then: None,
            status_known: false,
            status_doubt: None,
            stored: None,
            pending: None,
            declare: false,
            commit_after: BootTime::ZERO,
            since: scene.now,
            begun: scene.now,
            proven_by: None,
            last_beat: None,
            new_boot: None,
            power: Power::default(),
            proven_at: None,
            contradicted: false,
            trusted_since: None,
            missing_since: None,
            left_over: None,
            remind_at: scene.now + scene.facts.policy.fencing.reminder,
            timeline: Vec::new(),
        }
    }

    fn know_status(&mut self, pulse: &Pulse) {
        self.status_then.clone_from(&pulse.status_at_beat);
        self.status_known = self.status_then.is_some();
    }

    fn mark_declared(&mut self, scene: &Scene<'_>, pulse: &Pulse) {
        let past = [(Milestone::LastBeat, pulse.last_beat), (Milestone::Suspected, pulse.suspected_at)];
        self.timeline.extend(past.into_iter().filter_map(|(what, at)| Some((what, at?))));
        self.mark(Milestone::Declared, scene.now);
        self.mark(Milestone::Decided, scene.now);
    }

    /// The record as stored.
    pub fn stored(&self) -> Option<&FenceRecord> {
        self.stored.as_ref()
    }

    /// What happened when.
    pub fn timeline(&self) -> &[(Milestone, BootTime)] {
        &self.timeline
    }

    /// Notes that something happened.
    pub fn mark(&mut self, what: Milestone, at: BootTime) {
        if self.timeline.len() < TIMELINE_MAX && self.timeline.iter().all(|(known, _)| *known != what) {
            self.timeline.push((what, at));
        }
    }

    /// A stage is stored under our epoch that keeps the node out of service.
    pub fn wants_taint(&self) -> bool {
        self.stored.as_ref().is_some_and(|record| record.stage != FenceStage::Closed)
    }

    /// The node is back in another boot.
    pub fn has_returned(&self) -> bool {
        self.new_boot.is_some()
    }

    /// What the record proves, if it proves anything.
    pub fn proof_kind(&self) -> Option<ProofKind> {
        match self.stored.as_ref()?.stage {
            FenceStage::Fenced { proof } => Some(proof),
            _ => None,
        }
    }

    /// The permission to act: the proof is stored under our epoch, the node has not come back, and nothing
    /// contradicts it.
    pub fn proof(&self, scene: &Scene<'_>) -> Option<FenceProof> {
        let (epoch, record) = (scene.facts.epoch?, self.stored.as_ref()?);
        let kind = self.proof_kind()?;
        let usable = record.epoch == epoch
            && !self.declare
            && !self.contradicted
            && self.new_boot.is_none()
            && self.status_doubt.is_none()
            && self.is_silent(scene);
        usable.then(|| FenceProof { node: self.node.clone(), boot_id: self.boot.clone(), kind, epoch })
    }

    /// The proof that was stored in this incident.
    pub fn proven_by(&self) -> Option<ProofKind> {
        self.proven_by
    }

    /// Since when it is at its stage.
    pub fn since(&self) -> BootTime {
        self.since
    }

    /// The stage in words.
    pub fn words(&self, scene: &Scene<'_>) -> String {
        if self.contradicted && !self.declare {
            return words::stands_contradicted(&self.node, self.proof_kind(), self.is_silent(scene));
        }
        if let Some(words) = self.words_of_agent(scene) {
            return words;
        }
        let stage = self.stored.as_ref().filter(|_| !self.declare).map(|record| &record.stage);
        words::stage(&self.node, stage, self.last_beat.is_some(), self.power.failed.as_deref())
    }

    /// While the node is silent, and its agent was run and is not believed, or not yet.
    fn words_of_agent(&self, scene: &Scene<'_>) -> Option<String> {
        if !self.is_at(&FenceStage::PowerOrdered) || self.last_beat.is_some() {
            return None;
        }
        let bystanders = &self.power.bystanders;
        if let Some(other) = bystanders.fell() {
            return Some(words::stands_with_fallen(&self.node, other));
        }
        if self.distrusts_agent(scene) {
            return Some(words::stands_distrusted(&self.node));
        }
        let other = bystanders.waits_for().filter(|_| self.power.confirmed_at.is_some())?;
        Some(words::waits_for_bystander(&self.node, other))
    }

    /// Its agent was run, and another node fell; it has not come back itself.
    pub fn agent_hit_another(&self) -> bool {
        self.power.bystanders.fell().is_some() && self.new_boot.is_none()
    }

    /// Whether a beat of this boot may be answered.
    pub fn may_grant(&self, boot: &BootId) -> bool {
        let trusted = self.stored.as_ref().is_some_and(
            |record| matches!(&record.stage, FenceStage::Quarantine { boot_id } if boot_id == boot),
        );
        trusted && !self.declare
    }

    /// What to show.
    pub fn state(&self, acted: bool) -> NodeState {
        match self.stored.as_ref().map(|record| &record.stage) {
            _ if self.declare => NodeState::AwaitingProof,
            _ if self.contradicted => NodeState::FenceContradicted,
            Some(FenceStage::Fenced { .. }) if acted => NodeState::Recovering,
            Some(FenceStage::Fenced { .. }) => NodeState::Fenced,
            Some(FenceStage::Quarantine { .. } | FenceStage::Closed) => NodeState::Quarantine,
            None | Some(FenceStage::Declared | FenceStage::PowerOrdered) => NodeState::AwaitingProof,
        }
    }

    /// A beat arrived. True where it contradicts the proof for the first time.
    pub fn beat(&mut self, scene: &Scene<'_>, boot: &BootId, beat: BeatOf, fx: &mut Vec<Effect>) -> bool {
        let declared = self.boot.get_or_insert_with(|| boot.clone());
        if beat == BeatOf::Ended {
            return false;
        }
        if declared != boot {
            self.returned(scene, boot, fx);
            return false;
        }
        self.last_beat = Some(scene.now);
        // What was under way when the machine was switched off may still arrive; after that, it lives.
        let in_flight = scene.facts.policy.detection.declare;
        if self.power.confirmed_at.is_some_and(|at| scene.now > at + in_flight) && self.proof_kind().is_none()
        {
            self.power.confirmed_at = None;
            self.power.lied = true;
            self.run_failed(
                scene,
                "it said off, but the node still beats: does it switch another machine?",
                fx,
            );
        }
        let lives =
            self.proof_kind().is_some() && self.proven_at.is_some_and(|at| scene.now > at + in_flight);
        if !lives || self.contradicted || self.new_boot.is_some() {
            return false;
        }
        self.contradicted = true;
        self.power.lied |= self.proof_kind() == Some(ProofKind::PowerOffConfirmed);
        words::contradicted(fx, &self.node, self.proof_kind());
        true
    }

    /// Its fence agent said off, and the node went on beating: it switches another machine.
    pub fn agent_lied(&self) -> bool {
        self.power.lied
    }

    /// Its fence agent can be run again: what failed before says nothing about now.
    pub fn agent_is_back(&mut self, scene: &Scene<'_>) {
        if self.power.running_until.is_none() {
            (self.power.attempts, self.power.next_at) = (0, scene.now);
        }
    }

    /// The cluster was read anew.
    pub fn fleet_read(&mut self, scene: &Scene<'_>, pulse: Option<&Pulse>, fx: &mut Vec<Effect>) {
        let Some(node) = scene.facts.fleet.nodes.get(&self.node) else {
            self.missing_since.get_or_insert(scene.now);
            return;
        };
        self.missing_since = None;
        let Some(boot) = node.boot_id.clone() else { return };
        let said = Some(&boot);
        let ended = pulse.is_some_and(|pulse| pulse.has_ended(&boot));
        if said == self.boot.as_ref() || said == self.status_then.as_ref() || ended {
            self.status_known = true;
            self.status_doubt = None;
        } else if self.status_known {
            self.returned(scene, &boot, fx);
        } else {
            self.status_doubt = Some(boot);
        }
    }

    fn returned(&mut self, scene: &Scene<'_>, boot: &BootId, fx: &mut Vec<Effect>) {
        if self.new_boot.as_ref() == Some(boot) {
            return;
        }
        self.new_boot = Some(boot.clone());
        self.contradicted = false;
        self.status_doubt = None;
        self.trusted_since = None;
        self.mark(Milestone::Returned, scene.now);
        words::returned(fx, &self.node);
    }

    /// The fence agent's run ended.
    pub fn fence_ended(&mut self, scene: &Scene<'_>, epoch: u64, result: &FenceResult, fx: &mut Vec<Effect>) {
        // A run of another epoch proves nothing now: the machine may have been switched on since.
        if Some(epoch) != scene.facts.epoch || self.power.running_until.take().is_none() {
            return;
        }
        match result {
            FenceResult::ConfirmedOff => self.power.confirmed_at = Some(scene.now),
            FenceResult::Failed(why) => self.run_failed(scene, why, fx),
        }
    }

    fn run_failed(&mut self, scene: &Scene<'_>, why: &str, fx: &mut Vec<Effect>) {
        let fencing = &scene.facts.policy.fencing;
        let given_up = self.power.attempts >= fencing.attempts_max;
        let doubled = fencing.retry_first.saturating_mul(1 << self.power.attempts.saturating_sub(1).min(16));
        let wait = if given_up { fencing.reminder } else { doubled.min(fencing.retry_max) };
        self.power.next_at = scene.now + wait;
        self.power.failed = Some(why.to_owned());
        words::run_failed(fx, &self.node, why, wait, given_up);
    }

    /// Our commit came back. Returns the stage that is stored now.
    pub fn committed(&mut self, scene: &Scene<'_>, fx: &mut Vec<Effect>) -> Option<FenceStage> {
        let record = self.pending.take()?;
        let (stage, restamped) =
            (record.stage.clone(), self.stored.as_ref().map(|old| &old.stage) == Some(&record.stage));
        self.stored = Some(record);
        if !restamped {
            self.since = scene.now;
        }
        match &stage {
            FenceStage::Declared => self.declare = false,
            FenceStage::Fenced { proof } if !restamped => {
                self.proven_at = Some(scene.now);
                self.proven_by = Some(*proof);
                self.mark(Milestone::Proven, scene.now);
                words::fenced(fx, &self.node, *proof);
            }
            FenceStage::Closed => self.mark(Milestone::Closed, scene.now),
            _ => {}
        }
        Some(stage)
    }

    /// Our commit was refused: wait, so that a record that somebody else writes is not fought over.
    pub fn refused(&mut self, scene: &Scene<'_>, fx: &mut Vec<Effect>) {
        if self.pending.take().is_some() {
            self.commit_after = scene.now + scene.facts.policy.leader.retry;
            words::refused(fx, &self.node);
        }
    }

    /// The case is over and its record says so.
    pub fn is_closed(&self) -> bool {
        let closed = self.stored.as_ref().is_some_and(|record| record.stage == FenceStage::Closed);
        closed && self.pending.is_none() && !self.declare
    }

    /// The Node object is gone for good.
    pub fn is_removed(&self, scene: &Scene<'_>) -> bool {
        self.missing_since.is_some_and(|since| scene.now >= since + REMOVED_AFTER)
    }

    /// Takes the next step that the facts allow.
    pub fn advance(&mut self, scene: &Scene<'_>, around: &Around<'_>, fx: &mut Vec<Effect>) {
        self.watch_return(scene, around);
        self.resolve_contradiction(scene, around, fx);
        self.tell_left_over(around, fx);
        if self.power.running_until.is_some_and(|until| scene.now >= until) {
            self.power.running_until = None;
            self.run_failed(scene, "it did not end in time", fx);
        }
        self.watch_bystanders(scene, around, fx);
        self.remind(scene, fx);
        if self.pending.is_some() || scene.now < self.commit_after {
            return;
        }
        let Some(epoch) = scene.facts.epoch else { return };
        if let Some(stage) = self.next_stage(scene, around, epoch) {
            let boot_id = self.boot.clone();
            let agent_distrusted = self.distrusts_agent(scene);
            let record = FenceRecord { node: self.node.clone(), boot_id, epoch, stage, agent_distrusted };
            self.pending = Some(record.clone());
            fx.push(Effect::Commit(Record::Fence(record)));
        } else if self.may_order(scene, around) && self.is_at(&FenceStage::PowerOrdered) {
            self.power.ordered = true;
            self.power.bystanders.ordered(&self.node, around.liveness);
            self.power.attempts += 1;
            let timeout = scene.facts.policy.fencing.timeout;
            self.power.running_until = Some(scene.now + run_max(scene));
            self.mark(Milestone::FencingStarted, scene.now);
            words::fencing_started(fx, &self.node);
            fx.push(Effect::RunFence { node: self.node.clone(), epoch, timeout });
        }
    }

    /// As long as a proof may come of the agent.
    fn watch_bystanders(&mut self, scene: &Scene<'_>, around: &Around<'_>, fx: &mut Vec<Effect>) {
        if !self.is_at(&FenceStage::PowerOrdered) {
            return;
        }
        let had_fallen = |other: &NodeName| around.fallen.contains(other);
        let bystanders = &mut self.power.bystanders;
        let news = bystanders.look(scene, &self.node, around.liveness, had_fallen, self.power.confirmed_at);
        if let Some(other) = bystanders.fell().filter(|_| news) {
            words::bystander_fell(fx, &self.node, other);
        }
    }

    /// A returned node is trusted after it beat without a gap.
    fn watch_return(&mut self, scene: &Scene<'_>, around: &Around<'_>) {
        let in_quarantine =
            self.stored.as_ref().is_some_and(|record| matches!(record.stage, FenceStage::Quarantine { .. }));
        let beats = around.pulse.is_some_and(|pulse| pulse.phase == Phase::Healthy && !pulse.left);
        if in_quarantine && beats {
            self.trusted_since.get_or_insert(scene.now);
        } else {
            self.trusted_since = None;
        }
    }

    /// A person who looked, and says again that this boot is dead, is believed.
    fn resolve_contradiction(&mut self, scene: &Scene<'_>, around: &Around<'_>, fx: &mut Vec<Effect>) {
        let said = around.attested.proves(&self.node, self.boot.as_ref());
        if self.contradicted && said && self.is_silent(scene) {
            self.contradicted = false;
            words::resolved(fx, &self.node);
        }
    }

    /// Whoever gave a word that does not count must hear of it.
    fn tell_left_over(&mut self, around: &Around<'_>, fx: &mut Vec<Effect>) {
        let waits = self.is_at(&FenceStage::Declared) || self.is_at(&FenceStage::PowerOrdered);
        let by = around.attested.left_over(&self.node, self.boot.as_ref()).filter(|_| waits);
        if by != self.left_over.as_deref() {
            self.left_over = by.map(str::to_owned);
            if let Some(by) = by {
                words::left_over(fx, &self.node, by);
            }
        }
    }

    fn remind(&mut self, scene: &Scene<'_>, fx: &mut Vec<Effect>) {
        if scene.now < self.remind_at {
            return;
        }
        self.remind_at = scene.now + scene.facts.policy.fencing.reminder;
        if self.is_at(&FenceStage::Declared) || self.is_at(&FenceStage::PowerOrdered) {
            let agent = self.words_of_agent(scene);
            words::waits(fx, scene, &self.node, self.last_beat.is_some(), agent.as_deref());
        } else if let Some(boot) = self.status_doubt.as_ref().filter(|_| self.proof_kind().is_some()) {
            words::in_doubt(fx, &self.node, boot);
        }
    }

    /// When time alone allows a next step. Past moments are left out: what they allowed was done.
    pub fn next_deadline(
        &self,
        scene: &Scene<'_>,
        leases: &LeaseWatch,
        pulse: Option<&Pulse>,
    ) -> Option<BootTime> {
        let policy = &scene.facts.policy;
        let at = |moment: BootTime| (moment > scene.now).then_some(moment);
        let enrolled = policy.watchdog_fencing.contains(&self.node);
        [
            self.missing_since.map(|since| since + REMOVED_AFTER),
            self.trusted_since.map(|since| since + policy.recovery.quarantine),
            self.last_beat.map(|beat| beat + policy.detection.suspect()),
            self.power.running_until,
            // Beats alone wake nobody.
            (self.power.confirmed_at.is_some() && self.proven_by.is_none() && !self.distrusts_agent(scene))
                .then(|| scene.now + policy.detection.beat),
            Some(self.since + next::SUSPECTS_WAIT_MAX),
            self.power.foreign_until,
            pulse.and_then(Pulse::kubelet_speaks_until),
            enrolled.then(|| leases.expires(&self.node, policy)),
            Some(self.power.next_at),
            Some(self.commit_after),
            Some(self.remind_at),
        ]
        .into_iter()
        .filter_map(|moment| at(moment?))
        .min()
    }
}
