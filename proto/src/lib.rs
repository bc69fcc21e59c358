//! The wire contract: generated messages and services, and the valid domain types that they become; and what else both ends
//! of it do in the same way: certificates, tokens, what they declare to Prometheus.
//!
//! Code outside this crate's edges uses [`model`]; [`v1`] is for the gRPC shells alone.

pub mod declared;
pub mod enroll;
pub mod model;
pub mod tls;
pub mod token;

// Generated; documented in the .proto files.
#[allow(missing_docs, unused_qualifications, clippy::pedantic, clippy::doc_markdown)]
/// Messages and services of `somersault.v1`.
pub mod v1 {
    tonic::include_proto!("somersault.v1");
}
