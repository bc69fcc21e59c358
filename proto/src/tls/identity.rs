//! Who holds a certificate: one DNS name of ours, and no second one.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use tonic::Request;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::material::validity_of;
use crate::model::NodeName;

/// SAN of every coordinator.
pub const COORDINATOR_SAN: &str = "coordinator.somersault";
/// SAN of the fence runner.
pub const FENCE_RUNNER_SAN: &str = "fence-runner.somersault";
/// What follows a node's name in its agent's SAN.
const NODE_SAN_SUFFIX: &str = ".node.somersault";

/// Who holds a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// A coordinator.
    Coordinator,
    /// The agent of a node.
    Node(NodeName),
    /// What runs fence agents on the coordinator's word.
    FenceRunner,
}

impl Identity {
    /// The DNS SAN that stands for it.
    pub fn san(&self) -> String {
        match self {
            Self::Coordinator => COORDINATOR_SAN.to_owned(),
            Self::Node(node) => format!("{node}{NODE_SAN_SUFFIX}"),
            Self::FenceRunner => FENCE_RUNNER_SAN.to_owned(),
        }
    }
}

/// Why a certificate does not tell who holds it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The peer showed none.
    #[error("no client certificate")]
    NoCertificate,
    /// It cannot be read.
    #[error("the certificate cannot be parsed")]
    Unparsable,
    /// None of its SANs is one of ours.
    #[error(
        "the certificate has no DNS name of the form NODE{NODE_SAN_SUFFIX}, {COORDINATOR_SAN} or {FENCE_RUNNER_SAN}"
    )]
    NoName,
    /// It would stand for several.
    #[error("the certificate names more than one identity")]
    Ambiguous,
    /// A node was expected.
    #[error("the certificate is of {}, not of a node", .0.san())]
    NotANode(Identity),
}

impl From<IdentityError> for tonic::Status {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::NotANode(_) => Self::permission_denied(error.to_string()),
            _ => Self::unauthenticated(error.to_string()),
        }
    }
}

/// The certificate with which a peer connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Whose it is.
    pub identity: Identity,
    /// When it ends.
    pub not_after: SystemTime,
}

impl PeerCertificate {
    /// How long it is still good.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or(Duration::ZERO)
    }
}

/// The certificate of a request's connection.
pub fn peer_certificate<T>(request: &Request<T>) -> Result<PeerCertificate, IdentityError> {
    let certificates = request.peer_certs().ok_or(IdentityError::NoCertificate)?;
    let certificate = certificates.first().ok_or(IdentityError::NoCertificate)?;
    let validity = validity_of(certificate).ok_or(IdentityError::Unparsable)?;
    Ok(PeerCertificate { identity: identity_of(certificate)?, not_after: validity.not_after })
}

/// Who sent a request, by the certificate of its connection.
pub fn peer_identity<T>(request: &Request<T>) -> Result<Identity, IdentityError> {
    peer_certificate(request).map(|certificate| certificate.identity)
}

/// The node that sent a request; any other certificate is refused.
pub fn peer_node<T>(request: &Request<T>) -> Result<NodeName, IdentityError> {
    match peer_identity(request)? {
        Identity::Node(node) => Ok(node),
        other => Err(IdentityError::NotANode(other)),
    }
}

/// Who holds a certificate. It must have been verified against the CA before.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::Unparsable)?;
    let names = parsed.subject_alternative_name().map_err(|_| IdentityError::Unparsable)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut identities = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => identity_of_san(name),
        _ => None,
    });
    let identity = identities.next().ok_or(IdentityError::NoName)?;
    if identities.any(|other| other != identity) {
        return Err(IdentityError::Ambiguous);
    }
    Ok(identity)
}

/// The identity that a DNS name stands for; `None` for names that are none of ours, wildcards among them.
pub(super) fn identity_of_san(name: &str) -> Option<Identity> {
    match name {
        COORDINATOR_SAN => Some(Identity::Coordinator),
        FENCE_RUNNER_SAN => Some(Identity::FenceRunner),
        _ => name.strip_suffix(NODE_SAN_SUFFIX)?.parse().ok().map(Identity::Node),
    }
}
