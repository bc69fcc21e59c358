//! The one thing that the shell drives.
//!
//! ```text
//!   input ─► facts ─► liveness ─► fencing (one case a node) ─► recovery ─► taints ─► storage ─► migrations ─► evacuations
//!                        │              │                         │                    │
//!                        └ declared     └ proof stored            │                    └ told of, never acted upon
//!                                                                 └ decisions at once, deletions after the proof
//! ```
//!
//! Only a leader judges and acts; a follower notes beats, so that it knows the fleet when it takes over. Each
//! step first takes the input in, then lets everything draw its conclusions from what is known now.

mod agents;
mod pace;
mod policy;
mod shown;
mod taints;
#[cfg(test)]
pub(crate) mod testkit;

use std::collections::{BTreeMap, BTreeSet};

use crate::BootTime;
use crate::evacuation::Evacuations;
use crate::fencing::agents::{PowerOff, Rounds};
use crate::fencing::lease::LeaseWatch;
use crate::fencing::{Around, Attested, Case, FenceRecord, FenceStage, PowerTaints, given_by_others, words};
use crate::fleet::{DiskImage, Fleet, NodeReport};
use crate::io::{
    Action, Effect, FenceResult, Input, Notice, OpenRecovery, Order, Record, RecordKey, Requests, Severity,
    Subject,
};
use crate::liveness::{BeatOf, Liveness, Phase};
use crate::migration::{Context, Migrations};
use crate::names::{BootId, NodeName, OrderId};
use crate::policy::Policy;
use crate::recovery::{Elsewhere, Recovery, StorageWatch, Trouble};
use crate::scene::{Facts, Scene};
use crate::view::Milestone;

/// Between two decisions for the sake of reports alone: each asks about every VM of a dead node, and a thousand agents
/// report thirty times a second. A disk that fails has given its data up long before anybody could act on two seconds.
const REPORTS_GAP: BootTime = BootTime::from_secs(2);

/// The coordinator's mind.
#[derive(Debug)]
pub struct Coordinator {
    facts: Facts,
    /// The policy as it was last given, of which `facts` hold what may change while we run.
    given_policy: Policy,
    liveness: Liveness,
    power_taints: PowerTaints,
    attested: Attested,
    rounds: Rounds,
    leases: LeaseWatch,
    cases: BTreeMap<NodeName, Case>,
    recovery: Recovery,
    storage: StorageWatch,
    trouble: Trouble,
    /// The fleet changed since the VMs were last decided upon.
    undecided: bool,
    /// So did what agents report.
    reported: bool,
    /// When the VMs were last decided upon.
    decided_at: BootTime,
    reports: BTreeMap<NodeName, NodeReport>,
    /// Taints that were asked for and not seen yet, with the moment.
    tainting: BTreeMap<NodeName, (bool, BootTime)>,
    /// The same for out-of-service taints.
    calling: BTreeMap<NodeName, (Action, BootTime)>,
    past_timelines: BTreeMap<NodeName, Vec<(Milestone, BootTime)>>,
    migrations: Migrations,
    evacuations: Evacuations,
    now: BootTime,
    /// When the first step after the last look began: looks that take long themselves leave others their time.
    looked_at: BootTime,
    /// The last step looked at every node.
    has_looked: bool,
    wake: Option<BootTime>,
}

impl Coordinator {
    /// A coordinator that has seen nothing yet and does not lead.
    pub fn new(policy: Policy) -> Self {
        Self {
            given_policy: policy.clone(),
            facts: Facts {
                policy,
                fleet: Fleet::default(),
                fleet_read: false,
                requests: Requests::default(),
                power_off: PowerOff::default(),
                epoch: None,
            },
            liveness: Liveness::default(),
            power_taints: PowerTaints::default(),
            attested: Attested::default(),
            rounds: Rounds::default(),
            leases: LeaseWatch::default(),
            cases: BTreeMap::new(),
            recovery: Recovery::default(),
            storage: StorageWatch::default(),
            trouble: Trouble::default(),
            undecided: true,
            reported: false,
            decided_at: BootTime::ZERO,
            reports: BTreeMap::new(),
            tainting: BTreeMap::new(),
            calling: BTreeMap::new(),
            past_timelines: BTreeMap::new(),
            migrations: Migrations::default(),
            evacuations: Evacuations::default(),
            now: BootTime::ZERO,
            looked_at: BootTime::ZERO,
            has_looked: false,
            wake: None,
        }
    }

    /// The policy that it goes by.
    pub fn policy(&self) -> &Policy {
        &self.facts.policy
    }

    /// Takes what happened at `now` and says what to do about it, in this order.
    pub fn step(&mut self, now: BootTime, input: Input) -> Vec<Effect> {
        self.now = now;
        if std::mem::take(&mut self.has_looked) {
            self.looked_at = now;
        }
        let mut fx = Vec::new();
        let mut can_wait = matches!(input, Input::Report { .. } | Input::Probed { .. });
        if let Input::Beat { node, boot_id, sequence } = &input {
            let ordinary = self.beat(node, boot_id, *sequence, &mut fx);
            // Nearly every input is a beat that changes nothing: no conclusion is due.
            if ordinary && self.wake.is_none_or(|wake| now < wake) {
                return fx;
            }
            can_wait = !self.cases.contains_key(node);
        }
        let was_leading = self.facts.epoch;
        if let Input::KubeletRenewed { node } = &input {
            can_wait = !self.cases.contains_key(node);
            let healthy = self.liveness.pulse(node).is_some_and(|pulse| pulse.phase == Phase::Healthy);
            if can_wait && healthy && self.wake.is_none_or(|wake| now < wake) {
                self.take(input, &mut fx);
                return fx;
            }
        }
        let input = self.take(input, &mut fx);
        if can_wait && self.facts.epoch.is_some() && self.has_just_looked() {
            return fx;
        }
        self.ask_fence_agents(&mut fx);
        if self.facts.epoch.is_some() {
            self.judge(&mut fx);
            self.has_looked = true;
        }
        self.watch_storage(&mut fx);
        self.move_disks(&input, was_leading, &mut fx);
        self.wake = self.find_wake();
        fx
    }

    /// When to be called with [`Input::Tick`] at the latest.
    pub fn next_deadline(&self) -> Option<BootTime> {
        self.wake
    }

    /// True when nothing but a quiet beat of a healthy node arrived.
    fn beat(&mut self, node: &NodeName, boot: &BootId, sequence: u64, fx: &mut Vec<Effect>) -> bool {
        let scene = Scene { now: self.now, facts: &self.facts };
        let was_healthy =
            self.liveness.pulse(node).is_some_and(|pulse| pulse.phase == Phase::Healthy && !pulse.left);
        let beat = self.liveness.beat(&scene, node, boot, fx);
        if beat == BeatOf::Ended {
            return true;
        }
        self.power_taints.beats(node);
        self.attested.beats(node);
        let lies = self.rounds.beat(&scene, node, boot);
        if lies {
            self.facts.power_off.distrust(node);
        }
        let scene = Scene { now: self.now, facts: &self.facts };
        let Some(case) = self.cases.get_mut(node) else {
            self.grant(node, sequence, fx);
            return was_healthy && beat == BeatOf::Known && !lies;
        };
        if case.beat(&scene, boot, beat, fx) {
            let pods = self.recovery.superseded(node);
            let id = OrderId(format!("stop-launchers-{node}-{}", self.facts.epoch.unwrap_or_default()));
            let order = Order::StopLaunchers { pods };
            fx.push(Effect::Order { node: node.clone(), id, order });
        }
        if case.agent_lied() {
            self.facts.power_off.distrust(node);
        }
        let quarantined = case.may_grant(boot);
        if quarantined {
            self.grant(node, sequence, fx);
        }
        false
    }

    fn grant(&mut self, node: &NodeName, sequence: u64, fx: &mut Vec<Effect>) {
        if self.facts.epoch.is_some() {
            self.leases.granted(node, self.now);
            fx.push(Effect::Grant { node: node.clone(), sequence });
        }
    }

    /// Takes in what happened. Returns the input for those that look at it later.
    fn take(&mut self, input: Input, fx: &mut Vec<Effect>) -> Input {
        match input {
            Input::Fleet(fleet) => {
                self.take_fleet(*fleet, fx);
                return Input::Tick; // nobody needs the copy: the facts hold it
            }
            Input::Requests(requests) => {
                let (now, limit) = (self.now, self.facts.policy.detection.suspect());
                let beats = |node: &NodeName| {
                    let last = self.liveness.pulse(node).and_then(|pulse| pulse.last_beat);
                    last.is_some_and(|at| now < at + limit)
                };
                self.attested.read(&requests, beats);
                self.facts.requests = *requests;
                return Input::Tick;
            }
            Input::Policy(policy) => {
                self.take_policy(*policy, fx);
                return Input::Tick;
            }
            Input::Report { node, mut report } => {
                self.storage.reported(self.now, &node, self.reports.get(&node), &mut report);
                self.facts.fleet.reports.insert(node.clone(), (*report).clone());
                self.reports.insert(node, *report);
                self.reported = true;
                return Input::Tick;
            }
            Input::FenceAgents(roster) => {
                self.take_roster(*roster, fx);
                return Input::Tick;
            }
            Input::FenceAnswered { node, answer } => {
                self.take_answer(&node, &answer, fx);
                return Input::Tick;
            }
            Input::Leading { epoch, ref records, ref recoveries } => {
                self.begin_leading(epoch, records, recoveries);
            }
            Input::Deposed => self.stop_leading(),
            _ => self.take_event(&input, fx),
        }
        input
    }

    fn take_event(&mut self, input: &Input, fx: &mut Vec<Effect>) {
        let scene = Scene { now: self.now, facts: &self.facts };
        match input {
            Input::GrantHeld { node, boot_id, .. } => {
                self.leases.held(node, boot_id, self.now, &self.facts.policy);
            }
            Input::Goodbye { node, boot_id } => self.liveness.goodbye(&scene, node, boot_id),
            Input::Probed { node, by, answer } => self.liveness.probed(node, by, *answer),
            Input::KubeletRenewed { node } => self.liveness.kubelet_renewed(&scene, node),
            Input::FenceEnded { node, epoch, result } => {
                if let FenceResult::Failed(why) = result {
                    self.rounds.run_failed(&scene, node, why);
                }
                if let Some(case) = self.cases.get_mut(node) {
                    case.fence_ended(&scene, *epoch, result, fx);
                }
            }
            Input::Stalled(_) => self.liveness.restart_timers(&scene, self.now, "our own loop stood still"),
            Input::Committed(RecordKey::Fence(node)) => self.fence_committed(node, fx),
            Input::Committed(RecordKey::Rebuild(vm)) => self.recovery.rebuild_committed(&scene, vm, fx),
            Input::CommitRefused(RecordKey::Rebuild(vm)) => self.recovery.rebuild_refused(&scene, vm),
            Input::CommitRefused(RecordKey::Fence(node)) => {
                if let Some(case) = self.cases.get_mut(node) {
                    case.refused(&scene, fx);
                }
            }
            Input::Acted(action) => {
                let node = self.recovery.acted(&scene, action, fx);
                if let Some(case) = node.and_then(|node| self.cases.get_mut(&node)) {
                    case.mark(Milestone::FirstAction, self.now);
                }
            }
            Input::ActionFailed { action, why } => self.recovery.failed(&scene, action, why, fx),
            _ => {}
        }
    }

    fn take_fleet(&mut self, fleet: Fleet, fx: &mut Vec<Effect>) {
        self.facts.fleet = fleet;
        self.facts
            .fleet
            .reports
            .extend(self.reports.iter().map(|(node, report)| (node.clone(), report.clone())));
        self.facts.fleet_read = true;
        self.undecided = true;
        self.storage.fleet_read();
        let scene = Scene { now: self.now, facts: &self.facts };
        self.liveness.fleet_read(&scene);
        self.power_taints.fleet_read(&scene);
        for (node, case) in &mut self.cases {
            case.fleet_read(&scene, self.liveness.pulse(node), fx);
        }
    }

    /// A notice about ourselves; a follower says nothing.
    fn tell(&self, fx: &mut Vec<Effect>, severity: Severity, reason: &'static str, message: String) {
        if self.facts.epoch.is_some() {
            fx.push(Effect::Notify(Notice { severity, subject: Subject::Coordinator, reason, message }));
        }
    }

    fn begin_leading(&mut self, epoch: u64, records: &[Record], recoveries: &[OpenRecovery]) {
        self.stop_leading();
        self.facts.epoch = Some(epoch);
        self.facts.power_off.begin_leading();
        self.storage.begin_leading(self.now);
        for record in records {
            if let Record::Fence(FenceRecord { node, agent_distrusted: true, .. }) = record {
                self.facts.power_off.doubt(node);
            }
        }
        let scene = Scene { now: self.now, facts: &self.facts };
        self.leases.begin_leading(self.now);
        self.liveness.begin_leading(&scene);
        let open = records.iter().filter_map(|record| match record {
            Record::Fence(record) if record.stage != FenceStage::Closed => Some(record.clone()),
            _ => None,
        });
        for record in open {
            let node = record.node.clone();
            match &record.stage {
                FenceStage::Quarantine { boot_id } => {
                    self.liveness.watch_again(&scene, &node, record.boot_id.as_ref(), Some(boot_id));
                }
                _ => self.liveness.inherit_declared(&scene, &node, record.boot_id.as_ref()),
            }
            let mut case = Case::inherited(&scene, record, self.liveness.pulse(&node));
            if self.facts.fleet_read {
                case.fleet_read(&scene, self.liveness.pulse(&node), &mut Vec::new());
            }
            self.recovery.begin(&node, case.proven_by());
            self.cases.insert(node, case);
        }
        for record in records {
            if let Record::Rebuild(record) = record
                && !record.stage.is_final()
            {
                self.recovery.inherit_rebuild(&scene, (**record).clone());
            }
        }
        for open in recoveries {
            self.recovery.inherit(&scene, open);
        }
        self.undecided = true;
    }

    fn stop_leading(&mut self) {
        self.facts.epoch = None;
        self.cases.clear();
        self.recovery.clear();
        self.storage.stop_leading();
        self.tainting.clear();
        self.calling.clear();
        self.trouble = Trouble::default();
    }

    fn fence_committed(&mut self, node: &NodeName, fx: &mut Vec<Effect>) {
        let scene = Scene { now: self.now, facts: &self.facts };
        let Some(case) = self.cases.get_mut(node) else { return };
        match case.committed(&scene, fx) {
            Some(FenceStage::Fenced { proof }) => self.recovery.proven(&scene, node, proof),
            Some(FenceStage::Quarantine { boot_id }) => {
                words::quarantined(fx, &scene, node);
                let declared = case.stored().and_then(|record| record.boot_id.as_ref());
                self.liveness.watch_again(&scene, node, declared, Some(&boot_id));
            }
            _ => {}
        }
        if !case.is_closed() {
            return;
        }
        self.recovery.end(&scene, node);
        self.past_timelines.insert(node.clone(), case.timeline().to_vec());
        if case.is_removed(&scene) {
            words::removed(fx, &scene, node);
            self.liveness.forget(node);
        } else {
            words::closed(fx, node);
            self.liveness.watch_again(&scene, node, None, None);
        }
        self.cases.remove(node);
    }

    fn judge(&mut self, fx: &mut Vec<Effect>) {
        self.leases.tick(self.now);
        self.facts.power_off.tell(fx);
        self.forget_removed();
        let scene = Scene { now: self.now, facts: &self.facts };
        let (taints, words) = (&self.power_taints, &self.attested);
        let declared = self.liveness.judge(
            &scene,
            |node, pulse| given_by_others(taints, words, node, pulse.boot.as_ref()).is_some(),
            fx,
        );
        for node in &declared {
            let Some(pulse) = self.liveness.pulse(node) else { continue };
            let mut case = match self.cases.remove(node) {
                Some(old) => old.declared_again(&scene, pulse),
                None => Case::declared(&scene, node, pulse),
            };
            case.fleet_read(&scene, Some(pulse), fx);
            self.recovery.end(&scene, node);
            self.recovery.begin(node, None);
            self.cases.insert(node.clone(), case);
        }
        let fallen: BTreeSet<NodeName> = self.cases.keys().cloned().collect();
        for (node, case) in &mut self.cases {
            let around = Around {
                pulse: self.liveness.pulse(node),
                liveness: &self.liveness,
                fallen: &fallen,
                leases: &self.leases,
                taints: &self.power_taints,
                attested: &self.attested,
                hold: self.liveness.hold().is_some(),
                settled: self.recovery.settled(&scene, node),
            };
            case.advance(&scene, &around, fx);
        }
        self.doubt_agents();
        self.recover(&declared, fx);
        self.taint(fx);
        self.call_out_of_service(fx);
    }

    /// Fence agents that may have hit another node are asked as soon as their own is back.
    fn doubt_agents(&mut self) {
        let hit =
            self.cases.iter().filter(|(_, case)| case.agent_hit_another()).map(|(node, _)| node.clone());
        let hit: Vec<NodeName> = hit.filter(|node| !self.facts.power_off.is_doubted(node)).collect();
        for node in hit {
            self.facts.power_off.doubt(&node);
            self.rounds.ask_soon(&Scene { now: self.now, facts: &self.facts }, &node);
        }
    }

    /// Nodes that are gone while nothing was wrong with them are simply forgotten.
    fn forget_removed(&mut self) {
        if !self.facts.fleet_read || !(self.undecided || self.reported) {
            return;
        }
        let gone =
            |node: &&NodeName| !self.facts.fleet.nodes.contains_key(*node) && !self.cases.contains_key(*node);
        let silent =
            |node: &&NodeName| self.liveness.pulse(node).is_some_and(|pulse| pulse.is_quiet(self.now));
        let known = self.liveness.pulses().map(|(node, _)| node);
        let gone: Vec<NodeName> = known.filter(gone).filter(silent).cloned().collect();
        for node in gone {
            self.liveness.forget(&node);
            self.past_timelines.remove(&node);
            self.facts.power_off.forget(&node);
            self.reports.remove(&node);
            self.storage.forget(&node);
        }
    }

    fn recover(&mut self, declared: &[NodeName], fx: &mut Vec<Effect>) {
        let scene = Scene { now: self.now, facts: &self.facts };
        let trouble = self.find_trouble();
        let reported = self.reported && self.now >= self.decided_at + REPORTS_GAP;
        if self.undecided || reported || trouble != self.trouble {
            self.recovery.decide(&scene, &trouble, fx);
            self.storage.hand_over(|vm| self.recovery.has_case(vm));
            (self.undecided, self.reported) = (false, false);
            self.decided_at = self.now;
            self.trouble = trouble;
        }
        for node in declared {
            let why = self.liveness.pulse(node).map(|pulse| pulse.why.clone()).unwrap_or_default();
            let mistake = self.rounds.mistake(&scene);
            words::declared(fx, &scene, node, &why, self.recovery.counts(node), mistake.as_deref());
        }
        self.recovery.act(&scene, &self.trouble, fx);
        for (node, case) in self.cases.iter_mut().filter(|(_, case)| case.proof_kind().is_some()) {
            let settled = self.recovery.settled(&scene, node);
            if settled.idle && settled.open == 0 {
                case.mark(Milestone::Settled, self.now);
            }
        }
    }

    /// Looks at the VMs' storage where that is due. A follower only remembers what there was, for when it takes over.
    fn watch_storage(&mut self, fx: &mut Vec<Effect>) {
        if !self.facts.fleet_read || !self.storage.is_due(self.now) {
            return;
        }
        for (node, path) in self.storage.remember(self.now, &self.facts.fleet) {
            for reports in [&mut self.facts.fleet.reports, &mut self.reports] {
                let usage = reports.get_mut(&node).and_then(|report| report.usage.get_mut(&path));
                if let Some(usage) = usage {
                    usage.disk_image = DiskImage::Vanished;
                }
            }
            self.undecided = true;
        }
        if self.facts.epoch.is_none() {
            return;
        }
        let scene = Scene { now: self.now, facts: &self.facts };
        let (recovery, switching) = (&self.recovery, self.migrations.switching().collect());
        let elsewhere = Elsewhere {
            incident: &|vm| recovery.has_case(vm),
            rebuilt: &|vm| recovery.is_rebuilding(vm),
            switching,
        };
        self.storage.look(&scene, &elsewhere, fx);
    }

    fn find_trouble(&self) -> Trouble {
        let scene = Scene { now: self.now, facts: &self.facts };
        let mut trouble = Trouble::default();
        for (node, case) in &self.cases {
            if case.has_returned() {
                trouble.returned.insert(node.clone());
            } else {
                trouble.declared.insert(node.clone());
            }
            trouble.proven.extend(case.proof(&scene).map(|proof| (node.clone(), proof)));
        }
        // A node that was never heard from is left to the scheduler's judgement.
        let fit = |phase| matches!(phase, Phase::Healthy | Phase::NoAgent | Phase::Expected);
        let unusable = self.liveness.pulses().filter(|(_, pulse)| !fit(pulse.phase)).map(|(node, _)| node);
        trouble.unusable = unusable.chain(&trouble.returned).cloned().collect();
        trouble
    }

    fn move_disks(&mut self, input: &Input, was_leading: Option<u64>, fx: &mut Vec<Effect>) {
        let Some(epoch) = self.facts.epoch.or(was_leading) else { return };
        let (usable, dead) = (self.usable(), self.dead());
        let (fleet, requests, policy) = (&self.facts.fleet, &self.facts.requests, &self.facts.policy);
        let context = Context { fleet, requests, policy, epoch, usable: &usable, dead: &dead };
        let moves = self.migrations.step(self.now, input, &context);
        let plans = self.evacuations.step(self.now, input, &context, &self.migrations);
        // Once deposed they only forget: what they would do is no longer ours to do.
        if self.facts.epoch.is_some() {
            fx.extend(moves.into_iter().chain(plans));
        }
    }

    fn usable(&self) -> BTreeSet<NodeName> {
        let pulses = self.liveness.pulses().filter(|(node, pulse)| {
            pulse.phase == Phase::Healthy && !pulse.left && !self.cases.contains_key(*node)
        });
        pulses.map(|(node, _)| node.clone()).collect()
    }

    fn dead(&self) -> BTreeSet<NodeName> {
        let dead = self.cases.iter().filter(|(_, case)| !case.has_returned());
        dead.map(|(node, _)| node.clone()).collect()
    }

    fn find_wake(&self) -> Option<BootTime> {
        self.facts.epoch?;
        let scene = Scene { now: self.now, facts: &self.facts };
        let retry = self.facts.policy.recovery.retry;
        let deadline = |(node, case): (&NodeName, &Case)| {
            case.next_deadline(&scene, &self.leases, self.liveness.pulse(node))
        };
        let cases = self.cases.iter().filter_map(deadline);
        let called = self.calling.values().map(|(_, at)| *at + retry);
        let reports = (self.reported && !self.cases.is_empty()).then(|| self.decided_at + REPORTS_GAP);
        let taints = self.tainting.values().map(|(_, at)| *at + retry).chain(called);
        [
            self.liveness.next_deadline(&scene),
            self.rounds.next_deadline(),
            self.recovery.next_deadline(&scene),
            self.storage.next_deadline(),
            self.migrations.next_deadline(),
            self.evacuations.next_deadline(),
            reports,
        ]
        .into_iter()
        .flatten()
        .chain(cases)
        .chain(taints)
        .min()
    }
}
