//! The authorities of the moment, and what each step of a rotation makes of them.

use jiff::Timestamp;
use rcgen::PublicKeyData;
use somersault_proto::tls::Identity;

use super::authority::{Anchor, Authority, Certified};
use super::rotation::{Phase, Step, Timeline};
use super::{CaError, CaPolicy};

/// The authorities of the moment.
#[derive(Clone, Debug)]
pub struct State {
    /// Signs.
    pub signing: Authority,
    /// How far a rotation has come.
    pub stage: Stage,
    /// A person asks for a rotation.
    pub asked: bool,
}

/// How far a rotation has come, and with whom.
#[derive(Clone, Debug)]
pub enum Stage {
    /// There is one authority.
    Stable,
    /// A second one is known to everybody before it signs.
    Announced {
        /// It.
        next: Authority,
        /// Since when.
        since: Timestamp,
    },
    /// The first one signs no more, but its certificates are still about. Its key is gone.
    Retiring {
        /// It.
        old: Anchor,
        /// Since when.
        since: Timestamp,
    },
}

impl State {
    /// The first authority.
    pub fn new(now: Timestamp, policy: &CaPolicy) -> Result<Self, CaError> {
        let signing = Authority::make(now, policy.authority_lifetime)?;
        Ok(Self { signing, stage: Stage::Stable, asked: false })
    }

    /// What the decision depends on.
    pub fn timeline(&self) -> Timeline {
        let anchor = self.signing.anchor();
        Timeline {
            signing_from: anchor.not_before(),
            signing_until: anchor.not_after(),
            phase: match &self.stage {
                Stage::Stable => Phase::Stable,
                Stage::Announced { since, .. } => Phase::Announced { since: *since },
                Stage::Retiring { since, .. } => Phase::Retiring { since: *since },
            },
            asked: self.asked,
        }
    }

    /// The authorities after a step.
    pub fn after(&self, step: Step, now: Timestamp, policy: &CaPolicy) -> Result<Self, CaError> {
        Ok(match (step, &self.stage) {
            (Step::Rest, _) | (Step::Switch, Stage::Stable | Stage::Retiring { .. }) => self.clone(),
            (Step::Announce, _) => Self {
                signing: self.signing.clone(),
                stage: Stage::Announced {
                    next: Authority::make(now, policy.authority_lifetime)?,
                    since: now,
                },
                // What was asked for has begun.
                asked: false,
            },
            (Step::Switch, Stage::Announced { next, .. }) => Self {
                signing: next.clone(),
                stage: Stage::Retiring { old: self.signing.anchor().clone(), since: now },
                asked: self.asked,
            },
            (Step::Retire, _) => {
                Self { signing: self.signing.clone(), stage: Stage::Stable, asked: self.asked }
            }
            (Step::Replace, _) => Self::new(now, policy)?,
        })
    }

    /// Every authority whose certificates are good, PEM; the one that signs comes first.
    pub fn bundle(&self) -> String {
        let signing = self.signing.anchor();
        let other = match &self.stage {
            Stage::Stable => None,
            Stage::Announced { next, .. } => Some(next.anchor()),
            Stage::Retiring { old, .. } => Some(old),
        };
        std::iter::once(signing).chain(other).map(Anchor::pem).collect()
    }

    /// Signs a certificate.
    pub fn certify(
        &self,
        identity: &Identity,
        public_key: &impl PublicKeyData,
        now: Timestamp,
        policy: &CaPolicy,
    ) -> Result<Certified, CaError> {
        Ok(self.signing.certify(identity, public_key, now, policy.leaf_lifetime)?)
    }
}
