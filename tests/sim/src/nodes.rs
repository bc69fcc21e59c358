//! What happens on the nodes: agents beat and answer, kubelets start and stop guests, guards pet their watchdogs, fence
//! agents switch.

use std::time::Duration;

use rand::Rng;
use somersault_coordinator_core::fencing::agents::FenceAnswer;
use somersault_coordinator_core::io::{FenceResult, Input, Prober, Reachability};
use somersault_coordinator_core::names::{BootId, NodeName, Uid};

use crate::check::Broken;
use crate::guard::Peers;
use crate::machine::Power;
use crate::net::End;
use crate::world::{Event, World};

impl World {
    pub(crate) fn beat(&mut self, node: &NodeName) {
        let (now, interval) = (self.now, self.policy.detection.beat);
        let coordinators = self.processes.len();
        let machine = self.machine(node);
        let next = machine.clock.last(interval);
        if machine.agent_answers() {
            machine.sequence += 1;
            let (sequence, held, boot) = (machine.sequence, machine.grant_held.take(), machine.boot_id());
            let sent = machine.clock.read(now);
            machine.sent.insert(sequence, sent);
            if machine.sent.len() > 64 {
                machine.sent.pop_first();
            }
            for to in 0..coordinators {
                let event = Event::BeatArrives { to, node: node.clone(), boot: boot.clone(), sequence, held };
                self.send(&End::Node(node.clone()), &End::Coordinator(to), &event);
            }
        }
        self.at(next, Event::Beat(node.clone()));
    }

    pub(crate) fn grant_arrives(&mut self, node: &NodeName, sequence: u64) {
        let now = self.now;
        let machine = self.machine(node);
        let reading = machine.clock.read(now);
        let Some(sent) = machine.sent.get(&sequence).copied().filter(|_| machine.agent_answers()) else {
            return;
        };
        machine.grant_held = Some(sequence);
        if let Some(guard) = &mut machine.guard {
            guard.granted(sent, reading);
        }
    }

    /// What a probe from here finds, by the state of the network and the machine now.
    pub(crate) fn probe(&self, from: &End, node: &NodeName) -> Reachability {
        let machine = &self.machines[node];
        match self.net.both(from, &End::Node(node.clone())) {
            true if machine.agent_answers() => Reachability::Agent,
            true if machine.kernel_answers() => Reachability::Kernel,
            _ => Reachability::Silent,
        }
    }

    pub(crate) fn peer_probes(&mut self, to: usize, peer: &NodeName, node: NodeName, timeout: Duration) {
        if !self.machines[peer].agent_answers() {
            return;
        }
        let from = End::Node(peer.clone());
        let answer = self.probe(&from, &node);
        let wait = if answer == Reachability::Silent { timeout } else { self.within_ms(5) };
        let input = Input::Probed { node, by: Prober::Peer(peer.clone()), answer };
        for delay in self.net.send(&mut self.rng, &from, &End::Coordinator(to)) {
            self.at(wait + delay, Event::Arrives { to, session: None, input: Box::new(input.clone()) });
        }
    }

    pub(crate) fn stop_launchers(&mut self, node: &NodeName, pods: &[Uid]) {
        let machine = self.machine(node);
        if machine.agent_answers() {
            machine.guests.retain(|pod, _| !pods.contains(pod));
        }
    }

    pub(crate) fn fence(&mut self, by: usize, node: &NodeName, epoch: u64) {
        use crate::machine::FenceMode::{FailsAfter, FailsBefore, Hangs, LiesLate, Works};
        let mode = self.machines[node].fence;
        self.note(|| format!("fence agent of {node}: {mode:?}"));
        if matches!(mode, Works | FailsAfter) {
            self.machine(node).stop(Power::Off);
        }
        if mode == LiesLate {
            let boot = self.machines[node].boot_id();
            let delay = Duration::from_secs(1) + self.within_ms(40_000);
            self.at(delay, Event::LateOff { node: node.clone(), boot });
        }
        let result = match mode {
            Works => FenceResult::ConfirmedOff,
            FailsBefore | FailsAfter | LiesLate => {
                FenceResult::Failed("no answer from the controller".to_owned())
            }
            Hangs => return,
        };
        let (session, input) =
            (Some(self.processes[by].session), Input::FenceEnded { node: node.clone(), epoch, result });
        let delay = self.within_ms(500);
        self.at(delay, Event::Arrives { to: by, session, input: Box::new(input) });
    }

    pub(crate) fn fence_status(&mut self, by: usize, node: NodeName) {
        use crate::machine::FenceMode::{FailsAfter, FailsBefore, Hangs, LiesLate, Works};
        let answer = match (self.machines[&node].fence, self.machines[&node].power) {
            (Hangs, _) => return,
            (FailsBefore, _) => FenceAnswer::Failed("no answer from the controller".to_owned()),
            (Works | FailsAfter | LiesLate, Power::Off) => FenceAnswer::Off,
            (Works | FailsAfter | LiesLate, _) => FenceAnswer::On,
        };
        let session = Some(self.processes[by].session);
        let delay = self.within_ms(500);
        self.at(
            delay,
            Event::Arrives { to: by, session, input: Box::new(Input::FenceAnswered { node, answer }) },
        );
    }

    /// The controller of the machine obeys at last, whatever boot it is in by now.
    pub(crate) fn late_off(&mut self, node: &NodeName, ordered_in: &BootId) {
        self.note(|| format!("{node} goes off at last (ordered in {ordered_in})"));
        self.machine(node).stop(Power::Off);
    }

    pub(crate) fn kubevirt(&mut self) {
        for line in self.api.kubevirt(&mut self.rng) {
            self.note(|| line);
        }
        for (name, machine) in &self.machines {
            self.api.judge_readiness(name, self.now.saturating_sub(machine.kubelet_seen));
        }
        let delay = Duration::from_millis(100) + self.within_ms(300);
        self.at(delay, Event::KubeVirt);
    }

    pub(crate) fn kubelet(&mut self, node: &NodeName) {
        let delay = Duration::from_millis(500) + self.within_ms(500);
        self.at(delay, Event::Kubelet(node.clone()));
        let reaches = self.net.both(&End::Node(node.clone()), &End::Api);
        let now = self.now;
        let Some(machine) = self.machines.get_mut(node) else { return };
        if machine.power != Power::On || !machine.kubelet || !reaches {
            return;
        }
        let renewed_at = machine.kubelet_seen;
        machine.kubelet_seen = now;
        let pods = self.api.pods_of(node);
        if let Some(object) = self.api.fleet.nodes.get_mut(node) {
            object.boot_id = Some(machine.boot_id());
        }
        // It tells of what it started before, then starts what waits; what ran in an earlier boot has failed.
        for uid in std::mem::take(&mut machine.unreported) {
            if let Some((pod, instance)) = self.api.pod(&uid) {
                "Running".clone_into(&mut pod.phase);
                if let Some(instance) = instance {
                    "Running".clone_into(&mut instance.phase);
                    instance.has_run = true;
                }
            }
        }
        let mut stopped = Vec::new();
        for (vm, pod) in &pods {
            let runs = machine.guests.contains_key(&pod.uid);
            if self.api.is_halted(vm) {
                machine.guests.remove(&pod.uid);
                machine.unreported.retain(|uid| *uid != pod.uid);
                stopped.push(pod.uid.clone());
            } else if !runs && pod.phase == "Running" {
                if let Some((pod, _)) = self.api.pod(&pod.uid) {
                    "Failed".clone_into(&mut pod.phase);
                }
            } else if !runs && pod.phase == "Pending" {
                if !self.api.is_filled(vm) {
                    self.broken = Some(Broken::StartedUnfilled { vm: vm.clone(), node: node.clone() });
                }
                machine.guests.insert(pod.uid.clone(), vm.clone());
                machine.unreported.push(pod.uid.clone());
            }
        }
        // A guest whose pod is gone is stopped at the second look.
        let gone = |uid: &&Uid| pods.iter().all(|(_, pod)| pod.uid != **uid);
        let orphans: Vec<Uid> = machine.guests.keys().filter(gone).cloned().collect();
        for uid in orphans.iter().filter(|uid| machine.orphans.contains(uid)) {
            machine.guests.remove(uid);
        }
        machine.orphans = orphans;
        for uid in &stopped {
            self.api.delete_pod(uid);
        }
        // The lease, some ten seconds apart.
        if now.as_secs() / 10 != renewed_at.as_secs() / 10 {
            for to in 0..self.processes.len() {
                let input = Box::new(Input::KubeletRenewed { node: node.clone() });
                self.send(&End::Api, &End::Coordinator(to), &Event::Arrives { to, session: None, input });
            }
        }
    }

    pub(crate) fn guard(&mut self, node: &NodeName) {
        let peers = self.enrolled_peers(node);
        let stalls = self.rng.random_bool(0.1);
        let watchdog_ms = u64::try_from(self.policy.lease.watchdog.as_millis()).unwrap_or(u64::MAX);
        let stall = if stalls { self.within_ms(watchdog_ms) } else { Duration::ZERO };
        let now = self.now;
        let machine = self.machine(node);
        let reading = machine.clock.read(now);
        let fires = machine.power == Power::On
            && machine.guard.as_mut().is_some_and(|guard| guard.tick(reading, peers, stall));
        if fires {
            machine.stop(Power::Dead);
            self.note(|| format!("the watchdog of {node} fires"));
            let boot = Duration::from_secs(5) + self.within_ms(20_000);
            self.at(boot, Event::PowerOn(node.clone()));
        }
        let delay = Duration::from_millis(250) + self.within_ms(250);
        self.at(delay, Event::Guard(node.clone()));
    }

    fn enrolled_peers(&self, node: &NodeName) -> Peers {
        let here = End::Node(node.clone());
        let mut peers = Peers { enrolled: self.policy.watchdog_fencing.len(), ..Peers::default() };
        for (name, machine) in self.machines.iter().filter(|(name, _)| *name != node) {
            let Some(guard) = machine.guard.as_ref().filter(|_| machine.power == Power::On) else { continue };
            if self.net.both(&here, &End::Node(name.clone())) {
                peers.reached += 1;
                peers.granted += usize::from(guard.holds(machine.clock.read(self.now)));
            }
        }
        peers
    }

    pub(crate) fn power_on(&mut self, node: &NodeName) {
        if matches!(self.machines[node].power, Power::Off | Power::Dead) {
            self.machine(node).start();
            let boot = self.machines[node].boot_id();
            self.note(|| format!("{node} boots: {boot}"));
        }
    }

    pub(crate) fn unpause(&mut self, node: &NodeName) {
        if self.machines[node].power == Power::Paused {
            self.machine(node).power = Power::On;
            self.note(|| format!("{node} goes on"));
        }
    }
}
