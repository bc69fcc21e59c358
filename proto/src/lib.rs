//! The wire contract: generated messages and services, and the valid domain types that they become.
//!
//! Code outside this crate's edges uses [`model`]; [`v1`] is for the gRPC shells alone.

#[allow(missing_docs, clippy::pedantic, clippy::doc_markdown)] // generated; documented in the .proto files
/// Messages and services of `somersault.v1`.
pub mod v1 {
    tonic::include_proto!("somersault.v1");
}
