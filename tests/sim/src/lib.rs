//! A whole fleet in one thread, from one seed: coordinators, agents, kubelets, a KubeVirt, fence agents and a network,
//! with everything going wrong that may go wrong. What is simulated is the world and the coordinator's shell; what
//! decides is the real `somersault-coordinator-core`.
//!
//! ```text
//!   chaos ──► machines, network, processes, people ◄──────────── effects ───────────┐
//!                 │  beats, probes, objects (late, lost, twice)                     │
//!                 └──────────────────────────────► shell: inbox, own clock ──► Coordinator::step
//! ```
//!
//! After every event the world is checked (`check`): no VM active twice, no launcher deleted whose guest still lives,
//! no VM touched that needs a person, epochs only grow. After the chaos everything is mended, and in the end every
//! VM must run exactly once and every node be healthy.
//!
//! A [`Mutant`] breaks the shell or the world on purpose, never the core: it shows that the checks bite.

mod chaos;
mod check;
mod clock;
mod cluster;
mod guard;
mod machine;
mod net;
mod nodes;
mod process;
mod shell;
mod world;

use std::time::Duration;

pub use check::Broken;
pub use world::World;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// Faults that are injected before everything is mended.
    pub steps: u32,
    /// What is broken on purpose.
    pub mutant: Option<Mutant>,
    /// Print every event as it happens.
    pub verbose: bool,
}

impl Options {
    /// The seed, with as many faults as the tests inject.
    pub fn new(seed: u64) -> Self {
        Self { seed, steps: 40, mutant: None, verbose: false }
    }
}

/// Something broken on purpose, in the shell or the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// The shell deletes launchers as soon as a VM is decided, without waiting for the proof.
    DropProof,
    /// A leader that lost its lease goes on under its old epoch, and the store does not compare.
    OldEpoch,
    /// The coordinator counts with a shorter lease than the guards.
    ShortLease,
}

/// What a run that held saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Events.
    pub events: u64,
    /// Time that passed in the world.
    pub elapsed: Duration,
    /// Launchers that were deleted with proof.
    pub deletions: u32,
    /// Claims that were made anew.
    pub reimports: u32,
    /// Incidents that were closed.
    pub closed: u32,
    /// Leaders after the first.
    pub handovers: u32,
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.elapsed += other.elapsed;
        self.deletions += other.deletions;
        self.reimports += other.reimports;
        self.closed += other.closed;
        self.handovers += other.handovers;
    }
}

/// A run that did not hold.
#[derive(Debug, thiserror::Error)]
#[error(
    "seed {seed}: {broken} at {at:.3?}\n{log}\nreplay: cargo run -p somersault-sim -- --seed {seed} --steps {steps}{extra}"
)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The number of faults.
    pub steps: u32,
    /// What was broken.
    pub broken: Broken,
    /// When, in the world's own time.
    pub at: Duration,
    /// The last events.
    pub log: String,
    /// Further options of the replay.
    pub extra: String,
}

/// Runs one seed.
pub fn run(options: Options) -> Result<Summary, Box<Failure>> {
    let mut world = World::new(options);
    match world.run() {
        Ok(()) => Ok(world.summary()),
        Err(broken) => Err(Box::new(Failure {
            seed: options.seed,
            steps: options.steps,
            broken,
            at: world.now(),
            log: world.log_tail(),
            extra: options.mutant.map(|mutant| format!(" --mutant {mutant:?}")).unwrap_or_default(),
        })),
    }
}
