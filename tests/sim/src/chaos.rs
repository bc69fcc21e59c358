//! What goes wrong, who looks at it, and how everything is mended in the end.

use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;
use somersault_coordinator_core::fencing::FenceStage;
use somersault_coordinator_core::fleet::{CLOUD_SHUTDOWN_TAINT, OUT_OF_SERVICE_TAINT};
use somersault_coordinator_core::io::{Attestation, Record, RecordKey};
use somersault_coordinator_core::names::NodeName;

use crate::machine::{FenceMode, Power};
use crate::net::End;
use crate::world::{Event, World};

impl World {
    /// One fault, and the time of the next; after the last, everything is mended.
    pub(crate) fn chaos(&mut self) {
        if self.chaos_left == 0 {
            self.mend_everything();
            return;
        }
        self.chaos_left -= 1;
        // Mostly one at a time, since a storm stops everything; sometimes many at once.
        let pause = if self.rng.random_bool(0.2) { 500 } else { 15_000 };
        let delay = Duration::from_millis(200) + self.within_ms(pause);
        self.at(delay, Event::Chaos);
        let node = self.any_node();
        match self.rng.random_range(0..16) {
            0..4 => self.kill(&node),
            4..7 => self.cut_node(&node),
            7 => self.pause(&node),
            8 => self.crash_agent(&node),
            9 => self.crash_kubelet(&node),
            10 => self.stall_coordinator(),
            11 => self.restart_coordinator(),
            12 => self.cut_coordinator(),
            13 => self.spoil_messages(),
            14 => self.change_fencing(&node),
            _ => self.reboot(&node),
        }
    }

    fn any_node(&mut self) -> NodeName {
        let names: Vec<NodeName> = self.machines.keys().cloned().collect();
        names.choose(&mut self.rng).cloned().unwrap_or_else(|| "n1".into())
    }

    fn lasting(&mut self) -> Duration {
        let longest = *[2_000, 10_000, 60_000, 150_000].choose(&mut self.rng).unwrap_or(&2_000);
        Duration::from_millis(200) + self.within_ms(longest)
    }

    fn kill(&mut self, node: &NodeName) {
        let power = if self.rng.random_bool(0.5) { Power::Off } else { Power::Dead };
        self.note(|| format!("! {node} dies ({power:?})"));
        self.machine(node).stop(power);
        let back = Duration::from_secs(10) + self.lasting();
        self.at(back, Event::PowerOn(node.clone()));
    }

    fn reboot(&mut self, node: &NodeName) {
        self.note(|| format!("! {node} is rebooted"));
        self.machine(node).stop(Power::Dead);
        let back = Duration::from_millis(400) + self.within_ms(10_000);
        self.at(back, Event::PowerOn(node.clone()));
    }

    fn cut_node(&mut self, node: &NodeName) {
        let here = End::Node(node.clone());
        let mut others: Vec<End> = (0..self.processes.len()).map(End::Coordinator).collect();
        if self.rng.random_bool(0.7) {
            others.extend(self.machines.keys().filter(|name| *name != node).cloned().map(End::Node));
        }
        if self.rng.random_bool(0.5) {
            others.push(End::Api);
        }
        let ways = self.rng.random_range(0..4);
        self.note(|| format!("! {node} is cut off from {} others (ways {ways})", others.len()));
        for other in others {
            if ways != 0 {
                self.net.cut(here.clone(), other.clone());
            }
            if ways != 1 {
                self.net.cut(other, here.clone());
            }
        }
        let mended = self.lasting();
        self.at(mended, Event::Mend(here));
    }

    /// A machine that does not notice its own pause: its clock and its watchdog would stop with it, so none that is
    /// enrolled for watchdog fencing may be one.
    fn pause(&mut self, node: &NodeName) {
        if self.machines[node].guard.is_some() || self.machines[node].power != Power::On {
            return;
        }
        self.note(|| format!("! {node} stands still"));
        self.machine(node).power = Power::Paused;
        let goes_on = self.lasting();
        self.at(goes_on, Event::Unpause(node.clone()));
    }

    fn crash_agent(&mut self, node: &NodeName) {
        self.note(|| format!("! the agent of {node} crashes"));
        self.machine(node).agent = false;
        let back = self.lasting();
        self.at(back, Event::AgentStarts(node.clone()));
    }

    fn crash_kubelet(&mut self, node: &NodeName) {
        let works = !self.machines[node].kubelet;
        self.note(|| format!("! the kubelet of {node} works: {works}"));
        self.machine(node).kubelet = works;
    }

    fn stall_coordinator(&mut self) {
        let index = self.rng.random_range(0..self.processes.len());
        if !self.processes[index].works() {
            return;
        }
        let lasting = self.lasting().min(Duration::from_secs(40));
        self.note(|| format!("! c{index} stands still for {lasting:.1?}"));
        self.processes[index].stalled = Some((self.now + lasting, self.now));
        self.at(lasting, Event::Resume(index));
    }

    fn restart_coordinator(&mut self) {
        let index = self.rng.random_range(0..self.processes.len());
        self.note(|| format!("! c{index} is killed, and starts again"));
        let policy = self.policy.clone();
        self.processes[index].restart(policy);
    }

    fn cut_coordinator(&mut self) {
        let index = self.rng.random_range(0..self.processes.len());
        let here = End::Coordinator(index);
        let mut others = Vec::new();
        if self.rng.random_bool(0.6) {
            others.push(End::Api);
        }
        if self.rng.random_bool(0.5) {
            others.extend(self.machines.keys().cloned().map(End::Node));
        }
        let ways = self.rng.random_range(0..4);
        self.note(|| format!("! c{index} is cut off from {} others (ways {ways})", others.len()));
        for other in others {
            if ways != 0 {
                self.net.cut(here.clone(), other.clone());
            }
            if ways != 1 {
                self.net.cut(other, here.clone());
            }
        }
        let mended = self.lasting();
        self.at(mended, Event::Mend(here));
    }

    fn spoil_messages(&mut self) {
        self.net.loss = self.rng.random_range(0.0..0.15);
        self.net.twice = self.rng.random_range(0.0..0.2);
        self.net.late = self.rng.random_range(0.0..0.2);
        let (loss, late) = (self.net.loss, self.net.late);
        self.note(|| format!("! messages: {loss:.2} lost, {late:.2} late"));
    }

    fn change_fencing(&mut self, node: &NodeName) {
        use FenceMode::{FailsAfter, FailsBefore, Hangs, LiesLate, Works};
        let modes = [Works, FailsBefore, FailsAfter, LiesLate, Hangs];
        let mode = *modes.choose(&mut self.rng).unwrap_or(&Works);
        self.note(|| format!("! the fence agent of {node} {mode:?}"));
        self.machine(node).fence = mode;
    }

    /// People and clouds look at machines: what they say is true when they say it.
    pub(crate) fn people(&mut self) {
        let delay = Duration::from_secs(3) + self.within_ms(10_000);
        self.at(delay, Event::People);
        let names: Vec<NodeName> = self.machines.keys().cloned().collect();
        for node in names {
            let (power, boot_id) = (self.machines[&node].power, self.machines[&node].boot_id());
            let dead = matches!(power, Power::Off | Power::Dead);
            // A cloud takes its taint away; a person may forget.
            let set = power == Power::Off && self.rng_bool(0.3);
            self.cloud_taint(&node, set, dead);
            if dead && self.rng_bool(0.15) {
                self.api.taint(&node, OUT_OF_SERVICE_TAINT, true);
                self.note(|| format!("somebody calls {node} out of service"));
            } else if !dead && self.rng_bool(0.2) {
                self.api.taint(&node, OUT_OF_SERVICE_TAINT, false);
            }
            if dead && self.rng_bool(0.3) {
                self.note(|| format!("somebody attests that {boot_id} is dead"));
                let word = Attestation { boot_id, by: "eve".to_owned(), at: Some(format!("{:?}", self.now)) };
                self.api.requests.attestations.insert(node.clone(), word);
            }
            if self.mended_at.is_some() {
                self.look_after(&node);
            }
        }
        if self.rng_bool(0.05) {
            let now = self.now;
            self.note(|| "somebody releases whatever is held".to_owned());
            self.api.requests.hold_release = Some(format!("{now:?}"));
        }
    }

    fn rng_bool(&mut self, likely: f64) -> bool {
        self.rng.random_bool(likely)
    }

    fn cloud_taint(&mut self, node: &NodeName, set: bool, dead: bool) {
        if set {
            self.api.taint(node, CLOUD_SHUTDOWN_TAINT, true);
        } else if !dead {
            self.api.taint(node, CLOUD_SHUTDOWN_TAINT, false);
        }
    }

    fn mend_everything(&mut self) {
        self.note(|| "everything is mended".to_owned());
        self.mended_at = Some(self.now);
        self.net.mend_all();
        for index in 0..self.processes.len() {
            self.resume(index);
        }
        let names: Vec<NodeName> = self.machines.keys().cloned().collect();
        for node in names {
            let machine = self.machine(&node);
            machine.fence = FenceMode::Works;
            machine.agent = true;
            machine.kubelet = true;
            self.unpause(&node);
            self.power_on(&node);
        }
    }

    /// After the chaos a person switches on what is off, and reboots what is not trusted in its present boot.
    fn look_after(&mut self, node: &NodeName) {
        self.api.taint(node, OUT_OF_SERVICE_TAINT, false);
        let boot = self.machines[node].boot_id();
        let record = self.api.records.get(&RecordKey::Fence(node.clone()));
        let distrusted = record.is_some_and(|(_, record)| match record {
            Record::Fence(record) => {
                let waits = matches!(record.stage, FenceStage::PowerOrdered | FenceStage::Fenced { .. });
                waits && record.boot_id.as_ref() == Some(&boot)
            }
            _ => false,
        });
        if self.machines[node].power == Power::On && distrusted {
            self.note(|| format!("somebody reboots {node}"));
            self.machine(node).stop(Power::Dead);
        }
        if self.machines[node].power != Power::On {
            let back = Duration::from_secs(2) + self.within_ms(5_000);
            self.at(back, Event::PowerOn(node.clone()));
        }
    }
}
