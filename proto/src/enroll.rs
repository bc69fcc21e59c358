//! Getting a certificate with a ServiceAccount token, and keeping it new.
//!
//! ```text
//!   no bundle, no token, nobody answers, refused ──► said, tried again: 1 s, 2 s, … 30 s, jittered ──┐
//!        ▲                                                                                         │
//!   asking ◄─────────────────────────────────────────────────────────────────────────────────────────┘
//!        │ certified                     ▲
//!        ▼                               │ two thirds of its life are over, or the bundle has changed
//!   holding the certificate ─────────────┘ (it stays in use until its successor is there)
//! ```
//!
//! Key and certificate live in memory only: whoever restarts asks again. The key is new each time.

mod attempts;
mod keep;
mod origin;
mod request;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

pub use attempts::Attempts;
pub use keep::{first, keep, renewal_due};
pub use origin::{Origin, OriginError};
pub use request::enroll;

use crate::model::{Address, ModelError};
use crate::tls::{Identity, TlsError, Validity};

/// Audience of the tokens that enrolment takes: one meant for the API server or for anybody else is refused, so
/// that showing ours to a coordinator gives it no power over the cluster.
pub const TOKEN_AUDIENCE: &str = "somersault.novasphere.dev";

/// How far two wall clocks may differ: the five minutes of Kerberos (RFC 4120). A certificate is good from so long
/// before it is made.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_mins(5);

/// Who wants a certificate, from whom, and by what right.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// Whom the certificate must stand for.
    pub identity: Identity,
    /// Where coordinators enrol. A name may stand for several.
    pub coordinators: Vec<Address>,
    /// The projected token. Read anew each time: the kubelet replaces it.
    pub token_file: PathBuf,
    /// The authorities to trust, from ConfigMap somersault-ca-bundle. Read anew each time.
    pub bundle_file: PathBuf,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// No token.
    #[error(
        "cannot read the token {}; the pod needs a projected ServiceAccount token with audience {TOKEN_AUDIENCE}",
        file.display()
    )]
    NoToken {
        /// Where it should be.
        file: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nobody to trust yet.
    #[error(
        "{} is not there; a coordinator publishes it as ConfigMap somersault-ca-bundle when it first runs, and the \
         kubelet shows it a minute later",
        file.display()
    )]
    NoBundle {
        /// Where it should be.
        file: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No key.
    #[error("cannot make a key; does this system have a working random source?")]
    NoKey(#[source] rcgen::Error),
    /// Nobody answers, or not one that we trust.
    #[error("cannot connect to {coordinator}")]
    Unreachable {
        /// Whom.
        coordinator: Address,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// The time of one side is wrong.
    #[error(
        "the clock of this node says {}, the certificate of {of} is good from {} to {}: set the clock, and have it \
         kept by NTP",
        utc(*now), utc(validity.not_before), utc(validity.not_after)
    )]
    Clock {
        /// Whose certificate.
        of: String,
        /// The clock here.
        now: SystemTime,
        /// When it is good.
        validity: Validity,
    },
    /// The coordinator's certificate and our clock contradict each other.
    #[error(
        "the clock of this node says {}, by which the certificate of {coordinator} {problem}: set the clock, and \
         have it kept by NTP; if it is right, look at the coordinator's",
        utc(*now)
    )]
    CoordinatorClock {
        /// Which coordinator.
        coordinator: Address,
        /// The clock here.
        now: SystemTime,
        /// What is wrong with the certificate by that clock.
        problem: &'static str,
    },
    /// The coordinator says no, or something is wrong at its side.
    #[error("{coordinator}: {message}")]
    Refused {
        /// Which coordinator.
        coordinator: Address,
        /// Its words.
        message: String,
    },
    /// No answer.
    #[error("{coordinator} has not answered within {} s", within.as_secs())]
    Timeout {
        /// Which coordinator.
        coordinator: Address,
        /// For so long.
        within: Duration,
    },
    /// The answer is none.
    #[error("the coordinator's answer makes no sense")]
    Answer(#[from] ModelError),
    /// What it sent cannot be used.
    #[error("the coordinator's certificates cannot be used")]
    Unusable(#[from] TlsError),
    /// The token is somebody else's.
    #[error(
        "the certificate is of {got}, not of {wanted}: the token is of another pod, or this one is named wrongly"
    )]
    OtherIdentity {
        /// Who we are.
        wanted: String,
        /// Who we would be.
        got: String,
    },
    /// Nobody to ask.
    #[error("no coordinator to ask is named")]
    NoCoordinator,
}

fn utc(time: SystemTime) -> String {
    // Seconds are enough, and the only instants that cannot be told lie thousands of years away.
    match jiff::Timestamp::try_from(time) {
        Ok(time) => format!("{time:.0}"),
        Err(_) => "a time beyond all calendars".to_owned(),
    }
}

/// An error with what caused it, for one log line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests;
