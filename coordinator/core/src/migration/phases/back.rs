//! Back to the old volumes: what was made goes, and what was found is given back.

use std::fmt::Write as _;

use super::{GIVE_UP_AFTER, LET_GO_WAIT_MAX, Learnt, Moment, NOT_SCHEDULED, Next, Seen};
use crate::migration::copies::SOURCE_MISSING;
use crate::migration::staging::{self, Clearing};
use crate::migration::{DiskMove, Phase, Refusal, claims, reading};

impl Moment<'_> {
    /// Something of the VM has a node: it runs, or may at any moment.
    fn is_scheduled(&self) -> bool {
        self.vm().is_some_and(|(_, vm)| vm.node().is_some())
    }

    /// Somebody deleted all of it, as with its namespace, where no claim can be made any more: there is nothing to put
    /// back, and nobody to put it back for. Of a bare claim only that tells.
    fn is_given_up(&self) -> bool {
        let gone = |disk: &DiskMove| !self.ctx.fleet.claims.contains_key(&disk.claim);
        let nobody = if self.spec.vm.is_some() { self.vm().is_none() } else { self.refused };
        self.spec.cancelled
            && nobody
            && self.record.disks.iter().all(gone)
            && self.now.saturating_sub(self.entered) > GIVE_UP_AFTER
    }

    pub(super) fn rolling_back(&mut self) -> Next {
        let disks = &self.record.disks;
        let waited = self.now.saturating_sub(self.entered);
        // Where an old disk may be gone, its copy may be all that is left of it, however far it has come.
        let source_missing = self.record.reason.as_deref() == Some(SOURCE_MISSING);
        let copies_go = claims::all_old_stay(disks, self.ctx) && !source_missing;
        if copies_go && !self.copies.dropped(self.now) {
            return Next::DropCopies;
        }
        // It can run on its new volumes, and may have done so between two looks: only a VM that was watched and was not
        // scheduled all the time that it was wanted to has not.
        let was_started = self.record.reason.as_deref() == Some(NOT_SCHEDULED);
        let was_watched = self.seen == Seen::NoNode;
        let never_ran = was_watched && !self.is_scheduled() && was_started;
        if claims::all_new(disks, self.ctx) && !never_ran {
            return Next::Enter(Phase::Starting, vec![]);
        }
        // It was deleted while a pod used it, and goes when that pod does.
        if claims::any_going(disks, self.ctx) && !self.is_halted() {
            return self.stop_again();
        }
        // Before a claim has its old volume again: what we have mounted, the VM must not.
        let letting = reading::let_all_go(disks, self.unstaged, self.ctx.fleet);
        let let_go = letting.is_empty() && reading::are_gone(disks, self.ctx);
        if !let_go && waited <= LET_GO_WAIT_MAX {
            return Next::Need(letting);
        }
        let (clearing, cleared) = match staging::clear(disks, self.unstaged, self.ctx.fleet) {
            Clearing::Learn(made) => {
                let made = made.into_iter().map(|(place, name)| (place, name, None));
                return Next::Enter(Phase::RollingBack, vec![Learnt::Made(made.collect())]);
            }
            Clearing::Need(needs) => (needs, false),
            Clearing::Done => (Vec::new(), true),
        };
        if self.is_given_up() {
            let mut needs = claims::leftovers(disks, self.ctx);
            needs.extend(clearing);
            let old: Vec<&str> = disks.iter().map(|disk| disk.old.as_str()).collect();
            let (reason, what) = match &self.spec.vm {
                Some(_) => ("VmGone", "VM and claims were deleted"),
                None => ("ClaimGone", "the claim was deleted and cannot be made anew"),
            };
            let gone = Refusal::new(reason, format!("{what}; kept: {}", old.join(", ")));
            return if needs.is_empty() && cleared { Next::Fail(gone) } else { Next::Need(needs) };
        }
        match claims::put_back(self.record, waited, self.ctx) {
            Ok(None) => {}
            Ok(Some(actions)) => return Next::Need(actions.into_iter().chain(clearing).collect()),
            Err(mut refusal) if cleared => {
                let copies: Vec<String> =
                    disks.iter().filter(|disk| disk.staging.is_none()).map(place_of_copy).collect();
                if !copies.is_empty() {
                    let copies = copies.join(", ");
                    let _ = write!(
                        refusal.message,
                        ". What was copied is left: {copies}, or a hidden folder beside it while it is not whole"
                    );
                }
                return Next::Fail(refusal);
            }
            Err(_) => return Next::Need(clearing),
        }
        let never_all_new = claims::never_all_new(disks, self.ctx);
        let never_ran = was_watched || never_all_new;
        // What is removed nobody gets back. One that was wanted to run keeps its copies, however surely it was not seen to.
        let unused = claims::unused(disks, never_all_new || was_watched && !was_started, self.ctx);
        if copies_go && !unused.is_empty() && !self.copies.removed(self.now) {
            return Next::RemoveCopies(unused);
        }
        let mut needs = Vec::new();
        if never_ran {
            needs = claims::given_back(disks, self.ctx);
        }
        // Those that were never bound tell that the others were never used: they go last.
        if needs.is_empty() {
            needs = claims::leftovers(disks, self.ctx);
        }
        needs.extend(self.restore());
        needs.extend(clearing);
        if !needs.is_empty() || !cleared {
            return Next::Need(needs);
        }
        let cancelled = self.record.reason.as_deref() == Some("Cancelled");
        let volumes = staging::left_over(disks, self.ctx.fleet);
        let mut left: Vec<_> = volumes.iter().map(|name| format!("volume {name}, on Retain")).collect();
        let all_stay = was_started || !copies_go || self.copies.are_left();
        // Where somebody has deleted the new volume's object, its folder is nobody's.
        let is_seen = |disk: &DiskMove| {
            let report = self.ctx.fleet.reports.get(&disk.target_node);
            report.is_some_and(|report| report.usage.contains_key(&disk.new.path))
        };
        let stays = |disk: &&DiskMove| {
            let there = self.ctx.fleet.volumes.contains_key(&disk.new.name);
            let removed = self.copies.has_removed(&disk.new.name);
            disk.staging.is_none() && (all_stay || there || is_seen(disk) && !removed)
        };
        left.extend(disks.iter().filter(stays).map(place_of_copy));
        let learnt = (!left.is_empty()).then_some(Learnt::LeftOver(left));
        let phase = if cancelled { Phase::Cancelled } else { Phase::RolledBack };
        Next::Enter(phase, learnt.into_iter().collect())
    }
}

/// Where the copy of a disk is that went below a root.
fn place_of_copy(disk: &DiskMove) -> String {
    format!("{} on node {}", disk.new.path, disk.target_node)
}
