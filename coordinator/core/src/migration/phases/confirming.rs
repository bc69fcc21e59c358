//! The VM was started on its new volumes: does it run where it should, and is its guest as it was?

use super::{GIVE_UP_AFTER, GUEST_WAIT_MAX, Learnt, Moment, NOT_SCHEDULED, Next, START_WAIT_MAX, Seen, WAIT};
use crate::fleet::Instance;
use crate::migration::guest::PROBE_ANSWERED;
use crate::migration::{DiskMove, Phase, Refusal, checks, guest};
use crate::names::NodeName;

impl Moment<'_> {
    /// Nobody asks for the copies any more: what they have kept beside the volumes goes last.
    pub(super) fn confirming(&self) -> Next {
        match self.confirmed() {
            Next::Enter(Phase::Succeeded, _) if !self.copies.dropped(self.now) => Next::DropCopies,
            next => next,
        }
    }

    fn confirmed(&self) -> Next {
        if self.record.stopped.is_none() {
            let unasked = self.spec.probe.as_ref().map(|probe| {
                let why =
                    format!("the VM was not running and is not started: its guest was not asked {probe}");
                Learnt::Checked(vec![checks::failed(PROBE_ANSWERED, &Refusal::new("NotAsked", why))])
            });
            return Next::Enter(Phase::Succeeded, unasked.into_iter().collect());
        }
        let vm = self.vm();
        let waited = self.now.saturating_sub(self.entered);
        if vm.is_none() && waited > GIVE_UP_AFTER {
            let new: Vec<&str> = self.record.disks.iter().map(|disk| disk.new.name.as_str()).collect();
            let message = format!(
                "the VM was deleted by somebody while its disks were being moved, and is not started; its claims have their new \
                 volumes, which are whole: {}; the old ones are kept",
                new.join(", ")
            );
            return Next::Fail(Refusal::new("VmGone", message));
        }
        let instance = vm.and_then(|(_, vm)| vm.instance.clone());
        if let Some(instance) = &instance
            && instance.phase == "Running"
            && let Some(node) = &instance.node
        {
            if let Some(wrong) =
                self.record.disks.iter().find(|disk| disk.new.node.as_ref().is_some_and(|at| at != node))
            {
                let message = format!(
                    "the VM runs on {node}, its volume {} is on {}",
                    wrong.new.name, wrong.target_node
                );
                return Next::Fail(Refusal::new("RunsElsewhere", message));
            }
            return self.guest(node, instance);
        }
        if waited <= START_WAIT_MAX {
            return WAIT;
        }
        let seconds = START_WAIT_MAX.as_secs();
        if self.seen == Seen::HadNode || instance.is_some_and(|instance| instance.node.is_some()) {
            let message = format!(
                "the VM was scheduled and is not Running after {seconds} s; both volumes are kept, and it may have written to the new ones: look at the instance, then decide"
            );
            Next::Fail(Refusal::new("NotRunning", message))
        } else if self.seen == Seen::NoNode {
            let message =
                format!("the VM was not scheduled within {seconds} s; it goes back to its old volumes");
            Next::Undo(Refusal::new(NOT_SCHEDULED, message))
        } else {
            let message = format!(
                "the VM was not scheduled within {seconds} s, and may have run on the new volumes before this coordinator \
                 led; both volumes are kept: look at the VM, then decide"
            );
            Next::Fail(Refusal::new(NOT_SCHEDULED, message))
        }
    }

    /// A new volume that somebody deletes: it stays as long as its claim does.
    fn new_volume_going(&self) -> Option<Refusal> {
        let going = |disk: &&DiskMove| {
            self.ctx.fleet.volumes.get(&disk.new.name).is_none_or(|volume| volume.deleting)
        };
        let disk = self.record.disks.iter().find(going)?;
        let message = format!(
            "volume {} of claim {} is being deleted by somebody: its object goes with the claim, and its data stays",
            disk.new.name, disk.claim
        );
        Some(Refusal::new("VolumeBeingDeleted", message))
    }

    /// It runs where it should: what its guest had before must be there again, and then it must answer what a person asks
    /// of it. Its data is whole either way.
    fn guest(&self, node: &NodeName, instance: &Instance) -> Next {
        let mut answers = vec![checks::passed("VmRunning", format!("the VM runs on node {node}"))];
        let (mut missing, mut is_final) = (Vec::new(), false);
        let mut take = |name, answer: Result<String, Refusal>| match answer {
            Ok(found) => answers.push(checks::passed(name, found)),
            Err(refusal) => {
                answers.push(checks::failed(name, &refusal));
                is_final |= !refusal.transient;
                missing.push(refusal.message);
            }
        };
        let mut is_as_before = true;
        for (name, answer) in checks::postflight(self.record, instance) {
            is_as_before &= answer.is_ok();
            take(name, answer);
        }
        let mut next = WAIT;
        if let Some(probe) = &self.spec.probe {
            let launchers = self.vm().map(|(_, vm)| vm.pods.as_slice()).unwrap_or_default();
            let vm = self.spec.vm.as_deref().unwrap_or_default();
            let question = if is_as_before {
                guest::question(self.record, vm, probe, node, instance, launchers)
            } else {
                let why = format!("the guest is not asked {probe} before it is as it was");
                Err(Refusal::not_yet("NotAsked", why))
            };
            let answer = question.as_ref().map_err(Clone::clone).and_then(|asked| self.asking.answer(asked));
            take(PROBE_ANSWERED, answer);
            next = question.map_or(WAIT, Next::AskGuest);
        }
        if let Some(going) = self.new_volume_going() {
            answers.push(checks::failed("VolumesStay", &going));
        }
        if missing.is_empty() {
            return Next::Enter(Phase::Succeeded, vec![Learnt::Checked(answers)]);
        }
        let waited = self.now.saturating_sub(self.entered);
        if !is_final && waited <= GUEST_WAIT_MAX {
            return next;
        }
        let message = format!(
            "the VM runs on its new volumes, which are whole, and after {} s {}: look at its console; the old volumes are kept",
            waited.as_secs(),
            missing.join("; ")
        );
        let why = Refusal::new("GuestNotConfirmed", message);
        Next::Enter(Phase::Succeeded, vec![Learnt::Checked(answers), Learnt::NotSeenAgain(why)])
    }
}
