//! A policy that has changed: what of it counts at once, what later, and who is told.

use super::Coordinator;
use crate::io::{Effect, Severity};
use crate::policy::{Policy, PolicyError};
use crate::scene::Scene;

impl Coordinator {
    pub(super) fn take_policy(&mut self, given: Policy, fx: &mut Vec<Effect>) {
        if given == self.given_policy {
            return;
        }
        let adopted = self.facts.policy.adopt(&given);
        self.given_policy = given;
        let (policy, kept) = match adopted {
            Ok(adopted) => adopted,
            Err(error) => return self.tell(fx, Severity::Warning, "PolicyRefused", policy_refused(&error)),
        };
        let before = std::mem::replace(&mut self.facts.policy, policy);
        let detection = &self.facts.policy.detection;
        if *detection != before.detection {
            // Agents learn the new interval with the answer to the next beat, which is due by the old one.
            let from = self.now + detection.beat.max(before.detection.beat);
            let scene = Scene { now: self.now, facts: &self.facts };
            self.liveness.restart_timers(&scene, from, "the policy changed");
        }
        self.undecided = true;
        self.rounds.look_now();
        if self.facts.policy != before {
            let message = "The policy changed, and counts from now on.".to_owned();
            self.tell(fx, Severity::Info, "PolicyChanged", message);
        }
        if !kept.is_empty() {
            let message = format!(
                "The policy changed in {}, which counts only once every coordinator was started anew: \
                 `kubectl rollout restart`.",
                kept.join(" and ")
            );
            self.tell(fx, Severity::Warning, "PolicyNeedsRestart", message);
        }
    }
}

fn policy_refused(error: &PolicyError) -> String {
    format!(
        "The changed policy contradicts what stays as it is until the coordinators start anew, and is not taken: \
         {error}."
    )
}
