//! A coordinator's process: the real core, a clock, an inbox, and what its shell remembers.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use somersault_coordinator_core::Coordinator;
use somersault_coordinator_core::invariants::Watch;
use somersault_coordinator_core::io::{Action, Input, RecordKey};
use somersault_coordinator_core::names::Key;
use somersault_coordinator_core::policy::Policy;

use crate::clock::Clock;

/// A coordinator's process.
#[derive(Debug)]
pub struct Process {
    pub clock: Clock,
    pub up: bool,
    /// It stands still until then, in the world's time, since its own time.
    pub stalled: Option<(Duration, Duration)>,
    pub core: Coordinator,
    pub watch: Watch,
    /// What arrived while it stood still.
    pub inbox: VecDeque<Input>,
    pub lead: Option<Lead>,
    /// The lease as last seen to change, and when by our own clock.
    pub seen: Option<(u64, Duration)>,
    /// Versions of the records that we read or wrote.
    pub known: BTreeMap<RecordKey, u64>,
    /// The newest change of each VM's start field that was asked for.
    pub start_asked: BTreeMap<Key, Action>,
    /// Changes with every leadership and every restart: answers to earlier questions are dropped.
    pub session: u64,
    /// The next wake-up that was asked for.
    pub wake: Option<Duration>,
    /// Names this wake-up; an older one is ignored.
    pub wake_id: u64,
}

/// What a leader knows of its lease.
#[derive(Clone, Copy, Debug)]
pub struct Lead {
    pub epoch: u64,
    /// By our own clock.
    pub renewed: Duration,
}

impl Process {
    /// A process that has just started.
    pub fn new(clock: Clock, policy: Policy) -> Self {
        Self {
            clock,
            up: true,
            stalled: None,
            core: Coordinator::new(policy),
            watch: Watch::default(),
            inbox: VecDeque::new(),
            lead: None,
            seen: None,
            known: BTreeMap::new(),
            start_asked: BTreeMap::new(),
            session: 0,
            wake: None,
            wake_id: 0,
        }
    }

    /// Forgets everything, as a process that is started again.
    pub fn restart(&mut self, policy: Policy) {
        let (clock, session, wake_id) = (self.clock, self.session, self.wake_id);
        *self = Self { session: session + 1, wake_id: wake_id + 1, ..Self::new(clock, policy) };
    }

    /// It runs and does not stand still.
    pub fn works(&self) -> bool {
        self.up && self.stalled.is_none()
    }
}
