//! Mutual TLS: who a peer must be, who it is, and certificates that are renewed under running servers.
//!
//! Identity is a DNS SAN of the certificate: `<node>.node.somersault` for an agent, `coordinator.somersault` for a
//! coordinator, `fence-runner.somersault` for the fence runner.
//!
//! ```text
//!   folder: ca.crt, tls.crt, tls.key ──follow──┐
//!   enrolment (see `enroll`) ────────renewed───┤
//!   the coordinator's own CA ────────renewed───┴─► TlsSource ──newest──► each connection, accepted or dialled
//! ```
//!
//! A connection keeps the certificates of its own handshake; what is renewed is for the next one. So nothing breaks
//! when certificates change, and whoever wants a connection to end with its certificate says so at that connection
//! ([`PeerCertificate::remaining`]).

mod folder;
mod identity;
mod incoming;
mod material;
mod source;

pub(crate) use material::client as anonymous_client;

pub use folder::follow;
pub use identity::{
    COORDINATOR_SAN, FENCE_RUNNER_SAN, Identity, IdentityError, PeerCertificate, identity_of,
    peer_certificate, peer_identity, peer_node,
};
pub use incoming::{ConnectionLimits, Incoming, Socket};
pub use material::{Pem, TlsError, TlsMaterial, Validity, validity_of};
pub use source::{Renewals, TlsSource};

#[cfg(test)]
mod tests;
