//! Which stage the facts allow next, which proof is at hand, and whether a power-off may be ordered: questions only, nothing
//! is changed.

use super::{Around, Case};
use crate::BootTime;
use crate::fencing::{FenceStage, ProofKind, given_by_others};
use crate::scene::Scene;

/// How long an order waits until nobody is suspect: twice what the safe profile takes to call a node dead.
pub(super) const SUSPECTS_WAIT_MAX: BootTime = BootTime::from_secs(10);

impl Case {
    pub(super) fn next_stage(
        &self,
        scene: &Scene<'_>,
        around: &Around<'_>,
        epoch: u64,
    ) -> Option<FenceStage> {
        let Some(record) = self.stored.as_ref().filter(|_| !self.declare) else {
            return Some(FenceStage::Declared);
        };
        if record.stage == FenceStage::Closed {
            return None;
        }
        if self.is_removed(scene) {
            return around.settled.idle.then_some(FenceStage::Closed);
        }
        if record.epoch != epoch {
            // Taking the record over shuts out whoever wrote it before anything else is done.
            return Some(record.stage.clone());
        }
        match &record.stage {
            FenceStage::Declared | FenceStage::PowerOrdered => {
                let back = self.last_beat.is_some() && !self.may_yet_go_off(scene);
                let order = self.is_at(&FenceStage::Declared) && self.may_order(scene, around);
                let distrusts = self.distrusts_agent(scene);
                self.proof_at_hand(scene, around)
                    .map(|proof| FenceStage::Fenced { proof })
                    .or(back.then_some(FenceStage::Closed))
                    .or(order.then_some(FenceStage::PowerOrdered))
                    // Whoever leads next must know it too.
                    .or((distrusts && !record.agent_distrusted).then(|| record.stage.clone()))
            }
            FenceStage::Fenced { .. } => {
                let boot_id = self.new_boot.clone().filter(|_| around.settled.idle)?;
                Some(FenceStage::Quarantine { boot_id })
            }
            FenceStage::Quarantine { boot_id } => {
                let over = scene.now >= self.trusted_since? + scene.facts.policy.recovery.quarantine;
                match &self.new_boot {
                    Some(newer) if newer != boot_id => {
                        Some(FenceStage::Quarantine { boot_id: newer.clone() })
                    }
                    _ => (over && around.settled.idle).then_some(FenceStage::Closed),
                }
            }
            FenceStage::Closed => None,
        }
    }

    /// A run is under way, or has said off. Of an agent that said so of a node that beats nobody knows what it switches.
    fn may_yet_go_off(&self, scene: &Scene<'_>) -> bool {
        let power = &self.power;
        let foreign = power.foreign_until.is_some_and(|until| scene.now < until);
        let lies = power.ordered && self.distrusts_agent(scene);
        power.running_until.is_some() || foreign || power.confirmed_at.is_some() || lies
    }

    pub(super) fn is_at(&self, stage: &FenceStage) -> bool {
        self.stored.as_ref().is_some_and(|record| record.stage == *stage) && !self.declare
    }

    pub(super) fn is_silent(&self, scene: &Scene<'_>) -> bool {
        self.last_beat.is_none_or(|at| scene.now >= at + scene.facts.policy.detection.suspect())
    }

    fn proof_at_hand(&self, scene: &Scene<'_>, around: &Around<'_>) -> Option<ProofKind> {
        let returned = self.new_boot.is_some().then_some(ProofKind::NewBootId);
        if !self.is_silent(scene) {
            return returned;
        }
        let others = || given_by_others(around.taints, around.attested, &self.node, self.boot.as_ref());
        let lease = || around.leases.expired(&self.node, self.boot.as_ref(), scene.now, &scene.facts.policy);
        let believed = !self.distrusts_agent(scene) && self.power.bystanders.all_live();
        let confirmed = self.power.confirmed_at.is_some() && believed;
        let power = confirmed.then_some(ProofKind::PowerOffConfirmed);
        power.or_else(others).or(returned).or_else(|| lease().then_some(ProofKind::LeaseExpired))
    }

    pub(super) fn may_order(&self, scene: &Scene<'_>, around: &Around<'_>) -> bool {
        let power = &self.power;
        let alive = around.pulse.is_some_and(|pulse| pulse.kubelet_lives(scene.now, self.begun));
        // Whoever is suspect now has died before the order, or lives: a moment tells. Not for ever: some node may always be.
        let unclear = || scene.now < self.since + SUSPECTS_WAIT_MAX && around.liveness.any_suspect();
        scene.can_power_off(&self.node)
            && !self.distrusts_agent(scene)
            && self.last_beat.is_none()
            && !alive
            && !around.hold
            && power.running_until.is_none()
            && power.confirmed_at.is_none()
            && scene.now >= power.next_at
            && !unclear()
    }

    /// In one incident that does not end: a silent node can show nothing of its agent.
    pub(super) fn distrusts_agent(&self, scene: &Scene<'_>) -> bool {
        let stored = self.stored.as_ref().filter(|_| !self.declare);
        let power = &scene.facts.power_off;
        let doubted = self.power.bystanders.fell().is_some() || power.is_doubted(&self.node);
        doubted || power.is_wrong(&self.node) || stored.is_some_and(|record| record.agent_distrusted)
    }
}
