//! What a coordinator's shell does: it feeds the core, performs its effects, and looks after the leader's lease by
//! the algorithm of client-go. The mutants live here.

use std::time::Duration;

use somersault_coordinator_core::decision::DecisionKind;
use somersault_coordinator_core::io::{Action, Effect, Input, Order, Prober, Reachability, Record};
use somersault_coordinator_core::view::RecoveryProgress;

use crate::Mutant;
use crate::check::{self, Broken};
use crate::net::End;
use crate::process::Lead;
use crate::world::{Event, World};

/// Tries of an action whose answer does not come.
const TRIES_MAX: u32 = 5;

impl World {
    /// Hands an input to a coordinator, and does what it wants.
    pub(crate) fn give(&mut self, to: usize, input: Input) {
        if !self.processes[to].up {
            return;
        }
        if self.processes[to].stalled.is_some() {
            if !matches!(input, Input::Tick) {
                self.processes[to].inbox.push_back(input);
            }
            return;
        }
        self.drop_lost_lease(to);
        self.step(to, input);
    }

    /// A leader that could not renew in time is none, whatever it was about to do.
    fn drop_lost_lease(&mut self, index: usize) {
        let process = &self.processes[index];
        let Some(lead) = process.lead else { return };
        let reading = process.clock.read(self.now);
        let lost = reading >= lead.renewed + process.core.policy().leader.renew;
        if lost && self.options.mutant != Some(Mutant::OldEpoch) {
            self.processes[index].lead = None;
            self.processes[index].session += 1;
            self.note(|| format!("c{index} leads no more (epoch {})", lead.epoch));
            self.step(index, Input::Deposed);
        }
    }

    fn step(&mut self, index: usize, input: Input) {
        let process = &mut self.processes[index];
        let reading = process.clock.read(self.now);
        let mut kept = process.watch.input(&input);
        let telling = match &input {
            Input::Leading { epoch, .. } => Some(format!("c{index} leads with epoch {epoch}")),
            Input::FenceEnded { node, result, .. } => {
                Some(format!("c{index} hears of the fencing of {node}: {result:?}"))
            }
            _ => None,
        };
        let effects = process.core.step(reading, input);
        let quiet = effects.iter().all(|effect| matches!(effect, Effect::Grant { .. }));
        if !quiet {
            let (view, policy) = (process.core.view(), process.core.policy());
            if process.lead.is_some() {
                self.api.shown = view.open_recoveries();
            }
            kept = kept.and_then(|()| {
                process.watch.effects(&effects, &view, |node| policy.watchdog_fencing.contains(node))
            });
        }
        if let Err(source) = kept {
            self.broken = Some(Broken::Rule { coordinator: index, source });
        }
        if let Some(line) = telling {
            self.note(|| line);
        }
        for effect in effects {
            self.effect(index, effect);
        }
        if self.options.mutant == Some(Mutant::DropProof) && !quiet {
            self.delete_without_proof(index);
        }
        self.plan_wake(index);
    }

    fn plan_wake(&mut self, index: usize) {
        let process = &mut self.processes[index];
        let due = process.core.next_deadline();
        if due == process.wake && due.is_some_and(|due| process.clock.when(due) > self.now) {
            return;
        }
        process.wake = due;
        process.wake_id += 1;
        let id = process.wake_id;
        if let Some(due) = due {
            // A timer fires late, never early.
            let delay = process.clock.when(due).saturating_sub(self.now) + Duration::from_micros(100);
            self.at(delay, Event::Wake { to: index, id });
        }
    }

    /// The mutant that acts on the verdict instead of the proof.
    fn delete_without_proof(&mut self, index: usize) {
        let view = self.processes[index].core.view();
        for (key, recovery) in &view.recoveries {
            let decided = recovery.decision.kind == DecisionKind::Recreate;
            if !decided || recovery.progress != RecoveryProgress::AwaitingProof {
                continue;
            }
            let Some(node) = &recovery.node else { continue };
            let pods = self.api.pods_of(node);
            for (_, pod) in pods.into_iter().filter(|(vm, _)| vm == key) {
                self.note(|| format!("c{index} (mutant) deletes {} without proof", pod.uid.0));
                // The checks of the deletion itself are left out: what it leads to must be found.
                self.api.delete_pod(&pod.uid);
            }
        }
    }

    fn effect(&mut self, index: usize, effect: Effect) {
        let here = End::Coordinator(index);
        match effect {
            Effect::Grant { node, sequence } => {
                let to = End::Node(node.clone());
                self.send(&here, &to, &Event::GrantArrives { node, sequence });
            }
            Effect::Probe { node, by: Prober::Coordinator, timeout } => {
                let answer = self.probe(&here, &node);
                let delay = if answer == Reachability::Silent { timeout } else { self.within_ms(5) };
                let input = Box::new(Input::Probed { node, by: Prober::Coordinator, answer });
                self.at(delay, Event::Arrives { to: index, session: None, input });
            }
            Effect::Probe { node, by: Prober::Peer(peer), timeout } => {
                let to = End::Node(peer.clone());
                self.send(&here, &to, &Event::PeerProbes { to: index, peer, node, timeout });
            }
            Effect::AskFence { node, .. } => {
                let delay = Duration::from_millis(100) + self.within_ms(2_000);
                self.at(delay, Event::FenceStatus { by: index, node });
            }
            Effect::RunFence { node, epoch, .. } => {
                let delay = Duration::from_millis(100) + self.within_ms(2_000);
                self.at(delay, Event::Fence { by: index, node, epoch });
            }
            Effect::Order { node, order: Order::StopLaunchers { pods }, .. } => {
                let to = End::Node(node.clone());
                self.send(&here, &to, &Event::StopLaunchers { node, pods });
            }
            Effect::Notify(notice) => {
                self.note(|| format!("c{index} says {}: {}", notice.reason, notice.message));
            }
            Effect::Commit(_) | Effect::Act(_) => {
                if let Effect::Act(action @ (Action::StopVm { vm, .. } | Action::RestoreStart { vm, .. })) =
                    &effect
                {
                    self.processes[index].start_asked.insert(vm.clone(), action.clone());
                }
                self.note(|| format!("c{index} wants {}", shortly(&effect)));
                let session = self.processes[index].session;
                let delay = self.within_ms(20);
                self.at(delay, Event::Api { from: index, session, effect: Box::new(effect), tries: 0 });
            }
            Effect::Order { .. } | Effect::AskGuest { .. } | Effect::DryRun(_) => {
                unreachable!("nobody asked for a copy here")
            }
        }
    }

    /// A question arrives at the API server, or does not; its answer arrives, or does not.
    pub(crate) fn api_call(&mut self, from: usize, session: u64, effect: Effect, tries: u32) {
        let here = End::Coordinator(from);
        let arrives = self.net.open(&here, &End::Api);
        let answered = arrives && self.net.open(&End::Api, &here);
        let input = match &effect {
            Effect::Commit(record) if arrives => self.store(from, session, record),
            Effect::Act(action) if arrives => {
                self.perform(action);
                Input::Acted(action.clone())
            }
            // Nobody knows whether it was stored: the records must be read again.
            Effect::Commit(record) => Input::CommitRefused(record.key()),
            Effect::Act(action) => {
                Input::ActionFailed { action: action.clone(), why: "no answer".to_owned() }
            }
            _ => return,
        };
        if answered {
            let refused = matches!(input, Input::CommitRefused(_));
            let delay = self.within_ms(20);
            self.at(delay, Event::Arrives { to: from, session: Some(session), input: Box::new(input) });
            if refused {
                self.at(delay, Event::Relist(from));
                self.processes[from].seen = None;
            }
            return;
        }
        let retry = Duration::from_secs(2) + self.within_ms(1_000);
        match effect {
            // As in the shell: a leader that leads no more tries nothing again.
            Effect::Act(action)
                if tries < TRIES_MAX
                    && session == self.processes[from].session
                    && self.is_newest(from, &action) =>
            {
                let effect = Effect::Act(action);
                self.at(retry, Event::Api { from, session, effect: Box::new(effect), tries: tries + 1 });
            }
            Effect::Commit(record) => {
                let input = Box::new(Input::CommitRefused(record.key()));
                self.at(retry, Event::Arrives { to: from, session: Some(session), input });
                self.processes[from].seen = None;
            }
            Effect::Act(action) => {
                let input = Box::new(Input::ActionFailed { action, why: "no answer".to_owned() });
                self.at(retry, Event::Arrives { to: from, session: Some(session), input });
            }
            _ => {}
        }
    }

    /// Changes of one object keep their order: an older one of a VM's start field is not tried after a newer one.
    fn is_newest(&self, from: usize, action: &Action) -> bool {
        match action {
            Action::StopVm { vm, .. } | Action::RestoreStart { vm, .. } => {
                self.processes[from].start_asked.get(vm) == Some(action)
            }
            _ => true,
        }
    }

    fn store(&mut self, from: usize, session: u64, record: &Record) -> Input {
        let before = self.api.records.get(&record.key()).map(|(_, record)| record.clone());
        let known = self.processes[from].known.get(&record.key()).copied();
        let epoch = crate::cluster::epoch_of(record);
        let stored = if self.options.mutant == Some(Mutant::OldEpoch) {
            Ok(self.api.overwrite(record))
        } else {
            self.api.commit(record, epoch, known)
        };
        match stored {
            Ok(version) => {
                if let Err(broken) = check::epoch_grows(before.as_ref(), record) {
                    self.broken = Some(broken);
                }
                let closed = matches!(record, Record::Fence(record)
                    if record.stage == somersault_coordinator_core::fencing::FenceStage::Closed);
                self.summary.closed += u32::from(closed);
                // Whoever asked may have been replaced since; only the same process may remember.
                if self.processes[from].session == session {
                    self.processes[from].known.insert(record.key(), version);
                }
                Input::Committed(record.key())
            }
            Err(_) => Input::CommitRefused(record.key()),
        }
    }

    /// Looks after the leader's lease.
    pub(crate) fn elect(&mut self, index: usize) {
        let retry = self.processes[index].core.policy().leader.retry;
        let delay = self.processes[index].clock.last(retry);
        self.at(delay, Event::Elect(index));
        self.look_after_lease(index);
    }

    pub(crate) fn look_after_lease(&mut self, index: usize) {
        if !self.processes[index].works() {
            return;
        }
        self.drop_lost_lease(index);
        if !self.net.both(&End::Coordinator(index), &End::Api) {
            return;
        }
        let process = &mut self.processes[index];
        let (reading, lease) = (process.clock.read(self.now), self.api.lease);
        if lease.holder == Some(index) && process.lead.is_some_and(|lead| lead.epoch == lease.epoch) {
            self.api.lease.revision += 1;
            let relist = process.seen.is_none();
            process.seen = Some((self.api.lease.revision, reading));
            process.lead = Some(Lead { epoch: lease.epoch, renewed: reading });
            if relist {
                self.lead(index, lease.epoch);
            }
            return;
        }
        let unchanged_since = match process.seen {
            Some((revision, since)) if revision == lease.revision => since,
            _ => {
                process.seen = Some((lease.revision, reading));
                reading
            }
        };
        let free = lease.holder.is_none() || reading >= unchanged_since + process.core.policy().leader.lease;
        let still_leads = process.lead.is_some(); // only the mutant does, without the lease
        if free && !still_leads {
            self.api.lease.holder = Some(index);
            self.api.lease.epoch += 1;
            self.api.lease.revision += 1;
            let (epoch, revision) = (self.api.lease.epoch, self.api.lease.revision);
            let process = &mut self.processes[index];
            process.seen = Some((revision, reading));
            process.lead = Some(Lead { epoch, renewed: reading });
            self.summary.handovers += u32::from(epoch > 1);
            self.lead(index, epoch);
        }
    }

    /// Lists the records, then leads.
    fn lead(&mut self, index: usize, epoch: u64) {
        let process = &mut self.processes[index];
        process.session += 1;
        process.known = self.api.records.iter().map(|(key, (version, _))| (key.clone(), *version)).collect();
        let records = self.api.records.values().map(|(_, record)| record.clone()).collect();
        let recoveries = self.api.shown.clone();
        self.step(index, Input::Leading { epoch, records, recoveries });
    }

    /// Reads the cluster; what was read arrives later.
    pub(crate) fn read(&mut self, index: usize) {
        let again = Duration::from_millis(300) + self.within_ms(700);
        self.at(again, Event::Read(index));
        if !self.net.both(&End::Coordinator(index), &End::Api) {
            return;
        }
        self.publish(index);
        // In order, as a watch delivers them: each reading arrives before the next one is made.
        let delay = self.within_ms(300);
        for input in [
            Input::Requests(Box::new(self.api.requests.clone())),
            Input::Fleet(Box::new(self.api.fleet.clone())),
        ] {
            self.at(delay, Event::Arrives { to: index, session: None, input: Box::new(input) });
        }
    }

    /// A leader shows in which boot it heard each agent, and a coordinator that starts later reads it there.
    fn publish(&mut self, index: usize) {
        let process = &self.processes[index];
        if process.works() && process.lead.is_some() {
            let seen =
                process.core.view().nodes.into_iter().filter_map(|(node, view)| Some((node, view.boot_id?)));
            self.api.fleet.agents_seen.extend(seen);
        }
    }

    /// A coordinator that stood still goes on: it says so first, then takes what has arrived meanwhile.
    pub(crate) fn resume(&mut self, index: usize) {
        let Some((_, since)) = self.processes[index].stalled.take() else { return };
        let lasted = self.now.saturating_sub(since);
        self.note(|| format!("c{index} goes on after {lasted:.1?}"));
        self.give(index, Input::Stalled(lasted));
        while let Some(input) = self.processes[index].inbox.pop_front() {
            self.give(index, input);
        }
    }
}

fn shortly(effect: &Effect) -> String {
    match effect {
        Effect::Commit(Record::Fence(record)) => {
            format!(
                "{} to be {:?} (boot {:?}, epoch {})",
                record.node, record.stage, record.boot_id, record.epoch
            )
        }
        Effect::Act(Action::DeletePod { uid, proof, .. }) => {
            format!("{} deleted by {:?}", uid.0, proof.kind())
        }
        other => format!("{other:?}"),
    }
}
