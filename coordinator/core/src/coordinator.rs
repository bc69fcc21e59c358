//! The one thing that the shell drives: routes each input through liveness, fencing and recovery, and, while
//! we lead, through migrations and evacuations.

use crate::BootTime;
use crate::io::{Effect, Input};
use crate::policy::Policy;
use crate::view::View;

/// The coordinator's mind.
#[derive(Debug)]
pub struct Coordinator {
    policy: Policy,
}

impl Coordinator {
    /// A coordinator that has seen nothing yet and does not lead.
    pub fn new(policy: Policy) -> Self {
        Self { policy }
    }

    /// The policy that it was made with.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Takes what happened at `now` and says what to do about it, in this order.
    pub fn step(&mut self, _now: BootTime, _input: Input) -> Vec<Effect> {
        Vec::new()
    }

    /// When to be called with [`Input::Tick`] at the latest.
    pub fn next_deadline(&self) -> Option<BootTime> {
        None
    }

    /// What to show.
    pub fn view(&self) -> View {
        View::default()
    }
}
