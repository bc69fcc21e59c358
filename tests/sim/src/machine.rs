//! A node: its power, its kernel, its agent, its kubelet, and the guests that run on it.

use std::collections::BTreeMap;
use std::time::Duration;

use somersault_coordinator_core::names::{BootId, Key, NodeName, Uid};

use crate::clock::Clock;
use crate::guard::Guard;

/// Whether anything runs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// No power.
    Off,
    /// Power, but nothing runs yet, or any more.
    Dead,
    /// Runs.
    On,
    /// Stands still, and may go on (a paused virtual machine, a hung kernel that comes back).
    Paused,
}

/// A node.
#[derive(Clone, Debug)]
pub struct Machine {
    pub name: NodeName,
    pub clock: Clock,
    pub power: Power,
    boots: u32,
    /// The agent runs and answers.
    pub agent: bool,
    /// The kubelet runs.
    pub kubelet: bool,
    /// Its guests, by launcher: they run as long as the machine does.
    pub guests: BTreeMap<Uid, Key>,
    /// Launchers that the kubelet has started, and has not yet told of.
    pub unreported: Vec<Uid>,
    /// Guests whose pod was gone when the kubelet last looked.
    pub orphans: Vec<Uid>,
    pub guard: Option<Guard>,
    pub sequence: u64,
    /// A grant arrived since the last beat.
    pub grant_held: Option<u64>,
    /// Send times of the last beats, by sequence, on its own clock.
    pub sent: BTreeMap<u64, Duration>,
    /// When the kubelet last reached the API.
    pub kubelet_seen: Duration,
    /// What its fence agent does.
    pub fence: FenceMode,
}

/// What a fence agent does. None says off of a machine that is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceMode {
    /// Switches off and says so.
    Works,
    /// Does nothing and says so.
    FailsBefore,
    /// Switches off and says that it failed.
    FailsAfter,
    /// Says that it failed; the machine goes off long afterwards.
    LiesLate,
    /// Does nothing and says nothing.
    Hangs,
}

impl Machine {
    /// A machine that has just booted for the first time.
    pub fn new(name: NodeName, clock: Clock, guard: Option<Guard>) -> Self {
        Self {
            name,
            clock,
            power: Power::On,
            boots: 1,
            agent: true,
            kubelet: true,
            guests: BTreeMap::new(),
            unreported: Vec::new(),
            orphans: Vec::new(),
            guard,
            sequence: 0,
            grant_held: None,
            sent: BTreeMap::new(),
            kubelet_seen: Duration::ZERO,
            fence: FenceMode::Works,
        }
    }

    /// The present boot, or the last.
    pub fn boot_id(&self) -> BootId {
        BootId(format!("{}-b{}", self.name, self.boots))
    }

    /// Something answers on the network.
    pub fn kernel_answers(&self) -> bool {
        self.power == Power::On
    }

    /// The agent answers.
    pub fn agent_answers(&self) -> bool {
        self.power == Power::On && self.agent
    }

    /// Everything on it ends.
    pub fn stop(&mut self, power: Power) {
        self.power = power;
        self.guests.clear();
        self.unreported.clear();
        self.orphans.clear();
        self.sent.clear();
        self.grant_held = None;
        if let Some(guard) = &mut self.guard {
            guard.disarm();
        }
    }

    /// It boots.
    pub fn start(&mut self) {
        self.stop(Power::On);
        self.boots += 1;
        self.agent = true;
        self.kubelet = true;
    }

    /// Guests that write to their disks, or may go on writing.
    pub fn active(&self) -> impl Iterator<Item = (&Uid, &Key)> {
        let runs = matches!(self.power, Power::On | Power::Paused);
        self.guests.iter().filter(move |_| runs)
    }
}
