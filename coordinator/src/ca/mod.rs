//! Our own certificate authority: it needs no cert-manager, and nobody has to hand out certificates.
//!
//! ```text
//!   Secret somersault-ca ──read, made, rotated (compare-and-swap)──► Keeper ──► our own certificate, renewed
//!                                                                      │  └───► enrolment signs with it
//!   ConfigMap somersault-ca-bundle ◄──published, repaired──────────────┘
//! ```
//!
//! Every replica runs a keeper and none leads: the decision is pure ([`rotation`]), what it decides is stored by
//! compare-and-swap, and whoever loses reads what the other stored.

mod authority;
mod keeper;
pub mod rotation;
mod secret;
mod state;
mod store;

use std::time::Duration;

use jiff::Timestamp;

pub use authority::{Anchor, Authority, Certified};
pub use keeper::{Keeper, Signer};
pub use secret::ROTATE_ANNOTATION;
pub use state::{Stage, State};
pub use store::{CaStore, KubeStore, StoreError};

/// The ConfigMap with every authority whose certificates are good now. Its key is `ca.crt`.
pub const BUNDLE_NAME: &str = "somersault-ca-bundle";
/// The key of a Secret or ConfigMap that holds the authority's certificate, or several.
pub const CERTIFICATE_KEY: &str = "ca.crt";

/// How long things are good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaPolicy {
    /// Of an authority. It is rotated after four fifths of it.
    pub authority_lifetime: Duration,
    /// Of everybody's certificate. Whoever holds one asks for the next after two thirds of it, so a third of it is
    /// how long all coordinators may be away before agents fall silent.
    pub leaf_lifetime: Duration,
}

impl Default for CaPolicy {
    fn default() -> Self {
        Self {
            // Ten years: rotation is tested, and yet nobody should meet it by surprise.
            authority_lifetime: Duration::from_hours(10 * 365 * 24),
            leaf_lifetime: Duration::from_hours(24),
        }
    }
}

impl CaPolicy {
    /// How long it takes until everybody with a good certificate has had an answer of every replica's newest state:
    /// the longest life of a certificate, and an eighth of it for replicas that see the change late, and for clocks.
    pub fn spread(&self) -> Duration {
        self.leaf_lifetime + self.leaf_lifetime / 8
    }

    /// How often the Secret and the ConfigMap are looked at: each minute is seldom enough for an API server, and
    /// soon enough for a person who asked for a rotation. More often where certificates live shorter than in life.
    pub fn look_every(&self) -> Duration {
        (self.leaf_lifetime / 32).clamp(Duration::from_millis(50), Duration::from_mins(1))
    }
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The Secret is not one of ours, or somebody broke it.
    #[error(
        "Secret {secret}, {key}: {why}. Mend it, or delete the Secret and restart every coordinator: a new authority \
         is made then, and the agents enrol anew"
    )]
    Malformed {
        /// Name of the Secret.
        secret: String,
        /// Which key of its data.
        key: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A key or a certificate could not be made.
    #[error("cannot make a key or sign a certificate; does this system have a working random source?")]
    NotMade(#[from] rcgen::Error),
    /// What was made cannot be used.
    #[error("our own certificate cannot be used")]
    Unusable(#[from] somersault_proto::tls::TlsError),
    /// The API server did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else changed the Secret at the same time.
    #[error("Secret {0} changed in between; it is read again")]
    Contended(String),
}

/// For a certificate, whose times are whole seconds since 1970.
fn whole_seconds(time: Timestamp) -> Duration {
    Duration::from_secs(u64::try_from(time.as_second()).unwrap_or(0))
}
